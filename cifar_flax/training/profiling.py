"""A trace of a few training steps, for programs that show where a step's time goes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from cifar_flax.config import Config, for_images
from cifar_flax.data import Dataset
from cifar_flax.distributed import ALONE
from cifar_flax.errors import UserError
from cifar_flax.training.beginning import begin
from cifar_flax.training.metrics import Metrics

_NUM_STEPS = 10


def claim(folder: Path) -> None:
    """Makes the folder, unless it holds a trace already or cannot be written: a `UserError`."""
    if (folder / "plugins").exists():
        raise UserError(f"--profile {folder} holds a trace already: choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {folder} cannot be written: {error.strerror}; choose another") from error


def profile(config: Config, dataset: Dataset, folder: Path, *, num_devices: int = 0) -> Path:
    """Traces ten training steps, or an epoch where that has fewer, after as many that compile and warm up.

    Args:
      config: the run whose steps they are.
      dataset: the images.
      folder: where the trace is written; made if absent.
      num_devices: how many devices share a batch; 0: as many as divide it.

    Returns:
      The file for Perfetto. XProf (`pip install xprof`) and TensorBoard read one beside it, and are given `folder`.

    Raises:
      UserError: as `claim`, and as for a run.
    """
    claim(folder)
    num_images = min(_NUM_STEPS * config.batch_size, len(dataset.train.images) - config.val_size)
    dataset = dataclasses.replace(dataset, train=dataset.train.take(np.arange(num_images))).without_test()
    config = dataclasses.replace(for_images(config, dataset.spec.image_size), epochs=2, val_size=0)
    beginning = begin(config, dataset, folder, num_devices=num_devices, job=ALONE, say=print)
    program = beginning.program

    def run(state, epoch: int):
        sums = program.place(Metrics.empty())
        *_, (_, state, _) = program.train_steps(state, sums, beginning.train, epoch, 0)
        return jax.block_until_ready(state)

    state = run(beginning.progress.state, 1)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would crowd out the rest
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        run(state, 2)
    (path,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    return path
