"""A 3x3 convolution in the shapes that XLA's CPU compiler is fast at; the values are those of the plain one.

XLA:CPU hands a convolution to the fast library it has (YNNPACK) where one side has more than 16 channels.
That library computes many neighbours of a row at once, each from contiguous channels. So

* a convolution with few outputs computes a group of neighbouring pixels as further outputs, and
* the gradient by the kernel, whose output is only 3x3 pixels, has its width and channels in one axis.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The 3x3 convolution with one row and column of zeros around the image.

    It has gradients in reverse mode (`jax.grad`) only.

    Args:
      x: float `[B, H, W, C]`.
      kernel: of the same dtype, `[3, 3, C, features]`.
      stride: of both axes.

    Returns:
      Of the same dtype, `[B, ceil(H / stride), ceil(W / stride), features]`.
    """
    channels, features = kernel.shape[2:]
    group = (64 if channels <= 4 else 32) // features
    if stride != 1 or group <= 1 or x.shape[2] % group:
        return _plain(x, kernel, (stride, stride))
    # The kernel of a group's i-th pixel is the kernel moved by i columns.
    moved = [jnp.pad(kernel, ((0, 0), (i, group - 1 - i), (0, 0), (0, 0))) for i in range(group)]
    y = _plain(x, jnp.concatenate(moved, axis=-1), (1, group))
    return y.reshape(*x.shape[:3], features)


def _forward(x: jax.Array, kernel: jax.Array, stride: int):
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = saved
    if stride == 1:
        by_x = conv3x3(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    else:
        (by_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, (stride, stride)), x)(gradient)
    return by_x, _gradient_by_kernel(x, gradient, stride)


conv3x3.defvjp(_forward, _backward)


def _gradient_by_kernel(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """The gradient `[3, 3, C, features]`, as a convolution of `x` whose kernel is the output's gradient.

    Images are its input channels. Its pixels are `[H, W * C]`: a step of one column is C of them, so that
    neighbouring outputs are the kernel's columns and input channels, in the kernel's own order.
    """
    (batch, height, width, channels), (_, rows, columns, features) = x.shape, gradient.shape
    below, right = (rows - 1) * stride + 2 - height, (columns - 1) * stride + 2 - width
    by_kernel = jax.lax.conv_general_dilated(
        x.reshape(batch, -1).T.reshape(1, height, width * channels, batch),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        ((1, below), (channels, right * channels)),
        rhs_dilation=(stride, stride * channels),
        dimension_numbers=_DIMENSIONS,
    )
    return by_kernel.reshape(3, 3, channels, features)


def for_flax(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], *_: Any, **__: Any) -> jax.Array:
    """`conv3x3`, called as `flax.linen.Conv` calls its `conv_general_dilated`."""
    return conv3x3(x, kernel, strides[0])
