"""Groups of images that fail more often than the others of their class, and what their images have in common.

They are found on one half of the images and confirmed on the other, of which all rates are. Pure functions of arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.stats import binomtest, false_discovery_control, hypergeom

from cifar_flax.data import similar
from cifar_flax.explaining import agreement
from cifar_flax.explaining.predictions import Predictions

LEVEL = 0.05
_TAIL = 0.25  # of a class: its lowest and its highest images by an attribute
_CLUSTERS = 4  # of each class
_FREQUENT = 10  # errors in the first half, from which on being taken for a class is looked at on its own
_LEAST = 20  # images of a class in the first half; fewer say nothing
_APART = 0.5  # deviations of a class by which a cluster differs in what it is described by
AT_ONCE = 1000  # images that are measured: 12 MB as float32, of 32x32 pixels

# What is measured of an image: its definition, and the words for the images of a class where it is lowest and highest.
ATTRIBUTES = {
    "brightness": ("mean of luma, the grey of ITU-R BT.601", "dark", "bright"),
    "contrast": ("standard deviation of luma", "low contrast", "high contrast"),
    "saturation": ("mean of 1 - min / max of a pixel's red, green and blue", "nearly grey", "colourful"),
    "sharpness": ("variance of luma's Laplacian", "blurred", "sharp"),
    "red of the border": (
        "red less green, as a share of red, green and blue, of the mean colour of a border an eighth of the side wide",
        "greenish border",
        "reddish border",
    ),
    "yellow of the border": ("likewise the mean of red and green, less blue", "bluish border", "yellowish border"),
    "busyness of the border": ("mean length of luma's gradient there", "smooth border", "busy border"),
    "size of the map": (
        "entropy of the positive part of the predicted class's map, over that of a uniform one",
        "narrow map",
        "wide map",
    ),
    "place of the map": ("distance of its centre of mass from the image's", "map in the middle", "map off the middle"),
}

DEFINITIONS = {
    **{
        name: f"{what}; lowest quarter of a class: {low}, highest: {high}"
        for name, (what, low, high) in ATTRIBUTES.items()
    },
    "clusters": f"{_CLUSTERS} of each class, by k-means of its images' features at the stage in the middle: the mean "
    "of each channel, in standard deviations, at length 1. That stage does not yet hold the answer. In brackets, by "
    "what they differ most from their class",
    "tried": "each quarter and cluster of each class: whether they are wrong more often than the others of the class, "
    f"or taken more often for another one, where {_FREQUENT} or more of the first half are",
    "carried": f"p < {LEVEL} on the first half; of two groups that share more than half of the smaller, the surer one",
    "p": "Fisher's exact test, one-sided, on the second half",
    "corrected_p": f"p after Benjamini and Hochberg, by how many were carried over. Confirmed below {LEVEL}: of these "
    "at most one in twenty, on average, is chance. Their rates are a little high: chance helped some below that",
    "interval": "95%, Wilson",
}


class Slice(NamedTuple):
    """Images of a class that fail more often than the others of it.

    Attributes:
      label: the class.
      taken: the class that they are taken for more often; None where any error counts.
      words: what they have in common.
      positions: int `[m]`, those of the second half of the images.
    """

    label: int
    taken: int | None
    words: str
    positions: np.ndarray


class Slices(NamedTuple):
    """What was found.

    Attributes:
      confirmed: the groups that were confirmed, the surest first.
      figures: of these and of the others, ready for JSON.
    """

    confirmed: list[Slice]
    figures: dict[str, Any]


def failed(predictions: Predictions, positions: np.ndarray, taken: int | None) -> np.ndarray:
    """Which of the images at positions `[m]` are wrong, or taken for a class: bool `[m]`."""
    return ~predictions.correct[positions] if taken is None else predictions.predicted[positions] == taken


def attributes(images: np.ndarray, maps: np.ndarray) -> dict[str, np.ndarray]:
    """What is measured of images, by the names of `ATTRIBUTES`.

    Args:
      images: uint8 `[N, H, W, 3]`.
      maps: float `[N, h, w]`, raw maps of the predicted class.

    Returns:
      float `[N]` each; of a map without a positive value 0.
    """
    parts = [_of_pixels(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)]
    shares = np.nan_to_num(agreement.share(maps))
    off = np.linalg.norm(agreement.centre_of_mass(shares, 1) - 0.5, axis=1) * shares.any(axis=(1, 2))
    values = [*np.concatenate(parts, axis=1), agreement.entropy(shares), off]
    return dict(zip(ATTRIBUTES, values, strict=True))


def _of_pixels(images: np.ndarray) -> np.ndarray:
    """The attributes of images but for those of maps: float32 `[7, n]`."""
    rgb = images.astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = rgb.min(axis=3), rgb.max(axis=3)
    width = max(1, images.shape[1] // 8)
    border = np.ones(images.shape[1:3], bool)
    border[width:-width, width:-width] = False
    red, green, blue = rgb[:, border].mean(axis=1).T
    total = np.maximum(red + green + blue, 1e-6)
    down, along = np.gradient(luma, axis=(1, 2))
    inside = luma[:, 1:-1, 1:-1]
    laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * inside
    return np.stack(
        [
            luma.mean(axis=(1, 2)),
            luma.std(axis=(1, 2)),
            ((high - low) / np.maximum(high, 1e-6)).mean(axis=(1, 2)),
            laplacian.var(axis=(1, 2)),
            (red - green) / total,
            ((red + green) / 2 - blue) / total,
            np.hypot(down, along)[:, border].mean(axis=1),
        ]
    )


def find(measured: Mapping[str, np.ndarray], features: np.ndarray, predictions: Predictions, seed: int = 0) -> Slices:
    """Groups that fail more often than the others of their class.

    Args:
      measured: float `[N]` each, as `attributes` returns them.
      features: float `[N, K]`, what the network sees in them.
      predictions: of these images.
      seed: draws the halves, and where clusters begin.
    """
    rng, labels = np.random.default_rng(seed), predictions.true
    order = rng.permutation(len(labels))
    first = np.zeros(len(labels), bool)
    first[order[np.argsort(labels[order], kind="stable")][::2]] = True  # half of each class
    deviations = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    alike = similar.unit(deviations)
    tried, carried = 0, []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        half = first[members]
        if half.sum() >= _LEAST:
            values = {name: x[members] for name, x in measured.items()}
            groups = {**_quarters(values, half), **_clusters(values, alike[members], half, rng)}
            taken_for = (None, *_often(predictions, members[half]))
            tried += len(groups) * len(taken_for)
            carried += _promising(predictions, groups, label, taken_for, members, half)
    carried.sort(key=lambda found: found[1]["p"])
    corrected = false_discovery_control([row["p"] for _, row in carried])
    for (_, row), p in zip(carried, corrected.tolist(), strict=True):
        row["corrected_p"] = p
    count = int((corrected < LEVEL).sum())
    for _, row in carried[:count]:
        row["sentence"] = _sentence(row)
    figures = {
        "definitions": DEFINITIONS,
        "seed": seed,
        "images": len(labels),
        "errors": int((~predictions.correct).sum()),
        "tried": tried,
        "carried": len(carried),
        "confirmed": [row for _, row in carried[:count]],
        "not_confirmed": [row for _, row in carried[count:]],
    }
    return Slices([found for found, _ in carried[:count]], figures)


def _quarters(values: Mapping[str, np.ndarray], half: np.ndarray) -> dict[str, np.ndarray]:
    """The lowest and the highest images of a class by each attribute, bool; its first half says where they end."""
    found = {}
    for name, (_, low, high) in ATTRIBUTES.items():
        ends = np.quantile(values[name][half], [_TAIL, 1 - _TAIL])
        found |= {low: values[name] <= ends[0], high: values[name] >= ends[1]}
    return found


def _clusters(
    values: Mapping[str, np.ndarray], alike: np.ndarray, half: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Clusters of a class's first half, and the images of the second nearest to their centres, bool."""
    begin = rng.permutation(np.unique(alike[half], axis=0))[:_CLUSTERS]
    nearest = vq(alike, kmeans2(alike[half], begin, minit="matrix")[0])[0]
    clusters = [nearest == number for number in range(len(begin))]
    return {f"cluster {i}{_described(values, chosen & half, half)}": chosen for i, chosen in enumerate(clusters, 1)}


def _described(values: Mapping[str, np.ndarray], chosen: np.ndarray, half: np.ndarray) -> str:
    """The words for the two attributes by which some images differ most from their class, in brackets."""
    apart = {}
    for name, (_, low, high) in ATTRIBUTES.items():
        known, some = values[name][half], values[name][chosen]
        difference = (some.mean() - known.mean()) / max(float(known.std()), 1e-9) if len(some) else 0.0
        apart[high if difference > 0 else low] = abs(difference)
    most = sorted((words for words in apart if apart[words] > _APART), key=lambda words: -apart[words])
    return f" ({', '.join(most[:2])})" if most else ""


def _often(predictions: Predictions, members: np.ndarray) -> list[int]:
    """The classes that images of a class are often taken for."""
    taken = predictions.predicted[members][~predictions.correct[members]]
    return np.flatnonzero(np.bincount(taken) >= _FREQUENT).tolist()


def _promising(
    predictions: Predictions,
    groups: Mapping[str, np.ndarray],
    label: int,
    taken_for: Sequence[int | None],
    members: np.ndarray,
    half: np.ndarray,
) -> list[tuple[Slice, dict[str, Any]]]:
    """The groups of a class that fail more often in its first half, and how they fare in the second."""
    names = predictions.class_names
    wrong = {taken: failed(predictions, members, taken) for taken in taken_for}
    tests = [
        (_test(chosen[half], wrong[taken][half]), taken, words)
        for taken in taken_for
        for words, chosen in groups.items()
    ]
    found: list[tuple[Slice, dict[str, Any]]] = []
    kept: list[np.ndarray] = []
    for before, taken, words in sorted(tests, key=lambda test: test[0]["p"]):
        chosen = groups[words]
        if before["p"] < LEVEL and not any(_overlap(chosen[half], other) > 0.5 for other in kept):
            kept.append(chosen[half])
            row = {"class": names[label], "taken_for": None if taken is None else names[taken], "words": words}
            row |= _test(chosen[~half], wrong[taken][~half]) | {"first_half": before}
            found.append((Slice(label, taken, words, members[chosen & ~half]), row))
    return found


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the smaller of two groups, bool `[n]`, that is in the other."""
    return (a & b).sum() / max(1, min(a.sum(), b.sum()))


def _test(chosen: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """A group beside the others of its class, bool `[n]` both, and whether it fails more often."""
    images, others, errors, other_errors = (
        int(some.sum()) for some in (chosen, ~chosen, chosen & wrong, ~chosen & wrong)
    )
    interval = binomtest(errors, images).proportion_ci(method="wilson") if images else None
    return {
        "images": images,
        "errors": errors,
        "rate": errors / images if images else None,
        "interval": None if interval is None else [float(interval.low), float(interval.high)],
        "others": others,
        "others_rate": other_errors / others if others else None,
        "p": float(hypergeom.sf(errors - 1, images + others, errors + other_errors, images)),
    }


def name_of(row: dict[str, Any]) -> str:
    """What a person calls a group of `figures`: `cat, smooth border`."""
    return f"{row['class']}, {row['words']}"


def error_of(row: dict[str, Any]) -> str:
    """What counts as its error: `wrong`, or `taken for dog`."""
    return "wrong" if row["taken_for"] is None else f"taken for {row['taken_for']}"


def _sentence(row: dict[str, Any]) -> str:
    low, high = (f"{100 * x:.1f}" for x in row["interval"])
    return (
        f"{100 * row['rate']:.1f}% [{low}, {high}] of {row['images']:,} images are {error_of(row)}, "
        f"{100 * row['others_rate']:.1f}% of the class's {row['others']:,} others."
    )
