"""Bands by name, whatever their order in a file, and those computed from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cropseg.sites.formula import Formula, parse_formula
from cropseg.sites.grid import Window
from cropseg.sites.raster import Pixels
from cropseg.sites.warp import BandSource


@dataclass(frozen=True)
class BandReader:
    """Reads named bands of an image."""

    source: BandSource
    """The open image."""
    names: tuple[str, ...]
    """Names of its bands, in file order."""
    wanted: tuple[str, ...]
    """Names of the bands to read, in the order wanted."""
    derived: Mapping[str, str]
    """Formulas of the bands that are computed."""

    def read_pixels(self, window: Window) -> Pixels:
        """Read the wanted bands in a window, which may reach over the edge.

        A pixel at which a formula has no value is invalid.
        """
        pixels = self.source.read(window, [self.names.index(n) for n in self._stored])
        if not self._formulas:
            return pixels
        planes = {name: pixels.values[..., i] for i, name in enumerate(self._stored)}
        planes |= {n: formula.evaluate(planes) for n, formula in self._formulas.items()}
        with np.errstate(over="ignore"):  # what float32 cannot hold is invalid
            wanted = [planes[name].astype(np.float32) for name in self.wanted]
        values = np.stack(wanted, axis=-1)
        valid = pixels.valid & np.isfinite(values).all(axis=-1)
        values[~valid] = 0
        return Pixels(values=values, valid=valid)

    @cached_property
    def _formulas(self) -> dict[str, Formula]:
        return {
            name: parse_formula(self.derived[name])
            for name in self.wanted
            if name in self.derived
        }

    @cached_property
    def _stored(self) -> tuple[str, ...]:
        """The bands to read from the file: in the order wanted, then for formulas."""
        stored = [name for name in self.wanted if name not in self.derived]
        for formula in self._formulas.values():
            stored += [name for name in formula.names if name not in stored]
        return tuple(stored)
