"""Small arithmetic for derived bands, such as `(nir - red) / (nir + red)`.

A formula is parsed into a tree of which every node is on a short list, and never
given to `eval`. Its length, depth and exponents are bounded, so that no formula
takes long. What has no value (a division by zero, the root of a negative number)
is NaN in the result, whatever stands around it.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError

MAX_LENGTH: Final = 500
"""Characters that a formula may have."""
MAX_DEPTH: Final = 60
"""How many operations may stand inside one another."""
MAX_EXPONENT: Final = 16.0
"""The largest exponent, up or down."""

Values = npt.NDArray[np.float32]
_Wide = npt.NDArray[np.float64]

_OPERATORS: Final[Mapping[type[ast.operator], Callable[[_Wide, _Wide], _Wide]]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_FUNCTIONS: Final[Mapping[str, Callable[[_Wide], _Wide]]] = {
    "abs": np.abs,
    "log": np.log,
    "sqrt": np.sqrt,
}
_CHOICES: Final[Mapping[str, Callable[[_Wide, _Wide], _Wide]]] = {
    "max": np.maximum,
    "min": np.minimum,
}
_ALLOWED: Final = (
    "Allowed are numbers, names of bands, + - * / **, parentheses and the functions "
    f"{', '.join(sorted({*_FUNCTIONS, *_CHOICES}))}. An exponent is a number from "
    f"-{MAX_EXPONENT:g} to {MAX_EXPONENT:g}, and not 0."
)
_FOREIGN: Final = re.compile(r"[^\w .,()+\-*/]")
_LARGEST: Final = float(np.finfo(np.float32).max)

_Problem = tuple[ast.expr, str]


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A derived band. Get one from `parse_formula`."""

    text: str
    """The formula, each run of spaces and line ends one space."""
    names: tuple[str, ...]
    """Names of the bands that it uses, in the order in which they first stand."""
    tree: ast.expr = field(repr=False, compare=False)
    """What `parse_formula` made of the text: only nodes that it allows."""

    def evaluate(self, values: Mapping[str, npt.NDArray[np.number]]) -> Values:
        """Compute the derived band.

        Args:
            values: The values of each band, arrays of one shape.

        Returns:
            The derived band, of the same shape. It is computed in float64, so that
            differences of large values keep their digits. NaN where it has no
            value, or one that float32 cannot hold.

        Raises:
            DataError: If a band is not there.
        """
        problems = list(_find_unknown_bands(self.tree, values))
        if problems:
            _refuse(self.text, problems)
        with np.errstate(all="ignore"):
            wide = _compute(self.tree, values)
            narrow = wide.astype("float32")
            return np.where(np.isfinite(narrow), narrow, np.float32(np.nan))


def parse_formula(text: str, bands: Collection[str] | None = None) -> Formula:
    """Read a formula and check that it is one.

    Args:
        text: Numbers, band names, `+ - * / **` with a constant exponent, unary minus,
            parentheses, and the functions abs, log (natural), max, min and sqrt.
        bands: The bands that there are. None leaves that to `Formula.evaluate`.

    Returns:
        The formula.

    Raises:
        DataError: If it holds anything else, no band or an unknown one. The message
            quotes the formula, marks what is wrong and says what is allowed.

    Example:
        >>> ndvi = parse_formula("(nir - red) / (nir + red)")
        >>> ndvi.names
        ('nir', 'red')
        >>> ndvi.evaluate({"nir": np.array([3.0, 0.0]), "red": np.array([1.0, 0.0])})
        array([0.5, nan], dtype=float32)
    """
    text = " ".join(text.split())
    tree = _parse(text)
    problems = list(_find_problems(tree))
    if not problems and bands is not None:
        problems = list(_find_unknown_bands(tree, bands))
    if problems:
        _refuse(text, problems)
    names = tuple(dict.fromkeys(node.id for node in _iterate_bands(tree)))
    if not names:
        _refuse(text, [(tree, "It names no band, so it is the same everywhere.")])
    return Formula(text=text, names=names, tree=tree)


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise DataError(
            f"A formula has {len(text)} characters, at most {MAX_LENGTH} are possible: "
            f"{text[:40]}... Write it as several derived bands."
        )
    foreign = _FOREIGN.search(text)
    if foreign:
        problem = f"{foreign.group()!r} has no meaning here."
        raise DataError(_write_message(text, {foreign.start()}, [problem]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "2red": the error says more
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = min(error.offset or len(text), len(text)) - 1  # counted from 1
        problem = f"It is no arithmetic: {error.msg}."
        message = _write_message(text, {place}, [problem])
        raise DataError(message) from error
    except (MemoryError, RecursionError, ValueError) as error:
        problem = f"It cannot be read: {error}."
        raise DataError(_write_message(text, set(), [problem])) from error


def _find_problems(node: ast.expr, depth: int = 1) -> Iterator[_Problem]:
    if depth > MAX_DEPTH:
        yield node, f"More than {MAX_DEPTH} operations stand inside one another here."
        return
    problem = _check_node(node)
    if problem:
        yield problem
    parts = _list_parts(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        parts = parts[:1]
    for part in parts:
        yield from _find_problems(part, depth + 1)


def _check_node(node: ast.expr) -> _Problem | None:
    match node:
        case ast.Name() | ast.UnaryOp(op=ast.USub()):
            return None
        case ast.Constant():
            wrong = math.isnan(_get_number(node))
            return (node, f"It is no number up to {_LARGEST:.2g}.") if wrong else None
        case ast.BinOp(op=ast.Pow(), right=right):
            wrong = not 0 < abs(_get_number(right)) <= MAX_EXPONENT
            return (right, "This is no exponent that is allowed.") if wrong else None
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            return None
        case ast.Call(func=ast.Name(id=name) as func, args=args, keywords=[]):
            problem = _check_call(name, len(args))
            return (func, problem) if problem else None
    return node, f"`{ast.unparse(node)}` is none of what is allowed."


def _list_parts(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Call(args=args):
            return args
    return []


def _check_call(name: str, num_arguments: int) -> str | None:
    if name in _FUNCTIONS:
        return None if num_arguments == 1 else f"{name} takes one value."
    if name in _CHOICES:
        return None if num_arguments > 1 else f"{name} takes two values or more."
    near = difflib.get_close_matches(name, [*_FUNCTIONS, *_CHOICES], n=1, cutoff=0.0)
    return f"`{name}` is no known function; the nearest is `{near[0]}`."


def _get_number(node: ast.expr) -> float:
    """Return the number that a node writes, or NaN: nothing is computed for it."""
    match node:
        case ast.Constant(value=bool()):
            return math.nan
        case ast.Constant(value=int() | float() as value) if value <= _LARGEST:
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
            return -_get_number(operand)
    return math.nan


def _iterate_bands(node: ast.expr) -> Iterator[ast.Name]:
    if isinstance(node, ast.Name):
        yield node
    for part in _list_parts(node):
        yield from _iterate_bands(part)


def _find_unknown_bands(tree: ast.expr, bands: Collection[str]) -> Iterator[_Problem]:
    unknown = [node for node in _iterate_bands(tree) if node.id not in bands]
    for node in unknown:
        near = difflib.get_close_matches(node.id, bands, n=1, cutoff=0.0)
        nearest = f"; the nearest is `{near[0]}`" if near else ""
        yield node, f"`{node.id}` is no band{nearest}."
    for node in unknown:
        yield node, f"Bands are {', '.join(bands) or 'none'}."


def _compute(node: ast.expr, values: Mapping[str, npt.NDArray[np.number]]) -> _Wide:
    match node:
        case ast.Name(id=name):
            return np.asarray(values[name], "float64")
        case ast.Constant(value=int() | float() as value):
            # A NumPy number: one of Python's would raise where this gives NaN.
            return np.asarray(value, "float64")
        case ast.UnaryOp(operand=operand):
            return np.negative(_compute(operand, values))
        case ast.BinOp(left=left, op=op, right=right):
            combine = _OPERATORS[type(op)]
            both = combine(_compute(left, values), _compute(right, values))
            return _blank(both) if isinstance(op, ast.Div | ast.Pow) else both
        case ast.Call(func=ast.Name(id=name), args=args):
            first, *others = (_compute(argument, values) for argument in args)
            if name in _FUNCTIONS:
                return _blank(_FUNCTIONS[name](first))
            for other in others:
                first = _CHOICES[name](first, other)
            return first
    message = f"{ast.dump(node)} passed the check of a formula"
    raise AssertionError(message)


def _blank(values: _Wide) -> _Wide:
    """Turn infinity into NaN at once: 1 / (1 / 0) would come out as 0."""
    return np.where(np.isfinite(values), values, np.nan)


def _refuse(text: str, problems: Collection[_Problem]) -> NoReturn:
    line = text.encode()
    marks: set[int] = set()
    for node, _ in problems:
        # The tree counts bytes.
        start = len(line[: node.col_offset].decode())
        end = len(line[: node.end_col_offset].decode())
        marks.update(range(start, end))
    sentences = dict.fromkeys(sentence for _, sentence in problems)
    raise DataError(_write_message(text, marks, sentences))


def _write_message(text: str, marks: set[int], sentences: Collection[str]) -> str:
    carets = ("^" if i in marks else " " for i in range(len(text)))
    return (
        f"A formula cannot be used. {' '.join(sentences)}\n"
        f"    {text}\n    {''.join(carets).rstrip()}\n{_ALLOWED}"
    )
