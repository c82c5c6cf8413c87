"""The report's tables: what was evaluated and compared as text, each with what it was measured on."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cifar_flax.explaining import robustness, slices
from cifar_flax.explaining.corruptions import SEVERITIES
from cifar_flax.explaining.drawing import Grid
from cifar_flax.explaining.robustness import Robustness


class Table(NamedTuple):
    """A table of strings.

    Attributes:
      title: a question, as a rule.
      text: what was measured, on what, and its definition.
      columns: the header.
      rows: as many strings each as there are columns.
      picture: the name of the picture that shows it, or "".
    """

    title: str
    text: str
    columns: list[str]
    rows: list[list[str]]
    picture: str = ""


def of_evaluation(trust: dict[str, Any]) -> list[Table]:
    """The tables of what `evaluation.evaluate` returns."""
    makers = (_faithfulness, _randomisation, _class_sensitivity, _pointing, _places, _calibration)
    return [table for maker in makers for table in maker(trust)]


def _of(trust: dict[str, Any]) -> str:
    return f"{trust['images']:,} images, {trust['data']}, seed {trust['seed']}"


def _number(value: float | None, digits: int = 2) -> str:
    return "none scored" if value is None else f"{value:z.{digits}f}"


def _with_interval(row: dict[str, Any] | None, key: str) -> str:
    """A mean and its 95% interval, of a row that may have scored nothing."""
    if row is None or row[key] is None:
        return "none scored"
    return f"{row[key]:z.2f} [{row['interval'][0]:z.2f}, {row['interval'][1]:z.2f}]"


def _faithfulness(trust: dict[str, Any]) -> Iterator[Table]:
    found, words = trust["faithfulness"], trust["definitions"]
    number = found["images"]
    columns = [(fill, group) for fill in ("mean", "road") for group in ("wrong", "right", "all")]
    yield Table(
        "Faithfulness: does the probability fall where the map says so?",
        f"Measured on {number['wrong']} wrong and {number['right']} right predictions drawn from {_of(trust)}, at "
        f"{trust['stage']}. {words['faithfulness']} {words['limits']}",
        ["SRG by fill and predictions", *(f"{fill}, {group}" for fill, group in columns), "zero maps"],
        [
            [name, *(_with_interval(found[fill][name].get(group), "srg") for fill, group in columns)]
            + [str(found["mean"][name]["zero_maps"])]
            for name in found["mean"]
        ],
        "faithfulness.png",
    )


def _randomisation(trust: dict[str, Any]) -> Iterator[Table]:
    found = trust["randomisation"]
    floor = "random against random"
    rows = {
        f"{order} {part}": row for order in ("from the head", "from the stem") for part, row in found[order].items()
    }
    yield Table(
        "Parameter randomisation: does the map depend on what was learnt?",
        f"Measured on {found['images']} images and {found['seeds']} seeds of new parameters, drawn from {_of(trust)}, "
        f"at {trust['stage']}. {trust['definitions']['randomisation']}",
        ["parts initialised anew", *found[floor]],
        [
            [name, *(f"{x['mean']:z.2f} ({x['range'][0]:z.2f} to {x['range'][1]:z.2f})" for x in row.values())]
            for name, row in (rows | {floor: found[floor]}).items()
        ],
    )


def _class_sensitivity(trust: dict[str, Any]) -> Iterator[Table]:
    found = dict(trust["class_sensitivity"])
    number, kinds = found.pop("images"), ("first and second class", "two images")
    yield Table(
        "Class sensitivity: does the map depend on the class?",
        f"Measured on the {number} images of the first table, at {trust['stage']}. "
        f"{trust['definitions']['class_sensitivity']}",
        ["correlation of signed maps", *kinds],
        [[name, *(_number(row[kind]) for kind in kinds)] for name, row in found.items()],
    )


def _pointing(trust: dict[str, Any]) -> Iterator[Table]:
    found = trust["pointing"]
    measured = f"Measured on {found['grids']} grids drawn from {_of(trust)}, at every stage."
    if not found["grids"]:
        measured = "Not measured: it needs four classes with images that are predicted rightly."
    yield Table(
        "Grid pointing: does the map find the right one of four images?",
        f"{measured} {trust['definitions']['pointing']}",
        ["share in the right quadrant", "stage", "share [95% interval]", "zero maps"],
        [
            [name, stage, _with_interval(row, "share"), str(row["zero_maps"])]
            for stage, rows in found.items()
            if isinstance(rows, dict)
            for name, row in rows.items()
        ],
    )


def _places(trust: dict[str, Any]) -> Iterator[Table]:
    found, kinds = trust["whole"], ("wrong", "right")
    groups = {kind: found[kind] for kind in kinds}
    groups |= {f"{name}, {kind}": both[kind] for name, both in found["by_class"].items() for kind in kinds}
    right = {"right"} | {f"{name}, right" for name in found["by_class"]}  # whose overlap is with itself
    yield Table(
        "Where the maps lie",
        f"Measured on {_of(trust)}: {trust['method']} at {trust['stage']}. {trust['definitions']['whole']}",
        ["predictions", "number", "entropy", "centre: row", "column", "overlap", "zero maps"],
        [
            [
                name,
                f"{row['count']:,}",
                _number(row["entropy"]),
                *(_number(x, 1) for x in row["centre"]),
                "" if name in right else _number(row["overlap"]),
                "" if row["zero_map_rate"] is None else f"{100 * row['zero_map_rate']:.1f}%",
            ]
            for name, row in groups.items()
        ],
        "confusion_maps.png",
    )


def _calibration(trust: dict[str, Any]) -> Iterator[Table]:
    found, words = trust["calibration"], trust["definitions"]["calibration"]
    before, after, ideal = found, found["after_temperature"], found["ece_calibrated"]
    first, second = found["temperature"]

    def show(name, value):
        return f"{100 * value:.2f}%" if name.endswith("ece") else f"{value:.4f}"

    rows = [[name, show(name, before[name]), show(name, after[name]), words[name]] for name in words if name in after]
    rows += [[name, show(name, found[name]), "", words[name]] for name in ("aurc", "augrc")]
    rows += [
        [f"accuracy at {100 * float(share):.0f}% coverage", f"{100 * x:.1f}%", "", words["accuracy_at_coverage"]]
        for share, x in found["accuracy_at_coverage"].items()
    ]
    yield Table(
        "Calibration: is it right as often as it is sure?",
        f"Measured on {_of(trust)}. A network of these confidences and perfectly calibrated would show an ECE of "
        f"{100 * ideal['mean']:.2f}% (95th percentile {100 * ideal['percentile_95']:.2f}%). Temperatures {first:.2f} "
        f"and {second:.2f}, each fitted on one half of these images and applied to the other.",
        ["figure", "as it is", "after the temperature", "definition"],
        rows,
        "calibration.png",
    )


def of_comparison(figures: dict[str, Any], names: tuple[str, str] = ("this", "other")) -> list[Table]:
    """The tables of what `comparison.measure` found, with what this and the other network are called."""
    this, other = names
    ours = "this network's" if this == "this" else f"{this}'s"
    theirs = "The other's" if other == "other" else f"{other}'s"
    words = figures["definitions"]
    low, high = (f"{100 * x:+z.2f}" for x in figures["interval"])
    verdict = (
        f"{theirs} accuracy is {100 * figures['other_accuracy']:.2f}%, {ours} "
        f"{100 * figures['accuracy']:.2f}%: {100 * figures['difference']:+z.2f} points [{low}, {high}], "
        f"p = {figures['p']:.2g}."
    )
    return [
        Table(
            "How many images",
            f"Measured on {figures['images']:,} images, {figures['data']}. {verdict} "
            f"Difference: {words['difference']}. p: {words['p']}.",
            ["", f"{other} right", f"{other} wrong"],
            [
                [f"{this} right", f"{figures['both_right']:,}", f"{figures['broken']:,} broken"],
                [f"{this} wrong", f"{figures['mended']:,} mended", f"{figures['both_wrong']:,}"],
            ],
        ),
        Table(
            "By class",
            f"{len(figures['by_class'])} tests at once: one in twenty is below 0.05 by chance.",
            ["true class", "images", this, other, "mended", "broken", "p"],
            [
                [
                    name,
                    f"{row['images']:,}",
                    *(f"{100 * row[key]:.1f}%" for key in ("accuracy", "other_accuracy")),
                    str(row["mended"]),
                    str(row["broken"]),
                    f"{row['p']:.2g}",
                ]
                for name, row in figures["by_class"].items()
                if row["images"]
            ],
        ),
        *_groups_compared(figures["slices"], names),
    ]


def _groups_compared(rows: list[dict[str, Any]], names: tuple[str, str]) -> Iterator[Table]:
    if rows:
        yield Table(
            "The groups that fail",
            "How often the images of the groups above fail. The groups were chosen for this network's errors, so "
            f"chance favours the other one. {len(rows)} tests at once.",
            ["group", "error", "images", *names, "mended", "broken", "p"],
            [
                [
                    slices.name_of(row),
                    slices.error_of(row),
                    f"{row['images']:,}",
                    *(f"{100 * row[key]:.1f}%" for key in ("rate", "other_rate")),
                    str(row["mended"]),
                    str(row["broken"]),
                    f"{row['p']:.2g}",
                ]
                for row in rows
            ],
        )


def of_neighbours(figures: dict[str, Any]) -> list[Table]:
    """The tables of what `neighbours.measure` found."""
    words, without = figures["definitions"], figures["accuracy_without_them"]
    text = (
        f"The {figures['count']} nearest of {figures['training_images']:,} training images, for each of "
        f"{figures['errors']:,} errors. Nearest: {words['nearest']}. By pixels: {words['pixels']}. A neighbour is no "
        f"cause: the network may have learned its answer elsewhere. Near duplicates, {words['duplicates']}: "
        f"{figures['near_duplicates']:,} among these training images."
    )
    if figures["near_duplicates"] and without is not None:
        text += f" Without them the accuracy is {100 * without:.2f}%."
    rows = [
        [name, *("" if shares is None else f"{100 * shares[key]:.0f}%" for key in ("predicted", "true"))]
        for name, shares in (("nearest by features", figures["nearest"]), ("nearest by pixels", figures["pixels"]))
    ]
    columns = ["of the training images", "carry the predicted label", "carry the true label"]
    return [Table("Which training images are nearest to an error?", text, columns, rows)]


# ---- corruptions ---------------------------------------------------------------------------------


def of_robustness(ours: Robustness, other: Robustness | None) -> dict[str, tuple[Grid, Grid]]:
    """Pairs of heat maps of corrupted images, by what they show; the first by severity, the second by class."""
    words = robustness.DEFINITIONS
    by_class, become = ours.accuracy_by_class.mean(axis=1), ours.errors_become.mean(axis=1)
    found = {
        "accuracy": (
            _grid(
                ours, "Accuracy", "severity", "share of the images that are right", ours.accuracy, 1 - ours.accuracy
            ),
            _grid(ours, "Accuracy", "class", words["accuracy_by_class"], by_class, 1 - by_class),
        ),
        "calibration and errors": (
            _grid(ours, "Calibration error (ECE)", "severity", words["ece"], ours.ece, ours.ece),
            _grid(ours, "Errors", "class that they name", words["errors_become"], become, become),
        ),
    }
    if other is not None:
        name, text = "Gain of the other network", "its accuracy less this one's, points; blue where it is better"
        gains = other.accuracy - ours.accuracy, (other.accuracy_by_class - ours.accuracy_by_class).mean(axis=1)
        by_severity, by_class = (
            _grid(ours, name, by, text, gain, -gain / (np.nanmax(abs(gain)) or 1), sign="+")
            for by, gain in zip(("severity", "class"), gains, strict=True)
        )
        found[name.lower()] = (by_severity, by_class)
    return found


def _grid(
    ours: Robustness, what: str, by: str, text: str, values: np.ndarray, shades: np.ndarray, sign: str = ""
) -> Grid:
    """A heat map of shares `[R, 5]` by severity, or `[R, C]` by class, means over the severities."""
    rows, columns = [*robustness.NAMES, robustness.MEAN], [*ours.class_names]
    values, shades = (np.vstack([x, robustness.mean(x)]) for x in (values, shades))
    cells = [["" if np.isnan(x) else f"{100 * x:{sign}z.0f}" for x in row] for row in values]
    if by == "severity":
        columns = [str(severity) for severity in SEVERITIES]
        for row in cells[: len(robustness.PLAIN)]:
            row[:] = ["", "", row[0], "", ""]
    else:
        text += "; mean over severities"
    text = f"{text[0].upper()}{text[1:]}."
    return Grid(f"{what} by {by}, {'points' if sign else '%'}", text, columns, rows, cells, np.nan_to_num(shades))


def about_robustness(ours: Robustness, other: Robustness | None, data: str) -> tuple[str, str]:
    """What the heat maps show, and how it was measured, in words."""
    words, accuracy, number = robustness.DEFINITIONS, 100 * ours.accuracy, int(ours.count.sum())
    clean, first = accuracy[0, 0], len(robustness.PLAIN)
    mild, severe = (first + int(accuracy[first:, column].argmin()) for column in (0, -1))
    become, errors = ours.errors_become[severe, -1], ""
    if become.any():
        errors = f", and {100 * become.max():.0f}% of the errors say {ours.class_names[become.argmax()]}"
    text = f"Of clean images {clean:.1f}% are right, of corrupted ones {robustness.mean(accuracy).mean():.1f}%"
    if other is not None:
        text += f" (the other network: {100 * other.accuracy[0, 0]:.1f}% and "
        text += f"{100 * robustness.mean(other.accuracy).mean():.1f}%)"
    return (
        f"{text}. At severity 1 {robustness.NAMES[mild]} costs most, {clean - accuracy[mild, 0]:.1f} points. At "
        f"severity 5 {robustness.NAMES[severe]} does: {accuracy[severe, -1]:.1f}% are right{errors}.",
        f"Measured on {number:,} images, {data}, seed {ours.seed}; chance moves an accuracy by up to "
        f"{98 / number**0.5:.1f} points. Corruptions: {words['corruptions']}. {robustness.FROST.capitalize()}: "
        f"{words[robustness.FROST]}. {robustness.MEAN.capitalize()}: {words[robustness.MEAN]}. {words['limits']}.",
    )


def of_slices(figures: dict[str, Any]) -> Table:
    """The table of the groups that `slices.find` tried on both halves."""
    count = len(figures["confirmed"])
    text = (
        f"{figures['tried']:,} groups were tried on one half of the {figures['images']:,} test images. Those that "
        f"clearly fail more often there than the others of their class (p < {slices.LEVEL}, and not much the same "
        f"images as a surer group), {figures['carried']}, were tried again on the other half, and {count or 'none'} "
        "confirmed. A group is what errors have in common, not their cause."
    )
    if not count:
        text += f" With {figures['errors']:,} errors only large differences could be confirmed."
    rows = [
        [
            slices.name_of(row),
            slices.error_of(row),
            *_rates(row["first_half"]),
            f"{row['images']:,}",
            *_rates(row),
            f"{row['p']:.2g}",
            f"{row['corrected_p']:.2g}",
        ]
        for row in figures["confirmed"] + figures["not_confirmed"]
    ]
    columns = ["group", "error", "first half", "others", "images", "second half", "others", "p", "corrected p"]
    return Table("All that were tried on both halves", text, columns, rows)


def _rates(test: dict[str, Any]) -> list[str]:
    """How often a group fails, and the others of its class."""
    return ["" if test[key] is None else f"{100 * test[key]:.1f}%" for key in ("rate", "others_rate")]
