"""The command line: parses and prints, nothing else.

Keras is imported inside the commands that need it, after everything that can be
checked without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cropseg import tables
from cropseg.comparison.cells import (
    COMPARISON_RECORD,
    MODES,
    describe_grid,
    plan_cells,
)
from cropseg.errors import CropsegError, ModelError, UsageError
from cropseg.files import check_out_dir
from cropseg.models.card import fit_site_to_card, match_card_classes, read_card
from cropseg.sites.budget import check_budgets, parse_budgets
from cropseg.sites.check import Finding, check_site
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.settings import (
    LOSSES,
    PRECISIONS,
    TrainSettings,
    describe_training,
    read_settings_file,
)
from cropseg.transfer.plan import PLANS, get_plan
from cropseg.transfer.target import (
    choose_settings,
    describe_transfer,
    prepare_target,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Semantic segmentation of aerial crop images, and its transfer to new areas.",
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Manifest = Annotated[Path, typer.Argument(help="Manifest of a site, a YAML file.")]
Model = Annotated[Path, typer.Argument(help="A model.keras that cropseg saved.")]
From = Annotated[Path, typer.Option("--from", help="The model of the other area.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
TileSize = Annotated[int | None, typer.Option(help="Side of a tile, in pixels.")]
BatchSize = Annotated[int | None, typer.Option(help="Tiles in a batch.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs.")]
Steps = Annotated[int | None, typer.Option(help="Batches in an epoch.")]
Rate = Annotated[float | None, typer.Option(help="Highest learning rate.")]
Loss = Annotated[str | None, typer.Option(help=f"One of {', '.join(LOSSES)}.")]
Precision = Annotated[str | None, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with settings.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Tell more; show tracebacks.")]


@app.command()
def check(
    manifest: Manifest,
    model: Annotated[
        Path | None, typer.Option(help="Say also how far this model's area is.")
    ] = None,
    tile_size: TileSize = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    seed: Seed = None,
) -> None:
    """Read every pixel of a site and say what stands in the way of a training."""
    del seed, verbose
    site = open_site(manifest)
    card = read_card(model) if model else None
    size = tile_size or (card.tile_size if card else TrainSettings.tile_size)
    report = check_site(
        site,
        tile_size=size,
        model_classes=card.class_names if card else None,
        model_name=f"the model of {card.site}" if card else "",
    )
    if card:
        try:
            fit_site_to_card(site, card)
        except ModelError as error:
            finding = Finding(level="error", code="model-misfit", message=str(error))
            report = replace(report, findings=(finding, *report.findings))
    _show(report.to_json(), as_json, quiet, lambda: tables.show_check(console, report))
    if not report.is_ok:
        raise typer.Exit(3)


@app.command()
def train(
    manifest: Manifest,
    out: Out,
    architecture: Annotated[
        str | None, typer.Option(help="unet, linknet, fpn.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="classic, resnet34, ...")] = None,
    tile_size: TileSize = None,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    steps_per_epoch: Steps = None,
    learning_rate: Rate = None,
    loss: Loss = None,
    precision: Precision = None,
    config: Config = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model of a site from random weights."""
    settings = _collect(
        config,
        architecture=architecture,
        encoder=encoder,
        tile_size=tile_size,
        batch_size=batch_size,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        loss=loss,
        precision=precision,
        seed=seed,
    )
    chosen = TrainSettings(**settings)
    check_out_dir(out)
    site = open_site(manifest)
    require_trainable(site, survey_site(site, chosen.tile_size))
    check_out_dir(out, describe_training(site, chosen), overwrite=overwrite)
    from cropseg.training.train import train_site

    with _progress(as_json or quiet) as show_progress:
        run = train_site(
            site,
            out_dir=out,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    _show_run(run, as_json, quiet, verbose)


@app.command()
def transfer(
    manifest: Manifest,
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")],
    out: Out,
    from_: Annotated[
        Path | None, typer.Option("--from", help="The model of the other area.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Refit a mode of this comparison on all labels."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="A budget, as 4tiles.")] = None,
    draw: Annotated[int, typer.Option(help="Which draw of the budget.")] = 0,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    steps_per_epoch: Steps = None,
    learning_rate: Rate = None,
    loss: Loss = None,
    precision: Precision = None,
    config: Config = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Transfer a model to another site."""
    get_plan(mode)
    settings = _collect(
        config,
        batch_size=batch_size,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        loss=loss,
        precision=precision,
        seed=seed,
    )
    check_out_dir(out)
    if (from_ is None) == (like is None):
        raise UsageError("Give either --from MODEL or --like COMPARISON.")
    site = open_site(manifest)
    if like is not None:
        if settings or labels:
            raise UsageError(
                "--like takes all settings from the comparison and all labels of the "
                "site; leave the other options out."
            )
        from cropseg.comparison.compare import refit_like

        with _progress(as_json or quiet) as show_progress:
            run = refit_like(
                site,
                like,
                mode=mode,
                out_dir=out,
                overwrite=overwrite,
                show_progress=show_progress,
            )
        _show_run(run, as_json, quiet, verbose)
        return
    card = read_card(from_)  # type: ignore[arg-type]  # one of the two is given
    chosen = choose_settings(card, settings)
    target = prepare_target(site, card)
    budgets = parse_budgets([labels]) if labels else []
    check_budgets(budgets, target, card.tile_size)
    budget = str(budgets[0]) if budgets else None
    what = {"mode": mode, "labels": budget, "draw": draw}
    record = describe_transfer(target, from_, chosen, what)  # type: ignore[arg-type]
    check_out_dir(out, record, overwrite=overwrite)
    from cropseg.transfer.transfer import transfer_to_site

    with _progress(as_json or quiet) as show_progress:
        run = transfer_to_site(
            site,
            from_,  # type: ignore[arg-type]  # one of the two is given
            mode=mode,
            out_dir=out,
            labels=labels,
            draw=draw,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    _show_run(run, as_json, quiet, verbose)


@app.command()
def compare(
    manifest: Manifest,
    from_: From,
    modes: Annotated[str, typer.Option(help=f"Some of {','.join(MODES)}.")],
    labels: Annotated[str, typer.Option(help="Budgets, as 4tiles,16tiles.")],
    out: Out,
    draws: Annotated[int, typer.Option(help="Random choices of the labels.")] = 3,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    steps_per_epoch: Steps = None,
    learning_rate: Rate = None,
    loss: Loss = None,
    precision: Precision = None,
    config: Config = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare modes on equal terms at several budgets of labels."""
    del verbose
    settings = _collect(
        config,
        batch_size=batch_size,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        loss=loss,
        precision=precision,
        seed=seed,
    )
    check_out_dir(out)
    mode_names = [name.strip() for name in modes.split(",")]
    budgets = parse_budgets(labels.split(","))
    plan_cells(mode_names, budgets, draws, seed=0)
    site, card = open_site(manifest), read_card(from_)
    chosen = choose_settings(card, settings)
    target = prepare_target(site, card)
    check_budgets(budgets, target, card.tile_size)
    what = describe_grid(mode_names, budgets, draws)
    record = describe_transfer(target, from_, chosen, what, command="compare")
    check_out_dir(out, record, overwrite=overwrite, record=COMPARISON_RECORD)
    from cropseg.comparison.compare import compare_modes

    with _progress(as_json or quiet) as show_progress:
        comparison = compare_modes(
            site,
            from_,
            modes=mode_names,
            labels=labels.split(","),
            draws=draws,
            out_dir=out,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    summary = comparison.summary
    _show(
        summary,
        as_json,
        quiet,
        lambda: tables.show_comparison(console, summary, comparison.out_dir),
    )


@app.command()
def evaluate(
    model: Model,
    manifest: Manifest,
    split: Annotated[str, typer.Option(help=f"One of {', '.join(PARTS)}.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for plots.")] = None,
    tile_size: TileSize = None,
    precision: Precision = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    seed: Seed = None,
) -> None:
    """Score a model on a part of a site."""
    del verbose, seed
    if split not in PARTS:
        raise UsageError(f"--split is one of {', '.join(PARTS)}; got {split!r}.")
    if out:
        check_out_dir(out)
    site, card = open_site(manifest), read_card(model)
    match_card_classes(card, fit_site_to_card(site, card).classes)
    from cropseg.inference.evaluate import evaluate_model, write_evaluation

    evaluation = evaluate_model(
        model, site, part=split, tile_size=tile_size, precision=precision or "auto"
    )
    if out:
        write_evaluation(evaluation, out, model, part=split, overwrite=overwrite)
    scores = evaluation.scores.to_json()
    _show(scores, as_json, quiet, lambda: tables.show_scores(console, scores, split))


@app.command()
def predict(
    model: Model,
    scenes: Annotated[list[Path], typer.Argument(help="GeoTIFFs to map.")],
    out: Out,
    tile_size: TileSize = None,
    batch_size: Annotated[int, typer.Option(help="Tiles in a batch.")] = 2,
    precision: Precision = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    seed: Seed = None,
) -> None:
    """Map whole scenes with a model."""
    del verbose, seed
    check_out_dir(out)
    read_card(model)
    from cropseg.inference.predict import predict_scenes

    with _progress(as_json or quiet) as show_progress:
        maps = predict_scenes(
            model,
            scenes,
            out_dir=out,
            tile_size=tile_size,
            batch_size=batch_size,
            precision=precision or "auto",
            overwrite=overwrite,
            show_progress=show_progress,
        )
    document = {"maps": [str(path) for path in maps]}
    _show(document, as_json, quiet, lambda: console.print(*document["maps"], sep="\n"))


@app.command()
def inspect(
    model: Model,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    seed: Seed = None,
) -> None:
    """Show what a model file says about itself."""
    del verbose, seed
    card = read_card(model)
    document = card.model_dump(mode="json")
    _show(document, as_json, quiet, lambda: tables.show_card(console, card))


@app.command()
def modes(
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    seed: Seed = None,
) -> None:
    """List the transfer modes."""
    del verbose, seed
    document = tables.list_modes()
    _show(document, as_json, quiet, lambda: tables.show_modes(console, document))


@app.command()
def demo(
    out: Out = Path("cropseg_demo"),
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Do the whole way on two made-up rural areas, in minutes."""
    del verbose
    check_out_dir(out)
    from cropseg.demo.run import run_demo

    with _progress(as_json or quiet) as show_progress:
        result = run_demo(
            out, seed=seed or 0, overwrite=overwrite, show_progress=show_progress
        )
    document = result.to_json()
    _show(document, as_json, quiet, lambda: tables.show_demo(console, result))


def _collect(config: Path | None, **given: Any) -> dict[str, Any]:
    """Return the settings of `--config`, with those of the command line over them."""
    settings = read_settings_file(config) if config else {}
    return settings | {name: v for name, v in given.items() if v is not None}


def _show(document: Any, as_json: bool, quiet: bool, show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))  # noqa: T201
    elif not quiet:
        show()


def _show_run(run: Any, as_json: bool, quiet: bool, verbose: bool) -> None:
    document = {"model": str(run.model_path), **run.metrics}

    def show() -> None:
        tables.show_run(console, run, every_variable=verbose)

    _show(document, as_json, quiet, show)


@contextlib.contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with the time left on stderr, while it is a terminal."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # Where it is no terminal, rich would leave an empty line behind.
    hidden = hidden or not errors.is_terminal
    with Progress(*columns, console=errors, disable=hidden, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield show_progress


def _end_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


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
        code = _report(str(error), error.exit_code, verbose)
    except typer.TyperException as error:
        code = _report(error.format_message(), 2, verbose=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except MemoryError:
        code = _report("Out of memory. Use a smaller --batch-size.", 6, verbose)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, told as one
        text = f"This is a bug of cropseg: {type(error).__name__}: {error}"
        code = _report(f"{text}\nPlease report it with --verbose.", 70, verbose)
    sys.exit(code if isinstance(code, int) else 0)


def _report(message: str, code: int, verbose: bool) -> int:
    errors.print(f"error: {message}", markup=False)
    if verbose:
        errors.print_exception()
    return code
