"""Trains several configs with several seeds, and compares them: `cifar-flax sweep --seeds 0-4 --out runs/sweep`.

Each run is a `cifar-flax train` with a directory of its own below --out. The same command again goes on with what is
unfinished and skips what is done. The table is also in sweep.json, with every epoch of every run.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from cifar_flax import cli
from cifar_flax import config as config_lib
from cifar_flax.config import Config
from cifar_flax.errors import FailedRunsError, UserError, require_whole


def _seeds(text: str) -> list[int]:
    from cifar_flax.training import sweep  # with SciPy behind it, which --help does without

    return sweep.read_seeds(text)


_seeds.__name__ = "list of seeds"  # argparse names it in its messages


def _parser(prog: str) -> cli.Parser:
    parser = cli.Parser(
        prog,
        "Train several settings with several seeds, and compare them. Called again, it continues.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and sweep.json")
    parser.add_argument(
        "--seeds", type=_seeds, default=[0], metavar="0-4", help="seeds of each trial, as 0-4 or 0,1,7 (0)"
    )
    parser.add_argument(
        "--trial", action="append", metavar="FLAGS", help="flags of train for one trial; repeat it for more trials"
    )
    parser.add_argument(
        "--figure",
        help="what to compare: a name from metrics.jsonl (val_accuracy with --val-size, else test_accuracy)",
    )
    where = parser.add_argument_group("where to run: one after another, or")
    where.add_argument("--at-once", type=int, metavar="N", help="N at once on this machine")
    where.add_argument("--gpus", metavar="0,1", help="one at a time on each of these GPUs")
    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", type=Path, help="as in train")
    data.add_argument("--source", help="as in train")
    fields = {option.name for option in dataclasses.fields(Config)} - {"seed"}
    config_lib.add_flags(parser.rare("flags of train, for all trials"), fields)
    return parser


def _joined(argv: list[str]) -> list[str]:
    """With `--trial X` as `--trial=X`: argparse takes a trial of a single flag for that flag."""
    words, joined = iter(argv), []
    for word in words:
        trial = next(words, None) if word == "--trial" else None
        joined.append(word if trial is None else f"{word}={trial}")
    return joined


def _read_trial(text: str) -> dict[str, Any]:
    """A trial's flags as fields of a config; a trial has no seed of its own."""
    parser = cli.Parser("--trial")
    config_lib.add_flags(parser, {option.name for option in dataclasses.fields(Config)} - {"seed"})
    try:
        return vars(parser.parse_args(shlex.split(text)))
    except UserError as error:
        raise UserError(f"--trial {text!r}: {error}") from error


def _words(fields: dict[str, Any]) -> list[str]:
    """Fields of a config as flags."""
    words = []
    for name, value in fields.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words.append(f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return words


def _places(at_once: int | None, gpus: str | None) -> list[dict[str, str]]:
    """The environment variables of each place on this machine where a run can be."""
    if at_once is not None and gpus is not None:
        raise UserError("--at-once and --gpus are two places: give one of them")
    if at_once is not None:
        require_whole(at_once, "--at-once", 1)
    if gpus is None:
        return [{}] * (at_once or 1)
    names = gpus.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--gpus is {gpus}: expected each GPU's number once, separated by commas")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def _command(argv: list[str] | None, prog: str) -> None:
    flags = vars(_parser(prog).parse_args(_joined(sys.argv[1:] if argv is None else argv)))
    names = ("out", "seeds", "trial", "figure", "at_once", "gpus", "data_dir", "source")
    options = argparse.Namespace(**{name: flags.pop(name) for name in names})
    places = _places(options.at_once, options.gpus)
    where = [f"--data-dir={options.data_dir.absolute()}"] if options.data_dir else []
    where += [f"--source={options.source}"] if options.source else []

    from cifar_flax import files
    from cifar_flax.training import rundir, sweep

    runs: list[sweep.Run] = []
    for trial in options.trial or [""]:
        fields = flags | _read_trial(trial)
        for seed in options.seeds:
            config = config_lib.from_flags(fields | {"seed": seed})
            name = " ".join(trial.split()) or config.preset
            folder = options.out.absolute() / f"{sweep.folder_name(name)}-{seed}"
            runs.append(sweep.Run(name, config, folder, [*_words(fields | {"seed": seed}), *where]))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(
            "two --trial have the same flags, or names that begin alike: give each once, the short ones first"
        )
    common = [name for name in sweep.figures(runs[0].config) if all(name in sweep.figures(run.config) for run in runs)]
    figure = options.figure or next((name for name in ("val_accuracy", "test_accuracy") if name in common), None)
    if figure is None:
        raise UserError("--no-test leaves nothing to compare by: hold images out by --val-size, or name a --figure")
    if figure not in common:
        raise UserError(f"--figure {figure} is not in the rows of every run: expected one of {', '.join(common)}")
    if (options.out / rundir.CONFIG).exists():
        raise UserError(f"--out {options.out} holds a run: name a folder for the runs of the sweep")
    sweep.require_ours(options.out / "sweep.json", runs)
    before = sum(run.is_done() for run in runs)  # refuses an --out of other runs
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror}; choose another") from error

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"{len(runs)} runs, {before} of them done before")
    sweep.run_here(runs, places, say)
    found = sweep.summaries(runs, figure)
    files.write_atomically(options.out / "sweep.json", sweep.to_json(runs, found, figure, cli.command_line()))
    say("\n" + sweep.table(found, figure))
    if failed := [run for run in runs if not run.is_done()]:
        raise FailedRunsError(
            f"{len(failed)} of {len(runs)} runs are not done: {', '.join(run.folder.name for run in failed)}; "
            f"what went wrong is in {failed[0].output}; the same command goes on with them"
        )


def main(argv: list[str] | None = None, prog: str = "cifar-flax sweep") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _command(argv, prog))
