"""Layer normalisation with a gradient that reads its inputs twice: for the sums, and for what is made of them."""

import functools
import itertools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

EPSILON = 1e-5  # PyTorch's
_AXES = (-2, -1)  # rows of pixels, and what is in a row


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalises over the last two axes, then scales and shifts along the last one.

    It has gradients in reverse mode (`jax.grad`) only. Statistics are float32 or wider, whatever the dtype.

    Args:
      x: float `[..., R, C]`.
      scale: float `[C]`.
      bias: float `[C]`.

    Returns:
      Of `x`'s shape and dtype.
    """
    return _forward(x, scale, bias)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    if below_float32(x):
        sums = [_over_rows(term, x) for term in (_widened, lambda x: jnp.square(_widened(x)))]
        size = x.shape[-2] * x.shape[-1]
        mean, square = (a.sum(_AXES, keepdims=True) / size for a in jax.lax.optimization_barrier(sums))
    else:
        mean, square = (a.mean(_AXES, keepdims=True) for a in (x, jnp.square(x)))
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + EPSILON)
    y = (_widened(x) - mean) * (inverse * _expanded(scale, x)) + _expanded(bias, x)
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array):
    x, scale, mean, inverse = saved

    def standardised(x):
        return (_widened(x) - mean) * inverse

    # Sums for each image and channel give both the parameters' gradients and the two means of the input's.
    by_bias = _over_rows(_widened, gradient)
    by_scale = _over_rows(lambda gradient, x: _widened(gradient) * standardised(x), gradient, x)
    if below_float32(x):
        by_bias, by_scale = jax.lax.optimization_barrier((by_bias, by_scale))
    size = x.shape[-2] * x.shape[-1]
    expanded = _expanded(scale, x)
    along, across = ((sums * expanded).sum(_AXES, keepdims=True) / size for sums in (by_bias, by_scale))
    by_x = inverse * (_widened(gradient) * expanded - along - standardised(x) * across)
    by_scale, by_bias = (sums.reshape(-1, *scale.shape).sum(0) for sums in (by_scale, by_bias))
    return by_x.astype(x.dtype), by_scale, by_bias


def _over_rows(term: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """The sum of a term of arrays `[..., R, C]` over their rows, `[..., 1, C]`.

    XLA:CPU leaves sums to YNNPACK, which must have its input in memory. In bfloat16 that would be float32 numbers,
    written and read once more: four times what the term itself reads. XLA fuses additions of rows instead.
    """
    if not below_float32(arrays[0]):
        return term(*arrays).sum(-2, keepdims=True)
    rows = ([jax.lax.slice_in_dim(a, i, i + 1, axis=-2) for a in arrays] for i in range(arrays[0].shape[-2]))
    return functools.reduce(operator.add, itertools.starmap(term, rows))


def below_float32(x: jax.Array) -> bool:
    """Whether sums of such numbers need a wider dtype, as those of bfloat16 do."""
    return x.dtype.itemsize < 4


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _expanded(a: jax.Array, like: jax.Array) -> jax.Array:
    return a.reshape((1,) * (like.ndim - 1) + a.shape)


layer_norm.defvjp(_forward, _backward)
