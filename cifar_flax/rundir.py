"""The files of a run directory but for its checkpoints.

config.json          the config
metrics.jsonl        one object an epoch
train.log            what was said
loss_accuracy.png    the curves so far
checkpoints/         see checkpoint.py
"""

import json
from pathlib import Path
from typing import Any

from cifar_flax import config as config_lib
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.errors import UserError

CONFIG, METRICS, LOG, CURVES, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "train.log",
    "loss_accuracy.png",
    "checkpoints",
)


def claim(folder: Path, *, resume: bool) -> None:
    """Makes sure that a run may be written into a directory, and makes it.

    Raises:
      UserError: it holds a run and `resume` is false, or it cannot be written.
    """
    held = [name for name in (CONFIG, METRICS, CHECKPOINTS) if (folder / name).exists()]
    if held and not resume:
        raise UserError(f"--out {folder} already holds a run: go on with it with --resume, or choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "a"):
            pass
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another") from error


def write_config(folder: Path, config: Config) -> None:
    """Writes `config.json`."""
    files.write_atomically(folder / CONFIG, config_lib.to_json(config))


def read_config(folder: Path) -> Config:
    """The config of the run in a directory.

    Raises:
      UserError: there is none, or it is not one.
    """
    try:
        return config_lib.from_json((folder / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"{folder} holds no run: no {CONFIG} can be read there; start one without --resume") from error
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """Adds an epoch to `metrics.jsonl`."""
    with open(folder / METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The epochs in `metrics.jsonl`; a last line that was cut short is left out."""
    path = folder / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def truncate_rows(folder: Path, last_epoch: int) -> list[dict[str, Any]]:
    """Removes from `metrics.jsonl` the epochs after `last_epoch`, and returns the others."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= last_epoch]
    files.write_atomically(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
