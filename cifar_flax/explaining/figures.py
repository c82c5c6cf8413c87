"""Figures for a paper, each with a caption: maps of test images, a confusion matrix, the curves of a training.

What `explain` draws is for a person at a screen, and has titles; here a caption says what is seen.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cifar_flax import files, plots
from cifar_flax.config import architecture
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.explaining import analysis, drawing
from cifar_flax.explaining.analysis import Selection
from cifar_flax.explaining.network import NO_CLASS, Network, Progress, no_progress
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.training.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCE = "difference"
MAPS = ("predicted", "true", DIFFERENCE)
_HEADINGS = {"predicted": "predicted class", "true": "true class", DIFFERENCE: "predicted \u2212 true"}
_MEANINGS = {
    "predicted": "what speaks for the predicted class",
    "true": "what speaks for the true class",
    DIFFERENCE: "the map of the predicted class's score minus the true one's",
}
_ORDERS = {
    "index": "in the order of their numbers",
    "confidence": "the most confident first",
    "loss": "the largest loss first",
    "class": "at equal distances among all, which lie class by class",
}


class Captioned(NamedTuple):
    """A figure and what is to be read below it."""

    figure: "Figure"
    caption: str


def of_maps(
    network: Network,
    dataset: Dataset,
    selection: Selection,
    maps: Sequence[str] = MAPS[:2],
    *,
    width: float = plots.WIDTH,
    cmap: str = drawing.CMAPS[0],
    progress: Progress = no_progress,
) -> Captioned:
    """Test images beside maps of them: those chosen by number, in that order, or else wrong predictions.

    Args:
      network: the network.
      dataset: the data set.
      selection: which images, stage and method; the stage is named.
      maps: of `MAPS`, the columns.
      width: of the figure, in inches.
      cmap: the colours of the maps, one of `drawing.CMAPS`.
      progress: as for `analysis.analyse`.

    Raises:
      UserError: as `analysis.analyse`; no image fits the selection; or the method has no difference.
    """
    analysis.require(network, dataset, selection)
    if DIFFERENCE in maps and selection.method == "eigen-cam":
        raise UserError("eigen-cam has one map for all classes, and no difference: leave it out of --maps")
    test, indices = dataset.test, selection.indices
    positions = None if indices is None else analysis.positions_of(dataset, indices)
    # All of them, as `analyse` does: in bfloat16 a probability depends on the batch, and both shall say the same.
    predictions = network.predict(test.images, test.labels, progress("predicting", len(test.images)))
    if positions is None:
        positions, _ = analysis.choose(network, dataset, predictions, selection)
    order = "class" if selection.sort == "index" and predictions.by_class else selection.sort
    if not len(positions):
        raise UserError("no wrong prediction fits this choice: choose other classes, or images by --indices")
    predictions = predictions.take(positions)
    classes = {"predicted": predictions.predicted, "true": predictions.true, DIFFERENCE: predictions.predicted}
    against = {DIFFERENCE: predictions.true}
    raw = network.maps(
        test.images[positions],
        np.stack([classes[name] for name in maps], axis=1),
        against=np.stack([against.get(name, np.full(len(positions), NO_CLASS)) for name in maps], axis=1),
        stage=selection.stage,
        methods=[selection.method],
        on_batch=progress("explaining", len(positions)),
    )[:, :, 0]
    names = predictions.class_names
    said = [
        ((f"true: {names[true]}", ""), (f"predicted: {names[predicted]}", f" {100 * p:.0f}%"))
        for true, predicted, p in zip(predictions.true, predictions.predicted, predictions.confidence, strict=True)
    ]
    columns = [drawing.Column(_HEADINGS[name], raw[:, i], name == DIFFERENCE) for i, name in enumerate(maps)]
    figure = drawing.maps_figure(test.images[positions], said, columns, width=width, cmap=cmap)
    caption = _caption_of_maps(network, dataset, selection, maps, cmap, predictions, test.indices[positions], order)
    return Captioned(figure, caption)


def _caption_of_maps(
    network: Network,
    dataset: Dataset,
    selection: Selection,
    maps: Sequence[str],
    cmap: str,
    predictions: Predictions,
    indices: np.ndarray,
    order: str,
) -> str:
    names, lines = predictions.class_names, []
    for index, true, predicted, p in zip(
        indices, predictions.true, predictions.predicted, predictions.confidence, strict=True
    ):
        lines.append(f"{index}: {names[true]}, predicted as {names[predicted]} ({100 * p:.1f}%)")
    chosen = "chosen by number"
    if selection.indices is None:
        of = "" if selection.true is None else f" of {names[network.label_of(selection.true)]}"
        of += "" if selection.predicted is None else f" as {names[network.label_of(selection.predicted)]}"
        chosen = f"wrong predictions{of}, {_ORDERS[order]}"
    images = "One image" if len(lines) == 1 else f"{len(lines)} images"
    parts = [
        f"{images} of the {dataset.test_title} ({chosen}), and maps by {selection.method} at {selection.stage} of "
        f"{_named(network.trained)}.",
        f"From left to right: the image; {'; '.join(_MEANINGS[name] for name in maps)}.",
        "Above each image: its true class, the predicted one and the probability of that.",
    ]
    if set(maps) != {DIFFERENCE}:
        parts.append(
            f"Colours ({cmap}) lie half-transparent over the image; they show the positive part of a map as a share "
            "of the map's own maximum, and cannot be compared between maps."
        )
    if DIFFERENCE in maps:
        parts.append(
            "In a difference blue speaks for the predicted class and orange for the true one, as a share of the "
            "largest magnitude in that map."
        )
    return f"{' '.join(parts)} Test images, row by row: {'; '.join(lines)}."


def of_confusion(
    network: Network, dataset: Dataset, *, width: float = plots.WIDTH, progress: Progress = no_progress
) -> Captioned:
    """The confusion matrix of a test set.

    Raises:
      UserError: the data set is not the network's, or has no test images.
    """
    analysis.require(network, dataset, Selection(stage=network.stages[-1]))
    test, font = dataset.test, plots.font_size(width)
    predictions = network.predict(test.images, test.labels, progress("predicting", len(test.images)))
    names = [drawing.cut(name, "", font, width / 4) for name in predictions.class_names]
    figure = drawing.confusion_figure(predictions.confusion, names, width=width, font=font)
    caption = (
        f"Confusion matrix of {_named(network.trained)} on the {dataset.test_title}: how many images of each true "
        f"class (rows) are predicted as each class (columns). {predictions.correct.sum():,} of {len(predictions):,} "
        f"images are predicted correctly ({100 * predictions.accuracy:.2f}%): these are on the diagonal, which is "
        "left white. The darker a cell, the more errors."
    )
    return Captioned(figure, caption)


def of_curves(network: Trained, *, width: float = plots.WIDTH) -> Captioned:
    """Loss and accuracy of a network's training by epoch.

    Raises:
      UserError: its history is not known.
    """
    rows = network.history
    if not rows:
        raise UserError(f"{network.name} brings no training history: give a run, or a file that was exported from one")
    splits = [
        text
        for name, text in (("train", "augmented training"), ("val", "validation"), ("test", "test"))
        if f"{name}_accuracy" in rows[-1]
    ]
    rates = [row.get("learning_rate", 0) for row in rows]
    fell = any(after < before for before, after in itertools.pairwise(rates))
    last = ", ".join(
        f"{100 * rows[-1][f'{name}_accuracy']:.2f}% on {name}"
        for name in ("val", "test")
        if f"{name}_accuracy" in rows[-1]
    )
    taught, data = bool(network.config.teacher), network.spec.name
    if network.config.dataset == "sample":
        data = f"the embedded SAMPLE of {data}"
    caption = (
        f"Loss and accuracy of {_named(network)} in {len(rows)} epochs of training on {data}, of "
        f"{' and '.join(splits)} images."
        + (" The training loss compares with labels and with a teacher's answers, the others with labels." * taught)
        + (" Grey lines mark where the learning rate fell." if fell else "")
        + (f" Accuracy after the last epoch: {last}." if last else "")
    )
    return Captioned(plots.curves_figure(rows, taught=taught, width=width, font=plots.font_size(width)), caption)


def _named(network: Trained) -> str:
    return f"{network.name} ({architecture(network.config)}, SHA-256 {network.digest[:12]})"


# ---- files -----------------------------------------------------------------------------------------


def caption_path(path: Path) -> Path:
    """Where the caption of a figure is: `x.pdf.txt` beside `x.pdf`."""
    return path.with_name(f"{path.name}.txt")


def check(path: Path, *, overwrite: bool) -> None:
    """Refuses a figure's name that says no format, has no folder, or is taken.

    Raises:
      UserError: so it is.
    """
    plots.require_format(path)
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}: make it, or choose another")
    for one in (path, caption_path(path)):
        if one.is_dir():
            raise UserError(f"--out {one} is a folder: choose another name")
        if one.exists() and not overwrite:
            raise UserError(f"--out {one} exists: replace it with --overwrite, or choose another")


def write(path: Path, captioned: Captioned, *, dpi: int = plots.DPI) -> None:
    """Writes a figure and its caption, both or none.

    Raises:
      UserError: they cannot be written.
    """
    content = plots.render(captioned.figure, path, captioned.caption, dpi=dpi)
    try:
        files.write_together({path: content, caption_path(path): captioned.caption + "\n"})
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}; choose another") from error
