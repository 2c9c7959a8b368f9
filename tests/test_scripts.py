"""The scripts of `scripts/` do what a colleague keeps them for."""

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load_script():
    """Return a function that loads a script as a module, without running it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def write_settings(path, **settings):
    """Write a settings file for a tiny training, and return its path."""
    settings = {"epochs": 1, "steps_per_epoch": 3, "batch_size": 2, **settings}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_the_scripts_train_area_1_and_map_area_2(
    tmp_path, make_site, load_script, capsys
):
    area_1 = make_site(tmp_path / "1")
    area_2 = make_site(tmp_path / "2", seed=1)
    tiny = {"encoder": "classic_tiny", "tile_size": 32}
    settings = write_settings(tmp_path / "train.yaml", **tiny)
    load_script("train_rural_area_1.py").main(
        str(area_1), str(tmp_path / "run"), settings
    )
    model_path = tmp_path / "run" / "model.keras"
    assert f"{model_path}: mIoU 0." in capsys.readouterr().out

    transfer = load_script("transfer_rural_area_2.py")
    transfer.MODES = ["zero_shot", "head_only", "pixel_forest"]
    transfer.LABELS, transfer.DRAWS = ["2tiles"], 1
    settings = write_settings(tmp_path / "transfer.yaml")
    transfer.main(str(area_2), str(model_path), str(tmp_path / "out"), settings)
    told = capsys.readouterr().out
    assert "With 2 labelled tiles, " in told
    (map_path,) = (tmp_path / "out" / "maps").glob("*_classes.tif")
    assert str(map_path) in told


@pytest.mark.slow
def test_a_network_of_ones_own_is_transferred_with_layers_locked(
    tmp_path, make_site, load_script, capsys
):
    area_1 = make_site(tmp_path / "1")
    area_2 = make_site(tmp_path / "2", seed=1)
    settings = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2}

    load_script("transfer_own_network.py").main(
        str(area_1), str(area_2), str(tmp_path / "out"), **settings
    )

    told = capsys.readouterr().out.splitlines()[1:]
    rows = {words[0]: words[-1] for words in map(str.split, told)}
    assert rows["down_1/kernel"] == rows["down_2/bias"] == "locked"
    assert rows["up_2/kernel"] == rows["head/kernel"] == "trained"
