"""Refitting a mode that was compared on all labels, for mapping."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cropseg.comparison.design import read_comparison
from cropseg.comparison.steps import read_steps
from cropseg.errors import ModelError, UsageError
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.site import Site
from cropseg.training.finished import Run
from cropseg.training.settings import TrainSettings
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import PIXEL_FOREST, get_plan
from cropseg.transfer.prepare import prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions
from cropseg.transfer.transfer import run_transfer

_log = logging.getLogger(__name__)


def refit_like(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    comparison_dir: str | Path,
    *,
    mode: str,
    out_dir: str | Path,
    model: Any = None,
    description: Any = None,
    source_site: Site | None = None,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> Run:
    """Refit a mode of a comparison on all training labels, for mapping.

    It gets the settings and the steps that it was compared with, and its best epoch is
    chosen in the same way: with `validation: budget`, a quarter of all labels.

    Args:
        site: The target site of the comparison. Another one, or one that has changed
            since, is warned of.
        comparison_dir: The folder of the comparison.
        mode: One of its modes, or the path of the plan that was compared.
        out_dir: The run's folder.
        model: The Keras model that was compared, where it was given in memory.
        description: The `ForeignDescription` that was given.
        source_site: The site of the source, for `joint`.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.

    Returns:
        The run, with the comparison's model and settings.

    Raises:
        DataFileNotFoundError: If there is no comparison in that folder.
        UsageError: If the comparison did not have this mode, or its plan has changed.
        ModelError: If the model is not the one that was compared.
    """
    record = read_comparison(comparison_dir)
    given = _find_mode(record, comparison_dir, mode)
    source = find_source(
        record["from"] if model is None else None,
        model=model,
        description=description,
        site=site,
    )
    if source.sha256 != record["from_sha256"]:
        raise ModelError(
            f"{record['from']} is not the model that was compared any more. Restore "
            "it, or compare again."
        )
    if source.told != record.get("from_card", source.told):
        raise ModelError(
            f"{record['from']} was compared as {record['from_card']}, and is described "
            f"as {source.told} now. Describe it as it was, or compare again."
        )
    steps = read_steps(Path(comparison_dir))
    settings = steps.change(TrainSettings(**record["settings"]), get_plan(given).mode)
    job = prepare_transfer(
        site,
        source,
        mode=given,
        reuse=ReuseOptions.from_json(record.get("reuse", {})),
        source_site=source_site,
        validation=record["validation"],
        **settings.to_json(),
    )
    if job.record["fingerprint"] != record["fingerprint"]:
        _log.warning(
            "%s is not what was compared (%s): another site, or its manifest or files "
            "have changed. That %s is the best mode for it was not shown.",
            site.manifest_path,
            record["manifest"],
            mode,
        )
    return run_transfer(job, out_dir, overwrite=overwrite, show_progress=show_progress)


def _find_mode(record: dict[str, Any], comparison_dir: str | Path, mode: str) -> str:
    """Return what `prepare_transfer` takes for a mode that was compared."""
    plans = record.get("plans", {})
    names = {entry["file"]: name for name, entry in plans.items()}
    name = names.get(mode, mode)
    if name not in record["modes"] or name == PIXEL_FOREST:
        networks = [item for item in record["modes"] if item != PIXEL_FOREST]
        raise UsageError(
            f"{comparison_dir} compared {', '.join(record['modes'])}; of these "
            f"{', '.join(networks)} can be refitted, got {mode!r}."
        )
    if name not in plans:
        return name
    path = plans[name]["file"]
    if json.loads(json.dumps(plan_to_json(get_plan(path)))) != plans[name]["plan"]:
        raise UsageError(
            f"{path} is not the plan that was compared any more. Restore it, or "
            "compare again."
        )
    return path
