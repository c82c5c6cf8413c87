"""The machine, made ready: cores as devices, freed memory kept, compiled programs kept."""

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib

import cifar_flax


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
    # XLA cannot write a program that calls oneDNN, nor read one that another process is just writing: it compiles it.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path.home() / ".cache" / "cifar_flax" / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no place for it: each start compiles
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def place_of_note(what: str) -> Path | None:
    """A file, beside the compiled programs, that is there if so much is known of this processor and versions.

    None where compiled programs are not kept.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not folder:
        return None
    known = f"{_processor()}, jaxlib {jaxlib.__version__}, cifar_flax {cifar_flax.__version__}: {what}"
    return Path(folder) / f"known-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def cpu_flags() -> set[str]:
    """What the processor can do, in Linux's words; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        return {platform.processor()}


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in it."""
    return bool({"amx_bf16", "avx512_bf16"} & cpu_flags())


def _processor() -> str:
    """A name for all that a processor can do."""
    digest = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_UNWATCHED, _KEPT_WATCHED = 120_000_000, 10**9  # bytes of a block


def find_glibc() -> Any:
    """The C library, where it is glibc; else None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _keep_blocks(glibc: Any, size: int) -> None:
    """Has blocks of up to so many bytes kept when they are freed; larger ones go back to the system."""
    if not glibc.mallopt(M_MMAP_THRESHOLD, size):
        glibc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that older versions accept


def _keep_freed_memory() -> None:
    """Tells glibc, where that is the C library, to keep what a step frees, in blocks of up to 120 MB, for the next.

    It would return a step's temporary arrays, which XLA:CPU asks for as one block a device, to the system, which
    then gives them back page by page: a sixth of a small network's step on a CPU. Larger ones are kept only by
    `keep_large_blocks`, which watches them.
    """
    if glibc := find_glibc():
        _keep_blocks(glibc, _KEPT_UNWATCHED)
        glibc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        glibc.mallopt(_M_ARENA_MAX, 1)


# Bytes a device by which a process may grow before what is free is given back; how often that may happen before
# large blocks are no longer kept; and the steps after which one of these chances is there again.
_GROWTH, _CHANCES, _STEPS_A_CHANCE = 240_000_000, 40, 50


def keep_large_blocks(num_devices: int) -> Callable[[], None]:
    """A function to call after each step: from the first on, freed blocks of up to 1 GB are kept, within limits.

    An aligned block that was freed may be too small for the next of its size, by the few bytes that aligning takes
    (glibc's bug 30723, fixed in 2.39). Mostly that is over within a hundred steps, when the thread's cache is full of
    such pieces; but by chance a process may come to hold any number of blocks. So where it has grown by 240 MB a
    device, the system gets back all that is free; and where that happens again and again, new blocks of over 120 MB
    are no longer kept. Without glibc, or where the system does not say how much memory a process has, nothing is done.
    """
    glibc = find_glibc()
    if glibc is None or resident() is None:
        return lambda: None
    begun, before, chances = False, None, float(_CHANCES)

    def after_step() -> None:
        nonlocal begun, before, chances
        now = resident() or 0
        if not begun:
            begun = True
            _keep_blocks(glibc, _KEPT_WATCHED)
            glibc.malloc_trim(0)  # what was needed to read and to compile
        elif before is None:
            before = now
        elif now > before + num_devices * _GROWTH:
            glibc.malloc_trim(0)
            before, chances = None, chances - 1
            if chances <= 0:
                _keep_blocks(glibc, _KEPT_UNWATCHED)
        else:
            chances = min(_CHANCES, chances + 1 / _STEPS_A_CHANCE)

    return after_step


def resident() -> int | None:
    """Bytes of this process that are in memory; None where that is not Linux's to say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def memory() -> int | None:
    """Bytes of memory that this process may use, by the machine or its control group; None where neither says."""
    limits = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # versions 2 and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)
