"""Files are found where a text names them, and nothing else is opened."""

from __future__ import annotations

import functools
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cropseg.errors import (
    DataError,
    DataFileNotFoundError,
    ResourceError,
    UnsafeFileError,
)
from cropseg.sites.grid import Window
from cropseg.sites.location import (
    RemoteFile,
    fingerprint_content,
    fingerprint_file,
    locate_file,
)
from cropseg.sites.raster import open_raster

VALUES = np.arange(1, 300 * 170 * 2 + 1).reshape(300, 170, 2).astype("uint32")


@pytest.mark.parametrize(
    "name", ["scene.tif", "a b/ü.tif", "T12:00.tif", "[1].tif", "GTIFF_DIR:1:scene.tif"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_local_file_is_found(tmp_path, name, absolute):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"II*\0")

    assert locate_file(str(path) if absolute else name, tmp_path) == path


def test_a_path_may_leave_the_folder(tmp_path):
    (tmp_path / "scene.tif").write_bytes(b"II*\0")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "link.tif").symlink_to("scene.tif")

    for text in ("../scene.tif", "../link.tif"):
        found = locate_file(text, tmp_path / "manifests")
        assert found.samefile(tmp_path / "scene.tif")


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/scene.tif",
        "https:/example.org/scene.tif",
        "HTTP://example.org/scene.tif",
        "ftp://example.org/scene.tif",
        "file:///etc/hostname",
        "s3://bucket/scene.tif",
        "gs://bucket/scene.tif",
        "zip+https://example.org/a.zip!b.tif",
        "https://[example.org/scene.tif",
        "https://example.org:port/scene.tif",
        "https:///scene.tif",
        "/vsicurl/https://example.org/scene.tif",
        "/vsizip/a.zip/b.tif",
        "/vsimem/scene.tif",
        "GTIFF_DIR:1:scene.tif",
        "NETCDF:scene.nc:band",
        'HDF5:"scene.h5"://band',
        "PG:dbname=fields",
        "<VRTDataset/>",
        " \n<GDAL_WMS></GDAL_WMS>",
        '{"type": "FeatureCollection"}',
        "/dev/zero",
        "/dev/null",
        "/dev/stdin",
        "/proc/self/environ",
        "/proc/self/../version",
    ],
)
def test_what_is_no_path_of_a_regular_file_is_unsafe(tmp_path, text):
    with pytest.raises(UnsafeFileError):
        locate_file(text, tmp_path)


@pytest.mark.parametrize("text", ["scene.tif", ".", "a/b.tif", "x" * 300, "a\0b", ""])
def test_what_is_not_there_is_not_found(tmp_path, text):
    (tmp_path / "a").write_bytes(b"")  # so a/b.tif is in no folder

    with pytest.raises(DataFileNotFoundError, match="No file at"):
        locate_file(text, tmp_path)


def test_a_pipe_and_a_socket_and_a_link_to_a_device_are_unsafe(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "link.tif").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.tif"))
        for name in ("pipe.tif", "link.tif", "socket.tif"):
            with pytest.raises(UnsafeFileError, match="may never end"):
                locate_file(name, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"<VRTDataset></VRTDataset>",
        b"  \n<?xml version='1.0'?><a/>",
        b"\xef\xbb\xbf<a/>",
        "<a/>".encode("utf-16"),
        "\ufeff<a/>".encode("utf-16-be"),
        b"fields\n<OGRVRTDataSource>",
        b"x" * 900 + b"<VRTDataset>",
    ],
)
@pytest.mark.parametrize("name", ["a.vrt", "a.tif", "a.geojson"])
def test_a_file_that_stands_for_others_is_unsafe_under_any_name(
    tmp_path, name, content
):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UnsafeFileError, match="holds XML"):
        locate_file(name, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": "<b>"}', b"x,y\n1,2\n", b"II*\0\x08\0\0\0<VRTDataset", b"PAR1"],
)
def test_a_file_that_holds_its_own_content_is_found(tmp_path, content):
    (tmp_path / "a").write_bytes(content)

    assert locate_file("a", tmp_path) == tmp_path / "a"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_matter_of_resources(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    (tmp_path / "a.tif").chmod(0)

    with pytest.raises(ResourceError, match="cannot be read"):
        locate_file("a.tif", tmp_path)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://example.org/maps/scene%20a.tif?key=1", ["example.org"]),
        ("http://example.org/scene%20a.tif", ["other.org", "Example.org"]),
        ("https://example.org:443/scene%20a.tif", ["example.org"]),
        ("https://EXAMPLE.org:8443/scene%20a.tif", ["example.org:8443"]),
        ("http://[::1]:8000/scene%20a.tif", ["[::1]:8000"]),
    ],
)
def test_a_file_of_an_allowed_host_is_remote(tmp_path, url, hosts):
    remote = locate_file(url, tmp_path, allow_remote=hosts)

    assert remote == RemoteFile(url=url)
    assert (str(remote), remote.name) == (url, "scene a.tif")
    assert (remote.stem, remote.suffix) == ("scene a", ".tif")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org.evil.net/a.tif", "lies on example.org.evil.net"),
        ("https://a.example.org/a.tif", "--allow-remote a.example.org"),
        ("https://example.org:8443/a.tif", "--allow-remote example.org:8443"),
        ("http://example.org:443/a.tif", "--allow-remote example.org:443"),
        ("https://me:secret@example.org/a.tif", "no plain"),
        ("https://evil.net\\@example.org/a.tif", "no plain"),
        ("https://evil.net/ example.org/a.tif", "no plain"),
        ("https:/example.org/a.tif", "no plain"),
        ("https://example.org/a.tif#b", "no plain"),
        ("s3://example.org/a.tif", "no plain"),
    ],
)
def test_only_the_very_host_is_allowed_and_only_by_plain_addresses(
    tmp_path, url, message
):
    with pytest.raises(UnsafeFileError, match=re.escape(message)):
        locate_file(url, tmp_path, allow_remote=["example.org"])


def test_a_fingerprint_changes_with_size_and_time(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0")
    os.utime(path, ns=(5, 7))
    assert fingerprint_file(path) == [4, 7]
    path.unlink()

    with pytest.raises(DataFileNotFoundError, match="is no more"):
        fingerprint_file(path)


def test_the_content_of_a_large_file_goes_by_size_and_time(tmp_path):
    path = tmp_path / "a.tif"
    with path.open("wb") as stream:
        stream.truncate(64 * 2**20)
    size, digest = fingerprint_content(path)
    assert (size, len(digest)) == (64 * 2**20, 64)

    with path.open("ab") as stream:
        stream.write(b" ")

    assert fingerprint_content(path) == fingerprint_file(path)


class Handler(BaseHTTPRequestHandler):
    """Serves a folder in parts; other first path elements are odd hosts."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, folder):
        self._folder = folder
        super().__init__(*args)

    def log_message(self, *_):
        """Say nothing."""

    def do_HEAD(self):
        self._answer(send_content=False)

    def do_GET(self):
        self._answer(send_content=True)

    def _answer(self, *, send_content):
        _, kind, name = self.path.split("/")
        path = self._folder / name
        content = path.read_bytes() if path.is_file() else b""
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"ETag": '"v1"', "Accept-Ranges": "bytes"}
        if kind == "moved":
            status, content = 302, b""
            headers["Location"] = f"http://elsewhere.invalid/{name}"
        elif kind == "secret":
            status, content = 403, b""
        elif not path.is_file():
            status = 404
        elif kind == "whole" or part is None:
            status = 200
        else:
            status, size = 206, len(content)
            first, last = int(part[1]), min(int(part[2] or size), size - 1)
            content = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if send_content:
            self.wfile.write(content)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host on this machine that serves `tmp_path`, as host:port."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Handler, folder=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def locate(tmp_path, host):
    """Return a function that locates a path on the host."""
    return lambda path: locate_file(
        f"http://{host}/{path}", tmp_path, allow_remote=[host]
    )


def test_a_remote_file_is_read_as_the_local_one(tmp_path, write_raster, locate):
    path = write_raster(tmp_path / "scene.tif", VALUES, nodata=9)
    Path(f"{path}.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    remote = locate("parts/scene.tif")
    window = Window(row=-3, col=10, height=250, width=200)

    with open_raster(remote) as there, open_raster(path) as here:
        found, expected = there.read(window, [1, 0]), here.read(window, [1, 0])
        assert there.header == here.header

    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.valid, expected.valid)
    assert fingerprint_file(remote) == [path.stat().st_size, '"v1"']


def test_a_remote_vrt_is_no_geotiff(tmp_path, locate):
    (tmp_path / "scene.tif").write_text("<VRTDataset></VRTDataset>")

    with (
        pytest.raises(DataError, match="cannot be opened as a GeoTIFF"),
        open_raster(locate("parts/scene.tif")),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("parts/missing.tif", DataFileNotFoundError, "status 404"),
        ("moved/scene.tif", UnsafeFileError, r"on to http://elsewhere\.invalid/scene"),
        ("secret/scene.tif", DataError, "status 403"),
        ("whole/scene.tif", DataError, "no byte ranges"),
    ],
)
def test_a_host_that_does_not_serve_the_file_is_an_error(
    tmp_path, write_raster, locate, path, error, message
):
    write_raster(tmp_path / "scene.tif", VALUES)

    with pytest.raises(error, match=message), open_raster(locate(path)):
        pass


def test_a_host_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    remote = RemoteFile(url=f"http://127.0.0.1:{port}/scene.tif")

    with pytest.raises(DataError, match="Cannot reach"):
        fingerprint_file(remote)
