"""A site at another ground sampling distance than its own."""

from __future__ import annotations

from dataclasses import replace

from cropseg.sites.site import Site
from cropseg.sites.warp import choose_grid


def resample_site(site: Site, gsd_m: float) -> Site:
    """Return a site whose scenes are read at another GSD.

    This is what `gsd_m` in its manifest would do.

    Args:
        site: The site.
        gsd_m: Metres per pixel.
    """
    scenes = tuple(
        replace(
            scene,
            image=replace(
                scene.image,
                grid=choose_grid(
                    scene.image.native_grid, crs=scene.grid.crs, gsd_m=gsd_m
                ),
            ),
        )
        for scene in site.scenes
    )
    manifest = site.manifest.model_copy(update={"gsd_m": gsd_m})
    return replace(site, scenes=scenes, manifest=manifest)
