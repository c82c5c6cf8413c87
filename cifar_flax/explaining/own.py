"""A person's own pictures: read, brought to the network's size, explained for all ten classes, and put on a page.

A network of ten classes names one of them for anything. So each picture is marked whose features are farther from
those of training images than nearly all test images' are (deep nearest neighbours, Sun et al. 2022, arXiv 2204.06507).
"""

import base64
import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
from scipy.spatial.distance import cdist

from cifar_flax import data, files
from cifar_flax.data import CLASS_NAMES
from cifar_flax.errors import UserError, printable
from cifar_flax.explaining import cam, explanation, pages
from cifar_flax.explaining.folder import PICTURES, replacing
from cifar_flax.network import model
from cifar_flax.training.trained import Network

SIZE = 32
UNLIKE_SHARE, NEIGHBOUR = 0.05, 10
_SHOWN = 320  # pixels along a picture on the page
_LAYER = 64  # pixels along a map on the page, which the browser stretches

RULE = (
    f"the means of a picture's channels, of all stages and in standard deviations, are farther from those of the "
    f"{NEIGHBOUR}th nearest of the sample's 1,000 training images than for all but {100 * UNLIKE_SHARE:.0f}% of its "
    "1,000 test images"
)


class Picture(NamedTuple):
    """A picture as it was read: the file, the whole picture in RGB, and uint8 `[32, 32, 3]` of its middle."""

    path: Path
    whole: Image.Image
    pixels: np.ndarray


# ---- reading -------------------------------------------------------------------------------------


def find(path: Path) -> list[Path]:
    """The file that is named, or all pictures in a folder, by their endings.

    Raises:
      UserError: it is not there, or is a folder without a picture.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"--images {path} is a link to nothing: leave it out, or mend it")
    if not path.exists():
        raise UserError(f"--images {path} is not there: expected a picture or a folder of pictures")
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise UserError(f"--images {path} may not be read: leave it out, or change its rights")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"--images {path} is neither a file nor a folder: expected a picture or a folder of pictures")
    if not path.is_dir():
        return [path]
    endings = Image.registered_extensions()
    if found := sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file()):
        return found
    raise UserError(
        f"--images {path} holds no picture: expected files in it that end in .jpg, .png or another picture's ending"
    )


def read(path: Path) -> Picture:
    """Reads a picture of any kind that Pillow knows: turned as its EXIF says, transparency on white.

    The middle square is brought to 32x32 by a bilinear filter as wide as the reduction.

    Raises:
      UserError: it cannot be read, or is too large to be meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                whole = None if opened.mode in ("F", "I") else _to_rgb(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "Pillow's limit of"
        raise UserError(f"--images {path} has more than {limit} pixels: make it smaller") from error
    except PermissionError as error:
        raise UserError(f"--images {path} may not be read: leave it out, or change its rights") from error
    except Exception as error:  # Pillow raises nearly anything on broken input
        raise UserError(f"--images {path} cannot be read as a picture: leave it out, or save it anew") from error
    if whole is None:
        raise UserError(f"--images {path} has pixels of 32 bits, of no known range: save it with 8 or 16 bits")
    fitted = ImageOps.fit(whole, (SIZE, SIZE), Image.Resampling.BILINEAR)
    return Picture(path, whole, np.asarray(fitted))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # 16 bits a pixel, which `convert` would cut off at 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


# ---- what is unlike the training set -----------------------------------------------------------------


def _features(network: Network, images: np.ndarray) -> np.ndarray:
    """The mean of each channel of every stage, since early ones see what the last no longer does: float `[N, K]`."""

    @explanation.compiled(network.model)
    def features(params, images):
        images = data.normalize(images)
        stages = [model.features(network.model, params, images, stage=stage) for stage in network.model.stage_names]
        return jnp.concatenate([stage.mean(axis=(1, 2), dtype=jnp.float32) for stage in stages], axis=1)

    return explanation.in_batches(features, network.params, (images,), lambda n: None)


def distance(network: Network, images: np.ndarray) -> tuple[np.ndarray, float]:
    """How far images are from the training set to a network.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.

    Returns:
      Of each image the Euclidean distance of its features, in standard deviations over the training images, from
      those of its `NEIGHBOUR`-th nearest training image, float `[N]`; and what `UNLIKE_SHARE` of the test images
      exceed. Both sets are the embedded sample's.
    """
    images, sample = data.require_images(images), data.load_cifar10(source="sample")
    known = _features(network, sample.train_images)
    deviation = known.std(axis=0)
    deviation[deviation == 0] = np.inf  # a channel that is never active tells nothing

    def nearest(images):
        distances = cdist(_features(network, images) / deviation, known / deviation)
        return np.sort(distances, axis=1)[:, NEIGHBOUR - 1]

    return nearest(images), float(np.quantile(nearest(sample.test_images), 1 - UNLIKE_SHARE))


# ---- the page ------------------------------------------------------------------------------------


def _encoded(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _layer(raw: np.ndarray) -> str:
    """A map `[h, w]` in JET's colours as a PNG; "" for a zero map."""
    if bool(cam.is_zero(jnp.asarray(raw))):
        return ""
    shown = np.asarray(cam.to_image(jnp.asarray(raw), (_LAYER, _LAYER)))
    return _encoded(Image.fromarray(cam.JET[(255 * shown).astype(np.uint8)]), "PNG")


def _card(picture: Picture, entry: dict[str, Any], raw: np.ndarray) -> dict[str, Any]:
    whole, middle = picture.whole.copy(), picture.whole
    whole.thumbnail((_SHOWN, _SHOWN))
    side = min(*middle.size, _SHOWN)
    return entry | {
        "title": printable(picture.path.name),
        "whole": _encoded(whole, "JPEG"),
        "middle": _encoded(ImageOps.fit(middle, (side, side), Image.Resampling.BILINEAR), "JPEG"),
        "input": _encoded(Image.fromarray(picture.pixels), "PNG"),
        "classes": list(range(len(CLASS_NAMES))),
        "layers": [_layer(raw[label]) for label in range(len(CLASS_NAMES))],
    }


def write(
    folder: Path,
    network: Network,
    pictures: Sequence[Picture],
    refused: Sequence[str],
    *,
    stage: str,
    method: str,
    overwrite: bool,
    on_batch: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Explains pictures and writes `pictures.html`, `pictures.json` and `cams.npz`, or nothing.

    Args:
      folder: the output directory; must not exist unless `overwrite`.
      network: the network.
      pictures: as `read` returns them, one or more.
      refused: a line for each that could not be read.
      stage: the stage whose activation is explained.
      method: one of `cam.METHODS`.
      overwrite: replace `folder`, once the new one is complete.
      on_batch: called with the number of pictures done since the last call.

    Returns:
      The manifest.

    Raises:
      UserError: `folder` exists or cannot be written.
    """
    images = np.stack([picture.pixels for picture in pictures])
    logits = explanation.predict(network, images)
    p, predicted = explanation.probabilities(logits), logits.argmax(axis=1)
    distances, limit = distance(network, images)
    # "Predicted minus true", the last map, is nothing here: no picture has a label.
    raw = explanation.explain(network, images, predicted, predicted, stage=stage, method=method, on_batch=on_batch)[
        :, : len(CLASS_NAMES)
    ]
    entries = [
        {
            "file": printable(str(picture.path)),
            "size": list(picture.whole.size),
            "predicted": CLASS_NAMES[predicted[i]],
            "probabilities": [round(float(x), 6) for x in p[i]],
            "distance": round(float(distances[i]), 4),
            "unlike": bool(distances[i] > limit),
        }
        for i, picture in enumerate(pictures)
    ]
    manifest = {
        "checkpoint": network.name,
        "checkpoint_sha256": network.digest,
        "model": network.config.preset,
        "layer": stage,
        "method": method,
        "rule": RULE,
        "threshold": round(limit, 4),
        "pictures": entries,
        "refused": list(refused),
    }
    cards = [_card(picture, entry, maps) for picture, entry, maps in zip(pictures, entries, raw, strict=True)]
    content = manifest | {"class_names": list(CLASS_NAMES), "image_size": SIZE, "pictures": cards}
    with replacing(folder, PICTURES, overwrite=overwrite) as new:
        (new / PICTURES).write_text(files.to_json(manifest, indent=1) + "\n")
        np.savez(new / "cams.npz", files=[entry["file"] for entry in entries], raw=raw)
        (new / "pictures.html").write_text(pages.render("pictures.html", content), encoding="utf-8")
    return manifest
