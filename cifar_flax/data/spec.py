"""What a data set is: the names of its classes, the size of its images, and how pixels become numbers."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a network must know of the data set that it was trained on. It travels with the network.

    Attributes:
      name: such as CIFAR-10.
      class_names: one for each label, from label 0 on.
      image_size: rows and columns of an image, in pixels.
      mean: of each channel over the training images, in [0, 1].
      std: standard deviation of each channel, likewise.
      digest: of all images and labels, as `digest` makes it; "" for CIFAR-10, whose bytes are verified.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str = ""

    def __post_init__(self):
        try:
            statistics = np.array([self.mean, self.std], float)
        except (TypeError, ValueError, OverflowError):
            statistics = np.zeros(0)
        if not (
            isinstance(self.class_names, tuple)
            and all(isinstance(text, str) for text in (self.name, self.digest, *self.class_names))
            and self.num_classes >= 2
            and isinstance(self.image_size, int)
            and self.image_size >= 1
            and statistics.shape == (2, 3)
            and bool(np.isfinite(statistics).all() and (statistics[1] > 0).all())
        ):
            raise UserError(
                "a data set's description does not hold together: expected a name, a tuple of two or more class "
                "names, an image size (an `int`), three means and three deviations above 0"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels: RGB."""
        return (self.image_size, self.image_size, 3)

    def _mean_and_std(self, shape: tuple[int, ...]) -> list[jax.Array]:
        return [jnp.broadcast_to(np.array(x, np.float32), shape) for x in (self.mean, self.std)]

    def normalize(self, images: jax.Array | np.ndarray) -> jax.Array:
        """uint8 `[..., 3]` to float32 with zero mean and unit variance a channel over the training set.

        Raises:
          UserError: they are not uint8.
        """
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        if images.dtype != np.uint8:
            raise UserError(f"images are {images.dtype}: expected uint8, 0 to 255; normalize divides by 255 itself")
        mean, std = self._mean_and_std(images.shape)
        return jnp.asarray((images.astype(jnp.float32) / 255 - mean) / std)

    def denormalize(self, images: jax.Array) -> jax.Array:
        """The inverse of `normalize`: float32 `[..., 3]` to float32 in [0, 1]."""
        mean, std = self._mean_and_std(images.shape)
        return images * std + mean

    def renormalize(self, images: jax.Array, before: "DataSpec") -> jax.Array:
        """What `before.normalize` has normalised, as `normalize` would have done it."""
        if (self.mean, self.std) == (before.mean, before.std):
            return images
        mean, std = self._mean_and_std(images.shape)
        return (before.denormalize(images) - mean) / std

    def difference(self, other: "DataSpec") -> str:
        """Why a network of this data set is not one of another, for a message; "" if it is.

        Mean and deviation travel with the network, and may differ. A data set without a digest may be any.
        """
        ours, theirs = self.class_names, other.class_names
        if len(ours) != len(theirs):
            return f"{len(ours)} classes against {len(theirs)}"
        if ours != theirs:
            label = next(label for label, name in enumerate(ours) if name != theirs[label])
            return f"class {label} is {ours[label]} against {theirs[label]}"
        if self.image_size != other.image_size:
            return f"images of {self.image_size} pixels against {other.image_size}"
        if "" not in (self.digest, other.digest) and self.digest != other.digest:
            return f"images of digest {self.digest} against {other.digest}"
        return ""

    def check_images(self, images: Any, what: str = "images") -> np.ndarray:
        """The images as an array, if they are what a network of this data set is made for.

        Raises:
          UserError: they are not uint8 `[N, image_size, image_size, 3]`, one or more.
        """
        shape = self.image_shape
        try:
            array = np.asarray(images)
        except ValueError as error:  # a list of arrays of several sizes, or of arrays and something else
            raise UserError(f"{what} are of several shapes or kinds: expected all of {list(shape)}") from error
        if array.shape[1:] != shape or not len(array):
            one = "; one image is images[None]" if array.shape == shape else ""
            expected = f"[N, {', '.join(map(str, shape))}]"
            raise UserError(f"{what} are of shape {list(array.shape)}: expected {expected}, one or more{one}")
        if array.dtype != np.uint8:
            raise UserError(f"{what} are {array.dtype}: expected uint8, 0 to 255; the program itself divides by 255")
        return array

    def check_labels(self, labels: Any, count: int, what: str = "labels") -> np.ndarray:
        """The labels as an int32 array, if they are a class of this data set for each of `count` images.

        Raises:
          UserError: they are not integers `[count]` in [0, num_classes).
        """
        try:
            array = np.asarray(labels)
        except ValueError as error:
            raise UserError(f"{what} are of several shapes: expected {count} integers, one an image") from error
        if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"{what} are {array.dtype} {list(array.shape)}: expected {count} integers, one an image")
        if count and not (array.min() >= 0 and array.max() < self.num_classes):
            outside = array[(array < 0) | (array >= self.num_classes)][0]
            raise UserError(f"{what} hold {outside}: expected 0 to {self.num_classes - 1}, the classes of {self.name}")
        return array.astype(np.int32)  # arithmetic with labels of 8 bits would wrap

    def to_json(self) -> str:
        """As JSON text, read back by `from_json`."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "DataSpec":
        """The inverse of `to_json`.

        Raises:
          UserError: the text is not the JSON of a data set's description.
        """
        try:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
            }
            return cls(**values)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"not the description of a data set ({error}): put it back as it was") from error


# Mean and deviation of the 50,000 training images. The often copied deviation (0.2023, 0.1994, 0.2010) is the mean of
# per-image deviations, not this.
CIFAR10 = DataSpec(
    name="CIFAR-10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    image_size=32,
    mean=(0.49139968, 0.48215841, 0.44653091),
    std=(0.24703223, 0.24348513, 0.26158784),
)


class Split(NamedTuple):
    """Images of one kind: to train on, or to test on.

    Attributes:
      images: uint8 `[N, image_size, image_size, 3]`, RGB in [0, 255].
      labels: int32 `[N]`.
      indices: int `[N]`, the images' numbers in the whole split, which a person names them by.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def take(self, chosen: Any) -> "Split":
        """The images at positions, of a slice or where a mask is true."""
        return Split(*(array[chosen] for array in self))


def whole_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """All images of a kind, numbered in their order."""
    return Split(images, labels, np.arange(len(images)))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: what it is, and its images.

    Attributes:
      spec: what it is.
      train: the training images.
      test: the test images; may be none.
      is_sample: whether these are only the few images that come with this package.
      notes: what a person should know of how it was read, a line each.
    """

    spec: DataSpec
    train: Split
    test: Split
    is_sample: bool = False
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For a person to read."""
        return f"embedded SAMPLE of {self.spec.name}" if self.is_sample else self.spec.name

    @property
    def test_title(self) -> str:
        """What the test images are, for a person to read."""
        return f"embedded SAMPLE of the {self.spec.name} test set" if self.is_sample else f"{self.spec.name} test set"

    def without_test(self) -> "Dataset":
        """The training images alone: what a choice that must not see the test set is given."""
        return dataclasses.replace(self, test=self.test.take(slice(0)))
