"""A network as StableHLO: one file with its parameters inside, which JAX alone runs, on a CPU, GPU or TPU."""

from pathlib import Path

import jax
import jax.numpy as jnp

from cifar_flax import files
from cifar_flax.errors import UserError
from cifar_flax.network import model
from cifar_flax.network.build import build_model
from cifar_flax.training.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: Path, network: Trained) -> None:
    """Exports the forward pass of uint8 images `[B, H, W, 3]`, any B, to float32 logits `[B, C]`.

    The network is in Flax's own operations and float32, whatever machine this is. `jax.export` promises to read such a
    file for six months of JAX versions at least.

    Args:
      path: the file to write; must not exist.
      network: the network.

    Raises:
      UserError: the file exists or cannot be written, or flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401 (jax.export asks for it late, and without a word of where to get it)
    except ImportError as error:
        raise UserError("--format stablehlo needs flatbuffers: pip install 'cifar-flax[export]'") from error
    files.refuse_existing(path)
    plain, params = build_model(network.config, spec=network.spec), jax.device_get(network.params)

    def logits(images: jax.Array) -> jax.Array:
        return model.forward(plain, params, plain.spec.normalize(images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.spec.image_shape), jnp.uint8)
    content = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize()
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}; choose another") from error
