"""Pictures, always by matplotlib's file-only backend."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from cifar_flax import files
from cifar_flax.errors import UserError

# Okabe and Ito's: told apart by the colour-blind.
TRAIN_COLOR, VALIDATION_COLOR, TEST_COLOR = "#0072B2", "#009E73", "#D55E00"


FORMATS = (".png", ".pdf", ".svg")


def save_figure(figure: Figure, path: Path, description: str = "") -> bytes:
    """Writes a PNG, PDF or SVG that replaces the old one only when it is complete, and returns its bytes.

    They are the same for the same picture. The description goes into a PNG, where a program can read it.

    Raises:
      UserError: the name says another kind of file.
      OSError: it cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UserError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with a dollar sign is no formula
    metadata = {
        ".png": {"Software": None, "Description": description},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".svg": {"Date": None, "Creator": None},
    }[kind]
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "cifar_flax", "pdf.fonttype": 42}):
        figure.savefig(content, format=kind[1:], dpi=150, metadata=metadata)
    files.write_atomically(path, content.getvalue())
    return content.getvalue()


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
    save_figure(figure, path)


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
    save_figure(figure, path)
