"""What a config compiles to: the functions of a run, and only here are they jitted and spread over devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_flax import devices, optim, step
from cifar_flax.augment import augment
from cifar_flax.config import Config
from cifar_flax.metrics import Metrics
from cifar_flax.model import ResNet
from cifar_flax.step import TrainState


class Split(NamedTuple):
    """Images and labels on the devices, whole on each: uint8 `[N, 32, 32, 3]` and int32 `[N]`."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


class Program(NamedTuple):
    """What a config compiles to.

    Attributes:
      create_state: () to the state before the first step, on the devices.
      place: puts images and labels on the devices.
      train_steps: (state, sums, split, epoch, steps) to (steps, state, sums) again and again, until the
        epoch's last step: after each on a CPU, once on an accelerator. State and sums are donated.
      lower: (state, sums, split) to the lowered form of what `train_steps` runs: a step on a CPU, an epoch
        on an accelerator.
      evaluate: (params, split, between) to metrics; `between` is called now and then.
      learning_rate: state to the rate of the step that led to it.
      advance_plateau: (state, value) to the state after the plateau has seen an epoch's value.
      model: the network.
      mesh: the devices.
    """

    create_state: Callable[[], TrainState]
    place: Callable[..., Any]
    train_steps: Callable[[TrainState, Metrics, Split, int, int], Iterator[tuple[int, TrainState, Metrics]]]
    lower: Callable[[TrainState, Metrics, Split], jax.stages.Lowered]
    evaluate: Callable[..., Metrics]
    learning_rate: Callable[[TrainState], float]
    advance_plateau: Callable[[TrainState, float], TrainState]
    model: ResNet
    mesh: Mesh


def build_model(config: Config, dtype: Any = jnp.float32, factors: Any = None) -> ResNet:
    """The network of a config."""
    zero_init = config.zero_init_residual
    return ResNet(config.widths, config.strides, zero_init_residual=zero_init, dtype=dtype, factors=factors)


def build_augment(config: Config) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`augment.augment` of a key and normalised images alone."""
    return functools.partial(
        augment,
        crop_padding=config.crop_padding,
        rotate_degrees=config.rotate_degrees,
        cutout_size=config.cutout_size,
        random_flip=config.random_flip,
    )


def build_optimizer(config: Config, schedule: optax.Schedule, muon_schedule: optax.Schedule, mesh: Mesh | None = None):
    """`optim.build_optimizer` of a config, at the rates of these schedules, its work shared by a mesh's devices."""
    return optim.build_optimizer(
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        muon_learning_rate=muon_schedule if config.muon_learning_rate else None,
        muon_weight_decay=config.muon_weight_decay,
        mesh=mesh,
    )


def build_plateau(config: Config) -> optax.GradientTransformationExtraArgs:
    """`optim.build_plateau` of a config."""
    return optim.build_plateau(
        patience=config.patience,
        factor=config.factor,
        rtol=config.rtol,
        cooldown=config.cooldown,
        min_scale=config.min_scale,
    )


def build_train_step(config: Config, model: ResNet, optimizer: optax.GradientTransformation):
    """`step.train_step` of a state and a batch alone."""
    return functools.partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment=build_augment(config),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
    )


def build_program(config: Config, num_train: int) -> Program:
    """Builds the functions of a run; nothing is compiled before it is first called.

    Args:
      config: the run's config.
      num_train: images in the training split.
    """
    mesh = devices.make_mesh(config.batch_size)
    replicated, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    model = build_model(config, devices.activation_dtype(config.precision), devices.factor_dtype(config.precision))
    steps_per_epoch = -(-num_train // config.batch_size)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    schedule = optim.warmup_schedule(config.learning_rate, warmup_steps)
    muon_schedule = optim.warmup_schedule(config.muon_learning_rate, warmup_steps)
    optimizer = build_optimizer(config, schedule, muon_schedule, mesh)
    plateau = build_plateau(config)
    train_step = build_train_step(config, model, optimizer)

    def take(split: Split, indices: jax.Array):
        """A batch, spread over the devices; an index of -1 is padding."""
        indices = jax.lax.with_sharding_constraint(indices, by_batch)
        return split.images[indices], split.labels[indices], indices >= 0

    def train_batch(carry: tuple[TrainState, Metrics], split: Split, indices: jax.Array):
        state, sums = carry
        state, batch_sums = train_step(state, *take(split, indices))
        return state, sums + batch_sums

    def epoch_order(state: TrainState, epoch: jax.Array):
        return step.epoch_order(state.key, epoch, num_train, config.batch_size)

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
    def scan_steps(carry: tuple[TrainState, Metrics], split: Split, epoch: jax.Array, first: int):
        def body(carry, indices):
            return train_batch(carry, split, indices), None

        return jax.lax.scan(body, carry, epoch_order(carry[0], epoch)[first:])[0]

    jit_order = jax.jit(epoch_order, out_shardings=replicated)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=devices.compiler_options())
    def jit_batch(carry: tuple[TrainState, Metrics], split: Split, order: jax.Array, i: jax.Array):
        return train_batch(carry, split, order[i])

    def wait(sums: Metrics):
        # XLA:CPU runs a program's devices as threads of one pool. Several programs in flight can fill it with
        # threads that wait for each other's sum over the devices, and after 40 s the process is aborted.
        if jax.default_backend() == "cpu":
            jax.block_until_ready(sums)

    def train_steps(state: TrainState, sums: Metrics, split: Split, epoch: int, first: int):
        # XLA:CPU runs the gradient of a convolution inside a scan some 46 times slower than outside.
        number = jax.device_put(np.int32(epoch), replicated)
        if jax.default_backend() != "cpu":
            if first < steps_per_epoch:
                yield steps_per_epoch, *scan_steps((state, sums), split, number, first)
            return
        order = jit_order(state, number)
        for i in range(first, steps_per_epoch):
            state, sums = jit_batch((state, sums), split, order, i)
            wait(sums)
            yield i + 1, state, sums

    def lower(state: TrainState, sums: Metrics, split: Split):
        number = jax.device_put(np.int32(1), replicated)
        if jax.default_backend() != "cpu":
            return scan_steps.lower((state, sums), split, number, 0)
        return jit_batch.lower((state, sums), split, jit_order(state, number), 0)

    eval_batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=devices.compiler_options())
    def jit_evaluate(sums: Metrics, params: Any, split: Split, indices: jax.Array):
        return sums + step.eval_step(params, *take(split, indices), model=model)

    def evaluate(params: Any, split: Split, between: Callable[[], None] = lambda: None) -> Metrics:
        sums = jax.device_put(Metrics.empty(), replicated)
        for indices in np.asarray(step.pad_to_batches(jnp.arange(len(split.images)), eval_batch_size)):
            sums = jit_evaluate(sums, params, split, indices)
            wait(sums)
            between()
        chex.assert_equal(int(sums.count), len(split.images))
        return sums

    @jax.jit
    def create_state():
        return step.create_state(jax.random.key(config.seed), model, optimizer, plateau)

    @functools.partial(jax.jit, out_shardings=replicated)
    def next_plateau(plateau_state: Any, value: float):
        return optim.advance_plateau(plateau, plateau_state, value)

    return Program(
        create_state=lambda: jax.device_put(create_state(), replicated),
        place=lambda tree: jax.device_put(tree, replicated),
        train_steps=train_steps,
        lower=lower,
        evaluate=evaluate,
        learning_rate=lambda state: float(schedule(state.step - 1) * state.plateau_state.scale),
        advance_plateau=lambda state, value: dataclasses.replace(
            state, plateau_state=next_plateau(state.plateau_state, jnp.float32(value))
        ),
        model=model,
        mesh=mesh,
    )
