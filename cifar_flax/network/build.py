"""The network of a config, for what it runs on."""

import jax.numpy as jnp

from cifar_flax.config import Config
from cifar_flax.data.spec import CIFAR10, DataSpec
from cifar_flax.execution import Execution
from cifar_flax.network.cpu import cpu_forms
from cifar_flax.network.forms import PLAIN
from cifar_flax.network.model import ResNet


def build_model(config: Config, execution: Execution | None = None, spec: DataSpec = CIFAR10) -> ResNet:
    """The network of a config and a data set; without an execution in float32 and Flax's own operations."""
    dtype, forms = jnp.float32, PLAIN
    if execution is not None:
        dtype = execution.dtype
        if execution.on_cpu:
            forms = cpu_forms(execution.mesh.size)
    return ResNet(
        config.widths,
        config.strides,
        config.blocks,
        dtype=dtype,
        forms=forms,
        spec=spec,
        norm_kind=config.norm,
    )
