"""cropseg: semantic segmentation of aerial crop images, and its transfer to new areas.

The public names are below. Those that need Keras are imported when first used, so
that `import cropseg` and checking data take no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cropseg.sites.site import Site, open_site

if TYPE_CHECKING:
    from cropseg.comparison.compare import compare_modes
    from cropseg.comparison.refit import refit_like
    from cropseg.inference.evaluate import evaluate_model
    from cropseg.inference.export.conversion import export_model
    from cropseg.inference.mapping.predict import predict_scenes
    from cropseg.models.foreign import ForeignDescription
    from cropseg.training.train import train_site
    from cropseg.transfer.advice import advise_transfer
    from cropseg.transfer.find_rate import find_learning_rate
    from cropseg.transfer.target import ReuseOptions
    from cropseg.transfer.transfer import transfer_to_site

_HOMES = {
    "ForeignDescription": "cropseg.models.foreign",
    "ReuseOptions": "cropseg.transfer.target",
    "advise_transfer": "cropseg.transfer.advice",
    "compare_modes": "cropseg.comparison.compare",
    "evaluate_model": "cropseg.inference.evaluate",
    "export_model": "cropseg.inference.export.conversion",
    "find_learning_rate": "cropseg.transfer.find_rate",
    "predict_scenes": "cropseg.inference.mapping.predict",
    "refit_like": "cropseg.comparison.refit",
    "train_site": "cropseg.training.train",
    "transfer_to_site": "cropseg.transfer.transfer",
}

__all__ = [
    "ForeignDescription",
    "ReuseOptions",
    "Site",
    "advise_transfer",
    "compare_modes",
    "evaluate_model",
    "export_model",
    "find_learning_rate",
    "open_site",
    "predict_scenes",
    "refit_like",
    "train_site",
    "transfer_to_site",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_HOMES[name]), name)
