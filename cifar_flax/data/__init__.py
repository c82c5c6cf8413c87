"""A data set of small images, from wherever it can be had, to the images that a step trains on.

In: CIFAR-10, verified byte for byte (`sources`, `layout`), its embedded sample (`sample`), or any other set by its
name or path (`datasets`). Out: uint8 images `[N, size, size, 3]` and int32 labels; normalised (`spec`) and augmented
(`augment`) float images.
"""

from cifar_flax.data.datasets import open_dataset
from cifar_flax.data.layout import VerificationError, decode_batch, encode_batch
from cifar_flax.data.sources import (
    SOURCES,
    SourceUnavailableError,
    default_data_dir,
    load_cifar10,
)
from cifar_flax.data.spec import CIFAR10, Dataset, DataSpec, Split, whole_split

__all__ = [
    "CIFAR10",
    "SOURCES",
    "DataSpec",
    "Dataset",
    "SourceUnavailableError",
    "Split",
    "VerificationError",
    "decode_batch",
    "default_data_dir",
    "encode_batch",
    "load_cifar10",
    "open_dataset",
    "whole_split",
]
