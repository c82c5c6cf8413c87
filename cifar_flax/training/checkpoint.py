"""Checkpoints of a run: complete or absent, every byte accounted for.

A checkpoint is a directory named after the epochs that it has finished, `12`, or `12+345` when it
is 345 steps into the thirteenth. In it:

state/           the training state and the epoch's metric sums, by Orbax
progress.json    the rows of metrics.jsonl so far
config.json      the run's config
data.json        what its data set is
execution.json   what it ran on: devices, dtype, version of jax
manifest.json    format, and size and SHA-256 sum of every other file
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cifar_flax import config as config_lib
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.data import CIFAR10, DataSpec
from cifar_flax.distributed import ALONE, Job
from cifar_flax.errors import UserError
from cifar_flax.network import weights
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.step import TrainState

FORMAT = "cifar_flax-checkpoint/1"
LATEST_TO_KEEP = 2
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**20


class DamagedError(UserError):
    """A checkpoint is not what was written; another one may be."""


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
      state: the training state.
      sums: metrics of the epoch in flight.
      steps: steps taken in the epoch in flight.
      rows: one dict for each finished epoch, as in metrics.jsonl.
    """

    state: TrainState
    sums: Metrics
    steps: int
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{len(self.rows)}+{self.steps}" if self.steps else str(len(self.rows))


def _place(path: Path) -> tuple[int, int] | None:
    """Epochs and steps that a checkpoint's name says, or None if it is no checkpoint."""
    match = re.fullmatch(r"(\d{1,9})(?:\+(\d{1,9}))?", path.name)
    return (int(match[1]), int(match[2] or 0)) if match and path.is_dir() else None


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint, intact or not, rather than a run whose name is a number."""
    return (path / _MANIFEST).exists() or (path / "state").exists()


def find(folder: Path) -> list[Path]:
    """The checkpoints in a directory, the newest last."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _place(path)), key=lambda path: _place(path) or (0, 0))


# ---- the manifest --------------------------------------------------------------------------------


def _files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


def _to_text(manifest: Any) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def _sum_of(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path) -> None:
    sums = {name: _sum_of(path / name, sync=True) for name in _files(path)}
    files.write_atomically(path / _MANIFEST, _to_text({"format": FORMAT, "files": sums}))


def verify(path: Path) -> None:
    """Makes sure that a checkpoint is what was written, byte by byte.

    Raises:
      DamagedError: it is not; the message names the file.
      UserError: it is of another format.
    """

    def refuse(reason: str) -> DamagedError:
        return DamagedError(f"checkpoint {path} is damaged: {reason}; use another one")

    try:
        with open(path / _MANIFEST, "rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES).decode()
        manifest = json.loads(content)
        if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
            raise UserError(f"checkpoint {path} is of format {manifest.get('format')!r}: this program reads {FORMAT}")
        expected: dict[str, Any] = manifest["files"]
        if content != _to_text(manifest) or not isinstance(expected, dict):
            raise refuse(f"{_MANIFEST} was changed")
        found = [name for name in _files(path) if name != _MANIFEST]
        if differing := sorted(set(found) ^ set(expected)):
            raise refuse(f"{differing[0]} is {'left over' if differing[0] in found else 'missing'}")
        for name in found:  # only files that are there: a manifest cannot point elsewhere
            if _sum_of(path / name) != expected[name]:
                raise refuse(f"{name} has another SHA-256 sum than {_MANIFEST} says")
    except OSError as error:
        raise refuse(f"{error.filename}: {error.strerror}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse(f"{_MANIFEST} cannot be read") from error


# ---- saving --------------------------------------------------------------------------------------


class Writer:
    """Writes a run's checkpoints, one at a time, while training goes on; a context manager.

    Args:
      folder: made if absent; what an interrupted writer left there is removed.
      config: the run's config, whose `plateau_monitor` tells the best epoch.
      spec: what its data set is.
      execution: what the run executes on, as JSON values.
    """

    def __init__(self, folder: Path, config: Config, spec: DataSpec, execution: dict[str, Any]):
        self._folder, self._config, self._spec, self._execution = folder, config, spec, execution
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, progress: Progress) -> None:
        """Starts writing a checkpoint; the state may be donated as soon as this returns.

        Raises:
          UserError: the one before could not be written.
        """
        self.wait()
        # What this process has on one device: several processes would have to run a program together.
        state, sums = jax.tree.map(_on_one_device, (progress.state, progress.sums))
        state, sums = _copy((dataclasses.replace(state, key=jax.random.key_data(state.key)), sums))
        self._pending = self._thread.submit(self._write, progress._replace(state=state, sums=sums))

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, progress: Progress) -> None:
        progress = progress._replace(state=jax.device_get(progress.state), sums=jax.device_get(progress.sums))
        part, path = self._folder / f".{progress.name}.part", self._folder / progress.name
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _refuse_full_disk(part, progress)
            with _hushed(), _orbax() as orbax:
                orbax.save(part.resolve() / "state", args=ocp.args.StandardSave(_tree(progress)))
            files.write_atomically(part / "progress.json", files.to_json(progress.rows))
            files.write_atomically(part / "config.json", config_lib.to_json(self._config))
            files.write_atomically(part / "data.json", self._spec.to_json())
            files.write_atomically(part / "execution.json", json.dumps(self._execution, indent=2) + "\n")
            write_manifest(part)
            self._remove(path)
            part.rename(path)
        except Exception as error:  # Orbax and TensorStore raise nearly anything
            shutil.rmtree(part, ignore_errors=True)
            raise UserError(
                f"checkpoint {path} could not be written: {_reason(error)}; the one before is kept: "
                "mend that, then go on with --resume"
            ) from error
        self._prune(progress)

    def _prune(self, progress: Progress) -> None:
        """Keeps what is newest, the latest finished epochs and the best one."""
        now = (len(progress.rows), progress.steps)
        finished = [path for path in find(self._folder) if "+" not in path.name and (_place(path) or now) <= now]
        best = min(progress.rows, key=lambda row: row[self._config.plateau_monitor], default={"epoch": 0})["epoch"]
        keep = {path.name for path in finished[-LATEST_TO_KEEP:]} | {str(best), progress.name}
        for path in find(self._folder):
            if path.name not in keep:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Removes a checkpoint by one rename, so that half of one is never there."""
        if path.exists():
            trash = self._folder / f".{path.name}.trash"
            shutil.rmtree(trash, ignore_errors=True)  # of a removal that failed halfway
            path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)


def _tree(progress: Progress) -> dict[str, Any]:
    return {"state": progress.state, "sums": progress.sums, "steps": np.int32(progress.steps)}


def _on_one_device(x: Any) -> Any:
    return x.addressable_data(0) if isinstance(x, jax.Array) else x


@jax.jit
def _copy(tree: Any) -> Any:
    """A copy on the devices, which takes no time there: what it is a copy of is donated to the next step."""
    return jax.tree.map(jnp.copy, tree)


# ---- restoring -----------------------------------------------------------------------------------


def read_config(path: Path) -> Config:
    """The config that a checkpoint was made with.

    Raises:
      UserError: it cannot be read.
    """
    return _noted(path, "config.json", config_lib.from_json)


def require_config(path: Path, config: Config) -> None:
    """Makes sure that a run's `config.json` is the config that its checkpoint was made with.

    Raises:
      UserError: they differ in what a resumption cannot change.
    """
    if differences := config_lib.differences(config, read_config(path)):
        raise UserError(
            f"config.json was changed since checkpoint {path} was made: {differences}; put it back, "
            "or start a new run in another --out"
        )


def read_spec(path: Path) -> DataSpec:
    """What the data set is that a checkpoint's run trained on; CIFAR-10 where an older version noted none.

    Raises:
      UserError: it cannot be read.
    """
    return _noted(path, "data.json", DataSpec.from_json, CIFAR10)


def require_spec(path: Path, spec: DataSpec) -> None:
    """Makes sure that a run goes on with the data set that its checkpoint was made with.

    Raises:
      UserError: it is another.
    """
    if (before := read_spec(path)) != spec:
        what = ""
        if before.name == spec.name:
            what = f"which differs: {before.difference(spec) or 'it has another mean or deviation'}"
        raise UserError(
            f"the run of checkpoint {path} was trained on {before.name}, and this data set is {spec.name}"
            f"{what and ', ' + what}: resume it with the data set that it began with"
        )


def read_execution(path: Path) -> dict[str, Any]:
    """What a checkpoint's run executed on, as `Execution.record` has it; empty if that was not noted.

    Raises:
      UserError: it cannot be read.
    """
    return _noted(path, "execution.json", lambda content: dict(json.loads(content)), {})


def _noted(path: Path, name: str, parse: Callable[[bytes], Any], absent: Any = None) -> Any:
    """What a file of a checkpoint says; `absent`, unless it is None, where there is none."""
    if absent is not None and not (path / name).exists():
        return absent
    try:
        return parse((path / name).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {path} cannot be restored: {error}") from error


def restore(path: Path, like: TrainState, job: Job = ALONE) -> Progress:
    """What a checkpoint holds, on the host.

    Args:
      path: one of `find`.
      like: a state of the same structure, shapes and dtypes, or its `jax.eval_shape`.
      job: the processes that need it: process 0 reads, and sends it to the others, which need not see its disk.

    Raises:
      UserError: it is damaged, of another format or of another network.
    """
    abstract = jax.eval_shape(lambda state: dataclasses.replace(state, key=jax.random.key_data(state.key)), like)
    empty = jax.eval_shape(Metrics.empty)
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _tree(Progress(abstract, empty, 0, [])))
    tree, rows = job.together(lambda: _read(path, template) if job.is_first else (template, []))
    tree, rows = job.broadcast(tree), job.of_first(lambda: rows)
    state = dataclasses.replace(tree["state"], key=jax.random.wrap_key_data(tree["state"].key))
    return Progress(state, tree["sums"], int(tree["steps"]), rows)


def _read(path: Path, template: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The tree and the rows of a checkpoint, whose tree must be as the template."""
    verify(path)
    try:
        with _hushed(), _orbax() as orbax:
            folder = path.resolve() / "state"
            saved = orbax.metadata(folder).item_metadata["sums"]  # an older version's has fewer of them
            sums = {name: value for name, value in vars(template["sums"]).items() if name in saved}
            tree = orbax.restore(folder, args=ocp.args.StandardRestore(template | {"sums": sums}))
        tree["sums"] = dataclasses.replace(template["sums"], **tree["sums"])
        rows = weights.check_history(json.loads((path / "progress.json").read_text()))
    except Exception as error:  # Orbax and TensorStore raise nearly anything
        raise UserError(f"checkpoint {path} cannot be restored: {_reason(error)}") from error
    shapes, expected = (jax.tree.map(lambda x: (np.shape(x), np.dtype(x.dtype)), t) for t in (tree, template))
    if shapes != expected:  # Orbax would cut or pad the arrays to fit
        raise UserError(f"checkpoint {path} cannot be restored: it is of another network")
    return tree, rows


# ---- Orbax ---------------------------------------------------------------------------------------


def _orbax() -> ocp.Checkpointer:
    """Orbax for this process alone, which would otherwise wait for all of them."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix="cifar_flax"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _refuse_full_disk(folder: Path, progress: Progress) -> None:
    """Raises what a full disk would, before Orbax runs into it halfway."""
    needed = 2**20 + sum(x.nbytes for x in jax.tree.leaves(_tree(progress)))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps Orbax's threads from printing tracebacks when one of them fails: the error itself is told.

    Some are printed only when Python lets go of the threads, so after a failure they stay hushed.
    """
    hook, loggers = sys.unraisablehook, [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    sys.unraisablehook = lambda unraisable: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    sys.unraisablehook = hook
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """A short line from an exception whose text may run over pages."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if os.strerror(errno.ENOSPC) in text:
        return os.strerror(errno.ENOSPC)
    return text.splitlines()[0][:200] if text else type(error).__name__
