"""Layer normalisation with a gradient that reads its inputs twice: for the sums, and for what is made of them."""

import functools
import math

import jax
import jax.numpy as jnp

_EPSILON = 1e-5  # PyTorch's


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, num_axes: int) -> jax.Array:
    """Normalises over the last `num_axes` axes, then scales and shifts along the last one.

    It has gradients in reverse mode (`jax.grad`) only. Statistics are float32 or wider, whatever the dtype.

    Args:
      x: float `[..., C]`.
      scale: float `[C]`.
      bias: float `[C]`.
      num_axes: axes with one mean and one variance, counted from the last.

    Returns:
      Of `x`'s shape and dtype.
    """
    return _forward(x, scale, bias, num_axes)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, num_axes: int):
    axes = tuple(range(-num_axes, 0))
    wide = _widened(x)
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(axes, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + _EPSILON)
    y = (wide - mean) * (inverse * _expanded(scale, x)) + _expanded(bias, x)
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(num_axes: int, saved: tuple[jax.Array, ...], gradient: jax.Array):
    x, scale, mean, inverse = saved
    axes, inner_axes = tuple(range(-num_axes, 0)), tuple(range(-num_axes, -1))
    wide = _widened(gradient)
    standardised = (_widened(x) - mean) * inverse
    # Sums for each image and channel give both the parameters' gradients and the two means of the input's.
    by_bias = wide.sum(inner_axes, keepdims=True)
    by_scale = (wide * standardised).sum(inner_axes, keepdims=True)
    size = math.prod(x.shape[-num_axes:])
    expanded = _expanded(scale, x)
    along, across = ((sums * expanded).sum(axes, keepdims=True) / size for sums in (by_bias, by_scale))
    by_x = inverse * (wide * expanded - along - standardised * across)
    by_scale, by_bias = (sums.reshape(-1, *scale.shape).sum(0) for sums in (by_scale, by_bias))
    return by_x.astype(x.dtype), by_scale, by_bias


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _expanded(a: jax.Array, like: jax.Array) -> jax.Array:
    return a.reshape((1,) * (like.ndim - 1) + a.shape)


layer_norm.defvjp(_forward, _backward)
