"""Sums over images, divided once at the end, so that each image counts as much in batches of any size."""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import optax

NO_STEP = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class Metrics:
    """Sums over the images seen so far.

    Attributes:
      loss_sum: float32 scalar, the sum of the images' losses, in nats.
      correct: int32 scalar, images whose largest logit is the label's.
      count: int32 scalar, images.
      skipped: int32 scalar, training steps not taken because a loss or gradient was not finite.
      bad_step: int32 scalar, the first such step, or `NO_STEP`.
      relative_step_sum: float32 scalar, the sum over training steps of the root mean square over convolution kernels
        of the step's length, as a share of the kernel's own.
    """

    loss_sum: jax.Array
    correct: jax.Array
    count: jax.Array
    skipped: jax.Array
    bad_step: jax.Array
    relative_step_sum: jax.Array

    @classmethod
    def empty(cls) -> "Metrics":
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.int32(NO_STEP), jnp.float32(0))

    def __add__(self, other: "Metrics") -> "Metrics":
        sums = jax.tree.map(jnp.add, self, other)
        return dataclasses.replace(sums, bad_step=jnp.minimum(self.bad_step, other.bad_step))


def measure(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    label_smoothing: float = 0.0,
    teacher_logits: jax.Array | None = None,
    teacher_weight: float = 0.0,
    teacher_temperature: float = 1.0,
) -> Metrics:
    """Metrics of one batch.

    Without a teacher an image's loss is the cross-entropy of its label. With one it is, of a weight a and at a
    temperature T, (1 - a) times that and a T^2 times the Kullback-Leibler divergence from the teacher's softmax to the
    network's, both of logits divided by T.

    Args:
      logits: float `[B, num_classes]`.
      labels: int `[B]`.
      mask: bool `[B]`; false for padding, which counts nowhere.
      label_smoothing: share of the target spread evenly over all classes.
      teacher_logits: float `[B, num_classes]`, or None.
      teacher_weight: a.
      teacher_temperature: T.

    Returns:
      The sums over the images whose mask is true.

    References:
      Hinton et al. 2015, "Distilling the knowledge in a neural network".
    """
    num_classes = logits.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=logits.dtype), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    if teacher_logits is not None:
        ours, theirs = (jax.nn.log_softmax(x / teacher_temperature) for x in (logits, teacher_logits))
        divergence = optax.losses.kl_divergence_with_log_targets(ours, theirs)
        losses = (1 - teacher_weight) * losses + teacher_weight * teacher_temperature**2 * divergence
    return dataclasses.replace(
        Metrics.empty(),
        loss_sum=jnp.sum(jnp.where(mask, losses, 0.0), dtype=jnp.float32),
        correct=jnp.sum(mask & (jnp.argmax(logits, axis=-1) == labels), dtype=jnp.int32),
        count=jnp.sum(mask, dtype=jnp.int32),
    )


def smoothing_entropy(num_classes: int, label_smoothing: float) -> float:
    """The entropy of a smoothed target, in nats: the least that `measure`'s loss can be."""
    off = label_smoothing / num_classes
    shares = [1 - label_smoothing + off, *[off] * (num_classes - 1)]
    return -sum(share * math.log(share) for share in shares if share)
