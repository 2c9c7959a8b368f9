"""What stands for the content of a scene."""

from __future__ import annotations

import pytest

from cropseg.inference.mapping import planning
from cropseg.inference.mapping.options import MapOptions
from cropseg.inference.mapping.planning import Planner
from cropseg.inference.scenes.scene_list import SceneRequest

HOST = "https://host.example"


@pytest.fixture
def fingerprint(seven_classes, tmp_path, monkeypatch):
    """Return a function that fingerprints an address, whose host says this of it."""

    def fingerprint_url(url, *, size=5, tag='"abc"'):
        monkeypatch.setattr(planning, "fingerprint_file", lambda _: [size, tag])
        options = MapOptions(allow_remote=("host.example",))
        planner = Planner(seven_classes, options, tmp_path)
        return planner.fingerprint(SceneRequest(name="east", files=(url,)))

    return fingerprint_url


def test_an_address_that_is_signed_anew_is_the_same_scene(fingerprint):
    first = fingerprint(f"{HOST}/east.tif?sig=monday")
    assert fingerprint(f"{HOST}/east.tif?sig=tuesday") == first
    assert fingerprint(f"{HOST}/west.tif?sig=monday") != first
    assert fingerprint(f"{HOST}/east.tif?sig=monday", size=6) != first
    assert fingerprint(f"{HOST}/east.tif?sig=monday", tag='"new"') != first


def test_the_query_counts_where_the_host_tells_no_version(fingerprint):
    first = fingerprint(f"{HOST}/read?scene=1", tag="")
    assert fingerprint(f"{HOST}/read?scene=2", tag="") != first
