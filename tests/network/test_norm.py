import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cifar_flax.network.cpu.norm import layer_norm


def flax_norm(x, scale, bias):
    """Flax's own, differentiated by JAX."""
    norm = nn.LayerNorm(epsilon=1e-5, reduction_axes=(-2, -1), feature_axes=-1, dtype=x.dtype)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def draw(rng, shape, dtype):
    channels = shape[-1:]
    arrays = (rng.normal(2, 3, shape), rng.normal(size=channels), rng.normal(size=channels), rng.normal(size=shape))
    return [jnp.asarray(a, dtype) for a in arrays]


# Rows of pixels of several images, of one, and of several for each of several classes.
SHAPES = [(3, 4, 30), (4, 30), (2, 3, 4, 30)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_flax(shape, rng, pull_back):
    with jax.enable_x64(True):
        *arguments, gradient = draw(rng, shape, jnp.float64)
        found, expected = (pull_back(norm, *arguments, gradient=gradient) for norm in (layer_norm, flax_norm))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == jnp.float64 and ours.shape == theirs.shape
            # Flax's statistics are float32.
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradient_is_the_derivative(rng):
    with jax.enable_x64(True):
        x, scale, bias, _ = draw(rng, (2, 4, 15), jnp.float64)
        jax.test_util.check_grads(layer_norm, (x, scale, bias), order=1, modes=["rev"])


def test_vmap_takes_one_image_at_a_time(rng):
    x, scale, bias, gradient = draw(rng, (5, 4, 18), jnp.float32)

    def gradients(x, gradient):
        return jax.vjp(lambda x: layer_norm(x, scale, bias), x)[1](gradient)[0]

    np.testing.assert_allclose(jax.vmap(gradients)(x, gradient), gradients(x, gradient), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 8, 128), *SHAPES])
def test_bfloat16_in_and_out_with_float32_between(shape, rng, pull_back):
    x, scale, bias, gradient = draw(rng, shape, jnp.float32)
    x, gradient = x.astype(jnp.bfloat16), gradient.astype(jnp.bfloat16)

    def outcome(x, gradient):
        return pull_back(layer_norm, x, scale, bias, gradient=gradient)

    found = outcome(x, gradient)
    bfloat16, float32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert [a.dtype for a in found] == [bfloat16, bfloat16, float32, float32]
    for ours, theirs in zip(found, outcome(x.astype(jnp.float32), gradient.astype(jnp.float32)), strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
        assert np.linalg.norm((ours - theirs).ravel()) / np.linalg.norm(theirs.ravel()) < 4e-3
