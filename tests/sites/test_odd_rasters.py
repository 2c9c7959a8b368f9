"""Files that trip readers: each is read rightly or refused, in bounded memory.

Each file has a process of its own, which may neither take long nor grow. These
are forked from one that has imported what they need, which saves a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.enums import ColorInterp

ODD_DIR = Path(__file__).parents[2].parent / "shared" / "data" / "odd_rasters"
ODD_PATHS = sorted(ODD_DIR.iterdir()) if ODD_DIR.is_dir() else []
LIMIT_KB = 700_000
UNREADABLE = {
    "pillow_libtiff_segfault.tif": "DataError",  # 65,535 bands
    "pillow_seek_too_large.tif": "DataError",  # 16 bytes
    "rasterio_compdcs.vrt": "UnsafeFileError",
    "rasterio_corrupt.tif": "DataError",
}
CLASSES = [list(range(100)), list(range(100, 700))]

READ = """
import json, os, resource, signal, sys, warnings
from pathlib import Path
import numpy as np
from cropseg.errors import CropsegError
from cropseg.sites.raster import find_unwritten_blocks, open_raster
from cropseg.sites.site import open_site
from cropseg.sites.tiling import iterate_tiles

warnings.simplefilter("ignore")

def read_image(path, out):
    with open_raster(path) as reader:
        header = reader.header
        shape = (header.grid.height, header.grid.width)
        values = np.zeros((*shape, header.num_bands), header.dtype)
        valid = np.zeros(shape, bool)
        for tile in iterate_tiles(header.grid.window, core_size=300):
            inside = tile.core.clip(height=shape[0], width=shape[1])
            place = inside.slices_in(header.grid.window)
            pixels = reader.read(inside, range(header.num_bands))
            values[place], valid[place] = pixels.values, pixels.valid
    assert find_unwritten_blocks(path).num_unwritten == 0
    np.savez(out / "image.npz", values=values, valid=valid)

def read_labels(path, out):
    site = open_site(out / "site.yaml")
    with site.open_scene(site.scenes[0]) as reader:
        np.save(out / "labels.npy", reader.read_labels(site.scenes[0].grid.window))

def read_both(path, out):
    outcome = {}
    for role in (read_image, read_labels):
        try:
            role(path, out)
            outcome[role.__name__] = ["", ""]
        except CropsegError as error:
            outcome[role.__name__] = [type(error).__name__, str(error)]
    status = Path("/proc/self/status").read_text()
    outcome["peak_kb"] = int(status.partition("VmHWM:")[2].split()[0])
    (out / "outcome.json").write_text(json.dumps(outcome))

for path in map(Path, sys.argv[2:]):
    pid = os.fork()
    if not pid:
        signal.alarm(60)  # ends the process; a second is enough on an idle machine
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        read_both(path, Path(sys.argv[1]) / path.name)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(path.name, os.waitstatus_to_exitcode(status), flush=True)
"""

pytestmark = [
    pytest.mark.skipif(not ODD_PATHS, reason="../shared/data/odd_rasters is not there"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Read all files, each in its process, and return the folder of the outcomes."""
    folder = tmp_path_factory.mktemp("odd")
    for path in ODD_PATHS:
        write_manifest(path, folder / path.name)
    process = subprocess.run(
        [sys.executable, "-c", READ, folder, *ODD_PATHS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    codes = dict(line.rsplit(" ", 1) for line in process.stdout.splitlines())
    assert codes == {path.name: "0" for path in ODD_PATHS}
    return folder


def write_manifest(path, folder):
    num_bands = 1
    if path.name not in UNREADABLE:
        num_bands = read_plainly(path)[0].shape[-1]
    manifest = {
        "site": "odd",
        "bands": [f"band_{index}" for index in range(num_bands)],
        "classes": [
            {"name": name, "color": "#267300", "values": values}
            for name, values in zip(("low", "high"), CLASSES, strict=True)
        ],
        "ignore": "rest",
        "scenes": [{"image": str(path), "labels": str(path)}],
    }
    folder.mkdir()
    (folder / "site.yaml").write_text(yaml.safe_dump(manifest))


def test_there_are_25_odd_rasters():
    names = {path.name for path in ODD_PATHS}
    assert len(names) == 25
    assert names >= UNREADABLE.keys()


@pytest.mark.parametrize("path", ODD_PATHS, ids=[path.name for path in ODD_PATHS])
def test_an_odd_image_is_read_as_rasterio_reads_it_or_refused(path, outcomes):
    outcome = json.loads((outcomes / path.name / "outcome.json").read_text())
    kind, message = outcome["read_image"]

    assert outcome["peak_kb"] < LIMIT_KB
    assert kind == UNREADABLE.get(path.name, ""), message
    if kind:
        assert path.name in message
        return
    values, valid = read_plainly(path)
    image = np.load(outcomes / path.name / "image.npz")
    valid = valid.all(axis=-1)
    np.testing.assert_array_equal(image["valid"], valid)
    np.testing.assert_array_equal(image["values"][valid], values[valid])
    assert image["values"].dtype == values.dtype


@pytest.mark.parametrize("path", ODD_PATHS, ids=[path.name for path in ODD_PATHS])
def test_odd_labels_are_read_as_rasterio_reads_them_or_refused(path, outcomes):
    outcome = json.loads((outcomes / path.name / "outcome.json").read_text())
    kind, message = outcome["read_labels"]
    if path.name in UNREADABLE:
        assert kind == UNREADABLE[path.name]
        return
    values, valid = read_plainly(path)
    with rasterio.open(path) as dataset:
        has_place = bool(dataset.crs)

    if not has_place or values.shape[-1] > 1:
        assert kind == "DataError"
        assert path.name in message
    elif kind:  # whether labels may be floats is for a site to say
        assert (kind, values.dtype.kind) == ("DataError", "f"), message
    else:
        expected = np.full(values.shape[:2], 255, "uint8")
        for class_id, meant in enumerate(CLASSES):
            expected[np.isin(values[..., 0], meant) & valid[..., 0]] = class_id
        labels = np.load(outcomes / path.name / "labels.npy")
        np.testing.assert_array_equal(labels, expected)


def read_plainly(path):
    """Read with plain rasterio: scaled bands without alpha, and where each is valid."""
    with rasterio.open(path) as dataset:
        colors = zip(dataset.indexes, dataset.colorinterp, strict=True)
        alpha = [index for index, color in colors if color == ColorInterp.alpha]
        indexes = [index for index in dataset.indexes if index not in alpha]
        values = np.moveaxis(dataset.read(indexes), 0, -1)
        valid = np.moveaxis(dataset.read_masks(indexes), 0, -1) > 0
        for index in alpha:
            valid &= (dataset.read(index) > 0)[..., None]
        scales = [dataset.scales[index - 1] for index in indexes]
        offsets = [dataset.offsets[index - 1] for index in indexes]
    valid &= np.isfinite(values)
    if set(scales) != {1} or set(offsets) != {0}:
        values = values * np.float32(scales) + np.float32(offsets)
    return values, valid
