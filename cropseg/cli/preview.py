"""`cropseg preview`: pictures of a site."""

from __future__ import annotations

from cropseg.checks.quicklook import write_previews
from cropseg.cli.options import AllowRemote, Manifest, Out, Seed
from cropseg.cli.show import Output, console
from cropseg.files import check_out_dir
from cropseg.sites.site import open_site


def preview(
    manifest: Manifest,
    *,
    out: Out,
    allow_remote: AllowRemote = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Draw a site: images, labels, both, and its split, also for QGIS."""
    del seed
    check_out_dir(out)
    site = open_site(manifest, allow_remote=allow_remote or ())
    paths = [str(path) for path in write_previews(site, out)]
    output.show({"files": paths}, lambda: console.print(*paths, sep="\n"))
