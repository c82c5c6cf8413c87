"""What `import cifar_flax` offers: a network to ask, a data set to open, a run to train, an analysis to save.

Each name is imported when it is first used, so that the import itself is quick.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cifar_flax import data
from cifar_flax.config import PRESETS, Config
from cifar_flax.data import Dataset, DataSpec
from cifar_flax.explaining.analysis import Analysis, EvaluationOptions, Selection, analyse
from cifar_flax.explaining.maps import Maps
from cifar_flax.explaining.network import Network, load
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.training import loop

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


def open_dataset(
    name: str | os.PathLike = "cifar10",
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    skip_broken: bool = False,
) -> Dataset:
    """Opens a data set.

    Args:
      name: `cifar10`, all of it, downloaded if need be; `sample`, the 2,000 images that come with this package;
        `cifar100`; `tfds:NAME`, prepared by TensorFlow Datasets; or a path: a folder of pictures with a folder a
        class, a .npz or .parquet file, or a folder of IDX or Parquet files.
      data_dir: where CIFAR and TFDS's sets are looked for and kept.
      image_size: 8 to 96 pixels on a side; None for the images' own size if they are squares of one size up to 64
        pixels, else 32.
      report: called with a line of text as work goes on.
      skip_broken: leave out pictures that cannot be read.

    Raises:
      UserError: there is none of that name, or it cannot be had.

    Example:
      >>> import cifar_flax
      >>> sample = cifar_flax.open_dataset("sample")
      >>> sample.test.images.shape, sample.spec.class_names[3]
      ((1000, 32, 32, 3), 'cat')
    """
    return data.open_dataset(name, data_dir=data_dir, image_size=image_size, report=report, skip_broken=skip_broken)


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
    return loop.fit(config, dataset, Path(folder), resume=resume, augment=augment, on_epoch=on_epoch)
