"""The program: its commands in the order of `--help`, signals and exit codes.

Keras is imported inside the commands that need it, after everything that can be
checked without it.
"""

from __future__ import annotations

import logging
import signal
import sys

import typer
from rich.logging import RichHandler

from cropseg.cli.advise import advise
from cropseg.cli.check import check
from cropseg.cli.compare import compare
from cropseg.cli.demo import demo
from cropseg.cli.evaluate import evaluate
from cropseg.cli.export import export
from cropseg.cli.find_lr import find_lr
from cropseg.cli.inspect import inspect
from cropseg.cli.modes import modes
from cropseg.cli.options import spread_groups
from cropseg.cli.predict import predict
from cropseg.cli.preview import preview
from cropseg.cli.schema import schema
from cropseg.cli.show import errors
from cropseg.cli.train import train
from cropseg.cli.transfer import transfer
from cropseg.errors import CropsegError

COMMANDS = (
    check,
    preview,
    train,
    find_lr,
    advise,
    transfer,
    compare,
    evaluate,
    predict,
    export,
    inspect,
    modes,
    schema,
    demo,
)
"""Every command, in the order of `--help`."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Semantic segmentation of aerial crop images, and its transfer to new areas.",
)
for command in COMMANDS:
    app.command()(spread_groups(command))


def main() -> None:
    """Run the command line and exit with the code that DESIGN.md gives."""
    verbose = "--verbose" in sys.argv
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, show_time=False)],
    )
    signal.signal(signal.SIGTERM, _end_on_signal)
    try:
        code = app(standalone_mode=False)
    except CropsegError as error:
        code = _report(str(error), error.exit_code, verbose=verbose)
    except typer.TyperException as error:
        code = _report(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except MemoryError:
        code = _report("Out of memory. Use a smaller --batch-size.", 6, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, told as one
        text = f"This is a bug of cropseg: {type(error).__name__}: {error}"
        text = f"{text}\nPlease report it with --verbose."
        code = _report(text, 70, verbose=verbose)
    sys.exit(code if isinstance(code, int) else 0)


def _end_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _report(message: str, code: int, *, verbose: bool = False) -> int:
    errors.print(f"error: {message}", markup=False)
    if verbose:
        errors.print_exception()
    return code
