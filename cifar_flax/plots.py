"""Pictures. The only module that imports matplotlib, and always its file-only backend."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN_COLOR, TEST_COLOR = "#0072B2", "#D55E00"  # Okabe and Ito: told apart by the colour-blind


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG that replaces the old one only when it is complete, the same bytes for the same picture."""
    FigureCanvasAgg(figure)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
    part.replace(path)


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
        if all(f"val_{name}" in row for row in rows):
            axes.plot(epochs, [row[f"val_{name}"] for row in rows], color="#009E73", label="validation")
        axes.plot(epochs, [row[f"test_{name}"] for row in rows], color=TEST_COLOR, label="test")
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
