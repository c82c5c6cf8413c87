"""A trace of a few training steps, for programs that show where a step's time goes."""

from pathlib import Path

import jax

from cifar_flax.config import Config
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import DeviceSplit, build_program

_NUM_STEPS = 10


def claim(folder: Path) -> None:
    """Makes the folder, unless it holds a trace already or cannot be written: a `UserError`."""
    if (folder / "plugins").exists():
        raise UserError(f"--profile {folder} holds a trace already: choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {folder} cannot be written: {error.strerror}; choose another") from error


def profile(config: Config, dataset: Dataset, folder: Path) -> Path:
    """Traces ten training steps, or an epoch where that has fewer, after as many that compile and warm up.

    Args:
      config: the run whose steps they are.
      dataset: the images.
      folder: where the trace is written; made if absent.

    Returns:
      The file for Perfetto. XProf (`pip install xprof`) and TensorBoard read one beside it, and are given `folder`.

    Raises:
      UserError: as `claim`.
    """
    claim(folder)
    num_images = min(_NUM_STEPS * config.batch_size, len(dataset.train.images) - config.val_size)
    program = build_program(config, num_images, spec=dataset.spec)
    split = program.place(DeviceSplit(dataset.train.images[:num_images], dataset.train.labels[:num_images]))

    def run(state, epoch: int):
        *_, (_, state, _) = program.train_steps(state, program.place(Metrics.empty()), split, epoch, 0)
        return jax.block_until_ready(state)

    state = run(program.create_state(), 1)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would crowd out the rest
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        run(state, 2)
    (path,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    return path
