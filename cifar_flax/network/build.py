"""The network of a config, for what it runs on."""

import contextlib
from collections.abc import Callable

import jax.numpy as jnp

from cifar_flax import machine
from cifar_flax.config import Config
from cifar_flax.data.spec import CIFAR10, DataSpec
from cifar_flax.execution import Execution
from cifar_flax.network import cpu
from cifar_flax.network.forms import PLAIN
from cifar_flax.network.model import ResNet


def build_model(config: Config, execution: Execution | None = None, spec: DataSpec = CIFAR10) -> ResNet:
    """The network of a config and a data set; without an execution in float32 and Flax's own operations."""
    dtype, forms = jnp.float32, PLAIN
    if execution is not None:
        dtype = execution.dtype
        if execution.on_cpu:
            forms = cpu.cpu_forms(execution.mesh.size)
    return ResNet(
        config.widths,
        config.strides,
        config.blocks,
        dtype=dtype,
        forms=forms,
        spec=spec,
        norm_kind=config.norm,
    )


def checked(model: ResNet, execution: Execution, images: int, say: Callable[[str], None]) -> Execution:
    """The execution; in float32 where this CPU's convolutions in bfloat16, of the network's own shapes, are wrong.

    What was found right is noted beside the compiled programs, so that it is not computed at each start.

    Args:
      model: the network, as `build_model` made it for the execution.
      execution: what it is to run on.
      images: of one device's batch.
      say: is told in a line where they are wrong.
    """
    if not execution.on_cpu or execution.precision != "bfloat16":
        return execution
    shapes = cpu.convolutions(model)
    note = machine.place_of_note(f"convolutions in bfloat16: {images} images, {shapes}")
    if note is not None and note.exists():
        return execution
    error = cpu.largest_error(shapes, images, execution.compiler_options)
    if error < cpu.TOLERANCE:
        if note is not None:
            with contextlib.suppress(OSError):  # then it is computed again
                note.touch()
        return execution
    say(f"Note: this machine's convolutions in bfloat16 are wrong, by {error:.2g} of the largest value: float32")
    return execution._replace(precision="float32")
