"""Pictures. The only module that imports matplotlib, and always its file-only backend."""

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from cifar_flax import files
from cifar_flax.errors import UserError

# Okabe and Ito's: told apart by the colour-blind.
TRAIN_COLOR, VALIDATION_COLOR, TEST_COLOR = "#0072B2", "#009E73", "#D55E00"


def _save(figure: Figure, path: Path, description: str = "") -> None:
    """Writes a PNG that replaces the old one only when it is complete, the same bytes for the same picture.

    The description goes into the file, where a program can read it.

    Raises:
      UserError: the name says another kind of file.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are PNG files; expected a name that ends in .png")
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with a dollar sign is no formula
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None, "Description": description})
    files.write_atomically(path, png.getvalue())


def plot_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy by epoch, with a mark where the learning rate fell.

    Args:
      rows: the lines of a `metrics.jsonl`.
      path: the PNG to write.
      title: printed above.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, name in ((loss_axes, "loss"), (accuracy_axes, "acc")):
        axes.plot(epochs, [row[f"train_{name}"] for row in rows], color=TRAIN_COLOR, label="train (augmented)")
        for split, color, label in (("val", VALIDATION_COLOR, "validation"), ("test", TEST_COLOR, "test")):
            if all(f"{split}_{name}" in row for row in rows):
                axes.plot(epochs, [row[f"{split}_{name}"] for row in rows], color=color, label=label)
        for before, after in itertools.pairwise(rows):
            if after["learning_rate"] < before["learning_rate"]:
                axes.axvline(after["epoch"] - 0.5, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    loss_axes.set_ylabel("cross-entropy (nats)")
    accuracy_axes.set_ylabel("accuracy (%)")
    _save(figure, path)


def plot_image_grid(images: np.ndarray, path: Path, row_labels: Sequence[str]) -> None:
    """A grid of images, nearest-neighbour pixels.

    Args:
      images: float `[rows, columns, H, W, 3]`, in [0, 1].
      path: the PNG to write.
      row_labels: one for each row.
    """
    num_rows, num_columns = images.shape[:2]
    figure = Figure(figsize=(num_columns + 1, num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes, image in zip(grid.flat, images.reshape(-1, *images.shape[2:]), strict=True):
        axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, label in zip(grid[:, 0], row_labels, strict=True):
        axes.set_ylabel(label)
    _save(figure, path)


# ---- predictions and maps -------------------------------------------------------------------------

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
      images: uint8 `[N, 32, 32, 3]`.
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
    _save(figure, path, description)


def plot_overlays(
    images: np.ndarray,
    overlays: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    overlay_titles: Sequence[Sequence[str]],
    path: Path,
    title: str,
    description: str = "",
) -> None:
    """Images, each with its overlays beside it, two images in a row.

    Args:
      images: uint8 `[N, 32, 32, 3]`.
      overlays: for each image uint8 pictures, the same number for all; None is drawn as a zero map.
      titles: one an image.
      overlay_titles: one an overlay.
      path: the PNG to write.
      title: printed above.
      description: kept in the file.
    """
    width = 1 + (len(overlays[0]) if len(overlays) else 1)
    num_rows = max(1, -(-len(images) // 2))
    figure = Figure(figsize=(3.6 * width, 0.5 + 2.1 * num_rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(num_rows, 2 * width, squeeze=False).reshape(-1, width)
    for row, image, shown, text, names in zip(grid, images, overlays, titles, overlay_titles, strict=False):
        _bare(row[0], image, text)
        for axes, picture, name in zip(row[1:], shown, names, strict=True):
            _overlay(axes, image, picture, name)
    _blank(grid[len(images) :].flat)
    _save(figure, path, description)


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
    """One image: itself, its overlays, the difference of two raw maps with its scale, and the ten probabilities.

    Args:
      image: uint8 `[32, 32, 3]`.
      overlays: uint8 pictures; None is drawn as a zero map.
      overlay_titles: one an overlay.
      difference: float `[h, w]`, predicted minus true, in the raw maps' unit.
      probabilities: float `[10]`.
      class_names: the ten names.
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
        extent=(0, 32, 32, 0),
    )
    figure.colorbar(shown, ax=panels[count - 1], shrink=0.8)
    panels[count].barh(range(len(class_names)), probabilities, color=TRAIN_COLOR)
    panels[count].set_yticks(range(len(class_names)), class_names, fontsize=8)
    panels[count].set_xlim(0, 1)
    panels[count].invert_yaxis()
    panels[count].set_title("probability", fontsize=8)
    _save(figure, path, description)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Counts `[true, predicted]` as a grid of shaded numbers; the diagonal, which is right, is left white."""
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    axes = figure.subplots()
    errors = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(1, 1.8 * errors.max()))
    for (true, predicted), value in np.ndenumerate(matrix):
        weight = "bold" if true == predicted else "normal"
        axes.text(predicted, true, str(value), ha="center", va="center", fontsize=8, fontweight=weight)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    _save(figure, path)


# ---- trust -----------------------------------------------------------------------------------------


def plot_calibration(found: dict[str, Any], path: Path, title: str) -> None:
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
    _save(figure, path)


def plot_faithfulness(found: dict[str, Any], baselines: Sequence[str], path: Path, title: str) -> None:
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
    _save(figure, path)


def plot_pairs(
    maps: np.ndarray, pairs: Sequence[tuple[int, int, int]], class_names: Sequence[str], path: Path, title: str
) -> None:
    """Mean maps of the most frequent confusions: of the predicted class above, of the true one below.

    Args:
      maps: float `[pairs, 2, h, w]`, on one scale.
      pairs: (true, predicted, count).
      class_names: the ten names.
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
    _save(figure, path)
