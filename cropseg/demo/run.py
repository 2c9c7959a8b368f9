"""The demo: the whole way on two made-up rural areas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropseg.comparison.compare import compare_modes
from cropseg.comparison.refit import refit_like
from cropseg.demo.areas import write_areas
from cropseg.demo.picture import draw_map
from cropseg.files import claim_out_dir
from cropseg.inference.mapping.predict import predict_scenes
from cropseg.models.card import read_card
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.site import open_site
from cropseg.training.train import train_site
from cropseg.transfer.modes import PIXEL_FOREST

MODES = ("zero_shot", "scratch", "full", "frozen_encoder", "head_only", PIXEL_FOREST)
"""What the demo compares."""

LABELS = ("2tiles", "6tiles")
"""The budgets that it compares at."""

DRAWS = 2
"""Draws of each budget."""

SETTINGS: dict[str, Any] = {
    "encoder": "classic_tiny",
    "tile_size": 128,
    "batch_size": 4,
    "steps_per_epoch": 50,
}
"""A small network, so that the demo takes minutes on two cores."""

SOURCE_EPOCHS = 10
"""Epochs on area 1."""

TARGET_EPOCHS = 3
"""Epochs of each run on area 2."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo leaves."""

    out_dir: Path
    """Its folder."""
    summary: dict[str, Any]
    """The summary of its comparison."""
    mapped_mode: str
    """The mode that area 2 was mapped with."""

    @property
    def comparison_dir(self) -> Path:
        """Folder of the comparison."""
        return self.out_dir / "comparison"

    def list_sights(self) -> list[tuple[Path, str]]:
        """Return what is worth a look, and why."""
        return [
            (self.out_dir / "area_1" / "manifest.yaml", "how a site is described"),
            (self.out_dir / "runs" / "area_1" / "curves.png", "how area 1 was learnt"),
            (self.comparison_dir / "comparison.png", "mIoU against labels"),
            (self.comparison_dir / "report.html", "which mode wins, how surely"),
            (self.comparison_dir / "results.csv", "every run"),
            (self.out_dir / "maps" / "area_2.png", f"area 2, by {self.mapped_mode}"),
            (self.out_dir / "maps" / "scene_classes.tif", "the same, to open in QGIS"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        sights = [str(path) for path, _ in self.list_sights()]
        return {"comparison": self.summary, "look_at": sights}


def run_demo(
    out_dir: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> DemoResult:
    """Make two areas, train on the first, compare modes on the second, and map it.

    Args:
        out_dir: Folder for all of it.
        seed: Seed of the areas and of the training.
        overwrite: Start again in a folder that holds a demo of another seed.
        show_progress: Called with steps done, steps in all and what is going on.

    Returns:
        Where everything lies, and the summary of the comparison.

    Raises:
        ConflictError: If the folder holds a demo of another seed.
    """
    folder = Path(out_dir)
    record = {"command": "demo", "seed": seed}
    with claim_out_dir(folder, record, overwrite=overwrite, record="demo.yaml"):
        manifests = [folder / name / "manifest.yaml" for name in ("area_1", "area_2")]
        if not all(path.exists() for path in manifests):
            write_areas(folder, seed=seed)
        area_1, area_2 = map(open_site, manifests)
        source = train_site(
            area_1,
            out_dir=folder / "runs" / "area_1",
            epochs=SOURCE_EPOCHS,
            seed=seed,
            show_progress=show_progress,
            **SETTINGS,
        )
        comparison = compare_modes(
            area_2,
            source.model_path,
            modes=MODES,
            labels=LABELS,
            draws=DRAWS,
            folds=None,  # minutes, not a figure to be relied on
            out_dir=folder / "comparison",
            epochs=TARGET_EPOCHS,
            batch_size=SETTINGS["batch_size"],
            steps_per_epoch=SETTINGS["steps_per_epoch"],
            seed=seed,
            show_progress=show_progress,
        )
        mode = comparison.find_best_network()
        final = refit_like(
            area_2,
            comparison.out_dir,
            mode=mode,
            out_dir=folder / "runs" / "area_2",
            show_progress=show_progress,
        )
        (map_path,) = predict_scenes(
            final.model_path,
            area_2.image_paths,
            out_dir=folder / "maps",
            show_progress=show_progress,
        )
        draw_map(
            area_2,
            area_2.scenes[0],
            read_card(final.model_path),
            map_path=map_path,
            path=folder / "maps" / "area_2.png",
        )
    return DemoResult(out_dir=folder, summary=comparison.summary, mapped_mode=mode)
