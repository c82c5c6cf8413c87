"""How maps agree with each other, and where they lie: pure functions of arrays of maps `[..., h, w]`."""

import numpy as np
from scipy.stats import rankdata


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation of signed maps `[..., h, w]`, ties sharing their rank: `[...]`, NaN where a map is constant.

    >>> float(spearman(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[4.0, 3.0], [2.0, 1.0]])))
    -1.0
    """
    ranks = [rankdata(maps.reshape(*maps.shape[:-2], -1), axis=-1) for maps in (first, second)]
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def share(maps: np.ndarray) -> np.ndarray:
    """The positive part of maps, scaled to a sum of 1: `[..., h, w]`, NaN for a zero map."""
    positive = np.maximum(maps, 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return positive / positive.sum(axis=(-2, -1), keepdims=True)


def entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy of shares `[..., h, w]` over that of a uniform map: 0 for a single place, 1 for none preferred.

    NaN of a map that has one place.
    """
    terms = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), shares * 0)
    with np.errstate(invalid="ignore"):
        return -terms.sum(axis=(-2, -1)) / np.log(shares.shape[-1] * shares.shape[-2])


def centre_of_mass(shares: np.ndarray, size: int = 32) -> np.ndarray:
    """Row and column, in pixels of an image of `size`, of shares `[..., h, w]`: `[..., 2]`; the middle is size / 2."""
    height, width = shares.shape[-2:]
    rows, columns = ((np.arange(n) + 0.5) * size / n for n in (height, width))
    along = (shares.sum(axis=-1) * rows).sum(axis=-1), (shares.sum(axis=-2) * columns).sum(axis=-1)
    return np.stack(along, axis=-1)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What two shares `[..., h, w]` have in common, the sum of the smaller ones: 0 to 1."""
    return np.minimum(first, second).sum(axis=(-2, -1))


def pointing(maps: np.ndarray) -> np.ndarray:
    """Share of the positive map that lies in the right quadrant of a 2x2 image.

    Args:
      maps: float `[..., 4, h, w]`: the maps of the classes top left, top right, bottom left, bottom right.

    Returns:
      `[..., 4]`; 0.25 for a map that knows nothing, NaN for a zero map.
    """
    if maps.shape[-1] % 2:  # the middle row and column belong to two quadrants
        maps = maps.repeat(2, axis=-2).repeat(2, axis=-1)
    *lead, _, height, width = maps.shape
    quarters = share(maps).reshape(*lead, 4, 2, height // 2, 2, width // 2).sum(axis=(-3, -1)).reshape(*lead, 4, 4)
    return np.diagonal(quarters, axis1=-2, axis2=-1)
