"""CIFAR-10, from wherever it can be had, to the images that a step trains on.

In: the official files, verified byte for byte (`sources`, `layout`), or the embedded sample (`sample`). Out: uint8
images `[N, 32, 32, 3]` and int32 labels; normalised (`normalization`) and augmented (`augment`) float images.
"""

from cifar_flax.data.layout import (
    CLASS_NAMES,
    Cifar10,
    VerificationError,
    decode_batch,
    encode_batch,
    require_images,
    require_labels,
)
from cifar_flax.data.normalization import MEAN, STD, denormalize, normalize
from cifar_flax.data.sample import sample_indices, write_sample
from cifar_flax.data.sources import SOURCES, SourceUnavailableError, default_data_dir, load_cifar10, load_named

__all__ = [
    "CLASS_NAMES",
    "MEAN",
    "SOURCES",
    "STD",
    "Cifar10",
    "SourceUnavailableError",
    "VerificationError",
    "decode_batch",
    "default_data_dir",
    "denormalize",
    "encode_batch",
    "load_cifar10",
    "load_named",
    "normalize",
    "require_images",
    "require_labels",
    "sample_indices",
    "write_sample",
]
