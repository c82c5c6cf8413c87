"""Two networks on the same images: which errors the other one mends, which it makes, and whether it may be chance."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from cifar_flax.explaining import explanation
from cifar_flax.explaining.explanation import TestSet
from cifar_flax.explaining.trust_tables import Table
from cifar_flax.training.trained import Network

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
      guesses: int `[N]`, the other's predictions.
      probabilities: float `[N, 10]`, the other's.
      mended: positions, at most `MOST`: those of which the other is surest.
      broken: likewise.
      maps: float `[len(mended) + len(broken), h, w]`, its raw maps of its own predictions, the mended ones first.
    """

    figures: dict[str, Any]
    guesses: np.ndarray
    probabilities: np.ndarray
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


def compare(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Counts of one network's predictions against another's, of all images and by true class.

    Args:
      labels: int `[N]`.
      ours: int `[N]`, this network's predictions.
      theirs: int `[N]`, the other's.
      class_names: the ten names.
    """
    right, other_right = ours == labels, theirs == labels
    return _count(right, other_right) | {
        "by_class": {
            name: _count(right[labels == label], other_right[labels == label])
            for label, name in enumerate(class_names)
        }
    }


def measure(
    other: Network,
    test: TestSet,
    ours: np.ndarray,
    *,
    stage: str,
    method: str,
    progress: Callable[[str, int], Callable[[int], None]],
) -> Comparison:
    """Asks another network about the images.

    Args:
      other: the other network.
      test: the images.
      ours: int `[N]`, this network's predictions.
      stage: the other's stage that is explained.
      method: one of `cam.METHODS`.
      progress: (what, total) to a function that is told how many more are done.
    """
    logits = explanation.predict(other, test.images, progress("predicting, the other", len(test.images)))
    guesses = logits.argmax(axis=1)
    p = explanation.probabilities(logits)
    right, other_right = ours == test.labels, guesses == test.labels

    def surest(kind: np.ndarray) -> np.ndarray:
        positions = np.flatnonzero(kind)
        return np.sort(positions[np.argsort(-p.max(axis=1)[positions], kind="stable")[:MOST]])

    mended, broken = surest(~right & other_right), surest(right & ~other_right)
    changed = np.concatenate([mended, broken])
    raw = explanation.explain(
        other,
        test.images[changed],
        test.labels[changed],
        guesses[changed],
        stage=stage,
        method=method,
        on_batch=progress("explaining, the other", len(changed)),
    )
    figures = {
        "checkpoint": other.name,
        "checkpoint_sha256": other.digest,
        "model": other.config.preset,
        "layer": stage,
        "data": test.name,
        "definitions": DEFINITIONS,
        **compare(test.labels, ours, guesses, test.class_names),
    }
    maps = raw[np.arange(len(changed)), guesses[changed]]
    return Comparison(figures, guesses, p, mended, broken, maps)


def tables(figures: dict[str, Any]) -> list[Table]:
    """The report's tables of what `measure` found."""
    words = figures["definitions"]
    low, high = (f"{100 * x:+z.2f}" for x in figures["interval"])
    verdict = (
        f"The other's accuracy is {100 * figures['other_accuracy']:.2f}%, this network's "
        f"{100 * figures['accuracy']:.2f}%: {100 * figures['difference']:+z.2f} points [{low}, {high}], "
        f"p = {figures['p']:.2g}."
    )
    return [
        Table(
            "How many images",
            f"Measured on {figures['images']:,} images, {figures['data']}. {verdict} "
            f"Difference: {words['difference']}. p: {words['p']}.",
            ["", "other right", "other wrong"],
            [
                ["this right", f"{figures['both_right']:,}", f"{figures['broken']:,} broken"],
                ["this wrong", f"{figures['mended']:,} mended", f"{figures['both_wrong']:,}"],
            ],
        ),
        Table(
            "By class",
            "Ten tests at once: one in twenty is below 0.05 by chance.",
            ["true class", "images", "this", "other", "mended", "broken", "p"],
            [
                [
                    name,
                    f"{row['images']:,}",
                    *(f"{100 * row[key]:.1f}%" for key in ("accuracy", "other_accuracy")),
                    str(row["mended"]),
                    str(row["broken"]),
                    f"{row['p']:.2g}",
                ]
                for name, row in figures["by_class"].items()
                if row["images"]
            ],
        ),
    ]
