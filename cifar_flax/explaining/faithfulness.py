"""Faithfulness: does the explained class's probability fall as the places that a map marks are replaced?

An image is 8x8 cells, in CIFAR-10 of 4x4 pixels. They are replaced in steps of an eighth of them, most relevant first
and, apart, least relevant first; the area between the two curves of the probability is the map's score, the symmetric
relevance gain (SRG, Bluecher et al. 2024, arXiv 2401.06654). A cell is replaced by the data set's mean colour, which
normalisation makes 0, or by ROAD's noisy linear imputation (Rong et al. 2022, arXiv 2202.00449).

Pure functions of plain arrays.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse import linalg as sparse_linalg

GRID = 8
NUM_CELLS = GRID * GRID
NUM_STEPS = 8
NOISE = 0.01
# Of conjugate gradients. They end within 2e-3 of the solution, where seven of eight rows are a single hole too.
_ITERATIONS = 72
_RESIDUAL = 1e-6  # at which a channel is solved


# ---- rankings ------------------------------------------------------------------------------------


def to_cells(maps: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Maps `[..., h, w]` by cell, `[..., grid, grid]`: the mean over a cell of a map that is constant in each place.

    >>> to_cells(np.array([[1.0, 3.0], [5.0, 7.0]]), grid=1)
    array([[4.]])
    """
    # Each place as `grid` equal parts, of which a cell takes as many as there are places.
    rows, columns = (
        np.eye(places, dtype=maps.dtype).repeat(grid, axis=0).reshape(grid, places, places).mean(axis=1)
        for places in maps.shape[-2:]
    )
    return rows @ maps @ columns.T


def rank(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each cell's rank, 0 the most relevant, ties broken at random.

    Args:
      scores: float `[N, 8, 8]`.
      rng: breaks the ties.

    Returns:
      int32 `[N, 8, 8]`, each image's a permutation of 0 ... 63.
    """
    flat = scores.reshape(len(scores), -1)
    order = np.lexsort((rng.random(flat.shape), -flat), axis=-1)
    return np.argsort(order, axis=-1).reshape(scores.shape).astype(np.int32)


def random_scores(count: int, rng: np.random.Generator) -> np.ndarray:
    """Scores that know nothing, `[count, 8, 8]`."""
    return rng.random((count, GRID, GRID))


def centre_scores(count: int) -> np.ndarray:
    """The nearer to the centre the higher, whatever the image: `[count, 8, 8]`."""
    offsets = np.arange(GRID) - (GRID - 1) / 2
    return np.broadcast_to(-(offsets[:, None] ** 2 + offsets**2), (count, GRID, GRID))


def edge_scores(images: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels of uint8 images `[N, 32, 32, 3]`, by cell: `[N, 8, 8]`."""
    pixels = images.astype(np.float32)
    down, right = (abs(np.diff(pixels, axis=axis, append=pixels.take([-1], axis))) for axis in (1, 2))
    return to_cells((down + right).sum(axis=-1))


def others(count: int) -> np.ndarray:
    """For each of `count` images another one's position, int: half-way round the list."""
    return (np.arange(count) + max(1, count // 2)) % count


# ---- replacing cells ---------------------------------------------------------------------------------


def neighbours(maps: jax.Array) -> jax.Array:
    """Weighted sums of each pixel's neighbours in maps `[..., H, W]`: the four near 1/6, the four diagonal 1/12."""
    pad = jnp.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)])
    rows = pad[..., :-2, :] + 2 * pad[..., 1:-1, :] + pad[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * maps) / 12


def impute(images: jax.Array, known: jax.Array) -> jax.Array:
    """Replaces pixels by weighted means of their neighbours, known or replaced themselves: ROAD without its noise.

    The linear system is symmetric and positive definite; conjugate gradients solve it, from the mean known pixel.

    Args:
      images: float `[B, C, H, W]`.
      known: bool `[B, H, W]`; where an image has no known pixel, all of it becomes 0.

    Returns:
      `[B, C, H, W]`.
    """
    holes = ~known[:, None]
    held = jnp.where(holes, 0, images)
    weights = neighbours(jnp.ones(images.shape[-2:]))
    start = held.sum(axis=(-2, -1), keepdims=True) / jnp.maximum(1, known.sum(axis=(-2, -1))[:, None, None, None])
    filled = jnp.where(holes, start, held)

    def solve(start: jax.Array, hole: jax.Array) -> jax.Array:
        """A channel `[H, W]` in whose hole each pixel is the mean of its neighbours."""

        def apply(x: jax.Array) -> jax.Array:
            return jnp.where(hole, weights * x - neighbours(x), 0)

        change, _ = sparse_linalg.cg(apply, -apply(start), tol=0.0, atol=_RESIDUAL, maxiter=_ITERATIONS)
        return start + change

    solved = jax.vmap(jax.vmap(solve, (0, None)))(filled, ~known)
    return jnp.where(known.any(axis=(-2, -1))[:, None, None, None], solved, 0)


def enlarged(cells: jax.Array, size: int) -> jax.Array:
    """Cells `[..., 8, 8]` at an image's size: `[..., size, size]`. They are equal where 8 divides the size."""
    of_pixel = jnp.arange(size) * GRID // size
    return cells[..., of_pixel[:, None], of_pixel]


def masks_of(ranks: jax.Array, size: int) -> jax.Array:
    """The cells that are kept at each step of both curves.

    Args:
      ranks: int `[B, 8, 8]`.
      size: pixels along an image.

    Returns:
      bool `[16, B, size, size]`: without the 1/8, 2/8 ... 7/8 most relevant; without as many of the least
      relevant; whole; and nothing at all.
    """
    cut = jnp.arange(1, NUM_STEPS)[:, None, None, None] * (NUM_CELLS // NUM_STEPS)
    all_kept = jnp.ones((1, *ranks.shape), bool)
    kept = jnp.concatenate([ranks[None] >= cut, ranks[None] < NUM_CELLS - cut, all_kept, ~all_kept])
    return enlarged(kept, size)


FILLS = ("mean", "road")


def fill(images: jax.Array, kept: jax.Array, noise: jax.Array, kind: str) -> jax.Array:
    """Images whose other pixels are replaced.

    Args:
      images: float `[B, H, W, 3]`, normalised.
      kept: bool `[B, H, W]`.
      noise: float `[B, H, W, 3]`, standard normal, for ROAD.
      kind: one of `FILLS`.
    """
    if kind == "mean":
        return jnp.where(kept[..., None], images, 0)
    imputed = jnp.moveaxis(impute(jnp.moveaxis(images, -1, 1), kept), 1, -1)
    return jnp.where(kept[..., None], images, imputed + NOISE * noise)


def curves(
    probability: Callable[[jax.Array], jax.Array], images: jax.Array, ranks: jax.Array, noise: jax.Array, kind: str
) -> jax.Array:
    """Probability of the explained class as cells are replaced.

    Args:
      probability: normalised images `[B, H, W, 3]` to float `[B]`.
      images: float `[B, H, W, 3]`, normalised.
      ranks: int `[B, 8, 8]`, as `rank` returns them.
      noise: float `[B, H, W, 3]`.
      kind: one of `FILLS`.

    Returns:
      `[B, 2, 9]`: most relevant first, least relevant first; with 0, 1/8, ..., 1 of the cells replaced.
    """
    kept = masks_of(ranks, images.shape[1])
    found = jax.lax.map(lambda mask: probability(fill(images, mask, noise, kind)), kept).T  # [B, 16]
    steps = NUM_STEPS - 1
    whole, nothing = found[:, -2:-1], found[:, -1:]
    both = [jnp.concatenate([whole, found[:, i : i + steps], nothing], axis=1) for i in (0, steps)]
    return jnp.stack(both, axis=1)


def occlusion(probability: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """How much the probability falls when one cell alone is replaced by the mean: `[B, 8, 8]`.

    It looks at the very answer that the curves are made of: a reference, not a method.
    """
    cells = jnp.eye(NUM_CELLS, dtype=bool).reshape(NUM_CELLS, GRID, GRID)
    kept = ~enlarged(cells, images.shape[1])
    found = jax.lax.map(lambda mask: probability(jnp.where(mask[None, ..., None], images, 0)), kept)
    return (probability(images)[None] - found).T.reshape(-1, GRID, GRID)


# ---- figures ---------------------------------------------------------------------------------------


def area(curve: np.ndarray) -> np.ndarray:
    """Area under curves `[..., n]` of equal steps from 0 to 1, by the trapezoidal rule."""
    return np.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), axis=-1)


def relevance_gain(found: np.ndarray) -> np.ndarray:
    """SRG of each image, float `[N]`, from its curves `[N, 2, 9]`."""
    return area(found[:, 1]) - area(found[:, 0])


def bootstrap(
    groups: Sequence[np.ndarray], weights: Sequence[float], rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """95% interval of a weighted sum of means, each group of values `[n]` resampled by itself."""
    means = [values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1) for values in groups]
    low, high = np.percentile(np.dot(weights, means), [2.5, 97.5])
    return float(low), float(high)
