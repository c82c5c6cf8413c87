"""Which images of one set are most like given ones: the nearest of many vectors, and near duplicates."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE, CORRELATION = 8, 0.98  # of thumbnails, and what two of them have that are near duplicates
_FLAT = 2.0  # the deviation of a thumbnail's pixels, of 255, below which its correlation says nothing
_QUERIES, _KNOWN = 1000, 5000  # at once: 20 MB of products
_FIRST = (0, 100, 1000)  # where the first blocks begin: they are small, since they hold most of what is nearest so far


class Nearest(NamedTuple):
    """The nearest of many vectors to each of `n`.

    Attributes:
      places: int `[n, k]`, the nearest first.
      similarity: float32 `[n, k]`.
    """

    places: np.ndarray
    similarity: np.ndarray


def nearest(
    queries: np.ndarray,
    known: np.ndarray,
    count: int,
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a, b: a @ b.T,
    *,
    skip_self: bool = False,
) -> Nearest:
    """The `count` most similar of `N` vectors to each of `n`, exactly; of equal ones the first.

    Args:
      queries: `[n, ...]`.
      known: `[N, ...]`, with `N` of `count` or more.
      count: how many.
      similarity: of `[a, ...]` and `[b, ...]`, float `[a, b]`: here products, which of unit vectors are cosines.
      skip_self: a query is not its own neighbour; both arrays are the same.
    """
    results = [(np.zeros((0, count), np.float32), np.zeros((0, count), int))]
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        places = np.zeros((len(some), count), int)
        values = np.full((len(some), count), -np.inf, np.float32)
        edges = [edge for edge in (*_FIRST, *range(_KNOWN, len(known), _KNOWN)) if edge < len(known)]
        for first, end in itertools.pairwise([*edges, len(known)]):
            found = similarity(some, known[first:end]).astype(np.float32)
            if skip_self:
                rows = np.arange(max(start, first), min(start + len(some), first + found.shape[1]))
                found[rows - start, rows - first] = -np.inf
            rows, columns = _where(found > values[:, -1:])  # few, after the first block
            better = np.bincount(rows, minlength=len(some))
            slots = np.arange(len(rows)) - np.repeat(np.cumsum(better) - better, better)
            more = np.full((len(some), better.max()), -np.inf, np.float32), np.zeros((len(some), better.max()), int)
            more[0][rows, slots], more[1][rows, slots] = found[rows, columns], columns + first
            values, places = (np.concatenate(x, axis=1) for x in ((values, more[0]), (places, more[1])))
            best = np.argsort(-values, axis=1, kind="stable")[:, :count]  # the first of equal ones stays the first
            values, places = (np.take_along_axis(x, best, axis=1) for x in (values, places))
        results.append((values, places))
    values, places = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Nearest(places, values)


def _where(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.nonzero` of a mask `[n, N]` that is rarely true, several times as fast."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[N, K]` at length 1, float32; a zero one stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """What near duplicates are found by: images `[N, H, W, 3]` of uint8 at 8x8, less their mean, as unit vectors.

    The product of two is their correlation. One that is nearly of one colour is zero: it is like any other.
    """
    small = np.stack([np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BOX)) for x in images])
    small = small.reshape(len(images), -1).astype(np.float32)
    small -= small.mean(axis=1, keepdims=True)
    return unit(np.where(small.std(axis=1, keepdims=True) < _FLAT, 0, small))


def near_duplicates(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The images whose thumbnails correlate by more than `CORRELATION` with another one's.

    Args:
      a: thumbnails `[N, K]`.
      b: others, or None for those before each of `a`.

    Returns:
      int `[n, 2]`: the position of each such image in `a`, and that of the first one like it in `b`, or in `a`.
    """
    partner, known = np.full(len(a), -1), a if b is None else b
    for start in range(0, len(a), _KNOWN):
        for first in range(0, start + 1 if b is None else len(known), _KNOWN):
            alike = a[start : start + _KNOWN] @ known[first : first + _KNOWN].T > CORRELATION
            if b is None and first == start:
                alike = np.tril(alike, -1)
            rows = np.flatnonzero(alike.any(axis=1) & (partner[start : start + _KNOWN] < 0))
            partner[start + rows] = first + alike[rows].argmax(axis=1)
    found = np.flatnonzero(partner >= 0)
    return np.stack([found, partner[found]], axis=1)
