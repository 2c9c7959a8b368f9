"""What computes a training: told, and refused where it changes."""

from __future__ import annotations

import pytest

from cropseg.errors import ConflictError
from cropseg.runtime import keras
from cropseg.training import computing
from cropseg.training.computing import describe_computing, refuse_other_computing


@pytest.fixture
def on(monkeypatch):
    """Return a function that lets this process seem to run somewhere else."""

    def move(backend, precision):
        monkeypatch.setattr(keras.backend, "backend", lambda: backend)
        auto = {"auto": precision}
        monkeypatch.setattr(computing, "resolve_precision", lambda p: auto.get(p, p))

    return move


def test_auto_is_told_as_what_it_is(on):
    on("jax", "bfloat16")

    assert describe_computing("auto") == {"backend": "jax", "precision": "bfloat16"}
    assert describe_computing("float32")["precision"] == "float32"


PLACES = [("tensorflow", "float32"), ("jax", "float32"), ("tensorflow", "bfloat16")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_only_what_was_computed_alike_goes_on(on, place, other):
    on(*place)
    found = describe_computing("auto")
    on(*other)

    if place == other:
        refuse_other_computing(found, "auto", "it")
    else:
        with pytest.raises(ConflictError, match="it was computed in another way"):
            refuse_other_computing(found, "auto", "it")


def test_what_is_not_told_does_not_count(on):
    """A run that trains nothing is scored in float32 whatever the settings are."""
    on("tensorflow", "bfloat16")

    refuse_other_computing({"backend": "tensorflow"}, "auto", "it")


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_earlier_versions_computed_on_tensorflow_on_a_cpu(on, precision):
    on("tensorflow", "float32")
    refuse_other_computing(None, precision, "it")
    on("jax", "float32")
    with pytest.raises(ConflictError, match="backend was tensorflow, is jax"):
        refuse_other_computing(None, precision, "it")
    on("tensorflow", "bfloat16")
    if precision == "auto":
        with pytest.raises(ConflictError, match="precision was float32, is bfloat16"):
            refuse_other_computing(None, precision, "it")
    else:
        refuse_other_computing(None, precision, "it")
