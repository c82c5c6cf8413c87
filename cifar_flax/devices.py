"""The machine: its devices, its memory, its compiler, and where compiled programs are kept."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

# With fewer images a device, a step's fixed costs outweigh its work.
_MIN_IMAGES_PER_DEVICE = 32


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up() -> None:
    """What every command does before JAX is first used."""
    set_up_cpu()
    keep_compiled_programs()


def set_up_cpu() -> None:
    """Makes each core a device, unless a number was chosen already, and keeps freed memory.

    To be called before JAX is first used. One device with all cores as its threads is slower: many of its
    operations use one thread.
    """
    _allow_pauses()
    if getattr(jax.config, "jax_num_cpu_devices", -1) == -1:
        jax.config.update("jax_num_cpu_devices", num_cores())
    _keep_freed_memory()


def _allow_pauses() -> None:
    """Lets a run that was suspended, by Ctrl-Z or with the whole computer, go on.

    XLA:CPU aborts the process when one device has waited a minute for another. As a flag, because
    the option of a single program has no effect.
    """
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds"
    flags = os.environ.get("XLA_FLAGS", "")
    if limit not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {limit}={24 * 3600}".strip()


def keep_compiled_programs() -> None:
    """Keeps what is compiled in the user's cache, so that a second start compiles nothing.

    In a folder for this kind of processor alone: a home directory may be shared by machines that cannot
    run each other's programs. `JAX_COMPILATION_CACHE_DIR` chooses another folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path.home() / ".cache" / "cifar_flax" / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no place for it: each start compiles
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """A name for all that a processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        what = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        what = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


# mallopt's parameters and values, from glibc's malloc.h.
_MALLOPT = {"M_MMAP_THRESHOLD": (-3, 2**27), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def _keep_freed_memory() -> None:
    """Tells glibc, where that is the C library, to keep what a step frees for the next step.

    It would return a step's temporary arrays, which XLA:CPU asks for as one block a device, to the system, which
    then gives them back page by page: a quarter of the compact network's step on a CPU. Larger blocks are returned
    all the same: an aligned block that was freed may be too small for the next of its size, by the few bytes that
    aligning takes, and then each step takes one more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in _MALLOPT.values():
        if mallopt is not None:
            mallopt(parameter, value)


def make_mesh(batch_size: int) -> Mesh:
    """A 1-D mesh named `data` of as many devices as divide the batch into useful parts."""
    limit = min(jax.device_count(), max(1, batch_size // _MIN_IMAGES_PER_DEVICE))
    size = next(n for n in range(limit, 0, -1) if batch_size % n == 0)
    return Mesh(np.array(jax.devices()[:size]), ("data",))


def compiler_options() -> dict[str, str]:
    """Makes XLA:CPU honour the model's optimization barriers, which it otherwise drops before it fuses."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}


def activation_dtype(precision: str) -> Any:
    """The dtype of the activations that a config's `precision` means on this machine.

    On a CPU float32, whatever the precision: XLA:CPU's loops over bfloat16 numbers are slower than those over float32.
    """
    return jnp.dtype("float32" if jax.default_backend() == "cpu" or precision == "float32" else "bfloat16")


def factor_dtype(precision: str) -> Any:
    """The dtype to which wide convolutions round what they multiply; None for that of the activations."""
    return jnp.dtype("bfloat16") if jax.default_backend() == "cpu" and precision == "bfloat16" else None
