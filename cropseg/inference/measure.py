"""What is measured of a prediction of one part of a site, tile by tile.

All of it is counted in one pass, in whole numbers, block by block, and nothing depends
on the order of the tiles. No Keras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.evaluation.calibration import (
    Calibration,
    compute_calibration,
    count_reliability,
)
from cropseg.evaluation.confusion import count_confusion_by_block
from cropseg.evaluation.fields import FIELD_COLUMNS, FieldVotes, score_fields
from cropseg.evaluation.scores import Scores, compute_scores
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.labels import FieldLabels
from cropseg.sites.scene import SceneReader
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, index_blocks
from cropseg.sites.vector import NO_FIELD, VectorSource, open_fields

Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A window of a scene whose predictions are kept, to be looked at."""

    scene: int
    """Position of the scene in the site."""
    window: Window
    """Its pixels, inside the scene."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model got right and wrong on a part of a site."""

    block_ids: npt.NDArray[np.int64]
    """Number of each block that has a scored pixel, (blocks,)."""
    counts: Counts
    """Confusion counts, (blocks, classes, classes + 1); the last column is other."""
    class_names: tuple[str, ...]
    """The site's classes."""
    reliability: Counts | None = None
    """Of the scored pixels, by block and probability of the predicted class, (blocks,
    `NUM_BINS`, 3): see `count_reliability`. The probability is the one that the model
    gives to the class that it chose, also where several of its classes are one of the
    site. None where the predictor gives no probabilities."""
    mapped: Counts | None = None
    """Pixels of each predicted class and of other, (blocks, classes + 1), over all
    valid pixels of the part, labelled or not, in the blocks of `block_ids` and the
    scenes with labels. None where only tiles with labels were predicted."""
    fields: Counts | None = None
    """A row for each field that lies whole in the part, (fields, 5): see
    `FIELD_COLUMNS`. No row where labels are pixels or points."""
    panel: Labels | None = None
    """Predicted classes in the panel, (height, width): class ids, the number of classes
    for other, 255 without data. None where no panel was asked for."""

    @property
    def scores(self) -> Scores:
        """Scores over all blocks."""
        return compute_scores(self.counts, self.class_names)

    @property
    def calibration(self) -> Calibration | None:
        """Calibration over all blocks, or None without probabilities."""
        if self.reliability is None:
            return None
        return compute_calibration(self.reliability)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `evaluate --json` prints.

        It has the scores, `ece`, `reliability` (the bins of the curve) and `fields`
        (`accuracy` and `num_fields`), which are null where nothing was measured.
        """
        calibration = self.calibration
        found = calibration.to_json() if calibration else {"ece": None, "bins": None}
        fields = score_fields(self.fields) if self.fields is not None else None
        return {
            **self.scores.to_json(),
            "ece": found["ece"],
            "reliability": found["bins"],
            "fields": fields.to_json() if fields else None,
        }

    def to_arrays(self) -> dict[str, npt.NDArray[np.integer[Any]]]:
        """Return what was counted, by name, but for the panel."""
        names = ("block_ids", "counts", "reliability", "mapped", "fields")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a window was taken for."""

    window: Window
    """Where it lies, inside its scene."""
    classes: Labels
    """Class ids of the site, (height, width); those from the number of classes on are
    other, 255 is without data."""
    confidence: npt.NDArray[np.floating] | None = None
    """Probability of the predicted class, 0 to 1, (height, width); None where the
    predictor has none."""


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """What is known of a window, as far as it is in a part."""

    labels: Labels
    """Class ids, (height, width); 255 where unknown, invalid or in another part."""
    inside: npt.NDArray[np.bool_]
    """Whether a pixel is valid and in the part, (height, width)."""


class Tally:
    """Counts predictions of a part of a site, window by window.

    Ask `needs` of every window, have predicted what is needed, and `add` it.
    """

    def __init__(
        self, site: Site, part: str, *, panel: Panel | None, whole_part: bool
    ) -> None:
        """Start with nothing counted.

        Args:
            site: The site, with the bands that the predictor sees.
            part: train, val or test.
            panel: A window whose predictions are kept.
            whole_part: Whether pixels without a label are predicted too.
        """
        self._site = site
        self._part = PARTS.index(part)
        self._panel = panel
        self._whole_part = whole_part
        self._num_classes = len(site.classes)
        self._counts: dict[int, Counts] = {}
        self._reliability: dict[int, Counts] = {}
        self._mapped: dict[int, Counts] = {}
        self._has_confidence = True
        self._awaited: dict[tuple[int, Window], _Truth] = {}
        self._votes: dict[VectorSource, FieldVotes] = {}
        self._picture: Labels | None = None
        if panel is not None:
            shape = (panel.window.height, panel.window.width)
            self._picture = np.full(shape, IGNORE, np.uint8)

    def needs(self, scene: int, reader: SceneReader, window: Window) -> bool:
        """Whether a window must be predicted, and then added.

        Args:
            scene: Position of its scene in the site.
            reader: The open scene.
            window: A window inside the scene.
        """
        truth = self._read_truth(reader, window)
        is_needed = (
            bool((truth.labels != IGNORE).any())
            or (self._whole_part and bool(truth.inside.any()))
            or self._find_common(scene, window) is not None
        )
        if is_needed:
            self._awaited[scene, window] = truth
        return is_needed

    def add(self, scene: int, reader: SceneReader, prediction: Prediction) -> None:
        """Count a predicted window.

        Args:
            scene: Position of its scene in the site.
            reader: The open scene.
            prediction: What was predicted for a window that was needed.
        """
        truth = self._awaited.pop((scene, prediction.window))
        window, classes = prediction.window, prediction.classes
        common = self._find_common(scene, window)
        if common and self._panel and self._picture is not None:
            place = common.slices_in(self._panel.window)
            self._picture[place] = classes[common.slices_in(window)]
        if not truth.inside.any():
            return
        split = self._site.require_split()
        ids, blocks = index_blocks(split, reader.scene.grid, window)
        num_blocks = len(ids)
        counts = count_confusion_by_block(
            truth.labels,
            classes,
            blocks,
            num_blocks=num_blocks,
            num_classes=self._num_classes,
        )
        _add_up(self._counts, ids, counts)
        if prediction.confidence is None:
            self._has_confidence = False
        else:
            reliability = count_reliability(
                truth.labels,
                classes,
                prediction.confidence,
                blocks,
                num_blocks=num_blocks,
            )
            _add_up(self._reliability, ids, reliability)
        if self._whole_part:
            mapped = self._count_classes(classes, blocks, truth.inside, num_blocks)
            _add_up(self._mapped, ids, mapped)
        self._add_votes(reader, prediction, truth)

    def finish(self) -> Evaluation | None:
        """Return what was counted, or None without a scored pixel."""
        if not self._counts:
            return None
        block_ids = sorted(self._counts)
        rows = [
            self._votes[source].list_fields(index)
            for index, source in enumerate(self._site.vector_sources)
            if source in self._votes
        ]
        no_row = np.zeros((0, len(FIELD_COLUMNS)), np.int64)
        return Evaluation(
            block_ids=np.array(block_ids, np.int64),
            counts=_stack(self._counts, block_ids),
            class_names=self._site.classes.names,
            reliability=(
                _stack(self._reliability, block_ids) if self._has_confidence else None
            ),
            mapped=_stack(self._mapped, block_ids) if self._whole_part else None,
            fields=np.concatenate([no_row, *rows]),
            panel=self._picture,
        )

    def _read_truth(self, reader: SceneReader, window: Window) -> _Truth:
        split = self._site.require_split()
        inside = split.read_parts(reader.scene.grid, window) == self._part
        labels = np.full(inside.shape, IGNORE, np.uint8)
        if inside.any():
            pixels, found = reader.read_valid_labels(window)
            labels[inside] = found[inside]
            inside &= pixels.valid
        return _Truth(labels=labels, inside=inside)

    def _find_common(self, scene: int, window: Window) -> Window | None:
        """Return what a window shares with the panel."""
        if self._panel is None or self._panel.scene != scene:
            return None
        common = self._panel.window.intersect(window)
        return common if common.height and common.width else None

    def _count_classes(
        self,
        classes: Labels,
        blocks: npt.NDArray[np.int64],
        inside: npt.NDArray[np.bool_],
        num_blocks: int,
    ) -> Counts:
        num_columns = self._num_classes + 1
        index = blocks[inside] * num_columns
        index += np.minimum(classes[inside], self._num_classes)
        counts = np.bincount(index, minlength=num_blocks * num_columns)
        return counts.reshape(num_blocks, num_columns)

    def _add_votes(
        self, reader: SceneReader, prediction: Prediction, truth: _Truth
    ) -> None:
        labels, rule = reader.scene.labels, reader.rule
        if not isinstance(labels, FieldLabels) or rule is None:
            return
        source = labels.source
        if source not in self._votes:
            opened = open_fields(source, reader.scene.grid.crs)
            if opened.are_points:
                return
            self._votes[source] = FieldVotes(len(opened.values), self._num_classes)
        fields = reader.read_fields(prediction.window)
        # One that is whole in another part has no label here, and so no vote.
        fields = np.where(
            (fields != NO_FIELD) & rule.is_whole[fields], fields, NO_FIELD
        )
        self._votes[source].add(fields, truth.labels, prediction.classes)


def _add_up(
    totals: dict[int, Counts], ids: npt.NDArray[np.int64], counts: Counts
) -> None:
    for block_id, block_counts in zip(ids.tolist(), counts, strict=True):
        if block_counts.any():
            totals[block_id] = totals.get(block_id, 0) + block_counts


def _stack(totals: dict[int, Counts], block_ids: list[int]) -> Counts:
    return np.stack([totals[block_id] for block_id in block_ids])
