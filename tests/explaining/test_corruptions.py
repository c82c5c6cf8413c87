"""Corruptions against what they are by definition, computed another way; constants typed anew from the recipe."""

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cifar_flax.explaining import corruptions
from cifar_flax.explaining.corruptions import CORRUPTIONS, FROST, SEVERITIES, corrupt

# Column by column of make_cifar_c.py, severity 1 to 5 along each.
CONSTANTS = {
    "gaussian noise": ["0.04 0.06 0.08 0.09 0.1"],
    "shot noise": ["500 250 100 75 50"],
    "impulse noise": ["0.01 0.02 0.03 0.05 0.07"],
    "defocus blur": ["0.3 0.4 0.5 1 1.5", "0.4 0.5 0.6 0.2 0.1"],
    "glass blur": ["0.05 0.25 0.4 0.25 0.4", "1 1 1 2 2"],
    "motion blur": ["6 6 6 8 9", "1 1.5 2 2 2.5"],
    "zoom blur": ["1.06 1.11 1.16 1.21 1.26"],
    "snow": [
        "0.1 0.1 0.15 0.25 0.3",
        "0.2 0.2 0.3 0.3 0.3",
        "1 1 1.75 2.25 1.25",
        "0.6 0.5 0.55 0.6 0.65",
        "8 10 10 12 14",
        "3 4 4 6 12",
        "0.95 0.9 0.9 0.85 0.8",
    ],
    FROST: ["1 1 0.9 0.85 0.75", "0.2 0.3 0.4 0.4 0.45"],
    "fog": ["0.2 0.5 0.75 1 1.5", "3 3 2.5 2 1.75"],
    "brightness": ["0.05 0.1 0.15 0.2 0.3"],
    "contrast": ["0.75 0.5 0.4 0.3 0.15"],
    "elastic transform": ["0 0.05 0.08 0.1 0.1", "0 0.2 0.06 0.04 0.03", "0.08 0.07 0.06 0.05 0.03"],
    "pixelate": ["0.95 0.9 0.85 0.75 0.65"],
    "jpeg compression": ["80 65 58 50 40"],
}
# Of the recipe itself: each severity has another kind of blur or warp, and frost takes away from the image, too.
NOT_IN_ORDER = {"glass blur", "elastic transform", FROST}


def apply(name, images, severity, seed=0):
    return corrupt(name, images, severity, np.random.default_rng(seed))


def flat(value, count=50, size=32):
    return np.full((count, size, size, 3), value, np.uint8)


class Fixed:
    """A generator that draws the same place of every uniform distribution."""

    def __init__(self, share):
        self.share = share

    def normal(self, mean, deviation, size):
        """A row of flakes."""
        return np.broadcast_to((np.arange(size[1]) == 8)[:, None], size).astype(float)

    def uniform(self, low, high, size):
        return np.full(size, low + self.share * (high - low), float)


def test_constants_are_the_recipes():
    for name, columns in CONSTANTS.items():
        expected = np.array([column.split() for column in columns], float).T
        np.testing.assert_array_equal(np.reshape(CORRUPTIONS[name][1], expected.shape), expected, name)
    assert list(CORRUPTIONS) == list(CONSTANTS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_size_are_corrupted_anew_each_and_by_the_seed_alone(name, rng):
    for size in (8, 33, 96):
        images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        before = images.copy()
        for severity in SEVERITIES:
            found = apply(name, images, severity)
            assert found.dtype == np.uint8 and found.shape == images.shape
            np.testing.assert_array_equal(found, apply(name, images, severity))
        np.testing.assert_array_equal(images, before)
    drawn = apply(name, np.stack([images[0]] * 2), 3)
    same = name in ("defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "jpeg compression")
    assert (drawn[0] == drawn[1]).all() == same


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in NOT_IN_ORDER])
def test_the_distance_to_the_image_grows_with_the_severity(name, sample):
    images = sample.test.images[:200]
    distances = [((apply(name, images, s) - images.astype(float)) ** 2).mean() for s in SEVERITIES]
    assert all(after > 0.97 * before for before, after in itertools.pairwise(distances)), distances
    assert distances[-1] > 1.2 * distances[0] > 0


def test_many_images_are_corrupted_as_all_at_once(monkeypatch, sample):
    images = sample.test.images[:12]
    expected = apply("gaussian noise", images, 2)
    monkeypatch.setattr(corruptions, "PART", 5)
    np.testing.assert_array_equal(apply("gaussian noise", images, 2), expected)


def test_noise_has_its_distribution():
    """Of values in the middle, of which nothing is clipped; cutting to integers takes half a level."""
    noisy = apply("gaussian noise", flat(128), 3).astype(float)
    assert noisy.std() == pytest.approx(255 * 0.08, rel=0.02) and noisy.mean() == pytest.approx(127.5, abs=0.2)
    noisy = apply("shot noise", flat(102), 4).astype(float)
    assert noisy.std() == pytest.approx(255 * math.sqrt(0.4 / 75), rel=0.02)
    assert noisy.mean() == pytest.approx(101.5, abs=0.3)
    noisy = apply("impulse noise", flat(100), 5)
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(0.035, rel=0.05)
    assert (noisy == 100).mean() == pytest.approx(0.93, rel=0.01)
    assert len(np.unique((noisy != 100).sum(axis=-1))) == 4  # each channel by itself


def test_defocus_is_a_disk_with_a_soft_edge():
    point = np.zeros((1, 32, 32, 3), np.uint8)
    point[0, 10, 20] = 255
    near = np.exp(-0.5 / 0.4**2)
    line = np.array([near, 1, near]) / (1 + 2 * near)
    found = apply("defocus blur", point, 1)[0, 8:13, 18:23, 0]
    np.testing.assert_allclose(found, np.pad(255 * np.outer(line, line), 1), atol=1)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    np.testing.assert_allclose(apply("defocus blur", point, 4)[0, 9:12, 19:22, 1], 51 * cross, atol=1)
    np.testing.assert_allclose(apply("defocus blur", point, 5)[0, 9:12, 19:22, 2], 255 / 9, atol=1)


def test_glass_moves_pixels_right_and_down_by_one(rng):
    """At severity 1 its blur is narrower than a pixel. A pixel becomes itself, or one of three neighbours."""
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    found = apply("glass blur", images, 1)
    rows, columns = np.mgrid[2:32, 2:32]
    from_where = np.stack([images[:, rows - up, columns - left] for up in (0, 1) for left in (0, 1)])
    same = (found[:, 2:, 2:] == from_where).all(axis=-1)
    assert same.any(axis=0).all()
    np.testing.assert_allclose(same.mean(axis=(1, 2, 3)), 0.25, atol=0.05)
    np.testing.assert_array_equal(found[:, :2], images[:, :2])
    np.testing.assert_array_equal(found[:, :, :2], images[:, :, :2])


@pytest.mark.parametrize(("share", "down", "right"), [(0.5, 0, 1), (1, math.sqrt(0.5), math.sqrt(0.5))])
def test_motion_is_half_a_gaussian_along_a_line(share, down, right, sample):
    images, weights = sample.test.images[:3], [math.exp(-(k**2) / (2 * 2.0**2)) for k in range(2 * 8 + 1)]
    padded = np.pad(images.astype(float), ((0, 0), (0, 17), (0, 17), (0, 0)), "edge")
    total = 0
    for k, weight in enumerate(weights):
        y, x = round(k * down), round(k * right)
        total = total + weight / sum(weights) * padded[:, y : y + 32, x : x + 32]
    np.testing.assert_allclose(corrupt("motion blur", images, 4, Fixed(share)), total, atol=1)


def test_zoom_is_the_mean_of_enlarged_middles(sample):
    image, parts = sample.test.images[0].astype(float), []
    for factor in np.arange(1, 1.16, 0.01):
        side = math.ceil(32 / factor)
        start = (32 - side) // 2
        large = ndimage.zoom(image[start : start + side, start : start + side], (factor, factor, 1), order=1)
        start = (len(large) - 32) // 2
        parts.append(large[start : start + 32, start : start + 32])
    expected = (image + sum(parts)) / (1 + len(parts))
    np.testing.assert_allclose(apply("zoom blur", sample.test.images[:1], 3)[0], expected, atol=1.01)


def test_snow_falls_twice_and_whitens(sample):
    fallen = apply("snow", flat(0), 5)
    np.testing.assert_array_equal(fallen, fallen[:, ::-1, ::-1])  # what fell, and the same turned round
    np.testing.assert_array_equal(fallen, fallen[..., :1].repeat(3, axis=-1))
    assert fallen.min() == int(0.2 * 0.5 * 255)  # half of white is mixed in
    bright = apply("snow", sample.test.images[:50], 2).mean(axis=(1, 2, 3))
    assert (bright > sample.test.images[:50].mean(axis=(1, 2, 3))).all()


@pytest.mark.parametrize(
    ("severity", "row", "height", "steps", "sigma", "kept"), [(1, 8, 1, 17, 3, 0.95), (5, 6, 26 / 31, 29, 12, 0.8)]
)
def test_flakes_fall_along_half_a_gaussian(severity, row, height, steps, sigma, kept):
    """Straight down, and the same turned round. At severity 5 rows are enlarged from 26 to 32: 5 lies before 6.2."""
    found = corrupt("snow", flat(0, count=1), severity, Fixed(0.5))[0, :, 7, 0] / 255
    weights = np.exp(-(np.arange(steps) ** 2) / (2 * sigma**2))
    fallen = np.zeros(64)
    fallen[row : row + steps] = height * weights / weights.sum()
    expected = fallen[:32] + fallen[:32][::-1] + (1 - kept) * 0.5
    np.testing.assert_allclose(found, expected, atol=2.5 / 255)


def test_frost_has_the_colours_of_the_photographs():
    found = apply(FROST, flat(100, count=2000), 4)
    photographs = [[78, 149, 165], [198, 202, 212], [198, 203, 212], [142, 157, 170], [104, 115, 127]]
    expected = 0.85 * 100 + 0.4 * np.mean(photographs, axis=0)
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), expected, atol=2)
    assert found.min() >= 84


def test_fog_is_of_clouds_and_as_bright_as_the_image():
    assert not apply("fog", flat(0), 5).any()
    for severity, strength in ((1, 0.2), (5, 1.5)):
        found = apply("fog", flat(255), severity).astype(float)
        assert found.max() >= 254 and found.min() == pytest.approx(255 / (1 + strength), abs=1)
        assert (found.max(axis=(1, 2, 3)) >= 254).all()
    steps = [
        abs(np.diff(found, axis=1)).mean() / found.std()
        for found in (apply("fog", flat(255), s).astype(float) for s in (1, 3, 5))
    ]
    assert steps[0] < steps[1] < steps[2] < 0.7  # smooth at first, rougher later; noise has 1.1


def test_brightness_and_contrast_are_those_of_a_few_pixels(rng):
    pixels = np.concatenate([rng.integers(0, 256, (60, 3)), [[0, 0, 0], [255, 255, 255], [9, 9, 9], [200, 0, 0]]])
    images = pixels.reshape(1, 8, 8, 3).astype(np.uint8)
    brighter = []
    for pixel in pixels / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        brighter.append(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.15)))
    found = apply("brightness", images, 3).reshape(-1, 3)
    np.testing.assert_allclose(found, 255 * np.array(brighter), atol=1.01)
    expected = 0.4 * pixels + 0.6 * pixels.mean(axis=0)
    np.testing.assert_allclose(apply("contrast", images, 3).reshape(-1, 3), expected, atol=1.01)


def test_elastic_moves_the_image_as_its_points_are_moved(sample):
    images = sample.test.images[:4]
    for severity, share in ((1, 0.08), (4, 0.05)):
        np.testing.assert_allclose(corrupt("elastic transform", images, severity, Fixed(0.5)), images, atol=1)
        found = corrupt("elastic transform", images, severity, Fixed(1))
        away = share * 32
        moved = ndimage.shift(images.astype(float), (0, away, away, 0), order=1, mode="mirror")
        # What is drawn for the second step is the same everywhere, and so moves all pixels back by `strength`.
        strength = {1: 0, 4: 0.1 * 32}[severity]
        moved = ndimage.shift(moved, (0, -strength, -strength, 0), order=1, mode="reflect")
        np.testing.assert_allclose(found, moved, atol=1.01)


def test_elastic_bends_neighbours_together(sample):
    """A large blur of what is drawn leaves little of it: at severity 2 pixels move by far less than one."""
    found, images = apply("elastic transform", sample.test.images[:50], 5), sample.test.images[:50]
    steps = [abs(np.diff(x.astype(float), axis=2)).mean() for x in (found, images)]
    assert 0.7 < steps[0] / steps[1] < 1


def test_pixelate_is_the_mean_of_the_pixels_whose_middles_a_large_one_holds(sample):
    images = sample.test.images[:5]
    for severity, side in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        part = ((np.arange(32) + 0.5) * side / 32).astype(int)
        means = np.array([[images[:, part == i][:, :, part == j].mean(axis=(1, 2)) for j in part] for i in part])
        np.testing.assert_allclose(apply("pixelate", images, severity), means.transpose(2, 0, 1, 3), atol=1.01)


def test_jpeg_is_pillows(sample):
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        file = io.BytesIO()
        Image.fromarray(sample.test.images[7]).save(file, "JPEG", quality=quality)
        found = apply("jpeg compression", sample.test.images[5:9], severity)[2]
        np.testing.assert_array_equal(found, np.array(Image.open(file)))


def test_mirrored_and_grey():
    images = np.uint8([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]]])
    np.testing.assert_array_equal(corruptions.mirrored(images), images[:, :, [1, 0]])
    found = corruptions.grey(images)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], [[[76, 150], [29, 18]]])
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, axis=-1))
