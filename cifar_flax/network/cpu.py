"""The network's operations in the forms that XLA's CPU compiler is fast at; their values are those of the plain ones.

It needs `Execution.compiler_options`: XLA:CPU drops optimization barriers before it fuses.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.network.convolution import conv1x1, conv3x3
from cifar_flax.network.forms import Forms
from cifar_flax.network.norm import layer_norm


def _rows(x: jax.Array) -> jax.Array:
    """Feature maps `[..., H, W, C]` with a row's pixels in one axis, `[..., H, W * C]`.

    XLA:CPU's loops run over the last axis: over 16 channels they are five times as slow as over 512 numbers.
    """
    return x.reshape(*x.shape[:-2], -1)


def _kept(x: jax.Array) -> jax.Array:
    """An array that is computed once, in the shape that it has.

    The gradient of a convolution's kernel reads the convolution's input transposed. Without the barrier
    XLA:CPU fuses that transposition with the norms, residuals and ReLUs that led to the input, and
    computes them all again, in an order that misses the cache.
    """
    return jax.lax.optimization_barrier(x)


def _convolution(factors: Any) -> Callable[..., jax.Array]:
    """What `flax.linen.Conv` calls, for the two kinds of convolution that the network has; an error of any other."""

    def conv_general_dilated(
        x: jax.Array,
        kernel: jax.Array,
        strides: tuple[int, int],
        padding: Any,
        *,
        lhs_dilation: tuple[int, int],
        rhs_dilation: tuple[int, int],
        dimension_numbers: Any,
        feature_group_count: int,
        precision: Any,
    ) -> jax.Array:
        del dimension_numbers, precision  # always Flax's own; and a CPU's float32 is exact
        size, stride = kernel.shape[0], strides[0]
        known = {3: [(1, 1), (1, 1)], 1: "VALID"}
        plain = (*lhs_dilation, *rhs_dilation, feature_group_count) == (1, 1, 1, 1, 1)
        if not plain or strides != (stride, stride) or kernel.shape[1] != size or padding != known.get(size):
            raise NotImplementedError(f"{kernel.shape} with {strides=}, {padding=}, or dilated, or in groups")
        x = _kept(_rows(x)).reshape(x.shape)
        return conv3x3(x, kernel, stride, factors) if size == 3 else conv1x1(x, kernel, stride)

    return conv_general_dilated


class _LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` over height, width and channels, with a scale and a bias a channel."""

    reduction_axes: tuple[int, ...]
    feature_axes: int
    epsilon: float
    dtype: Any
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        rows = _rows(x)
        scale, bias = (_kept(jnp.tile(a, rows.shape[-1] // x.shape[-1])) for a in (scale, bias))
        normalised: jax.Array = layer_norm(_kept(rows), scale, bias, rows.ndim - x.ndim + 3)  # type: ignore[assignment]
        return normalised.reshape(x.shape)


def _relu(x: jax.Array) -> jax.Array:
    return _kept(nn.relu(_rows(x))).reshape(x.shape)


# With the factors of wide convolutions' products in bfloat16, their sums and all else in float32.
CPU, CPU_BFLOAT16 = (Forms(_convolution(factors), _LayerNorm, _relu) for factors in (None, jnp.dtype("bfloat16")))
