"""Whose error is it? Labels that people gave to CIFAR-10's test images, beside a network's wrong predictions.

Two files as their authors publish them, neither of which comes with this package:

* CIFAR-10H (Peterson et al. 2019), `cifar10h-counts.npy`: how many people chose each class.
* Label errors (Northcutt et al. 2021), `cifar10_mturk.json`: five people's votes on labels that look wrong.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_flax.errors import UserError
from cifar_flax.explaining.predictions import Predictions

NUM_TEST = 10_000
DISPUTED, SHARED, UNANIMOUS, OTHERWISE = (
    "label disputed",
    "people disagree too",
    "people are unanimous",
    "some people differ",
)
DEFINITIONS = {
    DISPUTED: "fewer than three of five people who were asked about the label chose it",
    SHARED: "not disputed, and at least 10% of people chose the network's answer",
    UNANIMOUS: "not disputed, and all people chose the label",
    OTHERWISE: "none of these",
}
_SHARED_FROM = 0.1
_CONFIDENCES = (0.9, 0.7, 0.5, 0.0)
_VOTES = ("given", "guessed", "neither", "both")


class People(NamedTuple):
    """What people said of the official test set, in its order.

    Attributes:
      counts: int `[10000, 10]`, how many people chose each class, or None.
      disputed: bool `[10000]`, images whose label fewer than three of five people chose, or None.
    """

    counts: np.ndarray | None
    disputed: np.ndarray | None

    def at(self, indices: np.ndarray) -> "People":
        """The same for images of the test set: int `[N]`."""
        return People(*(array if array is None else array[indices] for array in self))


def read_counts(path: Path) -> np.ndarray:
    """Reads `cifar10h-counts.npy`: int `[10000, 10]`.

    Raises:
      UserError: it cannot be read, or is not 10,000 rows of ten counts that are not all 0.
    """
    wanted = f"expected cifar10h-counts.npy, {NUM_TEST:,} rows of ten counts"
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read as a NumPy array"
        raise UserError(f"--human-labels {path} {what}: {wanted}") from error
    if not isinstance(counts, np.ndarray) or counts.shape != (NUM_TEST, 10):
        raise UserError(f"--human-labels {path} has the shape {getattr(counts, 'shape', None)}: {wanted}")
    if not np.issubdtype(counts.dtype, np.number) or np.iscomplexobj(counts):
        raise UserError(f"--human-labels {path} holds {counts.dtype}: {wanted}")
    if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts == np.floor(counts)).all()):
        raise UserError(f"--human-labels {path} holds numbers that are no counts: {wanted}")
    if not counts.any(axis=1).all():
        row = int(np.flatnonzero(~counts.any(axis=1))[0])
        raise UserError(f"--human-labels {path}: nobody labelled image {row}; {wanted}")
    return counts.astype(int)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_disputed(path: Path, labels: np.ndarray) -> np.ndarray:
    """Reads `cifar10_mturk.json`: images whose label fewer than three of five people chose, bool `[10000]`.

    Those who found both labels right chose neither.

    Args:
      path: the file.
      labels: int `[10000]`, -1 where unknown, against which the file's own are checked.

    Raises:
      UserError: it cannot be read, an entry lacks something, or is of no image or of another label.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read as JSON"
        raise UserError(f"--label-errors {path} {what}: expected cifar10_mturk.json") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--label-errors {path} is no list of images: expected cifar10_mturk.json")
    disputed = np.zeros(NUM_TEST, bool)
    for place, entry in enumerate(entries):
        try:
            index, given = entry["id"], entry["given_original_label"]
            votes = [entry["mturk"][kind] for kind in _VOTES]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"--label-errors {path}, entry {place}: expected id, given_original_label and mturk with "
                f"{', '.join(_VOTES)}"
            ) from error
        if not all(map(_is_count, [index, given, *votes])) or index >= NUM_TEST:
            raise UserError(f"--label-errors {path}, entry {place}: expected counts, and an id below {NUM_TEST:,}")
        if labels[index] not in (-1, given):
            raise UserError(
                f"--label-errors {path}, entry {place}: image {index} is of class {labels[index]}, not {given}; "
                "expected the votes on CIFAR-10's test set"
            )
        disputed[index] = votes[0] < 3
    return disputed


def check_order(counts: np.ndarray, labels: np.ndarray) -> None:
    """Refuses counts `[N, 10]` whose most frequent class is not the label, int `[N]`, of at least half the images.

    Raises:
      UserError: so it is.
    """
    share = (counts.argmax(axis=1) == labels).mean()
    if share < 0.5:
        raise UserError(
            f"--human-labels: people chose the label of {100 * share:.0f}% of the images only: expected the rows in "
            "the official order of the test set"
        )


def judge(people: People, predictions: Predictions) -> list[str | None]:
    """A badge for each wrong prediction, one of `DEFINITIONS`, and None for each correct one.

    Without counts it is `DISPUTED` or None.

    Args:
      people: what people said of these N images.
      predictions: of these images.
    """
    labels, predicted, each = predictions.true, predictions.predicted, np.arange(len(predictions))
    badges = np.full(len(labels), None, object)
    if people.counts is not None:
        total = people.counts.sum(axis=1)
        badges[:] = OTHERWISE
        badges[people.counts[each, labels] == total] = UNANIMOUS
        badges[people.counts[each, predicted] >= _SHARED_FROM * total] = SHARED
    if people.disputed is not None:
        badges[people.disputed] = DISPUTED
    badges[predictions.correct] = None
    return badges.tolist()


def _accuracy(correct: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    return {"count": int(chosen.sum()), "accuracy": float(correct[chosen].mean()) if chosen.any() else None}


def summarise(people: People, predictions: Predictions, badges: Sequence[str | None]) -> dict[str, Any]:
    """Counts of badges among all wrong predictions and by confidence, and accuracy where people agree on the label.

    Args:
      people: what people said of these N images.
      predictions: of these images.
      badges: as `judge` returns them.

    Returns:
      Figures ready for JSON, with their definitions.
    """
    labels, correct, confidence = predictions.true, predictions.correct, predictions.confidence
    kinds = DEFINITIONS if people.counts is not None else {DISPUTED: DEFINITIONS[DISPUTED]}

    def count(chosen: np.ndarray) -> dict[str, int]:
        found = [badge for badge, take in zip(badges, chosen & ~correct, strict=True) if take]
        return {"wrong": len(found), **{kind: found.count(kind) for kind in kinds}}

    by_confidence, below = [], np.inf
    for least in _CONFIDENCES:
        by_confidence.append({"confidence_from": least, **count((confidence >= least) & (confidence < below))})
        below = least
    accuracy = {"all images": _accuracy(correct, np.ones(len(labels), bool))}
    if people.disputed is not None:
        accuracy["label not disputed"] = _accuracy(correct, ~people.disputed)
    if people.counts is not None:
        chosen = people.counts[np.arange(len(labels)), labels]
        total = people.counts.sum(axis=1)
        accuracy["at least 90% of people chose the label"] = _accuracy(correct, chosen >= 0.9 * total)
        accuracy["all people chose the label"] = _accuracy(correct, chosen == total)
    return {
        "definitions": kinds,
        **count(np.ones(len(labels), bool)),
        "by_confidence": by_confidence,
        "accuracy": accuracy,
    }
