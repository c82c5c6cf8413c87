"""Training from a config to a run directory: epochs and logging, and only here."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
from tqdm import tqdm

from cifar_flax import machine, plots
from cifar_flax.config import Config
from cifar_flax.data import Cifar10, require_images, require_labels
from cifar_flax.distributed import ALONE, Job
from cifar_flax.errors import Interrupted, NonFiniteError, UserError
from cifar_flax.execution import Execution, resolve
from cifar_flax.network import cpu, weights
from cifar_flax.network.model import NUM_CLASSES, Layer, ResNet, layer_table
from cifar_flax.training import checkpoint, interrupts, rundir
from cifar_flax.training.checkpoint import DamagedError, Progress
from cifar_flax.training.metrics import NO_STEP, Metrics, smoothing_entropy
from cifar_flax.training.program import Program, Split, build_model, build_program
from cifar_flax.training.step import TrainState, kernel_norm
from cifar_flax.training.trained import Network, load_network

# ResNet-18 trains at some 22 images/s on a core that multiplies in bfloat16; only used to warn beforehand.
_RESNET18_IMAGES_PER_SECOND_PER_CORE = 22


def fit(
    config: Config,
    data: Cifar10,
    folder: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    checkpoint_every_minutes: float = 10.0,
    num_devices: int = 0,
    job: Job = ALONE,
) -> list[dict]:
    """Trains, evaluates and writes checkpoints until `config.epochs` epochs are done.

    Args:
      config: what to do.
      data: the data set that `config.data` names; without `config.test` no row has a test figure.
      folder: the run directory, made if absent; `rundir` says what is written there.
      resume: go on from the newest intact checkpoint in `folder`, if there is one.
      tensorboard: write TensorBoard events as well.
      checkpoint_every_minutes: write checkpoints within an epoch too, where it takes longer than this.
      num_devices: how many share a batch; 0 for as many as divide it into useful parts.
      job: the processes that train together, all with the same arguments; `folder` is process 0's alone.

    Returns:
      The rows of `metrics.jsonl`, one an epoch.

    Raises:
      UserError: the directory holds a run and `resume` is false, is in use or cannot be written; no
        checkpoint is intact, or the newest is of another config; a loss or gradient is not finite; there are
        fewer devices; the processes have other data.
      Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    try:
        with contextlib.ExitStack() as stack:
            log = job.together(lambda: _open_log(folder, resume, stack) if job.is_first else None)
            return _fit(config, data, folder, log, stack, tensorboard, checkpoint_every_minutes, num_devices, job)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(
            f"--out {folder} cannot be written: {error.strerror or error}; mend that, then go on with --resume"
        ) from error


def _open_log(folder: Path, resume: bool, stack: contextlib.ExitStack) -> IO[str]:
    """The log of a run, which makes this process the only one to write into its directory."""
    rundir.claim(folder, resume=resume)
    log = stack.enter_context((folder / rundir.LOG).open("a"))
    rundir.lock(log, folder)
    return log


def _fit(
    config: Config,
    data: Cifar10,
    folder: Path,
    log: IO[str] | None,
    stack: contextlib.ExitStack,
    tensorboard: bool,
    checkpoint_every_minutes: float,
    num_devices: int,
    job: Job,
) -> list[dict]:
    """`fit`; without a log, in another process than the first, nothing is said or written."""

    def say(line: str) -> None:
        if log is None:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=log, flush=True)

    data = data if config.test else data.without_test()
    _require(data, config)
    num_train = len(data.train_images) - config.val_size
    if job.processes > 1:
        job.require_equal({"data set": _digest(data)})
    teacher = job.together(lambda: _load_teacher(config))
    if teacher is not None:
        job.require_equal({"--teacher": teacher.digest})
        config = dataclasses.replace(config, teacher_digest=teacher.digest)
    program, execution, progress = _begin(config, num_train, folder, num_devices, teacher, job, say)
    if log is not None:
        rundir.write_config(folder, config)
        rundir.write_rows(folder, progress.rows)
    train, held_out = _place_splits(program, data, num_train, teacher)
    save, publish = _keeper(config, folder, log, stack, tensorboard, execution)
    bar = stack.enter_context(_progress_bar(config, num_train, progress, hidden=log is None))
    stopped = stack.enter_context(interrupts.as_flag())
    saved_at = time.monotonic()

    def on_pause(progress: Progress) -> None:
        """Between two steps: saves where it is time to, and ends the run where a signal asks for it."""
        nonlocal saved_at
        number = job.agreed(stopped())  # once: a signal may come at any time
        if number or time.monotonic() - saved_at > 60 * checkpoint_every_minutes:
            save(progress)
            saved_at = time.monotonic()
        if number:
            raise Interrupted(number)

    while len(progress.rows) < config.epochs:
        say(f"Epoch: {len(progress.rows) + 1}")
        progress = _run_epoch(config, program, progress, train, held_out, bar, on_pause)
        for line in _results(progress.rows[-1], held_out):
            say(line)
        publish(progress)
        saved_at = time.monotonic()
        if (number := job.agreed(stopped())) and len(progress.rows) < config.epochs:
            raise Interrupted(number)
    for line in _farewell(config, progress.rows):
        say(line)
    return progress.rows


# ---- where a run begins --------------------------------------------------------------------------


def _begin(
    config: Config,
    num_train: int,
    folder: Path,
    num_devices: int,
    teacher: Network | None,
    job: Job,
    say: Callable[[str], None],
) -> tuple[Program, Execution, Progress]:
    """The program, what it runs on, and where it goes on: the newest checkpoint, or the start; says all three."""
    newest, before = job.of_first(lambda: _newest_intact(config, folder / rundir.CHECKPOINTS, say))
    execution = _resolve(config, before, num_devices, say)
    model = build_model(config, execution)
    layers = layer_table(model)
    job.together(lambda: _require_memory(config, layers, execution))
    execution = _checked(config, model, execution, say)
    job.require_equal(execution.record())
    program = build_program(config, num_train, execution, teacher and build_model(teacher.config, execution))
    if newest:
        progress = _restore(program, Path(newest), job)
    else:
        progress = Progress(_initial_state(config, program, job), program.place(Metrics.empty()), 0, [])
    for line in _greeting(config, layers, execution, folder, num_train, progress):
        say(line)
    return program, execution, progress


def _load_teacher(config: Config) -> Network | None:
    """The network that teaches, if there is one.

    Raises:
      UserError: there is none where the config says, or it is another one than when the run began.
    """
    if not config.teacher:
        return None
    teacher = load_network(Path(config.teacher), "--teacher")
    if config.teacher_digest not in ("", teacher.digest):
        raise UserError(
            f"--teacher {config.teacher} is another network than when this run began: put the one back whose "
            f"parameters have the SHA-256 {config.teacher_digest[:12]}, or start a new run in another --out"
        )
    return teacher


def _require(data: Cifar10, config: Config) -> None:
    """Refuses arrays that are no CIFAR-10, before anything is computed of them: a `UserError`."""
    require_images(data.train_images, "train_images")
    require_labels(data.train_labels, len(data.train_images), "train_labels")
    if len(data.test_images):  # there need be none
        require_images(data.test_images, "test_images")
    require_labels(data.test_labels, len(data.test_images), "test_labels")
    if config.val_size >= len(data.train_images):
        raise UserError(
            f"--val-size is {config.val_size}: expected fewer than the {len(data.train_images)} training images"
        )


def _place_splits(
    program: Program, data: Cifar10, num_train: int, teacher: Network | None
) -> tuple[Split, dict[str, Split]]:
    """The images to train on, and by name those that are only evaluated, without empty ones; on the devices."""
    teacher_params = None if teacher is None else teacher.params
    train = Split(data.train_images[:num_train], data.train_labels[:num_train], teacher_params)
    held_out = {
        "val": Split(data.train_images[num_train:], data.train_labels[num_train:]),
        "test": Split(data.test_images, data.test_labels),
    }
    return program.place(train), {name: program.place(split) for name, split in held_out.items() if len(split.images)}


def _digest(data: Cifar10) -> str:
    """A hash of all images and labels."""
    digest = hashlib.sha256()
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def _newest_intact(config: Config, folder: Path, say: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    """The newest intact checkpoint in a directory, and what it ran on; both empty where there is none at all.

    Raises:
      UserError: none of those that are there is intact, or it is of another config.
    """
    found = checkpoint.find(folder)
    for path in reversed(found):
        try:
            checkpoint.verify(path)
        except DamagedError as error:
            say(f"Note: {error}")
            continue
        checkpoint.require_config(path, config)
        epochs, _, steps = path.name.partition("+")
        if (begun := int(epochs) + bool(steps)) > config.epochs:
            raise UserError(
                f"--epochs is {config.epochs}: the run in {folder.parent} has begun epoch {begun}; "
                f"expected {begun} or more"
            )
        return str(path), checkpoint.read_execution(path)
    if found:
        raise UserError(f"no checkpoint in {folder} is intact: delete that directory to begin again")
    return "", {}


def _resolve(config: Config, before: dict[str, Any], num_devices: int, say: Callable[[str], None]) -> Execution:
    """What this machine runs a config on; in the dtype that the run began in."""
    execution = resolve(before.get("precision", config.precision), config.batch_size, num_devices)
    now = execution.record()
    if changed := [
        f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]:
        say(f"Note: saved on another machine ({'; '.join(changed)}): the same run, rounded otherwise")
    if idle := jax.device_count() - execution.mesh.size if not execution.on_cpu and not num_devices else 0:
        say(f"Note: {idle} of {jax.device_count()} devices are idle: --batch-size {config.batch_size} does not divide")
    return execution


def _checked(config: Config, model: ResNet, execution: Execution, say: Callable[[str], None]) -> Execution:
    """The execution; in float32 where this CPU's convolutions in bfloat16, of the run's own shapes, are wrong."""
    if not execution.on_cpu or execution.precision != "bfloat16":
        return execution
    images = config.batch_size // execution.mesh.size
    error = cpu.largest_error(cpu.convolutions(model), images, execution.compiler_options)
    if error < cpu.TOLERANCE:
        return execution
    say(f"Note: this machine's convolutions in bfloat16 are wrong, by {error:.2g} of the largest value: float32")
    return execution._replace(precision="float32")


# Of the layers' float32 outputs: what XLA:CPU keeps for the gradient and works with, and a block of freed memory that
# did not fit again; measured with both networks.
_MEMORY_OF_OUTPUTS = 3.0
_OTHER_MEMORY = 10**9  # the data set, JAX, and what it has compiled


def _require_memory(config: Config, layers: Sequence[Layer], execution: Execution) -> None:
    """Refuses, before anything slow, a batch whose step a CPU's memory cannot hold: a `UserError`."""
    there = machine.memory()
    if not execution.on_cpu or there is None:
        return
    an_image = _MEMORY_OF_OUTPUTS * 4 * sum(math.prod(layer.shape) for layer in layers)
    others = _OTHER_MEMORY + 4 * 8 * sum(layer.num_params for layer in layers)
    processes = jax.process_count()  # each with its part of the batch
    if (needed := an_image * config.batch_size / processes + others) > there:
        raise UserError(
            f"--batch-size {config.batch_size} needs about {needed / 1e9:.0f} GB of memory for this network, and "
            f"there are {there / 1e9:.0f}: choose {processes * max(1, int((there - others) / an_image))} or less"
        )


def _restore(program: Program, path: Path, job: Job) -> Progress:
    """A checkpoint, placed on the devices."""
    progress = checkpoint.restore(path, jax.eval_shape(program.create_state), job)
    return progress._replace(state=program.place(progress.state), sums=program.place(progress.sums))


def _initial_state(config: Config, program: Program, job: Job) -> TrainState:
    """The state before the first step, its parameters from `config.init` if that is given."""
    state = program.create_state()
    if not config.init:
        return state
    loaded = job.together(lambda: weights.load_weights(Path(config.init)))
    job.require_equal({"--init": weights.digest(loaded.params)})
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
    row["relative_step"] = float(sums.relative_step_sum) / (progress.steps - int(sums.skipped))
    row["kernel_norm"] = float(kernel_norm(state.params))
    if epoch > config.warmup_epochs:
        state = program.advance_plateau(state, row[config.monitor] - _floor(config))
    if broken := [name for name, value in row.items() if not math.isfinite(value)]:
        raise NonFiniteError(
            f"{broken[0]} is not finite after epoch {epoch}: stopped, the last good checkpoint is kept; "
            "start a new run with a lower rate"
        )
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["images_per_second"] = round((row["train_total"] - already) / train_seconds, 1)
    return Progress(state, program.place(Metrics.empty()), 0, [*progress.rows, row])


def _floor(config: Config) -> float:
    """What the monitored loss cannot fall below: the plateau looks at what is above it."""
    if config.monitor != "train_loss":
        return 0.0
    return smoothing_entropy(NUM_CLASSES, config.label_smoothing) * (1 - config.teacher_weight * bool(config.teacher))


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


def _progress_bar(config: Config, num_train: int, progress: Progress, *, hidden: bool) -> tqdm:
    """A bar over the whole run on a terminal; nothing at all in a pipe or a file."""
    return tqdm(
        total=config.epochs * num_train,
        initial=len(progress.rows) * num_train + int(progress.sums.count),
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=hidden or None,
    )


def _greeting(
    config: Config, layers: Sequence[Layer], execution: Execution, folder: Path, num_train: int, progress: Progress
) -> Iterator[str]:
    done, steps = len(progress.rows), progress.steps
    within = f" and {steps} steps" if steps else ""
    yield f"Run: {folder}" + (f", resumed after epoch {done}{within}" if done or steps else "")
    where = execution.record()
    spread = f" in {where['processes']} processes" if where["processes"] > 1 else ""
    yield f"Devices: {where['devices']} x {where['device']}{spread}, {where['precision']}"
    size = sum(layer.num_params for layer in layers)
    yield f"Model: {config.preset}, {size:,} parameters, LayerNorm only"
    if config.teacher:
        yield f"Teacher: {config.teacher}, SHA-256 {config.teacher_digest[:12]}"
    held_out = f", {config.val_size:,} held out for validation" if config.val_size else ""
    yield f"Data: {_DATA_NAMES[config.data]}, {num_train:,} training images{held_out}"
    if config.warmup_epochs >= config.epochs:
        yield (
            f"Note: the rate rises for --warmup-epochs {config.warmup_epochs}, and the run has {config.epochs}: "
            "it does not reach --learning-rate"
        )
    if config.monitor == "test_loss":
        yield "Note: --monitor test_loss lets the test set steer the learning rate"
    if execution.on_cpu and size > 5_000_000:
        images = (config.epochs - done) * num_train
        hours = images / (_RESNET18_IMAGES_PER_SECOND_PER_CORE * machine.num_cores()) / 3600
        yield (
            f"Note: about {hours:.2g} hours on {machine.num_cores()} CPU cores; "
            "`--preset compact` is a small network that takes a tenth of that"
        )


def _results(row: dict[str, Any], held_out: Iterable[str]) -> Iterator[str]:
    for name in ("train", *held_out):
        title = name.capitalize()
        accuracy = f"{row[f'{name}_acc']:.3f}% ({row[f'{name}_correct']}/{row[f'{name}_total']})"
        yield f"{title} Loss: {row[f'{name}_loss']:.3f} | {title} Acc: {accuracy}"
    yield f"Learning Rate: {row['learning_rate']:.6g} | {row['images_per_second']:.0f} images/s"
    if row["skipped_steps"]:
        yield f"Skipped: {row['skipped_steps']} steps whose loss or gradient was not finite"


def _farewell(config: Config, rows: list[dict[str, Any]]) -> Iterator[str]:
    last = rows[-1]
    if config.test:
        yield f"Best Acc is :  {max(row['test_acc'] for row in rows):.4g}"
        yield (
            f"Last epoch ({last['epoch']}): test accuracy {last['test_acc']:.2f}%, test loss {last['test_loss']:.3f}. "
            "The best epoch is chosen on the test set; the last one is not."
        )
    elif config.val_size:
        yield f"Last epoch ({last['epoch']}): {last['val_acc']:.2f}% of {last['val_total']:,} held-out images"
    if config.data == "sample":
        yield "These are figures of the embedded sample, not of CIFAR-10."


def _keeper(
    config: Config,
    folder: Path,
    log: IO[str] | None,
    stack: contextlib.ExitStack,
    tensorboard: bool,
    execution: Execution,
) -> tuple[Callable[[Progress], None], Callable[[Progress], None]]:
    """What keeps a run within an epoch, and what keeps and publishes a finished one; nothing without a log."""
    if log is None:
        return (lambda progress: None), (lambda progress: None)
    draw = _publisher(config, folder, stack, tensorboard)
    writer = stack.enter_context(checkpoint.Writer(folder / rundir.CHECKPOINTS, config, execution.record()))

    def publish(progress: Progress) -> None:
        rundir.require_in_place(log, folder)
        rundir.append_row(folder, progress.rows[-1])
        writer.save(progress)
        draw(progress.rows)

    return writer.save, publish


def _publisher(
    config: Config, folder: Path, stack: contextlib.ExitStack, tensorboard: bool
) -> Callable[[list[dict[str, Any]]], None]:
    """A function of the rows so far: draws the curves, while training goes on, and writes TensorBoard's events."""
    events = stack.enter_context(_event_writer(folder)) if tensorboard else None
    drawer = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    drawn: list[concurrent.futures.Future[None]] = []

    def finish() -> None:
        if drawn:
            drawn.pop().result()  # raises what went wrong

    def publish(rows: list[dict[str, Any]]) -> None:
        finish()
        title = f"{config.preset}, {_DATA_NAMES[config.data]}"
        drawn.append(drawer.submit(plots.plot_curves, list(rows), folder / rundir.CURVES, title))
        if events is not None:
            for name, value in rows[-1].items():
                events.add_scalar(name, value, rows[-1]["epoch"])

    stack.callback(finish)
    return publish


def _event_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
