"""How far a network's maps and its confidence can be believed: what `cifar-flax evaluate` measures.

Faithfulness, randomised parameters, sensitivity to the class, and pointing on 2x2 images are measured on images drawn
by a seed; the maps' places and the calibration on all that are evaluated. Every figure comes with its definition.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from cifar_flax.data import Split
from cifar_flax.errors import UserError
from cifar_flax.explaining import calibration, cam, measures
from cifar_flax.explaining.network import Network, Progress, no_progress
from cifar_flax.explaining.predictions import Predictions


class Sizes(NamedTuple):
    """How much is measured of what is too slow to be measured on every image.

    Attributes:
      faithful: wrong predictions, and as many right ones, whose cells are replaced.
      randomised: images whose maps are made with new parameters.
      seeds: of the new parameters, two or more.
      grids: 2x2 images.
    """

    faithful: int = 250
    randomised: int = 50
    seeds: int = 10
    grids: int = 50


DEFAULT_SIZES = Sizes()

DEFINITIONS = {
    "faithfulness": "Softmax probability of the predicted class as an image's 64 cells are replaced, most relevant "
    "first and least relevant first, at 0, 1/8 ... 1 of them; cells ranked by the signed raw map, ties broken "
    "at random. SRG is the area between the two curves (trapezoid), mean over images, with a 95% "
    "bootstrap interval over images. Fills: mean, the training set's mean colour; road, ROAD's linear "
    "imputation (neighbours 1/6, diagonals 1/12, noise 0.01). 'all' weighs wrong and right predictions as "
    "they occur. Zero maps are counted and not scored. Occlusion looks at the answer: a reference, not a "
    "method.",
    "randomisation": "Spearman correlation of signed maps of the predicted class with those of the network whose "
    "parts are initialised anew, cumulatively; mean over images, then over seeds, with the smallest and the largest "
    "seed. 'random against random' is the floor. Passing it proves little: maps that say nothing pass it "
    "too (Binder et al., arXiv 2211.12486).",
    "class_sensitivity": "Spearman correlation of an image's signed maps of its first and second most probable class, "
    "beside that of the first classes' maps of two images; mean over images.",
    "pointing": "2x2 images of four distinct classes, each from the tenth of its class's right predictions that the "
    "network is surest of: share of the positive map of a class that lies in its quadrant, with a 95% bootstrap "
    "interval; chance is 0.25. Zero maps are counted and not scored.",
    "whole": "Of positive maps scaled to a sum of 1, means over images: entropy over that of a uniform map; centre "
    "of mass in pixels, row and column; overlap of the predicted and the true class's map "
    "(sum of the smaller, wrong predictions only). Zero maps are counted and not scored.",
    "calibration": calibration.DEFINITIONS,
    "limits": "Such measures disagree with each other (LATEC, arXiv 2409.16756) and say little about whether a map "
    "helps a person.",
}


class Evaluation(NamedTuple):
    """What was measured.

    Attributes:
      figures: what `trust.json` holds.
      confused: the most frequent confusions, and their mean maps.
    """

    figures: dict[str, Any]
    confused: measures.Pairs


def draw_images(among: int | np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """`count` of so many positions, or of those given, drawn at random; or all: int, ascending."""
    return np.sort(rng.permutation(among)[:count])


def evaluate(
    network: Network,
    test: Split,
    predictions: Predictions,
    *,
    stage: str,
    method: str,
    title: str,
    count: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    sizes: Sizes = DEFAULT_SIZES,
) -> Evaluation:
    """Measures all of it.

    Args:
      network: the network.
      test: the images.
      predictions: of these images.
      stage: the stage explained.
      method: one of `cam.METHODS`, for what is measured on all images.
      title: what the images are, for a person to read.
      count: evaluate so many images, drawn by the seed, or all.
      seed: for every draw.
      progress: (what, total) to a function that is told how many more are done.
      sizes: of what is not measured on all of them.

    Raises:
      UserError: the stage's maps have one place, so that there is nothing to compare.
    """
    image = jax.ShapeDtypeStruct((1, *network.spec.image_shape), np.float32)
    if jax.eval_shape(functools.partial(network.features, stage=stage), image).shape[1:3] == (1, 1):
        raise UserError(f"--stage {stage} has maps of a single place: choose an earlier one")
    rng = np.random.default_rng(seed)
    chosen = draw_images(len(test.images), count, rng)
    images, predictions = test.images[chosen], predictions.take(chosen)
    predicted, correct, ranked = predictions.predicted, predictions.correct, predictions.ranked

    def maps_of(images, classes, methods, what):
        return network.maps(images, classes, stage=stage, methods=methods, on_batch=progress(what, len(images)))

    maps = maps_of(images, np.stack([predicted, predictions.true], axis=1), [method], "maps")[:, :, 0]
    whole, confused = measures.measure_whole(maps, predictions, network.spec.image_size)
    few = np.concatenate([draw_images(np.flatnonzero(kind), sizes.faithful, rng) for kind in (~correct, correct)])
    few = rng.permutation(few)  # so that another image's map is of a wrong prediction as often as of a right one
    maps = maps_of(images[few], ranked[few, :2], [*cam.METHODS], "maps by every method")
    faithful = measures.measure_faithfulness(
        network,
        images[few],
        predicted[few],
        correct[few],
        maps[:, 0],
        accuracy=predictions.accuracy,
        seed=seed,
        progress=progress,
    )
    some = draw_images(len(images), sizes.randomised, rng)
    figures = network.identity() | {
        "stage": stage,
        "method": method,
        "data": title,
        "images": len(images),
        "seed": seed,
        "accuracy": predictions.accuracy,
        "definitions": DEFINITIONS,
        "faithfulness": faithful,
        "randomisation": measures.measure_randomisation(
            network, images[some], predicted[some], stage, range(sizes.seeds), progress
        ),
        "class_sensitivity": measures.measure_sensitivity(maps),
        "pointing": measures.measure_pointing(
            network, images, predictions, count=sizes.grids, seed=seed, progress=progress
        ),
        "whole": whole,
        "calibration": calibration.evaluate(predictions.logits, predictions.true, np.random.default_rng(seed)),
    }
    return Evaluation(figures, confused)
