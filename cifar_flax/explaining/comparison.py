"""Two networks on the same images: which errors the other one mends, which it makes, and whether it may be chance."""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from cifar_flax.data import Split
from cifar_flax.explaining.network import Network, Progress, no_progress
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.explaining.slices import Slices, failed

MOST = 300  # of each kind are explained: all in the page would make it too large

DEFINITIONS = {
    "mended": "wrong by this network, right by the other",
    "broken": "right by this network, wrong by the other",
    "difference": "the other's accuracy less this one's, with its 95% interval (Wald, paired)",
    "p": "exact McNemar test, two-sided: were mending and breaking an image equally likely, the chance that their "
    "numbers are as far apart as they are, or farther. It is of these two networks: other seeds may differ",
}


class Comparison(NamedTuple):
    """What another network says of the same images.

    Attributes:
      figures: as `compare` returns them, with what the other network is.
      predictions: the other's, of all images.
      mended: positions, at most `MOST`: those of which the other is surest.
      broken: likewise.
      maps: float `[len(mended) + len(broken), h, w]`, its raw maps of its own predictions, the mended ones first.
    """

    figures: dict[str, Any]
    predictions: Predictions
    mended: np.ndarray
    broken: np.ndarray
    maps: np.ndarray

    @property
    def changed(self) -> np.ndarray:
        """The mended and then the broken positions: those that `maps` are of."""
        return np.concatenate([self.mended, self.broken])


def _count(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Of which images, bool `[N]`, are predicted rightly."""
    n, mended, broken = len(ours), int((~ours & theirs).sum()), int((ours & ~theirs).sum())
    changed, difference = mended + broken, mended - broken
    error = 1.96 * np.sqrt(max(0.0, changed - difference**2 / n)) / n if n else 0.0
    return {
        "images": n,
        "both_right": int((ours & theirs).sum()),
        "mended": mended,
        "broken": broken,
        "both_wrong": int((~ours & ~theirs).sum()),
        "accuracy": float(ours.mean()) if n else None,
        "other_accuracy": float(theirs.mean()) if n else None,
        "difference": difference / n if n else None,
        "interval": [difference / n - error, difference / n + error] if n else None,
        "p": float(binomtest(mended, changed).pvalue) if changed else 1.0,
    }


def compare(ours: Predictions, theirs: Predictions) -> dict[str, Any]:
    """Counts of one network's predictions against another's of the same images, of all and by true class."""
    labels = ours.true
    return _count(ours.correct, theirs.correct) | {
        "by_class": {
            name: _count(ours.correct[labels == label], theirs.correct[labels == label])
            for label, name in enumerate(ours.class_names)
        }
    }


def compare_slices(ours: Predictions, theirs: Predictions, found: Slices) -> list[dict[str, Any]]:
    """How the other network fares with the groups that fail more often with this one; `mended` fail no longer."""
    rows = []
    for one, row in zip(found.confirmed, found.figures["confirmed"], strict=True):
        our, their = (failed(by, one.positions, one.taken) for by in (ours, theirs))
        counts = _count(~our, ~their)
        rows.append(
            {key: row[key] for key in ("class", "taken_for", "words", "images", "rate")}
            | {"other_rate": float(their.mean())}
            | {key: counts[key] for key in ("mended", "broken", "p")}
        )
    return rows


def measure(
    other: Network,
    test: Split,
    ours: Predictions,
    groups: Slices,
    *,
    stage: str,
    method: str,
    title: str,
    progress: Progress = no_progress,
) -> Comparison:
    """Asks another network about the images.

    Args:
      other: the other network.
      test: the images.
      ours: this network's predictions of them.
      groups: those that fail more often with this network.
      stage: the other's stage that is explained.
      method: one of `cam.METHODS`.
      title: what the images are, for a person to read.
      progress: (what, total) to a function that is told how many more are done.
    """
    theirs = other.predict(test.images, test.labels, progress("predicting, the other", len(test.images)))

    def surest(kind: np.ndarray) -> np.ndarray:
        positions = np.flatnonzero(kind)
        return np.sort(positions[np.argsort(-theirs.confidence[positions], kind="stable")[:MOST]])

    mended, broken = surest(~ours.correct & theirs.correct), surest(ours.correct & ~theirs.correct)
    changed = np.concatenate([mended, broken])
    maps = other.maps(
        test.images[changed],
        theirs.predicted[changed, None],
        stage=stage,
        methods=[method],
        on_batch=progress("explaining, the other", len(changed)),
    )[:, 0, 0]
    figures = other.identity() | {"stage": stage, "data": title, "definitions": DEFINITIONS, **compare(ours, theirs)}
    figures["slices"] = compare_slices(ours, theirs, groups)
    return Comparison(figures, theirs, mended, broken, maps)
