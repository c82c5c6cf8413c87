"""Checkpoints of a run, by Orbax: complete or absent, the latest ones and the best one."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_flax.config import Config
from cifar_flax.errors import UserError
from cifar_flax.step import TrainState

LATEST_TO_KEEP = 2


def open_manager(folder: Path, monitor: str, *, read_only: bool = False) -> ocp.CheckpointManager:
    """A manager of `folder`, one checkpoint an epoch; close it, also after an error.

    Args:
      folder: made if absent.
      monitor: the metric whose smallest value marks the best checkpoint, which is kept beside the
        latest `LATEST_TO_KEEP`.
      read_only: change nothing, so that a run which is still training is not disturbed.
    """
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
        return ocp.CheckpointManager(folder.resolve(), options=options)
    policies = ocp.checkpoint_managers
    preservation = policies.AnyPreservationPolicy(
        [
            policies.LatestN(LATEST_TO_KEEP),
            policies.BestN(get_metric_fn=lambda row: -row[monitor], n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=preservation, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save(manager: ocp.CheckpointManager, epoch: int, state: TrainState, row: dict[str, Any], config: Config) -> None:
    """Starts writing the state after `epoch`; the state may be donated as soon as this returns."""
    manager.save(
        epoch,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_to_host(state)),
            config=ocp.args.JsonSave(dataclasses.asdict(config)),
        ),
        metrics=row,
    )


def restore(manager: ocp.CheckpointManager, epoch: int, like: TrainState) -> TrainState:
    """The state after `epoch`, on the host.

    Args:
      manager: from `open_manager`.
      epoch: one of `manager.all_steps()`.
      like: a state of the same structure, shapes and dtypes, or its `jax.eval_shape`.

    Raises:
      UserError: the checkpoint cannot be read, or is of another structure.
    """
    abstract = jax.eval_shape(lambda state: dataclasses.replace(state, key=jax.random.key_data(state.key)), like)
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_drop_closed_loops, hook)
    try:
        restored = manager.restore(epoch, args=ocp.args.Composite(state=ocp.args.StandardRestore(template)))["state"]
    except Exception as error:  # Orbax and TensorStore raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {manager.directory}/{epoch} cannot be restored: {reason}") from error
    sys.unraisablehook = hook
    shapes, expected = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (restored, template))
    if shapes != expected:  # Orbax would cut or pad the arrays to fit
        raise UserError(f"checkpoint {manager.directory}/{epoch} cannot be restored: it is of another network")
    return dataclasses.replace(restored, key=jax.random.wrap_key_data(restored.key))


def _drop_closed_loops(hook: Any, unraisable: Any) -> None:
    """After a failed read TensorStore's threads would print a traceback each, about a loop that is closed."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        hook(unraisable)


def _to_host(state: TrainState) -> TrainState:
    """A copy: on CPU the arrays would share the memory of buffers that the next step is given."""
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(state))
