"""What a training step communicates and keeps on a device, and how it scales, on virtual devices of a CPU.

    python benchmarks/scaling.py count --preset resnet18 --batch-size 256 --muon-learning-rate 0 --out count.json
    python benchmarks/scaling.py weak --epochs 4 --turns 3 --out weak.json

`count` compiles a step for 1, 2 and 8 devices, of a fixed batch in all, and counts what they exchange and each one's
memory: nothing runs. `weak` trains a small network on 64 images a device: on one device, on two of one
process, and on one in each of two processes, and takes the median time of a step of the sample's 2nd and later epochs.
Takes train.py's flags for `count`.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import compiled
import jax
from machine import commit

from cifar_flax import cli, config, machine
from cifar_flax.config import Config
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve

DEVICES = (1, 2, 8)
TINY = ["--preset", "smoke", "--widths", "16", "--strides", "2", "--precision", "float32"]


def count(chosen: Config) -> list[dict[str, Any]]:
    """What XLA counts in one step for each number of devices; JSON values."""
    found = []
    for devices in DEVICES:
        execution = resolve("float32", chosen.batch_size, devices)
        step = compiled.lower(chosen, execution, 50_000).compile()
        text = step.as_text() or ""
        found.append(
            {"devices": devices, "communicated": compiled.communicated(text), "memory": compiled.memory(step)}
        )
    return found


def all_reduce_bytes(size: int, devices: int) -> float:
    """Bytes that each device sends for a sum of `size` bytes over a ring: each part goes round twice, less one step.

    >>> [all_reduce_bytes(100, n) for n in (1, 2, 4)]
    [0.0, 100.0, 150.0]
    """
    return 2 * size * (devices - 1) / devices


def weak(epochs: int, turns: int) -> list[dict[str, Any]]:
    """Milliseconds a step of 64 images a device, the layouts taking turns; JSON values."""
    times: dict[tuple[int, int], list[float]] = {(1, 1): [], (2, 1): [], (2, 2): []}
    for _ in range(turns):
        for devices, processes in times:
            times[devices, processes] += _times(devices, processes, epochs)
    return [
        {
            "devices": devices,
            "processes": processes,
            "images a step": 64 * devices,
            "median ms a step": round(1000 * statistics.median(found), 2),
            "all": [round(1000 * x, 2) for x in found],
        }
        for (devices, processes), found in times.items()
    ]


def _times(devices: int, processes: int, epochs: int) -> list[float]:
    """Seconds a training step of each epoch but the first, which compiles."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        words = [sys.executable, "-m", "cifar_flax", "train", *TINY, "--epochs", str(epochs), "--out", f"{folder}/run"]
        words += ["--batch-size", str(64 * devices), "--devices", str(devices)]
        joined = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes), "--process-id"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices // processes), "JAX_PLATFORMS": "cpu"}
        started = [
            subprocess.Popen(
                [*words, *joined, str(i)] if processes > 1 else words, env=environment, stdout=subprocess.DEVNULL
            )
            for i in range(processes)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise UserError("a process failed: its line is above")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return [64 * devices / row["images_per_second"] for row in rows[1:]]


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("scaling.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("count", "weak"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--turns", type=int, default=3, help="of each layout, for weak (3)")
    fields = {option.name for option in dataclasses.fields(Config)}
    config.add_flags(parser, fields)
    flags = vars(parser.parse_args(argv))
    what, out, turns = flags.pop("what"), flags.pop("out"), flags.pop("turns")
    if out.exists():
        raise UserError(f"--out {out} exists: choose another")
    if what == "count":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(DEVICES))
        chosen = config.from_flags(flags)
        found = {"config": dataclasses.asdict(chosen), "layouts": count(chosen)}
        size = found["layouts"][-1]["communicated"]["all-reduce"]["bytes"]
        found["a ring, bytes each device sends"] = {n: all_reduce_bytes(size, n) for n in (1, 2, 8, 256)}
    else:
        found = {"network": TINY, "layouts": weak(flags.get("epochs", 4), turns)}
    print(json.dumps(found, indent=1))
    record = {
        "command": cli.command_line(),
        "commit": commit(),
        "versions": {"jax": jax.__version__},
        "cores": machine.num_cores(),
    }
    out.write_text(json.dumps(record | found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: _command(None)))
