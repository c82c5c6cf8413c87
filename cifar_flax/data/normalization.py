"""Pixels as a network sees them, and back."""

import jax
import jax.numpy as jnp
import numpy as np

# Per-channel mean and standard deviation of the 50,000 training images, in [0, 1]. The often
# copied deviation (0.2023, 0.1994, 0.2010) is the mean of per-image deviations, not this.
MEAN = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)
STD = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)


def normalize(images: jax.Array) -> jax.Array:
    """uint8 `[..., 3]` to float32 with zero mean and unit variance a channel over the training set."""
    mean, std = (jnp.broadcast_to(x, images.shape) for x in (MEAN, STD))
    return (images.astype(jnp.float32) / 255 - mean) / std


def denormalize(images: jax.Array) -> jax.Array:
    """The inverse of `normalize`: float32 `[..., 3]` to float32 in [0, 1], for drawing."""
    mean, std = (jnp.broadcast_to(x, images.shape) for x in (MEAN, STD))
    return images * std + mean
