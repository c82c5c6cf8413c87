"""Training from a config to a run directory: epochs, jit, devices, clocks and logging, and only here."""

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from cifar_flax import checkpoint, config as config_lib, optim, plots, step
from cifar_flax.augment import augment
from cifar_flax.config import Config
from cifar_flax.data import Cifar10
from cifar_flax.errors import UserError
from cifar_flax.metrics import NO_STEP, Metrics
from cifar_flax.model import ResNet, num_params
from cifar_flax.step import TrainState

# With fewer images a device, a step's fixed costs outweigh its work.
_MIN_IMAGES_PER_DEVICE = 32
# ResNet-18 trains at 11 images/s on one core of a 2-core machine; only used to warn beforehand.
_RESNET18_IMAGES_PER_SECOND_PER_CORE = 11


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""


# ---- devices -------------------------------------------------------------------------------------


def use_cores_as_devices() -> None:
    """Makes each CPU core a device of its own; to be called before JAX is first used.

    One device with all cores as its threads is slower: many of its operations use one thread.
    """
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def make_mesh(batch_size: int) -> Mesh:
    """A 1-D mesh named `data` of as many devices as divide the batch into useful parts."""
    limit = min(jax.device_count(), max(1, batch_size // _MIN_IMAGES_PER_DEVICE))
    size = next(n for n in range(limit, 0, -1) if batch_size % n == 0)
    return Mesh(np.array(jax.devices()[:size]), ("data",))


def activation_dtype(precision: str) -> Any:
    """The dtype that a config's `precision` means on this machine."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)


# ---- epochs --------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Images and labels on the devices, whole on each: uint8 `[N, 32, 32, 3]` and int32 `[N]`."""

    images: jax.Array
    labels: jax.Array


class Program(NamedTuple):
    """What a config compiles to.

    Attributes:
      create_state: () to the state before the first step, on the devices.
      place: puts images and labels on the devices.
      train_epoch: (state, split, epoch, on_progress) to (state, metrics); the state is donated.
      evaluate: (params, split) to metrics.
      advance_plateau: (state, value) to the state after the plateau has seen an epoch's value.
      model: the network.
      mesh: the devices.
    """

    create_state: Callable[[], TrainState]
    place: Callable[..., Any]
    train_epoch: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Split], Metrics]
    advance_plateau: Callable[[TrainState, float], TrainState]
    model: ResNet
    mesh: Mesh


def build_model(config: Config, dtype: Any = jnp.float32) -> ResNet:
    """The network of a config."""
    return ResNet(config.widths, config.strides, zero_init_residual=config.zero_init_residual, dtype=dtype)


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
    optimizer = optim.build_optimizer(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    plateau = optim.build_plateau(
        patience=config.patience,
        factor=config.factor,
        rtol=config.rtol,
        cooldown=config.cooldown,
        min_scale=config.min_scale,
    )
    train_step = functools.partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment=functools.partial(
            augment,
            crop_padding=config.crop_padding,
            rotate_degrees=config.rotate_degrees,
            cutout_size=config.cutout_size,
            random_flip=config.random_flip,
        ),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
    )

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

    @functools.partial(jax.jit, donate_argnums=0)
    def scan_epoch(state: TrainState, split: Split, epoch: jax.Array):
        def body(carry, indices):
            return train_batch(carry, split, indices), None

        return jax.lax.scan(body, (state, Metrics.empty()), epoch_order(state, epoch))[0]

    jit_order = jax.jit(epoch_order, out_shardings=replicated)

    @functools.partial(jax.jit, donate_argnums=0)
    def jit_batch(carry: tuple[TrainState, Metrics], split: Split, order: jax.Array, i: jax.Array):
        return train_batch(carry, split, order[i])

    def loop_epoch(state: TrainState, split: Split, epoch: int, on_progress: Callable[[int, Metrics], None]):
        order = jit_order(state, epoch)
        carry = (state, jax.device_put(Metrics.empty(), replicated))
        for i in range(steps_per_epoch):
            carry = jit_batch(carry, split, order, i)
            on_progress(i + 1, carry[1])
        return carry

    def train_epoch(state: TrainState, split: Split, epoch: int, on_progress: Callable[[int, Metrics], None]):
        # XLA:CPU runs the gradient of a convolution inside a scan some 46 times slower than outside.
        if jax.default_backend() == "cpu":
            return loop_epoch(state, split, epoch, on_progress)
        return scan_epoch(state, split, epoch)

    eval_batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size

    @jax.jit
    def jit_evaluate(params: Any, split: Split):
        indices = step.pad_to_batches(jnp.arange(len(split.images)), eval_batch_size)

        def body(sums, batch):
            return sums + step.eval_step(params, *take(split, batch), model=model), None

        return jax.lax.scan(body, Metrics.empty(), indices)[0]

    def evaluate(params: Any, split: Split) -> Metrics:
        sums = jit_evaluate(params, split)
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
        train_epoch=train_epoch,
        evaluate=evaluate,
        advance_plateau=lambda state, value: state.replace(
            plateau_state=next_plateau(state.plateau_state, jnp.float32(value))
        ),
        model=model,
        mesh=mesh,
    )


# ---- the run -------------------------------------------------------------------------------------


def _summary(sums: Metrics, name: str) -> dict[str, Any]:
    loss, correct, count = float(sums.loss_sum), int(sums.correct), int(sums.count)
    return {
        f"{name}_loss": loss / count,
        f"{name}_acc": 100 * correct / count,
        f"{name}_correct": correct,
        f"{name}_total": count,
    }


def _line(row: dict[str, Any], name: str) -> str:
    return (
        f"{name.capitalize()} Loss: {row[f'{name}_loss']:.3f} | {name.capitalize()} Acc: "
        f"{row[f'{name}_acc']:.3f}% ({row[f'{name}_correct']}/{row[f'{name}_total']})"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The epochs in a `metrics.jsonl`; a last line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class _Run:
    """The files of a run directory but for its checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config_path = folder / "config.json"
        self.metrics_path = folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.log: TextIO | None = None

    def say(self, line: str) -> None:
        """A line to the terminal and to `train.log`."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self.log, flush=True)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def keep_rows(self, epoch: int) -> None:
        """Forgets epochs after `epoch`, of which there is no checkpoint."""
        self.rows = [row for row in read_rows(self.metrics_path) if row["epoch"] <= epoch]
        _write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in self.rows))


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def holds_run(folder: Path) -> bool:
    """Whether a directory holds a run that `fit` could resume."""
    return (folder / "config.json").exists()


def read_config(folder: Path) -> Config:
    """The config of the run in a directory.

    Raises:
      UserError: there is none, or it is not one.
    """
    path = folder / "config.json"
    try:
        return config_lib.from_json(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no run: {path.name} is missing; start one without --resume") from error


def fit(config: Config, data: Cifar10, folder: Path, *, resume: bool = False, tensorboard: bool = False) -> list[dict]:
    """Trains, evaluates and writes checkpoints until `config.epochs` epochs are done.

    Args:
      config: what to do.
      data: the data set that `config.data` names.
      folder: the run directory, made if absent.
      resume: go on from the newest checkpoint in `folder`, if there is one.
      tensorboard: write TensorBoard events as well.

    Returns:
      The rows of `metrics.jsonl`, one an epoch.

    Raises:
      UserError: the directory holds a run and `resume` is false, or cannot be written; a checkpoint
        cannot be restored; a loss or gradient is not finite.
    """
    run = _Run(folder)
    if holds_run(folder) and not resume:
        raise UserError(f"{folder} already holds a run: go on with it with --resume, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_atomically(run.config_path, config_lib.to_json(config))
        log = open(folder / "train.log", "a")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another --out") from error
    manager = checkpoint.open_manager(folder / "checkpoints", config.monitor)
    with log, _event_writer(folder, tensorboard) as events:
        run.log = log
        try:
            _train(config, data, run, manager, events)
        finally:
            manager.close()
    return run.rows


def _train(config: Config, data: Cifar10, run: _Run, manager: Any, events: Any) -> None:
    num_train = len(data.train_images) - config.val_size
    program = build_program(config, num_train)
    state = program.create_state()
    first_epoch = 1
    if manager.latest_step() is not None:
        first_epoch = manager.latest_step() + 1
        state = program.place(checkpoint.restore(manager, first_epoch - 1, state))
    run.keep_rows(first_epoch - 1)
    _announce(config, program, state, run, num_train, first_epoch)

    train = program.place(Split(data.train_images[:num_train], data.train_labels[:num_train]))
    held_out = {"test": program.place(Split(data.test_images, data.test_labels))}
    if config.val_size:
        validation = Split(data.train_images[num_train:], data.train_labels[num_train:])
        held_out = {"val": program.place(validation)} | held_out

    for epoch in range(first_epoch, config.epochs + 1):
        start = time.perf_counter()
        learning_rate = config.learning_rate * float(state.plateau_state.scale)
        run.say(f"Epoch: {epoch}")
        with _progress_bar(epoch, config, num_train) as on_progress:
            state, sums = program.train_epoch(state, train, epoch, on_progress)
            row = {"epoch": epoch, **_summary(sums, "train")}
        _check_finite(sums, epoch)
        train_seconds = time.perf_counter() - start
        for name, split in held_out.items():
            row |= _summary(program.evaluate(state.ema_params, split), name)
        if epoch > config.warmup_epochs:
            state = program.advance_plateau(state, row[config.monitor])
        seconds = time.perf_counter() - start
        row |= {
            "learning_rate": learning_rate,
            "seconds": round(seconds, 3),
            "images_per_second": round(num_train / train_seconds, 1),
        }
        for name in ("train", *held_out):
            run.say(_line(row, name))
        run.say(f"Learning Rate: {learning_rate:.6g} | {row['images_per_second']:.0f} images/s | {seconds:.1f} s")
        run.add(row)
        checkpoint.save(manager, epoch, state, row, config)
        plots.plot_curves(run.rows, run.folder / "loss_accuracy.png", _title(config))
        if events is not None:
            for name, value in row.items():
                events.add_scalar(name, value, epoch)
    _conclude(config, run)


def _announce(config: Config, program: Program, state: TrainState, run: _Run, num_train: int, first_epoch: int) -> None:
    devices = program.mesh.devices
    source = "CIFAR-10" if config.data == "full" else "the embedded SAMPLE of CIFAR-10"
    run.say(f"Run: {run.folder}" + (f", resumed after epoch {first_epoch - 1}" if first_epoch > 1 else ""))
    run.say(f"Devices: {devices.size} x {devices.flat[0].device_kind}, activations in {program.model.dtype}")
    run.say(f"Model: {config.preset}, {num_params(state.params):,} parameters, LayerNorm only")
    run.say(f"Data: {source}, {num_train:,} training images, {config.val_size:,} held out of them")
    if config.monitor == "test_loss":
        run.say("Note: --monitor test_loss lets the test set steer the learning rate")
    cores = len(os.sched_getaffinity(0))
    if jax.default_backend() == "cpu" and num_params(state.params) > 5_000_000:
        epochs_left = config.epochs - first_epoch + 1
        hours = epochs_left * num_train / (_RESNET18_IMAGES_PER_SECOND_PER_CORE * cores) / 3600
        run.say(f"Note: about {hours:.0f} hours on {cores} CPU cores; `--preset compact` takes about a fifteenth")


def _conclude(config: Config, run: _Run) -> None:
    if not run.rows:
        return
    best, last = max(row["test_acc"] for row in run.rows), run.rows[-1]
    run.say(f"Best Acc is :  {best:.4g}")
    sample = "" if config.data == "full" else "; figures of a sample, not of CIFAR-10"
    run.say(
        f"Last epoch ({last['epoch']}): test accuracy {last['test_acc']:.2f}%, test loss {last['test_loss']:.3f} "
        f"(the best epoch is chosen on the test set, the last one is not{sample})"
    )


def _title(config: Config) -> str:
    return f"{config.preset}, " + ("CIFAR-10" if config.data == "full" else "embedded SAMPLE of CIFAR-10")


def _check_finite(sums: Metrics, epoch: int) -> None:
    if int(sums.bad_step) != NO_STEP:
        raise NonFiniteError(
            f"loss or gradient is not finite at epoch {epoch}, step {int(sums.bad_step) + 1}: the last good "
            "checkpoint is kept; start anew with a lower --learning-rate"
        )


class _progress_bar:  # noqa: N801, used as a function
    """A bar on a terminal, nothing elsewhere; on the way it stops a run whose loss is not finite."""

    def __init__(self, epoch: int, config: Config, num_train: int):
        self.epoch, self.batch_size, self.num_train = epoch, config.batch_size, num_train
        self.bar = tqdm(
            total=num_train, desc=f"Epoch {epoch}/{config.epochs}", unit=" images", leave=False, disable=None
        )

    def __enter__(self) -> Callable[[int, Metrics], None]:
        return self._on_progress

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def _on_progress(self, steps: int, sums: Metrics) -> None:
        if steps % 10 == 0:  # looking at a value waits for it; every tenth step costs nothing
            _check_finite(sums, self.epoch)
            self.bar.set_postfix_str(f"loss {float(sums.loss_sum) / int(sums.count):.3f}", refresh=False)
            self.bar.update(min(steps * self.batch_size, self.num_train) - self.bar.n)


def _event_writer(folder: Path, wanted: bool) -> Any:
    import contextlib

    if not wanted:
        return contextlib.nullcontext()
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install 'cifar-flax[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
