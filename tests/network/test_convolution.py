import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.config import PRESETS
from cifar_flax.execution import ONEDNN
from cifar_flax.network import cpu
from cifar_flax.network.build import build_model
from cifar_flax.network.cpu import convolution, operations
from cifar_flax.network.cpu.convolution import conv1x1, conv3x3


def plain(x, kernel, stride):
    around = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# The stem's and the stages' of both networks, groups of 2 and 4, a width that no group divides, odd sizes; then
# those that are wide enough for tiles, and as wide but odd.
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("height", "width", "channels", "features"),
    [(32, 32, 3, 16), (8, 8, 16, 16), (6, 8, 5, 8), (4, 8, 32, 32), (5, 7, 16, 16), (7, 6, 4, 64), (3, 3, 16, 40)]
    + [(6, 8, 64, 64), (8, 4, 64, 72), (4, 6, 256, 264), (2, 2, 264, 256), (5, 8, 256, 256), (8, 5, 256, 256)],
)
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_the_plain_convolution_and_so_are_its_gradients(
    height, width, channels, features, stride, size, rng, pull_back, monkeypatch
):
    monkeypatch.setattr(convolution, "PART", 1)  # the images one by one
    with jax.enable_x64(True):
        shape = (3, -(-height // stride), -(-width // stride), features)
        x = jnp.asarray(rng.normal(size=(3, height, width, channels)))
        kernel = jnp.asarray(rng.normal(size=(size, size, channels, features)))
        gradient = jnp.asarray(rng.normal(size=shape))
        expected, found = (
            pull_back(functools.partial(convolve, stride=stride), x, kernel, gradient=gradient)
            for convolve in (plain, conv3x3 if size == 3 else conv1x1)
        )
        assert found[0].shape == expected[0].shape == shape
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == jnp.float64 and ours.shape == theirs.shape
            assert float(abs(np.asarray(ours) - theirs).max()) < 1e-10


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
def test_tiles_are_as_exact_as_float32_is(channels, rng, pull_back):
    x = rng.normal(size=(2, 8, 8, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
    gradient = rng.normal(size=x.shape).astype(np.float32)
    with jax.enable_x64(True):
        x64, kernel64, gradient64 = (jnp.asarray(a, jnp.float64) for a in (x, kernel, gradient))
        expected = pull_back(functools.partial(plain, stride=1), x64, kernel64, gradient=gradient64)
        expected = [np.asarray(a) for a in expected]
    for ours, exact in zip(pull_back(conv3x3, x, kernel, gradient=gradient), expected, strict=True):
        assert np.abs(ours - exact).max() < 2e-6 * np.abs(exact).max()


def shapes():
    """Height, channels, features and stride of every 3x3 convolution of the presets, each once."""
    models = [build_model(preset) for preset in PRESETS.values()]
    return sorted({shape for model in models for shape in cpu.convolutions(model)})


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="a run computes in bfloat16 on a CPU from jaxlib 0.11 on")
# The images of a device in a step, of half a batch, of an evaluation's last one, and one alone.
@pytest.mark.parametrize("batch", [128, 64, 20, 7, 1])
@pytest.mark.parametrize(("height", "channels", "features", "stride"), shapes())
def test_convolutions_in_bfloat16_are_those_in_float32(height, channels, features, stride, batch):
    if batch > 64 and channels > 128:
        pytest.skip("as many images of so many channels take seconds, and half as many are tested")
    assert cpu.largest_error([(height, channels, features, stride)], batch, ONEDNN) < cpu.TOLERANCE


def test_dtype_of_the_activations_is_kept(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 16)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 16, 16)), jnp.bfloat16)
    y, vjp = jax.vjp(conv3x3, x, kernel)
    assert {a.dtype for a in (y, *vjp(y))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_what_is_wrong_in_one_image_of_bfloat16_is_seen(factor, monkeypatch):
    def wrong(x, kernel, stride):
        y = conv3x3(x, kernel, stride)
        return y.at[-1].multiply(factor) if x.shape[-1] == 16 else y

    monkeypatch.setattr(operations, "conv3x3", wrong)
    assert not cpu.largest_error([(8, 8, 16, 1), (8, 16, 16, 1)], 32, ONEDNN) < cpu.TOLERANCE
