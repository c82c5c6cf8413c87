"""What a benchmark ran on, and how fast that is."""

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cifar_flax import machine

ROOT = Path(__file__).parent.parent


def measure_limits(dtype: Any) -> dict[str, float]:
    """Of all devices: FLOP/s of a large matrix product, and bytes a second of a large copy."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)  # ones can be faster
    multiply, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    array = jnp.ones(2**26 if on_cpu else 2**28, jnp.float32)

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    count = 1 if on_cpu else jax.device_count()  # on a CPU one device uses the cores of all for this
    return {
        "flop_per_second": count * 2 * size**3 / best(lambda: multiply(matrix).block_until_ready()),
        "bytes_per_second": count * 2 * array.nbytes / best(lambda: copy(array).block_until_ready()),
    }


def commit(checkout: Path = ROOT) -> str:
    """What is timed, as git names it; "" where there is no git."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def describe_machine() -> dict[str, Any]:
    names = ("jax", "jaxlib", "flax", "optax", "torch", "grad-cam", "torchcam", "numpy")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": processor or platform.processor(),
        "cores": machine.num_cores(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in names if name in installed},
    }
