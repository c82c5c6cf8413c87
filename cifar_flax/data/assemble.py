"""From what a source holds to a `Dataset`: one size, RGB, a test split, mean and deviation, a digest.

Every loader of other data sets than CIFAR-10 ends here, so that the rules and their messages are written once.
"""

import hashlib
import io
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cifar_flax.data import pictures
from cifar_flax.data.layout import empty_aligned
from cifar_flax.data.spec import Dataset, DataSpec, Split, whole_split
from cifar_flax.errors import UserError, printable

SIZES = (8, 96)  # pixels on a side
MOST_CLASSES = 1000
_LARGEST_OWN, _DEFAULT = 64, 32  # a set's own size is kept up to this one; else it is brought to that one
_SKIP = "or leave out all broken ones: train, or data show, with --skip-broken"


class Labelled(NamedTuple):
    """Images of one kind as their source holds them.

    Attributes:
      images: uint8 `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]`; or N pictures, as files or as the bytes of files.
      labels: integers `[N]` or `[N, 1]`.
      where: what a message calls them.
    """

    images: np.ndarray | Sequence[Path | bytes]
    labels: Any
    where: str


def assemble(
    name: str,
    class_names: Sequence[str] | None,
    train: Labelled,
    test: Labelled | None,
    *,
    image_size: int | None = None,
    skip_broken: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """A data set of images in the order of their source.

    Args:
      name: what a person calls it.
      class_names: one for each label; if None, the labels themselves up to the largest one of `train`.
      train: the training images.
      test: the test images; if None, one fifth of each class of `train`, drawn with seed 0.
      image_size: if None, the images' own one where all are squares of one size of 8 to 64 pixels; else 32. Others
        are brought there as a person's own pictures are.
      skip_broken: leave out pictures that cannot be read.
      report: called with each note.

    Raises:
      UserError: the images and labels are not those of a data set that a network can be trained on.
    """
    splits = [train] if test is None else [train, test]
    labels = [_check(split, None if class_names is None else len(class_names)) for split in splits]
    if class_names is None:
        _check_count(int(labels[0].max()) + 1, train.where)
        class_names = [str(label) for label in range(labels[0].max() + 1)]
        if labels[-1].max() >= len(class_names):
            outside = f"label {labels[-1].max()}, and training labels end at {len(class_names) - 1}"
            raise UserError(f"{splits[-1].where} hold {outside}: correct the labels")
    _check_count(len(class_names), train.where)
    unreadable = {"Cc", "Cs"}  # control characters, and bytes of a name that are no UTF-8
    for kind, names in (("class", class_names), ("data set", [name])):
        if strange := [x for x in names if not x.strip() or unreadable & set(map(unicodedata.category, x))]:
            called = printable(strange[0])
            raise UserError(f"{train.where}: a {kind} is called {called!r}: give it a name that can be read")
    if twice := [x for x in dict.fromkeys(class_names) if list(class_names).count(x) > 1]:
        raise UserError(f"{train.where}: two classes are called {twice[0]}: give each a name of its own")

    sizes = {size for split in splits for size in _sizes(split.images)} - {None}
    size, notes = image_size or _own_size(sizes), []
    if sizes - {(size, size)}:
        notes.append(f"images of {_range(sizes)} pixels were brought to {size} x {size}: the middle square, bilinear")
    broken: list[str] = []
    ready = [
        _bring(split._replace(labels=own), size, broken if skip_broken else None)
        for split, own in zip(splits, labels, strict=True)
    ]
    if broken:
        notes.append(
            f"{len(broken)} broken pictures were left out: {', '.join(broken[:3])}{', ...' * (len(broken) > 3)}"
        )
    if test is None:
        chosen = draw_fifth(ready[0].labels)
        ready = [whole_split(*ready[0].take(mask)[:2]) for mask in (~chosen, chosen)]
        notes.append(f"{chosen.sum():,} of {len(chosen):,} images, a fifth of each class, are for testing (seed 0)")

    counts = [np.bincount(split.labels, minlength=len(class_names)) for split in ready]
    if strange := [name for name, a, b in zip(class_names, *counts, strict=True) if b and not a]:
        raise UserError(f"{splits[-1].where} hold class {strange[0]}, of which there is no training image: add some")
    if (counts[0] > 0).sum() < 2 or not len(ready[1].images):
        lack = "images of one class only" if (counts[0] > 0).sum() < 2 else "no test images"
        raise UserError(f"{train.where} hold {lack}: expected two classes or more, and two images or more of each")
    if absent := [name for name, a in zip(class_names, counts[0], strict=True) if not a]:
        notes.append(f"{len(absent)} of {len(class_names)} classes have no images: {', '.join(absent[:10])}")
    for note in notes:
        report(note)
    spec = DataSpec(name, tuple(class_names), size, *statistics(ready[0].images), digest(*ready))
    return Dataset(spec, ready[0], ready[1], notes=tuple(notes))


def draw_fifth(labels: np.ndarray) -> np.ndarray:
    """Marks about a fifth of each class, one or more where it has two images or more: bool `[N]`, by seed 0."""
    chosen, rng = np.zeros(len(labels), bool), np.random.default_rng(0)
    for label in np.unique(labels):
        (places,) = np.nonzero(labels == label)
        chosen[rng.permutation(places)[: max(round(len(places) / 5), int(len(places) > 1))]] = True
    return chosen


def statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel of uint8 images `[N, H, W, 3]`, in [0, 1]; a deviation of 0 is 1."""
    counts = np.zeros((3, 256), int)
    for start in range(0, len(images), 1000):  # in parts: `bincount` makes 8 bytes of each
        counts += [np.bincount(images[start : start + 1000, ..., c].ravel(), minlength=256) for c in range(3)]
    mean, std = [], []
    for channel in counts.tolist():  # whole numbers: the same figures on every machine
        number, total, squares = (sum(count * value**p for value, count in enumerate(channel)) for p in range(3))
        mean.append(total / (255 * number))
        std.append(math.sqrt(number * squares - total**2) / (255 * number) or 1.0)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def digest(train: Split, test: Split) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all images and labels."""
    sha = hashlib.sha256()
    for split in (train, test):
        sha.update(np.ascontiguousarray(split.images).data)
        sha.update(split.labels.astype("<i4").data)
    return sha.hexdigest()[:16]


def _check(split: Labelled, classes: int | None) -> np.ndarray:
    """The labels, int32 `[N]`, if they and the images can be a split of so many classes."""
    images, where, labels = split.images, split.where, np.asarray(split.labels)
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            raise UserError(f"{where}: images are {images.dtype}: expected uint8, 0 to 255")
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape[1:]:
            shapes = "[N, H, W], [N, H, W, 1] or [N, H, W, 3]"
            raise UserError(f"{where}: images are of shape {list(images.shape)}: expected {shapes}; transpose them")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        kind = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{where}: labels are {kind}: expected whole numbers [N], one an image")
    if len(labels) != len(images):
        raise UserError(f"{where}: {len(images)} images and {len(labels)} labels: expected one label an image")
    if not len(labels):
        raise UserError(f"{where}: there are no images: expected one or more of each class")
    if labels.min() < 0:
        raise UserError(f"{where}: label {labels.min()} is negative: expected 0, 1, ...; leave unlabelled images out")
    if classes is not None and labels.max() >= classes:
        raise UserError(f"{where}: label {labels.max()} is none of 0 to {classes - 1}, the {classes} classes' labels")
    return labels.astype(np.int64) if labels.max() > 2**31 - 1 else labels.astype(np.int32)


def _check_count(classes: int, where: str) -> None:
    if not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"{where}: {classes:,} classes: expected 2 to {MOST_CLASSES:,}")


def _sizes(images: np.ndarray | Sequence[Path | bytes]) -> set[tuple[int, int] | None]:
    """The columns and rows that images have; None among them for those that cannot be read."""
    if isinstance(images, np.ndarray):
        return {(images.shape[2], images.shape[1])}
    return {pictures.measure(io.BytesIO(x) if isinstance(x, bytes) else x) for x in images}


def _own_size(sizes: set) -> int:
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    return width if width == height and SIZES[0] <= width <= _LARGEST_OWN else _DEFAULT


def _range(sizes: set) -> str:
    small, large = (f"{width} x {height}" for width, height in (pick(sizes, key=np.prod) for pick in (min, max)))
    return small if len(sizes) == 1 else f"{small} to {large}"


def _bring(split: Labelled, size: int, broken: list[str] | None) -> Split:
    """All images at one size in RGB; the names of broken ones go to a list, or the first one is an error."""
    images = empty_aligned((len(split.images), size, size, 3))
    if isinstance(split.images, np.ndarray):
        array = split.images.reshape(*split.images.shape[:3], -1)
        if array.shape[1:3] == (size, size):
            images[...] = array  # one channel goes to all three
        else:
            for i, image in enumerate(array):
                images[i] = pictures.fit(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), size)
        return whole_split(images, split.labels)
    kept = []
    for i, picture in enumerate(split.images):
        name = str(picture) if isinstance(picture, Path) else f"{split.where}: image {i}"
        try:
            whole = pictures.decode(picture if isinstance(picture, Path) else io.BytesIO(picture), name)
        except UserError as error:
            if broken is None:
                raise UserError(f"{error}; {_SKIP}") from error
            broken.append(name)
            continue
        images[len(kept)] = pictures.fit(whole, size)
        kept.append(i)
    return whole_split(images[: len(kept)], split.labels[kept])
