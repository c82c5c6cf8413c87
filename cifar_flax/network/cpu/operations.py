"""The network's operations in the forms that XLA's CPU compiler is fast at; their values are those of the plain ones.

It needs `Execution.compiler_options`: XLA:CPU drops optimization barriers before it fuses.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.network.cpu.convolution import conv1x1, conv3x3, plain3x3
from cifar_flax.network.cpu.norm import EPSILON, layer_norm
from cifar_flax.network.forms import Forms
from cifar_flax.network.model import ResNet


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


def _convolution(num_devices: int) -> Callable[..., jax.Array]:
    """What `flax.linen.Conv` calls for images that so many devices share.

    It has the two kinds of convolution that the network has, and an error for any other.
    """

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
        if size == 1:  # kept once more: the gradient of a slice is slow in the shape of rows
            return conv1x1(_kept(x), kernel, stride)
        return conv3x3(x, kernel, stride, num_devices)

    return conv_general_dilated


class _LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` over height, width and channels, with a scale and a bias a channel."""

    reduction_axes: tuple[int, ...]
    feature_axes: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        if (self.reduction_axes, self.feature_axes, self.epsilon) != ((-3, -2, -1), -1, EPSILON):
            raise NotImplementedError(f"{self.reduction_axes=}, {self.feature_axes=}, {self.epsilon=}")
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        rows = _rows(x)
        scale, bias = (_kept(jnp.tile(a, rows.shape[-1] // x.shape[-1])) for a in (scale, bias))
        normalised: jax.Array = layer_norm(_kept(rows), scale, bias)  # type: ignore[assignment]
        return normalised.reshape(x.shape)


def _relu(x: jax.Array) -> jax.Array:
    return _kept(nn.relu(_rows(x))).reshape(x.shape)


@functools.cache
def cpu_forms(num_devices: int) -> Forms:
    """The forms for images that so many devices share."""
    return Forms(_convolution(num_devices), _LayerNorm, _relu)


# ---- whether bfloat16 is right here --------------------------------------------------------------

# Of the largest value: rounding to bfloat16 is off by 2**-9 of each, and the sum over parts is rounded again.
TOLERANCE = 0.02


def convolutions(model: ResNet) -> list[tuple[int, int, int, int]]:
    """Input's height, channels, features and stride of each 3x3 convolution of a network, each kind once."""
    height, _, channels = model.spec.image_shape
    found = [(height, channels, model.widths[0], 1)]
    channels = model.widths[0]
    for _, width, stride in model.blocks():
        found.append((height, channels, width, stride))
        height, channels = -(-height // stride), width
        found.append((height, width, width, 1))
    return list(dict.fromkeys(found))


def largest_error(shapes: Sequence[tuple[int, int, int, int]], batch: int, compiler_options: dict[str, Any]) -> float:
    """How far convolutions in bfloat16 and their gradients are from those in float32, of the same random numbers.

    XLA's experimental calls of oneDNN have been wrong for one shape, and nothing said so. So each machine is asked.

    Args:
      shapes: as `convolutions` returns them.
      batch: images of one device.
      compiler_options: of the program in bfloat16.

    Returns:
      The largest difference, as a share of the largest value of the same array; NaN if there is one.
    """
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape, np.float32), jnp.bfloat16)

    arrays = [
        (normal(batch, height, height, channels), normal(3, 3, channels, features),
         normal(batch, -(-height // stride), -(-height // stride), features))
        for height, channels, features, stride in shapes
    ]  # fmt: skip

    def results(arrays: Any, convolve: Callable[..., Any]) -> Any:
        found = []
        for (*_, stride), (x, kernel, gradient) in zip(shapes, arrays, strict=True):
            y, vjp = jax.vjp(lambda x, kernel, stride=stride: convolve(x, kernel, stride), x, kernel)
            found.append((y, *vjp(gradient)))
        return found

    ours = jax.jit(lambda arrays: results(arrays, conv3x3), compiler_options=compiler_options)(arrays)
    exact = jax.jit(lambda arrays: results(arrays, plain3x3))(jax.tree.map(lambda a: a.astype(jnp.float32), arrays))
    errors = jax.tree.map(lambda a, b: jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max(), ours, exact)
    return float(np.max(jax.tree.leaves(errors)))  # not `max`, which may pass over a NaN
