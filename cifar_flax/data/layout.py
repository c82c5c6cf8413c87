"""The official binary distribution of CIFAR-10: its arrays, its records and its checksums."""

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from cifar_flax.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

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


class Cifar10(NamedTuple):
    """The data set in its official order.

    Attributes:
      train_images: uint8 `[N, 32, 32, 3]`, RGB in [0, 255].
      train_labels: int32 `[N]`, in [0, 10).
      test_images: uint8 `[M, 32, 32, 3]`.
      test_labels: int32 `[M]`.
      class_names: the ten names, by label.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def without_test(self) -> "Cifar10":
        """The training set alone: what a choice that must not see the test set is given."""
        return self._replace(test_images=self.test_images[:0], test_labels=self.test_labels[:0])


def require_images(images: Any, what: str = "images") -> np.ndarray:
    """The images as an array, if they are what a network is made for.

    Raises:
      UserError: they are not uint8 `[N, 32, 32, 3]`, one or more.
    """
    array = np.asarray(images)
    if array.shape[1:] != (32, 32, 3) or not len(array):
        one = "; one image is images[None]" if array.shape == (32, 32, 3) else ""
        raise UserError(f"{what} are of shape {list(array.shape)}: expected [N, 32, 32, 3], one or more{one}")
    if array.dtype != np.uint8:
        raise UserError(f"{what} are {array.dtype}: expected uint8, 0 to 255; the program itself divides by 255")
    return array


def require_labels(labels: Any, count: int, what: str = "labels") -> np.ndarray:
    """Labels as an array, if they are one class of ten for each of `count` images.

    Raises:
      UserError: they are not integers `[count]` in [0, 10).
    """
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what} are {array.dtype} {list(array.shape)}: expected {count} integers, one an image")
    if count and not (array.min() >= 0 and array.max() < len(CLASS_NAMES)):
        outside = array[(array < 0) | (array >= len(CLASS_NAMES))][0]
        raise UserError(f"{what} hold {outside}: expected 0 to {len(CLASS_NAMES) - 1}, the classes of CIFAR-10")
    return array


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
    images = _empty_aligned((len(table), 32, 32, 3))
    images[...] = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, table[:, 0].astype(np.int32)


def _empty_aligned(shape: tuple[int, ...]) -> np.ndarray:
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


def to_arrays(batches: dict[str, bytes]) -> Cifar10:
    train_images, train_labels = decode_batch(b"".join(batches[name] for name in list(BATCHES)[:5]))
    test_images, test_labels = decode_batch(batches["test_batch"])
    return Cifar10(train_images, train_labels, test_images, test_labels, CLASS_NAMES)
