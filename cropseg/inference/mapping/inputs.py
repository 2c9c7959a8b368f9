"""What a batch reads, or others made, must not be what it removes or writes over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from cropseg.errors import ConflictError, join_problems
from cropseg.inference.mapping.journal import Journal
from cropseg.inference.mapping.options import POLYGON_FORMATS, ProductOptions
from cropseg.inference.mapping.products import name_parcels, name_product
from cropseg.inference.scenes.scene_list import SceneRequest, is_address

_MAX_SHOWN: Final = 5


def list_inputs(
    requests: Sequence[SceneRequest], others: Sequence[str | Path | None]
) -> list[Path]:
    """List the local files of scenes, and those of others that are there."""
    files = [name for request in requests for name in request.files]
    paths = [Path(name) for name in files if not is_address(name)]
    return [*paths, *(Path(path) for path in others if path and Path(path).is_file())]


def refuse_emptying(out_dir: Path, inputs: Collection[Path]) -> None:
    """Refuse to empty a folder that holds what is to be read.

    Args:
        out_dir: The folder that `--overwrite` would empty.
        inputs: Files that the batch reads.

    Raises:
        ConflictError: If some of them are there.
    """
    folder = out_dir.resolve()
    inside = [
        str(path)
        for path in inputs
        if path.exists() and path.resolve().is_relative_to(folder)
    ]
    if not inside:
        return
    more = len(inside) - _MAX_SHOWN
    shown = inside[:_MAX_SHOWN] + ([f"{more} more"] if more > 0 else [])
    raise ConflictError(
        join_problems(
            f"--overwrite empties {out_dir}, which holds files that are to be read. "
            "Move them elsewhere, or choose another --out",
            shown,
        )
    )


def refuse_writing_over(
    out_dir: Path, options: ProductOptions, inputs: Collection[Path]
) -> None:
    """Refuse to make products in place of what is read, or of files of someone else.

    Args:
        out_dir: Folder of the maps. What lies there is ours.
        options: Which products are wanted.
        inputs: Files that the batch reads.

    Raises:
        ConflictError: If a product would replace a file that an earlier call with
            this folder did not make.
    """
    outputs = []
    if options.parcels is not None:
        outputs.append(out_dir / name_parcels(options.parcels))
    if options.polygons is not None and options.polygons not in POLYGON_FORMATS:
        path = Path(options.polygons)
        outputs.append(path)
        is_inside = path.resolve().is_relative_to(out_dir.resolve())
        is_known = Journal(out_dir).find(name_product(path, out_dir), kind="product")
        if path.exists() and not is_inside and not is_known:
            raise ConflictError(
                f"{path} is there, and no call with --out {out_dir} made it. Choose "
                "another path for --polygons, or move that file away."
            )
    read = {path.resolve() for path in inputs} if outputs else set()
    for path in outputs:
        if path.resolve() in read:
            raise ConflictError(
                f"{path} is to be read, and would be written over. Copy what is read "
                "to another place, and name it there."
            )
