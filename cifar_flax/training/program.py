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
from jax.sharding import Mesh

from cifar_flax import config as config_lib
from cifar_flax import machine
from cifar_flax.config import Config
from cifar_flax.data import augment as augment_lib
from cifar_flax.data.spec import CIFAR10, DataSpec
from cifar_flax.execution import Execution, resolve
from cifar_flax.network.build import build_model
from cifar_flax.network.model import ResNet
from cifar_flax.training import optim, step
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.step import TrainState


class DeviceSplit(NamedTuple):
    """Images, uint8 `[N, H, W, 3]`, which `Program.place` makes `[N, H * W * 3]`, and labels, int32 `[N]`.

    And the parameters of the teacher that answers beside the labels, if there is one.

    A TPU pads an array's last two axes to its tiles: 3 or 32 numbers to 128, so that whole images would take
    four times their memory and, to be gathered from, a copy in each program.
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    teacher_params: Any = None


class Program(NamedTuple):
    """What a config compiles to.

    Attributes:
      create_state: () to the state before the first step, on the devices.
      place: puts arrays, which are the same in all processes, on the devices, whole on each; the images of
        a `DeviceSplit` as rows. On a CPU they may share the arrays' memory: do not write to these afterwards.
      train_steps: (state, sums, split, epoch, steps) to (steps, state, sums) again and again, until the
        epoch's last step: after each on a CPU, now and then on an accelerator. State and sums are donated.
      lower: (state, sums, split) to the lowered form of what `train_steps` runs first.
      evaluate: (params, split, between) to metrics; `between` is called now and then.
      learning_rate: state to the rate of the step that led to it.
      advance_plateau: (state, value) to the state after the plateau has seen an epoch's value.
      model: the network.
      execution: what all this runs on.
    """

    create_state: Callable[[], TrainState]
    place: Callable[..., Any]
    train_steps: Callable[[TrainState, Metrics, DeviceSplit, int, int], Iterator[tuple[int, TrainState, Metrics]]]
    lower: Callable[[TrainState, Metrics, DeviceSplit], jax.stages.Lowered]
    evaluate: Callable[..., Metrics]
    learning_rate: Callable[[TrainState], float]
    advance_plateau: Callable[[TrainState, float], TrainState]
    model: ResNet
    execution: Execution


def build_augment(config: Config, image_size: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`augment.augment` of a key and normalised images of a size alone."""
    config = config_lib.for_images(config, image_size)
    return functools.partial(
        augment_lib.augment,
        crop_padding=config.crop_padding,
        rotate_degrees=config.rotate_degrees,
        cutout_size=config.cutout_size,
        random_flip=config.random_flip,
    )


def build_optimizer(
    config: Config,
    schedule: optax.Schedule,
    muon_schedule: optax.Schedule,
    mesh: Mesh | None,
    precision: str,
):
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
        precision=precision,
    )


def build_plateau(config: Config) -> optax.GradientTransformationExtraArgs:
    """`optim.build_plateau` of a config."""
    return optim.build_plateau(
        patience=config.plateau_patience,
        factor=config.plateau_factor,
        threshold=config.plateau_threshold,
        cooldown=config.plateau_cooldown,
        min_scale=config.plateau_min_scale,
    )


def build_train_step(
    config: Config,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    teacher: ResNet | None = None,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
):
    """`step.train_step` of a state and a batch alone."""
    return functools.partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment=augment or build_augment(config, model.spec.image_size),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        sam_rho=config.sam_rho,
        teacher=teacher,
        teacher_weight=config.teacher_weight,
        teacher_temperature=config.teacher_temperature,
    )


def build_program(
    config: Config,
    num_train: int,
    execution: Execution | None = None,
    teacher: ResNet | None = None,
    spec: DataSpec = CIFAR10,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Program:
    """Builds the functions of a run; nothing is compiled before it is first called.

    Args:
      config: the run's config.
      num_train: images in the training split.
      execution: what they run on; None for what this machine has.
      teacher: the network whose parameters the `DeviceSplit` for training has, if it has any.
      spec: what the data set is.
      augment: (key, normalised images) to images, in place of what the config has.
    """
    execution = execution or resolve(config.precision, config.batch_size, deterministic=config.deterministic)
    model = build_model(config, execution, spec)
    steps_per_epoch = -(-num_train // config.batch_size)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    schedule = optim.warmup_schedule(config.learning_rate, warmup_steps)
    muon_schedule = optim.warmup_schedule(config.muon_learning_rate, warmup_steps)
    sharing = (execution.mesh, "float32") if execution.on_cpu else (None, execution.precision)
    optimizer, plateau = build_optimizer(config, schedule, muon_schedule, *sharing), build_plateau(config)

    @functools.partial(jax.jit, out_shardings=execution.replicated, compiler_options=execution.compiler_options)
    def create_state():
        return step.create_state(jax.random.key(config.seed), model, optimizer, plateau)

    @functools.partial(jax.jit, out_shardings=execution.replicated)
    def next_plateau(plateau_state: Any, value: float):
        return optim.advance_plateau(plateau, plateau_state, value)

    def place(tree: Any) -> Any:
        if isinstance(tree, DeviceSplit):
            tree = tree._replace(images=tree.images.reshape(len(tree.images), -1))
        return jax.tree.map(lambda x: _place(x, execution), tree)

    wait = _build_wait(execution)
    train_steps, lower = _build_training(
        build_train_step(config, model, optimizer, teacher, augment),
        spec.image_shape,
        execution,
        wait,
        num_train,
        config.batch_size,
    )
    return Program(
        create_state=create_state,
        place=place,
        train_steps=train_steps,
        lower=lower,
        evaluate=_build_evaluation(model, execution, wait, config.eval_batch_size),
        learning_rate=lambda state: float(schedule(_updates(state) - 1) * state.plateau_state.scale),
        advance_plateau=lambda state, value: dataclasses.replace(
            state, plateau_state=next_plateau(state.plateau_state, np.float32(value))
        ),
        model=model,
        execution=execution,
    )


def _updates(state: TrainState) -> jax.Array:
    """The optimizer's steps so far: fewer than the state's where steps were skipped."""
    return optax.tree.get_all_with_path(state.opt_state, "count")[0][1]


def _place(x: Any, execution: Execution) -> jax.Array:
    """An array on each device; `jax.device_put` would gather it from all processes to compare it."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(x), execution))
    x = np.asarray(x)
    return jax.make_array_from_process_local_data(execution.replicated, x, x.shape)


def _take(split: DeviceSplit, indices: jax.Array, execution: Execution, image_shape: tuple[int, ...]):
    """A batch, spread over the devices; an index of -1 is padding."""
    indices = jax.lax.with_sharding_constraint(indices, execution.by_batch)
    return split.images[indices].reshape(-1, *image_shape), split.labels[indices], indices >= 0


def _build_wait(execution: Execution) -> Callable[[Metrics], None]:
    """What is done after a program has been started: nothing, but on a CPU."""
    if not execution.on_cpu:
        return lambda sums: None
    limit_freed_memory = machine.keep_large_blocks(len(execution.mesh.local_devices))

    def wait(sums: Metrics) -> None:
        # XLA:CPU runs a program's devices as threads of one pool. Several programs in flight can fill it with
        # threads that wait for each other's sum over the devices, and after 40 s the process is aborted.
        jax.block_until_ready(sums)
        limit_freed_memory()

    return wait


def _equal_parts(steps: int, limit: int) -> int:
    """The most steps, at most `limit`, into which an epoch divides evenly: so one program is compiled, not two.

    Where that would be fewer than ten, parts that are equal but for the last one.
    """
    whole = next(n for n in range(min(limit, steps), 0, -1) if steps % n == 0)
    return whole if whole >= min(limit, 10) else -(-steps // -(-steps // limit))


def _build_training(
    train_step: Callable[..., Any],
    image_shape: tuple[int, ...],
    execution: Execution,
    wait: Callable[[Metrics], None],
    num_train: int,
    batch_size: int,
):
    """`Program.train_steps` and `Program.lower`."""
    steps_per_epoch = -(-num_train // batch_size)
    at_once = _equal_parts(steps_per_epoch, execution.steps_at_once)

    @functools.partial(jax.jit, out_shardings=execution.replicated)
    def epoch_order(state: TrainState, epoch: jax.Array):
        return step.epoch_order(state.key, epoch, num_train, batch_size)

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="count", compiler_options=execution.compiler_options)
    def take_steps(
        carry: tuple[TrainState, Metrics], split: DeviceSplit, order: jax.Array, first: jax.Array, *, count: int
    ):
        def body(carry: tuple[TrainState, Metrics], indices: jax.Array):
            state, sums = carry
            state, batch_sums = train_step(state, *_take(split, indices, execution, image_shape), split.teacher_params)
            return (state, sums + batch_sums), None

        # Not a scan of one: XLA:CPU runs the gradient of a convolution some 46 times slower inside a scan.
        if count == 1:
            return body(carry, order[first])[0]
        return jax.lax.scan(body, carry, jax.lax.dynamic_slice_in_dim(order, first, count))[0]

    def train_steps(state: TrainState, sums: Metrics, split: DeviceSplit, epoch: int, first: int):
        order = epoch_order(state, np.int32(epoch))
        while first < steps_per_epoch:
            count = min(at_once, steps_per_epoch - first)
            state, sums = take_steps((state, sums), split, order, first, count=count)
            wait(sums)
            first += count
            yield first, state, sums

    def lower(state: TrainState, sums: Metrics, split: DeviceSplit) -> jax.stages.Lowered:
        order = jax.ShapeDtypeStruct((steps_per_epoch, batch_size), jnp.int32, sharding=execution.replicated)
        return take_steps.lower((state, sums), split, order, np.int32(0), count=at_once)

    return train_steps, lower


def _build_evaluation(model: ResNet, execution: Execution, wait: Callable[[Metrics], None], batch_size: int):
    """`Program.evaluate`."""
    batch_size = -(-batch_size // execution.mesh.size) * execution.mesh.size

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=execution.compiler_options)
    def evaluate_batch(sums: Metrics, params: Any, split: DeviceSplit, indices: jax.Array):
        return sums + step.eval_step(params, *_take(split, indices, execution, model.spec.image_shape), model=model)

    def evaluate(params: Any, split: DeviceSplit, between: Callable[[], None] = lambda: None) -> Metrics:
        sums = jax.tree.map(lambda x: _place(x, execution), Metrics.empty())
        for indices in np.asarray(step.pad_to_batches(jnp.arange(len(split.images)), batch_size)):
            sums = evaluate_batch(sums, params, split, indices)
            wait(sums)
            between()
        chex.assert_equal(int(sums.count), len(split.images))
        return sums

    return evaluate
