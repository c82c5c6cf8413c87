"""The training images behind a prediction: those nearest to an image by what the network's last layer sees.

Nearness is the cosine of two images' features, the mean of each channel of the last stage. A neighbour is no cause:
the network may have learned what it says from other images.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cifar_flax import files
from cifar_flax.data import Dataset, Split, similar
from cifar_flax.data.similar import Nearest
from cifar_flax.data.sources import default_data_dir
from cifar_flax.explaining.network import Network, Progress
from cifar_flax.explaining.predictions import Predictions

COUNT, MOST = 5, 50
DOUBTED, _VOTERS = 20, 10
_VERSION = 1  # of what is kept; another one when the same network would give other features
KEPT_FROM = 5000  # training images; of fewer the features take seconds
_MOST_KEPT = 20  # networks' features; ResNet-18's of 50,000 images are 51 MB
_BY_PIXELS = 1000  # errors that are looked up by pixels, at most

DEFINITIONS = {
    "nearest": "training images whose features have the largest cosine with the image's; features are the mean of "
    "each channel of the last stage",
    "pixels": "the same by the Euclidean distance of pixels, of at most 1,000 errors: what looking alike would give",
    "duplicates": "test images with a training image that correlates with them by more than 0.98 at 8x8 pixels",
    "doubted": "images for whose label their 10 nearest training images vote least, compared with the label that they "
    "vote for most; a vote counts as much as its cosine. Most of these labels are right: look for yourself. The "
    "network was trained with the labels of training images, and may have learned errors among them",
}


class Doubted(NamedTuple):
    """Images whose labels their nearest training images contradict.

    Attributes:
      places: int `[d]`, positions in their split, the most doubted first.
      instead: int `[d]`, the label that most of these neighbours carry.
    """

    places: np.ndarray
    instead: np.ndarray


class Neighbours(NamedTuple):
    """The training images nearest to `n` images.

    Attributes:
      places: int `[n, k]`, positions among the training images, the nearest first.
      similarity: float32 `[n, k]`, cosines.
      doubted: of the training images.
      doubted_test: of the test images, whose labels the network has never seen.
      figures: of all errors and of both sets, ready for JSON.
    """

    places: np.ndarray
    similarity: np.ndarray
    doubted: Doubted
    doubted_test: Doubted
    figures: dict[str, Any]


def measure(
    network: Network,
    dataset: Dataset,
    predictions: Predictions,
    shown: np.ndarray,
    count: int,
    progress: Progress,
) -> Neighbours:
    """Looks up the training images nearest to test images.

    Args:
      network: the network.
      dataset: the data set.
      predictions: of its `N` test images, with their features.
      shown: int `[n]`, positions of the test images to look up.
      count: how many training images of each; fewer where there are no more.
      progress: (what, total) to a function that is told how many more are done.
    """
    train, test = dataset.train, dataset.test
    known = training_features(network, train, progress)
    count = min(count, len(known))
    nearest_of_all = nearest(known, predictions, max(count, _VOTERS))
    few_nearest = nearest_of_all.places[:, :count]
    wrong = np.flatnonzero(~predictions.correct)
    few = np.random.default_rng(0).permutation(wrong)[:_BY_PIXELS]
    alike = similar.nearest(test.images[few], train.images, count, _less_distance)
    pairs = similar.near_duplicates(*(similar.thumbnails(split.images) for split in (test, train)))
    apart = np.ones(len(predictions), bool)
    apart[pairs[:, 0]] = False
    voters = similar.nearest(known, known, min(_VOTERS, len(known) - 1), skip_self=True)
    figures = {
        "definitions": DEFINITIONS,
        "count": count,
        "training_images": len(known),
        "errors": len(wrong),
        "nearest": _shares(few_nearest[wrong], wrong, train, predictions),
        "pixels": _shares(alike.places, few, train, predictions),
        "near_duplicates": int((~apart).sum()),
        "accuracy_without_them": float(predictions.correct[apart].mean()) if apart.any() else None,
    }
    doubted = doubt(voters, train.labels, train.labels)
    test_doubted = doubt(Nearest(*(x[:, :_VOTERS] for x in nearest_of_all)), train.labels, test.labels)
    similarity = nearest_of_all.similarity[shown, :count]
    return Neighbours(few_nearest[shown], similarity, doubted, test_doubted, figures)


def _shares(places: np.ndarray, errors: np.ndarray, train: Split, predictions: Predictions) -> dict[str, float] | None:
    """How many of the nearest training images of errors carry the predicted and the true label."""
    if not len(errors):
        return None
    labels = train.labels[places]
    answers = {"predicted": predictions.predicted, "true": predictions.true}
    return {name: float((labels == answer[errors, None]).mean()) for name, answer in answers.items()}


def _less_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What grows as the Euclidean distance of images `a` from images `b`, uint8, falls; for each of `a` on its own."""
    flat, other = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (a, b))
    return flat @ other.T - (other**2).sum(axis=1) / 2


def doubt(voters: Nearest, known: np.ndarray, labels: np.ndarray) -> Doubted:
    """The images whose labels their neighbours contradict most.

    Args:
      voters: the nearest training images of `N` images.
      known: int, the labels of all training images.
      labels: int `[N]`, those in question.
    """
    every = np.arange(len(labels))
    votes = np.zeros((len(labels), max(known.max(), labels.max()) + 1))
    np.add.at(votes, (every[:, None], known[voters.places]), np.maximum(voters.similarity, 0))
    most = votes.argmax(axis=1)
    first = np.argsort(votes[every, labels] - votes.max(axis=1), kind="stable")[:DOUBTED]
    first = first[most[first] != labels[first]]
    return Doubted(first, most[first])


def training_features(network: Network, train: Split, progress: Progress) -> np.ndarray:
    """The features of training images as unit vectors, float32 `[N, K]`.

    Those of many images are kept in the cache of this program, as float16; so all are rounded to that.
    """
    images = hashlib.sha256(np.ascontiguousarray(train.images).data).hexdigest()
    model = network.model  # parameters say nothing of strides, mean and deviation
    shape = [model.widths, model.strides, model.blocks_per_stage, model.norm_kind, network.spec.to_json()]
    what = [_VERSION, network.trained.digest, network.execution.precision, shape, images]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    path = default_data_dir() / "features" / f"{key[:16]}.npy"
    try:
        found = np.load(path, allow_pickle=False)
        if found.dtype == np.float16 and len(found) == len(train.images):
            return similar.unit(found.astype(np.float32))
    except (OSError, ValueError, EOFError):  # there is none, or it is broken and made anew
        pass
    predicted = network.predict(train.images, on_batch=progress("the training images", len(train.images)))
    assert predicted.features is not None
    found = _rounded(predicted.features)
    if len(found) >= KEPT_FROM:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, found.astype(np.float16))
            files.write_atomically(path, buffer.getvalue())
            files.keep_newest(path.parent, _MOST_KEPT)
        except OSError:  # it is computed anew next time
            pass
    return similar.unit(found)


def entries(
    train: Split, class_names: Sequence[str], places: np.ndarray, similarity: np.ndarray
) -> list[dict[str, Any]]:
    """The training images nearest to one image, int and float `[k]`, ready for JSON."""
    return [
        {
            "index": int(train.indices[i]),
            "label": class_names[int(train.labels[i])],
            "similarity": round(float(cosine), 4),
        }
        for i, cosine in zip(places, similarity, strict=True)
    ]


def nearest(known: np.ndarray, predictions: Predictions, count: int) -> Nearest:
    """The training images, by their features as `training_features` returns them, nearest to what was predicted."""
    assert predictions.features is not None
    return similar.nearest(similar.unit(_rounded(predictions.features)), known, min(count, len(known)))


def _rounded(features: np.ndarray) -> np.ndarray:
    return features.astype(np.float16).astype(np.float32)
