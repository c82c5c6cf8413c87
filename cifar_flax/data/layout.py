"""The official binary distribution of CIFAR-10: its arrays, its records and its checksums."""

import hashlib
import math

import numpy as np

from cifar_flax.data.spec import CIFAR10, Dataset, whole_split
from cifar_flax.errors import UserError

# Its six files, in their order, and their MD5 sums.
BATCHES = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
BATCH_SIZE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32
BATCH_BYTES = BATCH_SIZE * RECORD_BYTES


class VerificationError(UserError):
    """A source whose bytes are not those of the official distribution."""


def encode_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Records of the official binary layout: a label byte, then 3,072 pixel bytes, R, G and B planes.

    Args:
      images: uint8 `[N, 32, 32, 3]`.
      labels: integers `[N]`, in [0, 256).
    """
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1).tobytes()


def decode_batch(records: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode_batch`: uint8 images `[N, 32, 32, 3]` and int32 labels `[N]`."""
    table = np.frombuffer(records, np.uint8).reshape(-1, RECORD_BYTES)
    images = empty_aligned((len(table), 32, 32, 3))
    images[...] = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, table[:, 0].astype(np.int32)


def empty_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array at an address that 64 divides: JAX's CPU devices share it; at another, each would have a copy."""
    size = math.prod(shape)
    buffer = np.empty(size + 63, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].reshape(shape)


def verified(batches: dict[str, bytes], source: str) -> dict[str, bytes]:
    for name, expected in BATCHES.items():
        actual = hashlib.md5(batches[name]).hexdigest()
        if actual != expected:
            raise VerificationError(
                f"{source}: {name} is not the official CIFAR-10 (MD5 {actual}, expected {expected}); "
                "delete it or choose another --source"
            )
    return batches


def to_dataset(batches: dict[str, bytes]) -> Dataset:
    train = decode_batch(b"".join(batches[name] for name in list(BATCHES)[:5]))
    return Dataset(CIFAR10, whole_split(*train), whole_split(*decode_batch(batches["test_batch"])))
