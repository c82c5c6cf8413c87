"""What XLA makes of a training step for a GPU or a TPU, read without one.

    python benchmarks/compiled.py --preset resnet18 --batch-size 512
    python benchmarks/compiled.py --muon-learning-rate 0.04 --out compiled.json
    python benchmarks/compiled.py --target v5e --devices 4 --out tpu.json

Compiles an epoch for an NVIDIA H100 ahead of time, and counts for each part of a step the kernels that
are started, and the bytes of what they read and write. Takes train.py's flags. Needs jax with CUDA, the
extra `cuda`, and no GPU; nothing is timed. Without a GPU XLA cannot try out algorithms, so that matrix
products may be other kernels than on one. A kernel that reads part of an array counts as reading it all.

For a TPU v5e, with libtpu from the extra `tpu`, it compiles a chunk of steps on the whole training set, which takes
minutes, and writes what XLA counts: the device's memory, the operations of a step by kind, its bytes and
arithmetic, what is communicated, and copies of arrays of all images.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from machine import commit

from cifar_flax import cli, config
from cifar_flax.config import Config
from cifar_flax.errors import UserError
from cifar_flax.execution import Execution
from cifar_flax.training import profiling
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.profiling import Instruction
from cifar_flax.training.program import Split, build_program

# As XLA describes a GPU; figures of NVIDIA's data sheet and of what the driver says.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  device_address_bits: 64 platform_version: "Compute Capability 9.0a"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
V5E = {1: "v5e:2x2", 2: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"}  # the smallest slice, by devices that are used
CHUNK, IMAGES = 50, 50_000  # what is compiled for a TPU: steps, as a run takes them, and training images
STEPS = 8  # of the epoch that is compiled: the kernels of one step are counted

# What an instruction can be without a kernel of its own.
_NO_KERNEL = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple", "while"}
_COLLECTIVES = {"all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8}


class Row(NamedTuple):
    """A part of a step, its direction (`forward`, `backward` or neither), kernels, and bytes."""

    part: str
    direction: str
    kernels: int
    bytes: int


def compile_epoch(chosen: Config) -> str:
    """The text of what XLA compiles of an epoch of `STEPS` steps for an H100."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100)
    except Exception as error:  # JAX has no one type for it
        raise UserError(f"JAX cannot compile for CUDA here ({error}): pip install -e '.[cuda]'") from error
    execution = Execution(Mesh(np.array(topology.devices[:1]), ("data",)), "bfloat16", STEPS)
    lowered = lower(chosen, execution, STEPS * chosen.batch_size)
    return lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"}).as_text() or ""


def lower(chosen: Config, execution: Execution, num_images: int) -> jax.stages.Lowered:
    """The first chunk of steps of an epoch of `num_images`, for devices that need not be there."""

    def placed(tree: Any) -> Any:
        sharding = execution.replicated
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    split = Split(np.empty((num_images, 3072), np.uint8), np.empty(num_images, np.int32))
    program = build_program(chosen, num_images, execution)
    state, sums = jax.eval_shape(program.create_state), jax.eval_shape(Metrics.empty)
    return program.lower(placed(state), placed(sums), placed(split))


def compile_for_tpu(chosen: Config, devices: int) -> dict[str, Any]:
    """What XLA counts in a chunk of steps for `devices` of a TPU v5e; JSON values."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no server which machine this is
    try:
        topology = topologies.get_topology_desc(V5E[devices], "tpu")
    except Exception as error:  # JAX has no one type for it
        raise UserError(
            f"JAX cannot compile for a TPU here ({error}): pip install -e '.[tpu]', one at a time"
        ) from error
    mesh = Mesh(np.array(topology.devices[:devices]), ("data",))
    start = time.perf_counter()
    compiled = lower(chosen, Execution(mesh, "bfloat16", CHUNK), IMAGES).compile()
    seconds = time.perf_counter() - start
    text, cost = compiled.as_text() or "", compiled.cost_analysis() or {}
    return {
        "seconds to compile": round(seconds),
        "device memory": memory(compiled),
        "a step": {
            "operations": dict(operations(text).most_common()),
            "bytes read and written": cost.get("bytes accessed"),
            "floating-point operations": cost.get("flops"),
            "communicated": communicated(text),
        },
        "copies of all images": re.findall(rf"= (u8\[{IMAGES},\S+) copy\(", text),
    }


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of one device: arguments, results, those of them that share memory, temporary arrays, code."""
    found = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    return {name.replace("_", " "): int(getattr(found, f"{name}_size_in_bytes")) for name in names}


def operations(text: str) -> collections.Counter[str]:
    """The operations in the largest loop's body, by kind."""
    return collections.Counter(x.opcode for x in _step_instructions(text) if x.opcode not in _NO_KERNEL)


def communicated(text: str) -> dict[str, dict[str, int]]:
    """Number and bytes of results of what devices exchange, by kind, wherever it is in a compiled program."""
    found: dict[str, dict[str, int]] = {}
    for instruction in profiling.read_instructions(text):
        kind = instruction.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            entry = found.setdefault(kind, {"operations": 0, "bytes": 0})
            entry["operations"] += 1
            entry["bytes"] += _num_bytes(instruction.shape)
    return found


def count_kernels(text: str) -> list[Row]:
    """Kernels and bytes of one step by part, the most bytes first.

    Args:
      text: a compiled program, whose largest loop is over the steps.
    """
    instructions = _step_instructions(text)
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    parts = profiling.parts_of_instructions(text)
    kernels, moved = collections.Counter[tuple[str, str]](), collections.Counter[tuple[str, str]]()
    for instruction in instructions:
        if instruction.opcode not in _NO_KERNEL:
            operands, *_ = re.split(r"\)(?:,|$)", instruction.rest)
            read = [shapes.get(name, "") for name in set(re.findall(r"%([\w.\-]+)", operands))]
            part = parts[instruction.name]
            kernels[part] += 1
            moved[part] += sum(_num_bytes(shape) for shape in [instruction.shape, *read])
    return [Row(*part, kernels[part], bytes) for part, bytes in moved.most_common()]


def _step_instructions(text: str) -> list[Instruction]:
    """Those of the largest loop's body."""
    computations: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in profiling.read_instructions(text):
        computations[instruction.computation].append(instruction)
    bodies = re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    if not bodies:
        raise ValueError("expected a compiled program with a loop")
    return max((computations[body] for body in bodies), key=len)


def _num_bytes(shape: str) -> int:
    """Of `f32[2,3]{1,0}`, or of a tuple of such."""
    arrays = re.findall(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]", shape)
    return sum(_BYTES[dtype] * int(np.prod([int(n) for n in sizes.split(",") if n])) for dtype, sizes in arrays)


def table(rows: list[Row]) -> str:
    total = Row("a step", "", sum(row.kernels for row in rows), sum(row.bytes for row in rows))
    lines = [f"{'part':<26}{'direction':<11}{'kernels':>8}{'MB':>8}"]
    lines += [f"{row.part:<26}{row.direction:<11}{row.kernels:>8}{row.bytes / 1e6:>8.0f}" for row in [*rows, total]]
    return "\n".join(lines)


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("compiled.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="JSON file to write")
    parser.add_argument("--target", choices=("h100", "v5e"), default="h100", help="what is compiled for (h100)")
    parser.add_argument("--devices", type=int, choices=V5E, default=1, help="of a TPU v5e (1)")
    config.add_flags(parser)
    flags = vars(parser.parse_args(argv))
    out, target, devices = flags.pop("out", None), flags.pop("target"), flags.pop("devices")
    if out and out.exists():
        raise UserError(f"--out {out} exists: choose another")
    chosen = config.from_flags({"precision": "bfloat16"} | flags)
    jax.config.update("jax_platforms", "cpu")  # or JAX looks for the GPU and gives up
    if target == "v5e":
        what = f"a chunk of {CHUNK} training steps, compiled for a TPU v5e without one, on {devices} of its chips"
        result = compile_for_tpu(chosen, devices)
        print(json.dumps(result, indent=1))
    else:
        what = "kernels and bytes of a training step, compiled for an H100 without one"
        rows = count_kernels(compile_epoch(chosen))
        result = {"rows": [row._asdict() for row in rows]}
        print(table(rows))
    if out:
        versions = {"jax": jax.__version__}
        if target == "v5e":
            versions["libtpu"] = importlib.metadata.version("libtpu")
        found = {
            "what": what,
            "command": cli.command_line(),
            "commit": commit(),
            "versions": versions,
            "config": dataclasses.asdict(chosen),
            **result,
        }
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: _command(None)))
