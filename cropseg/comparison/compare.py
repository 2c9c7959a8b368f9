"""Comparing transfer modes on equal terms: modes by budgets by draws.

All runs of a draw see the same labels, in the same batches, with the same schedule,
and are scored on the same test pixels. Nothing is tuned on the target. A comparison
that was interrupted goes on with the runs that are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cropseg.comparison.cells import (
    COMPARISON_RECORD,
    Cell,
    describe_grid,
    plan_cells,
)
from cropseg.comparison.forest import execute_forest
from cropseg.comparison.plots import plot_comparison
from cropseg.comparison.results import Result, summarize, write_counts, write_results
from cropseg.errors import (
    DataFileNotFoundError,
    DivergedError,
    ModelError,
    PartialFailureError,
    UsageError,
)
from cropseg.files import claim_out_dir, hash_file, write_json
from cropseg.models.card import Card, read_card
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.budget import Budget, check_budgets, draw_pool, parse_budgets
from cropseg.sites.site import Site
from cropseg.training.run import Run, find_finished_run
from cropseg.training.settings import TrainSettings
from cropseg.transfer.plan import PIXEL_FOREST
from cropseg.transfer.target import (
    choose_settings,
    describe_transfer,
    prepare_target,
)
from cropseg.transfer.transfer import transfer_to_site

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison."""

    out_dir: Path
    """Its folder."""
    results: tuple[Result, ...]
    """A result for every run, failed ones too."""
    summary: dict[str, Any]
    """What `summary.json` holds."""

    def find_best_network(self) -> str:
        """Return the best mode at the largest budget that leaves a model to map with.

        Raises:
            UsageError: If only the pixel forest was compared.
        """
        ranked = [item["mode"] for item in self.summary["budgets"][-1]["modes"]]
        networks = [mode for mode in ranked if mode != PIXEL_FOREST]
        if not networks:
            raise UsageError("No network was compared, so there is none to map with.")
        return str(networks[0])


def compare_modes(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    model_path: str | Path,
    *,
    modes: Sequence[str],
    labels: Sequence[str],
    draws: int = 3,
    out_dir: str | Path,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Comparison:
    """Run modes at budgets of labels, several draws each, and compare them.

    Args:
        site: The target site.
        model_path: The source model, a bundle.
        modes: Some of `MODES`.
        labels: Budgets, such as `["4tiles", "16tiles"]`.
        draws: Random choices of the labels of each budget.
        out_dir: Folder of the comparison.
        overwrite: Start again in a folder that holds another comparison.
        show_progress: Called with steps done, steps in all and what is going on.
        **settings: Fields of `TrainSettings`, equal for all modes. The seed of a run
            is `seed` plus its draw.

    Returns:
        The comparison. `results.csv`, `summary.json`, `counts.npz` and
        `comparison.png` are in its folder, and the runs in `runs/`.

    Raises:
        UsageError: If a mode, a budget or a setting cannot be used.
        DataError: If the site cannot be trained on, or a budget exceeds its labels.
        ModelError: If the model does not fit the site.
        ConflictError: If the folder holds another comparison.
        PartialFailureError: If a run diverged. The others are complete.
    """
    card = read_card(model_path)
    chosen = choose_settings(card, settings)
    budgets = parse_budgets(labels)
    cells = plan_cells(modes, budgets, draws, seed=chosen.seed)
    site = prepare_target(site, card)
    check_budgets(budgets, site, card.tile_size)
    what = describe_grid(modes, budgets, draws)
    record = describe_transfer(site, model_path, chosen, what, command="compare")
    folder = Path(out_dir)
    with claim_out_dir(folder, record, overwrite=overwrite, record=COMPARISON_RECORD):
        job = _Job(
            site,
            Path(model_path),
            chosen,
            out_dir=folder,
            show_progress=show_progress,
        )
        results = job.run(cells)
        summary = _summarize(results, budgets, record, card)
        write_results(results, site.classes.names, folder / "results.csv")
        write_counts(results, folder / "counts.npz")
        write_json(folder / "summary.json", summary)
        title = f"From {card.site} to {site.name}: mean and range of {draws} draws"
        plot_comparison(summary["budgets"], title, folder / "comparison.png")
    failures = [result for result in results if result.run is None]
    if failures:
        raise PartialFailureError(
            f"{len(failures)} of {len(results)} runs failed, {failures[0].cell.name} "
            f"first: {failures[0].failure} The others are in {folder / 'results.csv'}."
        )
    return Comparison(out_dir=folder, results=tuple(results), summary=summary)


class _Job:
    """Runs the cells of a comparison, one after the other."""

    def __init__(
        self,
        site: Site,
        model_path: Path,
        settings: TrainSettings,
        *,
        out_dir: Path,
        show_progress: ShowProgress,
    ) -> None:
        self._site = site
        self._model_path = model_path
        self._settings = settings
        self._out_dir = out_dir
        self._show_progress = show_progress

    def run(self, cells: Sequence[Cell]) -> list[Result]:
        results = []
        for index, cell in enumerate(cells):
            try:
                run = self._run_cell(cell, index, len(cells))
                results.append(Result(cell=cell, run=run))
            except DivergedError as error:
                _log.error("%s failed: %s", cell.name, error)
                results.append(Result(cell=cell, run=None, failure=str(error)))
        return results

    def _run_cell(self, cell: Cell, index: int, num_cells: int) -> Run:
        steps = self._settings.num_steps

        def show_progress(done: int, total: int, text: str) -> None:
            share = done / max(total, 1)
            self._show_progress(
                round((index + share) * steps), num_cells * steps, f"{cell.name} {text}"
            )

        show_progress(0, 1, "")
        out_dir = self._out_dir / "runs" / cell.name
        settings = self._settings.change(seed=cell.seed)
        if cell.mode == PIXEL_FOREST:
            return self._run_forest(cell, settings, out_dir)
        given = settings.to_json() | {"workers": settings.workers}
        run = transfer_to_site(
            self._site,
            self._model_path,
            mode=cell.mode,
            out_dir=out_dir,
            labels=str(cell.budget) if cell.budget else None,
            draw=cell.draw,
            show_progress=show_progress,
            **given,
        )
        show_progress(1, 1, "")
        return run

    def _run_forest(self, cell: Cell, settings: TrainSettings, out_dir: Path) -> Run:
        assert cell.budget is not None  # noqa: S101 - only zero_shot has none
        pool = draw_pool(self._site, settings.tile_size, cell.budget, draw=cell.draw)
        record = {
            "command": PIXEL_FOREST,
            "fingerprint": self._site.fingerprint,
            "labels": str(cell.budget),
            "draw": cell.draw,
            "seed": settings.seed,
            "class_weight_power": settings.class_weight_power,
        }
        with claim_out_dir(out_dir, record):
            finished = find_finished_run(out_dir)
            return finished or execute_forest(pool, settings, out_dir)


def _summarize(
    results: Sequence[Result],
    budgets: Sequence[Budget],
    record: dict[str, Any],
    card: Card,
) -> dict[str, Any]:
    summaries = summarize(results, budgets)
    return {
        "answer": " ".join(item["answer"] for item in summaries),
        "site": record["site"],
        "source_site": card.site,
        "from": record["from"],
        "from_sha256": record["from_sha256"],
        "draws": record["draws"],
        "validation": record["validation"],
        "settings": record["settings"],
        "spread": "lowest and highest mIoU over the draws; no interval",
        "failed": [result.cell.name for result in results if result.run is None],
        "budgets": summaries,
    }


def refit_like(
    site: Site,
    comparison_dir: str | Path,
    *,
    mode: str,
    out_dir: str | Path,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> Run:
    """Refit a mode of a comparison on all training labels, for mapping.

    Args:
        site: The target site of the comparison.
        comparison_dir: The folder of the comparison.
        mode: One of its modes.
        out_dir: The run's folder.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.

    Returns:
        The run, with the comparison's model and settings.

    Raises:
        DataFileNotFoundError: If there is no comparison in that folder.
        UsageError: If the comparison did not have this mode.
    """
    path = Path(comparison_dir) / COMPARISON_RECORD
    if not path.exists():
        raise DataFileNotFoundError(
            f"No comparison in {comparison_dir}: it has no {COMPARISON_RECORD}. "
            "Give the --out of a `cropseg compare`."
        )
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    if mode not in record["modes"] or mode == PIXEL_FOREST:
        networks = [name for name in record["modes"] if name != PIXEL_FOREST]
        raise UsageError(
            f"{comparison_dir} compared {', '.join(record['modes'])}; of these "
            f"{', '.join(networks)} can be refitted, got {mode!r}."
        )
    read_card(record["from"])
    if hash_file(Path(record["from"])) != record["from_sha256"]:
        raise ModelError(
            f"{record['from']} is not the model that was compared any more. Restore "
            "it, or compare again."
        )
    return transfer_to_site(
        site,
        record["from"],
        mode=mode,
        out_dir=out_dir,
        overwrite=overwrite,
        show_progress=show_progress,
        **record["settings"],
    )
