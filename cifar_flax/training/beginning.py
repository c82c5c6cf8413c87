"""Where a run begins: what it runs on, and the newest intact checkpoint or the first state."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cifar_flax import config as config_lib
from cifar_flax import machine
from cifar_flax.config import Config
from cifar_flax.data import CIFAR10, Dataset
from cifar_flax.data.assemble import digest
from cifar_flax.distributed import Job
from cifar_flax.errors import UserError
from cifar_flax.execution import Execution, resolve
from cifar_flax.network.build import build_model, checked
from cifar_flax.network.model import Layer, layer_table
from cifar_flax.training import checkpoint, messages, rundir, trained
from cifar_flax.training.checkpoint import DamagedError, Progress
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import DeviceSplit, Program, build_program
from cifar_flax.training.step import TrainState
from cifar_flax.training.trained import Trained


class Beginning(NamedTuple):
    """All that a run's epochs need.

    Attributes:
      config: what to do; with the teacher's digest, if there is a teacher.
      program: its compiled functions.
      progress: where it goes on.
      train: the images to train on, on the devices.
      held_out: by name, `val` and `test`, the images that are only evaluated; none that is empty.
    """

    config: Config
    program: Program
    progress: Progress
    train: DeviceSplit
    held_out: dict[str, DeviceSplit]


def begin(
    config: Config,
    dataset: Dataset,
    folder: Path,
    *,
    num_devices: int,
    job: Job,
    say: Callable[[str], None],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Beginning:
    """Finds out where a run goes on, and on what; and says so. As of `loop.fit`, for arguments and errors."""
    _require(dataset, config)
    num_train = len(dataset.train.images) - config.val_size
    if job.processes > 1:
        job.require_equal({"data set": digest(dataset.train, dataset.test)})
    teacher = job.together(lambda: _load_teacher(config, dataset))
    if teacher is not None:
        job.require_equal({"--teacher": teacher.digest})
        config = dataclasses.replace(config, teacher_digest=teacher.digest)
    newest, before = job.of_first(lambda: _newest_intact(config, dataset, folder / rundir.CHECKPOINTS, say))
    execution = _resolve(config, before, num_devices, say)
    model = build_model(config, execution, dataset.spec)
    layers = layer_table(model)
    job.together(lambda: require_memory(config, layers, execution))
    for each in (model, *([] if teacher is None else [build_model(teacher.config, execution, teacher.spec)])):
        execution = checked(each, execution, config.batch_size // execution.mesh.size, say)
    job.require_equal(execution.record())
    teaching = teacher and build_model(teacher.config, execution, teacher.spec)
    program = build_program(config, num_train, execution, teaching, dataset.spec, augment)
    if newest:
        progress = _restore(program, Path(newest), job)
    else:
        progress = Progress(_initial_state(config, program, job, say), program.place(Metrics.empty()), 0, [])
    for line in messages.greeting(config, dataset, layers, execution, folder, progress):
        say(line)
    return Beginning(config, program, progress, *_place_splits(program, dataset, num_train, teacher))


def _load_teacher(config: Config, dataset: Dataset) -> Trained | None:
    """The network that teaches, if there is one.

    Raises:
      UserError: there is none where the config says, or it is another one than when the run began.
    """
    if not config.teacher:
        return None
    teacher = trained.load(config.teacher, "--teacher")
    if config.teacher_digest not in ("", teacher.digest):
        raise UserError(
            f"--teacher {config.teacher} is another network than when this run began: put the one back whose "
            f"parameters have the SHA-256 {config.teacher_digest[:12]}, or start a new run in another --out"
        )
    if difference := teacher.spec.difference(dataset.spec):
        raise UserError(
            f"--teacher {config.teacher} was trained on {teacher.spec.name}, and this run is on {dataset.spec.name} "
            f"({difference}): expected a network of the same data set"
        )
    return teacher


def in_random_order(dataset: Dataset) -> Dataset:
    """The data set with its training images in an order whose last ones are of all classes, as those of CIFAR-10 are.

    Files hold images class by class as a rule: the last ones, which `val_size` holds out, would be of one class.
    """
    if dataset.spec == CIFAR10:
        return dataset
    order = np.random.default_rng(0).permutation(len(dataset.train.images))
    return dataclasses.replace(dataset, train=dataset.train.take(order))


def _require(dataset: Dataset, config: Config) -> None:
    """Refuses arrays that are not what the data set says, before anything is computed of them: a `UserError`."""
    for name, split in {"training": dataset.train, "test": dataset.test}.items():
        if name == "training" or len(split.images):  # there need be no test images
            dataset.spec.check_images(split.images, f"{name} images")
        dataset.spec.check_labels(split.labels, len(split.images), f"{name} labels")
    config_lib.require_enough(config, len(dataset.train.images))


def _place_splits(
    program: Program, dataset: Dataset, num_train: int, teacher: Trained | None
) -> tuple[DeviceSplit, dict[str, DeviceSplit]]:
    """The images to train on, and by name those that are only evaluated, without empty ones; on the devices."""
    teacher_params = None if teacher is None else teacher.params
    train = DeviceSplit(dataset.train.images[:num_train], dataset.train.labels[:num_train], teacher_params)
    held_out = {
        "val": DeviceSplit(dataset.train.images[num_train:], dataset.train.labels[num_train:]),
        "test": DeviceSplit(dataset.test.images, dataset.test.labels),
    }
    return program.place(train), {name: program.place(split) for name, split in held_out.items() if len(split.images)}


def _newest_intact(
    config: Config, dataset: Dataset, folder: Path, say: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
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
        checkpoint.require_spec(path, dataset.spec)
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
    precision = before.get("precision", config.precision)
    execution = resolve(precision, config.batch_size, num_devices, deterministic=config.deterministic)
    now = execution.record()
    if changed := [
        f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]:
        say(f"Note: saved on another machine ({'; '.join(changed)}): the same run, rounded otherwise")
    if idle := jax.device_count() - execution.mesh.size if not execution.on_cpu and not num_devices else 0:
        say(f"Note: {idle} of {jax.device_count()} devices are idle: --batch-size {config.batch_size} does not divide")
    return execution


# Of the layers' float32 outputs: what XLA:CPU keeps for the gradient and works with, and a block of freed memory that
# did not fit again; measured with both networks.
_MEMORY_OF_OUTPUTS = 3.0
_OTHER_MEMORY = 10**9  # the data set, JAX, and what it has compiled


def require_memory(config: Config, layers: Sequence[Layer], execution: Execution) -> None:
    """Refuses, before anything slow, a batch whose step a CPU's memory cannot hold: a `UserError`."""
    there = machine.memory()
    if not execution.on_cpu or there is None:
        return
    an_image = _MEMORY_OF_OUTPUTS * 4 * sum(math.prod(layer.shape) for layer in layers)
    others = _OTHER_MEMORY + 4 * 8 * sum(layer.num_params for layer in layers)
    processes = jax.process_count()  # each with its part of the batch
    if (needed := an_image * config.batch_size / processes + others) > there:
        fits = int((there - others) / an_image)
        advice = f"choose {processes * fits} or less" if fits >= 1 else "choose smaller --widths or --image-size"
        raise UserError(
            f"--batch-size {config.batch_size} needs about {needed / 1e9:.0f} GB of memory for this network, and "
            f"there are {there / 1e9:.0f}: {advice}"
        )


def _restore(program: Program, path: Path, job: Job) -> Progress:
    """A checkpoint, placed on the devices."""
    progress = checkpoint.restore(path, jax.eval_shape(program.create_state), job)
    return progress._replace(state=program.place(progress.state), sums=program.place(progress.sums))


def _initial_state(config: Config, program: Program, job: Job, say: Callable[[str], None]) -> TrainState:
    """The state before the first step, its parameters from `config.init` if that is given."""
    state = program.create_state()
    if not config.init:
        return state
    loaded = job.together(lambda: trained.load(config.init, "--init"))
    job.require_equal({"--init": loaded.digest})
    if loaded.config.norm != config.norm:
        raise UserError(f"--init {config.init} had BatchNorm: it is explained, not trained, but can be a --teacher")
    if build_model(loaded.config).blocks() != program.model.blocks():
        ours, theirs = (
            f"widths {x.widths}, strides {x.strides} and blocks {x.blocks or 'two in each'}"
            for x in (config, loaded.config)
        )
        raise UserError(
            f"--init {config.init} holds a network of {theirs}, expected {ours}: change --widths, --strides and "
            "--blocks, or give its --preset"
        )
    params = loaded.params
    if loaded.spec.class_names != program.model.spec.class_names:
        params = params | {"linear": jax.device_get(state.params["linear"])}
        say(f"Note: --init {config.init} knows other classes: all of it is kept but its last layer, which begins anew")
    elif (loaded.spec.mean, loaded.spec.std) != (program.model.spec.mean, program.model.spec.std):
        say(
            f"Note: --init {config.init} has seen images normalised by mean {loaded.spec.mean} and deviation "
            f"{loaded.spec.std}, and sees others now: it begins with a lower accuracy than it had"
        )
    # Two copies: a donated buffer must not appear twice.
    return dataclasses.replace(state, params=program.place(params), ema_params=program.place(params))
