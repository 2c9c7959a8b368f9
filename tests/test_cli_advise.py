"""`cropseg advise`: advice of a real model, as text and as one JSON document."""

from __future__ import annotations

import json
import shlex

import pytest

from cropseg.models.card import read_card
from cropseg.sites.budget import draw_pool, parse_budget
from cropseg.sites.site import open_site
from cropseg.transfer.modes import list_mode_names
from cropseg.transfer.rule_of_thumb import CELLS


@pytest.fixture(scope="module")
def manifest(make_site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("advise") / "area 2"
    return make_site(folder, class_names=("corn", "water", "soybeans"), seed=1)


def test_advice_is_one_json_document(run, manifest, source_path):
    given = ("--labels", "6tiles", "--draw", "2")
    code, out, err = run("advise", manifest, "--from", source_path, "--json", *given)
    assert (code, err) == (0, "")
    advice = json.loads(out)
    card = read_card(source_path)
    site = open_site(manifest).select_bands(card.bands)
    pool = draw_pool(site, card.tile_size, parse_budget("6tiles"), draw=2)
    labels = advice["measures"]["labels"]
    assert labels["pixels"] == sum(pool.class_pixels)
    assert [item["name"] for item in labels["classes"]] == list(site.classes.names)
    assert advice["amount"] == "low"
    assert advice["modes"] == list(CELLS["low", advice["similarity"]].modes)
    measures = advice["measures"]
    assert measures["shared_classes"] == ["water", "soybeans"]
    assert 0 <= measures["zero_shot"]["miou"] <= 1
    assert measures["half_distance"] == card.features.half_distance
    assert measures["feature_distance"] > 0


def test_the_command_that_is_suggested_can_be_run(run, manifest, source_path):
    code, out, _ = run("advise", manifest, "--from", source_path)
    assert code == 0
    for title in ("why:", "modes to try:", "what this cannot know:"):
        assert title in out
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[:4] == ["cropseg", "compare", str(manifest), "--from"]
    modes = command[command.index("--modes") + 1].split(",")
    assert {name.partition(":")[0] for name in modes} <= {
        name.partition(":")[0] for name in list_mode_names()
    }
    budgets = command[command.index("--labels") + 1].split(",")
    assert len(budgets) == 2
    site = open_site(manifest)
    tile_size = read_card(source_path).tile_size
    pools = [draw_pool(site, tile_size, parse_budget(b), draw=0) for b in budgets]
    assert len(pools[0].tiles) < len(pools[1].tiles)


@pytest.mark.slow
def test_the_command_fits_the_model_to_the_site_as_the_advice_did(
    run, manifest, source_path
):
    given = ("--labels", "4tiles", "--normalization", "target", "--accept-gsd")
    code, out, _ = run("advise", manifest, "--from", source_path, "--json", *given)
    assert code == 0
    advice = json.loads(out)
    assert "--labels 4tiles" in advice["command"]
    assert "--accept-gsd --normalization target" in advice["command"]
    code, out, _ = run("advise", manifest, "--from", source_path, "--json", *given[:2])
    plain = json.loads(out)
    assert "--normalization" not in plain["command"]
    scores = [item["measures"]["zero_shot"]["miou"] for item in (advice, plain)]
    assert scores[0] != scores[1]


@pytest.mark.slow
def test_the_command_describes_a_model_without_a_card(
    run, manifest, source_path, tmp_path
):
    from cropseg.models.bundle import load_bundle

    bundle = load_bundle(source_path)
    foreign = tmp_path / "foreign.keras"
    bundle.model.save(foreign)
    told = ["--bands", ",".join(bundle.card.bands)]
    told += ["--classes", ",".join(bundle.card.class_names)]
    told += ["--normalization", "none"]
    given = ("--from", foreign, *told, "--labels", "1tiles", "--json")
    code, out, err = run("advise", manifest, *given)
    assert code == 0, err
    assert shlex.join(told) in json.loads(out)["command"]


@pytest.mark.slow
def test_quiet_says_nothing(run, manifest, source_path):
    code, out, err = run("advise", manifest, "--from", source_path, "--quiet")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("given", "code", "word"),
    [
        (("--labels", "4chips"), 2, "4chips"),
        (("--labels", "9999tiles"), 3, "9999tiles"),
        (("--from", "nothing.keras"), 4, "nothing.keras"),
    ],
)
def test_what_cannot_be_used_ends_with_its_code(
    run, manifest, source_path, given, code, word
):
    found, out, err = run("advise", manifest, "--from", source_path, *given)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert word in err
