"""A person's own pictures: read from files of any kind, and brought to a network's size."""

import functools
import os
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cifar_flax.errors import UserError

_SHOWN = 320  # pixels along a picture that is shown


class Picture(NamedTuple):
    """A picture as it was read.

    Attributes:
      path: the file.
      size: its columns and rows.
      whole: it in RGB, made smaller to be shown.
      middle: its middle square, likewise.
      pixels: uint8 `[size, size, 3]`, the middle square as a network takes it.
    """

    path: Path
    size: tuple[int, int]
    whole: Image.Image
    middle: Image.Image
    pixels: np.ndarray


def find(path: Path) -> list[Path]:
    """The file that is named, or all pictures in a folder, by their endings.

    Raises:
      UserError: it is not there, or is a folder without a picture.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing: leave it out, or mend it")
    if not path.exists():
        raise UserError(f"{path} is not there: expected a picture or a folder of pictures")
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise UserError(f"{path} may not be read: leave it out, or change its rights")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder: expected a picture or a folder of pictures")
    if not path.is_dir():
        return [path]
    if found := sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in endings() and file.is_file() and not _is_hidden(file.relative_to(path))
    ):
        return found
    raise UserError(
        f"{path} holds no picture: expected files in it that end in .jpg, .png or another picture's ending"
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@functools.cache
def endings() -> set[str]:
    """How the names of files end that Pillow can read."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read(path: Path, size: int) -> Picture:
    """Reads a picture as `decode` does, and brings its middle square to `size` pixels as `fit` does.

    Raises:
      UserError: as `decode`.
    """
    whole = decode(path, str(path))
    pixels, shown, side = fit(whole, size), whole.copy(), min(*whole.size, _SHOWN)
    shown.thumbnail((_SHOWN, _SHOWN))
    return Picture(path, whole.size, shown, Image.fromarray(fit(whole, side)), pixels)


def decode(file: Path | BinaryIO, name: str) -> Image.Image:
    """A picture of any kind that Pillow knows, in RGB: turned as its EXIF says, transparency on white.

    Raises:
      UserError: it cannot be read, or is too large to be meant; it is called `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return whole_of(opened, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "Pillow's limit of"
        raise UserError(f"{name} has more than {limit} pixels: make it smaller") from error
    except PermissionError as error:
        raise UserError(f"{name} may not be read: leave it out, or change its rights") from error
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "is a folder"
        raise UserError(f"{name} {what}: expected a picture") from error
    except Exception as error:  # Pillow raises nearly anything on broken input
        raise UserError(f"{name} cannot be read as a picture: leave it out, or save it anew") from error


def whole_of(opened: Image.Image, name: str) -> Image.Image:
    """A picture of Pillow's in RGB: turned as its EXIF says, transparency on white.

    Raises:
      UserError: it has no pixels, or of no known range, or is broken; it is called `name`.
    """
    if not all(opened.size):
        raise UserError(f"{name} has no pixels: leave it out")
    if opened.mode in ("F", "I"):
        raise UserError(f"{name} has pixels of 32 bits, of no known range: save it with 8 or 16 bits")
    try:
        return to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError) as error:  # of a file that is read only now
        raise UserError(f"{name} cannot be read as a picture: leave it out, or save it anew") from error


def measure(file: Path | BinaryIO) -> tuple[int, int] | None:
    """The columns and rows of a picture, by its header alone; None if it has none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return opened.size
    except Exception:  # `decode` will say what is wrong
        return None


def fit(picture: Image.Image, size: int) -> np.ndarray:
    """The middle square of a picture, by a bilinear filter as wide as the reduction: uint8 `[size, size, 3]`."""
    return np.asarray(ImageOps.fit(to_rgb(picture), (size, size), Image.Resampling.BILINEAR))


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB: 16 bits scaled to 8, transparency on white."""
    if picture.mode.startswith("I;16"):  # 16 bits a pixel, which `convert` would cut off at 255
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
