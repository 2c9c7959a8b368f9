"""Mapping scenes with a saved model: one, or thousands, and again what is missing.

The folder remembers in `predict.yaml` what decides the pixels, and in its journal what
became of every scene. So a call that was ended in any way is repeated, and goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.errors import CropsegError, ModelError, UsageError
from cropseg.files import claim_out_dir, hash_file
from cropseg.inference.engines.agreement import Agreement
from cropseg.inference.engines.engine import Engine
from cropseg.inference.mapping.batch import map_scenes
from cropseg.inference.mapping.cluster import open_cluster
from cropseg.inference.mapping.cluster_client import parse_address
from cropseg.inference.mapping.inputs import (
    list_inputs,
    refuse_emptying,
    refuse_writing_over,
)
from cropseg.inference.mapping.jobs import (
    BandJob,
    BandResult,
    EngineSettings,
    SceneJob,
    name_engine,
)
from cropseg.inference.mapping.options import MapOptions, ProductOptions
from cropseg.inference.mapping.pipeline import RunJobs, run_jobs, tell_bug
from cropseg.inference.mapping.planning import Planner
from cropseg.inference.mapping.products import make_products
from cropseg.inference.mapping.record import Recorder
from cropseg.inference.mapping.tile_counter import TileCounter
from cropseg.inference.scenes.drift import (
    MAX_SCENES,
    check_batch,
    check_scene,
    is_telling,
)
from cropseg.inference.scenes.scene_list import SceneRequest, list_scenes
from cropseg.models.card import read_card
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.location import Location, locate_file

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MappedBatch:
    """What a call made, or found made."""

    maps: tuple[Path, ...]
    """The class maps, in the order of the scenes."""
    products: tuple[Path, ...]
    """What was made of them, or found made."""
    num_mapped: int
    """Scenes that were mapped now. Others were before."""
    warnings: dict[str, tuple[str, ...]]
    """What is odd about scenes, by name, if anything is."""
    agreement: Agreement | None
    """How far the engine is from float32, where it computes in less."""


def predict_scenes(
    model_path: str | Path,
    image_paths: str | Location | Sequence[str | Location],
    *,
    out_dir: str | Path,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **options: Any,
) -> list[Path]:
    """Map whole scenes of any size.

    Calling it again with the same settings maps only the scenes that are missing or
    changed, and goes on inside a large one.

    Args:
        model_path: A bundle.
        image_paths: What `list_scenes` takes: GeoTIFFs with the model's bands, in its
            order or named like them, folders, patterns, lists. One alone, or several.
        out_dir: Folder of the maps, `<scene>_classes.tif`.
        overwrite: Start again in a folder that holds other maps.
        show_progress: Called with tiles done, tiles in all and the scene, from any
            thread. While scenes are still to be opened, tiles in all is an estimate.
        **options: Fields of `MapOptions` and `ProductOptions`.

    Returns:
        The maps: class ids of the model, uint8, 255 where a scene has no data, on
        the grid of their scene.

    Raises:
        UsageError: If an option cannot be used.
        ModelError: If the only scene does not have the model's bands, or cannot be
            brought to its GSD.
        DataError: If the only scene cannot be read.
        PartialFailureError: If some of several scenes failed; the others are mapped.
        ConflictError: If the folder holds maps made with other settings.
        ResourceError: If nothing can be written.

    Example:
        >>> predict_scenes("model.keras", ["scenes"], out_dir="maps", blend=True)
        ... # doctest: +SKIP
    """
    chosen, products = read_options(options)
    if isinstance(image_paths, str | Location):
        image_paths = [image_paths]
    batch = map_batch(
        model_path,
        [str(path) for path in image_paths],
        out_dir=Path(out_dir),
        options=chosen,
        products=products,
        overwrite=overwrite,
        show_progress=show_progress,
    )
    return list(batch.maps)


def map_batch(  # noqa: PLR0913 - keyword-only, and two of them are groups of options
    model_path: str | Path,
    texts: Sequence[str],
    *,
    out_dir: Path,
    options: MapOptions,
    products: ProductOptions,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> MappedBatch:
    """Map scenes, and say more of it than `predict_scenes`, which see."""
    card = read_card(model_path)
    if options.cluster is not None:
        parse_address(options.cluster)
    planner = Planner(card, options, out_dir)
    allow_remote = options.allow_remote
    requests = list_scenes(texts, bands=card.stored_bands, allow_remote=allow_remote)
    if products.parcels is not None:
        locate_file(str(products.parcels), Path())  # before hours of work
    inputs = list_inputs(
        requests, [model_path, options.region, products.parcels, *texts]
    )
    refuse_writing_over(out_dir, products, inputs)
    if overwrite:
        refuse_emptying(out_dir, inputs)
    record = {
        "command": "predict",
        "model_sha256": hash_file(Path(model_path)),
        **options.describe_pixels(),
        "region": planner.region.fingerprint if planner.region else None,
    }
    settings = EngineSettings(
        model_path=Path(model_path),
        engine=options.engine,
        precision=options.precision,
        batch_size=options.batch_size,
        tile_size=planner.shape.size,
        margin=planner.shape.find_margin(blend=options.blend),
        tta=options.tta,
    )
    _require_one(requests, planner, is_new=overwrite)  # before the folder is emptied
    with claim_out_dir(out_dir, record, overwrite=overwrite, record="predict.yaml"):
        batch = _Batch(planner, settings, show_progress)
        batch.recorder.require_choice(options.engine, options.precision)
        num_mapped = batch.map_missing(requests)
        names = [item.name for item in requests]
        files, failures = make_products(
            out_dir,
            [planner.find_map(n) for n in names if n not in batch.recorder.failures],
            products,
            show_progress=show_progress,
        )
        batch.recorder.product_failures |= failures
        batch.recorder.raise_failures(num_scenes=len(requests))
        return MappedBatch(
            maps=tuple(planner.find_map(name).classes_path for name in names),
            products=files,
            num_mapped=num_mapped,
            warnings=batch.recorder.warnings,
            agreement=batch.agreement,
        )


def read_options(given: dict[str, Any]) -> tuple[MapOptions, ProductOptions]:
    """Sort options by what they are about.

    Raises:
        UsageError: If one is unknown or cannot be used.
    """
    groups = (MapOptions, ProductOptions)
    known = [{field.name for field in fields(group)} for group in groups]
    unknown = sorted({*given}.difference(*known))
    if unknown:
        raise UsageError(
            f"Unknown options: {', '.join(unknown)}. Expected some of "
            f"{', '.join(sorted(set.union(*known)))}."
        )
    for name in ("region", "parcels"):
        if given.get(name) is not None:
            given = given | {name: Path(given[name])}
    mapping, products = (
        {k: v for k, v in given.items() if k in names} for names in known
    )
    return MapOptions(**mapping), ProductOptions(**products)


def _require_one(
    requests: Sequence[SceneRequest], planner: Planner, *, is_new: bool
) -> None:
    """Raise what is wrong with the scenes where none can be mapped."""
    recorder = Recorder(planner.out_dir, planner.layers)
    for request in requests:
        try:
            fingerprint = planner.fingerprint(request)
            if not is_new and recorder.knows(request.name, fingerprint):
                return
            planner.plan(request)
            return
        except CropsegError as error:
            recorder.failures[request.name] = error
    recorder.raise_failures(num_scenes=len(requests))


class _Batch:
    """Maps what is missing of a batch."""

    def __init__(
        self, planner: Planner, settings: EngineSettings, show_progress: ShowProgress
    ) -> None:
        self.recorder = Recorder(planner.out_dir, planner.layers)
        self.agreement: Agreement | None = None
        self._planner, self._settings = planner, settings
        self._show_progress = show_progress
        self._compared: str | None = None
        self._are_compared_together = False

    def map_missing(self, requests: Sequence[SceneRequest]) -> int:
        """Map the scenes that are not, and return how many were mapped."""
        missing = [request for request in requests if not self._is_done(request)]
        if not missing:
            return 0
        if len(missing) > MAX_SCENES:
            self._compare_together(missing)
        num_mapped = 0
        counter = TileCounter(len(missing), self._show_progress)
        options = self._planner.options
        with contextlib.ExitStack() as stack:
            if options.cluster is None:
                engine = self._open_engine(missing)
                run: RunJobs = partial(run_jobs, engine, show_tile=counter.count)
            else:
                if options.precision == "bfloat16":
                    self._open_engine(missing)  # to compare it, once
                run = stack.enter_context(self._open_cluster(options.cluster, counter))
            results = map_scenes(
                run,
                self._plan_all(missing, counter),
                in_parts=options.cluster is not None,
            )
            stack.enter_context(contextlib.closing(results))
            for result in results:
                counter.end(result.scene)
                self.recorder.note(result)
                num_mapped += result.error is None
        return num_mapped

    def _is_done(self, request: SceneRequest) -> bool:
        try:
            fingerprint = self._planner.fingerprint(request)
        except CropsegError:
            return False  # noted when its turn comes
        return self.recorder.is_done(request.name, fingerprint)

    def _open_engine(self, requests: Sequence[SceneRequest]) -> Engine:
        """Load the model, and compare it with float32 where it computes in less."""
        settings = self._settings
        engine = replace(settings, tta=False).open()
        self.recorder.require_engine(name_engine(engine))
        if engine.precision != "float32":
            from cropseg.inference.engines.agreement import check_agreement

            self._compared = name_engine(engine)
            self.agreement = check_agreement(
                engine,
                settings.model_path,
                self._planner.iterate_samples(requests),
                min_agreement=self._planner.options.min_agreement,
            )
        return settings.finish(engine)

    @contextlib.contextmanager
    def _open_cluster(self, address: str, counter: TileCounter) -> Iterator[RunJobs]:
        def count(jobs: Iterable[BandJob]) -> Iterator[BandResult]:
            for result in run(jobs):
                counter.count_band(result.job)
                yield result

        with open_cluster(
            address,
            self._settings,
            show=_log.warning,
            note_engine=self._require_worker_engine,
        ) as run:
            yield count

    def _require_worker_engine(self, engine: str) -> None:
        """Refuse what workers compute with, before anything of it is kept."""
        self.recorder.require_engine(engine)
        if not engine.endswith(" float32") and engine != self._compared:
            raise ModelError(
                f"Workers compute with {engine}, and here "
                f"{self._compared or 'nothing'} was compared with float32. Choose "
                "--engine and --precision: keras or openvino, bfloat16 or float32."
            )

    def _plan_all(
        self, requests: Sequence[SceneRequest], counter: TileCounter
    ) -> Iterator[SceneJob]:
        """Fit scenes when their turn comes, in the thread that reads."""
        for request in requests:
            try:
                job = self._planner.plan(request)
                warnings = self._compare(job)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - the other scenes go on
                told = error if isinstance(error, CropsegError) else tell_bug(error)
                self.recorder.note_failure(request.name, told)
                counter.skip()
                continue
            self.recorder.note_warnings(request.name, warnings)
            counter.begin(job)
            yield job

    def _compare(self, job: SceneJob) -> tuple[str, ...]:
        """Say what is odd about a scene, if it was not looked at with the others."""
        if self._are_compared_together and not is_telling(job.scene):
            return ()
        return check_scene(job.scene)

    def _compare_together(self, requests: Sequence[SceneRequest]) -> None:
        """Say once what is odd about the small scenes of a large batch."""
        small = []
        for place in np.linspace(0, len(requests) - 1, MAX_SCENES).astype(int):
            with contextlib.suppress(CropsegError):  # told when its turn comes
                scene = self._planner.plan(requests[place]).scene
                if not is_telling(scene):
                    small.append(scene)
        with contextlib.suppress(CropsegError):
            self.recorder.note_warnings(f"{len(requests)} scenes", check_batch(small))
        self._are_compared_together = True
