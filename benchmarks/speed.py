"""How fast the program is, beside PyTorch at its best on the same work.

    python benchmarks/speed.py step --preset compact
    python benchmarks/speed.py epoch --preset resnet18
    python benchmarks/speed.py forward --preset compact
    python benchmarks/speed.py augment
    python benchmarks/speed.py maps
    python benchmarks/speed.py seeds
    python benchmarks/speed.py start

`step` trains on a few batches, `epoch` on 50,000 images with an evaluation of 10,000 after them, by SGD: PyTorch eager
and compiled beside ours. `forward` computes logits; `augment` shows what share of a step it is; `maps` are Grad-CAM of
all ten classes beside pytorch-grad-cam and torchcam; `seeds` is a step of several seeds by `jax.vmap` beside as many
single steps, on one device: what a sweep over seeds could gain; `start` is from the shell's prompt to an answer. The
candidates take turns, so that whatever else the machine does disturbs them alike; figures are medians over the turns.
With --out they are also written as JSON. Needs the extra `bench` (`seeds` and `start` do not); runs on whatever device
there is.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cifar_flax import augment, cli, config, data, devices, explanation, model, step
from cifar_flax.errors import UserError
from cifar_flax.explanation import Network
from cifar_flax.metrics import Metrics
from cifar_flax.program import (
    Program,
    Split,
    build_augment,
    build_model,
    build_optimizer,
    build_plateau,
    build_program,
    build_train_step,
)

Candidates = dict[str, Callable[[], Any]]
OURS = "cifar_flax"
ROOT = Path(__file__).parent.parent
WARM_UP = 2
# Of training steps: so long XLA:CPU's memory goes on growing, and every new page costs a fault.
WARM_UP_STEPS = 60


def take_turns(candidates: Candidates, turns: int, repeats: int = 1, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Seconds a call of each candidate, one figure a turn; the first turns only warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + warm_up):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


# ---- the machine's limits, and the work ------------------------------------------------------------


def measure_limits(dtype: Any) -> dict[str, float]:
    """Of all devices: FLOP/s of a large matrix product, and bytes a second of a large copy."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)  # ones can be faster
    multiply, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    array = jnp.ones(2**26 if on_cpu else 2**28, jnp.float32)
    times = take_turns(
        {"product": lambda: multiply(matrix).block_until_ready(), "copy": lambda: copy(array).block_until_ready()}, 7
    )
    best = {name: min(seconds) for name, seconds in times.items()}
    count = 1 if on_cpu else jax.device_count()  # on a CPU one device uses the cores of all for this
    return {
        "flop_per_second": count * 2 * size**3 / best["product"],
        "bytes_per_second": count * 2 * array.nbytes / best["copy"],
    }


def forward_flops(network: model.ResNet) -> float:
    """Floating-point operations of one image's forward pass, two a multiply-add, of convolutions and last layer."""
    shapes = jax.eval_shape(lambda: model.init_params(network, jax.random.key(0)))
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


def our_epoch(program: Program, train: Split, test: Split | None = None) -> Callable[[], None]:
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
    """The preset with these changes, and with the batch size of the command line if that is given."""
    chosen = dataclasses.replace(config.PRESETS[arguments.preset], **changes)
    return config.validate(dataclasses.replace(chosen, batch_size=arguments.batch_size or chosen.batch_size))


def time_training(arguments: argparse.Namespace, *, whole: bool) -> tuple[dict[str, list[float]], dict[str, Any]]:
    import peers

    # The same optimizer for all: PyTorch's SGD is its fastest, and ours costs as much as Muon here.
    chosen = _chosen(arguments, muon_learning_rate=0.0)
    images = data.load_cifar10(arguments.data_dir)
    count = len(images.train_images) if whole else arguments.steps * chosen.batch_size
    pixels, labels = images.train_images[:count], images.train_labels[:count]
    program = build_program(chosen, count)
    train = program.place(Split(pixels, labels))
    test = program.place(Split(images.test_images, images.test_labels)) if whole else None
    candidates: Candidates = {OURS: our_epoch(program, train, test)}
    for name, compiled in (("PyTorch eager", False), ("PyTorch compiled", True)):
        run = peers.train_steps(chosen, pixels, labels, compiled=compiled)
        candidates[name] = run
        if whole:
            params = jax.device_get(program.create_state().params)
            evaluate = peers.forward(chosen, params, images.test_images, compiled=compiled)
            candidates[name] = lambda run=run, evaluate=evaluate: (run(), evaluate())
    warm_up = WARM_UP if whole else max(WARM_UP, WARM_UP_STEPS // arguments.steps)
    times = take_turns(candidates, arguments.turns, warm_up=warm_up)
    executable = program.lower(program.create_state(), program.place(Metrics.empty()), train).compile()
    steps = -(-count // chosen.batch_size)
    counted = executable.cost_analysis() or {}
    # On a CPU a step on each device is what is compiled, on an accelerator all of them.
    scale = steps * program.mesh.size if jax.default_backend() == "cpu" else 1
    flops = train_flops(program.model) * count + (forward_flops(program.model) * 10_000 if whole else 0)
    memory = [device.memory_stats() for device in jax.local_devices()]
    return times, {
        "config": dataclasses.asdict(chosen),
        "images": count,
        "flop": flops,
        "bytes_xla_counts": counted.get("bytes accessed", float("nan")) * scale,
        "devices": program.mesh.size,
        "peak_bytes_on_device": [stats.get("peak_bytes_in_use") for stats in memory if stats],
        "limits": measure_limits(program.model.dtype),
    }


def time_forward(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    import peers

    chosen = config.PRESETS[arguments.preset]
    on_each = 250 if arguments.preset == "compact" or jax.default_backend() != "cpu" else 16
    count = on_each * devices.make_mesh(chosen.batch_size).size
    batch_size = min(chosen.eval_batch_size, count)
    program = build_program(dataclasses.replace(chosen, eval_batch_size=batch_size), chosen.batch_size)
    params = program.create_state().params
    images = data.load_cifar10(arguments.data_dir)
    pixels = images.test_images[:count]
    split = program.place(Split(pixels, images.test_labels[:count]))
    candidates: Candidates = {OURS: lambda: float(program.evaluate(params, split).loss_sum)}
    host = jax.device_get(params)
    for name, compiled in (("PyTorch eager", False), ("PyTorch compiled", True)):
        candidates[name] = peers.forward(chosen, host, pixels, compiled=compiled)
    times = take_turns(candidates, arguments.turns, 3)
    return times, {"images": count, "flop": forward_flops(program.model) * count, "devices": program.mesh.size}


def time_augmentation(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    import peers

    chosen = config.PRESETS[arguments.preset]
    sample = data.load_cifar10(source="sample")
    pixels = sample.train_images[: chosen.batch_size]
    program = build_program(chosen, chosen.batch_size)
    split = program.place(Split(pixels, sample.train_labels[: chosen.batch_size]))
    configured = build_augment(chosen)
    ours = jax.jit(lambda key, images: configured(key, augment.normalize(images)))
    key = jax.random.key(0)
    placed = jax.device_put(pixels, jax.devices()[0])
    candidates: Candidates = {
        OURS: lambda: ours(key, placed).block_until_ready(),
        "PyTorch eager": peers.augmentation(chosen, pixels),
        "cifar_flax, a whole step": our_epoch(program, split),
    }
    return take_turns(candidates, arguments.turns, 3), {"images": len(pixels)}


def time_maps(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    import peers

    network = explanation.load_network(None)
    if arguments.preset != "compact":
        chosen = config.PRESETS[arguments.preset]
        program = build_program(chosen, chosen.batch_size)
        params = jax.device_get(program.create_state().params)
        network = Network(arguments.preset, program.model, params, chosen, [], "")
    stage = arguments.layer or network.model.stage_names[-1]
    if stage not in network.model.stage_names[1:]:
        raise UserError(f"--layer {stage}: expected one of {', '.join(network.model.stage_names[1:])}")
    sample = data.load_cifar10(source="sample")
    pixels = sample.test_images[:64]
    placed, labels = explanation.spread([pixels, sample.test_labels[:64]])
    maps = explanation.build_maps(network, stage, "grad-cam")
    logits = jax.jit(lambda images: model.forward(network.model, network.params, augment.normalize(images)))
    peer = (network.config, network.params, pixels, stage, model.NUM_CLASSES)
    candidates: Candidates = {
        OURS: lambda: maps(placed, labels, labels).block_until_ready(),
        "pytorch-grad-cam": peers.grad_cam(*peer),
        "torchcam": peers.torch_cam(*peer),
        "cifar_flax, the forward pass alone": lambda: logits(placed).block_until_ready(),
    }
    return take_turns(candidates, arguments.turns), {
        "images": len(pixels),
        "stage": stage,
        "maps_an_image": model.NUM_CLASSES,
    }


def time_seeds(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """A training step of several seeds at once, beside as many single ones: on one device."""
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: expected 1 or more")
    chosen = _chosen(arguments)
    network = build_model(chosen, devices.activation_dtype(chosen.precision))
    rates = [optax.constant_schedule(rate) for rate in (chosen.learning_rate, chosen.muon_learning_rate)]
    optimizer, plateau = build_optimizer(chosen, *rates), build_plateau(chosen)
    train_step = build_train_step(chosen, network, optimizer)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.integers(0, 256, (chosen.batch_size, *model.IMAGE_SHAPE), np.uint8))
    labels = jnp.asarray(rng.integers(0, model.NUM_CLASSES, chosen.batch_size))
    mask = jnp.ones(chosen.batch_size, bool)

    def stepping(create: Callable, take: Callable, times: int) -> Callable[[], Any]:
        state = jax.jit(create)()
        run = jax.jit(take, donate_argnums=0, compiler_options=devices.compiler_options())

        def steps() -> None:
            nonlocal state
            for _ in range(times):
                state = jax.block_until_ready(run(state))

        return steps

    def create(seed: Any) -> step.TrainState:
        return step.create_state(jax.random.key(seed), network, optimizer, plateau)

    def take(state: step.TrainState) -> step.TrainState:
        return train_step(state, pixels, labels, mask)[0]

    count = arguments.seeds
    candidates: Candidates = {
        OURS: stepping(lambda: create(0), take, count),
        f"{count} seeds at once": stepping(lambda: jax.vmap(create)(jnp.arange(count)), jax.vmap(take), 1),
    }
    return take_turns(candidates, arguments.turns), {"images": count * chosen.batch_size, "seeds": count}


def time_start(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Commands from the prompt to their end; the training is of eight steps, an evaluation and a checkpoint."""
    times: dict[str, list[float]] = {}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
            train = ["train.py", "--preset", arguments.preset, "--data", "sample", "--epochs", "1", "--out"]
            commands = {
                "train.py --help": ["train.py", "--help"],
                "explain.py --help": ["explain.py", "--help"],
                "train.py, first start": [*train, f"{folder}/first"],
                "train.py, second start": [*train, f"{folder}/second"],
            }
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
                times.setdefault(name, []).append(time.perf_counter() - start)
    return times, {}


# ---- the report ----------------------------------------------------------------------------------


def table(times: dict[str, list[float]], facts: dict[str, Any]) -> str:
    """Medians and quartiles, and how many times as long as ours each takes."""
    ours = statistics.median(times[OURS]) if OURS in times else None
    lines = [f"{'':<36}{'median':>11}{'quartiles':>22}{'images/s':>10}{'of ours':>9}{'TFLOP/s':>9}"]
    for name, seconds in times.items():
        low, median, high = np.percentile(seconds, [25, 50, 75]) * 1000
        line = f"{name:<36}{median:>8.1f} ms{f'{low:.1f} to {high:.1f} ms':>22}"
        line += f"{1000 * facts['images'] / median:>10.0f}" if "images" in facts else f"{'':>10}"
        line += f"{median / 1000 / ours:>9.2f}" if ours else f"{'':>9}"
        line += f"{facts['flop'] / median / 1e9:>9.3f}" if "flop" in facts else ""
        lines.append(line)
    if ours and "limits" in facts:
        limits = facts["limits"]
        compute = facts["flop"] / limits["flop_per_second"]
        memory = facts["bytes_xla_counts"] / limits["bytes_per_second"]
        lines.append(
            f"Limits, measured: {limits['flop_per_second'] / 1e12:.3g} TFLOP/s, "
            f"{limits['bytes_per_second'] / 1e9:.3g} GB/s. At these {OURS}'s arithmetic takes {1000 * compute:.1f} ms "
            f"({100 * compute / ours:.0f}% of its time), and what XLA counts as its "
            f"{facts['bytes_xla_counts'] / 1e9:.3g} GB {1000 * memory:.1f} ms ({100 * memory / ours:.0f}%)"
        )
    return "\n".join(lines)


def _commit() -> str:
    """What is timed, as git names it; "" where there is no git."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def describe_machine() -> dict[str, Any]:
    names = ("jax", "jaxlib", "flax", "optax", "torch", "grad-cam", "torchcam", "numpy")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": processor or platform.processor(),
        "cores": devices.num_cores(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in names if name in installed},
    }


BENCHMARKS: dict[str, Callable[[argparse.Namespace], tuple[dict[str, list[float]], dict[str, Any]]]] = {
    "step": lambda arguments: time_training(arguments, whole=False),
    "epoch": lambda arguments: time_training(arguments, whole=True),
    "forward": time_forward,
    "augment": time_augmentation,
    "maps": time_maps,
    "seeds": time_seeds,
    "start": time_start,
}


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("speed.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--preset", choices=config.PRESETS, default="compact", help="(compact)")
    parser.add_argument("--batch-size", type=int, help="images a training step (the preset's)")
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn (4)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds that take a step at once (2)")
    parser.add_argument("--layer", help="stage whose maps are made (the last)")
    parser.add_argument("--turns", type=int, default=15, help="times that each candidate is timed (15)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.out and arguments.out.exists():
        raise UserError(f"--out {arguments.out} exists: choose another")
    devices.set_up()
    try:
        times, facts = BENCHMARKS[arguments.what](arguments)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -e '.[bench]' -c constraints.txt") from error
    print(table(times, facts))
    if arguments.out:
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        found = {"what": arguments.what, "command": cli.command_line(), **describe_machine(), **facts}
        arguments.out.write_text(json.dumps(found | {"median_seconds": medians, "seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: _command(None)))
