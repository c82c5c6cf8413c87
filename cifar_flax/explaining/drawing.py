"""The pictures of predictions, maps and what was measured of them."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from cifar_flax import plots
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam
from cifar_flax.plots import TEST_COLOR, TRAIN_COLOR, VALIDATION_COLOR, save_figure

# Of maps in a paper. The first three are perceptually uniform: told apart by the colour-blind, and in grey. Inferno's
# zero is black, so that what does not count is dimmed and keeps its own colours.
CMAPS = ("inferno", "viridis", "cividis", "jet")
_ZOOM = 256  # pixels along a picture: an image's pixels as squares, maps interpolated
_MOST_NUMBERED, _LEAST_SIZE = 40, 4  # classes of a confusion matrix, and points of the numbers in its cells
_DIFFERENCE_COLORS = LinearSegmentedColormap.from_list(
    "difference", np.stack([cam.AGAINST, np.full(3, 247), cam.FOR]) / 255
)
ZERO, SAME = "zero map:\nno evidence", "no\ndifference"


def colors_of(cmap: str) -> np.ndarray:
    """The colours of one of `CMAPS`: uint8 `[256, 3]`, RGB, for 0 to 1.

    Raises:
      UserError: it is none of these.
    """
    if cmap not in CMAPS:
        raise UserError(f"cmap {cmap} is not known: expected one of {', '.join(CMAPS)}")
    return cam.JET if cmap == "jet" else np.round(255 * colormaps[cmap](np.arange(256))[:, :3]).astype(np.uint8)


def zoomed(image: np.ndarray) -> np.ndarray:
    """A uint8 image `[H, W, 3]` at the size at which maps are drawn over it, its pixels as squares."""
    zoom = max(1, _ZOOM // len(image))
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def overlay(image: np.ndarray, raw: np.ndarray, colors: np.ndarray = cam.JET) -> np.ndarray | None:
    """A uint8 image, zoomed, under a raw map `[h, w]` in these colours; None for a zero map."""
    if bool(cam.is_zero(raw)):
        return None
    pixels = zoomed(image) / np.float32(255)
    heat = cam.to_image(raw, (pixels.shape[0], pixels.shape[1]))
    return cam.overlay(pixels, np.asarray(heat), colors)


def difference_overlay(image: np.ndarray, raw: np.ndarray) -> np.ndarray | None:
    """A uint8 image, zoomed and grey, under the difference of two raw maps `[h, w]`; None where there is none."""
    if not raw.any():
        return None
    pixels = zoomed(image) / np.float32(255)
    share = cam.to_signed(raw, (pixels.shape[0], pixels.shape[1]))
    return cam.overlay_difference(pixels, np.asarray(share))


class _Board:
    """A figure on which pictures and words are put at places in inches, from its lower left corner.

    Every place is known beforehand: matplotlib's layout engines take longer than all of the drawing, and so would axes
    for each picture. All are in the same ones.
    """

    def __init__(self, width: float, height: float, title: str = "", size: float = 12):
        """Makes a figure; its title is of so many points, or as many as fit."""
        self.figure = Figure(figsize=(width, height))
        whole = {"xlim": (0, width), "ylim": (0, height), "xticks": [], "yticks": [], "autoscale_on": False}
        self._axes = self.axes(0, 0, width, height, **whole)
        self._axes.set_axis_off()
        if title:
            self.figure.suptitle(title, y=1 - 0.08 / height, fontsize=_fitting([title], size, width - 0.1))

    def axes(self, left: float, bottom: float, wide: float, high: float, **options: Any) -> Axes:
        """Axes of their own."""
        width, height = self.figure.get_size_inches()
        return self.figure.add_axes((left / width, bottom / height, wide / width, high / height), **options)

    def write(self, x: float, y: float, text: str, size: float, **options: Any) -> None:
        options["parse_math"] = False  # a name with dollar signs is no formula
        self._axes.text(x, y, text, fontsize=size, **options)

    def picture(
        self, left: float, bottom: float, side: float, picture: np.ndarray, *, thin: bool = False, **options: Any
    ) -> AxesImage:
        """A square picture in a frame, which may be thin."""
        width, color = (0.4, "0.5") if thin else (0.8, "black")
        self._axes.add_patch(Rectangle((left, bottom), side, side, fill=False, linewidth=width, edgecolor=color))
        options = {"interpolation": "nearest", **options}
        return self._axes.imshow(picture, aspect="auto", extent=(left, left + side, bottom, bottom + side), **options)

    def titled(
        self, left: float, bottom: float, side: float, picture: np.ndarray, title: str, size: float = 8, **options: Any
    ) -> AxesImage:
        """A square picture, and a title of so many points above, whose lines are cut where they do not fit."""
        title = "\n".join(cut(line, "", size, side + 0.05) for line in title.split("\n"))
        self.write(left + side / 2, bottom + side + 3 / 72, title, size, ha="center")
        return self.picture(left, bottom, side, picture, **options)

    def overlay(
        self, left: float, bottom: float, side: float, image: np.ndarray, picture: np.ndarray | None, *title: Any
    ) -> None:
        """An image's overlay, or the image itself, dark, where there is none."""
        self.titled(left, bottom, side, image // 3 if picture is None else picture, *title)
        if picture is None:
            self.inscribe(left, bottom, side, ZERO, 10)

    def inscribe(self, left: float, bottom: float, side: float, text: str, size: float) -> None:
        """Writes in the middle of a dark picture."""
        self.write(left + side / 2, bottom + side / 2, text, size, ha="center", va="center", color="white")


def _sheet(
    titles: Sequence[str], rows: int, columns: int, cell: float, title: str
) -> tuple[_Board, Callable[[int, int], tuple[float, float, float]], float]:
    """A board for pictures in rows, the place of the one at (row, column), and the points of their titles.

    Args:
      titles: those that stand above pictures.
      rows: how many.
      columns: how many.
      cell: inches from a picture to the next one.
      title: printed above all.
    """
    size = max(5, _fitting("\n".join(titles).split("\n"), 8, cell - 0.1))
    high = max((text.count("\n") + 1 for text in titles), default=0) * size * _LINE + 0.05 + cell
    board = _Board(columns * cell, 0.4 + rows * high, title)

    def place(row: int, column: int) -> tuple[float, float, float]:
        return column * cell + 0.05, (rows - 1 - row) * high + 0.05, cell - 0.1

    return board, place, size


def plot_predictions(images: np.ndarray, titles: Sequence[str], path: Path, title: str, description: str = "") -> None:
    """Images with a title each, five in a row.

    Args:
      images: uint8 `[N, H, W, 3]`.
      titles: one an image.
      path: the PNG to write.
      title: printed above.
      description: kept in the file.
    """
    board, place, size = _sheet(titles, max(1, -(-len(images) // 5)), 5, 2.0, title)
    for i, (image, text) in enumerate(zip(images, titles, strict=True)):
        board.titled(*place(*divmod(i, 5)), image, text, size)
    save_figure(board.figure, path, description)


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
    num_rows, across = max(1, -(-len(images) // 2)), 1 if len(images) == 1 else 2
    words = [*titles, *itertools.chain(*overlay_titles)]
    board, place, size = _sheet(words, num_rows, across * width, 1.8, title)
    for i, (image, shown, text, names) in enumerate(zip(images, overlays, titles, overlay_titles, strict=True)):
        row, left = i // across, i % across * width
        board.titled(*place(row, left), image, text, size)
        for column, (picture, name) in enumerate(zip(shown, names, strict=True), left + 1):
            board.overlay(*place(row, column), image, picture, name, size)
    return board.figure


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
    side, scale, names = 2.5, 0.8, [cut(name, "", 8, 2) for name in class_names]  # inches, like all here
    pictures = (2 + len(overlays)) * (side + 0.1)
    width, height = pictures + scale + max(_extent(name, 8) for name in names) / 72 + 0.1 + side + 0.15, side + 0.75
    board = _Board(width, height, title, 11)
    first, *places, last = [(0.05 + i * (side + 0.1), 0.25, side) for i in range(2 + len(overlays))]
    board.titled(*first, image, "image")
    for place, picture, name in zip(places, overlays, overlay_titles, strict=True):
        board.overlay(*place, image, picture, name)
    limit = float(np.abs(difference).max()) or 1.0
    colors = {"cmap": _DIFFERENCE_COLORS, "vmin": -limit, "vmax": limit, "interpolation": "bilinear"}
    shown = board.titled(*last, difference, "predicted minus true", **colors)
    bar = board.axes(pictures, 0.25 + 0.1 * side, 0.1, 0.8 * side)
    board.figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8)
    bars = board.axes(width - side - 0.15, 0.25, side, side)
    bars.barh(range(len(names)), probabilities, color=TRAIN_COLOR)
    bars.set_yticks(range(len(names)), names)
    bars.tick_params(labelsize=8)
    bars.set_xlim(0, 1)
    bars.invert_yaxis()
    bars.set_title("probability", fontsize=8, pad=3)
    save_figure(board.figure, path, description)


# ---- figures in a paper ----------------------------------------------------------------------------

# Inches: the height that a page has, the largest and the smallest side of a picture, and the gaps between pictures of
# one image and between images.
_PAGE, _LARGEST, _SMALLEST, _GAP, _APART = 9.0, 1.5, 0.3, 0.04, 0.18
_EDGE = 0.01  # so that frames are whole
_TALLEST = 100.0  # a picture of more than some 2**16 rows of pixels cannot be drawn
_LINE = 1.25 / 72  # inches a line of text takes for each of its points


class Column(NamedTuple):
    """A map of every image: the words above, raw maps `[N, h, w]`, and whether these are differences, around 0."""

    heading: str
    raw: np.ndarray
    is_difference: bool = False


def maps_figure(
    images: np.ndarray,
    labels: Sequence[Sequence[tuple[str, str]]],
    columns: Sequence[Column],
    *,
    width: float = plots.WIDTH,
    cmap: str = CMAPS[0],
) -> Figure:
    """Images, each with its maps beside it and its label above; below, bars that say what the colours mean.

    Several images stand side by side where they would be larger than needed, or not fit a page.

    Args:
      images: uint8 `[N, H, W, 3]`, one or more.
      labels: for each image a few texts, in one line if they fit for all images, else in one each: words that are cut
        where they do not fit, and an end that is not.
      columns: one or more.
      width: of the figure, in inches.
      cmap: the colours of maps that are no differences, one of `CMAPS`.

    Raises:
      UserError: the width or the colours are not such, or there are more images than a figure takes.
    """
    plots.require_size(width, plots.DPI)
    colors, font, panels = colors_of(cmap), plots.font_size(width), 1 + len(columns)
    line, room = font * _LINE, width - 2 * _EDGE
    bars = 0.25 + 2 * line
    across, side = _arrange(len(images), panels, room, 2 * (line + _GAP), _PAGE - 2 * line - bars)
    step = panels * (side + _GAP) - _GAP + _APART  # from an image to the next one
    headings = ["image", *(column.heading for column in columns)]
    if _fitting(headings, font, side) < font:
        headings = [text.replace(" ", "\n", 1) for text in headings]
    heading_size = _fitting("\n".join(headings).split("\n"), font, side)
    said = [", ".join(map("".join, parts)) for parts in labels]
    if _fitting(said, font, step - _APART) < font:
        said = ["\n".join(cut(*part, font, step - _APART) for part in parts) for parts in labels]
    top, above = (max(text.count("\n") + 1 for text in texts) * line + 2 * _GAP for texts in (headings, said))
    height = top + -(-len(images) // across) * (above + side) + bars
    if height > _TALLEST:
        raise UserError(f"{len(images)} images are too many for one figure: choose fewer")
    board = _Board(width, height)

    def write(left: float, below: float, text: str, size: float, **options: Any) -> None:
        board.write(left, height - below + 0.2 * line, text, size, linespacing=1.1, **options)

    for i, image in enumerate(images):
        left, upper = _EDGE + i % across * step, top + i // across * (above + side) + above
        pictures: list[np.ndarray | None] = [zoomed(image)]
        for column in columns:
            raw = column.raw[i]
            pictures.append(difference_overlay(image, raw) if column.is_difference else overlay(image, raw, colors))
        write(left, upper - _GAP / 2, said[i], font)
        for heading, column, picture in zip(headings, [None, *columns], pictures, strict=True):
            if i < across:
                write(left + side / 2, top - _GAP, heading, heading_size, ha="center")
            place, pixels = (left, height - upper - side, side), zoomed(image) // 3 if picture is None else picture
            board.picture(*place, pixels, thin=True, interpolation="none")
            if picture is None:
                board.inscribe(*place, SAME if column and column.is_difference else ZERO, min(font, 9 * side))
            left += side + _GAP
    kinds = []
    if not all(column.is_difference for column in columns):
        kinds.append((colors[None], (0, 0.5, 1), "of each map's maximum"))
    if any(column.is_difference for column in columns):
        bar = cam.overlay_difference(np.ones((1, 256, 3)), np.linspace(-1, 1, 256)[None])
        kinds.append((bar, (-1, 0, 1), "true class \u2190  \u2192 predicted class"))
    for k, (bar, ticks, text) in enumerate(kinds):
        wide = min(1.5, 0.7 * width / len(kinds))
        axes = board.axes((k + 0.5) * width / len(kinds) - wide / 2, bars - 0.19, wide, 0.07)
        axes.imshow(bar, aspect="auto", extent=(ticks[0], ticks[-1], 0, 1), interpolation="none")
        axes.set_yticks([])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.tick_params(labelsize=font, length=2, width=0.4, pad=1)
        axes.spines[:].set(linewidth=0.4, color="0.5")
        axes.set_xlabel(text, fontsize=font, labelpad=0)
    return board.figure


def _arrange(count: int, panels: int, width: float, label: float, page: float) -> tuple[int, float]:
    """How many images stand side by side, and the side of a picture; lengths in inches."""
    across, side = 0, np.inf
    while not across or (across < count and (side > _LARGEST or -(-count // across) * (side + label) > page)):
        smaller = ((width + _APART) / (across + 1) - _APART - (panels - 1) * _GAP) / panels
        if across and smaller < _SMALLEST:
            break
        across, side = across + 1, smaller
    return across, side


def _fitting(texts: Iterable[str], size: float, width: float) -> float:
    """The size in points, at most `size`, at which texts of a line each are no wider than so many inches."""
    return size * min(1, 72 * width / (max(_extent(text, size) for text in texts) or 1))


def cut(text: str, end: str, size: float, width: float) -> str:
    """A text of one line, cut before its end where both together do not fit so many inches."""
    while len(text) > 1 and _extent(text + end, size) > 72 * width:
        text = text.removesuffix("\u2026")[:-1] + "\u2026"
    return text + end


@functools.lru_cache(10_000)  # names come again and again
def _extent(text: str, size: float) -> float:
    """The width of a text of one line, in points; a little more, since letters are moved to whole pixels."""
    return 1.06 * text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]


def confusion_figure(
    matrix: np.ndarray, class_names: Sequence[str], *, width: float | None = None, font: float = 10
) -> Figure:
    """Counts `[true, predicted]` as a grid of shaded numbers; the diagonal, which is right, is left white.

    With more classes than `_MOST_NUMBERED`, or in cells too narrow for them, the numbers are left out, and the cells'
    shades remain. Names that have no room are left out, too, at regular distances.

    Args:
      matrix: int `[C, C]`.
      class_names: the `C` names.
      width: of the figure, in inches; None for as much as they need.
      font: the size of its text, in points.
    """
    count = len(class_names)
    width = width or min(20.0, max(6.0, 3.0 + 0.4 * count)) + 0.6
    figure = Figure(figsize=(width, width - 0.6), layout="constrained")
    axes = figure.subplots()
    errors = np.ma.masked_array(matrix, np.eye(count, dtype=bool))  # what is masked is not drawn
    axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(1, 1.8 * errors.max()))
    cell = 0.6 * 72 * width / count  # points along it, about: names and labels take the rest
    size = min(0.8 * font, cell / (0.62 * len(str(matrix.max()))))
    if count <= _MOST_NUMBERED and size >= _LEAST_SIZE:
        for (true, predicted), value in np.ndenumerate(matrix):
            weight = "bold" if true == predicted else "normal"
            axes.text(predicted, true, str(value), ha="center", va="center", fontsize=size, fontweight=weight)
    size, angle = (font, 45) if count <= _MOST_NUMBERED else (font / 2, 90)
    places = range(0, count, math.ceil(1.1 * size / cell))
    names = [class_names[place] for place in places]
    axes.set_xticks(places, names, rotation=angle, ha="right", fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=font)
    axes.set_ylabel("true", fontsize=font)
    return figure


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
    left.legend(frameon=False, loc="upper left")
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
    figure.legend(*figure.axes[0].get_legend_handles_labels(), title="predictions", loc="outside right upper")
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
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name, fontsize=8, pad=3)
            axes.imshow(picture, interpolation="nearest", vmin=0, vmax=maps.max(), cmap="viridis")
    for axes, name in zip(grid[:, 0], ("map of the predicted class", "map of the true class"), strict=True):
        axes.set_ylabel(name, fontsize=8)
    for axes in grid[:, len(pairs) :].flat:
        axes.set_axis_off()
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
        axes.imshow(-grid.shades, cmap=_DIFFERENCE_COLORS, vmin=-1.3, vmax=1.3, aspect="auto")
        few = len(grid.columns) <= _MOST_NUMBERED
        for row, column in np.ndindex(grid.shades.shape if few else (0, 0)):
            axes.text(column, row, grid.cells[row][column], ha="center", va="center", fontsize=8)
        turned = 90 if max(map(len, grid.columns)) > 2 else 0
        axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=turned, fontsize=8 if few else 5)
        axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(grid.title, fontsize=10)
    save_figure(figure, path)
