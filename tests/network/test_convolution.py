import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.network.convolution import conv1x1, conv3x3


def plain(x, kernel, stride):
    around = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# The stem's and the stages' of both networks, groups of 2 and 4, a width that no group divides, odd sizes; then
# those that are wide enough for tiles, and as wide but odd.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("height", "width", "channels", "features"),
    [(32, 32, 3, 16), (8, 8, 16, 16), (6, 8, 5, 8), (4, 8, 32, 32), (5, 7, 16, 16), (7, 6, 4, 64), (3, 3, 16, 40)]
    + [(6, 8, 64, 64), (8, 4, 64, 72), (4, 6, 128, 136), (2, 2, 136, 128), (5, 8, 64, 64), (8, 5, 128, 128)],
)
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_the_plain_convolution_and_so_are_its_gradients(height, width, channels, features, stride, size, rng):
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(3, height, width, channels)))
        kernel = jnp.asarray(rng.normal(size=(size, size, channels, features)))
        convolve = conv3x3 if size == 3 else conv1x1
        expected, plain_vjp = jax.vjp(lambda x, kernel: plain(x, kernel, stride), x, kernel)
        found, vjp = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        gradient = jnp.asarray(rng.normal(size=expected.shape))
        assert found.shape == expected.shape == (3, -(-height // stride), -(-width // stride), features)
        pairs = zip((found, *vjp(gradient)), (expected, *plain_vjp(gradient)), strict=True)
        for ours, theirs in pairs:
            assert ours.dtype == jnp.float64 and ours.shape == theirs.shape
            assert float(jnp.abs(ours - theirs).max()) < 1e-10


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_tiles_are_as_exact_as_float32_is(channels, rng):
    x = rng.normal(size=(2, 8, 8, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
    gradient = rng.normal(size=x.shape).astype(np.float32)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, kernel, gradient)]
        expected, vjp = jax.vjp(lambda x, kernel: plain(x, kernel, 1), *wide[:2])
        expected = [np.asarray(a) for a in (expected, *vjp(wide[2]))]
    found, vjp = jax.vjp(conv3x3, x, kernel)
    for ours, exact in zip((found, *vjp(gradient)), expected, strict=True):
        assert np.abs(ours - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("channels", [16, 128])
def test_dtype_of_the_activations_is_kept(channels, rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 8, channels)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, channels)), jnp.bfloat16)
    y, vjp = jax.vjp(lambda x, kernel: conv3x3(x, kernel), x, kernel)
    assert {a.dtype for a in (y, *vjp(y))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("features", [128, 192])
def test_rounding_the_factors_costs_their_own_digits_alone(features, rng):
    """Each factor is off by at most 2**-9 of itself, evenly spread: a product by 2**-9 * sqrt(2 / 3), 0.16%.

    The tiles' sums, larger than what remains of them in an output, make it 2.5 times as much.
    """
    x = jnp.asarray(rng.normal(size=(4, 8, 6, 128)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 128, features)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=(4, 8, 6, features)), jnp.float32)
    expected, plain_vjp = jax.vjp(lambda x, kernel: plain(x, kernel, 1), x, kernel)
    for factors, tolerance in ((jnp.bfloat16, 0.005), (jnp.float32, 1e-6)):
        found, vjp = jax.vjp(lambda x, kernel, factors=factors: conv3x3(x, kernel, 1, factors), x, kernel)
        for ours, theirs in zip((found, *vjp(gradient)), (expected, *plain_vjp(gradient)), strict=True):
            assert ours.dtype == jnp.float32 and ours.shape == theirs.shape
            assert float(jnp.linalg.norm(ours - theirs)) < tolerance * float(jnp.linalg.norm(theirs))


def test_narrow_convolutions_round_nothing(rng):
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 8, 8, 64), (3, 3, 64, 64)))
    found, exact = (jax.vjp(lambda x, kernel, f=f: conv3x3(x, kernel, 1, f), x, kernel) for f in (jnp.bfloat16, None))
    for ours, theirs in zip((found[0], *found[1](x)), (exact[0], *exact[1](x)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
