"""The forward pass in OpenVINO: what Keras gives, in order, the same bits each time."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from cropseg.errors import ModelError, UsageError
from cropseg.inference.engines import openvino_engine
from cropseg.inference.engines.openvino_engine import OpenVinoEngine

pytest.importorskip("openvino")

LOADED_AT_START = """
import json, sys
from pathlib import Path
import numpy as np
from cropseg.inference.engines.choose_engine import open_engine
engine = open_engine(Path(sys.argv[1]), engine="openvino", tile_size=32)
tile = np.ones((32, 32, len(engine.card.bands)), "float32")
assert len(list(engine.stream([(0, tile)]))) == 1
packages = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([engine.name, sorted(packages)]))
"""


@pytest.fixture(scope="module")
def engine(converted_path):
    return OpenVinoEngine(converted_path, precision="float32", tile_size=32)


@pytest.fixture(scope="module")
def tiles(bundle):
    """Nine tiles of two shapes, neither square, in turns."""
    rng = np.random.default_rng(0)
    card = bundle.card
    shapes = [(16, 32, 5) if index % 3 else (48, 16, 5) for index in range(9)]
    return [
        rng.normal(card.band_mean, card.band_std, shape).astype("float32")
        for shape in shapes
    ]


@pytest.fixture(scope="module")
def alone(engine, tiles):
    """What each tile becomes with no other under way."""
    return [next(engine.stream([(0, tile)]))[1] for tile in tiles]


def test_a_tile_becomes_what_keras_makes_of_it(bundle, tiles, alone):
    for tile, found in zip(tiles, alone, strict=True):
        expected = np.asarray(bundle.model(tile[None], training=False))[0]
        assert (found.shape, found.dtype) == ((*tile.shape[:2], 4), np.float32)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def test_results_are_in_order_and_the_same_bits_whatever_is_under_way(
    engine, converted_path, tiles, alone
):
    again = OpenVinoEngine(converted_path)
    for runner in (engine, engine, again):
        found = list(runner.stream(enumerate(tiles)))
        assert [key for key, _ in found] == list(range(len(tiles)))
        for (_, ours), expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_a_tile_that_is_no_block_of_memory_is_read_as_it_is(engine, tiles, alone):
    view = np.repeat(tiles[0], 2, axis=1)[:, ::2]
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(next(engine.stream([(0, view)]))[1], alone[0])


def test_without_a_margin_it_gives_the_middle_of_what_it_gives(engine, tiles, alone):
    margins = (1, 5, 7)
    for tile, whole in zip(tiles[:2], alone[:2], strict=True):
        for margin in margins:
            ((_, found),) = engine.stream([(0, tile)], margin=margin)
            inside = whole[margin:-margin, margin:-margin]
            assert found.shape == inside.shape
            np.testing.assert_allclose(found, inside, atol=1e-5)
    assert {(tiles[0].shape, margin) for margin in margins} <= engine._compiled.keys()


def test_the_margin_that_is_prepared_for_is_not_prepared_for_again(converted_path):
    engine = OpenVinoEngine(converted_path, tile_size=32, margin=8)
    tile = np.zeros((32, 32, 5), "float32")
    ((_, found),) = engine.stream([(0, tile)], margin=8)
    assert found.shape == (16, 16, 4)
    assert list(engine._compiled) == [((32, 32, 5), 8)]


def test_several_tiles_are_under_way_and_not_all(engine, tiles):
    taken = []

    def take():
        for tile in tiles * 20:
            taken.append(tile)
            yield len(taken), tile

    results = engine.stream(take())
    next(results)
    assert 2 < len(taken) < 100
    results.close()


def test_a_stream_that_is_left_early_spoils_no_other(engine, tiles, alone):
    list(engine.stream(enumerate(tiles)))
    num_idle = [len(compiled.idle) for compiled in engine._compiled.values()]
    for _ in range(3):
        left = engine.stream(enumerate(tiles))
        next(left)
        left.close()
        after = [len(compiled.idle) for compiled in engine._compiled.values()]
        assert sorted(after) == sorted(num_idle)
        found = [values for _, values in engine.stream(enumerate(tiles))]
        for ours, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_an_error_of_the_reader_passes_through(engine, tiles):
    def take():
        yield 0, tiles[1]
        raise OSError(5, "gone")

    with pytest.raises(OSError, match="gone"):
        list(engine.stream(take()))


def test_float32_is_asked_for_also_where_bfloat16_is_the_default(engine):
    network = engine._compile((32, 32, 5), 0).network
    precision = network.get_property("INFERENCE_PRECISION_HINT")
    assert precision.to_string() == "f32"


def test_threads_are_not_tied_to_cores_that_other_processes_use(engine):
    network = engine._compile((32, 32, 5), 0).network
    assert not network.get_property("ENABLE_CPU_PINNING")


def test_bfloat16_spares_what_stands_in_front_of_the_first_convolution(
    converted_path, tiles, alone
):
    try:
        half = OpenVinoEngine(converted_path, precision="bfloat16")
    except UsageError:
        pytest.skip("this processor has no bfloat16")
    found = next(half.stream([(0, tiles[0])]))[1]
    assert 0 < np.abs(found - alone[0]).max() < 0.1
    graph = half._compile((48, 16, 5), 0).network.get_runtime_model()
    steps = []
    for node in graph.get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = (
            str(getattr(info[name], "value", info[name]))
            for name in ("layerType", "runtimePrecision")
        )
        steps.append((kind, precision))
        if kind == "Convolution":
            break
    assert steps[-1] == ("Convolution", "bf16")
    assert {p for kind, p in steps[:-1] if kind != "Const"} == {"f32"}


def test_bfloat16_is_refused_where_the_processor_has_none(converted_path, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_CAPABILITY", "NONE")
    with pytest.raises(UsageError, match="--precision float32"):
        OpenVinoEngine(converted_path, precision="bfloat16")


def test_few_shapes_stay_compiled(converted_path, tiles, alone, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_MAX_SHAPES", 1)
    engine = OpenVinoEngine(converted_path)
    found = [values for _, values in engine.stream(enumerate(tiles))]
    assert list(engine._compiled) == [(tiles[-1].shape, 0)]
    for ours, expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_tiles_that_do_not_fit_the_model_are_an_error_of_the_model(engine):
    with pytest.raises(ModelError, match="32 x 16 pixels and 3 bands"):
        list(engine.stream([(0, np.zeros((32, 16, 3), "float32"))]))


def test_a_kept_engine_starts_without_keras_and_tells_nobody(converted_path):
    ended = subprocess.run(
        [sys.executable, "-c", LOADED_AT_START, converted_path],
        capture_output=True,
        text=True,
        check=True,
    )
    name, packages = json.loads(ended.stdout)
    assert name == "openvino"
    assert "openvino" in packages
    assert not {"keras", "tensorflow", "jax", "openvino_telemetry"} & set(packages)
