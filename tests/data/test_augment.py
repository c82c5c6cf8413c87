import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cifar_flax.data import CIFAR10, augment

EAGER_AND_JIT = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


@EAGER_AND_JIT
def test_shift_is_a_window_of_the_padded_image(transform, rng):
    shifts = np.array([(dy, dx) for dy in range(-4, 5) for dx in range(-4, 5)])
    images = rng.normal(size=(len(shifts), 32, 32, 3)).astype(np.float32)
    shifted = transform(augment.shift_and_rotate)(images, shifts, np.zeros(len(shifts)))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    windows = [p[4 + dy :, 4 + dx :][:32, :32] for p, (dy, dx) in zip(padded, shifts, strict=True)]
    np.testing.assert_array_equal(shifted, np.stack(windows))


@EAGER_AND_JIT
def test_rotation_agrees_with_scipy(transform, rng):
    angles = np.array([-5, -3.3, -0.01, 0, 0.7, 2, 5, 30, 90, -180], np.float32)
    images = rng.uniform(size=(len(angles), 32, 32, 3)).astype(np.float32)
    rotated = transform(augment.shift_and_rotate)(images, np.zeros((len(angles), 2)), angles)
    for image, angle, ours in zip(images, angles, rotated, strict=True):
        # scipy turns rows towards columns: seen with rows downwards, that is counter-clockwise.
        theirs = scipy.ndimage.rotate(image, angle, (1, 0), reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_positive_angles_turn_the_picture_counter_clockwise():
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 16, 28] = 1  # to the right of the centre
    rotated = augment.shift_and_rotate(image, np.zeros((1, 2)), np.array([45.0]))
    row, column = np.unravel_index(np.argmax(rotated[0, :, :, 0]), (32, 32))
    assert row < 10 and column > 20


def test_shift_and_rotation_together_agree_with_scipy(rng):
    image = rng.uniform(size=(32, 32, 3)).astype(np.float32)
    ours = augment.shift_and_rotate(image[None], np.array([[3, -2]]), np.array([5.0]))[0]
    angle, center = np.deg2rad(5.0), np.array([15.5, 15.5, 0])
    matrix = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    offset = center - matrix @ center + [3, -2, 0]
    theirs = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_cutout_zeroes_the_clipped_square_and_nothing_else(size, rng):
    centers = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), -1).reshape(-1, 2)
    image = rng.uniform(1, 2, (32, 32, 3)).astype(np.float32)
    cut = augment.cutout(jnp.broadcast_to(image, (len(centers), 32, 32, 3)), jnp.asarray(centers), size)
    for (row, column), ours in zip(centers, np.asarray(cut), strict=True):
        expected = image.copy()
        rows = slice(max(0, row - size // 2), row - size // 2 + size)
        expected[rows, max(0, column - size // 2) : column - size // 2 + size] = 0
        np.testing.assert_array_equal(ours, expected)


def test_cutout_area_has_the_distribution_of_a_uniform_centre():
    images = jnp.ones((20_000, 32, 32, 1))
    cut = augment.augment(jax.random.key(1), images, crop_padding=0, rotate_degrees=0, cutout_size=16)
    holes = cut[..., 0] == 0
    heights, widths = holes.any(axis=2).sum(axis=1), holes.any(axis=1).sum(axis=1)
    lengths = np.array([min(32, c + 8) - max(0, c - 8) for c in range(32)])
    expected = np.bincount(lengths, minlength=17) / 32
    for drawn in (heights, widths):
        share = np.bincount(np.asarray(drawn), minlength=17) / len(images)
        # Five standard deviations of a binomial share.
        np.testing.assert_array_less(abs(share - expected), 5 * np.sqrt(expected / len(images)) + 1e-12)
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.05


def test_crop_windows_are_uniform():
    ramp = jnp.tile(jnp.arange(1.0, 33)[:, None] * 64 + jnp.arange(1.0, 33)[None, :], (8_000, 1, 1))[..., None]
    cropped = augment.augment(jax.random.key(2), ramp, crop_padding=4, rotate_degrees=0, cutout_size=0)
    shift = cropped[:, 16, 16, 0] - ramp[0, 16, 16, 0]
    rows, columns = np.round(shift / 64), shift - 64 * np.round(shift / 64)
    for drawn in (rows, columns):
        values, counts = np.unique(np.asarray(drawn), return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-4, 5))
        np.testing.assert_array_less(abs(counts / 8_000 - 1 / 9), 0.02)


def test_angles_stay_within_their_range_and_reach_its_ends():
    image = np.zeros((32, 32, 1), np.float32)
    image[:, 15:17] = 1  # a vertical bar; its slope after rotation tells the angle
    images = jnp.tile(image[None], (2_000, 1, 1, 1))
    rotated = augment.augment(jax.random.key(3), images, crop_padding=0, rotate_degrees=5, cutout_size=0)
    columns = np.arange(32)
    means = (np.asarray(rotated[..., 0]) * columns).sum(axis=2) / np.asarray(rotated[..., 0]).sum(axis=2)
    slopes = np.polyfit(np.arange(4, 28), means[:, 4:28].T, 1)[0]
    angles = np.rad2deg(np.arctan(slopes))
    assert -5.1 < angles.min() < -4.8 and 4.8 < angles.max() < 5.1
    assert abs(angles.mean()) < 0.3


def test_images_of_a_batch_are_drawn_independently(rng):
    images = jnp.tile(rng.normal(size=(1, 32, 32, 3)).astype(np.float32), (16, 1, 1, 1))
    augmented = np.asarray(augment.augment(jax.random.key(0), images))
    assert len({image.tobytes() for image in augmented}) == 16


def test_same_key_same_images_and_another_key_others(rng):
    images = jnp.asarray(rng.normal(size=(8, 32, 32, 3)), jnp.float32)
    jitted = jax.jit(augment.augment)
    chex.assert_trees_all_equal(jitted(jax.random.key(7), images), jitted(jax.random.key(7), images))
    assert not np.array_equal(jitted(jax.random.key(7), images), jitted(jax.random.key(8), images))


def test_jit_agrees_with_eager(rng):
    images = jnp.asarray(rng.normal(size=(8, 32, 32, 3)), jnp.float32)
    key = jax.random.key(7)
    chex.assert_trees_all_close(jax.jit(augment.augment)(key, images), augment.augment(key, images), atol=1e-5)


def test_everything_off_changes_nothing(rng):
    images = jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32)
    off = augment.augment(jax.random.key(0), images, crop_padding=0, rotate_degrees=0, cutout_size=0)
    np.testing.assert_array_equal(off, images)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_are_kept(dtype):
    images = jnp.ones((5, 32, 32, 3), dtype)
    augmented = augment.augment(jax.random.key(0), images)
    chex.assert_shape(augmented, (5, 32, 32, 3))
    assert augmented.dtype == dtype


def test_flip_mirrors_half_of_the_images_and_only_if_asked():
    images = jnp.tile(jnp.arange(32.0)[None, None, :, None], (2_000, 32, 1, 1))
    off = dict(crop_padding=0, rotate_degrees=0, cutout_size=0)
    flipped = augment.augment(jax.random.key(0), images, random_flip=True, **off)
    share = np.mean(flipped[:, 0, 0, 0] == 31)
    assert 0.45 < share < 0.55
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), images, **off), images)


def test_normalize_whitens_the_training_images_and_can_be_undone(sample):
    normalized = CIFAR10.normalize(jnp.asarray(sample.train.images))
    assert normalized.dtype == jnp.float32
    # The sample's own mean and deviation are those of all images up to its sampling noise.
    np.testing.assert_allclose(normalized.mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(normalized.std(axis=(0, 1, 2)), 1, atol=0.05)
    np.testing.assert_allclose(CIFAR10.denormalize(normalized) * 255, sample.train.images, atol=1e-3)
