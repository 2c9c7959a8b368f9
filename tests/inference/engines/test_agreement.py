"""How far bfloat16 is from float32: counted by hand, measured once, held to a bound."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cropseg.errors import ModelError, UsageError
from cropseg.inference.engines import agreement
from cropseg.inference.engines.agreement import SampleTile, check_agreement, count_equal
from cropseg.inference.engines.choose_engine import open_engine

FILL = (7.0, 9.0)


class Fixed:
    """Gives the class that a tile's first band names, but for some of its pixels."""

    name = "openvino"
    card = SimpleNamespace(nodata_fill=FILL)

    def __init__(self, precision="bfloat16", *, num_wrong=0):
        self.precision = precision
        self.num_wrong = num_wrong

    def stream(self, tiles, *, margin=0):
        inside = slice(margin, -margin or None)
        for key, values in tiles:
            classes = values[inside, inside, 0].astype(int)
            classes.flat[: self.num_wrong] += 1
            yield key, np.eye(10, dtype="float32")[classes]


@pytest.fixture
def path(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(agreement, "open_engine", lambda *_, **__: Fixed("float32"))
    path = tmp_path / "model.keras"
    path.write_bytes(b"weights")
    return path


def make_tiles(count=1, side=200, margin=0):
    values = np.random.default_rng(0).integers(0, 5, (side, side, 2)).astype("float32")
    return [SampleTile(values=values, margin=margin)] * count


def raise_if_read():
    raise AssertionError("nothing is measured, so nothing is read")
    yield


def test_equal_pixels_are_counted_tile_by_tile():
    tiles = make_tiles(2, side=10)
    assert count_equal(Fixed(num_wrong=3), Fixed(), tiles) == (194, 200)
    assert count_equal(Fixed(), Fixed(), tiles) == (200, 200)


def test_pixels_without_data_do_not_count():
    (tile,) = make_tiles(side=10)
    tile.values[0, :5] = FILL
    tile.values[0, 5, 0] = FILL[0]  # one band alone is a value like any other
    assert count_equal(Fixed(num_wrong=7), Fixed(), [tile]) == (93, 95)


def test_what_is_compared_is_what_is_mapped():
    tiles = [*make_tiles(2, side=10, margin=2), *make_tiles(side=8)]
    assert count_equal(Fixed(num_wrong=3), Fixed(), tiles) == (127, 136)
    assert tiles[0].core.shape == (6, 6, 2)


def test_float32_is_not_measured(path):
    assert check_agreement(Fixed("float32"), path, raise_if_read()) is None


def test_a_model_is_measured_once(path, caplog):
    caplog.set_level("INFO")
    first = check_agreement(Fixed(num_wrong=100), path, make_tiles())
    assert (first.num_pixels, first.share) == (40_000, pytest.approx(0.9975))
    assert "bfloat16 gives the class of float32 on 99.75% of 40,000" in caplog.text
    assert check_agreement(Fixed(), path, raise_if_read()) == first


def test_so_many_tiles_are_read_and_no_more(path):
    tiles = iter(make_tiles(agreement.NUM_TILES + 1))
    found = check_agreement(Fixed(), path, tiles)
    assert found.num_pixels == agreement.NUM_TILES * 40_000
    assert len(list(tiles)) == 1


def test_below_the_bound_an_engine_is_refused(path):
    for tiles in (make_tiles(), raise_if_read()):
        with pytest.raises(ModelError, match=r"on 99\.00% .* 99\.50%") as caught:
            check_agreement(Fixed(num_wrong=400), path, tiles)
        assert caught.value.exit_code == 4
    found = check_agreement(Fixed(), path, raise_if_read(), min_agreement=0.99)
    assert found.share == pytest.approx(0.99)


def test_a_share_just_below_the_bound_does_not_look_like_it(path):
    with pytest.raises(ModelError, match=r"on 99\.49% .* 99\.50%"):
        check_agreement(Fixed(num_wrong=201), path, make_tiles())


def test_too_few_pixels_are_not_remembered(path):
    first = check_agreement(Fixed(), path, make_tiles(side=99))
    assert (first.num_pixels, first.share) == (9_801, 1)
    second = check_agreement(Fixed(num_wrong=4), path, make_tiles())
    assert second.share == pytest.approx(0.9999)


def test_a_scene_without_data_passes(path):
    assert check_agreement(Fixed(), path, []).share == 1


def test_another_processor_or_model_is_measured_anew(path, monkeypatch):
    check_agreement(Fixed(), path, make_tiles())
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "_name_processor", lambda: "another")
        assert check_agreement(Fixed(num_wrong=4), path, make_tiles()).share < 1
    path.write_bytes(b"others")
    assert check_agreement(Fixed(num_wrong=4), path, make_tiles()).share < 1


@pytest.mark.parametrize(
    "text", ["{", '{"num_pixels": 20000}', '{"num_pixels": 20000, "num_equal": 30000}']
)
def test_a_damaged_record_does_not_count(path, text):
    check_agreement(Fixed(num_wrong=4), path, make_tiles())
    (record,) = path.parent.glob(".model.engines/*/agreement_bfloat16.json")
    record.write_text(text)
    assert check_agreement(Fixed(), path, make_tiles()).share == 1


def test_a_network_is_measured_against_itself_at_float32(converted_path, bundle):
    try:
        engine = open_engine(
            converted_path, engine="openvino", precision="bfloat16", tile_size=64
        )
    except UsageError:
        pytest.skip("this processor has no bfloat16")
    card, rng = bundle.card, np.random.default_rng(0)
    plots = rng.normal(card.band_mean, card.band_std, (4, 8, 8, 5))
    tiles = [
        SampleTile(values=tile, margin=0)
        for tile in plots.repeat(8, axis=1).repeat(8, axis=2).astype("float32")
    ]
    found = check_agreement(engine, converted_path, tiles, min_agreement=0.9)
    assert found.num_pixels == 4 * 64 * 64
    assert 0.95 < found.share < 1
