"""From a Keras model to a graph that other runtimes take.

`python -m cropseg.inference.engines.convert MODEL FOLDER` writes `FOLDER/network.xml`
and `network.bin` for OpenVINO. A process of its own does it, so that one that maps
never holds TensorFlow in memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from cropseg.errors import CropsegError, ModelError, ResourceError, UsageError
from cropseg.inference.engines.openvino_package import import_openvino
from cropseg.inference.engines.upsampling import fold_doublings, replace_call
from cropseg.models.bundle import load_bundle
from cropseg.runtime import import_tensorflow, keras

NETWORK_NAME: Final = "network"
"""Name, without its ending, of what is written for the engine."""

INPUT_NAME: Final = "pixels"
"""Name of the input: raw pixel values, nodata filled."""

OUTPUT_NAME: Final = "probabilities"
"""Name of the output: class probabilities."""

_PRECISE: Final = "precise_0"
"""What OpenVINO calls a node that bfloat16 may not touch (DisableFP16Compression)."""


def trace_model(
    model: Any, *, tile_size: int | None = None, folds_doublings: bool = False
) -> Any:
    """Trace the forward pass of a model as a function of TensorFlow.

    Args:
        model: The model of a bundle.
        tile_size: Side of the tiles that it takes, or None for any.
        folds_doublings: Whether to compute less, where a convolution follows repeated
            pixels; see `upsampling.py`.

    Returns:
        A function of one batch of tiles, (tiles, height, width, bands), that returns
        a dictionary with the probabilities, traced for one signature.

    Raises:
        UsageError: If Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"Keras runs on {keras.backend.backend()}, and models are converted from "
            "TensorFlow. Call it again with KERAS_BACKEND=tensorflow."
        )
    tensorflow = import_tensorflow()
    _, height, width, num_bands = model.input_shape
    shape = (None, tile_size or height, tile_size or width, num_bands)
    pixels = tensorflow.TensorSpec(shape, tensorflow.float32, name=INPUT_NAME)
    function = tensorflow.function(
        lambda pixels: {OUTPUT_NAME: model(pixels, training=False)},
        input_signature=[pixels],
    )
    fold = fold_doublings(model) if folds_doublings else contextlib.nullcontext()
    with _make_convertible(model, tensorflow), fold:
        function.get_concrete_function()
    return function


@contextlib.contextmanager
def _make_convertible(model: Any, tensorflow: Any) -> Iterator[None]:
    """Let a model be traced with operations that other runtimes know.

    Keras repeats rows and columns one after the other, a chain of reshapes on which
    OpenVINO spent 7 % of its time (encoder classic), and where it interpolates it
    cannot be traced for any size. Statistics of bands are tensors outside the graph,
    which would be further inputs in ONNX.
    """
    with contextlib.ExitStack() as stack:
        for layer in model.layers:
            if isinstance(layer, keras.layers.UpSampling2D):
                resize = _build_resize(layer, tensorflow)
                stack.enter_context(replace_call(layer, resize))
            elif isinstance(layer, keras.layers.Normalization):
                stack.enter_context(_hold_statistics(layer))
        yield


@contextlib.contextmanager
def _hold_statistics(layer: Any) -> Iterator[None]:
    before = {name: getattr(layer, name) for name in ("mean", "variance")}
    try:
        for name, value in before.items():
            setattr(layer, name, np.asarray(value))
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def _build_resize(layer: Any, tensorflow: Any) -> Any:
    def resize(values: Any) -> Any:
        shape = tensorflow.shape(values)
        size = (shape[1] * layer.size[0], shape[2] * layer.size[1])
        return tensorflow.image.resize(values, size, method=layer.interpolation)

    return resize


def convert_to_openvino(function: Any) -> Any:
    """Convert a traced model to one of OpenVINO, in memory.

    All in front of the first convolutions is marked to stay float32 under bfloat16,
    which would round a reflectance of 3,000 to a multiple of 16.

    Args:
        function: What `trace_model` returned.

    Returns:
        An `openvino.Model`; input and output are named as here.

    Raises:
        ModelError: If OpenVINO has no counterpart of an operation.
    """
    openvino = import_openvino()
    try:
        model = openvino.convert_model(function.get_concrete_function())
    except Exception as error:  # OpenVINO raises many kinds, without a base
        raise ModelError(
            f"OpenVINO cannot convert this model: {error}. Use --engine keras."
        ) from error
    for node in _list_nodes_before_convolutions(model):
        node.get_rt_info()[_PRECISE] = ""
    return model


def _list_nodes_before_convolutions(model: Any) -> list[Any]:
    found: dict[str, Any] = {}
    waiting = [model.inputs[0].get_node()]
    while waiting:
        targets = [
            target.get_node()
            for output in waiting.pop().outputs()
            for target in output.get_target_inputs()
        ]
        for node in targets:
            name, kind = node.get_friendly_name(), node.get_type_name()
            if name not in found and not kind.endswith(("Convolution", "ShapeOf")):
                found[name] = node
                waiting.append(node)
    return list(found.values())


def put_channels_first(model: Any) -> Any:
    """Return a converted model that takes band after band and gives class after class.

    So bands are read as they come from a file, the softmax runs along pixels, a tenth
    of the time that it takes along a few classes, and the best class is found without
    another copy.

    Args:
        model: An `openvino.Model` of (tiles, height, width, bands), whose output is
            (tiles, height, width, classes).

    Returns:
        One of (tiles, bands, height, width), whose output is (tiles, classes, height,
        width).
    """
    operations = import_openvino().opset13
    first, last = np.array([0, 3, 1, 2]), np.array([0, 2, 3, 1])
    (pixels,), (result,) = model.get_parameters(), model.get_results()
    readers = pixels.output(0).get_target_inputs()
    tiles, height, width, bands = pixels.get_partial_shape()
    shape = [tiles, bands, height, width]
    planes = operations.parameter(shape, pixels.get_element_type(), INPUT_NAME)
    planes.output(0).get_tensor().set_names({INPUT_NAME})
    turned_back = operations.transpose(planes, last)
    turned_back.get_rt_info()[_PRECISE] = ""
    for reader in readers:
        reader.replace_source_output(turned_back.output(0))
    output = result.input_value(0)
    node = output.get_node()
    if node.get_type_name() == "Softmax" and node.get_attributes()["axis"] in {-1, 3}:
        logits = operations.transpose(node.input_value(0), first)
        turned = operations.softmax(logits, axis=1)
    else:
        turned = operations.transpose(output, first)
    turned.output(0).get_tensor().set_names({OUTPUT_NAME})
    return import_openvino().Model([turned], [planes])


def save_for_openvino(model: Any, xml_path: Path) -> None:
    """Write a converted model, float32, as `.xml` and `.bin` of one name.

    Raises:
        ResourceError: If they cannot be written.
    """
    try:
        import_openvino().save_model(model, xml_path, compress_to_fp16=False)
    except RuntimeError as error:
        raise ResourceError(f"Cannot write {xml_path}: {error}") from error


def main(model_path: str, folder: str) -> int:
    """Convert the model of a bundle for OpenVINO; return the exit code."""
    try:
        model = load_bundle(model_path).model
        function = trace_model(model, folds_doublings=True)
        converted = put_channels_first(convert_to_openvino(function))
        save_for_openvino(converted, Path(folder) / f"{NETWORK_NAME}.xml")
    except CropsegError as error:
        sys.stderr.write(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
