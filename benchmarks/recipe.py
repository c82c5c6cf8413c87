"""Compares recipes by short trials, on a validation split of the training set.

    python benchmarks/recipe.py ablation --preset compact --epochs 8 --out runs/ablation
    python benchmarks/recipe.py search --preset resnet18 --epochs 10 --out runs/search \\
        --trial "--learning-rate 0.4" --trial "--muon-learning-rate 0.05 --no-zero-init-residual"
    python benchmarks/recipe.py final --preset resnet18 --seeds 0,1,2,3,4 --out runs/final

`ablation` takes one idea at a time out of the preset's recipe; `search` compares what its --trial
options say; `final` is the recipe itself on all 50,000 images, and the only one that is given the
test set. Each trial is a run directory under --out; interrupted, the same command goes on where it stood, to the bit.
What it prints is also in summary.json, with the config and every epoch's figures of each trial.
"""

import argparse
import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import flax
import jax

from cifar_flax import cli, config, data, machine
from cifar_flax.config import Config
from cifar_flax.errors import UserError
from cifar_flax.training import loop, rundir

# Short runs want a plateau that comes early: the rate then falls in most of a trial's later epochs.
SHORT = {"rtol": 0.1, "cooldown": 0, "factor": 0.5}

# What is changed in the preset, by trial. An ablation takes away what the recipe has, or puts back what it
# does without.
ABLATION: dict[str, dict[str, Any]] = {
    "recipe": {},
    "without muon": {"muon_learning_rate": 0.0},
    "without averaged weights": {"ema_decay": 0.0},
    "without zero-init": {"zero_init_residual": False},
    "with zero-init": {"zero_init_residual": True},
    "without warm-up": {"warmup_epochs": 0},
    "without clipping": {"clip_norm": 0.0},
    "without momentum's look-ahead": {"nesterov": False},
    "without weight decay": {"weight_decay": 0.0, "muon_weight_decay": 0.0},
}


def trials(arguments: argparse.Namespace) -> dict[tuple[str, int], Config]:
    """The config of each trial and seed; trials of an ablation whose change changes nothing are left out."""
    base: dict[str, Any] = {"preset": arguments.preset}
    if arguments.epochs:
        base["epochs"] = arguments.epochs
    if arguments.sweep != "final":
        base["val_size"] = arguments.val_size
    if arguments.sweep == "ablation":
        base |= SHORT
    recipe = config.from_flags(base)
    chosen = {"recipe": recipe}
    if arguments.sweep == "ablation":
        changed = {name: dataclasses.replace(recipe, **changes) for name, changes in ABLATION.items()}
        chosen |= {name: trial for name, trial in changed.items() if trial != recipe}
    if arguments.sweep == "search":
        chosen = {text: config.from_flags(base | _flags(text)) for text in arguments.trial}
    if unknown := set(arguments.only or chosen) - set(chosen):
        raise UserError(f"--only {unknown.pop()!r} is no trial here: expected some of {', '.join(chosen)}")
    return {
        (name, seed): config.validate(dataclasses.replace(trial, seed=seed))
        for seed in arguments.seeds
        for name, trial in chosen.items()
        if not arguments.only or name in arguments.only
    }


def _flags(text: str) -> dict[str, Any]:
    """Flags of train.py as fields of a config."""
    parser = cli.Parser("--trial", "")
    config.add_flags(parser)
    return vars(parser.parse_args(text.split()))


def run(trial: Config, folder: Path, images: data.Cifar10) -> list[dict[str, Any]]:
    """The rows of a trial: read where it has been done, gone on with where it was begun."""
    begun = (folder / rundir.CONFIG).exists()
    if begun and (differences := config.differences(rundir.read_config(folder), trial)):
        raise UserError(f"{folder} holds another trial: {differences}; choose another --out")
    return loop.fit(trial, images, folder, resume=begun)


def table(results: dict[str, dict[int, list[dict[str, Any]]]], figure: str) -> str:
    """The trials, best first, by the mean over seeds of their last epoch's `figure`."""
    finals = {name: [rows[-1][figure] for rows in seeds.values()] for name, seeds in results.items()}
    lines = [f"{'trial':<32}{figure:>10}{'deviation':>11}{'seeds':>7}{'seconds':>9}"]
    for name, values in sorted(finals.items(), key=lambda item: -statistics.mean(item[1])):
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        seconds = sum(row["seconds"] for rows in results[name].values() for row in rows) / len(values)
        lines.append(f"{name:<32}{statistics.mean(values):>10.2f}{deviation:>11}{len(values):>7}{seconds:>9.0f}")
    return "\n".join(lines)


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("recipe.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sweep", choices=("ablation", "search", "final"))
    parser.add_argument("--preset", choices=config.PRESETS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the trials' run directories are kept")
    parser.add_argument("--epochs", type=int, help="epochs a trial (the preset's)")
    parser.add_argument("--val-size", type=int, default=5000, help="images held out to decide by (5000)")
    parser.add_argument("--trial", action="append", default=[], metavar="FLAGS", help="train.py's, for a trial")
    parser.add_argument("--seeds", type=_seeds, default=[0], help="0,1,2,...")
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="some of the trials, by name (all)")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args(argv)
    if (arguments.sweep == "search") != bool(arguments.trial):
        raise UserError("--trial belongs to search, which needs one at least: give the flags of train.py to try")
    planned = trials(arguments)
    images = data.load_cifar10(arguments.data_dir)
    machine.set_up()
    figure = "test_acc"
    if arguments.sweep != "final":
        figure, images = "val_acc", images.without_test()
    results: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for (name, seed), trial in planned.items():
        print(f"--- {name}, seed {seed}", flush=True)
        folder = arguments.out / f"{re.sub(r'[^a-z0-9.]+', '-', name).strip('-')}-{seed}"
        results.setdefault(name, {})[seed] = run(trial, folder, images)
        summary = {
            "command": cli.command_line(),
            "device": jax.devices()[0].device_kind,
            "versions": {"jax": jax.__version__, "flax": flax.__version__},
            "trials": [
                {"name": n, "seed": s, "config": dataclasses.asdict(planned[n, s]), "metrics": r}
                for n, seeds in results.items()
                for s, r in seeds.items()
            ],
        }
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(table(results, figure), flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: _command(None)))
