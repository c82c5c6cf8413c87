"""One training step and one evaluation step, as pure functions of everything they depend on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cifar_flax.network.model import ResNet, forward, init_params
from cifar_flax.training import metrics
from cifar_flax.training.metrics import Metrics


@flax.struct.dataclass
class TrainState:
    """All that a training run is at a moment; resuming from it continues the run bit for bit.

    Attributes:
      step: int32 scalar, training steps taken.
      key: the run's root key; every use folds in a step or an epoch, so no key is used twice.
      params: float32 tree.
      ema_params: float32 tree, the exponential moving average of `params`; what is evaluated.
      opt_state: the optimizer's.
      plateau_state: ReduceLROnPlateau's; its `scale` multiplies every update.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    plateau_state: Any


def create_state(
    key: jax.Array,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
) -> TrainState:
    """The state before the first step."""
    init_key, root_key = jax.random.split(key)
    params = init_params(model, init_key)
    return TrainState(
        step=jnp.int32(0),
        key=root_key,
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # a donated buffer must not appear twice
        opt_state=optimizer.init(params),
        plateau_state=plateau.init(params),
    )


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    teacher_params: Any = None,
    *,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    label_smoothing: float,
    ema_decay: float,
    sam_rho: float = 0.0,
    teacher: ResNet | None = None,
    teacher_weight: float = 0.0,
    teacher_temperature: float = 1.0,
) -> tuple[TrainState, Metrics]:
    """Augments a batch, takes one optimizer step on it and updates the averaged parameters.

    Args:
      state: the state.
      images: uint8 `[B, 32, 32, 3]`.
      labels: int32 `[B]`.
      mask: bool `[B]`, false for padding: it takes no part in loss, gradient or metrics.
      teacher_params: the teacher's, if there is one.
      model: the network.
      optimizer: as built by `optim.build_optimizer`.
      augment: (key, normalised images) to images.
      label_smoothing: share of the target spread over all classes.
      ema_decay: decay a step of the averaged parameters; 0 makes them equal to the parameters.
      sam_rho: once the plateau has lowered the rate, the gradient is taken where the loss is higher: each array
        of parameters moved along it, all together by this share of their lengths; 0 for the gradient as it is.
      teacher: a network that sees the same augmented images, and whose answers are part of the loss; or None.
      teacher_weight: as of `metrics.measure`.
      teacher_temperature: likewise.

    Returns:
      The next state, and the batch's metrics, on the augmented images and before the step. A step
      whose loss or gradient is not finite is not taken: only the step's number moves on, and its
      images are in no sum.
    """
    chex.assert_rank([images, labels, mask], [4, 1, 1])
    chex.assert_equal_shape_prefix([images, labels, mask], 1)
    with jax.named_scope("augment"):  # the names are those that a profile shows
        inputs = augment(jax.random.fold_in(state.key, state.step), model.spec.normalize(images))

    teacher_logits = None
    if teacher is not None:
        teacher_logits = forward(teacher, teacher_params, teacher.spec.renormalize(inputs, model.spec))

    def loss_fn(params):
        sums = metrics.measure(
            forward(model, params, inputs),
            labels,
            mask,
            label_smoothing=label_smoothing,
            teacher_logits=teacher_logits,
            teacher_weight=teacher_weight,
            teacher_temperature=teacher_temperature,
        )
        return sums.loss_sum / sums.count, sums

    (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if sam_rho:
        grads = jax.lax.cond(
            state.plateau_state.scale < 1.0,
            lambda: jax.grad(loss_fn, has_aux=True)(uphill(state.params, grads, sam_rho))[0],
            lambda: grads,
        )
    with jax.named_scope("optimize"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = optax.tree.scale(state.plateau_state.scale, updates)
        params = optax.apply_updates(state.params, updates)
        # At first it forgets within a ninth of the steps so far: early weights would linger otherwise.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        sums = dataclasses.replace(sums, relative_step_sum=relative_step(state.params, updates))

        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        skipped = dataclasses.replace(Metrics.empty(), skipped=jnp.int32(1), bad_step=state.step)
        params, ema_params, opt_state, sums = optax.tree.where(
            finite,
            (params, ema_params, opt_state, sums),
            (state.params, state.ema_params, state.opt_state, skipped),
        )
    next_state = dataclasses.replace(
        state, step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state
    )
    return next_state, sums


def uphill(params: Any, grads: Any, rho: float) -> Any:
    """Parameters from which the loss is about the highest that a change of a relative length `rho` can make it.

    An array's change counts in units of the array's own length, so that the network's scale does not matter: that of
    a kernel with a norm after it does nothing. The relative lengths' squares add up to the square of `rho`.

    References:
      Foret et al. 2021, "Sharpness-aware minimization"; Kwon et al. 2021, "ASAM", for the units.
    """
    squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x)), params)
    slopes = jax.tree.map(lambda g, square: square * jnp.sum(jnp.square(g)), grads, squares)
    length = jnp.sqrt(optax.tree.sum(slopes))
    scale = rho / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda x, g, square: x + scale * square * g, params, grads, squares)


def relative_step(params: Any, updates: Any) -> jax.Array:
    """The root mean square, over convolution kernels, of an update's length as a share of the kernel's own."""
    shares = [
        jnp.sum(jnp.square(update)) / jnp.sum(jnp.square(x))
        for x, update in zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)
        if x.ndim == 4
    ]
    return jnp.sqrt(jnp.mean(jnp.stack(shares)))


def kernel_norm(params: Any) -> jax.Array:
    """The root mean square of the convolution kernels' Frobenius norms."""
    return jnp.sqrt(jnp.mean(jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params) if x.ndim == 4])))


def eval_step(params: Any, images: jax.Array, labels: jax.Array, mask: jax.Array, *, model: ResNet) -> Metrics:
    """Metrics of a batch as it is: uint8 `[B, 32, 32, 3]`, int32 `[B]`, bool `[B]`."""
    return metrics.measure(forward(model, params, model.spec.normalize(images)), labels, mask)


def pad_to_batches(indices: jax.Array, batch_size: int) -> jax.Array:
    """Indices `[N]` as rows `[ceil(N / batch_size), batch_size]`, the last one padded with -1."""
    padding = -len(indices) % batch_size
    return jnp.pad(indices, (0, padding), constant_values=-1).reshape(-1, batch_size)


# No step has this number, so an epoch's key is no step's.
_ORDER = 2**32 - 1


def epoch_order(key: jax.Array, epoch: jax.Array | int, num_images: int, batch_size: int) -> jax.Array:
    """The order in which an epoch visits the images.

    Args:
      key: the run's root key.
      epoch: number of the epoch.
      num_images: images in the training split.
      batch_size: images a step.

    Returns:
      int32 `[steps, batch_size]`: a permutation of the images, the last row padded with -1.
    """
    order_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return pad_to_batches(jax.random.permutation(order_key, num_images), batch_size)
