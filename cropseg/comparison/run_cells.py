"""Running the cells of a comparison, one after the other.

A run lives in a folder whose name tells what decides its result apart. One that is
finished is not done again, one that was interrupted goes on, and one that fails leaves
the others alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cropseg.comparison.cells import Cell
from cropseg.comparison.estimate import GridClock, Pace, find_done, say_seconds
from cropseg.comparison.forest import execute_forest
from cropseg.comparison.panel import choose_panel, write_panel
from cropseg.comparison.prepare import ComparisonJob, ForestJob
from cropseg.comparison.results import Result
from cropseg.errors import ConflictError, CropsegError
from cropseg.files import claim_out_dir
from cropseg.progress import ShowProgress
from cropseg.training.computing import refuse_other_computing
from cropseg.training.finished import Run, find_finished_run
from cropseg.training.tensorboard import EVENTS_NAME, write_tensorboard
from cropseg.transfer.modes import PIXEL_FOREST
from cropseg.transfer.prepare import TransferJob
from cropseg.transfer.transfer import run_transfer

PANEL_NAME = "panel.npz"
"""Where the image and the labels lie that predictions are shown beside."""

_log = logging.getLogger(__name__)


def refuse_mixture(job: ComparisonJob, folder: Path) -> None:
    """Check that what is left would be computed as what is done was.

    A comparison that is finished may be told again on any machine.

    Raises:
        ConflictError: If runs are left, and this process computes on another backend
            or in another precision.
    """
    job = job.take_steps(folder)  # without them, runs have other folders
    done = find_done(job, folder)
    networks = [cell for cell in job.cells if cell.mode != PIXEL_FOREST]
    if all(cell in done for cell in networks):
        return
    for cell in networks:
        run = find_finished_run(done[cell]) if cell in done else None
        if run is not None:
            refuse_other_computing(
                run.metrics["training"].get("computed_with"),
                job.settings.precision,
                str(run.out_dir),
            )


def run_cells(
    job: ComparisonJob,
    folder: Path,
    show_progress: ShowProgress,
    *,
    tensorboard: bool = False,
) -> list[Result]:
    """Run what is missing of a comparison.

    Args:
        job: The comparison.
        folder: Its folder, claimed by the caller.
        show_progress: Called with steps done and in all, of all runs together.
        tensorboard: Whether each run gets logs that TensorBoard can show.

    Returns:
        A result for each cell, in their order; failed ones too.

    Raises:
        ConflictError: If another process holds the folder of a run.
    """
    runs, done = folder / "runs", find_done(job, folder)
    grid = _Grid(
        job=job,
        measures=_choose_measures(job, folder),
        show_progress=show_progress,
        clock=GridClock(
            pending=[cell for cell in job.cells if cell not in done],
            guess=Pace(job, done).estimate,
        ),
    )
    results = []
    for cell in job.cells:
        result = grid.run(cell, runs / job.run_names[cell])
        if tensorboard and result.run is not None:
            _write_logs(result.run.out_dir)
        results.append(result)
    return results


def _write_logs(run_dir: Path) -> None:
    """Write logs that are missing. The run is worth as much without them."""
    if (run_dir / "tensorboard" / EVENTS_NAME).exists():
        return
    try:
        write_tensorboard(run_dir)
    except Exception:  # noqa: BLE001 - nothing of the comparison depends on them
        _log.warning("No logs for TensorBoard of %s:", run_dir.name, exc_info=True)


def _choose_measures(job: ComparisonJob, folder: Path) -> dict[str, Any]:
    """Return what runs are told to measure, and write what their maps are shown beside.

    Only an oracle needs the val part.
    """
    parts = ("val", "test") if job.design.validation == "oracle" else ("test",)
    panel = choose_panel(job.target)
    if panel is not None and not (folder / PANEL_NAME).exists():
        write_panel(job.target, panel, folder / PANEL_NAME)
    return {"parts": parts, "source_site": job.source_site, "panel": panel}


@dataclass(kw_only=True)
class _Grid:
    """The runs of a comparison, and how far they are."""

    job: ComparisonJob
    measures: Mapping[str, Any]
    show_progress: ShowProgress
    clock: GridClock
    _num_done: int = field(default=0)

    def run(self, cell: Cell, out_dir: Path) -> Result:
        """Run a cell, or return what it was."""
        finished = find_finished_run(out_dir)
        result = Result(cell=cell, run=finished)
        if finished is None:
            self.clock.begin()
            self._show(cell, 0, 1, "")
            result = self._try(cell, out_dir)
            self.clock.end(cell, counts=result.run is not None)
        self._num_done += 1
        return result

    def _try(self, cell: Cell, out_dir: Path) -> Result:
        try:
            return Result(cell=cell, run=self._run(cell, out_dir))
        except ConflictError:
            raise
        except CropsegError as error:
            _log.error("%s failed: %s", cell.name, error)
            _log.info("Where it happened:", exc_info=True)
            return Result(cell=cell, run=None, failure=str(error))
        except Exception as error:  # noqa: BLE001 - the others can still be run
            _log.exception("%s failed", cell.name)
            name = type(error).__name__
            return Result(cell=cell, run=None, failure=f"{name}: {error}")

    def _run(self, cell: Cell, out_dir: Path) -> Run:
        job = self.job.prepare_run(cell)
        # With folds, the window of the panel is for the test in the first one alone.
        panel = self.measures["panel"] if cell.fold in (None, 0) else None
        if isinstance(job, ForestJob):
            with claim_out_dir(out_dir, job.record):
                return _execute_forest(job, out_dir, panel)
        return self._run_transfer(job, cell, out_dir, panel)

    def _run_transfer(
        self, job: TransferJob, cell: Cell, out_dir: Path, panel: Any
    ) -> Run:
        def show(done: int, total: int, text: str) -> None:
            self._show(cell, done, total, text)

        return run_transfer(
            job,
            out_dir,
            show_progress=show,
            reports_normalization=False,  # equal in all runs, and told once
            measures={**self.measures, "panel": panel},
        )

    def _show(self, cell: Cell, done: int, total: int, text: str) -> None:
        """Show the progress of a run as that of the comparison."""
        share, steps = done / max(total, 1), self.job.settings.num_steps
        num_cells = len(self.job.cells)
        left = self.clock.estimate_left(share)
        rest = "" if left is None else f", about {say_seconds(left)} left"
        self.show_progress(
            round((self._num_done + share) * steps),
            num_cells * steps,
            f"run {self._num_done + 1} of {num_cells}{rest}: {cell.name} {text}",
        )


def _execute_forest(job: ForestJob, out_dir: Path, panel: Any) -> Run:
    return execute_forest(
        job.pool, job.settings, out_dir, num_held_out=job.num_held_out, panel=panel
    )
