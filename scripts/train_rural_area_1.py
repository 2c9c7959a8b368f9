"""Train a model of rural area #1.

Usage: python scripts/train_rural_area_1.py MANIFEST OUT_DIR [SETTINGS.yaml]
"""

import sys
from pathlib import Path

import cropseg
from cropseg.training.settings import read_settings_file


def main(manifest: str, out_dir: str, settings_file: str | None = None) -> None:
    """Train on the site, keep the best epoch on its val part, and score it."""
    settings = read_settings_file(Path(settings_file)) if settings_file else {}
    area_1 = cropseg.open_site(manifest)
    run = cropseg.train_site(area_1, out_dir=out_dir, **settings)
    test = run.metrics["test"]
    print(f"{run.model_path}: mIoU {test['miou']:.3f} on the test blocks")
    for item in test["classes"]:
        iou = "-" if item["iou"] is None else f"{item['iou']:.3f}"
        print(f"  {item['name']:<16}{iou}")


if __name__ == "__main__":
    main(*sys.argv[1:])
