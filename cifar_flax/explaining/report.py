"""The HTML report: one file for a person, with its pictures, maps and script inside.

The page is `report.html` beside this module; here it is given its data, as JSON. The page itself
writes every string as text, never as HTML.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_flax.explaining import cam
from cifar_flax.explaining.explanation import TestSet

_PAGE = Path(__file__).parent / "report.html"
_SPRITE_COLUMNS = 40
_LARGEST_MAP = 16


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


def _number(value: float | None, digits: int = 2) -> str:
    return "none scored" if value is None else f"{value:.{digits}f}"


def _with_interval(row: dict[str, Any] | None) -> str:
    """A mean and its 95% interval, from a row of `trust.json`."""
    value = (row or {}).get("srg", (row or {}).get("share"))
    if row is None or value is None:
        return "none scored"
    return f"{value:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"


def trust_tables(trust: dict[str, Any]) -> list[dict[str, Any]]:
    """The page's tables of what `trust.json` holds, each with what it was measured on.

    Args:
      trust: as `evaluation.evaluate` returns it.

    Returns:
      For each table its title, its text, its columns and its rows, all of them strings.
    """
    words, calibrated, faithful = trust["definitions"], trust["calibration"], trust["faithfulness"]
    of = f"{trust['images']:,} images, {trust['data']}, seed {trust['seed']}"
    all_images = f"Measured on {of}"
    tables = []

    def add(title: str, text: str, columns: Sequence[str], rows: list[list[str]]) -> None:
        tables.append({"title": title, "text": text, "columns": list(columns), "rows": rows})

    number = faithful["images"]
    names = [f"{kind}, {group}" for kind in ("mean", "road") for group in ("wrong", "right", "all")]
    add(
        "Faithfulness: does the probability fall where the map says so?",
        f"Measured on {number['wrong']} wrong and {number['right']} right predictions drawn from {of}, at "
        f"{trust['layer']}. {words['faithfulness']}",
        ["SRG by fill and predictions", *names, "zero maps"],
        [
            [
                name,
                *(
                    _with_interval(faithful[k][name].get(g))
                    for k in ("mean", "road")
                    for g in ("wrong", "right", "all")
                ),
                str(faithful["mean"][name]["zero_maps"]),
            ]
            for name in faithful["mean"]
        ],
    )
    shuffled = trust["randomisation"]
    methods = list(shuffled["random against random"])
    steps = [
        (f"{order} {part}", row)
        for order in ("from the head", "from the stem")
        for part, row in shuffled[order].items()
    ]
    add(
        "Parameter randomisation: does the map depend on what was learnt?",
        f"Measured on {shuffled['images']} images and {shuffled['seeds']} seeds of new parameters, "
        f"drawn from {of}, at {trust['layer']}. "
        f"{words['randomisation']}",
        ["parts initialised anew", *methods],
        [
            [name, *(f"{row[m]['mean']:.2f} ({row[m]['range'][0]:.2f} to {row[m]['range'][1]:.2f})" for m in methods)]
            for name, row in [*steps, ("random against random", shuffled["random against random"])]
        ],
    )
    sensitive = trust["class_sensitivity"]
    kinds = ("first and second class", "two images")
    add(
        "Class sensitivity: does the map depend on the class?",
        f"Measured on the {sensitive['images']} images of the first table, at {trust['layer']}. "
        f"{words['class_sensitivity']}",
        ["correlation of signed maps", *kinds],
        [[name, *(_number(sensitive[name][kind]) for kind in kinds)] for name in sensitive if name != "images"],
    )
    pointing = trust["pointing"]
    if pointing["grids"]:
        add(
            "Grid pointing: does the map find the right one of four images?",
            f"Measured on {pointing['grids']} grids drawn from {of}, at every stage. {words['pointing']}",
            ["share in the right quadrant", "stage", "share [95% interval]", "zero maps"],
            [
                [name, stage, _with_interval(row), str(row["zero_maps"])]
                for stage, rows in pointing.items()
                if isinstance(rows, dict)
                for name, row in rows.items()
            ],
        )
    whole = trust["whole"]
    groups = [("wrong", whole["wrong"]), ("right", whole["right"])]
    groups += [(f"{n}, {kind}", both[kind]) for n, both in whole["by_class"].items() for kind in ("wrong", "right")]
    add(
        "Where the maps lie",
        f"{all_images}: {trust['method']} at {trust['layer']}. {words['whole']}",
        ["predictions", "number", "entropy", "centre: row", "column", "overlap", "zero maps"],
        [
            [
                name,
                f"{row['count']:,}",
                _number(row["entropy"]),
                *(_number(x, 1) for x in row["centre"]),
                _number(row["overlap"]) if "right" not in name else "",
                "" if row["zero_map_rate"] is None else f"{100 * row['zero_map_rate']:.1f}%",
            ]
            for name, row in groups
        ],
    )
    after, least = calibrated["after_temperature"], calibrated["ece_calibrated"]
    first, second = calibrated["temperature"]
    percents = ("ece", "adaptive_ece", "classwise_ece")
    rows = [
        [name, *(f"{100 * x[name]:.2f}%" if name in percents else f"{x[name]:.4f}" for x in (calibrated, after)), text]
        for name, text in words["calibration"].items()
        if name in after
    ]
    rows += [[name, f"{calibrated[name]:.4f}", "", words["calibration"][name]] for name in ("aurc", "augrc")]
    rows += [
        [
            f"accuracy at {100 * float(share):.0f}% coverage",
            f"{100 * x:.1f}%",
            "",
            words["calibration"]["accuracy_at_coverage"],
        ]
        for share, x in calibrated["accuracy_at_coverage"].items()
    ]
    add(
        "Calibration: is it right as often as it is sure?",
        f"{all_images}. A network of these confidences and perfectly calibrated would show an ECE of "
        f"{100 * least['mean']:.2f}% (95th percentile {100 * least['percentile_95']:.2f}%). Temperatures "
        f"{first:.2f} and {second:.2f}, each fitted on one half of these images and applied to the other: the "
        "network has no held-out images of its own.",
        ["figure", "as it is", "after the temperature", "definition"],
        rows,
    )
    tables[0]["text"] += " " + words["limits"]
    return tables


def render(
    manifest: dict[str, Any],
    rows: list[dict[str, Any]],
    confusion: np.ndarray,
    test: TestSet,
    shown: np.ndarray,
    probabilities: np.ndarray,
    raw: np.ndarray,
    badges: Sequence[str | None] = (),
    trust: dict[str, Any] | None = None,
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
      trust: as in `trust.json`, or None.

    Returns:
      HTML.
    """
    pooled = _pool(raw)
    scales = np.abs(pooled).max(axis=(-2, -1))
    quantised = np.round(127 * pooled / np.maximum(scales, 1e-30)[..., None, None]).astype(np.int8)
    images = [
        {
            "index": int(test.indices[position]),
            "true": int(test.labels[position]),
            "predicted": int(probabilities[position].argmax()),
            "probabilities": [round(float(x), 4) for x in probabilities[position]],
            "scales": [float(f"{x:.4g}") for x in scale],
        }
        | ({"badge": badges[position]} if badges and badges[position] else {})
        for position, scale in zip(shown.tolist(), scales, strict=True)
    ]
    keys = ("checkpoint", "checkpoint_sha256", "model", "layer", "method", "data", "test_accuracy", "test_count")
    content = {key: manifest[key] for key in keys} | {
        "people": manifest.get("people"),
        "trust": None if trust is None else trust_tables(trust),
        "is_sample": "sample" in manifest["data"].lower(),
        "class_names": list(test.class_names),
        "confusion": confusion.tolist(),
        "rows": rows,
        "images": images,
        "sprite": _sprite(test.images[shown]),
        "sprite_columns": _SPRITE_COLUMNS,
        "maps": _base64(quantised.tobytes()),
        "map_shape": list(pooled.shape[-2:]),
        "jet": _base64(cam.JET.tobytes()),
    }
    # Inside a script element only "</" could end it, and "<!--" change its meaning.
    embedded = json.dumps(content).replace("<", "\\u003c")
    return _PAGE.read_text(encoding="utf-8").replace("__DATA__", embedded)
