"""Where a file that somebody names lies, and whether it may be opened.

GDAL takes far more than paths: addresses, connection strings, documents, and small
XML files that stand for any other file of the machine (HAZARDS 6). Only two things
pass here: a regular local file that is no such document, and a file of a web host
that the user named.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from cropseg.errors import (
    DataError,
    DataFileNotFoundError,
    ResourceError,
    UnsafeFileError,
)
from cropseg.files import hash_file

_TIMEOUT_S = 30
_MOST_HASHED_BYTES = 64 * 2**20
_SNIFF_BYTES = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)  # pathlib halves the //
_PREFIX = re.compile(r"[a-z]\w+:", re.IGNORECASE)
_URL_CHARACTERS = re.compile(r"[\w.~:/?\[\]!$&'()*+,;=%-]+", re.ASCII)
_MACHINE_DIRS = tuple(map(Path, ("/dev", "/proc", "/sys")))
_MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - nothing is written there: it may be read
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MARGIN = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
_VIRTUAL_FILES = (
    b"<VRTDataset",
    b"<OGRVRTDataSource",
    b"<GDAL_WM",
    b"<GDALTileIndexDataset",
)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a web host that the user allowed. Get one from `locate_file`."""

    url: str
    """Its address, `https://...` or `http://...`."""

    @property
    def name(self) -> str:
        """The last part of its address, without the query."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return self.url


Location = Path | RemoteFile


def locate_file(
    text: str, folder: Path, *, allow_remote: Collection[str] = ()
) -> Location:
    """Find the file that a text names, and refuse what only looks like a path.

    Nothing is fetched. A name with a colon in it is a file if there is such a file.

    Args:
        text: A path, absolute or relative to `folder`, or an address.
        folder: Where a relative path starts.
        allow_remote: Hosts whose files may be read, `host` for the usual port of
            http and https, or `host:port`. There are no wildcards.

    Returns:
        The path of a regular local file, or a remote file.

    Raises:
        UnsafeFileError: If it is an address of a host that is not allowed, something
            that GDAL would connect to, a document instead of a path, a device, pipe
            or socket, or a file that stands for other files (VRT) or holds XML.
        DataFileNotFoundError: If there is no such file.
        ResourceError: If the file may not be read.
    """
    if text.lstrip().startswith(("<", "{")):
        raise UnsafeFileError(
            f"Expected the path of a file, got a document: {text.strip()[:40]!r}... "
            "Name a file."
        )
    if _ADDRESS.match(text):
        return _locate_remote(text, allow_remote)
    path = folder / text
    if str(path).startswith("/vsi"):
        raise UnsafeFileError(
            f"{path} is a virtual path of GDAL and could lead anywhere. Name a local "
            "file: unpack or download it first."
        )
    _require_regular(path, text, folder)
    _refuse_virtual(path)
    return path


def fingerprint_file(location: Location) -> list[Any]:
    """Return what changes when a file changes: its size and time, or its web tag.

    Args:
        location: A local or remote file.

    Returns:
        Size in bytes, and the time of the last change in ns; of a remote file its
        size and `ETag`, else `Last-Modified`, else "".

    Raises:
        DataFileNotFoundError: If it is not there any more.
        DataError: If its host does not answer as expected.
        UnsafeFileError: If its host sends the reader elsewhere.
    """
    if isinstance(location, RemoteFile):
        return _probe(location)
    try:
        status = location.stat()
    except OSError as error:
        raise DataFileNotFoundError(
            f"{location} was there and is no more: {error.strerror}. Restore it."
        ) from error
    return [status.st_size, status.st_mtime_ns]


def fingerprint_content(location: Location) -> list[Any]:
    """Return what changes when the content of a file changes, and not with its copies.

    Reading an orthomosaic for its hash alone would take minutes, so local files over
    64 MiB and remote ones go by `fingerprint_file`.

    Args:
        location: A local or remote file.

    Returns:
        Size in bytes, and the SHA-256 of the content; else as `fingerprint_file`.

    Raises:
        DataFileNotFoundError: If it is not there any more.
        DataError: If its host does not answer as expected.
        UnsafeFileError: If its host sends the reader elsewhere.
    """
    found = fingerprint_file(location)
    if isinstance(location, RemoteFile) or found[0] > _MOST_HASHED_BYTES:
        return found
    size, changed_at = found
    return [size, _hash_once(location, size, changed_at)]


@functools.cache
def _hash_once(path: Path, _size: int, _changed_at: int) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error


def _locate_remote(text: str, allow_remote: Collection[str]) -> RemoteFile:
    try:
        address = urlsplit(text)
        host = _name_host(address)
    except ValueError as error:
        raise UnsafeFileError(f"{text} is no address: {error}. Correct it.") from error
    # What is not plain could mean another host to GDAL than it does here.
    plain = text.startswith(f"{address.scheme}://") and _URL_CHARACTERS.fullmatch(text)
    if address.scheme not in _DEFAULT_PORTS or not host or not plain:
        raise UnsafeFileError(
            f"{text} is not on this machine, and no plain http(s) address without a "
            "user name either. Download the file and name its path."
        )
    if host not in {name.lower() for name in allow_remote}:
        raise UnsafeFileError(
            f"{text} lies on {host}, which is not allowed. Download the file and name "
            f"its path, or allow the host with --allow-remote {host}."
        )
    return RemoteFile(url=text)


def _name_host(address: SplitResult) -> str:
    """Return `host`, or `host:port` where the port is not the usual one."""
    host = address.hostname or ""
    port = address.port
    usual = port in {None, _DEFAULT_PORTS.get(address.scheme)}
    host = f"[{host}]" if ":" in host else host
    return host if usual else f"{host}:{port}"


def _require_regular(path: Path, text: str, folder: Path) -> None:
    try:
        mode = path.stat().st_mode
        real_path = path.resolve()
    except PermissionError as error:
        raise ResourceError(f"{path} may not be read: {error.strerror}.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if _PREFIX.match(text):
            raise UnsafeFileError(
                f"{text!r} is no file of {folder.absolute()}, and GDAL would take it "
                "for something else. Name a local file: convert or download it first."
            ) from error
        raise DataFileNotFoundError(
            f"No file at {path} (looked in {path.parent.absolute()}). Paths in a "
            "manifest are relative to the manifest."
        ) from error
    if stat.S_ISDIR(mode):
        raise DataFileNotFoundError(
            f"No file at {path}, but a folder. Name a file in it."
        )
    machine = any(real_path.is_relative_to(parent) for parent in _MACHINE_DIRS)
    if not stat.S_ISREG(mode) or (
        machine and not real_path.is_relative_to(_MEMORY_DIR)
    ):
        raise UnsafeFileError(
            f"{path} is a device, a pipe or a socket, and reading it may never end. "
            "Name a regular file."
        )


def _refuse_virtual(path: Path) -> None:
    try:
        # Not blocking, should a pipe have taken the place of the file just now.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            head = file.read(_SNIFF_BYTES)
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}.") from error
    if head.startswith(_TIFF_MAGIC):
        return
    if head.lstrip(_MARGIN).startswith(b"<") or any(m in head for m in _VIRTUAL_FILES):
        raise UnsafeFileError(
            f"{path} holds XML (a VRT?), which can stand for any other file of the "
            "machine. Convert it: gdal_translate for images, ogr2ogr for polygons."
        )


def _probe(remote: RemoteFile) -> list[Any]:
    """Ask for one byte: learn size and version, and that nothing leads elsewhere."""
    import http.client
    import urllib.error
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Let the answer become an error."""

    # S310: `locate_file` let through nothing but http and https.
    request = urllib.request.Request(remote.url, headers={"Range": "bytes=0-0"})  # noqa: S310
    opener = urllib.request.build_opener(NoRedirects)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        raise _describe_refusal(remote, error.code, error.headers) from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"Cannot reach {remote}: {error}. Check the network, or download the file."
        ) from error
    size = headers.get("Content-Range", "").rpartition("/")[2]
    if not size.isdigit():
        raise DataError(
            f"The host of {remote} does not give parts of a file (no byte ranges). "
            "Download the file and name its path."
        )
    return [int(size), headers.get("ETag") or headers.get("Last-Modified") or ""]


def _describe_refusal(remote: RemoteFile, code: int, headers: Any) -> Exception:
    if code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return DataFileNotFoundError(
            f"No file at {remote} (status {code}). Correct the address."
        )
    if HTTPStatus.MULTIPLE_CHOICES <= code < HTTPStatus.BAD_REQUEST:
        return UnsafeFileError(
            f"{remote} sends the reader on to {headers.get('Location')}. Name that "
            "address instead, and allow its host."
        )
    return DataError(
        f"The host of {remote} answered with status {code}. Download the file and "
        "name its path."
    )
