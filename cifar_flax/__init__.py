"""A LayerNorm-only ResNet for small images in pure-function JAX, and an explanation of its mistakes."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cifar_flax.api import (
        PRESETS,
        Analysis,
        Config,
        Dataset,
        DataSpec,
        EvaluationOptions,
        Maps,
        Network,
        Predictions,
        Selection,
        analyse,
        fit,
        load,
        open_dataset,
    )

# What `cifar_flax.api` offers: imported when one of them is first used.
__all__ = [
    "PRESETS",
    "Analysis",
    "Config",
    "DataSpec",
    "Dataset",
    "EvaluationOptions",
    "Maps",
    "Network",
    "Predictions",
    "Selection",
    "analyse",
    "fit",
    "load",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cifar_flax' has no attribute {name!r}")
    return getattr(importlib.import_module("cifar_flax.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
