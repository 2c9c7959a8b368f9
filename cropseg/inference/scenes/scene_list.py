"""Which scenes a batch has: from files, folders, patterns and lists.

No image is opened here, so that thousands of scenes cost next to nothing, and one that
cannot be mapped does not stop the others: `fit_scene` says what is wrong with it. The
exception are files that are named as maps of cropseg are, in a folder or a pattern.
"""

from __future__ import annotations

import csv
import glob
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from cropseg.errors import (
    CropsegError,
    DataError,
    DataFileNotFoundError,
    UnsafeFileError,
    UsageError,
    join_problems,
)
from cropseg.sites.location import locate_file
from cropseg.sites.raster import open_raster

IMAGE_ENDINGS: Final = (".tif", ".tiff")
"""How the files end that are scenes of a folder."""

LIST_ENDINGS: Final = (".csv", ".parquet", ".json", ".geojson")
"""How the files end that list scenes: tables, and STAC items."""

MAP_ENDINGS: Final = ("_classes.tif", "_confidence.tif", "_probabilities.tif")
"""How the files end that are maps, if they say so inside."""

_MAP_TAG: Final = "classes"  # every layer has it
_MAX_LIST_BYTES: Final = 256 * 2**20
_MAX_SHOWN: Final = 10
_SEPARATORS: Final = (",", ";", "\t")
_PARQUET_START: Final = b"PAR1"


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """A scene that is to be mapped, before it is looked at. It can be pickled."""

    name: str
    """What its files are called, unique in a batch."""
    files: tuple[str, ...]
    """Paths or addresses. The bands of several files follow each other."""
    bands: tuple[str, ...] | None = None
    """Names of the bands of all files, in that order; None where the files say."""
    problem: str | None = None
    """Why it cannot be mapped, where a list shows that; `fit_scene` raises it."""


def list_scenes(
    texts: Sequence[str | Path],
    *,
    bands: Sequence[str] = (),
    allow_remote: Collection[str] = (),
) -> tuple[SceneRequest, ...]:
    """List the scenes that some texts name.

    Args:
        texts: Each is a GeoTIFF; a folder, whose GeoTIFFs are taken in the order of
            their names; a pattern such as `scenes/*.tif`; a CSV or Parquet file with
            the columns `image` and, if wanted, `name`; a JSON file with a STAC item
            or item collection; or an address. Maps that cropseg wrote are left out of
            folders and patterns. What a list names is relative to the list.
        bands: The bands that the model needs, to choose the assets of STAC items by.
        allow_remote: Hosts that images may be read from.

    Returns:
        The scenes, in that order, each once. A file need not be there.

    Raises:
        UsageError: If no scene is named, or two have one name.
        DataFileNotFoundError: If a folder or a pattern has no GeoTIFF.
        DataError: If a list cannot be read.
        UnsafeFileError: If an address is not of an allowed host.
    """
    requests: dict[Any, SceneRequest] = {}
    for text in map(str, texts):
        for request in _expand(text, bands):
            # A file may be given twice, by its name and in its folder.
            files = tuple(_identify(file) for file in request.files)
            requests.setdefault((request.name, files, request.problem), request)
    found = tuple(requests.values())
    if not found:
        raise UsageError(
            "No scene to map was given. Name GeoTIFFs, a folder, a pattern in quotes, "
            f"or a list ({', '.join(LIST_ENDINGS)})."
        )
    _refuse_hosts(found, allow_remote)
    _refuse_equal_names(found)
    return found


def _expand(text: str, bands: Sequence[str]) -> Iterator[SceneRequest]:
    if is_address(text):
        # The host is looked at when all addresses are known.
        if Path(urlsplit(text).path).suffix.lower() in LIST_ENDINGS:
            raise UnsafeFileError(
                f"{text} is a list that is not on this machine. Download it and name "
                "its path; what it names may be remote, with --allow-remote."
            )
        yield _take_file(text)
        return
    path = Path(text)
    if path.is_dir():
        yield from map(_take_file, _list_folder(text))
    elif not path.exists() and glob.has_magic(text):
        yield from map(_take_file, _list_pattern(text))
    elif path.suffix.lower() in LIST_ENDINGS:
        yield from _read_list(path, bands)
    else:
        yield _take_file(text)


def is_address(text: str) -> bool:
    """Whether a text is an address, and not a path."""
    scheme, colon, rest = text.partition(":")
    return bool(colon and scheme.isalnum() and rest.startswith("/"))


def _take_file(text: str) -> SceneRequest:
    return SceneRequest(name=_name(text), files=(text,))


def _name(text: str) -> str:
    if not is_address(text):
        return Path(text).stem or "scene"
    name = Path(unquote(urlsplit(text).path)).stem
    return name if name and is_file_name(name) else "scene"


def _list_folder(text: str) -> list[str]:
    with os.scandir(text) as items:
        # What begins with a dot is no scene: macOS writes `._a.tif` beside `a.tif`.
        names = sorted(
            item.name
            for item in items
            if item.name.lower().endswith(IMAGE_ENDINGS)
            and not item.name.startswith(".")
            and not item.is_dir()
        )
    found = [os.path.join(text, name) for name in names]  # noqa: PTH118 - as given
    return _leave_out_maps(found, f"the folder {text}")


def _list_pattern(text: str) -> list[str]:
    found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - kept as given
    files = [name for name in found if name.lower().endswith(IMAGE_ENDINGS)]
    return _leave_out_maps(files, f"the pattern {text}")


def _leave_out_maps(found: Sequence[str], place: str) -> list[str]:
    scenes = [name for name in found if not _is_map(name)]
    if not scenes:
        maps = f" but {len(found)} maps that cropseg wrote" if found else ""
        raise DataFileNotFoundError(
            f"No scene in {place}{maps} (looked from {Path.cwd()} for files that end "
            f"in {' or '.join(IMAGE_ENDINGS)}). Correct the path."
        )
    return scenes


def _is_map(name: str) -> bool:
    if not name.lower().endswith(MAP_ENDINGS):
        return False
    try:
        with open_raster(Path(name)) as reader:
            return _MAP_TAG in reader.read_tags()
    except CropsegError:
        return False  # said when it is to be mapped


def _read_list(path: Path, bands: Sequence[str]) -> Iterator[SceneRequest]:
    content = _read_content(path)
    if path.suffix.lower() in {".json", ".geojson"}:
        from cropseg.inference.scenes.stac import read_items

        yield from read_items(path, content, bands)
        return
    is_csv = path.suffix.lower() == ".csv"
    rows = _read_csv(path, content) if is_csv else _read_parquet(path, content)
    yield from _take_rows(path, rows)


def _read_content(path: Path) -> bytes:
    locate_file(str(path), Path())  # no folder, no device, and it is there
    try:
        size = path.stat().st_size
        if size > _MAX_LIST_BYTES:
            raise DataError(
                f"{path} has {size >> 20} MiB; a list of scenes has at most "
                f"{_MAX_LIST_BYTES >> 20}. Split it, or name its images."
            )
        return path.read_bytes()
    except CropsegError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _read_csv(path: Path, content: bytes) -> Iterable[Mapping[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
        heading = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=heading.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        rows = list(reader)
        _require_column(path, reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as CSV in UTF-8: {error}. Write it again."
        ) from error
    return rows


def _read_parquet(path: Path, content: bytes) -> Iterable[Mapping[str, Any]]:
    from pyarrow import (  # type: ignore[import-untyped]
        ArrowException,
        BufferReader,
        parquet,
    )

    if not content.startswith(_PARQUET_START):
        raise DataError(f"{path} is no Parquet file. Write it again.")
    try:
        file = parquet.ParquetFile(BufferReader(content))
        names = file.schema_arrow.names
        _require_column(path, names)
        wanted = [name for name in ("image", "name") if name in names]
        rows: list[Mapping[str, Any]] = file.read(columns=wanted).to_pylist()
    except DataError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {error}. Write it again."
        ) from error
    return rows


def _require_column(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    if "image" not in names:
        raise DataError(
            f"{path} has the columns {', '.join(map(str, names)) or 'none'}; expected "
            "`image`, the path of a GeoTIFF, and, if wanted, `name`. Rename them."
        )


def _take_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[SceneRequest]:
    requests, problems = [], []
    for number, row in enumerate(rows, start=1):
        image, name = (_clean(row.get(key)) for key in ("image", "name"))
        if not image:
            if any(map(_clean, row.values())):
                problems.append(f"Row {number} below the heading has no `image`.")
            continue
        name = name or _name(image)
        if not is_file_name(name):
            problems.append(f"Row {number}: {name!r} cannot begin the name of a file.")
        requests.append(SceneRequest(name=name, files=(join_path(path, image),)))
    if not requests and not problems:
        problems.append("It has no rows.")
    if problems:
        more = len(problems) - _MAX_SHOWN
        shown = problems[:_MAX_SHOWN] + ([f"and {more} more."] if more > 0 else [])
        raise DataError(join_problems(f"{path} cannot be used as a list", shown))
    return requests


def _clean(value: Any) -> str:
    # A column of a table that holds nothing may be one of numbers.
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else str(value).strip()


def is_file_name(name: str) -> bool:
    """Whether the names of files may begin with a text."""
    return name.isprintable() and not name.startswith(".") and not {*name} & {*"/\\"}


def join_path(list_path: Path, entry: str) -> str:
    """Return an entry of a list as a path that does not depend on the list's place."""
    return entry if is_address(entry) else str(list_path.parent / entry)


def _identify(file: str) -> str:
    return file if is_address(file) else os.path.abspath(file)  # noqa: PTH100 - no disk


def _refuse_hosts(
    requests: Iterable[SceneRequest], allow_remote: Collection[str]
) -> None:
    """Refuse addresses of hosts that are not allowed, once for each host."""
    refused: dict[str, UnsafeFileError] = {}
    counts: Counter[str] = Counter()
    for request in requests:
        for file in filter(is_address, request.files):
            try:
                locate_file(file, Path(), allow_remote=allow_remote)
            except UnsafeFileError as error:
                host = file[: file.find("/", file.find("//") + 2)]
                refused.setdefault(host, error)
                counts[host] += 1
    if len(refused) == 1 and counts.total() == 1:
        raise next(iter(refused.values()))
    if refused:
        problems = [f"{counts[host]} file(s): {refused[host]}" for host in refused]
        raise UnsafeFileError(
            join_problems("Some scenes may not be read", problems[:_MAX_SHOWN])
        )


def _refuse_equal_names(requests: Sequence[SceneRequest]) -> None:
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for request in requests:
        owners[request.name].append(", ".join(request.files))
    problems = [
        f"{name}: {'; '.join(files)}" for name, files in owners.items() if files[1:]
    ]
    if problems:
        title = (
            "Several scenes are named alike, so their maps would overwrite each other"
        )
        remedy = "Name them in a list with the columns `image` and `name`."
        raise UsageError(f"{join_problems(title, problems)}\n{remedy}")
