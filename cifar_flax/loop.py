"""Training from a config to a run directory: epochs, jit, devices, clocks and logging, and only here."""

import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from cifar_flax import checkpoint, interrupts, optim, plots, rundir, step, weights
from cifar_flax import config as config_lib
from cifar_flax.augment import augment
from cifar_flax.checkpoint import DamagedError, Progress
from cifar_flax.config import Config
from cifar_flax.data import Cifar10
from cifar_flax.errors import Interrupted, NonFiniteError, UserError
from cifar_flax.metrics import NO_STEP, Metrics
from cifar_flax.model import ResNet, layer_table
from cifar_flax.step import TrainState

# With fewer images a device, a step's fixed costs outweigh its work.
_MIN_IMAGES_PER_DEVICE = 32
# ResNet-18 trains at 11 images/s on one core of a 2-core machine; only used to warn beforehand.
_RESNET18_IMAGES_PER_SECOND_PER_CORE = 11


# ---- devices -------------------------------------------------------------------------------------


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_cpu() -> None:
    """Makes each core a device and keeps freed memory; to be called before JAX is first used.

    One device with all cores as its threads is slower: many of its operations use one thread.
    """
    jax.config.update("jax_num_cpu_devices", num_cores())
    _keep_freed_memory()


# mallopt's parameters and values, from glibc's malloc.h.
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def _keep_freed_memory() -> None:
    """Tells glibc, where that is the C library, to keep what a step frees for the next step.

    It would return a step's large temporary arrays to the system, which then gives them back page
    by page: a quarter of the compact network's step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in _MALLOPT.values():
        if mallopt is not None:
            mallopt(parameter, value)


def make_mesh(batch_size: int) -> Mesh:
    """A 1-D mesh named `data` of as many devices as divide the batch into useful parts."""
    limit = min(jax.device_count(), max(1, batch_size // _MIN_IMAGES_PER_DEVICE))
    size = next(n for n in range(limit, 0, -1) if batch_size % n == 0)
    return Mesh(np.array(jax.devices()[:size]), ("data",))


def _compiler_options() -> dict[str, str]:
    """Makes XLA:CPU honour the model's optimization barriers, which it otherwise drops before it fuses."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}


def activation_dtype(precision: str) -> Any:
    """The dtype that a config's `precision` means on this machine."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)


# ---- epochs --------------------------------------------------------------------------------------


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
      evaluate: (params, split, between) to metrics; `between` is called now and then.
      learning_rate: state to the rate of the step that led to it.
      advance_plateau: (state, value) to the state after the plateau has seen an epoch's value.
      model: the network.
      mesh: the devices.
    """

    create_state: Callable[[], TrainState]
    place: Callable[..., Any]
    train_steps: Callable[[TrainState, Metrics, Split, int, int], Iterator[tuple[int, TrainState, Metrics]]]
    evaluate: Callable[..., Metrics]
    learning_rate: Callable[[TrainState], float]
    advance_plateau: Callable[[TrainState, float], TrainState]
    model: ResNet
    mesh: Mesh


def build_model(config: Config, dtype: Any = jnp.float32) -> ResNet:
    """The network of a config."""
    return ResNet(config.widths, config.strides, zero_init_residual=config.zero_init_residual, dtype=dtype)


def _configured_train_step(config: Config, model: ResNet, optimizer: optax.GradientTransformation):
    """`step.train_step` of a state and a batch alone."""
    configured_augment = functools.partial(
        augment,
        crop_padding=config.crop_padding,
        rotate_degrees=config.rotate_degrees,
        cutout_size=config.cutout_size,
        random_flip=config.random_flip,
    )
    return functools.partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment=configured_augment,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
    )


def build_program(config: Config, num_train: int) -> Program:
    """Builds the functions of a run; nothing is compiled before it is first called.

    Args:
      config: the run's config.
      num_train: images in the training split.
    """
    mesh = make_mesh(config.batch_size)
    replicated, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    model = build_model(config, activation_dtype(config.precision))
    steps_per_epoch = -(-num_train // config.batch_size)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    schedule = optim.warmup_schedule(config.learning_rate, warmup_steps)
    muon_schedule = optim.warmup_schedule(config.muon_learning_rate, warmup_steps)
    optimizer = optim.build_optimizer(
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        muon_learning_rate=muon_schedule if config.muon_learning_rate else None,
        muon_weight_decay=config.muon_weight_decay,
    )
    plateau = optim.build_plateau(
        patience=config.patience,
        factor=config.factor,
        rtol=config.rtol,
        cooldown=config.cooldown,
        min_scale=config.min_scale,
    )
    train_step = _configured_train_step(config, model, optimizer)

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

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options())
    def jit_batch(carry: tuple[TrainState, Metrics], split: Split, order: jax.Array, i: jax.Array):
        return train_batch(carry, split, order[i])

    def wait(sums: Metrics):
        # XLA:CPU runs a program's devices as threads of one pool. Several programs in flight can fill it with
        # threads that wait for each other's sum over the devices, and after 40 s the process is aborted.
        if jax.default_backend() == "cpu":
            jax.block_until_ready(sums)

    def train_steps(state: TrainState, sums: Metrics, split: Split, epoch: int, first: int):
        # XLA:CPU runs the gradient of a convolution inside a scan some 46 times slower than outside.
        if jax.default_backend() != "cpu":
            if first < steps_per_epoch:
                yield steps_per_epoch, *scan_steps((state, sums), split, epoch, first)
            return
        order = jit_order(state, epoch)
        for i in range(first, steps_per_epoch):
            state, sums = jit_batch((state, sums), split, order, i)
            wait(sums)
            yield i + 1, state, sums

    eval_batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size

    @functools.partial(jax.jit, donate_argnums=0)
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
        evaluate=evaluate,
        learning_rate=lambda state: float(schedule(state.step - 1) * state.plateau_state.scale),
        advance_plateau=lambda state, value: dataclasses.replace(
            state, plateau_state=next_plateau(state.plateau_state, jnp.float32(value))
        ),
        model=model,
        mesh=mesh,
    )


# ---- the run -------------------------------------------------------------------------------------


def fit(
    config: Config,
    data: Cifar10,
    folder: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    checkpoint_every_minutes: float = 10.0,
) -> list[dict]:
    """Trains, evaluates and writes checkpoints until `config.epochs` epochs are done.

    Args:
      config: what to do.
      data: the data set that `config.data` names.
      folder: the run directory, made if absent; `rundir` says what is written there.
      resume: go on from the newest intact checkpoint in `folder`, if there is one.
      tensorboard: write TensorBoard events as well.
      checkpoint_every_minutes: write checkpoints within an epoch too, where it takes longer than this.

    Returns:
      The rows of `metrics.jsonl`, one an epoch.

    Raises:
      UserError: the directory holds a run and `resume` is false, is in use or cannot be written; no
        checkpoint is intact, or the newest is of another config; a loss or gradient is not finite.
      Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    rundir.claim(folder, resume=resume)
    try:
        with open(folder / rundir.LOG, "a") as log, contextlib.ExitStack() as stack:
            rundir.lock(log, folder)
            return _fit(config, data, folder, log, stack, tensorboard, checkpoint_every_minutes)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(
            f"--out {folder} cannot be written: {error.strerror or error}; mend that, then go on with --resume"
        ) from error


def _fit(
    config: Config,
    data: Cifar10,
    folder: Path,
    log: IO[str],
    stack: contextlib.ExitStack,
    tensorboard: bool,
    checkpoint_every_minutes: float,
) -> list[dict]:
    def say(line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=log, flush=True)

    num_train = len(data.train_images) - config.val_size
    program = build_program(config, num_train)
    progress = _restore(config, program, folder / rundir.CHECKPOINTS, say)
    progress = progress or Progress(_initial_state(config, program), program.place(Metrics.empty()), 0, [])
    rundir.write_config(folder, config)
    rundir.write_rows(folder, progress.rows)
    events = stack.enter_context(_event_writer(folder)) if tensorboard else None
    for line in _greeting(config, program, folder, num_train, progress):
        say(line)

    train = program.place(Split(data.train_images[:num_train], data.train_labels[:num_train]))
    held_out = {"test": program.place(Split(data.test_images, data.test_labels))}
    if config.val_size:
        held_out = {
            "val": program.place(Split(data.train_images[num_train:], data.train_labels[num_train:]))
        } | held_out

    writer = stack.enter_context(checkpoint.Writer(folder / rundir.CHECKPOINTS, config))
    bar = stack.enter_context(_progress_bar(config, num_train, progress))
    stopped = stack.enter_context(interrupts.as_flag())
    saved_at = time.monotonic()

    def on_pause(progress: Progress) -> None:
        """Between two steps: saves where it is time to, and ends the run where a signal asks for it."""
        nonlocal saved_at
        number = stopped()  # once: a signal may come at any time
        if number or time.monotonic() - saved_at > 60 * checkpoint_every_minutes:
            writer.save(progress)
            saved_at = time.monotonic()
        if number:
            raise Interrupted(number)

    while len(progress.rows) < config.epochs:
        say(f"Epoch: {len(progress.rows) + 1}")
        progress = _run_epoch(config, program, progress, train, held_out, bar, on_pause)
        row = progress.rows[-1]
        for name in ("train", *held_out):
            say(_result(row, name))
        say(f"Learning Rate: {row['learning_rate']:.6g} | {row['images_per_second']:.0f} images/s")
        if row["skipped_steps"]:
            say(f"Skipped: {row['skipped_steps']} steps whose loss or gradient was not finite")
        rundir.require_in_place(log, folder)
        rundir.append_row(folder, row)
        writer.save(progress)
        saved_at = time.monotonic()
        plots.plot_curves(progress.rows, folder / rundir.CURVES, f"{config.preset}, {_DATA_NAMES[config.data]}")
        if events is not None:
            for name, value in row.items():
                events.add_scalar(name, value, row["epoch"])
        if (number := stopped()) and len(progress.rows) < config.epochs:
            raise Interrupted(number)
    for line in _farewell(config, progress.rows):
        say(line)
    return progress.rows


def _restore(config: Config, program: Program, folder: Path, say: Callable[[str], None]) -> Progress | None:
    """The newest intact checkpoint, placed on the devices; None where there is none at all.

    Raises:
      UserError: none of those that are there is intact, or it is of another config.
    """
    found = checkpoint.find(folder)
    like = jax.eval_shape(program.create_state)
    for path in reversed(found):
        try:
            checkpoint.verify(path)
        except DamagedError as error:
            say(f"Note: {error}")
            continue
        if differences := config_lib.differences(config, checkpoint.read_config(path)):
            raise UserError(
                f"config.json was changed since checkpoint {path} was made: {differences}; put it back, "
                "or start a new run in another --out"
            )
        progress = checkpoint.restore(path, like)
        return progress._replace(state=program.place(progress.state), sums=program.place(progress.sums))
    if found:
        raise UserError(f"no checkpoint in {folder} is intact: delete that directory to begin again")
    return None


def _initial_state(config: Config, program: Program) -> TrainState:
    """The state before the first step, its parameters from `config.init` if that is given."""
    state = program.create_state()
    if not config.init:
        return state
    loaded = weights.load_weights(Path(config.init))
    if (loaded.config.widths, loaded.config.strides) != (config.widths, config.strides):
        raise UserError(
            f"--init {config.init} holds a network of widths {loaded.config.widths} and strides "
            f"{loaded.config.strides}, expected {config.widths} and {config.strides}: change --widths and --strides"
        )
    # Two copies: a donated buffer must not appear twice.
    return dataclasses.replace(state, params=program.place(loaded.params), ema_params=program.place(loaded.params))


def _run_epoch(
    config: Config,
    program: Program,
    progress: Progress,
    train: Split,
    held_out: dict[str, Split],
    bar: tqdm,
    on_pause: Callable[[Progress], None],
) -> Progress:
    """The rest of an epoch of training, its evaluations and the plateau's decision."""
    start = time.perf_counter()
    epoch, num_train = len(progress.rows) + 1, len(train.images)
    already = int(progress.sums.count)
    for steps, state, sums in program.train_steps(progress.state, progress.sums, train, epoch, progress.steps):
        progress = progress._replace(state=state, sums=sums, steps=steps)
        if config.on_nan == "stop":
            _check_finite(sums, epoch)  # waits for the step
        count = int(sums.count)
        bar.set_postfix_str(f"loss {float(sums.loss_sum) / max(count, 1):.3f}", refresh=False)
        bar.update((epoch - 1) * num_train + count - bar.n)
        on_pause(progress)
    state, sums = progress.state, progress.sums
    if int(sums.count) == 0:
        raise NonFiniteError(f"no step of epoch {epoch} had a finite loss and gradient: start with a lower rate")
    row = {"epoch": epoch, **_summarize(sums, "train"), "skipped_steps": int(sums.skipped)}
    train_seconds = time.perf_counter() - start
    for name, split in held_out.items():
        row |= _summarize(program.evaluate(state.ema_params, split, lambda: on_pause(progress)), name)
    row["learning_rate"] = program.learning_rate(state)
    if epoch > config.warmup_epochs:
        state = program.advance_plateau(state, row[config.monitor])
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["images_per_second"] = round((row["train_total"] - already) / train_seconds, 1)
    return Progress(state, program.place(Metrics.empty()), 0, [*progress.rows, row])


def _summarize(sums: Metrics, name: str) -> dict[str, Any]:
    loss, correct, count = float(sums.loss_sum), int(sums.correct), int(sums.count)
    return {
        f"{name}_loss": loss / count,
        f"{name}_acc": 100 * correct / count,
        f"{name}_correct": correct,
        f"{name}_total": count,
    }


def _check_finite(sums: Metrics, epoch: int) -> None:
    if int(sums.bad_step) != NO_STEP:
        raise NonFiniteError(
            f"loss or gradient is not finite at epoch {epoch}, step {int(sums.bad_step) + 1}: stopped, the last "
            "good checkpoint is kept; start a new run with a lower rate, or go on with --resume --on-nan skip"
        )


# ---- what the person sees ------------------------------------------------------------------------

_DATA_NAMES = {"full": "CIFAR-10", "sample": "embedded SAMPLE of CIFAR-10"}


def _progress_bar(config: Config, num_train: int, progress: Progress) -> tqdm:
    """A bar over the whole run on a terminal; nothing at all in a pipe or a file."""
    return tqdm(
        total=config.epochs * num_train,
        initial=len(progress.rows) * num_train + int(progress.sums.count),
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=None,
    )


def _greeting(config: Config, program: Program, folder: Path, num_train: int, progress: Progress) -> Iterator[str]:
    done, steps = len(progress.rows), progress.steps
    within = f" and {steps} steps" if steps else ""
    yield f"Run: {folder}" + (f", resumed after epoch {done}{within}" if done or steps else "")
    devices = program.mesh.devices
    yield f"Devices: {devices.size} x {devices.flat[0].device_kind}, activations in {program.model.dtype}"
    size = sum(layer.num_params for layer in layer_table(program.model))
    yield f"Model: {config.preset}, {size:,} parameters, LayerNorm only"
    held_out = f", {config.val_size:,} held out for validation" if config.val_size else ""
    yield f"Data: {_DATA_NAMES[config.data]}, {num_train:,} training images{held_out}"
    if config.monitor == "test_loss":
        yield "Note: --monitor test_loss lets the test set steer the learning rate"
    if jax.default_backend() == "cpu" and size > 5_000_000:
        images = (config.epochs - done) * num_train
        hours = images / (_RESNET18_IMAGES_PER_SECOND_PER_CORE * num_cores()) / 3600
        yield (
            f"Note: about {hours:.2g} hours on {num_cores()} CPU cores; "
            "`--preset compact` is a small network that takes a tenth of that"
        )


def _result(row: dict[str, Any], name: str) -> str:
    title = name.capitalize()
    accuracy = f"{row[f'{name}_acc']:.3f}% ({row[f'{name}_correct']}/{row[f'{name}_total']})"
    return f"{title} Loss: {row[f'{name}_loss']:.3f} | {title} Acc: {accuracy}"


def _farewell(config: Config, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"Best Acc is :  {max(row['test_acc'] for row in rows):.4g}"
    last = rows[-1]
    yield (
        f"Last epoch ({last['epoch']}): test accuracy {last['test_acc']:.2f}%, test loss {last['test_loss']:.3f}. "
        "The best epoch is chosen on the test set; the last one is not."
    )
    if config.data == "sample":
        yield "These are figures of the embedded sample, not of CIFAR-10."


def _event_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
