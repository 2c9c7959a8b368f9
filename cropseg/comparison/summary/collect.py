"""The runs of a comparison as arrays: draws by seeds by test blocks.

All modes of an array stand over the same blocks in the same order, so that they can be
paired. The folds of a draw and seed are joined along the blocks: each block is the
test of one fold. No Keras.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.sites.budget import Budget

if TYPE_CHECKING:
    from cropseg.comparison.cells import Cell
    from cropseg.comparison.results import Result
    from cropseg.training.finished import Run

COUNTS_NAME = "counts.npz"
"""Name of the file with a run's counts."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One draw with one seed of a mode at a budget: a run, or one a fold."""

    draw: int
    """The draw of the labels."""
    seed: int
    """The seed."""
    runs: tuple[Run, ...]
    """Its runs, in the order of the folds."""
    arrays: tuple[Arrays, ...]
    """What `counts.npz` of each run holds."""

    def join(self, name: str) -> NDArray[Any] | None:
        """Return an array of all runs joined along its first axis, or None."""
        found = [arrays[name] for arrays in self.arrays if name in arrays]
        if len(found) < len(self.arrays):
            return None
        return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class ModeRuns:
    """What a mode has done at a budget."""

    mode: str
    """The mode."""
    units: tuple[Unit, ...]
    """Its draws and seeds, seeds of a draw side by side."""
    draws: tuple[int, ...] | None
    """The draws that are whole, D; None for a mode that sees no labels, which stands
    for every draw."""
    counts: NDArray[np.int64]
    """Confusion counts of the test, (D, S, B, C, C + 1)."""
    num_asked: int
    """Draws that were asked for; more than D where runs failed."""
    note: str = ""
    """What is left out, and why."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """All its runs."""
        return tuple(run for unit in self.units for run in unit.runs)

    def take_draws(self, draws: Sequence[int]) -> NDArray[np.int64]:
        """Return the counts of some draws; of the only one where it sees no labels."""
        if self.draws is None:
            return self.counts
        return self.counts[[self.draws.index(draw) for draw in draws]]


def read_arrays(run: Run) -> Arrays:
    """Return what a run has counted on the test and on area 1.

    What else its file holds is left on the disk: there may be hundreds of runs.
    """
    with (
        (Path(run.out_dir) / COUNTS_NAME).open("rb") as stream,
        np.load(stream, allow_pickle=False) as file,
    ):
        return {
            name: file[name]
            for name in file.files
            if name.startswith(("test_", "source_"))
        }


def share_draws(modes: Iterable[ModeRuns]) -> list[int]:
    """Return the draws that all of some modes have.

    Modes that see no labels have every draw. Where only such modes are given, it is
    one draw, 0.
    """
    seeing = [set(mode.draws) for mode in modes if mode.draws is not None]
    return sorted(set.intersection(*seeing)) if seeing else [0]


def tell_spread(modes: Iterable[ModeRuns], draws: Sequence[int]) -> bool:
    """Tell whether some draws of modes say how draws differ.

    One that is left of several does not: an interval over its blocks alone would
    stand beside those of other modes, and look as sure as they are.

    Args:
        modes: What modes have done. Those that see no labels have no draws to lose.
        draws: Those of their draws that are used.
    """
    asked = [runs.num_asked for runs in modes if runs.draws is not None]
    return len(draws) > 1 or max(asked, default=1) == 1


class Collection:
    """All finished runs of a comparison, over one set of test blocks."""

    def __init__(self, results: Sequence[Result]) -> None:
        """Read the counts of all finished runs.

        Raises:
            DataError: If runs of one fold share no test block.
        """
        self._results = tuple(results)
        self.arrays: Mapping[Cell, Arrays] = {
            result.cell: read_arrays(result.run)
            for result in self._results
            if result.run is not None
        }
        """What `counts.npz` of each finished run holds."""
        self.blocks: Mapping[int | None, NDArray[np.int64]] = self._find_blocks()
        """Numbers of the test blocks of each fold."""

    @property
    def num_blocks(self) -> int:
        """Test blocks of all folds."""
        return sum(map(len, self.blocks.values()))

    def take_labels(self, num_classes: int) -> NDArray[np.int64]:
        """Return counts of any run over all test blocks, (B, C, C + 1).

        The labels, which are the sums of their rows, are the same for all runs.

        Args:
            num_classes: C, for where no run was finished and B is 0.
        """
        parts = []
        for fold, ids in self.blocks.items():
            arrays = next(a for cell, a in self.arrays.items() if cell.fold == fold)
            parts.append(_take_blocks(arrays, ids))
        empty = np.zeros((0, num_classes, num_classes + 1), np.int64)
        return np.concatenate([empty, *parts])

    def collect(self, budget: Budget) -> dict[str, ModeRuns]:
        """Return the modes at a budget, in the order of the results.

        A draw stands in it if all its seeds and folds were finished. Modes that see no
        labels stand in every budget. A mode without a whole draw is left out.

        Args:
            budget: The budget.
        """
        found = {
            mode: self._collect_mode(mode, group)
            for mode, group in self._group(budget).items()
        }
        return {mode: runs for mode, runs in found.items() if runs is not None}

    def list_notes(self, budget: Budget, modes: Mapping[str, ModeRuns]) -> list[str]:
        """Return what of a budget is left out, and why, as sentences.

        Args:
            budget: The budget.
            modes: What `collect` returned for it.
        """
        notes = [
            modes[mode].note
            if mode in modes
            else f"{mode} is left out, as a run of each of its draws failed."
            for mode in self._group(budget)
        ]
        return [note for note in notes if note]

    def _group(self, budget: Budget) -> dict[str, list[Result]]:
        grouped: dict[str, list[Result]] = {}
        for result in self._results:
            if result.cell.budget in (budget, None):
                grouped.setdefault(result.cell.mode, []).append(result)
        return grouped

    def _find_blocks(self) -> dict[int | None, NDArray[np.int64]]:
        """Return the blocks that all runs of a fold were tested on.

        They are the same for all, unless the site was changed in between.
        """
        blocks: dict[int | None, NDArray[np.int64]] = {}
        for cell, arrays in self.arrays.items():
            ids = arrays["test_block_ids"].astype(np.int64)
            fold = cell.fold
            blocks[fold] = np.intersect1d(blocks[fold], ids) if fold in blocks else ids
        for fold, ids in blocks.items():
            if not ids.size:
                raise DataError(
                    f"The runs{'' if fold is None else f' of fold {fold}'} were tested "
                    "on different blocks and share none, so they cannot be compared. "
                    "Was the site changed? Compare again in a new folder."
                )
        return {fold: blocks[fold] for fold in sorted(blocks, key=lambda f: f or 0)}

    def _collect_mode(self, mode: str, group: Sequence[Result]) -> ModeRuns | None:
        draws: dict[int, list[Result]] = {}
        for result in group:
            draws.setdefault(result.cell.draw, []).append(result)
        whole = {
            draw: results
            for draw, results in draws.items()
            if all(result.run is not None for result in results)
        }
        # Draws that lack a seed or a fold altogether, as in a grid that is growing.
        most = max(map(len, draws.values()))
        whole = {draw: items for draw, items in whole.items() if len(items) == most}
        if not whole:
            return None
        units = [
            self._build_unit(draw, seed, results)
            for draw in sorted(whole)
            for seed, results in _group_seeds(whole[draw])
        ]
        num_seeds = len(units) // len(whole)
        counts = np.stack([self._join_counts(unit) for unit in units])
        lost = sorted(set(draws) - set(whole))
        note = ""
        if lost:
            named = ", ".join(map(str, lost))
            note = (
                f"{mode} is without draw{'s' if len(lost) > 1 else ''} {named}, of "
                "which a run failed."
            )
        sees_labels = any(result.cell.budget is not None for result in group)
        return ModeRuns(
            mode=mode,
            units=tuple(units),
            draws=tuple(sorted(whole)) if sees_labels else None,
            counts=counts.reshape(len(whole), num_seeds, *counts.shape[1:]),
            num_asked=len(draws),
            note=note,
        )

    def _build_unit(self, draw: int, seed: int, results: Sequence[Result]) -> Unit:
        ordered = sorted(results, key=lambda result: result.cell.fold or 0)
        return Unit(
            draw=draw,
            seed=seed,
            runs=tuple(result.run for result in ordered if result.run is not None),
            arrays=tuple(self.arrays[result.cell] for result in ordered),
        )

    def _join_counts(self, unit: Unit) -> NDArray[np.int64]:
        """Return counts over all test blocks, (B, C, C + 1)."""
        pairs = zip(unit.arrays, self.blocks.values(), strict=True)
        return np.concatenate([_take_blocks(arrays, ids) for arrays, ids in pairs])


def _take_blocks(arrays: Arrays, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.searchsorted(arrays["test_block_ids"], ids)  # those of a run are sorted
    counts: NDArray[np.int64] = arrays["test_counts"][order].astype(np.int64)
    return counts


def _group_seeds(results: Sequence[Result]) -> Iterable[tuple[int, list[Result]]]:
    ordered = sorted(results, key=lambda result: result.cell.seed)
    grouped = itertools.groupby(ordered, key=lambda result: result.cell.seed)
    return ((seed, list(items)) for seed, items in grouped)
