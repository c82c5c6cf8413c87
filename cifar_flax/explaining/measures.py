"""What is measured of maps: faithfulness, randomised parameters, sensitivity to the class, pointing, places.

Each takes a network, images and predictions, and gives figures; `faithfulness` and `agreement` are their mathematics.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.explaining import agreement, cam, faithfulness
from cifar_flax.explaining.network import Network, Progress, no_progress
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.network import model as model_lib
from cifar_flax.network.model import ResNet

BASELINES = ("random", "centre", "edges", "another image's map", "occlusion")
NUM_PAIRS = 10
_SUREST = 0.1  # of each class's right predictions: no probability, which label smoothing would keep from being reached
_SAME = 1e-4  # of a map's largest value: below it the maps of two methods are one


class Pairs(NamedTuple):
    """The most frequent confusions.

    Attributes:
      pairs: (true, predicted, count).
      maps: float `[pairs, 2, h, w]`: mean positive map of the predicted and of the true class.
    """

    pairs: Sequence[tuple[int, int, int]]
    maps: np.ndarray


# ---- what is compiled ---------------------------------------------------------------------------------


def probability_of(model: ResNet, params: Any, classes: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Normalised images `[B, H, W, 3]` to the probability of each image's class."""

    def probability(images):
        p = jax.nn.softmax(model_lib.forward(model, params, images))
        return jnp.take_along_axis(p, classes[:, None], axis=1)[:, 0]

    return probability


def build_curves(model: ResNet, kind: str, seed: int) -> Callable[..., jax.Array]:
    """A function of parameters, images, classes, ranks and numbers `[B]`: `faithfulness.curves`.

    An image's noise depends on the seed and its number alone.
    """

    def curves(params, images, classes, ranks, numbers):
        key = jax.random.key(seed)
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), images.shape[1:]))(numbers)
        probability = probability_of(model, params, classes)
        return faithfulness.curves(probability, model.spec.normalize(images), ranks, noise, kind)

    return curves


def build_occlusion(model: ResNet) -> Callable[..., jax.Array]:
    """A function of parameters, images and classes: `faithfulness.occlusion`."""

    def occlusion(params, images, classes):
        return faithfulness.occlusion(probability_of(model, params, classes), model.spec.normalize(images))

    return occlusion


def distinct(maps: np.ndarray) -> dict[str, int]:
    """The methods whose maps `[N, methods, h, w]` differ: their names, joined where they are one map, and its place.

    At the stage that feeds the average pooling Grad-CAM, HiResCAM and XGrad-CAM are one.
    """
    scale = abs(maps).max(axis=(-2, -1), keepdims=True) + 1e-30
    found: dict[int, list[str]] = {}
    for place, method in enumerate(cam.METHODS):
        same = (first for first in found if (abs(maps[:, place] - maps[:, first]) / scale[:, first]).max() < _SAME)
        found.setdefault(next(same, place), []).append(method)
    return {" = ".join(names): place for place, names in found.items()}


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


# ---- the parts ---------------------------------------------------------------------------------------


def measure_faithfulness(
    network: Network,
    images: np.ndarray,
    classes: np.ndarray,
    correct: np.ndarray,
    maps: np.ndarray,
    *,
    accuracy: float,
    seed: int,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """SRG of every distinct method and baseline, for wrong and right predictions apart, with both fills.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      classes: int `[N]`, the predicted class, which is explained.
      correct: bool `[N]`.
      maps: float `[N, methods, h, w]`, raw maps of that class by every method.
      accuracy: of all images, by which wrong and right predictions are weighed in `all`.
      seed: draws ties, noise, the random baseline and the bootstrap.
      progress: is told of curves.
    """
    rng, count = np.random.default_rng(seed), len(images)
    occluded = network.in_batches(network.compiled(build_occlusion), (images, classes), progress("occlusion", count))
    methods = distinct(maps)
    scores = {name: faithfulness.to_cells(maps[:, place]) for name, place in methods.items()}
    zero = {name: np.asarray(cam.is_zero(maps[:, place])) for name, place in methods.items()}
    baselines = (
        faithfulness.random_scores(count, rng),
        faithfulness.centre_scores(count),
        faithfulness.edge_scores(images),
        faithfulness.to_cells(maps[faithfulness.others(count), 0]),
        occluded,
    )
    scores |= dict(zip(BASELINES, baselines, strict=True))
    results: dict[str, Any] = {"images": {"wrong": int((~correct).sum()), "right": int(correct.sum())}}
    ranks = {name: faithfulness.rank(score, rng) for name, score in scores.items()}
    on_batch = progress("faithfulness", count * len(faithfulness.FILLS) * len(ranks))
    for kind in faithfulness.FILLS:
        compiled = network.compiled(build_curves, kind, seed)
        results[kind] = {}
        for name, order in ranks.items():
            arrays = (images, classes, order, np.arange(count, dtype=np.uint32))
            curves = network.in_batches(compiled, arrays, on_batch)
            kept = ~zero.get(name, np.zeros(count, bool))
            results[kind][name] = _gains(curves, correct, kept, accuracy, rng)
    return results


def _gains(
    curves: np.ndarray, correct: np.ndarray, kept: np.ndarray, accuracy: float, rng: np.random.Generator
) -> dict[str, Any]:
    gains, groups = faithfulness.relevance_gain(curves), {"wrong": ~correct & kept, "right": correct & kept}
    weights = {"wrong": 1 - accuracy, "right": accuracy}
    found: dict[str, Any] = {"zero_maps": int((~kept).sum())}
    for name, chosen in groups.items():
        if chosen.any():
            found[name] = {
                "srg": float(gains[chosen].mean()),
                "interval": faithfulness.bootstrap([gains[chosen]], [1.0], rng),
                "most_relevant_first": curves[chosen, 0].mean(axis=0).tolist(),
                "least_relevant_first": curves[chosen, 1].mean(axis=0).tolist(),
            }
    if all(name in found for name in groups):
        found["all"] = {
            "srg": sum(weights[name] * found[name]["srg"] for name in groups),
            "interval": faithfulness.bootstrap(
                [gains[chosen] for chosen in groups.values()], [*weights.values()], rng
            ),
        }
    return found


def _parts(network: ResNet, names: Iterable[str]) -> dict[str, list[str]]:
    """The network's parts from stem to head, and which of the parameters' names each has."""
    stages = {stage: [name for name in names if name.startswith(f"{stage}_")] for stage in network.stage_names[1:]}
    return {"stem": ["conv", "norm"], **stages, "head": ["linear"]}


def measure_randomisation(
    network: Network,
    images: np.ndarray,
    classes: np.ndarray,
    stage: str,
    seeds: Sequence[int],
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Correlation of signed maps with those of a network whose parts are initialised anew, part after part.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      classes: int `[N]`, which are explained.
      stage: the stage explained.
      seeds: of the new parameters, two or more.
      progress: is told of images.
    """
    parts = _parts(network.model, network.params)
    on_batch = progress("randomised parameters", len(images) * (1 + len(seeds) * (2 * len(parts) - 1)))

    def maps_of(params):
        return network.maps(
            images, classes[:, None], stage=stage, methods=[*cam.METHODS], on_batch=on_batch, params=params
        )[:, 0]

    original = maps_of(network.params)
    methods = distinct(original)
    orders = {"from the head": [*parts][::-1], "from the stem": [*parts]}
    found: dict[str, Any] = {order: {} for order in orders}
    means: dict[tuple[str, str], list[np.ndarray]] = {}
    random = []
    for seed in seeds:
        fresh = model_lib.init_params(network.model, jax.random.key(seed))
        everything = maps_of(fresh)
        random.append(everything)
        for order, names in orders.items():
            for place, part in enumerate(names):
                replaced = {name for done in names[: place + 1] for name in parts[done]}
                mixed = {name: (fresh if name in replaced else network.params)[name] for name in network.params}
                maps = everything if place == len(names) - 1 else maps_of(mixed)
                means.setdefault((order, part), []).append(np.nanmean(agreement.spearman(original, maps), axis=0))
    floor = [np.nanmean(agreement.spearman(a, b), axis=0) for a, b in itertools.pairwise(random)]
    for (order, part), by_seed in [*means.items(), (("random against random", ""), floor)]:
        table = {
            name: {
                "mean": float(np.mean([x[i] for x in by_seed])),
                "range": [float(f([x[i] for x in by_seed])) for f in (min, max)],
            }
            for name, i in methods.items()
        }
        if part:
            found[order][f"to {part}"] = table
        else:
            found[order] = table
    return {"images": len(images), "seeds": len(seeds), **found}


def measure_sensitivity(maps: np.ndarray) -> dict[str, Any]:
    """Correlation of maps of two classes of an image, and of two images.

    Args:
      maps: float `[N, 2, methods, h, w]`, of the most and the second most probable class.
    """
    first, second = maps[:, 0], maps[:, 1]
    classes = agreement.spearman(first, second)
    images = agreement.spearman(first, first[faithfulness.others(len(first))])
    return {
        "images": len(maps),
        **{
            name: {"first and second class": _mean(classes[:, i]), "two images": _mean(images[:, i])}
            for name, i in distinct(first).items()
        },
    }


def measure_pointing(
    network: Network,
    images: np.ndarray,
    predictions: Predictions,
    *,
    count: int,
    seed: int,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Grid pointing of every method at every stage.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      predictions: of these images.
      count: how many grids.
      seed: draws them.
      progress: is told of grids.
    """
    rng = np.random.default_rng(seed)
    by_class = {}
    for label in np.unique(predictions.true[predictions.correct]).tolist():
        surest_first = predictions.select(correct=True, sort="confidence", true=label)
        by_class[label] = surest_first[: math.ceil(_SUREST * len(surest_first))]
    if len(by_class) < 4:
        return {"grids": 0}
    classes = np.stack([rng.choice(list(by_class), 4, replace=False) for _ in range(count)])
    chosen = np.array([[rng.choice(by_class[label]) for label in row] for row in classes.tolist()])
    height, width = images.shape[1:3]
    tiles = images[chosen].reshape(count, 2, 2, height, width, 3)
    grids = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * height, 2 * width, 3)
    pool = np.concatenate(list(by_class.values()))
    found: dict[str, Any] = {
        "grids": count,
        "drawn_from": len(pool),
        "smallest_probability": float(predictions.confidence[pool].min()),
    }
    on_batch = progress("pointing", count * len(network.stages))
    for stage in network.stages:
        # [G, 4, methods, h, w]
        maps = network.maps(grids, classes, stage=stage, methods=[*cam.METHODS], on_batch=on_batch)
        shares = agreement.pointing(maps.swapaxes(1, 2))
        found[stage] = {}
        for name, i in distinct(maps.reshape(-1, *maps.shape[2:])).items():
            scored = shares[:, i].ravel()
            scored = scored[np.isfinite(scored)]
            found[stage][name] = {
                "zero_maps": count * 4 - len(scored),
                "share": _mean(scored),
                "interval": faithfulness.bootstrap([scored], [1.0], rng) if len(scored) else None,
            }
    return found


def measure_whole(maps: np.ndarray, predictions: Predictions, image_size: int) -> tuple[dict[str, Any], Pairs]:
    """Where the maps of all images lie, wrong against right and by class, and mean maps by confusion pair.

    Args:
      maps: float `[N, 2, h, w]`, of the predicted and of the true class.
      predictions: of these images.
      image_size: pixels along an image.
    """
    labels, predicted, wrong = predictions.true, predictions.predicted, ~predictions.correct
    shares = agreement.share(maps)
    entropy, centre = agreement.entropy(shares[:, 0]), agreement.centre_of_mass(shares[:, 0], image_size)
    overlap, zero = agreement.overlap(shares[:, 0], shares[:, 1]), ~np.isfinite(shares[:, 0, 0, 0])

    def describe(chosen: np.ndarray) -> dict[str, Any]:
        return {
            "count": int(chosen.sum()),
            "zero_map_rate": float(zero[chosen].mean()) if chosen.any() else None,
            "entropy": _mean(entropy[chosen]),
            "centre": [_mean(centre[chosen, axis]) for axis in (0, 1)],
            "overlap": _mean(overlap[chosen & wrong]),
        }

    confused = np.where(np.eye(len(predictions.class_names), dtype=bool), 0, predictions.confusion)
    top = [
        (int(true), int(taken), int(confused[true, taken]))
        for true, taken in np.argwhere(confused)[np.argsort(-confused[confused > 0], kind="stable")][:NUM_PAIRS]
    ]
    pair_maps = [_mean_maps(shares[(labels == true) & (predicted == taken)]) for true, taken, _ in top]
    figures = {
        "wrong": describe(wrong),
        "right": describe(~wrong),
        "by_class": {
            name: {"wrong": describe(wrong & (labels == i)), "right": describe(~wrong & (labels == i))}
            for i, name in enumerate(predictions.class_names)
        },
    }
    return figures, Pairs(top, np.array(pair_maps).reshape(len(top), *shares.shape[1:]))


def _mean_maps(shares: np.ndarray) -> np.ndarray:
    """The mean of `[n, 2, h, w]` over images, zero maps left out, and 0 where there are only such: `[2, h, w]`."""
    scored = np.isfinite(shares)  # all of a map, or nothing of it
    return np.where(scored, shares, 0).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)
