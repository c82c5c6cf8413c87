"""What a run executes on, resolved once: devices, dtype, and how many steps one compiled program takes.

It is an argument of whatever depends on it, so that nothing traced asks the machine what it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_flax import machine
from cifar_flax.errors import UserError

# On a CPU, with fewer images a device, a step's fixed costs outweigh its work.
_MIN_IMAGES_PER_CORE = 32
# XLA:CPU leaves convolutions in bfloat16 to oneDNN, ten times as fast as its own; from this version of jaxlib on.
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}
_ONEDNN_SINCE = (0, 11)
# LLVM's level 2 instead of 3: XLA:CPU compiles what draws random numbers in a third of the time, to the same bits.
QUICK = {"xla_backend_optimization_level": 2}
# Of a GPU: no atomic additions in an order of their own, and no kernels picked by a timing.
_SAME_BITS = {"xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_autotune_level": 0}
# On an accelerator: some 0.3 s of ResNet-18, so that a signal, a checkpoint and the bar are soon served.
_STEPS_AT_ONCE = 50


class Execution(NamedTuple):
    """What a program is built for.

    Attributes:
      mesh: a 1-D mesh named `data` of the devices that share a batch.
      precision: of the activations and convolutions, `float32` or `bfloat16`.
      steps_at_once: training steps that one compiled program takes.
      deterministic: whether a GPU is to give the same bits each time; a CPU does anyway.
    """

    mesh: Mesh
    precision: str
    steps_at_once: int
    deterministic: bool = False

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform

    @property
    def on_cpu(self) -> bool:
        return self.platform == "cpu"

    @property
    def dtype(self) -> Any:
        """The dtype of the activations."""
        return jnp.dtype(self.precision)

    @property
    def replicated(self) -> NamedSharding:
        """An array whole on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_batch(self) -> NamedSharding:
        """An array whose first axis is shared out."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Options of XLA's compiler for the programs of a run."""
        if self.on_cpu:
            # XLA:CPU then honours `network.cpu`'s optimization barriers, which it otherwise drops before it fuses.
            barriers = {"xla_disable_hlo_passes": "cse_barrier_expander"}
            return barriers | QUICK | (ONEDNN if self.precision == "bfloat16" else {})
        if self.platform == "gpu":
            # Without these two searches ResNet-18's first epoch is done after 46 s instead of 62, of which most are
            # compilation, and a step takes 3% longer: docs/results/gpu-compilation-h100.json.
            quick = {"xla_gpu_experimental_enable_fusion_autotuner": False, "xla_gpu_enable_triton_gemm": False}
            return quick | (_SAME_BITS if self.deterministic else {})
        return {}

    def record(self) -> dict[str, Any]:
        """What decides, beside the config, about the bits of a run; as JSON values."""
        return {
            "platform": self.platform,
            "device": self.mesh.devices.flat[0].device_kind,
            "devices": self.mesh.size,
            "processes": jax.process_count(),
            "precision": self.precision,
            "jax": jax.__version__,
        }


def resolve(precision: str, batch_size: int, num_devices: int = 0, *, deterministic: bool = False) -> Execution:
    """What this machine executes a batch on.

    Args:
      precision: `float32`, `bfloat16`, or `auto`: bfloat16 where the devices multiply in it. A CPU that does not
        computes in float32, whatever is asked: emulated, bfloat16 is far slower.
      batch_size: images, to be divided evenly.
      num_devices: how many devices, the same number in each process; 0 for as many as divide the batch
        into useful parts.
      deterministic: as of `Execution`.

    Raises:
      UserError: there are fewer devices, or they do not divide the batch; or the processes cannot share in it alike.
    """
    devices, processes = _devices_by_process()
    on_cpu = devices[0].platform == "cpu"
    if not 0 <= num_devices <= len(devices):
        where = "this machine" if processes == 1 else f"{processes} processes"
        raise UserError(f"--devices is {num_devices}: expected 1 to the {len(devices)} of {where}")
    if num_devices % processes:
        raise UserError(f"--devices is {num_devices}: expected a multiple of the {processes} processes")
    if num_devices and batch_size % num_devices:
        raise UserError(f"--devices is {num_devices}: expected a divisor of the {batch_size} images of --batch-size")
    if batch_size % processes:
        raise UserError(f"--batch-size is {batch_size}: expected a multiple of the {processes} processes")
    limit = min(len(devices), max(processes, batch_size // (_MIN_IMAGES_PER_CORE if on_cpu else 1)))
    size = num_devices or next(n for n in range(limit, 0, -1) if n % processes == 0 and batch_size % n == 0)
    if precision == "auto" or on_cpu:
        precision = "bfloat16" if precision != "float32" and has_bfloat16(devices[0]) else "float32"
    chosen = np.array(devices).reshape(processes, -1)[:, : size // processes].ravel()
    return Execution(Mesh(chosen, ("data",)), precision, 1 if on_cpu else _STEPS_AT_ONCE, deterministic)


def _devices_by_process() -> tuple[list[Any], int]:
    """All devices, those of process 0 first, and the number of processes, each of which has as many."""
    devices, processes = jax.devices(), jax.process_count()
    if processes > 1:
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        counts = [sum(device.process_index == i for device in devices) for i in range(processes)]
        if len(set(counts)) > 1:
            raise UserError(
                f"the {processes} processes have {', '.join(map(str, counts))} devices: expected as many in each"
            )
    return devices, processes


def has_bfloat16(device: Any) -> bool:
    """TPUs do; NVIDIA's cards from compute capability 8.0 on; and CPUs that say so, where XLA calls oneDNN for it."""
    if device.platform == "cpu":
        return machine.cpu_has_bfloat16() and tuple(map(int, jaxlib.__version__.split(".")[:2])) >= _ONEDNN_SINCE
    return float(getattr(device, "compute_capability", None) or 8.0) >= 8.0
