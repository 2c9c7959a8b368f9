"""A model in the format of another runtime, checked against Keras before it counts."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import ConflictError, ModelError, ResourceError, UsageError
from cropseg.files import check_out_dir, write_whole
from cropseg.inference.engines.convert import (
    INPUT_NAME,
    OUTPUT_NAME,
    convert_to_openvino,
    save_for_openvino,
    trace_model,
)
from cropseg.inference.engines.openvino_package import import_openvino
from cropseg.inference.export.deepness import list_metadata
from cropseg.inference.export.formats import check_export_path
from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.models.bundle import Bundle, load_bundle
from cropseg.models.card import Card
from cropseg.runtime import import_tensorflow

MAX_DIFFERENCE: Final = 0.005
"""How far a probability may be from that of Keras. Untrained networks, which are the
worst case, came to 0.0007; a wrong operation gives tenths."""

MIN_EQUAL: Final = 0.999
"""Share of pixels that must have the class that Keras gives them."""

_ONNX_OPSET: Final = 15
"""What ONNX Runtime 1.10 and newer reads, which QGIS plugins may bring."""

_SAVED_MODEL: Final = {"assets", "fingerprint.pb", "saved_model.pb", "variables"}
"""What TensorFlow writes into the folder of a SavedModel."""

_CHECK_SIZE: Final = 256
_NUM_CHECKED: Final = 2
_PLOT_PX: Final = 16

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Export:
    """A written file, and how far it is from Keras."""

    path: Path
    """The file, or the folder of a SavedModel."""
    file_format: str
    """One of `EXPORT_FORMATS`."""
    tile_size: int | None
    """Side of the tiles that it takes, in pixels; None for any that is a multiple of
    the card's `tile_multiple`."""
    max_difference: float
    """Largest difference of a probability on the tiles of the check."""
    equal_share: float
    """Share of their pixels with the same class, 0 to 1."""
    num_pixels: int
    """Pixels of the check."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "file": str(self.path),
            "format": self.file_format,
            "tile_size": self.tile_size,
            "max_difference": self.max_difference,
            "equal_classes": self.equal_share,
            "num_pixels": self.num_pixels,
        }


def export_model(
    model_path: str | Path,
    out_path: str | Path,
    *,
    file_format: str,
    tile_size: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a model in the format of another runtime.

    The exported model takes raw pixel values, as the Keras model does, with the card's
    `nodata_fill` where a pixel has no data, and gives class probabilities. What it
    gives for two made-up tiles is compared with Keras before the file gets its name.

    Args:
        model_path: A bundle.
        out_path: Where to: `.onnx`, `.xml` (with a `.bin` beside it), or a new folder.
        file_format: One of `EXPORT_FORMATS`.
        tile_size: Side of the tiles, in pixels. None for tiles of any size, and for
            the default tile of `predict` in ONNX, whose readers need one.
        overwrite: Whether to replace what is there.

    Returns:
        What was written.

    Raises:
        UsageError: If the format is unknown, its package is not installed, or the
            path or tile size does not fit.
        ConflictError: If there is something at the path already, or in a folder to be
            replaced what is no SavedModel.
        ModelError: If the model cannot be exported, or the result is too far from
            Keras. Nothing is written then.
        ResourceError: If the path cannot be written.
    """
    path = Path(out_path)
    check_export_path(path, file_format)
    check_out_dir(path.parent)
    _require_free(path, file_format, overwrite=overwrite)
    bundle = load_bundle(model_path)
    shape = _choose_shape(bundle, file_format, tile_size)
    tiles = _make_tiles(bundle.card, shape.size if shape else _CHECK_SIZE)
    expected = np.asarray(bundle.model(tiles, training=False))
    function = trace_model(bundle.model, tile_size=shape.size if shape else None)
    with _WRITERS[file_format](function, path, bundle.card, shape) as run:
        found = _compare(run(tiles), expected)
        export = Export(
            path=path,
            file_format=file_format,
            tile_size=shape.size if shape else None,
            **found,
        )
        _refuse_if_far(export)
    return export


def _require_free(path: Path, file_format: str, *, overwrite: bool) -> None:
    """Refuse what stands where the files would be, unless it may be replaced."""
    files = (path, path.with_suffix(".bin")) if file_format == "openvino" else (path,)
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        raise ConflictError(
            f"There is already {' and '.join(there)}. Choose another --out, or replace "
            "what is there with --overwrite."
        )
    if file_format != "saved_model" or not there:
        return
    others = (
        {item.name for item in path.iterdir()} - _SAVED_MODEL
        if path.is_dir()
        else {path.name}
    )
    if others:
        raise ConflictError(
            f"{path} holds what is no part of a SavedModel, such as {min(others)}, and "
            "--overwrite would remove it. Choose another --out."
        )


def _choose_shape(
    bundle: Bundle, file_format: str, tile_size: int | None
) -> TileShape | None:
    """Return the shape of the tiles, or None for any."""
    own_size = bundle.model.input_shape[1]
    if own_size is not None and tile_size not in (None, own_size):
        raise UsageError(
            f"--tile-size is {tile_size}, but the network takes tiles of {own_size} "
            "pixels only. Leave the option out."
        )
    size = tile_size or own_size
    if size is None and file_format != "onnx":
        return None
    return choose_tile_shape(bundle.card.tile_multiple, size=size)


def _make_tiles(card: Card, size: int) -> Values:
    """Make plots of random brightness with noise, in the value range of the bands."""
    rng = np.random.default_rng(0)
    num_plots = -(-size // _PLOT_PX)
    shape = (_NUM_CHECKED, num_plots, num_plots, len(card.bands))
    plots = rng.normal(card.band_mean, card.band_std, shape)
    plots = plots.repeat(_PLOT_PX, axis=1).repeat(_PLOT_PX, axis=2)
    noise = rng.normal(0, np.asarray(card.band_std) / 5, plots.shape)
    return (plots + noise)[:, :size, :size].astype(np.float32)


def _compare(found: Values, expected: Values) -> dict[str, Any]:
    if found.shape != expected.shape:
        raise ModelError(
            f"The exported model gives an array of shape {found.shape} where Keras "
            f"gives {expected.shape}. This format does not suit the model; use another."
        )
    equal = found.argmax(axis=-1) == expected.argmax(axis=-1)
    return {
        # What is not a number is as far as can be.
        "max_difference": float(np.nan_to_num(np.abs(found - expected), nan=1.0).max()),
        "equal_share": float(equal.mean()),
        "num_pixels": int(equal.size),
    }


def _refuse_if_far(export: Export) -> None:
    if export.max_difference > MAX_DIFFERENCE or export.equal_share < MIN_EQUAL:
        raise ModelError(
            f"The exported model is not the one that Keras runs: probabilities differ "
            f"by up to {export.max_difference:.2g} (allowed is {MAX_DIFFERENCE}), and "
            f"{export.equal_share:.3%} of the pixels have the same class (asked for "
            f"are {MIN_EQUAL:.1%}). Nothing was written. Use another format."
        )


Run = Callable[[Values], Values]


@contextlib.contextmanager
def _write_onnx(
    function: Any, path: Path, card: Card, shape: TileShape | None
) -> Iterator[Run]:
    with warnings.catch_warnings():
        # It asks NumPy for names that NumPy 2 will take away.
        warnings.simplefilter("ignore")
        import onnx
        import onnxruntime
        import tf2onnx

        try:
            model, _ = tf2onnx.convert.from_function(
                function,
                input_signature=function.input_signature,
                opset=_ONNX_OPSET,
                inputs_as_nchw=[INPUT_NAME],
                outputs_as_nchw=[OUTPUT_NAME],
            )
        except Exception as error:  # it raises many kinds, without a base
            raise ModelError(
                f"tf2onnx cannot convert this model: {error}. Use another --format."
            ) from error
    for node in model.graph.node:
        _say_nearest_plainly(node)
    if shape is not None:
        onnx.helper.set_model_props(model, list_metadata(card, shape))
    with write_whole(path) as part:
        onnx.save(model, part)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])

        def run(tiles: Values) -> Values:
            given = {INPUT_NAME: np.ascontiguousarray(np.moveaxis(tiles, -1, 1))}
            (probabilities,) = session.run([OUTPUT_NAME], given)
            return np.moveaxis(probabilities, 1, -1)

        yield run


def _say_nearest_plainly(node: Any) -> None:
    """Replace a mode of `Resize` that ONNX took back, and that readers warn of.

    With whole factors, the pixel whose centre is nearest is the one rounded down to.
    """
    modes = {item.name: item for item in node.attribute}
    where = modes.get("coordinate_transformation_mode")
    if node.op_type == "Resize" and where and where.s == b"tf_half_pixel_for_nn":
        where.s = b"asymmetric"
        modes["nearest_mode"].s = b"floor"


@contextlib.contextmanager
def _write_openvino(
    function: Any, path: Path, _card: Card, _shape: TileShape | None
) -> Iterator[Run]:
    openvino = import_openvino()
    model = convert_to_openvino(function)
    # The weights get their name first: without the `.xml` they mean nothing.
    with write_whole(path) as part, write_whole(path.with_suffix(".bin")):
        save_for_openvino(model, part)
        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(part), "CPU", hints)
        yield lambda tiles: compiled(tiles)[OUTPUT_NAME]
        # An old one must never stand beside the new weights.
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_saved_model(
    function: Any, path: Path, _card: Card, _shape: TileShape | None
) -> Iterator[Run]:
    tensorflow = import_tensorflow()
    module = tensorflow.Module()
    module.serve = function
    signature = function.get_concrete_function()
    module.kept = signature.variables
    with _write_whole_folder(path) as part:
        try:
            tensorflow.saved_model.save(module, str(part), signatures=signature)
        except tensorflow.errors.OpError as error:  # a full disk, for one
            raise ResourceError(f"Cannot write {path}: {error}.") from error
        serve = tensorflow.saved_model.load(str(part)).signatures["serving_default"]

        def run(tiles: Values) -> Values:
            given = {INPUT_NAME: tensorflow.constant(tiles)}
            return np.asarray(serve(**given)[OUTPUT_NAME])

        yield run


@contextlib.contextmanager
def _write_whole_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder to write to, which becomes `path`: `write_whole` for one."""
    part, old = (
        path.with_name(f".{path.name}.part"),
        path.with_name(f".{path.name}.old"),
    )
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        yield part
        for file in part.rglob("*"):
            _flush(file)
        if path.exists():
            path.replace(old)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ResourceError(
            f"Cannot write {path}: {error.strerror or error}. Choose a folder that you "
            "may write to, on a disk with free space."
        ) from error
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_WRITERS: Final = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "saved_model": _write_saved_model,
}
