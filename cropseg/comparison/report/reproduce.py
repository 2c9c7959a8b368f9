"""The commands that make a comparison again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, Final

import yaml

from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.values import read_list, read_mapping, read_text
from cropseg.training.settings import TrainSettings

_FIT_OPTIONS: Final = (
    "batch_size",
    "epochs",
    "steps_per_epoch",
    "learning_rate",
    "loss",
    "precision",
    "seed",
)
"""Settings that `compare` has an option for."""

_OF_MODEL: Final = ("architecture", "encoder", "tile_size", "workers")
"""Settings that come from the model of area 1, or change no result."""

_DESIGN_OPTIONS: Final = ("draws", "seeds", "folds", "validation", "equal")
_MODEL: Final = "MODEL.keras"
_SETTINGS_FILE: Final = "settings.yaml"
_GSD_FLAGS: Final = {"accept": "--accept-gsd", "resample": "--resample-to-model"}
_DEFAULTS: Final = {
    field.name: field.default for field in dataclasses.fields(TrainSettings)
}


def list_commands(data: ReportData) -> tuple[str, list[str]]:
    """Return what to type to make a comparison again, and what to know about it.

    Returns:
        Lines for a shell, empty where the folder does not say what was compared; and
        notes as sentences.
    """
    record, summary = data.files.record, data.summary
    modes = [_find_given(record, mode) for mode in read_list(record.get("modes"))]
    labels = [read_text(item) for item in read_list(record.get("labels"))]
    if not modes or not labels:
        return "", ["compare.yaml is missing, which says what was compared."]
    site = read_text(summary.get("site") or record.get("site"))
    manifest = read_text(record.get("manifest") or summary.get("manifest"))
    notes = []
    if not manifest:
        manifest = "MANIFEST.yaml"
        notes.append(f"MANIFEST.yaml stands for the manifest of {site}.")
    model = read_text(record.get("from") or summary.get("from")) or _MODEL
    words = [["cropseg", "compare", manifest], ["--from", model]]
    source = read_text(
        read_mapping(record.get("source")).get("manifest")
        or summary.get("source_manifest")
    )
    if source:
        words.append(["--source", source])
    elif record.get("source"):
        words.append(["--source", "SOURCE.yaml"])
        notes.append("SOURCE.yaml stands for the manifest of area 1.")
    words += [["--modes", ",".join(modes)], ["--labels", ",".join(labels)]]
    for name in _DESIGN_OPTIONS:
        if name in record:
            value = record[name]
            words.append([f"--{name}", "none" if value is None else str(value)])
    if record.get("until_flat"):
        words.append(["--until-flat"])
    settings = read_mapping(record.get("settings") or summary.get("settings"))
    words += [
        [f"--{name.replace('_', '-')}", str(settings[name])]
        for name in _FIT_OPTIONS
        if name in settings
    ]
    if record.get("from_card"):
        words.append(["--card", "CARD.yaml"])
        notes.append(
            "CARD.yaml stands for a file with what compare.yaml has as `from_card`: "
            "the model does not say it."
        )
    words += _list_reuse(read_mapping(record.get("reuse")), notes)
    lines = []
    more = {
        name: value
        for name, value in settings.items()
        if name not in (*_FIT_OPTIONS, *_OF_MODEL) and value != _DEFAULTS.get(name)
    }
    if more:
        text = yaml.safe_dump(more, sort_keys=False).rstrip("\n")
        lines.append(f"printf '%s\\n' {shlex.quote(text)} > {_SETTINGS_FILE}")
        words.append(["--config", _SETTINGS_FILE])
    words.append(["--out", "comparison"])
    lines.append(" \\\n  ".join(shlex.join(item) for item in words))
    return "\n".join(lines), notes + _list_checks(data)


def _find_given(record: Mapping[str, Any], mode: Any) -> str:
    """Return what was asked for: a mode of the table, or the file with its plan."""
    plan = read_mapping(read_mapping(record.get("plans")).get(mode))
    return read_text(plan.get("file") or mode)


def _list_reuse(reuse: Mapping[str, Any], notes: list[str]) -> list[list[str]]:
    words = [
        [f"--{name.replace('_', '-')}", read_text(reuse[name])]
        for name in ("normalization", "bands_from", "imagenet_weights")
        if reuse.get(name)
    ]
    if reuse.get("gsd") in _GSD_FLAGS:
        words.append([_GSD_FLAGS[reuse["gsd"]]])
    if reuse.get("synonyms"):
        words.append(["--synonyms", "SYNONYMS.yaml"])
        notes.append(
            "SYNONYMS.yaml stands for a file with the names under `synonyms` below."
        )
    return words


def _list_checks(data: ReportData) -> list[str]:
    """Return by what the same data and the same model are known."""
    record, found = data.files.record, []
    fingerprint = read_text(record.get("fingerprint"))
    if fingerprint:
        found.append(f"The fingerprint of the new area's data is {fingerprint}.")
    sha256 = read_text(record.get("from_sha256") or data.summary.get("from_sha256"))
    if sha256:
        found.append(f"The SHA-256 of the model is {sha256}.")
    if data.files.record.get("equal") == "time":
        found.append(
            "Steps follow from times that were measured; copy pace.json of this "
            "comparison into the new folder first to get the same ones."
        )
    return found
