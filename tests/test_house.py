"""What the package imports is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


class Import(NamedTuple):
    file: str
    package: str
    at_start: bool
    """Whether importing the file runs this import."""


def find_imports(path: Path) -> list[Import]:
    """Return the third-party packages that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        packages = {name.partition(".")[0] for name in names}
        found += [
            Import(str(path.relative_to(ROOT)), package, id(node) not in late)
            for package in sorted(packages - {"cropseg", *sys.stdlib_module_names})
        ]
    return found


def get_names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


IMPORTS = [
    found
    for path in sorted((ROOT / "cropseg").rglob("*.py"))
    for found in find_imports(path)
]
DECLARED = get_names(PROJECT["dependencies"])
DISTRIBUTIONS = packages_distributions()
OPTIONAL = get_names(
    [*EXTRAS["openvino"], *EXTRAS["cluster"], *EXTRAS["onnx"]],
)


def get_distributions(package: str) -> set[str]:
    """Return the distributions that may bring a package, its own name included."""
    names = DISTRIBUTIONS.get(package, [])
    return {canonicalize_name(name) for name in (*names, package)}


def test_an_import_inside_a_function_is_told_from_one_at_the_start(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "a.py").write_text(
        "import os, numpy.linalg\n"
        "from yaml import safe_load\n"
        "from . import sibling\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "def late():\n    from openvino import Core\n"
    )
    assert sorted(find_imports(tmp_path / "a.py")) == [
        ("a.py", "numpy", True),
        ("a.py", "openvino", False),
        ("a.py", "pandas", False),
        ("a.py", "yaml", True),
    ]


def test_every_import_is_declared():
    assert IMPORTS
    undeclared = [
        found
        for found in IMPORTS
        if not get_distributions(found.package)
        & (DECLARED if found.at_start else DECLARED | OPTIONAL)
    ]
    assert not undeclared


def test_everything_declared_is_imported_or_wanted_by_name():
    used = {name for found in IMPORTS for name in get_distributions(found.package)}
    # importlib.import_module in models/zoo.py; geopandas, for GeoParquet
    by_name = {"segmentation-models", "pyarrow"}
    assert not DECLARED - used - by_name


@pytest.mark.parametrize(
    "text",
    [
        *PYPROJECT["build-system"]["requires"],
        *PROJECT["dependencies"],
        *(text for extra in EXTRAS.values() for text in extra),
    ],
)
def test_every_declared_dependency_has_a_pin_that_it_allows(text):
    requirement = Requirement(text)
    pins = dict(line.split("==") for line in PINS)
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    version = versions.get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} has no line in constraints.txt"
    assert requirement.specifier.contains(version)


def test_constraints_are_names_and_versions_in_order():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in PINS)
    assert sorted(PINS, key=str.lower) == PINS
    names = [canonicalize_name(line.partition("==")[0]) for line in PINS]
    assert len(set(names)) == len(names)
    assert not {"pip", "cropseg"} & set(names)


def test_every_dependency_has_its_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\ndependencies = [\n")[1].split("\n]")[0]
    assert all("# " in line for line in block.splitlines())


def test_every_ignored_rule_has_its_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\nignore = [\n")[1].split("\n]")[0]
    assert all("# " in line for line in block.splitlines())
