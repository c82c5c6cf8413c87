"""What a network says of images, and what follows from that."""

import dataclasses
import functools

import numpy as np
from scipy.special import softmax

from cifar_flax.errors import UserError

SORTS = ("index", "confidence", "loss")
# On a page so many classes of each image are explained: all of ten, the most probable of a hundred.
MOST_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of `N` images.

    Attributes:
      logits: float32 `[N, C]`.
      class_names: the `C` names.
      labels: int `[N]`, the true classes; None where they are not known.
      features: float32 `[N, K]`, what the last layer sees: the mean of each channel of the last stage. Or None.
    """

    logits: np.ndarray
    class_names: tuple[str, ...]
    labels: np.ndarray | None = None
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits: float64 `[N, C]`."""
        return softmax(self.logits.astype(np.float64), axis=1)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image: int `[N]`."""
        return self.logits.argmax(axis=1)

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[label] for label in self.predicted.tolist()]

    @functools.cached_property
    def ranked(self) -> np.ndarray:
        """The classes of each image, the most probable first: int `[N, C]`."""
        return np.argsort(-self.logits, axis=1, kind="stable")

    @functools.cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class: float64 `[N]`."""
        return self.probabilities.max(axis=1)

    @functools.cached_property
    def true(self) -> np.ndarray:
        """The labels: int `[N]`.

        Raises:
          UserError: they are not known.
        """
        if self.labels is None:
            raise UserError("these predictions are of images without labels: give labels to predict(...)")
        return self.labels

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is the label: bool `[N]`."""
        return self.predicted == self.true

    @property
    def by_class(self) -> bool:
        """Whether the images lie class by class."""
        return bool((np.diff(self.true) >= 0).all())

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, in [0, 1]."""
        return float(self.correct.mean())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """How many images of each true class are predicted as each class: int `[C, C]`, true by predicted."""
        count = len(self.class_names)
        return np.bincount(self.true.astype(np.int64) * count + self.predicted, minlength=count**2).reshape(
            count, count
        )

    def explained_classes(self) -> np.ndarray:
        """The classes that a page explains of each image: int `[N, T]`; at most ten are all explained, in their order.

        Of more, the ten most probable, the most probable first. Of these the last gives way to the true class, where
        that is known and not among them.
        """
        count = len(self.class_names)
        if count <= MOST_CLASSES:
            return np.tile(np.arange(count), (len(self), 1))
        classes = self.ranked[:, :MOST_CLASSES].copy()
        if self.labels is not None:
            missing = ~(classes == self.labels[:, None]).any(axis=1)
            classes[missing, -1] = self.labels[missing]
        return classes

    def take(self, chosen: np.ndarray) -> "Predictions":
        """The predictions at positions."""
        labels, features = (None if x is None else x[chosen] for x in (self.labels, self.features))
        return Predictions(self.logits[chosen], self.class_names, labels, features)

    def select(
        self, *, correct: bool, sort: str = "index", true: int | None = None, predicted: int | None = None
    ) -> np.ndarray:
        """Positions of the correct predictions, or of the wrong ones, in the order asked for.

        Args:
          correct: whether to choose the correct ones.
          sort: `index`; `confidence`, the most confident first; `loss`, the largest first.
          true: only images of this class.
          predicted: only images taken for this class.

        Returns:
          int positions.

        Raises:
          UserError: there is no such order or class.
        """
        if not isinstance(correct, bool | np.bool_):
            raise UserError(f"correct is {correct!r}: expected True or False")
        if sort not in SORTS:
            raise UserError(f"sort is {sort!r}: expected one of {', '.join(SORTS)}")
        for what, label in (("true", true), ("predicted", predicted)):
            if label is not None and (
                not isinstance(label, int | np.integer) or label not in range(len(self.class_names))
            ):
                raise UserError(
                    f"{what} is {label!r}: expected the number of a class, 0 to {len(self.class_names) - 1}"
                )
        chosen = self.correct == correct
        if true is not None:
            chosen &= self.true == true
        if predicted is not None:
            chosen &= self.predicted == predicted
        positions = np.flatnonzero(chosen)
        keys = {
            "index": positions,
            "confidence": -self.confidence[positions],
            "loss": self.probabilities[positions, self.true[positions]],
        }
        return positions[np.argsort(keys[sort], kind="stable")]
