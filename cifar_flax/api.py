"""What `import cifar_flax` offers: a network to ask, a data set to open, a run to train, an analysis to save.

Each name is imported when it is first used, so that the import itself is quick.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cifar_flax.config import PRESETS, Config
from cifar_flax.data import Dataset, DataSpec, open_dataset
from cifar_flax.errors import UserError
from cifar_flax.explaining.analysis import Analysis, EvaluationOptions, Selection, analyse
from cifar_flax.explaining.maps import Maps
from cifar_flax.explaining.network import Network, load
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.training import loop
from cifar_flax.training.beginning import Beginning


def fit(
    config: Config,
    dataset: Dataset,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Trains a network, and keeps the run in a folder, which `load` takes.

    Args:
      config: what to do, for instance `dataclasses.replace(cifar_flax.PRESETS["smoke"], epochs=2)`.
      dataset: the images.
      folder: the run directory, made if absent.
      resume: go on with the run in that folder, if there is one.
      augment: a function of a key and normalised images `[B, H, W, 3]` that JAX can trace, in place of the config's
        crop, rotation, cutout and flip.
      on_epoch: called with the row of each epoch, once it is done.

    Returns:
      A dict for each epoch: losses, accuracies, learning rate.

    Raises:
      UserError: the folder holds a run and `resume` is false; the images are not what the data set says; or a loss
        is not finite.
    """

    if not callable(on_epoch):
        raise UserError(f"on_epoch is {on_epoch!r}: expected a function of a row")
    begun = False

    def tell(state: Beginning) -> None:
        nonlocal begun
        if begun:
            on_epoch(dict(state.progress.rows[-1]))
        begun = True

    return loop.fit(config, dataset, Path(folder), resume=resume, augment=augment, on_progress=tell)
