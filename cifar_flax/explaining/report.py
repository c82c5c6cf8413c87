"""The HTML report: one file for a person, with its pictures, maps and script inside.

The page is `page/report.html`; here it is given its data, as JSON. The page itself writes every string as text, never
as HTML.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cifar_flax.data.normalization import MEAN, STD
from cifar_flax.explaining import cam, comparison, pages
from cifar_flax.explaining.comparison import Comparison
from cifar_flax.explaining.explanation import TestSet
from cifar_flax.explaining.trust_tables import Table
from cifar_flax.network import weights
from cifar_flax.training.trained import Network

_SIDE = 32
_SPRITE_COLUMNS = 40
_LARGEST_MAP = 16
# Bytes of the parameters that a page takes, so that it stays under 8 MB: 500,000 of float32, twice as many of float16.
_LARGEST_NETWORK = 2_000_000


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _sprite(images: np.ndarray) -> str:
    """The images side by side in one lossless PNG."""
    padding = -len(images) % _SPRITE_COLUMNS
    cells = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
    sheet = cells.reshape(-1, _SPRITE_COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(-1, _SPRITE_COLUMNS * 32, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return _base64(buffer.getvalue())


def _pool(raw: np.ndarray) -> np.ndarray:
    """Maps `[N, T, h, w]` averaged down to at most 16x16: finer ones would make the page too large."""
    factor = max(1, raw.shape[-1] // _LARGEST_MAP)
    n, t, h, w = raw.shape
    return raw.reshape(n, t, h // factor, factor, w // factor, factor).mean(axis=(3, 5))


def _quantised(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps `[..., h, w]` as int8 of -127 to 127, and the value that 127 stands for, `[...]`."""
    scales = np.abs(maps).max(axis=(-2, -1))
    return np.round(127 * maps / np.maximum(scales, 1e-30)[..., None, None]).astype(np.int8), scales


def _compared(compared: Comparison, shown: np.ndarray) -> dict[str, Any]:
    pooled = _pool(compared.maps[:, None])[:, 0]
    quantised, scales = _quantised(pooled)
    places, mended = {position: place for place, position in enumerate(shown.tolist())}, set(compared.mended.tolist())
    return {
        "checkpoint": compared.figures["checkpoint"],
        "model": compared.figures["model"],
        "tables": [table._asdict() for table in comparison.tables(compared.figures)],
        "maps": _base64(quantised.tobytes()),
        "map_shape": list(pooled.shape[-2:]),
        "images": [
            {
                "place": places[position],
                "mended": position in mended,
                "predicted": int(compared.guesses[position]),
                "probabilities": [round(float(x), 4) for x in compared.probabilities[position]],
                "scale": float(f"{scale:.4g}"),
            }
            for position, scale in zip(compared.changed.tolist(), scales, strict=True)
        ],
    }


def _embedded(network: Network) -> dict[str, Any]:
    """What `network.js` makes the network of; without its parameters where these are too many.

    They are float16 if that loses nothing, as in a file written with `--half`, and else float32: rounding to float16
    would move a logit by 0.01.
    """
    tensors = {name: np.asarray(x, np.float32) for name, x in weights.flatten(network.params).items()}
    values = np.concatenate([x.ravel() for x in tensors.values()])
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    stored = half if (half == values).all() else values
    return {
        "num_parameters": values.size,
        "bytes": stored.nbytes,
        "largest": _LARGEST_NETWORK,
        "dtype": stored.dtype.name,
        "shapes": {name: x.shape for name, x in tensors.items()},
        "blocks": [(name, stride) for name, _, stride in network.model.blocks()],
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
        "parameters": _base64(stored.tobytes()) if stored.nbytes <= _LARGEST_NETWORK else None,
    }


def render(
    manifest: dict[str, Any],
    rows: list[dict[str, Any]],
    confusion: np.ndarray,
    test: TestSet,
    shown: np.ndarray,
    probabilities: np.ndarray,
    raw: np.ndarray,
    badges: Sequence[str | None] = (),
    trust: Sequence[Table] = (),
    pictures: Mapping[str, bytes] | None = None,
    network: Network | None = None,
    compared: Comparison | None = None,
) -> str:
    """The page.

    Args:
      manifest: as in `manifest.json`.
      rows: the training's metrics, one an epoch; may be empty.
      confusion: int `[10, 10]`, true by predicted.
      test: the test set.
      shown: int `[n]`, positions of the images on the page.
      probabilities: float `[N, 10]`, of the whole test set.
      raw: float `[n, 11, h, w]`, maps of the images on the page.
      badges: of the whole test set, what people say of each prediction, as `people.judge` returns it; may be empty.
      trust: the tables of what was evaluated; may be empty.
      pictures: the PNG files that these tables name, by name.
      network: what runs in the page, for pictures that its reader covers or brings; None for nothing.
      compared: what another network says of the test set, or None; all that it changes is among `shown`.

    Returns:
      HTML.
    """
    pooled = _pool(raw)
    quantised, scales = _quantised(pooled)
    images = [
        {
            "index": int(test.indices[position]),
            "true": int(test.labels[position]),
            "predicted": int(probabilities[position].argmax()),
            "probabilities": [round(float(x), 4) for x in probabilities[position]],
            "classes": list(range(len(test.class_names))),
            "scales": [float(f"{x:.4g}") for x in scale],
        }
        | ({"badge": badges[position]} if badges and badges[position] else {})
        for position, scale in zip(shown.tolist(), scales, strict=True)
    ]
    keys = ("checkpoint", "checkpoint_sha256", "model", "layer", "method", "data", "test_accuracy", "test_count")
    content = {key: manifest[key] for key in keys} | {
        "people": manifest.get("people"),
        "trust": [table._asdict() | {"picture": _base64((pictures or {}).get(table.picture, b""))} for table in trust],
        "is_sample": "sample" in manifest["data"].lower(),
        "class_names": list(test.class_names),
        "image_size": _SIDE,
        "confusion": confusion.tolist(),
        "rows": rows,
        "images": images,
        "sprite": _sprite(test.images[shown]),
        "sprite_columns": _SPRITE_COLUMNS,
        "maps": _base64(quantised.tobytes()),
        "map_shape": list(pooled.shape[-2:]),
        "jet": _base64(cam.JET.tobytes()),
        "network": None if network is None else _embedded(network),
    }
    if compared is not None:
        content["compared"] = _compared(compared, shown)
    return pages.render("report.html", content)
