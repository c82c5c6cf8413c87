"""The HTML report: one file for a person, with its pictures, maps and script inside.

The page is `page/report.html` with the scripts beside it; here it is given its data,
as JSON. The page itself writes every string as text, never as HTML.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cifar_flax.explaining import drawing, faithfulness, pages, slices, tables
from cifar_flax.explaining.analysis import Analysis
from cifar_flax.explaining.comparison import Comparison
from cifar_flax.explaining.neighbours import Neighbours
from cifar_flax.explaining.network import Network
from cifar_flax.explaining.slices import Slices
from cifar_flax.network import weights

_SPRITE_COLUMNS = 40
_LARGEST_MAP = 16
_NEIGHBOURS = 4000  # training images on a page: 4 MB
# Bytes of the parameters that a page takes, so that it stays under 8 MB: 500,000 of float32, twice as many of float16.
LARGEST_NETWORK = 2_000_000


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _sprite(images: np.ndarray, kind: str = "PNG") -> str:
    """The images side by side in one lossless PNG, or in a JPEG a quarter of its size."""
    padding = -len(images) % _SPRITE_COLUMNS
    cells = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
    height, width = images.shape[1:3]
    sheet = cells.reshape(-1, _SPRITE_COLUMNS, height, width, 3).swapaxes(1, 2)
    sheet = sheet.reshape(-1, _SPRITE_COLUMNS * width, 3)
    buffer = io.BytesIO()
    # Optimised, a JPEG of noisy pictures would not fit Pillow's buffer.
    Image.fromarray(sheet).save(buffer, kind, optimize=kind == "PNG", quality=85, subsampling=0)
    return _base64(buffer.getvalue())


def pool(raw: np.ndarray) -> np.ndarray:
    """Maps `[N, T, h, w]` averaged down to at most 16x16: finer ones would make the page too large."""
    return raw if raw.shape[-1] <= _LARGEST_MAP else faithfulness.to_cells(raw, _LARGEST_MAP)


def _quantised(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps `[N, T, h, w]`, pooled, as int8 of -127 to 127; and each one's least and greatest value, `[N, T, 2]`.

    127 stands for the larger magnitude of these two.
    """
    ranges = np.stack([maps.min(axis=(-2, -1)), maps.max(axis=(-2, -1))], axis=-1)
    scales = np.maximum(abs(ranges).max(axis=-1), 1e-30)[..., None, None]
    return np.round(127 * pool(maps) / scales).astype(np.int8), ranges


def _rounded(numbers: np.ndarray) -> list:
    """Numbers of any shape to four digits, as lists."""
    return [float(f"{x:.4g}") if x.ndim == 0 else _rounded(x) for x in numbers]


def _ranks(confidence: np.ndarray) -> list[int]:
    """Each one's place among them, the most confident first: as probabilities on the page, many of them are 1."""
    return np.argsort(np.argsort(-confidence, kind="stable")).tolist()


def _compared(analysis: Analysis, compared: Comparison, shown: np.ndarray) -> dict[str, Any]:
    quantised, ranges = _quantised(compared.maps[:, None])
    names = _names(analysis.network.identity()["model"], compared.figures["model"])
    places, mended = {position: place for place, position in enumerate(shown.tolist())}, set(compared.mended.tolist())
    return {
        "checkpoint": compared.figures["checkpoint"],
        "model": compared.figures["model"],
        "names": names,
        "tables": [table._asdict() for table in tables.of_comparison(compared.figures, names)],
        "maps": _base64(quantised.tobytes()),
        "map_shape": list(quantised.shape[-2:]),
        "images": [
            {
                "place": places[position],
                "mended": position in mended,
                "predicted": int(compared.predictions.predicted[position]),
                "probabilities": [round(float(x), 4) for x in compared.predictions.probabilities[position]],
                "ranges": _rounded(own),
                "rank": rank,
            }
            for position, own, rank in zip(
                compared.changed.tolist(),
                ranges,
                _ranks(compared.predictions.confidence[compared.changed]),
                strict=True,
            )
        ],
    }


def _names(ours: str, theirs: str) -> tuple[str, str]:
    """What two networks are called: by their own names, where these are short and tell them apart."""
    return (ours, theirs) if ours != theirs and max(len(ours), len(theirs)) <= 12 else ("this", "other")


def _neighbours(analysis: Analysis, found: Neighbours) -> tuple[dict[str, Any], list[list[list[float]]]]:
    """What the page says of training images; and for each image shown the nearest: place on the sheet, and cosine."""
    train, test = analysis.dataset.train, analysis.dataset.test
    count = max(1, min(found.places.shape[1], _NEIGHBOURS // max(1, len(found.places))))
    places = found.places[:, :count]
    on_sheet = np.unique(np.concatenate([places.ravel(), found.doubted.places]))
    tested = found.doubted_test.places  # on the sheet behind the training images
    nearest = [
        [[cell, round(float(cosine), 2)] for cell, cosine in zip(cells, cosines, strict=True)]
        for cells, cosines in zip(np.searchsorted(on_sheet, places).tolist(), found.similarity[:, :count], strict=True)
    ]
    doubted = {
        "training": (np.searchsorted(on_sheet, found.doubted.places), found.doubted.instead),
        "test": (len(on_sheet) + np.arange(len(tested)), found.doubted_test.instead),
    }
    images, labels, indices = (np.concatenate([a[on_sheet], b[tested]]) for a, b in zip(train, test, strict=True))
    behind = {
        "images": [
            {"index": index, "label": label} for index, label in zip(indices.tolist(), labels.tolist(), strict=True)
        ],
        "sheet": _sprite(images, "JPEG"),
        "tables": [table._asdict() for table in tables.of_neighbours(found.figures)],
        "doubted": {name: np.stack(pair, axis=1).tolist() for name, pair in doubted.items()},
        "doubt": found.figures["definitions"]["doubted"],
    }
    return behind, nearest


def _slices(found: Slices) -> tuple[dict[str, Any], dict[int, list[int]]]:
    """What the page says of groups that fail; and the numbers of those that each image is in, by position."""
    numbers: dict[int, list[int]] = {}
    for number, one in enumerate(found.confirmed):
        for position in one.positions.tolist():
            numbers.setdefault(position, []).append(number)
    groups = [
        {
            "name": slices.name_of(row),
            "error": slices.error_of(row),
            "sentence": row["sentence"],
            "true": one.label,
            "predicted": one.taken,
        }
        for one, row in zip(found.confirmed, found.figures["confirmed"], strict=True)
    ]
    table = tables.of_slices(found.figures)._asdict()
    return {"confirmed": groups, "table": table, "definitions": found.figures["definitions"]}, numbers


def embedded(network: Network) -> dict[str, Any]:
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
        "largest": LARGEST_NETWORK,
        "dtype": stored.dtype.name,
        "shapes": {name: x.shape for name, x in tensors.items()},
        "stages": network.stages,
        "blocks": [(name, stride) for name, _, stride in network.model.blocks()],
        "norm": network.model.norm_kind,
        "mean": network.spec.mean,
        "std": network.spec.std,
        "parameters": _base64(stored.tobytes()) if stored.nbytes <= LARGEST_NETWORK else None,
    }


def render(analysis: Analysis, manifest: dict[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
      analysis: what it shows.
      manifest: what `outputs.manifest` says of it.
      pictures: PNG files of what was evaluated, by name.

    Returns:
      HTML.
    """
    test, predictions, shown = analysis.dataset.test, analysis.predictions, analysis.shown
    quantised, ranges = _quantised(np.concatenate([analysis.maps, analysis.differences[:, None]], axis=1))
    ranks = _ranks(predictions.confidence[shown])
    groups, numbers = ({}, {}) if analysis.slices is None else _slices(analysis.slices)
    behind, nearest = ({}, []) if analysis.neighbours is None else _neighbours(analysis, analysis.neighbours)
    images = [
        {
            "index": int(test.indices[position]),
            "true": int(predictions.true[position]),
            "predicted": int(predictions.predicted[position]),
            "probabilities": [round(float(x), 4) for x in predictions.probabilities[position]],
            "classes": classes.tolist(),
            "ranges": _rounded(own),
            "rank": ranks[place],
        }
        | ({"badge": badge} if (badge := analysis.badges[position]) else {})
        | ({"neighbours": nearest[place]} if nearest else {})
        | ({"slices": numbers[position]} if position in numbers else {})
        for place, (position, classes, own) in enumerate(zip(shown.tolist(), analysis.classes, ranges, strict=True))
    ]
    keys = ("checkpoint", "checkpoint_sha256", "model", "stage", "method", "data", "is_sample", "class_names")
    evaluated = [] if analysis.evaluation is None else tables.of_evaluation(analysis.evaluation.figures)
    content = {key: manifest[key] for key in (*keys, "accuracy", "correct_count", "count")} | {
        "people": manifest.get("people"),
        "trust": [table._asdict() | {"picture": _base64(pictures.get(table.picture, b""))} for table in evaluated],
        "image_size": analysis.dataset.spec.image_size,
        "confusion": predictions.confusion.tolist(),
        "rows": analysis.network.history,
        "taught": bool(analysis.network.trained.config.teacher),
        "images": images,
        "sprite": _sprite(test.images[shown]),
        "sprite_columns": _SPRITE_COLUMNS,
        "maps": _base64(quantised.tobytes()),
        "map_shape": list(quantised.shape[-2:]),
        "averaged": analysis.maps.shape[-1] > _LARGEST_MAP,
        "colors": {cmap: _base64(drawing.colors_of(cmap).tobytes()) for cmap in ("jet", drawing.CMAPS[0])},
        "network": embedded(analysis.network),
        "neighbours": behind or None,
        "slices": groups or None,
    }
    if analysis.robustness is not None:
        both = analysis.robustness, analysis.other_robustness
        content["robustness"] = {
            "about": tables.about_robustness(*both, manifest["data"]),
            "heat_maps": {
                name: [grid._asdict() | {"shades": grid.shades.round(3).tolist()} for grid in pair]
                for name, pair in tables.of_robustness(*both).items()
            },
        }
    if analysis.comparison is not None:
        content["compared"] = _compared(analysis, analysis.comparison, shown)
    return pages.render("report.html", content)
