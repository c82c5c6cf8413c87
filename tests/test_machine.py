import os
import platform
import subprocess
import sys

import jax
import pytest

from cifar_flax import machine


@pytest.fixture
def cache_dir(monkeypatch, tmp_path):
    """Where JAX would keep compiled programs, with a home of its own and no choice in the environment."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield lambda: getattr(jax.config, names[0])
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_home_directory_by_processor(cache_dir, tmp_path):
    machine.keep_compiled_programs()
    (folder,) = (tmp_path / "home/.cache/cifar_flax/compiled").iterdir()
    assert cache_dir() == str(folder)


def test_a_home_that_cannot_be_written_keeps_nothing(cache_dir, tmp_path):
    (tmp_path / "home").write_text("a file")
    machine.keep_compiled_programs()
    assert cache_dir() is None


def test_a_choice_in_the_environment_stands(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    machine.keep_compiled_programs()
    assert cache_dir() is None and not (tmp_path / "home").exists()


def test_a_limit_on_waiting_in_the_environment_stands(monkeypatch):
    name = "--xla_cpu_collective_call_terminate_timeout_seconds"
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    machine.set_up_cpu()
    assert os.environ["XLA_FLAGS"] == f"--other=1 {name}=86400"
    monkeypatch.setenv("XLA_FLAGS", f"{name}=7")
    machine.set_up_cpu()
    assert os.environ["XLA_FLAGS"] == f"{name}=7"


# What XLA:CPU does with a step's temporary arrays: one aligned block, written and freed, among small ones that stay.
_STEPS = """
import ctypes, resource, sys
from cifar_flax import machine

machine.set_up_cpu()
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = ctypes.c_void_p
size, small_blocks = int(sys.argv[1]) << 20, int(sys.argv[2])
after_step = machine.keep_large_blocks(1) if sys.argv[3] == "watched" else lambda: None

def step():
    block = libc.aligned_alloc(64, ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    for _ in range(small_blocks):
        libc.malloc(ctypes.c_size_t(24))
    libc.free(ctypes.c_void_p(block))
    after_step()

def resident():
    return machine.resident() >> 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step()
before, grown, taken = resident(), [], []
for _ in range(40):
    start = faults()
    step()
    taken.append(faults() - start)
    grown.append(resident() - before)
print(max(grown), max(taken[20:]))
"""


def _megabytes_and_pages(megabytes: int, small_blocks: int, watched: str) -> tuple[int, int]:
    """By how much steps with a block of this size grow a process, and how many pages the system gives to one.

    At most, of 40 steps and of the last 20: the first ten or so may each take a new block from the system, until the
    thread's cache is full of what aligning splits off (seven pieces of a size).
    """
    command = [sys.executable, "-c", _STEPS, str(megabytes), str(small_blocks), watched]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, pages = map(int, done.stdout.split())
    return grown, pages


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's malloc")


@needs_glibc
@pytest.mark.parametrize(
    "megabytes",
    [pytest.param(123, id="quarter width"), pytest.param(400, id="full width", marks=pytest.mark.slow)],
)
def test_a_wide_networks_block_does_not_grow_a_process_that_is_not_watched(megabytes):
    assert _megabytes_and_pages(megabytes, 1000, "alone")[0] < 30


@needs_glibc
@pytest.mark.parametrize("megabytes", [112, 400], ids=["compact", "full width"])
def test_a_block_is_kept_while_it_is_watched(megabytes):
    """112 MiB are 28,672 pages."""
    assert _megabytes_and_pages(megabytes, 0, "watched")[1] < 1000


@needs_glibc
@pytest.mark.parametrize("megabytes", [112, 400], ids=["compact", "full width"])
def test_what_is_kept_grows_by_a_block_and_240_megabytes_at_most(megabytes):
    assert _megabytes_and_pages(megabytes, 1000, "watched")[0] < megabytes + 250


class Glibc:
    """Writes down what it is told."""

    def __init__(self, most: int = 2**31 - 1) -> None:
        self.most, self.told = most, []

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return int(value <= self.most)

    def malloc_trim(self, pad: int) -> int:
        self.told.append("trim")
        return 1


@pytest.fixture
def told(monkeypatch):
    """What a process of these megabytes, looked at after each step, tells glibc: a list for each step."""

    def tell(*megabytes):
        glibc, sizes, steps = Glibc(), iter(megabytes), []
        monkeypatch.setattr(machine, "find_glibc", lambda: glibc)
        monkeypatch.setattr(machine, "resident", lambda: 1)
        after_step = machine.keep_large_blocks(2)
        assert glibc.told == []  # a program may be built and never run
        monkeypatch.setattr(machine, "resident", lambda: next(sizes) * 10**6)
        for _ in megabytes:
            glibc.told.clear()
            after_step()
            steps.append(list(glibc.told))
        return steps

    return tell


ALL, SMALL = ((machine.M_MMAP_THRESHOLD, size) for size in (10**9, 120_000_000))


def test_what_is_free_goes_back_after_the_first_step_and_where_a_process_grew_by_240_megabytes_a_device(told):
    steps = told(300, 1000, 1480, 1481, 1200, 1680, 1681)
    assert steps == [[ALL, "trim"], [], [], ["trim"], [], [], ["trim"]]


def test_a_process_that_grows_again_and_again_is_told_to_keep_no_large_block(told):
    """By one block every third step, so that each twelfth is too much."""
    steps = told(300, *[100 + 117 * (i % 12 // 3) + 500 * (i % 12 == 11) for i in range(12 * 60)])
    told_small = [i for i, step in enumerate(steps) if SMALL in step]
    assert 12 * 40 < told_small[0] < 12 * 60 and all("trim" in steps[i] for i in told_small)


def test_a_process_that_grows_twice_an_epoch_keeps_its_large_blocks(told):
    half_an_epoch = [100] * 195 + [900]
    assert not any(SMALL in step for step in told(300, *half_an_epoch * 80))


def test_an_older_glibc_keeps_what_it_can(monkeypatch):
    glibc = Glibc(most=2**25)
    monkeypatch.setattr(machine, "find_glibc", lambda: glibc)
    machine.set_up_cpu()
    assert glibc.told[:2] == [(machine.M_MMAP_THRESHOLD, 120_000_000), (machine.M_MMAP_THRESHOLD, 2**25)]


@pytest.mark.parametrize("text", [OSError, "hidden"])
def test_without_the_systems_word_on_its_memory_large_blocks_are_not_kept(monkeypatch, text):
    def read_text(path):
        raise text

    glibc = Glibc()
    monkeypatch.setattr(machine, "find_glibc", lambda: glibc)
    monkeypatch.setattr(machine.Path, "read_text", read_text if text is OSError else lambda path: text)
    machine.keep_large_blocks(2)()
    assert glibc.told == []


def test_memory_is_the_least_that_the_machine_and_its_control_group_allow(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}[name])
    for text, expected in (("max\n", 2**32), ("1073741824\n", 2**30), ("9223372036854771712\n", 2**32)):
        monkeypatch.setattr(machine.Path, "read_text", lambda path, text=text: text)
        assert machine.memory() == expected


@pytest.mark.slow
def test_a_kept_program_that_is_cut_off_is_compiled_again_without_a_word(tmp_path):
    """As one is that another process is just writing."""
    code = """
import pathlib, sys
from cifar_flax import machine
machine.set_up()
import jax
double = jax.jit(lambda x: 2 * x)
double(1.0)
kept = [path for path in pathlib.Path(sys.argv[1]).iterdir() if path.name.endswith("-cache")]
for path in kept:
    path.write_bytes(path.read_bytes()[:50])
jax.clear_caches()
print(len(kept) > 0, double(2.0))
"""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 4.0\n", "")
