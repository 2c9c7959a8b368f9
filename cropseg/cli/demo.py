"""`cropseg demo`: the whole way on made-up areas."""

from __future__ import annotations

from pathlib import Path

from cropseg import tables
from cropseg.cli.options import Out, Overwrite, Seed
from cropseg.cli.show import Output, console
from cropseg.files import check_out_dir


def demo(
    *,
    out: Out = Path("cropseg_demo"),
    seed: Seed = None,
    overwrite: Overwrite = False,
    output: Output,
) -> None:
    """Do the whole way on two made-up rural areas, in minutes."""
    check_out_dir(out)
    from cropseg.demo.run import run_demo

    with output.open_progress() as show_progress:
        result = run_demo(
            out, seed=seed or 0, overwrite=overwrite, show_progress=show_progress
        )
    document = result.to_json()
    output.show(document, lambda: tables.show_demo(console, result))
