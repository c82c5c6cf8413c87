"""Pictures, always by matplotlib's file-only backend."""

import io
import itertools
import numbers
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

from cifar_flax import files
from cifar_flax.errors import UserError, require_whole

# Okabe and Ito's: told apart by the colour-blind.
TRAIN_COLOR, VALIDATION_COLOR, TEST_COLOR = "#0072B2", "#009E73", "#D55E00"


FORMATS = (".png", ".pdf", ".svg")
# Of a figure in a paper: inches along it, as the text of a page; dots an inch of a PNG.
WIDTH, DPI = 5.5, 300
_NARROW = 5.0  # inches: below, it stands in a column
_LACKING: set[str] = set()  # letters that a warning has named


def require_format(path: Path) -> str:
    """The ending of a picture's name, which says its format.

    Raises:
      UserError: it is none of `FORMATS`.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UserError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    return kind


def require_size(width: float, dpi: int, flag: str = "") -> None:
    """Refuses a size that a figure in a paper cannot have; `flag` comes before the names in messages.

    Raises:
      UserError: so it is.
    """
    if not isinstance(width, numbers.Real) or not 3 <= width <= 20:
        raise UserError(f"{flag}width is {width!r}: expected 3 to 20 inches")
    require_whole(dpi, f"{flag}dpi", 50, 600)


def font_size(width: float) -> int:
    """The points of all text in a figure in a paper, so many inches wide."""
    return 7 if width < _NARROW else 8


def render(figure: Figure, path: Path, description: str = "", *, dpi: int = 150) -> bytes:
    """A PNG, PDF or SVG, as the name says: the same bytes for the same picture.

    A PDF has its fonts inside, and its text can be selected; an SVG has outlines for letters, which look the same
    everywhere. The description goes into a PNG, where a program can read it.

    Raises:
      UserError: the name says another kind of file.
    """
    kind = require_format(path)
    FigureCanvasAgg(figure)
    texts = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)  # a name with a dollar sign is no formula
    _warn_of_letters("".join(text.get_text() for text in texts))
    metadata = {
        ".png": {"Software": None, "Description": description},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".svg": {"Date": None, "Creator": None},
    }[kind]
    content = io.BytesIO()
    with (
        rc_context({"svg.hashsalt": "cifar_flax", "pdf.fonttype": 42, "image.composite_image": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # said above, once
        figure.savefig(content, format=kind[1:], dpi=dpi, metadata=metadata)
    return content.getvalue()


def _warn_of_letters(text: str) -> None:
    """Says once which letters the pictures' font lacks, as it may those of a class's name."""
    font = get_font(findfont(FontProperties()))
    lacking = {x for x in text if not x.isspace() and not font.get_char_index(ord(x))} - _LACKING
    if lacking:
        _LACKING.update(lacking)
        shown = " ".join(sorted(lacking))
        warnings.warn(f"pictures show a box for {shown}: their font has no such letter; pages have it", stacklevel=3)


def save_figure(figure: Figure, path: Path, description: str = "", *, dpi: int = 150) -> bytes:
    """Writes what `render` gives, which replaces an old file only when it is complete, and returns it.

    Raises:
      UserError: as `render`.
      OSError: it cannot be written.
    """
    content = render(figure, path, description, dpi=dpi)
    files.write_atomically(path, content)
    return content


def plot_curves(rows: Sequence[dict[str, Any]], path: Path, title: str, *, taught: bool = False) -> None:
    """Writes `curves_figure` with a title above as a PNG."""
    figure = curves_figure(rows, taught=taught)
    figure.suptitle(title)
    save_figure(figure, path)


def curves_figure(
    rows: Sequence[dict[str, Any]], *, taught: bool = False, width: float = 10, font: float = 10
) -> Figure:
    """Loss and accuracy by epoch, with a mark where the learning rate fell; in a column one above the other.

    Args:
      rows: the lines of a `metrics.jsonl`.
      taught: whether the training loss has a teacher's answers in it, so that it is no cross-entropy.
      width: of the figure, in inches.
      font: the size of its text, in points.

    Raises:
      UserError: they lack what is drawn.
    """
    for name in ("epoch", "learning_rate", "train_loss", "train_accuracy"):
        if not all(name in row for row in rows):
            raise UserError(
                f"an epoch of the training has no {name}, and its curves cannot be drawn: use another file"
            )
    shape, height = ((2, 1), 1.2) if width < _NARROW else ((1, 2), 0.4)
    figure = Figure(figsize=(width, height * width), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(*shape)
    epochs = [row["epoch"] for row in rows]
    splits = {
        "train": (TRAIN_COLOR, "train (augmented)"),
        "val": (VALIDATION_COLOR, "validation"),
        "test": (TEST_COLOR, "test"),
    }
    for axes, name, scale in ((loss_axes, "loss", 1), (accuracy_axes, "accuracy", 100)):
        for split, (color, label) in splits.items():
            if all(f"{split}_{name}" in row for row in rows):
                if taught and (split, name) == ("train", "loss"):
                    label = "train: labels and teacher"
                values = [scale * row[f"{split}_{name}"] for row in rows]
                axes.plot(epochs, values, color=color, label=label, marker="o" if len(rows) == 1 else None)
        for before, after in itertools.pairwise(rows):
            if after["learning_rate"] < before["learning_rate"]:
                axes.axvline(after["epoch"] - 0.5, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlabel("epoch", fontsize=font)
        axes.xaxis.set_major_locator(FixedLocator(epochs) if len(rows) == 1 else MaxNLocator(integer=True))
        axes.tick_params(labelsize=font)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=font, loc="upper right" if name == "loss" else "lower right")
    loss_axes.set_ylabel("loss (nats)" if taught else "cross-entropy (nats)", fontsize=font)
    accuracy_axes.set_ylabel("accuracy (%)", fontsize=font)
    return figure


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
