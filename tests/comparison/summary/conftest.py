"""Made-up comparisons: runs that are nothing but counts, and no Keras."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cropseg.comparison.cells import Cell
from cropseg.comparison.results import Result
from cropseg.comparison.summary.summarize import summarize_comparison
from cropseg.evaluation.scores import compute_scores
from cropseg.sites.budget import parse_budget
from cropseg.sites.classes import ClassMap, CropClass
from cropseg.sites.split import BlockSplit

NAMES = ("corn", "water", "soybeans")
COLORS = ("#ffd300", "#4970a3", "#267000", "#d69ebc", "#ff6666", "#a57000")
NUM_BLOCKS = 12


@dataclass
class MadeUp:
    """A comparison in the making."""

    folder: Path
    names: tuple[str, ...] = NAMES
    num_blocks: int = NUM_BLOCKS
    record: dict[str, Any] = field(default_factory=dict)
    own_ious: dict[str, float | None] = field(default_factory=dict)
    source_site: Any = None
    split: Any = None
    results: list[Result] = field(default_factory=list)

    def make_counts(self, quality, *, draw=0, blocks=None):
        """Return counts of a mode that gets about a share `quality` right.

        The labels of a block do not depend on mode and draw. Errors go to the next
        class, and every tenth one to other.
        """
        ids = range(self.num_blocks) if blocks is None else blocks
        num_classes = len(self.names)
        counts = np.zeros((len(ids), num_classes, num_classes + 1), np.int64)
        for place, block in enumerate(ids):
            labels = np.random.default_rng(block).integers(200, 900, num_classes)
            rng = np.random.default_rng([block, draw, round(1e4 * quality)])
            for row, pixels in enumerate(labels):
                wrong = rng.binomial(pixels, 1 - quality)
                other = wrong // 10
                counts[place, row, row] = pixels - wrong
                counts[place, row, (row + 1) % num_classes] = wrong - other
                counts[place, row, -1] = other
        return counts

    def add(
        self,
        mode,
        labels="4tiles",
        *,
        quality=0.6,
        counts=None,
        block_ids=None,
        draw=0,
        repeat=0,
        fold=None,
        converged=True,
        arrays=None,
        training=None,
    ):
        """Add a finished run; `labels` is None for a mode that sees none."""
        budget = None if labels is None else parse_budget(labels)
        cell = self._make_cell(mode, budget, draw, repeat, fold)
        if counts is None:
            counts = self.make_counts(
                quality, draw=draw + 100 * repeat, blocks=block_ids
            )
        ids = np.arange(len(counts)) if block_ids is None else np.array(block_ids)
        out_dir = self.folder / "runs" / f"{cell.name}-0123abcd"
        out_dir.mkdir(parents=True)
        saved = {"test_counts": counts, "test_block_ids": ids, **(arrays or {})}
        np.savez(out_dir / "counts.npz", **saved)
        told = {
            "steps": 6 if budget else 0,
            "seconds": 1.5 + draw,
            "converged": converged if budget else None,
            "learning_rate": 0.001 if budget else None,
            "label_pixels": 1000 * budget.amount if budget else 0,
            "classes_seen": ["corn"],
            "trained_parameters": 42,
        }
        metrics = {
            "val": None,
            "test": compute_scores(counts, self.names).to_json(),
            "training": told | (training or {}),
        }
        run = SimpleNamespace(out_dir=out_dir, metrics=metrics)
        self.results.append(Result(cell=cell, run=run))

    def fail(self, mode, labels="4tiles", *, draw=0, repeat=0, fold=None):
        """Add a run that failed."""
        cell = self._make_cell(mode, parse_budget(labels), draw, repeat, fold)
        self.results.append(Result(cell=cell, run=None, failure="The loss is nan."))

    def make_job(self):
        """Return the job of the comparison so far."""
        cells = [result.cell for result in self.results]
        budgets = {cell.budget for cell in cells if cell.budget}
        classes = tuple(
            CropClass(name=name, color=COLORS[index % len(COLORS)])
            for index, name in enumerate(self.names)
        )
        record = {
            "site": "area-2",
            "from": "runs/area_1/model.keras",
            "from_sha256": "ab" * 32,
            "draws": max(cell.draw for cell in cells) + 1,
            "seeds": max(cell.repeat for cell in cells) + 1,
            "folds": None,
            "validation": "none",
            "equal": "steps",
            "settings": {"seed": 7},
        }
        split = BlockSplit(block_m=100, gap_m=0, train=0.6, val=0.2, seed=0)
        own = [{"name": name, "iou": iou} for name, iou in self.own_ious.items()]
        card = SimpleNamespace(
            site="area-1",
            class_names=tuple(self.own_ious) or self.names,
            scores={"test": {"classes": own}} if own else {},
        )
        return SimpleNamespace(
            site=SimpleNamespace(manifest_path=Path("area_2.yaml")),
            target=SimpleNamespace(
                classes=ClassMap(classes=classes),
                gsd_m=10.0,
                split=self.split or split,
            ),
            source=SimpleNamespace(card=card),
            source_site=self.source_site,
            budgets=tuple(sorted(budgets, key=lambda budget: budget.amount)),
            record=record | self.record,
        )

    def summarize(self):
        """Return the summary of the comparison so far."""
        return summarize_comparison(self.make_job(), self.results, self.folder)

    @staticmethod
    def _make_cell(mode, budget, draw, repeat, fold):
        seed = 7 + draw + 1000 * repeat
        return Cell(
            mode=mode, budget=budget, draw=draw, seed=seed, repeat=repeat, fold=fold
        )


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Return a comparison without runs."""
    monkeypatch.setattr(
        "cropseg.comparison.summary.summarize._list_versions", lambda: {"cropseg": "0"}
    )
    return MadeUp(folder=tmp_path)


@pytest.fixture
def usual(made_up):
    """Return a comparison of four modes at two budgets, three draws each."""
    qualities = {"full": 0.8, "scratch": 0.6, "pixel_forest": 0.7}
    made_up.add("zero_shot", None, quality=0.5)
    for draw in range(3):
        for labels, gain in (("4tiles", 0.0), ("16tiles", 0.1)):
            for mode, quality in qualities.items():
                made_up.add(mode, labels, quality=quality + gain, draw=draw)
    return made_up
