"""Formulas: numpy's results, and nothing but arithmetic."""

from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropseg.errors import DataError
from cropseg.sites.formula import (
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_LENGTH,
    parse_formula,
)

quick = settings(max_examples=200, deadline=None)
NAMES = ("nir", "red", "nir_0615", "größe")
numbers = st.floats(-100, 100, width=32)


def make_bands(shape=(5, 3)):
    rng = np.random.default_rng(0)
    return {name: rng.uniform(1, 4000, shape).astype("float32") for name in NAMES}


@pytest.mark.parametrize(
    ("text", "expected"),  # of nir and red
    [
        ("(nir - red) / (nir + red)", lambda n, r: (n - r) / (n + r)),
        ("nir - red - 1", lambda n, r: n - r - 1),
        ("-nir ** 2 + 2.5", lambda n, _: -(n**2) + 2.5),
        ("nir ** -0.5 * red", lambda n, r: n**-0.5 * r),
        ("min(nir, red, 700)", lambda n, r: np.minimum(np.minimum(n, r), 700)),
        ("max(nir, red) - nir", lambda n, r: np.maximum(n, r) - n),
        ("abs(red - nir)", lambda n, r: np.abs(r - n)),
        ("sqrt(nir) + log(red)", lambda n, r: np.sqrt(n) + np.log(r)),
        ("1e-3 * nir + .5", lambda n, _: 1e-3 * n + 0.5),
    ],
)
def test_a_formula_gives_what_numpy_gives(text, expected):
    bands = make_bands()
    nir, red = (bands[name].astype("float64") for name in ("nir", "red"))

    result = parse_formula(text).evaluate(bands)

    assert result.dtype == np.float32
    assert result.shape == nir.shape
    np.testing.assert_array_equal(result, expected(nir, red).astype("float32"))


def combine(parts):
    pairs = st.tuples(parts, parts)
    return st.one_of(
        parts.map("(-{})".format),
        parts.map("abs({})".format),
        pairs.map(lambda pair: "({} + {})".format(*pair)),
        pairs.map(lambda pair: "({} - {})".format(*pair)),
        pairs.map(lambda pair: "({} * {})".format(*pair)),
        pairs.map(lambda pair: "({} / {})".format(*pair)),
        pairs.map(lambda pair: "min({}, {})".format(*pair)),
        parts.map("({})**2".format),
    )


leaves = st.sampled_from(["nir", "red", "nir_0615"]) | st.integers(0, 9).map(str)
formulas = st.recursive(leaves, combine, max_leaves=8)


@given(text=formulas, nir=numbers, red=numbers, other=numbers)
@quick
def test_a_formula_gives_what_python_gives(text, nir, red, other):
    values = {"nir": nir, "red": red, "nir_0615": other}
    arrays = {name: np.full((2, 3), v, "float32") for name, v in values.items()}
    text = f"nir + 0 * red + {text}"
    try:
        expected = eval(text, {"min": min, "abs": abs}, values)  # noqa: S307
    except ZeroDivisionError:
        expected = math.nan

    result = parse_formula(text).evaluate(arrays)

    if abs(expected) > float(np.finfo("float32").max):
        expected = math.nan
    np.testing.assert_array_equal(result, np.full((2, 3), expected, "float32"))


def test_names_are_the_bands_in_the_order_in_which_they_first_stand():
    formula = parse_formula("max(red, nir_0615) / red -\n  größe * nir_0615")

    assert formula.names == ("red", "nir_0615", "größe")
    assert formula.text == "max(red, nir_0615) / red - größe * nir_0615"


@pytest.mark.parametrize(
    "text",
    [
        "1 / nir",
        "nir / nir",
        "1 / (1 / nir)",
        "1 / log(nir)",
        "nir ** -1",
        "1 / nir ** -2",
        "log(nir - 1)",
        "sqrt(nir - 1)",
        "min(5, 1 / nir)",
        "max(5, 1 / nir)",
        "(nir + 1e38) * 1e38",
        "1 / ((nir + 1e38) ** 16)",
    ],
)
def test_what_has_no_value_is_nan_and_nothing_warns(text):
    nir = np.array([[0, 2, 0]], "float32")

    result = parse_formula(text).evaluate({"nir": nir})

    assert np.isnan(result[0, [0, 2]]).all()


def test_nan_goes_through_every_operation():
    nir = np.array([math.nan, 1], "float32")
    red = np.array([1, 1], "float32")
    for text in ("abs(nir)", "min(red, nir)", "max(nir, red)", "nir ** 2", "0 * nir"):
        result = parse_formula(text).evaluate({"nir": nir, "red": red})
        assert np.isnan(result).tolist() == [True, False]


def test_integer_bands_neither_wrap_nor_round():
    bands = {
        "nir": np.array([10, 250], "uint8"),
        "red": np.array([20, 250], "uint8"),
    }

    result = parse_formula("(nir - red) / (nir + red)").evaluate(bands)

    np.testing.assert_allclose(result, [-1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("nir +", "+"),
        ("nir red", "r"),
        ("(nir", "("),
        ("2red", "2"),
        ("nir[0]", "["),
        ("größe + nir # red", "#"),
        ("größe + 'nir'", "'"),
        ("größe + nir.real", "nir.real"),
        ("größe + nir // red", "nir // red"),
        ("größe if nir else red", "größe if nir else red"),
        ("nir and red", "nir and red"),
        ("+nir", "+nir"),
        ("not nir", "not nir"),
        ("nir, red", "nir, red"),
        ("2 * True", "True"),
        ("2j * nir", "2j"),
        ("1e39 * nir", "1e39"),
        ("größe + foo(nir)", "foo"),
        ("größe + __import__(nir)", "__import__"),
        ("nir.max(red)", "nir.max(red)"),
        ("min(nir)", "min"),
        ("sqrt(nir, red)", "sqrt"),
        ("abs()", "abs"),
        ("min(*nir, red)", "*nir"),
        ("nir ** red", "red"),
        ("nir ** 17", "17"),
        ("nir ** 0", "0"),
        ("nir ** True", "True"),
        ("9**9**9 * nir", "9**9"),
        ("nir ** (2 * 3)", "2 * 3"),
        ("7 + 5", "7 + 5"),
    ],
)
def test_anything_else_is_refused_and_marked(text, marked):
    with pytest.raises(DataError) as caught:
        parse_formula(text)

    _, line, carets, allowed = str(caught.value).split("\n")
    assert line.strip() == text
    first = carets.index("^")
    assert line[first : len(carets)] == marked
    assert "abs, log, max, min, sqrt" in allowed


def test_an_unknown_band_is_marked_with_the_nearest_and_all_that_there_are():
    with pytest.raises(DataError) as caught:
        parse_formula("(nir - rde) / (größe + bleu)", bands=("blue", "red", "nir"))

    first, _, carets, _ = str(caught.value).split("\n")
    assert "`rde` is no band; the nearest is `red`." in first
    assert "`bleu` is no band; the nearest is `blue`." in first
    assert first.endswith("`blue`. Bands are blue, red, nir.")
    assert carets == "           ^^^     ^^^^^   ^^^^"


def test_a_band_that_is_missing_when_it_is_computed_is_named():
    formula = parse_formula("nir - red")

    with pytest.raises(DataError, match="`red` is no band; the nearest is `nir`"):
        formula.evaluate({"nir": np.zeros((2, 3), "float32")})
    with pytest.raises(DataError, match="Bands are none"):
        formula.evaluate({})


def test_an_unknown_function_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"`sqr` is no known function.* `sqrt`"):
        parse_formula("sqr(nir)")


@pytest.mark.parametrize(
    "text",
    [
        "-" * (MAX_LENGTH - 3) + "nir",
        "(" * 240 + "nir" + ")" * 240,
        "abs(" * 80 + "nir" + ")" * 80,
        "nir" + "**9" * 150,
        "nir * " + "9" * (MAX_LENGTH - 6),
        "nir" + "+nir" * 120,
        "nir" + " + nir" * 100_000,
        "",
        "nir * \0",
    ],
)
def test_a_formula_that_is_too_much_is_refused_at_once(text):
    start = time.perf_counter()

    with pytest.raises(DataError) as caught:
        parse_formula(text)

    assert time.perf_counter() - start < 1
    assert len(str(caught.value)) < 4 * MAX_LENGTH


def test_as_much_as_is_allowed_can_be_computed():
    deep = "nir" + "+nir" * (MAX_DEPTH - 1)
    high = f"(nir ** {MAX_EXPONENT:g}) ** -{MAX_EXPONENT:g}"
    for text, expected in ((deep, MAX_DEPTH), (high, 1.0)):
        result = parse_formula(text).evaluate({"nir": np.ones((2, 3), "float32")})
        np.testing.assert_array_equal(result, np.full((2, 3), expected))


def test_a_formula_reaches_another_process_and_equals_itself():
    formula = parse_formula("nir - red")
    bands = make_bands()

    copy = pickle.loads(pickle.dumps(formula))  # noqa: S301

    assert copy == formula
    assert hash(copy) == hash(formula)
    assert copy != parse_formula("red - nir")
    np.testing.assert_array_equal(copy.evaluate(bands), formula.evaluate(bands))
