"""Class activation maps of images, to look at and to keep."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cifar_flax.errors import UserError
from cifar_flax.explaining import cam

if TYPE_CHECKING:  # matplotlib is not needed before a map is drawn
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Maps:
    """A map of each of `N` images.

    Attributes:
      raw: float32 `[N, h, w]`, signed: what speaks for the class, and what against it.
      images: uint8 `[N, H, W, 3]`.
      targets: the class that each map is for.
      predicted: the class that each image is taken for.
      stage: the stage explained.
      method: how the maps were made.
    """

    raw: np.ndarray
    images: np.ndarray
    targets: Sequence[str]
    predicted: Sequence[str]
    stage: str
    method: str

    @property
    def heat(self) -> np.ndarray:
        """The positive parts at the images' size, each scaled to [0, 1]: float32 `[N, H, W]`."""
        height, width = self.images.shape[1:3]
        return np.asarray(cam.to_image(self.raw, (height, width)))

    @property
    def overlays(self) -> np.ndarray:
        """The images under half-transparent maps in JET: uint8 `[N, H, W, 3]`."""
        pairs = zip(self.images, self.heat, strict=True)
        return np.stack([cam.overlay(image / np.float32(255), heat) for image, heat in pairs])

    def figure(self, *, width: float = 5.5, cmap: str = "inferno") -> "Figure":
        """A figure of matplotlib's: each image beside its map.

        Args:
          width: in inches.
          cmap: the colours: `inferno`, `viridis`, `cividis` or `jet`.

        Raises:
          UserError: there is no image, or they are not such.
        """
        from cifar_flax.explaining import drawing

        if not len(self.images):
            raise UserError("there is no image to draw: expected one or more")
        pairs = zip(self.predicted, self.targets, strict=True)
        labels = [((f"predicted: {predicted}", ""), (f"map for {target}", "")) for predicted, target in pairs]
        return drawing.maps_figure(self.images, labels, [drawing.Column("map", self.raw)], width=width, cmap=cmap)

    def show(self) -> None:
        """Shows it: in a notebook below the cell, else in the viewer of this machine."""
        content = io.BytesIO()
        self.figure().savefig(content, format="png", dpi=150)
        try:
            from IPython import display, get_ipython

            in_notebook = get_ipython() is not None
        except ImportError:
            in_notebook = False
        if in_notebook:
            display.display(display.Image(content.getvalue()))  # pyright: ignore[reportPossiblyUnboundVariable]
        else:
            Image.open(content).show()

    def save(self, path: str | Path, *, width: float = 5.5, dpi: int = 300, cmap: str = "inferno") -> None:
        """Draws `figure` into a `.png`, `.pdf` or `.svg` file, which it replaces; a PNG has `dpi` dots an inch.

        Raises:
          UserError: the name ends in something else, or cannot be written; or as `figure`.
        """
        from cifar_flax import plots

        plots.require_size(width, dpi)
        figure = self.figure(width=width, cmap=cmap)
        try:
            plots.save_figure(figure, Path(path), dpi=dpi)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another name") from error
