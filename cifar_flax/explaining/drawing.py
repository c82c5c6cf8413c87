"""The pictures of predictions, maps and what was measured of them."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from cifar_flax.plots import TEST_COLOR, TRAIN_COLOR, VALIDATION_COLOR, save_figure

_MOST_NUMBERED = 40  # classes of a confusion matrix whose cells have room for a number
# Blue for, orange against: distinguishable by the colour-blind, white in the middle.
DIFFERENCE_COLORS = LinearSegmentedColormap.from_list("difference", ["#B35806", "#F7F7F7", "#2D6DB5"])


def _bare(axes: Axes, picture: np.ndarray, title: str = "", **options: Any) -> AxesImage:
    """Shows a picture without ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)
    return axes.imshow(picture, **{"interpolation": "nearest", **options})


def _blank(figure_axes: Iterable[Axes]) -> None:
    for axes in figure_axes:
        axes.set_axis_off()


def plot_predictions(images: np.ndarray, titles: Sequence[str], path: Path, title: str, description: str = "") -> None:
    """Images with a title each, five in a row.

    Args:
      images: uint8 `[N, H, W, 3]`.
      titles: one an image.
      path: the PNG to write.
      title: printed above.
      description: kept in the file.
    """
    num_rows = max(1, -(-len(images) // 5))
    figure = Figure(figsize=(10, 0.5 + 2.3 * num_rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(num_rows, 5, squeeze=False)
    for axes, image, text in zip(grid.flat, images, titles, strict=False):
        _bare(axes, image, text)
    _blank(grid.flat[len(images) :])
    save_figure(figure, path, description)


def overlay_figure(
    images: np.ndarray,
    overlays: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    overlay_titles: Sequence[Sequence[str]],
    title: str,
) -> Figure:
    """Images, each with its overlays beside it, two images in a row.

    Args:
      images: uint8 `[N, H, W, 3]`.
      overlays: for each image uint8 pictures, the same number for all; None is drawn as a zero map.
      titles: one an image.
      overlay_titles: one an overlay.
      title: printed above.
    """
    width = 1 + (len(overlays[0]) if len(overlays) else 1)
    num_rows, num_columns = max(1, -(-len(images) // 2)), 1 if len(images) == 1 else 2
    figure = Figure(figsize=(1.8 * width * num_columns, 0.5 + 2.1 * num_rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(num_rows, num_columns * width, squeeze=False).reshape(-1, width)
    for row, image, shown, text, names in zip(grid, images, overlays, titles, overlay_titles, strict=False):
        _bare(row[0], image, text)
        for axes, picture, name in zip(row[1:], shown, names, strict=True):
            _overlay(axes, image, picture, name)
    _blank(grid[len(images) :].flat)
    return figure


def _overlay(axes: Axes, image: np.ndarray, picture: np.ndarray | None, title: str) -> None:
    if picture is not None:
        _bare(axes, picture, title)
        return
    _bare(axes, image // 3, title)
    axes.text(0.5, 0.5, "zero map:\nno evidence", ha="center", va="center", color="white", transform=axes.transAxes)


def plot_explanation(
    image: np.ndarray,
    overlays: Sequence[np.ndarray | None],
    overlay_titles: Sequence[str],
    difference: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: Path,
    title: str,
    description: str = "",
) -> None:
    """One image: itself, its overlays, the difference of two raw maps with its scale, and probabilities.

    Args:
      image: uint8 `[H, W, 3]`.
      overlays: uint8 pictures; None is drawn as a zero map.
      overlay_titles: one an overlay.
      difference: float `[h, w]`, predicted minus true, in the raw maps' unit.
      probabilities: float `[C]`.
      class_names: the names of these classes.
      path: the PNG to write.
      title: printed above.
      description: kept in the file.
    """
    count = 2 + len(overlays)
    figure = Figure(figsize=(2.6 * count + 3, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, count + 1, width_ratios=[1] * count + [1.1])
    _bare(panels[0], image, "image")
    for axes, picture, name in zip(panels[1:], overlays, overlay_titles, strict=False):
        _overlay(axes, image, picture, name)
    limit = float(np.abs(difference).max()) or 1.0
    shown = _bare(
        panels[count - 1],
        difference,
        "predicted minus true",
        cmap=DIFFERENCE_COLORS,
        vmin=-limit,
        vmax=limit,
        interpolation="bilinear",
        extent=(0, image.shape[1], image.shape[0], 0),
    )
    figure.colorbar(shown, ax=panels[count - 1], shrink=0.8)
    panels[count].barh(range(len(class_names)), probabilities, color=TRAIN_COLOR)
    panels[count].set_yticks(range(len(class_names)), class_names, fontsize=8)
    panels[count].set_xlim(0, 1)
    panels[count].invert_yaxis()
    panels[count].set_title("probability", fontsize=8)
    save_figure(figure, path, description)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Counts `[true, predicted]` as a grid of shaded numbers; the diagonal, which is right, is left white.

    With more classes than `_MOST_NUMBERED` the numbers are left out, and the cells' shades remain.
    """
    side = min(20.0, max(6.0, 3.0 + 0.4 * len(class_names)))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    errors = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(1, 1.8 * errors.max()))
    if len(matrix) <= _MOST_NUMBERED:
        for (true, predicted), value in np.ndenumerate(matrix):
            weight = "bold" if true == predicted else "normal"
            axes.text(predicted, true, str(value), ha="center", va="center", fontsize=8, fontweight=weight)
    size = 10 if len(class_names) <= _MOST_NUMBERED else 5
    axes.set_xticks(range(len(class_names)), class_names, rotation=45 if size == 10 else 90, ha="right", fontsize=size)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    save_figure(figure, path)


# ---- what was measured; each returns the bytes that it writes ------------------------------------


def plot_calibration(found: dict[str, Any], path: Path, title: str) -> bytes:
    """Accuracy by confidence with the band of a calibrated network, and error rate by coverage.

    Args:
      found: as `calibration.evaluate` returns it.
      path: the PNG to write.
      title: printed above.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    bins, risk = found["reliability"], found["risk"]
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    left.fill_between(
        bins["confidence"],
        bins["calibrated_low"],
        bins["calibrated_high"],
        color=VALIDATION_COLOR,
        alpha=0.3,
        label="95% of calibrated networks",
    )
    left.plot(bins["confidence"], bins["accuracy"], "o-", color=TRAIN_COLOR, label="this network")
    left.set_xlabel("confidence")
    left.set_ylabel("accuracy")
    left.legend(frameon=False)
    right.plot(risk["coverage"], risk["error_rate"], color=TRAIN_COLOR)
    right.set_xlabel("coverage: share of images, the most confident first")
    right.set_ylabel("error rate among them")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return save_figure(figure, path)


def plot_faithfulness(found: dict[str, Any], baselines: Sequence[str], path: Path, title: str) -> bytes:
    """SRG of methods and baselines, for wrong and right predictions, with both fills.

    Args:
      found: as `measures.measure_faithfulness` returns it.
      baselines: names of those that are no method.
      path: the PNG to write.
      title: printed above.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title)
    fills = [kind for kind in found if kind != "images"]
    for axes, kind in zip(figure.subplots(1, len(fills), sharey=True), fills, strict=True):
        names = list(found[kind])
        for shift, group, color in ((-0.15, "wrong", TEST_COLOR), (0.15, "right", TRAIN_COLOR)):
            rows = [(i, found[kind][name][group]) for i, name in enumerate(names) if group in found[kind][name]]
            values = np.array([row["srg"] for _, row in rows])
            ends = np.array([row["interval"] for _, row in rows]).reshape(-1, 2).T
            places = [i + shift for i, _ in rows]
            axes.errorbar(values, places, xerr=abs(ends - values), fmt="o", markersize=4, color=color, label=group)
        axes.set_yticks(range(len(names)), [f"({name})" if name in baselines else name for name in names])
        axes.axvline(0, color="0.7", linewidth=0.8)
        axes.set_xlabel(f"SRG, fill: {kind}; (baselines)")
        axes.grid(alpha=0.25, axis="x")
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend(frameon=False, title="predictions")
    return save_figure(figure, path)


def plot_pairs(
    maps: np.ndarray, pairs: Sequence[tuple[int, int, int]], class_names: Sequence[str], path: Path, title: str
) -> bytes:
    """Mean maps of the most frequent confusions: of the predicted class above, of the true one below.

    Args:
      maps: float `[pairs, 2, h, w]`, on one scale.
      pairs: (true, predicted, count).
      class_names: the names of these classes.
      path: the PNG to write.
      title: printed above.
    """
    figure = Figure(figsize=(max(6, 1.4 * len(pairs)), 4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(2, max(1, len(pairs)), squeeze=False)
    for column, map_pair, (true, predicted, count) in zip(grid.T, maps, pairs, strict=False):
        names = (f"{class_names[true]} taken for\n{class_names[predicted]} ({count})", f"of {class_names[true]}")
        for axes, picture, name in zip(column, map_pair, names, strict=True):
            _bare(axes, picture, name, vmin=0, vmax=maps.max(), cmap="viridis")
    for axes, name in zip(grid[:, 0], ("map of the predicted class", "map of the true class"), strict=True):
        axes.set_ylabel(name, fontsize=8)
    _blank(grid[:, len(pairs) :].flat)
    return save_figure(figure, path)


class Grid(NamedTuple):
    """A heat map of numbers.

    Attributes:
      title: what the numbers are.
      text: their definition.
      columns: names.
      rows: names.
      cells: the numbers, as text; "" where there is none, or the same as beside it.
      shades: float `[rows, columns]`, in [-1, 1]: how bad each is; below 0, how good.
    """

    title: str
    text: str
    columns: list[str]
    rows: list[str]
    cells: list[list[str]]
    shades: np.ndarray


def plot_grids(pairs: Sequence[tuple[Grid, Grid]], path: Path, title: str) -> None:
    """Heat maps, two in a row.

    Args:
      pairs: the columns of the first are the same in all pairs, and those of the second.
      path: the PNG to write.
      title: printed above.
    """
    widths = [min(_MOST_NUMBERED, max(6, len(grid.columns))) for grid in pairs[0]]
    height = 1.7 + 0.27 * len(pairs[0][0].rows)
    figure = Figure(figsize=(3.5 + 0.42 * sum(widths), 0.4 + height * len(pairs)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(pairs), 2, width_ratios=widths, squeeze=False)
    for axes, grid in zip(panels.flat, itertools.chain(*pairs), strict=True):
        # The darkest colours are left out: on them numbers could not be read.
        axes.imshow(-grid.shades, cmap=DIFFERENCE_COLORS, vmin=-1.3, vmax=1.3, aspect="auto")
        few = len(grid.columns) <= _MOST_NUMBERED
        for row, column in np.ndindex(grid.shades.shape if few else (0, 0)):
            axes.text(column, row, grid.cells[row][column], ha="center", va="center", fontsize=8)
        turned = 90 if max(map(len, grid.columns)) > 2 else 0
        axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=turned, fontsize=8 if few else 5)
        axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(grid.title, fontsize=10)
    save_figure(figure, path)
