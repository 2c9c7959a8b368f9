"""Find out how to reuse the model of area #1 on area #2, then map area #2.

Usage: python scripts/transfer_rural_area_2.py MANIFEST MODEL OUT_DIR [SETTINGS.yaml]
"""

import sys
from pathlib import Path

import cropseg
from cropseg.training.settings import read_settings_file

MODES = ["zero_shot", "scratch", "full", "frozen_encoder", "head_only", "pixel_forest"]
LABELS = ["2tiles", "4tiles"]
DRAWS = 2


def main(
    manifest: str, model_path: str, out_dir: str, settings_file: str | None = None
) -> None:
    """Compare modes on few labels, refit the best network on all of them, and map."""
    settings = read_settings_file(Path(settings_file)) if settings_file else {}
    folder = Path(out_dir)
    area_2 = cropseg.open_site(manifest)
    comparison = cropseg.compare_modes(
        area_2,
        model_path,
        modes=MODES,
        labels=LABELS,
        draws=DRAWS,
        folds=None,  # "auto" tests on every block of a small area, at 5 times the cost
        out_dir=folder / "comparison",
        **settings,
    )
    print(comparison.summary["answer"])
    best = comparison.find_best_network()
    final = cropseg.refit_like(
        area_2, comparison.out_dir, mode=best, out_dir=folder / "model"
    )
    maps = cropseg.predict_scenes(
        final.model_path, area_2.image_paths, out_dir=folder / "maps"
    )
    print(f"mapped with {best}:", *maps)


if __name__ == "__main__":
    main(*sys.argv[1:])
