"""A refit repeats what was compared: settings, measured steps, validation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cropseg.comparison import refit as module
from cropseg.comparison.design import claim_comparison
from cropseg.comparison.refit import refit_like
from cropseg.errors import ModelError
from cropseg.sites.site import open_site


@pytest.fixture
def refit(monkeypatch, prepare, source, site, tmp_path):
    """Return a function that refits a mode: the transfer that would be run."""
    found = []

    def run(job, _out_dir, **_options):
        found.append(job)

    monkeypatch.setattr(module, "run_transfer", run)
    monkeypatch.setattr(module, "find_source", lambda *_given, **_more: source)

    def refit_mode(mode, target=site, **design):
        job = prepare(source, modes=("full", "head_only"), **design)
        folder = tmp_path / "compare"
        with claim_comparison(folder, job.record, overwrite=True):
            steps = {"epochs": 8, "steps": 80}
            (folder / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
            modes = {"modes": {"head_only": {"steps_per_epoch": 33}}}
            (folder / "pace.json").write_text(json.dumps(modes), encoding="utf-8")
        refit_like(target, folder, mode=mode, out_dir=tmp_path / "final")
        return found.pop()

    return refit_mode


def test_a_refit_takes_the_steps_that_were_measured(refit):
    full, head = refit("full"), refit("head_only")

    assert (full.settings.epochs, full.settings.steps_per_epoch) == (8, 10)
    assert (head.settings.epochs, head.settings.steps_per_epoch) == (8, 33)


def test_a_refit_sees_all_labels_of_the_sites_own_split(refit, site):
    job = refit("full", folds=3)

    assert job.record["labels"] is None
    assert job.pool.site.split == site.split


@pytest.mark.parametrize("folds", [None, 3])
def test_a_site_that_was_not_compared_is_warned_of(refit, site, caplog, folds):
    refit("full", folds=folds)
    assert not caplog.records

    path = site.manifest_path.with_name("later.yaml")
    text = site.manifest_path.read_text(encoding="utf-8")
    path.write_text(text.replace("made up", "another"), encoding="utf-8")
    refit("full", open_site(path), folds=folds)

    assert f"{path} is not what was compared" in caplog.text


@pytest.mark.usefixtures("refit")
def test_a_refit_needs_the_model_to_be_described_as_it_was(
    prepare, source, site, tmp_path
):
    told = {"bands": ["red", "nir"]}
    job = prepare(replace(source, told=told), modes=("full",))
    with claim_comparison(tmp_path / "other", job.record):
        pass

    with pytest.raises(ModelError, match=r"described as \{\} now"):
        refit_like(site, tmp_path / "other", mode="full", out_dir=tmp_path / "final")


def test_a_refit_chooses_its_epoch_as_the_runs_that_were_compared(refit):
    assert refit("full").held_out is None
    held = refit("full", validation="budget")
    assert len(held.held_out.tiles) == (len(held.pool.tiles + held.held_out.tiles)) // 4
    assert refit("full", validation="oracle").uses_oracle
