"""What training left: a network from a run directory, one of its checkpoints, or a file of weights."""

import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import jax

import cifar_flax
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.data import DataSpec
from cifar_flax.errors import UserError
from cifar_flax.network import weights
from cifar_flax.training import checkpoint, rundir
from cifar_flax.training.program import build_program

_FOLDER = Path(cifar_flax.__file__).parent / "pretrained"
# The published networks, which come with this package; the first is taken where none is named.
PUBLISHED = {name: _FOLDER / f"{name}.safetensors" for name in ("compact", "resnet18")}
PUBLISHED_AS = "model.safetensors"  # in a folder that `cifar-flax publish` made


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network as it is stored.

    Attributes:
      name: where it came from.
      params: its averaged parameters, those that training evaluates.
      config: its run's config.
      spec: the data set that it was trained on.
      history: its run's metrics, one an epoch; empty if unknown.
      precision: in which training evaluated it.
      folder: where its explanation goes unless told otherwise: its run, beside its file, or the current directory.
      imported_from: the file that it was imported from; "" where this program trained it.
    """

    name: str
    params: Any
    config: Config
    spec: DataSpec
    history: list[dict[str, Any]]
    precision: str = "float32"
    folder: Path = Path()
    imported_from: str = ""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the parameters."""
        return weights.digest(self.params)


def load(path: str | os.PathLike | None, flag: str = "--ckpt") -> Trained:
    """Loads a network.

    Args:
      path: `runs/x`, `runs/x/checkpoints/12`, `x.safetensors`, a folder that holds `model.safetensors`, a name of
        `PUBLISHED`, or None for the first of these.
        A file, a run or a folder with a model of that name comes before a published network.
      flag: that named it, for messages.

    Raises:
      UserError: there is none, it is broken, or its parameters are not those of its own config.
    """
    if path is None or (str(path) in PUBLISHED and not _is_network(Path(path))):
        name = next(iter(PUBLISHED)) if path is None else str(path)
        return _from_file(PUBLISHED[name], f"published {name} network", Path())
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{flag} is {path!r}: expected a path, or one of {', '.join(PUBLISHED)}")
    path = Path(path)
    if (path / PUBLISHED_AS).is_file():
        path /= PUBLISHED_AS
    if path.is_file():
        return _from_file(path, str(path), path.parent)
    run, epoch = _locate(path, flag)
    return _from_run(run, epoch)


def _is_network(path: Path) -> bool:
    return path.is_file() or any((path / name).exists() for name in (rundir.CONFIG, PUBLISHED_AS))


def _locate(path: Path, flag: str) -> tuple[Path, int | None]:
    """The run directory that a path names, and the epoch if it names one: `runs/1`, `runs/1/checkpoints/12`, `12`."""
    if (path / rundir.CONFIG).exists() and not checkpoint.is_checkpoint(path):
        return path, None
    resolved = path.resolve()  # a relative path may have no parents
    if resolved.name.isdigit() and (resolved.parents[1] / rundir.CONFIG).exists():
        return path.parent.parent if len(path.parts) > 2 else resolved.parents[1], int(resolved.name)
    raise UserError(
        f"{flag} {path} is no checkpoint: expected a run directory, one of its checkpoints/<epoch>, "
        f"a .safetensors file, or {' or '.join(PUBLISHED)}"
    )


def _from_file(path: Path, name: str, folder: Path) -> Trained:
    loaded = weights.load_weights(path)
    history, precision = loaded.about.get("metrics", []), loaded.about.get("precision", "float32")
    origin = loaded.about.get("imported_from", "")
    return Trained(name, loaded.params, loaded.config, loaded.spec, history, precision, folder, origin)


def _from_run(folder: Path, epoch: int | None) -> Trained:
    finished = {int(path.name): path for path in checkpoint.find(folder / rundir.CHECKPOINTS) if path.name.isdigit()}
    if not finished:
        raise UserError(f"{folder} has no finished checkpoint yet: let it train for an epoch")
    if epoch is not None and epoch not in finished:
        raise UserError(f"{folder} has no checkpoint of epoch {epoch}: it has {', '.join(map(str, finished))}")
    epoch = max(finished) if epoch is None else epoch
    config = checkpoint.read_config(finished[epoch])  # the checksummed copy
    checkpoint.require_config(finished[epoch], rundir.read_config(folder))
    spec = checkpoint.read_spec(finished[epoch])
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    like = jax.eval_shape(build_program(config, config.batch_size, spec=spec).create_state)
    progress = checkpoint.restore(finished[epoch], like)
    name = f"{folder}, epoch {epoch}"
    weights.require_finite(name, progress.state.ema_params)
    precision = checkpoint.read_execution(finished[epoch]).get("precision", "float32")
    return Trained(name, progress.state.ema_params, config, spec, progress.rows, precision, folder)


def export(trained: Trained, path: Path, *, half: bool = False) -> str:
    """Writes a network and its training's metrics as one `.safetensors` file, for `load`.

    With `half` its numbers are float16, and the file is half as large.

    Returns:
      The digest of the network that the file holds.

    Raises:
      UserError: the file exists, has another ending than `.safetensors`, or cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"--out {path}: expected a name that ends in .safetensors")
    files.refuse_existing(path)
    about = {"metrics": trained.history, "precision": trained.precision}
    about |= {"imported_from": trained.imported_from} if trained.imported_from else {}
    try:
        return weights.save_weights(path, trained.params, trained.config, about, trained.spec, half=half)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}; choose another") from error
