"""A trained network in one file: parameters as safetensors, its config and figures in the header.

Tensors are named by their path in the parameter tree, joined by dots, for instance
`stage1_block1.conv1.kernel`, in this program's layouts: convolutions `[h, w, in, out]`, dense
`[in, out]`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from cifar_flax import config as config_lib
from cifar_flax import files
from cifar_flax.config import Config
from cifar_flax.data.spec import CIFAR10, DataSpec
from cifar_flax.errors import UserError
from cifar_flax.network.build import build_model
from cifar_flax.network.model import param_shapes

FORMAT = "cifar_flax/2"
# Of the tensors that are read; the others are no numbers that NumPy knows.
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")
PRECISIONS = ("float32", "bfloat16")


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
      params: nested dict of float32 arrays.
      config: the config that it was trained with.
      about: figures and origin, as its maker noted them.
      spec: the data set that it was trained on; CIFAR-10 where the file says nothing.
    """

    params: dict[str, Any]
    config: Config
    about: dict[str, Any]
    spec: DataSpec = CIFAR10


def flatten(params: Any) -> dict[str, Any]:
    """A parameter tree as a dict from dotted paths to its leaves, sorted by path."""
    return dict(sorted(traverse_util.flatten_dict(params, sep=".").items()))


def unflatten(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep=".")


def digest(params: Any) -> str:
    """SHA-256 of the parameters, in hex: the same for the same numbers of the same dtypes, however they are stored."""
    sha = hashlib.sha256()
    for name, tensor in flatten(jax.device_get(params)).items():
        sha.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        sha.update(np.ascontiguousarray(tensor).tobytes())
    return sha.hexdigest()


def save_weights(
    path: Path, params: Any, config: Config, about: dict[str, Any], spec: DataSpec = CIFAR10, *, half: bool = False
) -> str:
    """Writes a file of weights, complete or not at all.

    Args:
      path: the `.safetensors` file.
      params: the parameter tree.
      config: the config of the run.
      about: JSON values to keep with it, such as accuracy and origin.
      spec: the data set that it was trained on.
      half: in float16, at half the size; what is read back is rounded to 11 bits.

    Returns:
      The digest of what is read back.

    Raises:
      UserError: a number is beyond float16, with `half`.
    """
    with np.errstate(over="ignore"):
        tensors = {name: np.asarray(x, np.float16 if half else np.float32) for name, x in flatten(params).items()}
    if half:
        require_finite("what --half writes", tensors)
    header = {"format": FORMAT, "config": config_lib.to_json(config), "about": files.to_json(about)}
    header["data"] = spec.to_json()
    header["sha256"] = _checksum(tensors, header)
    files.write_atomically(path, safetensors.numpy.save(tensors, header))
    return digest({name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def _checksum(tensors: dict[str, np.ndarray], header: dict[str, str]) -> str:
    as_read = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return hashlib.sha256(
        (digest(as_read) + header["config"] + header["about"] + header.get("data", "")).encode()
    ).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file, floating ones as float32, and its metadata.

    Raises:
      UserError: it is not there, or broken.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            for name in names:
                if (kind := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise UserError(
                        f"{path}: {name} is of type {kind}, which is not read; save it as float32, float16 or bfloat16"
                    )
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: expected a .safetensors file") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What separates two dicts of arrays, by name and shape; empty if nothing does."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            lines.append(f"{name} is missing")
        elif name not in expected:
            lines.append(f"{name} is left over")
        elif np.shape(found[name]) != np.shape(expected[name]):
            lines.append(f"{name} is {np.shape(found[name])}, expected {np.shape(expected[name])}")
    return "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")


def require_finite(name: Any, tensors: Any) -> None:
    """Makes sure that all parameters, a tree or a dict of arrays, are finite.

    Raises:
      UserError: one is not; the message names it.
    """
    for path, tensor in flatten(tensors).items():
        if broken := int(np.size(tensor) - np.isfinite(tensor).sum()):
            raise UserError(
                f"{name}: {path} has {broken} numbers of {np.size(tensor)} that are not finite: "
                "the network is broken; use an earlier checkpoint, or train again with a lower rate"
            )


def _read_about(text: str) -> dict[str, Any]:
    """The figures in a header.

    Raises:
      ValueError: they are not what `save_weights` is given.
    """

    def refuse(number: str) -> Any:
        raise ValueError(f"about has the figure {number}")

    about = json.loads(text, parse_constant=refuse)
    if not isinstance(about, dict):
        raise ValueError("about is no object")
    if "metrics" in about:
        about["metrics"] = check_history(about["metrics"])
    if about.get("precision", "float32") not in PRECISIONS:
        raise ValueError(f"precision is {about['precision']}, expected one of {', '.join(PRECISIONS)}")
    return about


def check_history(rows: Any) -> list[dict[str, Any]]:
    """The epochs of a run, as JSON of any version has them: the first one had percentages, as `test_acc`.

    Raises:
      ValueError: they are not such.

    Example:
      >>> check_history([{"epoch": 1, "train_loss": 2.3, "train_acc": 12.5}])
      [{'epoch': 1, 'train_loss': 2.3, 'train_accuracy': 0.125}]
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("metrics is no list of epochs, each a JSON object")
    if broken := [name for row in rows for name, value in row.items() if not isinstance(value, int | float)]:
        raise ValueError(f"an epoch's {broken[0]} is no number")
    return [
        dict((f"{name}uracy", round(x / 100, 10)) if name.endswith("_acc") else (name, x) for name, x in row.items())
        for row in rows
    ]


def load_weights(path: Path) -> Weights:
    """Reads a file that `save_weights` wrote.

    Raises:
      UserError: it is not there, broken, of another program, or not the network of its own config.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is of format {metadata.get('format')}: expected {FORMAT}, as cifar-flax export writes; "
            "a PyTorch state dict becomes one with cifar-flax import"
        )
    try:
        if metadata["sha256"] != _checksum(tensors, metadata):
            raise UserError(f"{path} is damaged: its SHA-256 sum is another than when it was written; get it again")
        about = _read_about(metadata["about"])
        config = config_lib.from_json(metadata["config"])
        spec = DataSpec.from_json(metadata["data"]) if "data" in metadata else CIFAR10
    except UserError:
        raise
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path} has a broken header: {error}") from error
    model = build_model(config, spec=spec)
    expected = flatten(param_shapes(model))
    problems = differences(tensors, expected)
    if problems:
        raise UserError(f"{path} does not hold the network of its config: {problems}")
    require_finite(path, tensors)
    return Weights(unflatten(tensors), config, about, spec)
