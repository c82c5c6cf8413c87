"""Sums over images, divided once at the end: exact at any batch size and in any grouping."""

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
    """

    loss_sum: jax.Array
    correct: jax.Array
    count: jax.Array
    skipped: jax.Array
    bad_step: jax.Array

    @classmethod
    def empty(cls) -> "Metrics":
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.int32(NO_STEP))

    def __add__(self, other: "Metrics") -> "Metrics":
        return Metrics(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.count + other.count,
            self.skipped + other.skipped,
            jnp.minimum(self.bad_step, other.bad_step),
        )


def measure(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, label_smoothing: float = 0.0) -> Metrics:
    """Metrics of one batch.

    Args:
      logits: float `[B, num_classes]`.
      labels: int `[B]`.
      mask: bool `[B]`; false for padding, which counts nowhere.
      label_smoothing: share of the target spread evenly over all classes.

    Returns:
      The sums over the images whose mask is true.
    """
    num_classes = logits.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=logits.dtype), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    return Metrics(
        loss_sum=jnp.sum(jnp.where(mask, losses, 0.0), dtype=jnp.float32),
        correct=jnp.sum(mask & (jnp.argmax(logits, axis=-1) == labels), dtype=jnp.int32),
        count=jnp.sum(mask, dtype=jnp.int32),
        skipped=jnp.int32(0),
        bad_step=jnp.int32(NO_STEP),
    )
