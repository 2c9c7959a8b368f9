"""Transfer modes: their definitions are whole, and an unknown one is answered."""

from __future__ import annotations

import pytest

from cropseg.errors import UsageError
from cropseg.transfer.plan import ALL, PIXEL_FOREST, PLANS, get_plan


@pytest.mark.parametrize("mode", PLANS)
def test_every_plan_says_what_happens_to_every_part(mode):
    plan = get_plan(mode)

    assert plan.mode == mode
    assert plan.summary.endswith(".")
    assert set(plan.batch_norm) == set(ALL)
    assert set(plan.loaded) <= set(ALL)
    assert set(plan.trained) <= set(ALL)
    assert plan.trains == bool(plan.trained)


@pytest.mark.parametrize("mode", PLANS)
def test_a_part_that_is_not_loaded_is_trained(mode):
    plan = get_plan(mode)

    assert set(plan.loaded) | set(plan.trained) == set(ALL)


@pytest.mark.parametrize("mode", PLANS)
def test_batch_statistics_of_random_weights_run(mode):
    plan = get_plan(mode)
    random = set(ALL) - set(plan.loaded)

    assert all(plan.batch_norm[part].statistics == "running" for part in random)


def test_no_two_modes_are_the_same():
    plans = [
        (plan.loaded, plan.trained, tuple(plan.batch_norm[part] for part in ALL))
        for plan in PLANS.values()
    ]

    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize(
    ("mode", "nearest"), [("frozen", "frozen_encoder"), ("ful", "full"), ("", "")]
)
def test_an_unknown_mode_is_answered_with_the_nearest_and_the_list(mode, nearest):
    with pytest.raises(UsageError, match=f"the nearest is '{nearest}") as caught:
        get_plan(mode)

    assert all(name in str(caught.value) for name in PLANS)


def test_the_forest_is_sent_to_compare():
    with pytest.raises(UsageError, match="only `compare` runs it"):
        get_plan(PIXEL_FOREST)
