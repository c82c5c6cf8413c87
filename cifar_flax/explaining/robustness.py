"""How a network answers images as they may be outside: accuracy, calibration, and which classes the errors name."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from cifar_flax.data import Split
from cifar_flax.explaining import calibration, corruptions
from cifar_flax.explaining.corruptions import CORRUPTIONS, FROST, SEVERITIES
from cifar_flax.explaining.network import Network, Progress, no_progress

# What has no severity.
PLAIN = {"clean": lambda images: images, "mirrored": corruptions.mirrored, "grey": corruptions.grey}
NAMES = (*PLAIN, *CORRUPTIONS)
MEAN = f"mean of {len(CORRUPTIONS) - 1}"
_IN_MEAN = [name in CORRUPTIONS and name != FROST for name in NAMES]

DEFINITIONS = {
    "corruptions": "the 15 of CIFAR-10-C at severities 1 to 5, made anew by its published recipe for images of 32x32 "
    "pixels (Hendrycks and Dietterich 2019, arXiv 1903.12261), with other random numbers than its files",
    FROST: "speckles of the colours and deviation of the benchmark's photographs, which are not included here",
    MEAN: f"over all corruptions but {FROST}, and all severities",
    "accuracy_by_class": "share of a class's images that are right",
    "errors_become": "share of all wrong predictions that name the class",
    "ece": calibration.DEFINITIONS["ece"],
    "limits": "A corruption is computed from one image. New places, cameras and kinds of a thing are other shifts, of "
    "which this says nothing",
}


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What a network made of `N` images of `C` classes in `R` ways, `NAMES`, at severities 1 to 5.

    A way without severity, one of `PLAIN`, has the same figures at all five.

    Attributes:
      class_names: the `C` names.
      seed: what drew the random parts of the corruptions.
      count: int `[C]`, images of each class.
      right: int `[R, 5, C]`, right predictions by class.
      wrong: int `[R, 5, C]`, wrong predictions by the class that they name.
      ece: float `[R, 5]`, `calibration.calibration_error` in bins of equal width.
    """

    class_names: tuple[str, ...]
    seed: int
    count: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    ece: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """The share of right predictions: float `[R, 5]`, in [0, 1]."""
        return self.right.sum(axis=-1) / self.count.sum()

    @property
    def accuracy_by_class(self) -> np.ndarray:
        """The same of each class's images: float `[R, 5, C]`, NaN of a class without images."""
        with np.errstate(invalid="ignore"):
            return self.right / self.count

    @property
    def errors_become(self) -> np.ndarray:
        """The share of the wrong predictions that name a class: float `[R, 5, C]`, 0 where none is wrong."""
        return self.wrong / np.maximum(self.wrong.sum(axis=-1, keepdims=True), 1)

    def figures(self) -> dict[str, Any]:
        """All of it, ready for JSON: by name a figure for each severity, or one where there are none."""

        def by_name(values: np.ndarray) -> dict[str, Any]:
            return {
                name: [round(float(x), 6) for x in (row[:1] if name in PLAIN else row)]
                for name, row in zip(NAMES, values, strict=True)
            }

        def by_class(values: np.ndarray) -> dict[str, Any]:
            there = zip(self.class_names, values.transpose(2, 0, 1), self.count, strict=True)
            return {name: by_name(rows) for name, rows, count in there if count}

        return {
            "images": int(self.count.sum()),
            "seed": self.seed,
            "definitions": DEFINITIONS,
            MEAN: {"accuracy": float(mean(self.accuracy).mean()), "ece": float(mean(self.ece).mean())},
            "accuracy": by_name(self.accuracy),
            "ece": by_name(self.ece),
            "accuracy_by_class": by_class(self.accuracy_by_class),
            "errors_become": by_class(self.errors_become),
        }


def mean(values: np.ndarray) -> np.ndarray:
    """The mean of `[R, ...]` over the corruptions that follow the recipe."""
    return values[_IN_MEAN].mean(axis=0)


def measure(network: Network, test: Split, *, seed: int = 0, progress: Progress = no_progress) -> Robustness:
    """Asks a network about the images in all these ways, one after another.

    Args:
      network: the network.
      test: the images.
      seed: for every draw: networks that are asked with one seed see the same images.
      progress: (what, total) to a function that is told how many more are done.
    """
    shape, classes = (len(NAMES), len(SEVERITIES)), network.spec.num_classes
    ece, right, wrong = np.zeros(shape), np.zeros((*shape, classes), int), np.zeros((*shape, classes), int)
    ways = len(PLAIN) + len(CORRUPTIONS) * len(SEVERITIES)
    on_batch = progress(f"corruptions, {network.name}", len(test.images) * ways)

    def note(place: tuple[int, Any], images: np.ndarray) -> None:
        found = network.predict(images, test.labels, on_batch)
        bins = calibration.equal_width(found.confidence)
        ece[place] = calibration.calibration_error(found.confidence, found.correct, bins)
        right[place] = np.bincount(found.true[found.correct], minlength=classes)
        wrong[place] = np.bincount(found.predicted[~found.correct], minlength=classes)

    for row, change in enumerate(PLAIN.values()):
        note((row, slice(None)), change(test.images))
    for (row, name), severity in itertools.product(enumerate(CORRUPTIONS, len(PLAIN)), SEVERITIES):
        rng = np.random.default_rng([seed, row, severity])
        note((row, severity - 1), corruptions.corrupt(name, test.images, severity, rng))
    count = np.bincount(test.labels, minlength=classes)
    return Robustness(network.spec.class_names, seed, count, right, wrong, ece)
