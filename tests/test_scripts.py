"""The scripts of `scripts/` do what a colleague keeps them for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def run_script(name: str, *arguments: object) -> str:
    """Run a script in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def write_settings(tmp_path):
    """Return a function that writes a settings file for a tiny training."""

    def write(**settings) -> Path:
        path = tmp_path / f"{len(settings)}.yaml"
        path.write_text(yaml.safe_dump({"epochs": 1, "steps_per_epoch": 3} | settings))
        return path

    return write


def test_the_scripts_train_area_1_and_map_area_2(tmp_path, make_site, write_settings):
    area_1 = make_site(tmp_path / "1")
    area_2 = make_site(tmp_path / "2", seed=1)
    settings = write_settings(encoder="classic_tiny", tile_size=32, batch_size=2)
    told = run_script("train_rural_area_1.py", area_1, tmp_path / "run", settings)
    model_path = tmp_path / "run" / "model.keras"
    assert f"{model_path}: mIoU 0." in told

    told = run_script(
        "transfer_rural_area_2.py",
        area_2,
        model_path,
        tmp_path / "out",
        write_settings(batch_size=2, workers=1),
    )
    assert "With 2tiles, " in told
    assert "With 4tiles, " in told
    (map_path,) = (tmp_path / "out" / "maps").glob("*_classes.tif")
    assert str(map_path) in told
