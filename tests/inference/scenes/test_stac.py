"""Scenes of STAC items: which asset has which band."""

from __future__ import annotations

import json

import pytest

from cropseg.errors import DataError, UnsafeFileError
from cropseg.inference.scenes.mapped_scene import fit_scene
from cropseg.inference.scenes.scene_list import SceneRequest, list_scenes

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def make_asset(href, *bands, kind=COG, roles=("data",), key="eo:bands"):
    asset = {"href": href, "roles": list(roles)}
    if kind:
        asset["type"] = kind
    if bands:
        asset[key] = [
            dict(zip(("name", "common_name"), (band, *rest), strict=False))
            for band, *rest in (b if isinstance(b, tuple) else (b,) for b in bands)
        ]
    return asset


def make_item(name="scene_1", **assets):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2024-06-01T00:00:00Z"},
        "links": [],
        "assets": assets,
    }


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return a function that writes items and lists their scenes."""
    monkeypatch.chdir(tmp_path)

    def read_items(*items, bands=("blue", "red", "nir"), alone=False, **options):
        document = {"type": "FeatureCollection", "features": list(items)}
        (tmp_path / "lists").mkdir(exist_ok=True)
        path = tmp_path / "lists" / "items.json"
        path.write_text(json.dumps(items[0] if alone else document))
        return list_scenes(["lists/items.json"], bands=bands, **options)

    return read_items


def test_an_asset_with_all_bands_is_read_by_their_names(read):
    item = make_item(image=make_asset("../data/x.tif", "RED", "green", "nir", "blue"))
    expected = SceneRequest(
        name="scene_1",
        files=("lists/../data/x.tif",),
        bands=("red", "green", "nir", "blue"),
    )
    assert read(item) == (expected,)
    assert read(item, alone=True) == (expected,)


def test_one_asset_a_band_is_stacked_in_the_order_of_the_model(read):
    item = make_item(
        B08=make_asset("nir.tif", ("B08", "nir")),
        B02=make_asset("blue.tif", ("B02", "blue")),
        B04=make_asset("red.tif", ("B04", "red")),
        SCL=make_asset("scl.tif"),
        visual=make_asset("rgb.tif", ("B04", "red"), ("B03", "green"), ("B02", "blue")),
    )
    (request,) = read(item)
    assert request.files == ("lists/blue.tif", "lists/red.tif", "lists/nir.tif")
    assert request.bands == ("blue", "red", "nir")
    (request,) = read(item, bands=("red", "blue"))  # `visual` has both too
    assert request.files == ("lists/red.tif", "lists/blue.tif")


def test_bands_of_stac_1_1_are_read_too(read):
    def make(href, name, common):
        band = {"name": name, "eo:common_name": common}
        return {"href": href, "type": COG, "bands": [band]}

    item = make_item(
        a=make("1.tif", "B1", "blue"),
        b=make("2.tif", "B2", "red"),
        c=make("3.tif", "B3", "nir"),
    )
    assert read(item)[0].files == ("lists/1.tif", "lists/2.tif", "lists/3.tif")


def test_a_band_s_own_name_goes_before_its_common_name(read):
    item = make_item(
        B05=make_asset("5.tif", ("B05", "rededge")),
        B06=make_asset("6.tif", ("rededge", "rededge")),
    )
    assert read(item, bands=("rededge",))[0].files == ("lists/6.tif",)


def test_assets_without_bands_go_by_their_key(read):
    assets = {name: make_asset(f"{name}.tif") for name in ("nir", "Blue", "red")}
    assert read(make_item(**assets))[0].files == (
        "lists/Blue.tif",
        "lists/red.tif",
        "lists/nir.tif",
    )


def test_an_only_asset_that_names_no_band_is_left_to_its_file(read):
    item = make_item(
        image=make_asset("x.tif", kind=None), meta=make_asset("x.xml", kind=None)
    )
    assert read(item) == (SceneRequest(name="scene_1", files=("lists/x.tif",)),)


def test_pictures_and_other_formats_are_no_data(read):
    bands = ("blue", "red", "nir")
    item = make_item(
        picture=make_asset("p.tif", *bands, roles=["overview"]),
        jp2=make_asset("j.jp2", *bands, kind="image/jp2"),
        image=make_asset("x.tif", *bands),
    )
    assert read(item)[0].files == ("lists/x.tif",)
    del item["assets"]["image"]
    assert read(item)[0].files == ("lists/p.tif",)  # better than nothing


@pytest.mark.parametrize(
    "assets",
    [
        {"image": make_asset("x.tif", "blue", "red")},
        {
            "a": make_asset("a.tif", "blue", "red", "nir"),
            "b": make_asset("b.tif", "blue", "red", "nir"),
        },
        {
            "image": make_asset(
                "x.tif", "blue", "red", ("B8", "nir"), ("B8A", "nir"), "green"
            )
        },
        {},
    ],
)
def test_an_item_without_clear_assets_is_a_problem_of_that_scene_alone(
    read, seven_classes, assets
):
    good = make_item("good", image=make_asset("x.tif", "blue", "red", "nir"))
    bad, fine = read(make_item("bad", **assets), good)
    assert (bad.name, bad.files) == ("bad", ())
    assert "Item bad of" in bad.problem
    assert "(blue, red, nir)" in bad.problem
    assert fine.problem is None
    with pytest.raises(DataError, match="Item bad") as error:
        fit_scene(bad, seven_classes)
    assert error.value.exit_code == 3


def test_remote_assets_need_their_host_allowed(read):
    href = "https://data.example/x.tif?sig=a%2Fb"
    item = make_item(image=make_asset(href, "blue", "red", "nir"))
    with pytest.raises(UnsafeFileError, match=r"--allow-remote data\.example"):
        read(item)
    assert read(item, allow_remote=["data.example"])[0].files == (href,)


def test_file_addresses_are_paths(read):
    item = make_item(image=make_asset("file:///data/a%20b.tif", "blue", "red", "nir"))
    assert read(item)[0].files == ("/data/a b.tif",)


def test_an_id_that_is_no_file_name_is_made_one(read):
    image = make_asset("x.tif", "blue", "red", "nir")
    requests = read(make_item("S2/33/A\n", image=image), make_item("..", image=image))
    assert [request.name for request in requests] == ["S2_33_A", "item_.."]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "{",
        "[" * 100_000,
        '{"type": "FeatureCollection", "features": []}',
        '{"type": "FeatureCollection", "features": [{"type": "Feature"}]}',
        '{"type": "Catalog", "links": []}',
    ],
)
def test_json_that_is_no_item_is_refused(tmp_path, content):
    path = tmp_path / "items.json"
    path.write_text(content)
    with pytest.raises(DataError, match="expected a STAC item"):
        list_scenes([path], bands=["blue"])
