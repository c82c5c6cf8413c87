"""What a run executes on: resolved once, recorded, and refused where it cannot be had."""

import types

import jax
import pytest

from cifar_flax import execution, machine
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve

NEEDS_TWO_DEVICES = pytest.mark.skipif(jax.device_count() != 2, reason="needs exactly two devices, as CPU cores give")
NEEDS_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about CPU-only machines")


def accelerators(monkeypatch, count: int, capability: str | None, platform: str = "gpu"):
    devices = [types.SimpleNamespace(platform=platform, compute_capability=capability, id=i) for i in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(
        execution, "Mesh", lambda devices, axes: types.SimpleNamespace(devices=devices, size=len(devices))
    )


@NEEDS_CPU
@NEEDS_TWO_DEVICES
@pytest.mark.parametrize(("batch_size", "size"), [(64, 2), (63, 1), (32, 1), (256, 2), (99, 1)])
def test_cores_divide_the_batch_into_useful_parts(batch_size, size):
    assert resolve("auto", batch_size).mesh.size == size


def test_accelerators_share_even_small_parts(monkeypatch):
    accelerators(monkeypatch, 8, "9.0")
    assert resolve("auto", 64).mesh.size == 8
    assert resolve("auto", 12).mesh.size == 6


@NEEDS_TWO_DEVICES
def test_a_number_of_devices_can_be_chosen():
    assert resolve("auto", 64, num_devices=1).mesh.size == 1
    for number in (-1, 3):
        with pytest.raises(UserError, match=f"--devices is {number}: expected 1 to the 2 of this machine"):
            resolve("auto", 64, num_devices=number)
    with pytest.raises(UserError, match="--devices is 2: expected a divisor of the 63 images"):
        resolve("auto", 63, num_devices=2)


@NEEDS_CPU
def test_a_cpu_takes_one_step_at_a_time():
    assert resolve("auto", 64).steps_at_once == 1


@NEEDS_CPU
@pytest.mark.parametrize(
    ("flags", "jaxlib", "expected"),
    [
        ({"avx2"}, "0.12.0.1", "float32"),
        ({"avx2", "amx_bf16"}, "0.12.0.1", "bfloat16"),
        ({"avx512_bf16"}, "0.11.2", "bfloat16"),
        ({"avx512_bf16"}, "0.10.2", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_can_and_jaxlib_lets_it(flags, jaxlib, expected, monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr(execution.jaxlib, "__version__", jaxlib)
    assert resolve("auto", 64).dtype == resolve("bfloat16", 64).dtype == expected
    assert resolve("float32", 64).dtype == "float32"


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [("gpu", "7.5", "float32"), ("gpu", "8.0", "bfloat16"), ("gpu", "12.0", "bfloat16"), ("tpu", None, "bfloat16")],
)
def test_precision_follows_what_the_hardware_has(platform, capability, dtype, monkeypatch):
    accelerators(monkeypatch, 1, capability, platform)
    assert resolve("auto", 64).dtype == dtype
    assert resolve("float32", 64).dtype == "float32"
    assert 1 < resolve("auto", 64).steps_at_once <= 100


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_determinism_is_asked_of_a_gpus_compiler(platform, monkeypatch):
    accelerators(monkeypatch, 1, "9.0", platform)
    usual, same = (resolve("auto", 64, deterministic=chosen).compiler_options for chosen in (False, True))
    added = {"xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_autotune_level": 0} if platform == "gpu" else {}
    assert same == usual | added and not added.keys() & usual.keys()
    assert jax.jit(lambda x: x + 1, compiler_options=added)(1.0) == 2  # XLA knows these names


def processes(monkeypatch, counts: list[int]):
    """As many CPU devices in each process as said, in no good order."""
    devices = [
        types.SimpleNamespace(platform="cpu", id=1000 * process + i, process_index=process)
        for process, count in enumerate(counts)
        for i in range(count)
    ]
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])
    monkeypatch.setattr(jax, "process_count", lambda: len(counts))
    monkeypatch.setattr(execution, "Mesh", lambda devices, axes: types.SimpleNamespace(devices=devices))


def test_processes_share_a_batch_alike(monkeypatch):
    processes(monkeypatch, [4, 4])
    ids = {number: [d.id for d in resolve("float32", 256, number).mesh.devices] for number in (0, 2, 4)}
    assert ids == {0: [0, 1, 2, 3, 1000, 1001, 1002, 1003], 2: [0, 1000], 4: [0, 1, 1000, 1001]}
    assert len(resolve("float32", 6).mesh.devices) == 2  # each has its part, though it is small


@pytest.mark.parametrize(
    ("counts", "batch_size", "num_devices", "message"),
    [
        ([2, 2], 64, 1, "--devices is 1: expected a multiple of the 2 processes"),
        ([2, 2, 2], 64, 2, "--devices is 2: expected a multiple of the 3 processes"),
        ([2, 2], 64, 6, "--devices is 6: expected 1 to the 4 of 2 processes"),
        ([2, 2], 66, 4, "--devices is 4: expected a divisor of the 66 images of --batch-size"),
        ([2, 2], 63, 0, "--batch-size is 63: expected a multiple of the 2 processes"),
        ([2, 3], 60, 0, "the 2 processes have 2, 3 devices: expected as many in each"),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused(counts, batch_size, num_devices, message, monkeypatch):
    processes(monkeypatch, counts)
    with pytest.raises(UserError, match=message):
        resolve("float32", batch_size, num_devices)


def test_a_record_says_what_decides_about_bits():
    record = resolve("float32", 64).record()
    assert record.keys() == {"platform", "device", "devices", "processes", "precision", "jax"}
    assert (record["processes"], record["precision"], record["jax"]) == (1, "float32", jax.__version__)
