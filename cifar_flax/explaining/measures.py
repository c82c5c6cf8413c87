"""What is measured of maps: faithfulness, randomised parameters, sensitivity to the class, pointing, places.

Each takes a network, images and predictions, and gives figures; `faithfulness` and `agreement` are their mathematics.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.data import normalize
from cifar_flax.explaining import agreement, cam, explanation, faithfulness
from cifar_flax.network import model
from cifar_flax.network.model import NUM_CLASSES, ResNet
from cifar_flax.training.trained import Network

BASELINES = ("random", "centre", "edges", "another image's map", "occlusion")
NUM_PAIRS = 10
_SUREST = 0.1  # of each class's right predictions: no probability, which label smoothing would keep from being reached
_SAME = 1e-4  # of a map's largest value: below it the maps of two methods are one


# (what, total) to a function that is told how many more are done.
Progress = Callable[[str, int], Callable[[int], None]]


def quiet(what: str, total: int) -> Callable[[int], None]:
    """A `Progress` that shows nothing."""
    del what, total
    return lambda count: None


class Pictures(NamedTuple):
    """What the figures show beside the numbers.

    Attributes:
      pairs: (true, predicted, count) of the most frequent confusions.
      pair_maps: float `[pairs, 2, h, w]`: mean positive map of the predicted and of the true class.
    """

    pairs: Sequence[tuple[int, int, int]]
    pair_maps: np.ndarray


# ---- compiled functions -------------------------------------------------------------------------------


def build_class_maps(network: ResNet, stage: str, methods: Sequence[str]) -> Callable[..., jax.Array]:
    """A compiled function of parameters, images `[B, H, W, 3]` and classes `[B, T]`: maps `[B, T, methods, h, w]`."""

    def to_maps(activation, gradient):
        return jnp.stack([cam.METHODS[method](activation, gradient) for method in methods])

    @explanation.compiled(network)
    def maps(params, images, classes):
        head = functools.partial(model.head, network, params, stage=stage)
        activations = model.features(network, params, normalize(images), stage=stage)
        gradients = cam.target_gradients(head, activations, jax.nn.one_hot(classes, NUM_CLASSES))
        return jax.vmap(jax.vmap(to_maps, in_axes=(None, 0)))(activations, gradients)

    return maps


def probability_of(network: ResNet, params: Any, classes: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Normalised images `[B, 32, 32, 3]` to the probability of each image's class."""

    def probability(images):
        p = jax.nn.softmax(model.forward(network, params, images))
        return jnp.take_along_axis(p, classes[:, None], axis=1)[:, 0]

    return probability


def build_curves(network: ResNet, kind: str, key: jax.Array) -> Callable[..., jax.Array]:
    """A compiled function of parameters, images, classes, ranks and numbers `[B]`: `faithfulness.curves`.

    An image's noise depends on the key and its number alone.
    """

    @explanation.compiled(network)
    def curves(params, images, classes, ranks, numbers):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), images.shape[1:]))(numbers)
        probability = probability_of(network, params, classes)
        return faithfulness.curves(probability, normalize(images), ranks, noise, kind)

    return curves


def build_occlusion(network: ResNet) -> Callable[..., jax.Array]:
    """A compiled function of parameters, images and classes: `faithfulness.occlusion`."""

    @explanation.compiled(network)
    def occlusion(params, images, classes):
        return faithfulness.occlusion(probability_of(network, params, classes), normalize(images))

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
    progress: Progress = quiet,
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
    occluded = explanation.in_batches(
        build_occlusion(network.model), network.params, (images, classes), progress("occlusion", count)
    )
    methods = distinct(maps)
    scores = {name: faithfulness.to_cells(maps[:, place]) for name, place in methods.items()}
    zero = {name: np.asarray(cam.is_zero(jnp.asarray(maps[:, place]))) for name, place in methods.items()}
    scores |= dict(
        zip(
            BASELINES,
            (
                faithfulness.random_scores(count, rng),
                faithfulness.centre_scores(count),
                faithfulness.edge_scores(images),
                faithfulness.to_cells(maps[faithfulness.others(count), 0]),
                occluded,
            ),
            strict=True,
        )
    )
    results: dict[str, Any] = {"images": {"wrong": int((~correct).sum()), "right": int(correct.sum())}}
    ranks = {name: faithfulness.rank(score, rng) for name, score in scores.items()}
    on_batch = progress("faithfulness", count * len(faithfulness.FILLS) * len(ranks))
    for kind in faithfulness.FILLS:
        compiled = build_curves(network.model, kind, jax.random.key(seed))
        results[kind] = {}
        for name, order in ranks.items():
            arrays = (images, classes, order, np.arange(count, dtype=np.uint32))
            curves = explanation.in_batches(compiled, network.params, arrays, on_batch)
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
    progress: Progress = quiet,
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
    compiled, parts = build_class_maps(network.model, stage, list(cam.METHODS)), _parts(network.model, network.params)
    on_batch = progress("randomised parameters", len(images) * (1 + len(seeds) * (2 * len(parts) - 1)))

    def maps_of(params):
        return explanation.in_batches(compiled, params, (images, classes[:, None]), on_batch, list(cam.METHODS))[:, 0]

    original = maps_of(network.params)
    methods = distinct(original)
    orders = {"from the head": [*parts][::-1], "from the stem": [*parts]}
    found: dict[str, Any] = {order: {} for order in orders}
    means: dict[tuple[str, str], list[np.ndarray]] = {}
    random = []
    for seed in seeds:
        fresh = model.init_params(network.model, jax.random.key(seed))
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
    labels: np.ndarray,
    p: np.ndarray,
    *,
    count: int,
    seed: int,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Grid pointing of every method at every stage.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      labels: int `[N]`.
      p: float `[N, 10]`, probabilities.
      count: how many grids.
      seed: draws them.
      progress: is told of grids.
    """
    rng = np.random.default_rng(seed)
    right = p.argmax(axis=1) == labels
    by_class = {}
    for label in np.unique(labels[right]).tolist():
        places = np.flatnonzero(right & (labels == label))
        surest_first = places[np.argsort(-p[places, label], kind="stable")]
        by_class[label] = surest_first[: math.ceil(_SUREST * len(places))]
    if len(by_class) < 4:
        return {"grids": 0}
    classes = np.stack([rng.choice(list(by_class), 4, replace=False) for _ in range(count)])
    chosen = np.array([[rng.choice(by_class[label]) for label in row] for row in classes.tolist()])
    tiles = images[chosen].reshape(count, 2, 2, 32, 32, 3)
    grids = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(count, 64, 64, 3)
    pool = np.concatenate(list(by_class.values()))
    found: dict[str, Any] = {
        "grids": count,
        "drawn_from": len(pool),
        "smallest_probability": float(p[pool, labels[pool]].min()),
    }
    on_batch = progress("pointing", count * len(network.model.stage_names))
    for stage in network.model.stage_names:
        compiled = build_class_maps(network.model, stage, list(cam.METHODS))
        # [G, 4, methods, h, w]
        maps = explanation.in_batches(compiled, network.params, (grids, classes), on_batch, list(cam.METHODS))
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


def measure_whole(
    maps: np.ndarray, labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> tuple[dict[str, Any], Pictures]:
    """Where the maps of all images lie, wrong against right and by class, and mean maps by confusion pair.

    Args:
      maps: float `[N, 2, h, w]`, of the predicted and of the true class.
      labels: int `[N]`.
      predicted: int `[N]`.
      class_names: the ten names.
    """
    shares = agreement.share(maps)
    wrong = labels != predicted
    entropy, centre = agreement.entropy(shares[:, 0]), agreement.centre_of_mass(shares[:, 0])
    overlap, zero = agreement.overlap(shares[:, 0], shares[:, 1]), ~np.isfinite(shares[:, 0, 0, 0])

    def describe(chosen: np.ndarray) -> dict[str, Any]:
        return {
            "count": int(chosen.sum()),
            "zero_map_rate": float(zero[chosen].mean()) if chosen.any() else None,
            "entropy": _mean(entropy[chosen]),
            "centre": [_mean(centre[chosen, axis]) for axis in (0, 1)],
            "overlap": _mean(overlap[chosen & wrong]),
        }

    pairs = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(pairs, (labels[wrong], predicted[wrong]), 1)
    order = np.argsort(-pairs, axis=None, kind="stable")[:NUM_PAIRS]
    top = [(int(t), int(q), int(pairs[t, q])) for t, q in zip(*np.unravel_index(order, pairs.shape)) if pairs[t, q]]  # noqa: B905
    blank = np.zeros(shares.shape[1:])
    means = [
        np.stack(
            [
                np.nanmean(x, axis=0) if np.isfinite(x).any() else b
                for x, b in zip(group.swapaxes(0, 1), blank, strict=True)
            ]
        )
        for group in (shares[(labels == t) & (predicted == q)] for t, q, _ in top)
    ]
    figures = {
        "wrong": describe(wrong),
        "right": describe(~wrong),
        "by_class": {
            name: {"wrong": describe(wrong & (labels == i)), "right": describe(~wrong & (labels == i))}
            for i, name in enumerate(class_names)
        },
    }
    return figures, Pictures(top, np.array(means).reshape(len(top), *blank.shape))
