"""A 3x3 convolution in the forms that XLA's CPU compiler is fast at; the values are those of the plain one.

* With many channels it is Winograd's: fewer multiplications, in sixteen products of large matrices.
* With few channels XLA:CPU leaves its fast library (YNNPACK), which wants more than 16 of them on one side,
  so that a group of neighbouring pixels is computed as further outputs.
* That library computes many neighbours of a row at once, each from contiguous channels. The gradient by the
  kernel, whose output is only 3x3 pixels, therefore has its width and channels in one axis.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1, factors: Any = None) -> jax.Array:
    """The 3x3 convolution with one row and column of zeros around the image.

    It has gradients in reverse mode (`jax.grad`) only.

    Args:
      x: float `[B, H, W, C]`.
      kernel: of the same dtype, `[3, 3, C, features]`.
      stride: of both axes.
      factors: dtype to which what is multiplied is rounded, where that is faster; sums, those before the products
        too, are of `x`'s dtype. None for no rounding.

    Returns:
      Of the same dtype, `[B, ceil(H / stride), ceil(W / stride), features]`.
    """
    if _is_wide(x, kernel, stride):
        return _winograd(x, kernel, "tc,cf->tf", _worth_rounding(x, kernel, stride, factors))
    channels, features = kernel.shape[2:]
    group = (64 if channels <= 4 else 32) // features
    if stride != 1 or group <= 1 or x.shape[2] % group:
        return _plain(x, kernel, (stride, stride))
    # The kernel of a group's i-th pixel is the kernel moved by i columns.
    moved = [jnp.pad(kernel, ((0, 0), (i, group - 1 - i), (0, 0), (0, 0))) for i in range(group)]
    y = _plain(x, jnp.concatenate(moved, axis=-1), (1, group))
    return y.reshape(*x.shape[:3], features)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, factors: Any):
    return conv3x3(x, kernel, stride, factors), (x, kernel)


def _backward(stride: int, factors: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = saved
    factors = _worth_rounding(x, kernel, stride, factors)
    turned = jnp.flip(kernel, (0, 1))
    if _is_wide(x, kernel, stride):
        by_x = _winograd(gradient, turned, "tf,cf->tc", factors)
    elif stride == 1:
        by_x = conv3x3(gradient, turned.swapaxes(2, 3))
    else:
        (by_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, (stride, stride)), x)(gradient)
    if not _is_wide(x, kernel, stride, 128):
        by_kernel = _gradient_by_kernel(x, gradient, stride)
    elif factors is None:
        (by_kernel,) = jax.linear_transpose(lambda kernel: _winograd(x, kernel, "tc,cf->tf"), kernel)(gradient)
    else:
        by_kernel = _winograd_by_kernel(x, gradient, factors)
    return by_x, by_kernel


conv3x3.defvjp(_forward, _backward)


# ---- many channels -------------------------------------------------------------------------------


def _is_wide(x: jax.Array, kernel: jax.Array, stride: int, least: int = 64) -> bool:
    """Whether the image divides into tiles, and the matrices are large enough to pay for the sums around them."""
    exact = x.dtype.itemsize >= 4  # the sums of bfloat16 numbers are not
    return exact and stride == 1 and min(kernel.shape[2:]) >= least and x.shape[1] % 2 == x.shape[2] % 2 == 0


def _worth_rounding(x: jax.Array, kernel: jax.Array, stride: int, factors: Any) -> Any:
    """`factors` where the products are large enough to pay for the rounding, else None."""
    return factors if _is_wide(x, kernel, stride, 128) else None


def _winograd(x: jax.Array, kernel: jax.Array, product: str, factors: Any = None) -> jax.Array:
    """The convolution of stride 1 by Winograd's F(2x2, 3x3): 16 multiplications where the plain one has 36.

    Each tile of 2x2 outputs comes from 4x4 inputs. Sums and differences along both axes turn these and the
    kernel into 4x4 values that are only multiplied, and turn the products into the outputs.

    Args:
      x: `[B, H, W, channels]`, H and W even.
      kernel: `[3, 3, ...]`.
      product: of the tiles `[t, channels]` and a matrix of the kernel's size, as `einsum` has it.
      factors: dtype of the products' factors; None for `x`'s.

    References:
      Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
    """
    batch, height, width, channels = x.shape
    tiles = [[tile.reshape(-1, channels) for tile in row] for row in _tiles(x)]
    matrices = _along_both(lambda a, b, c: (a, (a + b + c) / 2, (a - b + c) / 2, c), kernel)
    products = _products(product, tiles, matrices, factors)
    outputs = _along_both(lambda a, b, c, d: (a + b + c, b - c - d), products)
    shape = (batch, height // 2, width // 2, -1)
    rows = [jnp.stack([y.reshape(shape) for y in row], axis=3) for row in outputs]
    return jnp.stack(rows, axis=2).reshape(batch, height, width, -1)


def _winograd_by_kernel(x: jax.Array, gradient: jax.Array, factors: Any) -> jax.Array:
    """The gradient `[3, 3, C, features]` of `_winograd` by its kernel, from its output's `[B, H, W, features]`.

    The products sum over tiles: XLA:CPU is fast at that where one factor has these in its last axis. Images are
    the last of the tiles' axes, so that what adds up is contiguous.
    """
    x, gradient = jax.lax.optimization_barrier((x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)))
    inputs = _tiles(x)
    outputs = [[gradient[i::2, j::2] for j in range(2)] for i in range(2)]
    outputs = _along_both(lambda a, b: (a, a + b, a - b, -b), outputs)
    products = _products("chwb,hwbf->cf", inputs, outputs, factors)
    by_kernel = _along_both(lambda a, b, c, d: (a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d), products)
    return jnp.stack([jnp.stack(row) for row in by_kernel])


def _tiles(x: jax.Array) -> list:
    """What Winograd's products take of `[_, H, W, _]`: 4x4 arrays of a number a tile, H and W half as long."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inputs = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return _along_both(lambda a, b, c, d: (a - c, b + c, c - b, b - d), inputs)


def _products(product: str, left: list, right: list, factors: Any) -> list:
    """The products of two grids of matrices, the factors rounded and the sums not."""
    if factors is None:
        return [
            [jnp.einsum(product, *pair) for pair in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)
        ]
    dtype = left[0][0].dtype
    left, right = jax.lax.optimization_barrier(jax.tree.map(lambda a: a.astype(factors), (left, right)))

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(product, a, b, preferred_element_type=dtype)

    return jax.lax.optimization_barrier(jax.tree.map(multiply, left, right))


def _along_both(combine: Callable[..., tuple], grid: Any) -> list:
    """A grid of arrays whose columns, and then whose rows, are combined."""
    columns = [combine(*column) for column in zip(*grid, strict=True)]
    return [list(combine(*row)) for row in zip(*columns, strict=True)]


# ---- few channels --------------------------------------------------------------------------------


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


def conv1x1(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The 1x1 convolution: a product of matrices, of the pixels that the stride leaves.

    Args:
      x: float `[B, H, W, C]`.
      kernel: of the same dtype, `[1, 1, C, features]`.
      stride: of both axes.

    Returns:
      Of the same dtype, `[B, ceil(H / stride), ceil(W / stride), features]`.
    """
    return x[:, ::stride, ::stride] @ kernel[0, 0]
