"""The demo goes the whole way and says where to look."""

import json

import pytest

from cropseg.comparison.cells import plan_cells
from cropseg.demo import run
from cropseg.errors import ConflictError
from cropseg.sites.budget import parse_budgets

MODES = run.MODES


@pytest.fixture(scope="module", autouse=True)
def _tiny_demo():
    """Make the demo small enough for a test: few steps, few modes, small areas."""
    write_areas = run.write_areas

    def write_small_areas(out_dir, *, seed):
        return write_areas(out_dir, seed=seed, size_px=512)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_areas", write_small_areas)
        patch.setattr(run, "SETTINGS", run.SETTINGS | {"steps_per_epoch": 2})
        patch.setattr(run, "SOURCE_EPOCHS", 1)
        patch.setattr(run, "TARGET_EPOCHS", 1)
        patch.setattr(run, "MODES", ("zero_shot", "head_only", "pixel_forest"))
        patch.setattr(run, "LABELS", ("2tiles",))
        patch.setattr(run, "DRAWS", 1)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run.run_demo(tmp_path_factory.mktemp("demo") / "demo")


@pytest.mark.slow
def test_all_that_the_demo_points_at_is_there(finished):
    for path, _ in finished.list_sights():
        assert path.stat().st_size > 0
    assert len(finished.summary["budgets"][0]["modes"]) == 3
    assert json.dumps(finished.to_json())


@pytest.mark.slow
def test_a_second_call_repeats_nothing(finished):
    model = finished.out_dir / "runs" / "area_1" / "model.keras"
    written_at = model.stat().st_mtime_ns
    second = run.run_demo(finished.out_dir)
    assert second.summary == finished.summary
    assert model.stat().st_mtime_ns == written_at


@pytest.mark.slow
def test_another_seed_in_the_same_folder_is_refused(finished):
    with pytest.raises(ConflictError, match="seed was 0, is 1"):
        run.run_demo(finished.out_dir, seed=1)


def test_the_demo_compares_with_both_baselines():
    cells = plan_cells(MODES, parse_budgets(run.LABELS), run.DRAWS, seed=0)
    assert {"scratch", "pixel_forest"} <= {cell.mode for cell in cells}
