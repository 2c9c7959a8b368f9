"""A target site, and a stub that stands for fitting a network."""

from __future__ import annotations

import pytest

from cropseg.sites.site import open_site


@pytest.fixture(scope="session")
def area_2(make_site, tmp_path_factory):
    return open_site(
        make_site(
            tmp_path_factory.mktemp("sites") / "area_2",
            class_names=("corn", "water", "soybeans"),
            seed=1,
        )
    )


class FakeFit:
    """Stands for `fit_model`: takes no time and remembers what it was given."""

    def __init__(self):
        self.jobs = []
        self.raises = {}
        """What to raise at which call, counted from 0."""

    def __call__(self, job):
        from cropseg.training.fit import FitResult
        from cropseg.training.history import Epoch

        self.jobs.append(job)
        error = self.raises.pop(len(self.jobs) - 1, None)
        if error:
            raise error
        epoch = Epoch(
            epoch=1, step=2, loss=1.0, learning_rate=0.1, val_miou=None, seconds=0.5
        )
        return FitResult(losses=(1.0, 1.0), epochs=(epoch,))


@pytest.fixture
def fake_fit(monkeypatch):
    fake = FakeFit()
    monkeypatch.setattr("cropseg.training.run.fit_model", fake)
    return fake


@pytest.fixture(scope="session")
def make_fake_fit():
    return FakeFit
