"""A trained network, from wherever it is kept: a run directory, one of its checkpoints, or a file of weights."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

import cifar_flax
from cifar_flax.config import Config
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve
from cifar_flax.network import weights
from cifar_flax.network.model import ResNet
from cifar_flax.training import checkpoint, rundir
from cifar_flax.training.program import build_model, build_program

EMBEDDED = Path(cifar_flax.__file__).parent / "pretrained" / "compact.safetensors"


class Network(NamedTuple):
    """A trained network.

    Attributes:
      name: where it came from.
      model: its architecture, for this machine.
      params: its averaged parameters, those that training evaluates.
      config: its run's config.
      rows: its run's metrics, one an epoch; empty if unknown.
      digest: SHA-256 of the parameters.
      folder: where its explanation goes unless told otherwise: its run, beside its file, or the current directory.
      precision: in which training evaluated it, and `model` computes.
    """

    name: str
    model: ResNet
    params: Any
    config: Config
    rows: list[dict[str, Any]]
    digest: str
    folder: Path = Path()
    precision: str = "float32"


def load_network(path: Path | None, flag: str = "--ckpt") -> Network:
    """Loads a network from a run directory, one of its epochs, or a file of weights.

    Args:
      path: `runs/x`, `runs/x/checkpoints/12`, `x.safetensors`, or None for the embedded network.
      flag: that named it, for messages.

    Raises:
      UserError: there is none, it is broken, or its parameters are not those of its own config.
    """
    if path is None:
        return _from_weights(EMBEDDED, "embedded compact network", Path())
    if path.is_file():
        return _from_weights(path, str(path), path.parent)
    run, epoch = _locate(path, flag)
    return _from_run(run, epoch)


def _locate(path: Path, flag: str) -> tuple[Path, int | None]:
    """The run directory that a path names, and the epoch if it names one: `runs/1`, `runs/1/checkpoints/12`, `12`."""
    if (path / rundir.CONFIG).exists() and not checkpoint.is_checkpoint(path):
        return path, None
    resolved = path.resolve()  # a relative path may have no parents
    if resolved.name.isdigit() and (resolved.parents[1] / rundir.CONFIG).exists():
        return path.parent.parent if len(path.parts) > 2 else resolved.parents[1], int(resolved.name)
    raise UserError(
        f"{flag} {path} is no checkpoint: expected a run directory, one of its checkpoints/<epoch>, "
        "or a .safetensors file"
    )


def _from_weights(path: Path, name: str, folder: Path) -> Network:
    loaded = weights.load_weights(path)
    rows, digest = loaded.about.get("metrics", []), weights.digest(loaded.params)
    precision = loaded.about.get("precision", "float32")
    model = build_model(loaded.config, resolve(precision, 1))
    return Network(name, model, loaded.params, loaded.config, rows, digest, folder, precision)


def _from_run(folder: Path, epoch: int | None) -> Network:
    finished = {int(path.name): path for path in checkpoint.find(folder / rundir.CHECKPOINTS) if path.name.isdigit()}
    if not finished:
        raise UserError(f"{folder} has no finished checkpoint yet: let it train for an epoch")
    if epoch is not None and epoch not in finished:
        raise UserError(f"{folder} has no checkpoint of epoch {epoch}: it has {', '.join(map(str, finished))}")
    epoch = max(finished) if epoch is None else epoch
    config = checkpoint.read_config(finished[epoch])  # the checksummed copy
    checkpoint.require_config(finished[epoch], rundir.read_config(folder))
    like = jax.eval_shape(build_program(config, config.batch_size).create_state)
    progress = checkpoint.restore(finished[epoch], like)
    params, name = progress.state.ema_params, f"{folder}, epoch {epoch}"
    weights.require_finite(name, params)
    precision = checkpoint.read_execution(finished[epoch]).get("precision", "float32")
    model, digest = build_model(config, resolve(precision, 1)), weights.digest(params)
    return Network(name, model, params, config, progress.rows, digest, folder, precision)


def export(network: Network, path: Path, *, half: bool = False) -> None:
    """Writes a network and its training's metrics as one `.safetensors` file, for `load_network`.

    With `half` its numbers are float16, and the file is half as large.

    Raises:
      UserError: the file exists, has another ending than `.safetensors`, or cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"--export {path}: expected a name that ends in .safetensors")
    if path.exists():
        raise UserError(f"--export {path} exists: choose another, or delete it")
    about = {"metrics": network.rows, "precision": network.precision}
    try:
        weights.save_weights(path, network.params, network.config, about, half=half)
    except OSError as error:
        raise UserError(f"--export {path} cannot be written: {error.strerror}; choose another") from error
