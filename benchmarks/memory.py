"""How much memory a run holds, step by step: training, and then the evaluation of the test set.

    python benchmarks/memory.py --steps 300 --json docs/results/memory.json --plot docs/results/memory.png

Each preset is in a process of its own, with the batches of a run of many epochs. What is counted is the
process's resident memory after each step, as Linux has it, and the most that it ever was.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe_machine
from matplotlib.figure import Figure

from cifar_flax import data, machine
from cifar_flax.config import PRESETS, Config
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import Split, build_program


def measure(config: Config, steps: int) -> dict[str, Any]:
    """Bytes after each training step, after the evaluation, and at most; and images a second, at the median step."""
    images = data.load_named(config.data, None, "auto", lambda line: None)
    num_images = min(steps * config.batch_size, len(images.train_images))
    program = build_program(config, num_images)
    train = program.place(Split(images.train_images[:num_images], images.train_labels[:num_images]))
    test = program.place(Split(images.test_images, images.test_labels))
    state, trained, seconds, epoch = program.create_state(), [], [], 0
    while len(trained) < steps:
        epoch, start = epoch + 1, time.perf_counter()
        taken = program.train_steps(state, program.place(Metrics.empty()), train, epoch, 0)
        for _, state, _ in taken:  # noqa: B007 - the last one is evaluated
            seconds.append(time.perf_counter() - start)
            trained.append(machine.resident())
            start = time.perf_counter()
            if len(trained) == steps:
                break
    evaluated: list[int] = []
    program.evaluate(state.ema_params, test, lambda: evaluated.append(machine.resident()))
    return {
        "batch_size": config.batch_size,
        "precision": program.execution.precision,
        "muon_learning_rate": config.muon_learning_rate,
        "images_per_second": config.batch_size / sorted(seconds)[len(seconds) // 2],
        "train": trained,
        "evaluate": evaluated,
        "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def plot(runs: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        (line,) = axes.plot([x / 1e9 for x in run["train"]], label=name)
        last = len(run["train"])
        steps = range(last, last + len(run["evaluate"]))
        axes.plot(steps, [x / 1e9 for x in run["evaluate"]], color=line.get_color(), linestyle=":")
    axes.set(xlabel="step; dotted: batches of the evaluation", ylabel="resident memory, GB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["resnet18", "compact", "smoke"],
        help="presets, each with a precision and a batch size if wanted: resnet18:float32:256",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        preset, precision, batch_size, *_ = [*arguments.serve.split(":"), "", ""]
        config = PRESETS[preset]
        changes: dict[str, Any] = {"precision": precision} if precision else {}
        if batch_size:
            changes["batch_size"] = int(batch_size)
        machine.set_up()
        print(json.dumps(measure(dataclasses.replace(config, **changes), arguments.steps)))
        return
    runs = {}
    for name in arguments.runs:
        command = [sys.executable, *sys.argv, "--serve", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        run = runs[name] = json.loads(done.stdout.splitlines()[-1])
        after = run["train"][min(10, len(run["train"]) - 1)], run["train"][-1]
        print(
            f"{name:<24}{run['images_per_second']:>7.1f} images/s   after 10 steps {after[0] / 1e9:.2f} GB, after "
            f"{len(run['train'])} {after[1] / 1e9:.2f}, evaluated {run['evaluate'][-1] / 1e9:.2f}, "
            f"at most {run['most'] / 1e9:.2f}",
            flush=True,
        )
        if arguments.json:
            machine.set_up()
            result = {"machine": describe_machine(), "memory": machine.memory(), "runs": runs}
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        if arguments.plot:
            plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
