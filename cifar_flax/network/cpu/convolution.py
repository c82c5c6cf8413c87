"""A 3x3 convolution in the forms that XLA's CPU compiler is fast at; the values are those of the plain one.

Those of the gradients are convolutions forwards too: XLA leaves these to fast libraries, oneDNN in bfloat16 and
YNNPACK in float32, and does not recognise its own forms of the gradients. (One is slower so: the gradient by the
input of a strided convolution in float32, from 64 channels on.) Beyond that:

* The gradient by the kernel is summed over parts of the batch that fit the cache. The libraries compute many
  neighbours of a row at once, each from contiguous channels; its output is only 3x3 pixels, so its width and channels
  are one axis.
* In float32, with many channels, it is Winograd's: fewer multiplications, in sixteen products of large matrices.
* In float32, XLA calls YNNPACK only with more than 16 channels on one side. With fewer, a group of neighbouring
  pixels is computed as further outputs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cifar_flax.network.cpu.norm import below_float32

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images a device whose gradient by a kernel a CPU's cache holds.
PART = 16
# More parts only make the program larger; adding up larger kernels costs more than the cache gains.
_MOST_PARTS, _LARGEST_IN_PARTS = 8, 200_000


def plain3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`conv3x3` as XLA has it, and its gradients too."""
    return _plain(x, kernel, (stride, stride))


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1, num_devices: int = 1) -> jax.Array:
    """The 3x3 convolution with one row and column of zeros around the image.

    It has gradients in reverse mode (`jax.grad`) only.

    Args:
      x: float `[B, H, W, C]`.
      kernel: of the same dtype, `[3, 3, C, features]`.
      stride: of both axes.
      num_devices: devices that share the images.

    Returns:
      Of the same dtype, `[B, ceil(H / stride), ceil(W / stride), features]`.
    """
    if _is_wide(x, kernel, stride):
        return _winograd(x, kernel, "tc,cf->tf")
    channels, features = kernel.shape[2:]
    group = 1 if below_float32(x) else (64 if channels <= 4 else 32) // features
    if stride != 1 or group <= 1 or x.shape[2] % group:
        return _plain(x, kernel, (stride, stride))
    # The kernel of a group's i-th pixel is the kernel moved by i columns.
    moved = [jnp.pad(kernel, ((0, 0), (i, group - 1 - i), (0, 0), (0, 0))) for i in range(group)]
    y = _plain(x, jnp.concatenate(moved, axis=-1), (1, group))
    return y.reshape(*x.shape[:3], features)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, num_devices: int):
    return conv3x3(x, kernel, stride, num_devices), (x, kernel)


def _backward(stride: int, num_devices: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = saved
    turned = jnp.flip(kernel, (0, 1))
    if _is_wide(x, kernel, stride):
        return _winograd(gradient, turned, "tf,cf->tc"), _winograd_by_kernel(x, gradient)
    if stride == 1:
        by_x = conv3x3(gradient, turned.swapaxes(2, 3))
    elif not below_float32(x) and min(kernel.shape[2:]) >= 64:
        (by_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, (stride, stride)), x)(gradient)
    else:
        by_x = _strided_gradient_by_x(gradient, kernel, stride)[:, : x.shape[1], : x.shape[2]]
    most = min(_MOST_PARTS, len(x) // (PART * num_devices)) if kernel.size <= _LARGEST_IN_PARTS else 1
    # A part has an image of every so many, as many of each device.
    parts = next((n for n in range(most, 1, -1) if len(x) % (n * num_devices) == 0), 1)
    images, gradients = (a.reshape(-1, parts, *a.shape[1:]) for a in (x, gradient))
    by_kernel = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    for i in range(parts):
        by_kernel += _gradient_by_kernel(images[:, i], gradients[:, i], stride)
    return by_x, by_kernel.astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)


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


# ---- gradients -----------------------------------------------------------------------------------


def _strided_gradient_by_x(gradient: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The gradient by the input of a convolution of stride 2 or more.

    A block of stride x stride pixels depends on the gradient's pixel at its place and on the next ones, down and to
    the right. So a 2x2 convolution of the gradient has all pixels of a block as its features.

    Args:
      gradient: `[B, h, w, features]`.
      kernel: `[3, 3, C, features]`.
      stride: of both axes.

    Returns:
      `[B, h * stride, w * stride, C]`.
    """
    batch, height, width, features = gradient.shape
    channels = kernel.shape[2]
    ends = (stride - 1, stride - 2)
    # Of an axis' 2 * stride weights the first half is for the next pixel, the other for the one at the block's place.
    blocks = jnp.pad(kernel, (ends, ends, (0, 0), (0, 0))).reshape(2, stride, 2, stride, channels, features)
    blocks = jnp.flip(blocks, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, features, -1)
    y = jax.lax.conv_general_dilated(gradient, blocks, (1, 1), ((0, 1), (0, 1)), dimension_numbers=_DIMENSIONS)
    y = y.reshape(batch, height, width, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, height * stride, width * stride, channels)


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


# ---- many channels -------------------------------------------------------------------------------


def _is_wide(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether the image divides into tiles, and the matrices are large enough to pay for the sums around them."""
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return not below_float32(x) and stride == 1 and even and min(kernel.shape[2:]) >= 256


def _winograd(x: jax.Array, kernel: jax.Array, product: str) -> jax.Array:
    """The convolution of stride 1 by Winograd's F(2x2, 3x3): 16 multiplications where the plain one has 36.

    Each tile of 2x2 outputs comes from 4x4 inputs. Sums and differences along both axes turn these and the
    kernel into 4x4 values that are only multiplied, and turn the products into the outputs.

    Args:
      x: `[B, H, W, channels]`, H and W even.
      kernel: `[3, 3, ...]`.
      product: of the tiles `[t, channels]` and a matrix of the kernel's size, as `einsum` has it.

    References:
      Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
    """
    matrices = _along_both(lambda a, b, c: (a, (a + b + c) / 2, (a - b + c) / 2, c), kernel)
    outputs = _along_both(lambda a, b, c, d: (a + b + c, b - c - d), _products(product, _tiles(x), matrices))
    batch, height, width, _ = x.shape
    shape = (batch, height // 2, width // 2, -1)
    rows = [jnp.stack([y.reshape(shape) for y in row], axis=3) for row in outputs]
    return jnp.stack(rows, axis=2).reshape(batch, height, width, -1)


def _winograd_by_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient `[3, 3, C, features]` of `_winograd(x, kernel, "tc,cf->tf")`: its sums the other way round."""
    outputs = [[gradient[:, i::2, j::2].reshape(-1, gradient.shape[-1]) for j in (0, 1)] for i in (0, 1)]
    spread = _along_both(lambda a, b: (a, a + b, a - b, -b), outputs)
    products = _products("tc,tf->cf", _tiles(x), spread)
    sums = _along_both(lambda a, b, c, d: (a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d), products)
    # Without the barrier XLA:CPU would add up in the order of the stack, ten times as slowly.
    return jnp.stack([jnp.stack(row) for row in jax.lax.optimization_barrier(sums)])


def _tiles(x: jax.Array) -> list:
    """What Winograd's products take of `[B, H, W, C]`: 4x4 matrices `[tiles, C]` of a number a tile."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inputs = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    tiles = _along_both(lambda a, b, c, d: (a - c, b + c, c - b, b - d), inputs)
    return [[tile.reshape(-1, channels) for tile in row] for row in tiles]


def _products(product: str, *grids: list) -> list:
    """The product of two grids' matrices, place by place."""
    return [[jnp.einsum(product, *pair) for pair in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]


def _along_both(combine: Callable[..., tuple], grid: Any) -> list:
    """A grid of arrays whose columns, and then whose rows, are combined."""
    columns = [combine(*column) for column in zip(*grid, strict=True)]
    return [list(combine(*row)) for row in zip(*columns, strict=True)]
