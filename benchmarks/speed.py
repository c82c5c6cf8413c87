"""How fast the program is, beside PyTorch at its best on the same work.

    python benchmarks/speed.py step --preset compact
    python benchmarks/speed.py maps

`step` trains on a few batches, `epoch` on 50,000 images with an evaluation of 10,000 after them, by SGD: PyTorch eager
and compiled beside ours. `forward` computes logits; `maps` are Grad-CAM of all ten classes beside pytorch-grad-cam and
torchcam; `start` is from the shell's prompt to an answer.

With --beside, a folder with another version of this repository, ours of both versions are timed and PyTorch is not:

    git worktree add ../before HEAD~10
    python benchmarks/speed.py step --beside ../before

The candidates take turns, each in a process of its own, so that whatever else the machine does disturbs them alike;
figures are medians over the turns. With --out they are also written as JSON. Needs the group `bench` (`start` does
not); runs on whatever device there is.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import ROOT, describe_machine, measure_limits
from turns import OURS, WARM_UP, Benchmark, Build, serve, table, take_turns

from cifar_flax import cli, config, data, machine
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve
from cifar_flax.explaining.network import build_maps, build_outputs, load, prepare
from cifar_flax.network import model
from cifar_flax.network.build import build_model
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import DeviceSplit, Program, build_program
from cifar_flax.training.trained import Trained

# Training steps before those that are timed: so long XLA:CPU's memory goes on growing, a fault for every new page.
WARM_UP_STEPS = 60

# ---- the work ------------------------------------------------------------------------------------


def forward_flops(network: model.ResNet) -> float:
    """Floating-point operations of one image's forward pass, two a multiply-add, of convolutions and last layer."""
    shapes = model.param_shapes(network)
    outputs = {layer.name: layer.shape for layer in model.layer_table(network)}
    kernels = {
        ".".join(str(key.key) for key in path[:-1]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.ndim > 1
    }
    return sum(2 * kernel.size * math.prod(outputs[name][:-1]) for name, kernel in kernels.items())


def train_flops(network: model.ResNet) -> float:
    """Three forward passes, less the gradient by the pixels that nobody asks for."""
    stem = 2 * math.prod((32, 32, 9, 3, network.widths[0]))
    return 3 * forward_flops(network) - stem


# ---- what is timed -------------------------------------------------------------------------------


def our_epoch(program: Program, train: DeviceSplit, test: DeviceSplit | None = None) -> Callable[[], None]:
    """A function that trains an epoch, evaluates if there is something to, and waits for the sums."""
    state = program.create_state()
    epoch = 0

    def run() -> None:
        nonlocal state, epoch
        epoch += 1
        *_, (_, state, sums) = program.train_steps(state, program.place(Metrics.empty()), train, epoch, 0)
        float(sums.loss_sum)
        if test is not None:
            float(program.evaluate(state.ema_params, test).loss_sum)

    return run


def _chosen(arguments: argparse.Namespace, **changes: Any) -> config.Config:
    """The preset with these changes and the command line's precision, and with its batch size if that is given."""
    chosen = dataclasses.replace(config.PRESETS[arguments.preset], precision=arguments.precision, **changes)
    chosen = dataclasses.replace(chosen, batch_size=arguments.batch_size or chosen.batch_size)
    return config.validate(config.for_images(chosen, data.CIFAR10.image_size))


def training(arguments: argparse.Namespace, *, whole: bool) -> Benchmark:
    # The same optimizer for all: SGD, each side's fastest.
    chosen = _chosen(arguments, muon_learning_rate=0.0)
    images = data.load_cifar10(arguments.data_dir)
    count = len(images.train.images) if whole else arguments.steps * chosen.batch_size
    pixels, labels = images.train.images[:count], images.train.labels[:count]

    def ours():
        program = build_program(chosen, count)
        train = program.place(DeviceSplit(pixels, labels))
        test = program.place(DeviceSplit(images.test.images, images.test.labels)) if whole else None

        def facts() -> dict[str, Any]:
            evaluated = forward_flops(program.model) * len(images.test.images) if whole else 0
            memory = [device.memory_stats() for device in jax.local_devices()]
            return {
                "config": dataclasses.asdict(chosen),
                "images": count,
                "flop": train_flops(program.model) * count + evaluated,
                "devices": program.execution.mesh.size,
                "peak_bytes_on_device": [stats.get("peak_bytes_in_use") for stats in memory if stats],
                "limits": measure_limits(program.model.dtype),
            }

        return our_epoch(program, train, test), facts

    def theirs(compiled: bool):
        train, facts = _peer("train_steps", chosen, pixels, labels, compiled=compiled)
        if not whole:
            return train, facts
        evaluate, _ = _peer("forward", chosen, _initial(chosen), images.test.images, compiled=compiled)
        return lambda: (train(), evaluate()), facts

    warm_up = WARM_UP if whole else max(WARM_UP, WARM_UP_STEPS // arguments.steps)
    return Benchmark({OURS: ours, **_eager_and_compiled(theirs)}, warm_up)


def _eager_and_compiled(build: Callable[[bool], Any]) -> dict[str, Build]:
    return {"PyTorch eager": lambda: build(False), "PyTorch compiled": lambda: build(True)}


def _peer(name: str, *arguments: Any, **options: Any) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """PyTorch's side of the work; imported in its own process alone."""
    import peers

    return getattr(peers, name)(*arguments, **options), dict


def _initial(chosen: config.Config) -> Any:
    """The parameters of a config before training, on the host."""
    return jax.device_get(model.init_params(build_model(chosen), jax.random.key(chosen.seed)))


def forward(arguments: argparse.Namespace) -> Benchmark:
    chosen = _chosen(arguments)
    images = data.load_cifar10(arguments.data_dir)
    count = 500 if arguments.preset == "compact" else 32
    pixels, labels = images.test.images[:count], images.test.labels[:count]

    def ours():
        program = build_program(
            dataclasses.replace(chosen, eval_batch_size=min(chosen.eval_batch_size, count)), chosen.batch_size
        )
        params, split = program.create_state().params, program.place(DeviceSplit(pixels, labels))
        facts = {"images": count, "flop": forward_flops(program.model) * count, "devices": program.execution.mesh.size}
        return lambda: float(program.evaluate(params, split).loss_sum), lambda: facts

    def theirs(compiled: bool):
        return _peer("forward", chosen, _initial(chosen), pixels, compiled=compiled)

    return Benchmark({OURS: ours, **_eager_and_compiled(theirs)}, repeats=3)


def maps(arguments: argparse.Namespace) -> Benchmark:
    network = load("compact")
    if arguments.preset != "compact":
        chosen = config.PRESETS[arguments.preset]
        network = prepare(Trained(arguments.preset, _initial(chosen), chosen, data.CIFAR10, []))
    stage = arguments.stage or network.stages[-1]
    if stage not in network.stages[1:]:
        raise UserError(f"--stage {stage}: expected one of {', '.join(network.stages[1:])}")
    pixels, num_classes = data.load_cifar10(source="sample").test.images[:64], network.spec.num_classes
    spread = resolve(network.execution.precision, len(pixels))

    def ours():
        classes = np.tile(np.arange(num_classes), (len(pixels), 1))
        batch = jax.device_put((pixels, classes, np.full_like(classes, -1)), spread.by_batch)
        params, run = (
            jax.device_put(network.params, spread.replicated),
            network.compiled(build_maps, stage, ("grad-cam",)),
        )
        facts = {"images": len(pixels), "stage": stage, "maps_an_image": num_classes}
        return lambda: run(params, *batch).block_until_ready(), lambda: facts

    def forward_pass():
        params, placed = jax.device_put(network.params, spread.replicated), jax.device_put(pixels, spread.by_batch)
        run = network.compiled(build_outputs)
        return lambda: run(params, placed).block_until_ready(), dict

    work = (network.trained.config, network.params, pixels, stage, num_classes)
    theirs = {"pytorch-grad-cam": "grad_cam", "torchcam": "torch_cam"}
    peers = {name: functools.partial(_peer, function, *work) for name, function in theirs.items()}
    return Benchmark({OURS: ours, **peers, f"{OURS}, the forward pass alone": forward_pass})


def time_start(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Commands from the prompt to their end; the training is of eight steps, an evaluation and a checkpoint."""
    times: dict[str, list[float]] = {}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
            train = f"train.py --preset {arguments.preset} --dataset sample --epochs 1 --out"
            commands = {name: name for name in ("train.py --help", "explain.py --help")}
            commands |= {f"train.py, {which} start": f"{train} {folder}/{which}" for which in ("first", "second")}
            for name, command in commands.items():
                words = [sys.executable, *command.split()]
                start = time.perf_counter()
                subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
                times.setdefault(name, []).append(time.perf_counter() - start)
    return times


# ---- the command line ----------------------------------------------------------------------------

BENCHMARKS: dict[str, Callable[[argparse.Namespace], Benchmark]] = {
    "step": functools.partial(training, whole=False),
    "epoch": functools.partial(training, whole=True),
    "forward": forward,
    "maps": maps,
}


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("speed.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=[*BENCHMARKS, "start"])
    parser.add_argument("--preset", choices=config.PRESETS, default="compact", help="(compact)")
    parser.add_argument("--batch-size", type=int, help="images a training step (the preset's)")
    precisions = ("auto", "float32", "bfloat16")
    parser.add_argument("--precision", choices=precisions, default="auto", help="of training steps and logits (auto)")
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn (4)")
    parser.add_argument("--stage", help="stage whose maps are made (the last)")
    parser.add_argument("--turns", type=int, default=15, help="times that each process is timed (15)")
    parser.add_argument("--processes", type=int, default=1, help="times that all begin anew in new processes (1)")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another version, to be timed beside this one")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept and looked for")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a candidate, in a process of its own
    arguments = parser.parse_args(argv)
    if arguments.out and arguments.out.exists() and not arguments.serve:
        raise UserError(f"--out {arguments.out} exists: choose another")
    for name in ("batch_size", "steps", "turns", "processes"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: expected 1 or more")
    if arguments.out and not os.access(arguments.out.parent, os.W_OK):
        raise UserError(f"--out {arguments.out} cannot be written: choose another")
    if arguments.beside and not (arguments.beside / "benchmarks" / "speed.py").is_file():
        raise UserError(f"--beside {arguments.beside}: expected a folder with another version of this repository")
    if arguments.beside and arguments.what == "start":
        raise UserError("--beside: start times this version alone; choose another benchmark")
    machine.set_up()
    if arguments.serve:
        try:
            serve(BENCHMARKS[arguments.what](arguments), arguments.serve)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed: pip install -e . --group bench -c constraints.txt"
            ) from error
        return
    if arguments.what == "start":
        times, facts = time_start(arguments), {}
    else:
        benchmark = BENCHMARKS[arguments.what](arguments)
        times, facts = take_turns(benchmark, arguments.turns, arguments.processes, arguments.beside)
    print(table(times, facts))
    if arguments.out:
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        found = {"what": arguments.what, "command": cli.command_line(), **describe_machine(), **facts}
        arguments.out.write_text(json.dumps(found | {"median_seconds": medians, "seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: _command(None)))
