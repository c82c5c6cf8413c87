"""A person's own pictures: explained for all classes, and put on a page.

A network names one of its classes for anything. So each picture is marked whose features are farther from
those of training images than nearly all test images' are (deep nearest neighbours, Sun et al. 2022, arXiv 2204.06507).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from cifar_flax import files
from cifar_flax.data import Dataset, Split
from cifar_flax.data.pictures import Picture
from cifar_flax.errors import printable
from cifar_flax.explaining import cam, neighbours, pages
from cifar_flax.explaining.folder import PICTURES, replacing
from cifar_flax.explaining.network import Network, OnBatch, no_progress

UNLIKE_SHARE, NEIGHBOUR = 0.05, 10
_LAYER = 64  # pixels along a map on the page, which the browser stretches

REFERENCE = 1000


def rule(reference: Dataset) -> str:
    """What makes a picture unlike a data set, in words."""
    train, test = (min(REFERENCE, len(split.images)) for split in (reference.train, reference.test))
    return (
        "the means of a picture's channels, of all stages and in standard deviations, are farther from those of the "
        f"{NEIGHBOUR}th nearest of {train:,} training images than for all but {100 * UNLIKE_SHARE:.0f}% of "
        f"{test:,} test images"
    )


def distance(network: Network, images: np.ndarray, reference: Dataset) -> tuple[np.ndarray, float]:
    """How far images are from the training set to a network.

    Args:
      network: the network.
      images: uint8 `[N, H, W, 3]`.
      reference: what they are compared with; of its training and its test images at most `REFERENCE` each.

    Returns:
      Of each image the Euclidean distance of its features, in standard deviations over the training images, from
      those of its `NEIGHBOUR`-th nearest training image, float `[N]`; and what `UNLIKE_SHARE` of the test images
      exceed.
    """
    images = network.spec.check_images(images)

    def features(images):  # of every stage, since early ones see what the last no longer does
        return network.channel_means(images, network.stages)

    known = features(_drawn(reference.train))
    deviation = known.std(axis=0)
    deviation[deviation == 0] = np.inf  # a channel that is never active tells nothing

    def nearest(images):
        distances = cdist(features(images) / deviation, known / deviation)
        return np.sort(distances, axis=1)[:, min(NEIGHBOUR, len(known)) - 1]

    return nearest(images), float(np.quantile(nearest(_drawn(reference.test)), 1 - UNLIKE_SHARE))


def _drawn(split: Split) -> np.ndarray:
    """At most `REFERENCE` images of a split, drawn once: the first ones of a folder are of its first classes."""
    if len(split.images) <= REFERENCE:
        return split.images
    return split.images[np.random.default_rng(0).permutation(len(split.images))[:REFERENCE]]


# ---- the page ------------------------------------------------------------------------------------


def _layer(raw: np.ndarray) -> str:
    """A map `[h, w]` in JET's colours as a PNG; "" for a zero map."""
    if bool(cam.is_zero(raw)):
        return ""
    shown = np.asarray(cam.to_image(raw, (_LAYER, _LAYER)))
    return pages.picture_url(Image.fromarray(cam.JET[(255 * shown).astype(np.uint8)]), "PNG")


def _card(picture: Picture, entry: dict[str, Any], raw: np.ndarray) -> dict[str, Any]:
    return entry | {
        "title": printable(picture.path.name),
        "whole": pages.picture_url(picture.whole, "JPEG"),
        "middle": pages.picture_url(picture.middle, "JPEG"),
        "input": pages.picture_url(Image.fromarray(picture.pixels), "PNG"),
        "layers": [_layer(x) for x in raw],
    }


def write(
    folder: Path,
    network: Network,
    pictures: Sequence[Picture],
    refused: Sequence[str],
    *,
    stage: str,
    method: str,
    reference: Dataset | None,
    overwrite: bool,
    labels: np.ndarray | None = None,
    on_batch: OnBatch = lambda count: None,
) -> dict[str, Any]:
    """Explains pictures and writes `pictures.html`, `pictures.json` and `cams.npz`, or nothing.

    Args:
      folder: the output directory; must not exist unless `overwrite`.
      network: the network.
      pictures: as `pictures.read` returns them, one or more.
      refused: a line for each that could not be read.
      stage: the stage whose activation is explained.
      method: one of `cam.METHODS`.
      reference: the data set whose images a picture may be unlike; None where it is not at hand.
      overwrite: replace `folder`, once the new one is complete.
      labels: int `[N]`, the classes of the pictures, if these are known.
      on_batch: called with the number of pictures done since the last call.

    Returns:
      The manifest.

    Raises:
      UserError: `folder` exists or cannot be written.
    """
    images = np.stack([picture.pixels for picture in pictures])
    predictions = network.predict(images, labels)
    count, names = len(pictures), network.spec.class_names
    distances, limit = np.full(count, np.nan), np.inf
    nearest, thumbnails = [[] for _ in pictures], [[] for _ in pictures]  # training images, and their pictures
    if reference is not None:
        distances, limit = distance(network, images, reference)
        known = neighbours.training_features(network, reference.train, no_progress)
        found = neighbours.nearest(known, predictions, neighbours.COUNT)
        nearest = [neighbours.entries(reference.train, names, *pair) for pair in zip(*found, strict=True)]
        thumbnails = [
            [pages.picture_url(Image.fromarray(image), "PNG") for image in reference.train.images[places]]
            for places in found.places
        ]
    classes = predictions.explained_classes()
    raw = network.maps(images, classes, stage=stage, methods=[method], on_batch=on_batch)[:, :, 0]
    entries = [
        {
            "file": printable(str(picture.path)),
            "size": list(picture.whole.size),
            "predicted": predictions.names[i],
            "probabilities": [round(float(x), 6) for x in predictions.probabilities[i]],
            "distance": None if reference is None else round(float(distances[i]), 4),
            "unlike": bool(distances[i] > limit),
            "neighbours": nearest[i],
        }
        | ({} if labels is None else {"true": names[labels[i]]})
        for i, picture in enumerate(pictures)
    ]
    manifest = (
        PICTURES.header()
        | network.identity()
        | {
            "stage": stage,
            "method": method,
            "class_names": list(names),
            "accuracy": None if labels is None else predictions.accuracy,
            "confusion": None if labels is None else predictions.confusion.tolist(),
            "rule": "" if reference is None else rule(reference),
            "threshold": None if reference is None else round(limit, 4),
            "pictures": entries,
            "refused": list(refused),
            "files": ["cams.npz", "pictures.html"],
        }
    )
    cards = [
        _card(picture, entry, maps) | {"classes": explained.tolist(), "nearest": shown}
        for picture, entry, maps, explained, shown in zip(pictures, entries, raw, classes, thumbnails, strict=True)
    ]
    content = manifest | {"pictures": cards, "image_size": network.spec.image_size}
    with replacing(folder, PICTURES, overwrite=overwrite) as new:
        (new / PICTURES.manifest).write_text(files.to_json(manifest, indent=1) + "\n")
        np.savez(new / "cams.npz", files=[entry["file"] for entry in entries], classes=classes, raw=raw)
        (new / "pictures.html").write_text(pages.render("pictures.html", content), encoding="utf-8")
    return manifest
