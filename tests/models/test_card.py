"""The card: it lies in the archive, comes back as it was, and fits a site or not."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

from cropseg.errors import CropsegError, ModelError, ModelFileNotFoundError
from cropseg.models.bundle import load_bundle
from cropseg.models.card import (
    CARD_NAME,
    fit_site_to_card,
    match_card_classes,
    read_card,
)
from cropseg.sites.classes import ClassMap, CropClass
from cropseg.sites.site import open_site


def make_classes(*names, **source_names):
    return ClassMap(
        classes=tuple(
            CropClass(
                name=name, color="#000000", source_names=source_names.get(name, ())
            )
            for name in names
        )
    )


def test_the_card_is_one_more_member_of_a_plain_keras_archive(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        assert sorted(archive.namelist()) == [
            "config.json",
            CARD_NAME,
            "metadata.json",
            "model.weights.h5",
        ]
        document = json.loads(archive.read(CARD_NAME))
    assert document["schema_version"] == 1
    assert document["bands"] == ["blue", "green", "red", "nir", "swir1"]


def test_a_card_comes_back_as_it_was_saved(bundle, bundle_path):
    assert read_card(bundle_path) == bundle.card
    assert read_card(str(bundle_path)).class_names == ("soybeans", "wheat", "grassland")


def test_a_card_is_read_without_keras(bundle_path):
    code = (
        "import sys\nfrom cropseg.models.card import read_card\n"
        "print(read_card(sys.argv[1]).site)\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "rural-area-1\n"), done.stderr


@pytest.mark.parametrize("read", [read_card, load_bundle])
def test_a_missing_file_is_told_with_where_it_was_looked_for(read, tmp_path):
    with pytest.raises(ModelFileNotFoundError, match=str(tmp_path)) as error:
        read(tmp_path / "model.keras")
    assert error.value.exit_code == 4
    assert isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("read", [read_card, load_bundle])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 0.999])
def test_a_file_that_is_cut_short_is_refused(read, share, bundle_path):
    content = bundle_path.read_bytes()
    bundle_path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"no complete \.keras archive") as error:
        read(bundle_path)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("read", [read_card, load_bundle])
def test_a_file_that_is_no_archive_is_refused(read, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelError, match="another format"):
        read(path)


@pytest.mark.parametrize("read", [read_card, load_bundle])
def test_a_model_without_a_card_is_refused(read, bundle_path, change_card):
    change_card(bundle_path, text=None)
    with pytest.raises(ModelError, match=r"no card \(cropseg.json\)"):
        read(bundle_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema_version": 1}', b"\xff\xfe\x00", "null"]
)
def test_a_card_that_is_none_is_refused(text, bundle_path, change_card):
    change_card(bundle_path, text=text)
    with pytest.raises(ModelError, match="cannot be read"):
        read_card(bundle_path)


def test_a_card_of_a_newer_cropseg_is_refused(bundle_path, change_card):
    change_card(bundle_path, schema_version=2)
    with pytest.raises(ModelError, match="Update cropseg"):
        read_card(bundle_path)


def test_a_card_of_impossible_size_is_refused_unread(bundle_path, change_card):
    change_card(bundle_path, text=bytes(65 * 2**20))
    with pytest.raises(ModelError, match=f"claims {65 * 2**20} bytes"):
        read_card(bundle_path)


def test_no_changed_byte_of_the_card_passes(bundle, bundle_path):
    content = bundle_path.read_bytes()
    with zipfile.ZipFile(bundle_path) as archive:
        info = archive.getinfo(CARD_NAME)
        start = info.header_offset + 30 + len(CARD_NAME)
    end = start + info.compress_size
    assert zlib.decompress(content[start:end], -15) == (
        bundle.card.model_dump_json(indent=2).encode()
    )
    for position in range(start, end, 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        bundle_path.write_bytes(damaged)
        with pytest.raises(ModelError):
            read_card(bundle_path)


def test_no_changed_byte_of_the_directory_raises_anything_but_a_model_error(
    bundle, bundle_path
):
    content = bundle_path.read_bytes()
    with zipfile.ZipFile(bundle_path) as archive:
        start = archive.start_dir
    assert start < len(content)
    for position in range(start, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        bundle_path.write_bytes(damaged)
        try:
            card = read_card(bundle_path)
        except CropsegError as error:
            assert isinstance(error, ModelError)  # noqa: PT017 - either is right
        else:
            assert card == bundle.card


def test_a_site_is_read_in_the_models_bands_and_order(bundle, make_site, tmp_path):
    names = ("nir", "coastal", "red", "blue", "swir1", "green", "swir2")
    site = open_site(make_site(tmp_path, bands=names))
    fitted = fit_site_to_card(site, bundle.card)
    assert fitted.bands == bundle.card.bands
    window = site.scenes[0].grid.window
    with site.open_scene(site.scenes[0]) as reader:
        every = reader.read_pixels(window).values
    with fitted.open_scene(fitted.scenes[0]) as reader:
        found = reader.read_pixels(window).values
    order = [names.index(band) for band in bundle.card.bands]
    np.testing.assert_array_equal(found, every[..., order])


def test_a_site_without_a_band_of_the_model_is_refused(bundle, make_site, tmp_path):
    names = ("blue", "green", "red", "swir2", "coastal")
    site = open_site(make_site(tmp_path, bands=names))
    with pytest.raises(ModelError, match="has no nir, swir1"):
        fit_site_to_card(site, bundle.card)


@pytest.mark.parametrize(("xres", "fits"), [(9.6, True), (11.5, False), (7.0, False)])
def test_a_site_may_differ_by_a_tenth_in_gsd(bundle, make_site, tmp_path, xres, fits):
    site = open_site(make_site(tmp_path, xres=xres, yres=xres))
    if fits:
        assert fit_site_to_card(site, bundle.card).gsd_m == pytest.approx(xres)
        return
    with pytest.raises(ModelError, match=f"at a GSD of 9 m.*has {xres:g} m"):
        fit_site_to_card(site, bundle.card)


def test_classes_are_matched_by_name_and_not_by_place(bundle):
    classes = make_classes("oats", "grassland", "soybeans")
    assert match_card_classes(bundle.card, classes) == {
        "grassland": ["grassland"],
        "soybeans": ["soybeans"],
    }


def test_a_class_goes_by_the_names_that_the_site_gives_for_the_source(bundle):
    classes = make_classes("cereals", "pasture", cereals=("wheat", "rye", "soybeans"))
    assert match_card_classes(bundle.card, classes) == {
        "cereals": ["wheat", "soybeans"]
    }


def test_a_site_that_shares_no_class_is_refused(bundle):
    with pytest.raises(ModelError, match=r"soybeans, wheat.*oats, rye"):
        match_card_classes(bundle.card, make_classes("oats", "rye"))
