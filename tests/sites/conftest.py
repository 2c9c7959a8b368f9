"""Vector files for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import pytest
import shapely


@pytest.fixture(scope="session")
def write_shapes():
    """Return a function that writes a vector file; see `_write_shapes`."""
    return _write_shapes


def _write_shapes(
    path: Path, shapes: Sequence[Any], *, crs: Any = "EPSG:32614", **columns: Any
) -> Path:
    """Write shapes and their fields; `crop` is 1, 2, 3, ... if not given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = columns or {"crop": list(range(1, len(shapes) + 1))}
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    if path.suffix in {".parquet", ".geoparquet"}:
        frame.to_parquet(path)
    elif path.suffix in {".geojson", ".json"}:
        frame.to_file(path, driver="GeoJSON", engine="pyogrio", RFC7946="NO")
    else:
        frame.to_file(path, engine="pyogrio")
    return path


@pytest.fixture(scope="session")
def write_geojson():
    """Return a function that writes a GeoJSON file as it is given."""

    def write(path: Path, *features: Mapping[str, Any], **members: Any) -> Path:
        document = {"type": "FeatureCollection", "features": list(features)} | members
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def make_feature():
    """Return a function that makes a feature of GeoJSON from a shape, or from None."""

    def make(shape: Any, **properties: Any) -> dict[str, Any]:
        geometry = shape and shapely.geometry.mapping(shape)
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    return make
