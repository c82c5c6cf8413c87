"""Training from a config to a run directory: the epochs, and only here."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from cifar_flax import config as config_lib
from cifar_flax.config import Config
from cifar_flax.data import CIFAR10, Dataset, DataSpec
from cifar_flax.distributed import ALONE, Job
from cifar_flax.errors import Interrupted, NonFiniteError, UserError
from cifar_flax.training import interrupts, messages
from cifar_flax.training.beginning import Beginning, begin, in_random_order
from cifar_flax.training.checkpoint import Progress
from cifar_flax.training.metrics import NO_STEP, Metrics, smoothing_entropy
from cifar_flax.training.run import Run, Silent
from cifar_flax.training.step import kernel_norm


def fit(
    config: Config,
    dataset: Dataset,
    folder: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    checkpoint_every_minutes: float = 10.0,
    num_devices: int = 0,
    job: Job = ALONE,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    on_progress: Callable[[Beginning], None] = lambda state: None,
) -> list[dict[str, Any]]:
    """Trains, evaluates and writes checkpoints until `config.epochs` epochs are done.

    Args:
      config: what to do.
      dataset: the images; without `config.test` no row has a test figure.
      folder: the run directory, made if absent; `rundir` says what is written there.
      resume: go on from the newest intact checkpoint in `folder`, if there is one.
      tensorboard: write TensorBoard events as well.
      checkpoint_every_minutes: write checkpoints within an epoch too, where it takes longer than this.
      num_devices: how many share a batch; 0 for as many as divide it into useful parts.
      job: the processes that train together, all with the same arguments; `folder` is process 0's alone.
      augment: (key, normalised images `[B, H, W, 3]`) to images, a pure function that JAX can trace, in place of the
        config's crop, rotation, cutout and flip. It is not kept with the run: give the same to resume.
      on_progress: called in process 0 before the first step, and once an epoch is done.

    Returns:
      The rows of `metrics.jsonl`, one an epoch.

    Raises:
      UserError: the norm is affine; the directory holds a run and `resume` is false, is in use or cannot be written;
        no checkpoint is intact, or the newest is of another config or data set; a loss or gradient is not finite;
        there are fewer devices; the processes have other data.
      Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    if not isinstance(config, Config):
        raise UserError(f"the config is {config!r}: expected a Config, such as cifar_flax.PRESETS['smoke']")
    if not isinstance(dataset, Dataset):
        raise UserError(f"the data set is {dataset!r}: expected what cifar_flax.open_dataset returns")
    config_lib.validate(config)
    if config.image_size not in (0, size := dataset.spec.image_size):
        raise UserError(f"--image-size is {config.image_size}, and the images have {size} pixels: open them with it")
    if augment is not None:
        _require_augment(augment, size)
    if config.norm == "affine":
        raise UserError("a network with BatchNorm is explained, not trained: LayerNorm is the point of this program")
    dataset = dataset if config.test else dataset.without_test()
    if config.plateau_monitor == "test_loss" and not len(dataset.test.images):
        raise UserError(
            "--plateau-monitor is test_loss, and there are no test images: expected train_loss or val_loss"
        )
    if config.dataset in ("cifar10", "sample"):  # by default; the run's files say what it was
        used = (
            "sample"
            if dataset.is_sample
            else "cifar10"
            if _is_cifar10(dataset.spec)
            else config_lib.as_path(dataset.spec.name)
        )
        config = dataclasses.replace(config, dataset=used)
    dataset, config = in_random_order(dataset), config_lib.for_images(config, dataset.spec.image_size)
    try:
        with job.together(lambda: Run(folder, resume=resume) if job.is_first else Silent()) as run:
            beginning = begin(config, dataset, folder, num_devices=num_devices, job=job, say=run.say, augment=augment)
            run.begin(
                beginning.config,
                dataset,
                beginning.program.execution,
                beginning.progress,
                tensorboard=tensorboard,
            )
            rows = _run_epochs(beginning, run, checkpoint_every_minutes, job, on_progress)
            for line in messages.farewell(config, dataset, rows):
                run.say(line)
            return rows
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(
            f"--out {folder} cannot be written: {error.strerror or error}; mend that, then go on with --resume"
        ) from error


def _is_cifar10(spec: DataSpec) -> bool:
    """Whether it is CIFAR-10, be it of another size."""
    return (spec.name, spec.class_names) == (CIFAR10.name, CIFAR10.class_names)


def _require_augment(augment: Callable[[jax.Array, jax.Array], jax.Array], size: int) -> None:
    """Refuses a function that does not make images of images, as its shapes tell: a `UserError`."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    expected = f"expected a function of a key and float images [B, {size}, {size}, 3] that returns such images"
    try:
        found = jax.eval_shape(augment, jax.random.key(0), images)
    except Exception as error:  # what a person's function raises
        raise UserError(f"augment fails ({type(error).__name__}: {error}): {expected}") from error
    if getattr(found, "shape", None) != images.shape or not np.issubdtype(found.dtype, np.floating):
        raise UserError(f"augment returns {found}: {expected}")


def _run_epochs(
    beginning: Beginning,
    run: Run | Silent,
    checkpoint_every_minutes: float,
    job: Job,
    on_progress: Callable[[Beginning], None],
) -> list[dict[str, Any]]:
    config, progress, num_train = beginning.config, beginning.progress, len(beginning.train.images)
    saved_at = time.monotonic()

    def on_pause(progress: Progress) -> None:
        """Between two steps: saves where it is time to, and ends the run where a signal asks for it."""
        nonlocal saved_at
        number = job.agreed(stopped())  # once: a signal may come at any time
        if number or time.monotonic() - saved_at > 60 * checkpoint_every_minutes:
            run.save(progress)
            saved_at = time.monotonic()
        if number:
            raise Interrupted(number)

    with (
        messages.progress_bar(config, num_train, progress, hidden=isinstance(run, Silent)) as bar,
        interrupts.as_flag() as stopped,
    ):
        if job.is_first:
            on_progress(beginning)
        while len(progress.rows) < config.epochs:
            run.say(f"Epoch: {len(progress.rows) + 1}")
            progress = _run_epoch(beginning, progress, bar, on_pause)
            for line in messages.results(progress.rows[-1], beginning.held_out):
                run.say(line)
            run.publish(progress)
            saved_at = time.monotonic()
            if job.is_first:
                on_progress(beginning._replace(progress=progress))
            if (number := job.agreed(stopped())) and len(progress.rows) < config.epochs:
                raise Interrupted(number)
    return progress.rows


def _run_epoch(beginning: Beginning, progress: Progress, bar: tqdm, on_pause: Callable[[Progress], None]) -> Progress:
    """The rest of an epoch of training, its evaluations and the plateau's decision."""
    start = time.perf_counter()
    config, program, _, train, held_out = beginning
    epoch, num_train = len(progress.rows) + 1, len(train.images)
    already = int(progress.sums.count)
    # A step that was skipped before this process began has been accepted.
    begun = dataclasses.replace(progress.sums, bad_step=program.place(np.int32(NO_STEP)))
    for steps, state, sums in program.train_steps(progress.state, begun, train, epoch, progress.steps):
        progress = progress._replace(state=state, sums=sums, steps=steps)
        if config.on_nan == "stop":
            check_finite(sums, epoch, math.ceil(num_train / config.batch_size))  # waits for the step
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
        state = program.advance_plateau(
            state, row[config.plateau_monitor] - _floor(config, program.model.spec.num_classes)
        )
    if broken := [name for name, value in row.items() if not math.isfinite(value)]:
        raise NonFiniteError(
            f"{broken[0]} is not finite after epoch {epoch}: stopped, the last good checkpoint is kept; "
            "start a new run with a lower rate"
        )
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["images_per_second"] = round((row["train_total"] - already) / train_seconds, 1)
    return Progress(state, program.place(Metrics.empty()), 0, [*progress.rows, row])


def _floor(config: Config, num_classes: int) -> float:
    """What the monitored loss cannot fall below: the plateau looks at what is above it."""
    if config.plateau_monitor != "train_loss":
        return 0.0
    return smoothing_entropy(num_classes, config.label_smoothing) * (1 - config.teacher_weight * bool(config.teacher))


def _summarize(sums: Metrics, name: str) -> dict[str, Any]:
    loss, correct, count = float(sums.loss_sum), int(sums.correct), int(sums.count)
    return {
        f"{name}_loss": loss / count,
        f"{name}_accuracy": correct / count,
        f"{name}_correct": correct,
        f"{name}_total": count,
    }


def check_finite(sums: Metrics, epoch: int, steps: int) -> None:
    if (bad_step := int(sums.bad_step)) != NO_STEP:
        raise NonFiniteError(
            f"loss or gradient is not finite at epoch {epoch}, step {bad_step % steps + 1}: stopped, the last good "
            "checkpoint is kept; start a new run with a lower rate, or go on with --resume --on-nan skip"
        )
