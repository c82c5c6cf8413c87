"""Class activation maps: which places of a feature map speak for a class.

Six methods, each a pure function of one image's activation `[H, W, K]` and of the gradient of a
score with respect to it, `[H, W, K]`, to a raw, signed map `[H, W]`. The definitions are those of
the PyTorch reference package, pytorch-grad-cam 1.5.7. The score is a logit, or any weighted sum of
logits: weights +1 and -1 on two classes give a map of what separates them.

At the stage that feeds the average pooling, Grad-CAM's raw map is in logit units: its sum plus the
class's bias is the logit.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np


def target_gradients(head: Callable[[jax.Array], jax.Array], activations: jax.Array, targets: jax.Array) -> jax.Array:
    """Gradients of weighted sums of logits with respect to each image's own activation.

    One `jax.grad` a target, of the whole batch: an image's logits depend on its own activation alone. Under
    one `jax.jit` all share a forward pass.

    Args:
      head: activations `[B, H, W, K]` to logits `[B, C]`, image by image.
      activations: float `[B, H, W, K]`.
      targets: float `[B, T, C]`, for each image the T weightings of its logits to explain.

    Returns:
      `[B, T, H, W, K]`.
    """
    chex.assert_rank([activations, targets], [4, 3])

    def score(activations: jax.Array, target: jax.Array) -> jax.Array:
        return (head(activations) * target).sum()

    return jnp.stack([jax.grad(score)(activations, targets[:, i]) for i in range(targets.shape[1])], axis=1)


def _combined(activation: jax.Array, weights: jax.Array) -> jax.Array:
    """Channels `[H, W, K]` weighted by `[K]` and summed; in float32's digits on an accelerator too."""
    return jnp.matmul(activation, weights, precision="highest")


def grad_cam(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Channels weighted by their mean gradient (Selvaraju et al. 2017)."""
    return _combined(activation, gradient.mean(axis=(0, 1)))


def grad_cam_plus_plus(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Channels weighted by their positive gradients, each by its alpha (Chattopadhay et al. 2018)."""
    # One name a symbol of the paper's equation 19; exp(score) is left out, as in the reference.
    g2, g3 = gradient**2, gradient**3
    sums = activation.sum(axis=(0, 1), keepdims=True)
    alpha = jnp.where(gradient != 0, g2 / (2 * g2 + sums * g3 + 1e-6), 0)
    return _combined(activation, (jax.nn.relu(gradient) * alpha).sum(axis=(0, 1)))


def hires_cam(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient times activation, summed over channels (Draelos and Carin 2020)."""
    return (gradient * activation).sum(axis=-1)


def layer_cam(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Positive gradient times activation, summed over channels (Jiang et al. 2021)."""
    return (jax.nn.relu(gradient) * activation).sum(axis=-1)


def xgrad_cam(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Channels weighted by their activation-weighted mean gradient (Fu et al. 2020)."""
    sums = activation.sum(axis=(0, 1))
    return _combined(activation, (gradient * activation).sum(axis=(0, 1)) / (sums + 1e-7))


def eigen_cam(activation: jax.Array, gradient: jax.Array) -> jax.Array:
    """Projection on the first principal direction of the channels (Muhammad and Yeasin 2020).

    The gradient is not used, so the map is the same for every class. The sign of a singular vector
    is arbitrary: here it is the one that gives the map a positive sum over the uncentred activation.
    """
    del gradient
    height, width, channels = activation.shape
    flat = activation.reshape(-1, channels)
    centred = flat - flat.mean(axis=0, keepdims=True)
    direction = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    sign = jnp.where(_combined(flat.sum(axis=0), direction) < 0, -1, 1)
    return _combined(centred, sign * direction).reshape(height, width)


def _widened(method: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A method that computes in float32 or wider, whatever the activations' dtype."""

    @functools.wraps(method)
    def widened(activation: jax.Array, gradient: jax.Array) -> jax.Array:
        return method(*(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (activation, gradient)))

    return widened


METHODS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "grad-cam": _widened(grad_cam),
    "grad-cam++": _widened(grad_cam_plus_plus),
    "hires-cam": _widened(hires_cam),
    "layer-cam": _widened(layer_cam),
    "xgrad-cam": _widened(xgrad_cam),
    "eigen-cam": _widened(eigen_cam),
}

# Linear in the gradient: the map of a difference of two scores is the difference of their maps.
LINEAR = ("grad-cam", "hires-cam", "xgrad-cam")


def is_zero(raw: jax.Array | np.ndarray) -> jax.Array | np.ndarray | np.bool:
    """Whether raw maps `[..., H, W]` have no positive place: bool `[...]`. Such a map says nothing."""
    return (raw <= 0).all(axis=(-2, -1))


def _scale_to_unit(maps: jax.Array) -> jax.Array:
    maps = maps - maps.min(axis=(-2, -1), keepdims=True)
    return maps / (1e-7 + maps.max(axis=(-2, -1), keepdims=True))


def to_image(raw: jax.Array | np.ndarray, size: tuple[int, int] = (32, 32)) -> jax.Array:
    """A raw map as the reference shows it: its positive part, scaled, enlarged, scaled again.

    Args:
      raw: float `[..., H, W]`.
      size: rows and columns of the image.

    Returns:
      `[..., *size]` in [0, 1]. All zero where `is_zero(raw)`.
    """
    maps = _scale_to_unit(jax.nn.relu(raw))
    maps = jax.image.resize(maps, (*raw.shape[:-2], *size), "bilinear", antialias=False)
    return _scale_to_unit(jax.nn.relu(maps))


def to_signed(raw: jax.Array | np.ndarray, size: tuple[int, int] = (32, 32)) -> jax.Array:
    """A raw map `[..., H, W]` enlarged to `[..., *size]`, as a share of its largest magnitude: in [-1, 1]."""
    maps = raw / (1e-7 + abs(raw).max(axis=(-2, -1), keepdims=True))
    return jax.image.resize(maps, (*raw.shape[:-2], *size), "bilinear", antialias=False)


def _jet() -> np.ndarray:
    """OpenCV's JET colours, uint8 `[256, 3]`, RGB; matplotlib's differ by up to 34 of 255.

    A channel is its first value and then runs of (step, length).
    """
    runs = (
        (0, ((0, 95), (2, 1), (4, 63), (1, 1), (0, 63), (-3, 1), (-4, 31))),
        (0, ((0, 32), (4, 63), (3, 1), (0, 63), (-3, 1), (-4, 63), (0, 32))),
        (128, ((4, 31), (3, 1), (0, 63), (-1, 1), (-4, 62), (-5, 1), (-1, 1), (0, 95))),
    )
    channels = [
        np.cumsum([first, *(step for step, length in channel for _ in range(length))]) for first, channel in runs
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


JET = _jet()
# Of differences, RGB: blue for, orange against, told apart by the colour-blind.
FOR, AGAINST = np.array([45, 109, 181], np.float32), np.array([179, 88, 6], np.float32)


def overlay(image: np.ndarray, heat: np.ndarray, colors: np.ndarray = JET) -> np.ndarray:
    """An image under half-transparent colours; with JET, as the reference's `show_cam_on_image` has it.

    Args:
      image: float `[H, W, 3]`, RGB in [0, 1].
      heat: float `[H, W]` in [0, 1].
      colors: uint8 `[256, 3]`, RGB, for 0 to 1.

    Returns:
      uint8 `[H, W, 3]`, scaled so that its largest value is 255.
    """
    mixed = 0.5 * colors[np.asarray(255 * heat, np.uint8)].astype(np.float32) / 255 + 0.5 * image
    return np.asarray(255 * (mixed / mixed.max()), np.uint8)


def overlay_difference(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """An image in grey that takes on blue where a difference is positive, and orange where it is negative.

    Args:
      image: float `[H, W, 3]`, RGB in [0, 1].
      share: float `[H, W]` in [-1, 1].

    Returns:
      uint8 `[H, W, 3]`.
    """
    strength = 0.8 * abs(share)[..., None]
    grey = (image @ np.array([0.3, 0.59, 0.11], np.float32))[..., None]
    return np.asarray((1 - strength) * 255 * grey + strength * np.where(share[..., None] > 0, FOR, AGAINST), np.uint8)
