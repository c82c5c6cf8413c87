"""Runs of several configs and seeds, each a process with a run directory of its own, and the table of their ends."""

import collections
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import scipy.stats

from cifar_flax import config as config_lib
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.errors import Interrupted, UserError
from cifar_flax.training import checkpoint, interrupts, rundir
from cifar_flax.training.checkpoint import DamagedError


class Run(NamedTuple):
    """One config with one seed.

    Attributes:
      trial: the trial's name, its flags as given.
      config: the config, with its seed.
      folder: the run directory.
      flags: of `cifar-flax train`, without `--out` and `--resume`.
    """

    trial: str
    config: Config
    folder: Path
    flags: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """The epochs that are done, at most those of the config; none where nothing was begun.

        Raises:
          UserError: the directory holds a run of another config.
        """
        if not (self.folder / rundir.CONFIG).exists():
            return []
        if differences := config_lib.differences(rundir.read_config(self.folder), self.config):
            raise UserError(f"{self.folder} holds another run: {differences}; choose another --out")
        return rundir.read_rows(self.folder)[: self.config.epochs]

    def is_done(self) -> bool:
        """Whether its last checkpoint is there and intact; rows alone do not say so: they are written before it."""
        if len(self.rows()) < self.config.epochs:
            return False
        try:
            checkpoint.verify(self.folder / rundir.CHECKPOINTS / str(self.config.epochs))
        except DamagedError:
            return False
        return True

    @property
    def output(self) -> Path:
        """The file of what the run prints."""
        return self.folder.with_name(f"{self.folder.name}.output")

    def command(self) -> list[str]:
        """The command that begins the run, or goes on with it."""
        words = [sys.executable, "-m", "cifar_flax", "train", "--out", str(self.folder), *self.flags]
        return [*words, "--resume"] if (self.folder / rundir.CONFIG).exists() else words


class Summary(NamedTuple):
    """A figure over the seeds of a trial.

    Attributes:
      values: by seed.
      mean: of the values.
      deviation: their sample standard deviation; None for a single one.
      half_width: of the 95% interval of the mean by Student's t; None for a single value.
    """

    values: dict[int, float]
    mean: float
    deviation: float | None
    half_width: float | None


def read_seeds(text: str) -> list[int]:
    """`0-2,7` as `[0, 1, 2, 7]`.

    Raises:
      ValueError: it is not so written, or a seed is there twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, separator, last = part.partition("-")
        found = range(int(first), int(last if separator else first) + 1)
        if not 1 <= len(found) <= 10_000:
            raise ValueError
        seeds += found
    if len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


def folder_name(trial: str) -> str:
    """The name of a trial's run directories, without the seed."""
    return re.sub(r"[^\w.,-]+", "_", trial).strip("-_")[:150] or "preset"


def summarize(values: Mapping[int, float]) -> Summary:
    """Mean, deviation and 95% interval of a figure by seed."""
    numbers = list(values.values())
    mean, count = statistics.mean(numbers), len(numbers)
    if count == 1:
        return Summary(dict(values), mean, None, None)
    deviation = statistics.stdev(numbers)
    half_width = float(scipy.stats.t.ppf(0.975, count - 1)) * deviation / count**0.5
    return Summary(dict(values), mean, deviation, half_width)


def figures(config: Config) -> list[str]:
    """The names of the numbers in each row of `metrics.jsonl`, in their order."""
    measured = ["loss", "accuracy", "correct", "total"]
    held_out = [split for split, there in (("val", config.val_size), ("test", config.test)) if there]
    return [
        "epoch",
        *(f"train_{name}" for name in measured),
        "skipped_steps",
        *(f"{split}_{name}" for split in held_out for name in measured),
        *("learning_rate", "relative_step", "kernel_norm", "seconds", "images_per_second"),
    ]


def summaries(runs: Sequence[Run], figure: str) -> dict[str, Summary]:
    """The last epoch's `figure`, one of `figures`, of the runs that are done, by trial, the highest mean first."""
    values: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for run in runs:
        if run.is_done():
            values[run.trial][run.config.seed] = run.rows()[-1][figure]
    found = {trial: summarize(seeds) for trial, seeds in values.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))


def table(found: Mapping[str, Summary], figure: str) -> str:
    """The summaries as text."""
    width = max([len("trial"), *map(len, found)])
    wide = max(12, len(figure) + 2)
    lines = [f"{'trial':<{width}}{figure:>{wide}}{'deviation':>11}{'95% interval':>24}{'seeds':>7}"]
    for trial, summary in found.items():
        deviation, interval = "-", "-"
        if summary.deviation is not None and summary.half_width is not None:
            deviation = f"{summary.deviation:.4f}"
            interval = f"{summary.mean - summary.half_width:.4f} - {summary.mean + summary.half_width:.4f}"
        lines.append(f"{trial:<{width}}{summary.mean:>{wide}.4f}{deviation:>11}{interval:>24}{len(summary.values):>7}")
    return "\n".join(lines)


def to_json(runs: Sequence[Run], found: Mapping[str, Summary], figure: str, command: Sequence[str]) -> str:
    """The summaries, and the config and epochs of each run, as JSON text."""
    trials = {trial: summary._asdict() for trial, summary in found.items()}
    each = [
        {"trial": run.trial, "folder": run.folder.name, "config": dataclasses.asdict(run.config), "rows": run.rows()}
        for run in runs
    ]
    content = {"command": command, "figure": figure, "trials": trials, "runs": each}
    return files.to_json(content, indent=1) + "\n"


def require_ours(path: Path, runs: Sequence[Run]) -> None:
    """Refuses a file that would be replaced, and that `to_json` has not written of some of these runs.

    Raises:
      UserError: so it is.
    """
    try:
        before = {run["folder"] for run in json.loads(path.read_bytes())["runs"]} if path.exists() else set()
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is no sweep's, and would be lost: move it, or choose another --out") from None
    if others := sorted(before - {run.folder.name for run in runs}):
        raise UserError(
            f"{path} has the run {others[0]}, which would be lost from it: give its --trial and --seeds too, "
            "or choose another --out"
        )


def start(run: Run, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts a run, or goes on with it, as a process that Ctrl-C in the terminal does not reach."""
    with open(run.output, "ab") as output:
        return subprocess.Popen(
            run.command(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )


def run_here(runs: Sequence[Run], places: Sequence[Mapping[str, str]], say: Callable[[str], None]) -> None:
    """Runs what is not done, one process at a time in each place; a run that fails does not stop the others.

    Args:
      runs: what to run.
      places: environment variables of each place, as `CUDA_VISIBLE_DEVICES`.
      say: prints a line.

    Raises:
      Interrupted: SIGTERM or Ctrl-C came; the processes were told, and have saved.
    """
    waiting, free = [run for run in runs if not run.is_done()], list(places)
    running: list[tuple[subprocess.Popen[bytes], Run, Mapping[str, str]]] = []
    with interrupts.as_flag() as stopped:
        try:
            while waiting or running:
                if number := stopped():
                    raise Interrupted(number)
                while waiting and free:
                    run, place = waiting.pop(0), free.pop(0)
                    say(f"begun: {run.folder.name}")
                    running.append((start(run, place), run, place))
                for entry in [entry for entry in running if entry[0].poll() is not None]:
                    running.remove(entry)
                    free.append(entry[2])
                    say(f"ended: {entry[1].folder.name}, exit code {entry[0].returncode}")
                time.sleep(0.1)
        finally:
            for process, *_ in running:
                process.terminate()
            for process, *_ in running:
                process.wait()
