"""What the tests of processes share, and what they run: `processes.py eight`, or as `train.py` with its flags."""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from cifar_flax import cli, distributed
from cifar_flax import config as config_lib


def first_batch(config, execution):
    """The images of the first step of a run on the sample, as the network is given them, float `[B, 32, 32, 3]`."""
    import jax

    from cifar_flax import data
    from cifar_flax.training import step
    from cifar_flax.training.program import build_augment

    images = data.load_cifar10(source="sample").train.images

    @jax.jit
    def batch(images):
        key = jax.random.key(config.seed)
        order = step.epoch_order(key, 1, len(images), config.batch_size)
        indices = jax.lax.with_sharding_constraint(order[0], execution.by_batch)
        return build_augment(config, 32)(jax.random.fold_in(key, 0), data.CIFAR10.normalize(images[indices]))

    return batch(jax.make_array_from_process_local_data(execution.replicated, images, images.shape))


def assert_same_run(ours, theirs):
    """The newest training states and the rows without their clocks, of two run directories, bit for bit."""
    import chex
    import jax

    from cifar_flax.training import checkpoint, rundir
    from cifar_flax.training.program import build_program

    def outcome(folder):
        like = jax.eval_shape(build_program(rundir.read_config(folder), 1000).create_state)
        state = checkpoint.restore(checkpoint.find(folder / rundir.CHECKPOINTS)[-1], like).state
        clocks = ("seconds", "images_per_second")
        rows = [{k: v for k, v in row.items() if k not in clocks} for row in rundir.read_rows(folder)]
        return state.replace(key=jax.random.key_data(state.key)), rows

    (state, rows), (expected, expected_rows) = outcome(ours), outcome(theirs)
    assert rows == expected_rows
    chex.assert_trees_all_equal(state, expected)


def join(arguments: list[str]) -> None:
    """Two processes: saves their first batch, then trains on other images in process 1.

    With --stuck a run goes on until process 1 is stuck, with --full until that one's device is out of memory.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    distributed.add_flags(parser)
    flags = vars(parser.parse_known_args(arguments)[0])
    out = flags.pop("out")
    settings = distributed.from_flags(flags)
    with distributed.joined(settings) as job:
        import jax.numpy as jnp
        from jax.experimental import multihost_utils

        from cifar_flax import data
        from cifar_flax.execution import resolve
        from cifar_flax.training import loop, rundir

        config, sample = config_lib.PRESETS["smoke"], data.load_cifar10(source="sample")
        faults = {
            "--stuck": lambda *arguments: time.sleep(1000),
            "--full": lambda *arguments: jnp.zeros(2**49, jnp.int8),
        }
        fault = next((faults[flag] for flag in faults if flag in arguments), None)
        if fault is None:
            batch = multihost_utils.process_allgather(first_batch(config, resolve("float32", 64, 2)), tiled=True)
            if job.is_first:
                np.save("batch.npy", batch)
            sample.train.images[0, 0, 0, 0] += job.process
        elif not job.is_first:
            loop.check_finite = fault
        chosen = config if fault is None else dataclasses.replace(rundir.read_config(out), epochs=10)
        loop.fit(chosen, sample, out, resume=fault is not None, job=job)


def compare_eight() -> None:
    """Trains an epoch on one device and on eight; prints what the test compares, as JSON."""
    import jax

    from cifar_flax import data
    from cifar_flax.execution import resolve
    from cifar_flax.training import checkpoint, loop
    from cifar_flax.training.program import build_program

    assert jax.device_count() == 8
    smoke = {"preset": "smoke", "widths": (8,), "strides": (2,), "epochs": 1, "precision": "float32"}
    smoke |= {"learning_rate": 0.02, "muon_learning_rate": 0.008}  # at higher ones a rounding error soon grows
    config, sample = config_lib.from_flags(smoke), data.load_cifar10(source="sample")
    rows, states = [], []
    for number in (1, 8):
        with contextlib.redirect_stdout(sys.stderr):
            rows += loop.fit(config, sample, Path(str(number)), num_devices=number)
        like = jax.eval_shape(build_program(config, 1000).create_state)
        states.append(checkpoint.restore(Path(str(number)) / "checkpoints" / "1", like).state.params)
    batches = [first_batch(config, resolve("float32", 64, number)) for number in (1, 8)]
    differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), *states)
    found = {
        "rows": rows,
        "difference": max(jax.tree.leaves(differences)),
        "same images": bool((np.asarray(batches[0]) == np.asarray(batches[1])).all()),
        "images a device": [batch.sharding.shard_shape(batch.shape)[0] for batch in batches],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: compare_eight() if sys.argv[1:] == ["eight"] else join(sys.argv[1:])))
