"""The files of a run directory but for its checkpoints.

config.json          the config
data.json            what the data set is
metrics.jsonl        one object an epoch
train.log            what was said
loss_accuracy.png    the curves so far
checkpoints/         see checkpoint.py
watch.html           with --watch, the page of the run
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import IO, Any

from cifar_flax import config as config_lib
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.data import DataSpec
from cifar_flax.errors import UserError
from cifar_flax.network import weights

CONFIG, SPEC, METRICS, LOG, CURVES, CHECKPOINTS, WATCH = (
    "config.json",
    "data.json",
    "metrics.jsonl",
    "train.log",
    "loss_accuracy.png",
    "checkpoints",
    "watch.html",
)


def claim(folder: Path, *, resume: bool) -> bool:
    """Makes sure that a run may be written into a directory, and makes it; whether it was not there before.

    Raises:
      UserError: it holds a run and `resume` is false, or files that a run would replace; or it cannot be written.
    """
    held = [name for name in (CONFIG, METRICS, CHECKPOINTS) if (folder / name).exists()]
    if held and CONFIG not in held:
        raise UserError(
            f"--out {folder} holds {held[0]} but no {CONFIG}: put that back and --resume, or choose another"
        )
    if held and not resume:
        raise UserError(f"--out {folder} already holds a run: go on with it with --resume, or choose another")
    if not held and (others := [name for name in (SPEC, CURVES, WATCH) if (folder / name).exists()]):
        raise UserError(f"--out {folder} holds {others[0]}, which would be lost: move it, or choose another")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "a"):
            pass
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another") from error
    return made


def give_up(folder: Path, made: bool) -> None:
    """Takes away the log that `claim` made, and the directory if it was `made`, where no run has begun in it."""
    with contextlib.suppress(OSError, UserError), open(folder / LOG, "a") as log:
        lock(log, folder)
        if not log.tell() and not (folder / CONFIG).exists():
            (folder / LOG).unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()


def lock(log: IO[str], folder: Path) -> None:
    """Makes this process the only one to write into a run; ends when `log`, the open `LOG`, is closed.

    Raises:
      UserError: another process is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"--out {folder} is being trained by another process: wait for it, or choose another"
        ) from error


def require_in_place(log: IO[str], folder: Path) -> None:
    """Makes sure that the run's directory is still the one whose `LOG` is open.

    Raises:
      FileNotFoundError: it was moved or removed. Orbax would make another one in its place.
    """
    if not os.path.samestat(os.fstat(log.fileno()), os.stat(folder / LOG)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def write_config(folder: Path, config: Config) -> None:
    """Writes `config.json`."""
    files.write_atomically(folder / CONFIG, config_lib.to_json(config))


def read_config(folder: Path) -> Config:
    """The config of the run in a directory.

    Raises:
      UserError: there is none, or it is not one.
    """
    try:
        return config_lib.from_json((folder / CONFIG).read_bytes())
    except OSError as error:
        raise UserError(
            f"{folder} holds no run: no {CONFIG} can be read there; put it back, or start another run without --resume"
        ) from error
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error


def write_spec(folder: Path, spec: DataSpec) -> None:
    """Writes `data.json`."""
    files.write_atomically(folder / SPEC, spec.to_json())


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """Adds an epoch to `metrics.jsonl`."""
    with open(folder / METRICS, "a") as file:
        file.write(files.to_json(row) + "\n")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The epochs in `metrics.jsonl`; a last line that was cut short is left out.

    Raises:
      UserError: it holds something else.
    """
    path = folder / METRICS
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        return weights.check_history([json.loads(line) for line in lines if line.endswith("\n")])
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; --resume writes it anew") from error


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes `metrics.jsonl` anew."""
    files.write_atomically(folder / METRICS, "".join(files.to_json(row) + "\n" for row in rows))
