"""What a training is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.budget import LabelPool
from cropseg.training.batches import SourceTiles
from cropseg.training.checkpoint import PhaseRecord
from cropseg.training.history import Epoch
from cropseg.training.l2sp import StartPenalty
from cropseg.training.optimizer_state import OptimizerState
from cropseg.training.phases import FitPhase
from cropseg.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """A model, and everything that it is fitted with."""

    model: Any
    """The model of a bundle."""
    phases: tuple[FitPhase, ...]
    """What is trained, in order; one at least."""
    pool: LabelPool
    """The labels that it may see."""
    settings: TrainSettings
    """How it is trained."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and standard deviation of each band, as its normalisation has them."""
    penalty: StartPenalty | None = None
    """A penalty on moving away from the weights that it starts from."""
    source_tiles: SourceTiles | None = None
    """Tiles of the source site that are mixed into every batch."""
    resumed: OptimizerState | None = None
    """The state of another training's optimizer, which the first phase goes on with."""
    caches_features: bool = False
    """Whether the features that the head reads are computed once and kept."""
    validate: Callable[[], float] | None = None
    """Returns the mIoU of the model on the val part. None keeps the last weights."""
    checkpoint_path: Path | None = None
    """Where the state is kept, so that the training can go on after an interruption."""
    plots_dir: Path | None = None
    """Where a search of a learning rate leaves its plot."""
    show_progress: ShowProgress = show_nothing
    """Called after every step."""

    @property
    def num_steps(self) -> int:
        """Batches of all phases."""
        return sum(phase.num_steps for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training did. The model of the job holds the weights."""

    losses: tuple[float, ...]
    """Training loss of every step."""
    epochs: tuple[Epoch, ...]
    """Its epochs."""
    phases: tuple[PhaseRecord, ...] = ()
    """Its phases."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of all phases, in s."""
        prepared = sum(phase.prepare_seconds for phase in self.phases)
        return prepared + sum(epoch.seconds for epoch in self.epochs)
