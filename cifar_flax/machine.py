"""The machine, made ready: cores as devices, freed memory kept, compiled programs kept."""

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import jax


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


def cpu_flags() -> set[str]:
    """What the processor can do, in Linux's words; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        return {platform.processor()}


def _processor() -> str:
    """A name for all that a processor can do."""
    digest = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


# mallopt's parameters and values, from glibc's malloc.h.
_MALLOPT = {"M_MMAP_THRESHOLD": (-3, 120_000_000), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def _keep_freed_memory() -> None:
    """Tells glibc, where that is the C library, to keep what a step frees for the next step.

    It would return a step's temporary arrays, which XLA:CPU asks for as one block a device, to the system, which
    then gives them back page by page: a quarter of a small network's step on a CPU. Larger blocks are returned
    all the same: an aligned block that was freed may be too small for the next of its size, by the few bytes that
    aligning takes (glibc's bug 30723, mended in 2.39), and a process then comes to hold many of them: of 123 MiB,
    ResNet-18's at a quarter of its width, any number. Of the compact network's 111 MiB it does so in some runs and
    not in others, which `freed_memory_limit` is for.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in _MALLOPT.values():
        if mallopt is not None:
            mallopt(parameter, value)


def freed_memory_limit(num_devices: int) -> Callable[[], None]:
    """A function to call after each step, which limits the memory that is kept.

    Where the process has grown by two of the largest blocks a device since its first step, it gives the system back
    all that is free, and counts anew from the next one on. Where the C library is another than glibc, it does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    growth = 2 * num_devices * _MALLOPT["M_MMAP_THRESHOLD"][1]
    first = None

    def after_step() -> None:
        nonlocal first
        if trim is None:
            return
        if first is None:
            first = resident()
        elif resident() > first + growth:
            trim(0)
            first = None

    return after_step


def resident() -> int:
    """Bytes of this process that are in memory, as Linux has it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory() -> int | None:
    """Bytes of memory that this process may use, by the machine or its control group; None where neither says."""
    limits = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # versions 2 and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)
