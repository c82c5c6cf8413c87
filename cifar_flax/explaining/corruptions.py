"""Images as they may be outside: the 15 corruptions of CIFAR-10-C at severities 1 to 5, mirrored, and grey.

Pure functions of uint8 images `[N, H, W, 3]`. Definitions and constants are those of the benchmark's
`ImageNet-C/create_c/make_cifar_c.py` (github.com/hendrycks/robustness, commit 8190fe3; Hendrycks and Dietterich 2019,
arXiv 1903.12261), down to its quirks: values are cut to integers, not rounded, and glass blur copies a neighbour where
it says that it swaps two. Its photographs of frost cannot be passed on: `FROST` is a stand-in.

The constants are made for 32x32 pixels. Elastic transform, zoom blur and pixelate grow with the image; all other
lengths are in pixels.
"""

import functools
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue
PART = 500  # images that are corrupted at once: it bounds the memory
# Of each of the benchmark's five photographs of frost: mean red, green and blue, and deviation of a crop's brightness.
_FROSTS = ((78, 149, 165, 14), (198, 202, 212, 18), (198, 203, 212, 18), (142, 157, 170, 26), (104, 115, 127, 34))


def corrupt(name: str, images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Images with a corruption.

    Args:
      name: one of `CORRUPTIONS`.
      images: uint8 `[N, H, W, 3]`.
      severity: one of `SEVERITIES`, 5 the worst.
      rng: draws noise, angles and the like; for each image anew.

    Returns:
      uint8 `[N, H, W, 3]`.

    >>> corrupt("contrast", np.uint8([[[[0] * 3, [200] * 3]]]), 2, np.random.default_rng(0))[0, 0, :, 0]
    array([ 50, 150], dtype=uint8)
    """
    function, constants = CORRUPTIONS[name]
    parts = (images[start : start + PART] for start in range(0, len(images), PART))
    return np.concatenate([function(part, constants[severity - 1], rng) for part in parts])


def mirrored(images: np.ndarray) -> np.ndarray:
    """Images with left and right exchanged."""
    return images[:, :, ::-1]


def grey(images: np.ndarray) -> np.ndarray:
    """Images without colour: the luma of ITU-R BT.601 in each channel."""
    return np.repeat(np.rint(images @ _LUMA)[..., None], 3, axis=-1).astype(np.uint8)


def _on_unit_values(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of float images in [0, 1] as one of uint8 images; what it gives is clipped, and cut to integers."""

    @functools.wraps(function)
    def on_integers(images: np.ndarray, constant, rng: np.random.Generator) -> np.ndarray:
        return (np.clip(function(images / 255, constant, rng), 0, 1) * 255).astype(np.uint8)

    return on_integers


# ---- noise ---------------------------------------------------------------------------------------


@_on_unit_values
def _gaussian_noise(x, deviation, rng):
    return x + rng.normal(scale=deviation, size=x.shape)


@_on_unit_values
def _shot_noise(x, photons, rng):
    return rng.poisson(x * photons) / photons


@_on_unit_values
def _impulse_noise(x, share, rng):
    return np.where(rng.random(x.shape) < share, rng.random(x.shape) < 0.5, x)


# ---- blur ----------------------------------------------------------------------------------------


def _smooth(x, sigma, mode="nearest", truncate=4.0):
    """`[N, H, W, ...]`, each image and channel by a Gaussian."""
    return ndimage.gaussian_filter(x, sigma, axes=(1, 2), mode=mode, truncate=truncate)


@_on_unit_values
def _defocus_blur(x, constant, rng):
    """By a disk, whose edge is softened."""
    radius, sigma = constant
    at = np.arange(-2, 3)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    edge = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, edge / edge.sum(), axis, mode="constant")
    return ndimage.correlate(x, disk[None, :, :, None] / disk.sum(), mode="mirror")


def _glass_blur(images, constant, rng):
    """Each pixel but those of the first two rows and columns becomes itself or a neighbour above or left of it."""
    sigma, times = constant
    soft = (_smooth(images / 255, sigma) * 255).astype(np.uint8)
    count, height, width, _ = images.shape
    image, row, column = np.ogrid[:count, 2:height, 2:width]
    for _ in range(times):
        left, up = rng.integers(2, size=(2, count, height - 2, width - 2))
        soft[:, 2:, 2:] = soft[image, row - up, column - left]
    return (np.clip(_smooth(soft / 255, sigma), 0, 1) * 255).astype(np.uint8)


def _along_a_line(images, radius, sigma, degrees):
    """ImageMagick's motion blur of uint8 `[N, H, W, ...]`, by degrees `[N]`: half a Gaussian, from a pixel on."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.radians(degrees)[:, None]
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    height, width = images.shape[1:3]
    image, row, column = np.ogrid[: len(images), :height, :width]
    total = np.zeros(images.shape)
    for step, weight in enumerate(weights / weights.sum()):
        rows = np.clip(row + down[:, step, None, None], 0, height - 1)
        total += weight * images[image, rows, np.clip(column + right[:, step, None, None], 0, width - 1)]
    return (np.rint(257 * total) // 257).astype(np.uint8)


def _motion_blur(images, constant, rng):
    radius, sigma = constant
    return _along_a_line(images, radius, sigma, rng.uniform(-45, 45, len(images)))


def _zoomed(x, factor):
    """The middle of `[N, S, S, ...]`, enlarged to all of it, bilinear."""
    size = x.shape[1]
    kept = math.ceil(size / factor)
    top = (size - kept) // 2
    along = np.asarray(ndimage.zoom(np.eye(kept), (factor, 1), order=1))
    trim = (len(along) - size) // 2
    along = along[trim : trim + size]
    middle = x[:, top : top + kept, top : top + kept]
    return np.einsum("ih,nhw...,jw->nij...", along, middle, along, optimize=True)


@_on_unit_values
def _zoom_blur(x, largest, rng):
    factors = np.arange(1, largest, 0.01)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


# ---- weather -------------------------------------------------------------------------------------


def _snow(images, constant, rng):
    mean, deviation, zoom, least, radius, sigma, kept = constant
    x, (count, height, width, _) = images / 255, images.shape
    flakes = _zoomed(rng.normal(mean, deviation, (count, height, width)), zoom)
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    fallen = _along_a_line(flakes, radius, sigma, rng.uniform(-135, -45, count))[..., None] / 255
    whitened = kept * x + (1 - kept) * np.maximum(x, (x @ _LUMA)[..., None] * 1.5 + 0.5)
    return (np.clip(whitened + fallen + fallen[:, ::-1, ::-1], 0, 1) * 255).astype(np.uint8)


def _frost(images, constant, rng):
    """A stand-in: where the benchmark adds a crop of a photograph, speckles of its mean colour and its deviation."""
    kept, added = constant
    speckles = rng.normal(size=(2, *images.shape[:3]))
    sigma = 3
    patches = _smooth(speckles[1], sigma, "wrap") * (2 * sigma * math.sqrt(math.pi))  # of deviation 1, as the speckles
    *colour, deviation = np.array(_FROSTS)[rng.integers(5, size=len(images))].T
    brightness = deviation[:, None, None] * (speckles[0] + patches) / math.sqrt(2)
    frost = np.clip(np.stack(colour, axis=-1)[:, None, None] + brightness[..., None], 0, 255)
    return np.clip(kept * images + added * frost, 0, 255).astype(np.uint8)


def _plasma(count, size, decay, rng):
    """Clouds in [0, 1], `[count, size, size]`, by the diamond-square algorithm; `size` is a power of two.

    The corners of squares that halve in size are known; their middles, and then the middles of their sides, become the
    mean of the four points around, with the opposite edge beyond an edge, and a random part that decays.
    """
    cloud, step, wobble = np.zeros((count, size, size)), size, 100.0

    def around(a, b):
        mean = (a + b) / 4
        return mean + wobble * rng.uniform(-wobble, wobble, mean.shape)

    while step > 1:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        cloud[:, half::step, half::step] = around(pairs, np.roll(pairs, -1, axis=2))
        middles = cloud[:, half::step, half::step]
        sides = corners + np.roll(corners, -1, axis=2)
        cloud[:, ::step, half::step] = around(middles + np.roll(middles, 1, axis=1), sides)
        sides = corners + np.roll(corners, -1, axis=1)
        cloud[:, half::step, ::step] = around(middles + np.roll(middles, 1, axis=2), sides)
        step, wobble = half, wobble / decay
    cloud -= cloud.min(axis=(1, 2), keepdims=True)
    return cloud / cloud.max(axis=(1, 2), keepdims=True)


@_on_unit_values
def _fog(x, constant, rng):
    strength, decay = constant
    count, height, width, _ = x.shape
    clouds = _plasma(count, 2 ** math.ceil(math.log2(max(height, width))), decay, rng)[:, :height, :width, None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + strength * clouds) * brightest / (brightest + strength)


@_on_unit_values
def _brightness(x, added, rng):
    """More of V in HSV, at the same hue and saturation."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return np.where(value > 0, x / np.maximum(value, 1 / 255), 1) * brighter


# ---- digital -------------------------------------------------------------------------------------


@_on_unit_values
def _contrast(x, kept, rng):
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * kept + mean


def _at(images, rows, columns, mode):
    """`[N, H, W, 3]` at places `[N, H, W]`, bilinear, beyond the edges by SciPy's `mode`."""
    places = np.stack([rows, columns], axis=1)
    return np.stack(
        [
            np.stack([ndimage.map_coordinates(image[..., c], at, order=1, mode=mode) for c in range(3)], axis=-1)
            for image, at in zip(images, places, strict=True)
        ]
    )


@_on_unit_values
def _elastic_transform(x, constant, rng):
    """Three points are moved, and the image with them; then each pixel is, as its neighbours are."""
    size = x.shape[1]
    strength, sigma, reach = (size * share for share in constant)
    low, high = size // 2 - size // 3, size // 2 + size // 3
    points = np.array([(high, high), (high, low), (low, low)], float)  # x, y
    moved = points + rng.uniform(-reach, reach, (len(x), 3, 2))
    back = np.linalg.solve(np.insert(moved, 2, 1, axis=2), np.broadcast_to(points, moved.shape))
    row, column = np.mgrid[:size, :size]
    places = np.stack([column, row, np.ones_like(row)], axis=-1) @ back[:, None]
    x = _at(x, places[..., 1], places[..., 0], "mirror")
    right, down = (_smooth(rng.uniform(-1, 1, x.shape[:3]), sigma, "reflect", 3) * strength for _ in range(2))
    return _at(x, row + down, column + right, "reflect")


def _pixelate(images, share, rng):
    height, width = images.shape[1:3]
    small = int(width * share), int(height * share)
    pictures = (Image.fromarray(image).resize(small, Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(picture.resize((width, height), Image.Resampling.BOX)) for picture in pictures])


def _jpeg_compression(images, quality, rng):
    def compressed(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([compressed(image) for image in images])


FROST = "frost (stand-in)"
# Each corruption's function, and its constants at severities 1 to 5.
CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple]] = {
    "gaussian noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    FROST: (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
}
