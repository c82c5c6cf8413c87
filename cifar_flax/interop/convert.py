"""Networks to and from PyTorch.

PyTorch's are state dicts of the common CIFAR ResNet (`conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`,
`layer1.0.shortcut.0.weight`, ..., `linear.weight`), as `.safetensors`, which needs no PyTorch, or `.pth` or `.pt`,
which does. Its norms are `GroupNorm(1, C)`; to be explained, a network may have BatchNorm too. What comes in may have
torchvision's names (`downsample`, `fc`).
"""

import dataclasses
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from cifar_flax import config, files
from cifar_flax.config import PRESETS, Config
from cifar_flax.data import CIFAR10, DataSpec
from cifar_flax.errors import UserError
from cifar_flax.network import model, weights
from cifar_flax.network.build import build_model

MODULE = Path(__file__).parent / "pytorch" / "resnet.py"
_PICKLES = (".pth", ".pt")
# Where training scripts put the state dict when they save more than that.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

# Our names, and PyTorch's: of the layers before and after the blocks, and of a block's parts.
_ENDS = {"conv": "conv1", "norm": "bn1", "linear": "linear"}
_PARTS = {
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "shortcut_conv": "shortcut.0",
    "shortcut_norm": "shortcut.1",
}
_BATCH_NORM_EPSILON = 1e-5  # PyTorch's


# ---- names and layouts ---------------------------------------------------------------------------


def torch_name(path: str) -> str:
    """PyTorch's name of a parameter of ours.

    Example:
      >>> torch_name("stage2_block1.shortcut_conv.kernel")
      'layer2.0.shortcut.0.weight'
    """
    *owner, leaf = path.split(".")
    kind = "bias" if leaf == "bias" else "weight"
    if owner[0] in _ENDS:
        return f"{_ENDS[owner[0]]}.{kind}"
    stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", owner[0]).groups()  # type: ignore[union-attr]
    return f"layer{stage}.{int(block) - 1}.{_PARTS[owner[1]]}.{kind}"


# Axes of our layouts in PyTorch's order: [h, w, in, out] to [out, in, h, w], [in, out] to [out, in].
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def _common_name(name: str) -> str:
    """A name in the common CIFAR ResNet, of one in torchvision's or with the prefix that DataParallel adds.

    Example:
      >>> _common_name("module.layer2.0.downsample.0.weight")
      'layer2.0.shortcut.0.weight'
    """
    return re.sub(r"^fc\.", "linear.", name.removeprefix("module.")).replace(".downsample.", ".shortcut.")


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
    """A parameter tree of a network with LayerNorm as PyTorch's state dict."""
    flat = {path: np.asarray(leaf) for path, leaf in weights.flatten(params).items()}
    return {torch_name(path): np.ascontiguousarray(leaf.transpose(_AXES[leaf.ndim])) for path, leaf in flat.items()}


def from_state_dict(
    state_dict: dict[str, np.ndarray], strides: tuple[int, ...] | None = None
) -> tuple[dict[str, Any], Config]:
    """A state dict of PyTorch's as a parameter tree of ours, and the config of its network.

    Args:
      state_dict: names to arrays, in the common CIFAR ResNet or in torchvision's; the prefix `module.` is dropped.
      strides: stride of each stage's first block, which no tensor tells. None: with BatchNorm 1, 2, 2, 2, as both
        have it (2 where a shortcut is projected); else those of the preset with the same widths.

    Returns:
      A nested dict of float32 arrays, `linear.bias` one of each class, and a preset's config with the network's
      widths, strides, blocks and norm. BatchNorm is folded into scales and biases.

    Raises:
      UserError: it is of another architecture; or tensors are missing, of another shape, left over or not finite.
    """
    found = {_common_name(name): x for name, x in state_dict.items() if not name.endswith("num_batches_tracked")}
    run_config = _config_of(found, strides)
    network = build_model(run_config, spec=numbered(_num_classes(found)))
    like = weights.flatten(model.param_shapes(network))
    expected = to_state_dict(weights.unflatten({path: np.broadcast_to(0.0, x.shape) for path, x in like.items()}))
    norms = [name.removesuffix(".bias") for name in expected if name.endswith(".bias") and name != "linear.bias"]
    if run_config.norm == "affine":
        expected |= {f"{norm}.running_{what}": expected[f"{norm}.bias"] for norm in norms for what in ("mean", "var")}
    if problems := weights.differences(found, expected):
        blocks = f", blocks {joined(run_config.blocks)}" if run_config.blocks else ""
        raise UserError(
            f"the state dict is not that of a ResNet of widths {joined(run_config.widths)}{blocks} and strides "
            f"{joined(run_config.strides)}: {problems}"
        )
    if run_config.norm == "affine":
        for norm in norms:
            found |= _folded(found, norm)
    weights.require_finite("the state dict", found)
    ours = {path: found[torch_name(path)].transpose(np.argsort(_AXES[x.ndim])) for path, x in like.items()}
    return weights.unflatten({path: np.ascontiguousarray(x, np.float32) for path, x in ours.items()}), run_config


def _folded(found: dict[str, np.ndarray], norm: str) -> dict[str, np.ndarray]:
    """A BatchNorm's weight and bias once its statistics, which no longer change, are part of them.

    (x - mean) / sqrt(var + epsilon) * weight + bias is x * scale + (bias - mean * scale).
    """
    weight, bias, mean, var = (
        found[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    with np.errstate(invalid="ignore"):  # a negative variance gives NaN, which is refused by name
        scale = weight / np.sqrt(var + _BATCH_NORM_EPSILON)
        return {f"{norm}.weight": scale, f"{norm}.bias": bias - mean * scale}


def joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def numbered(num_classes: int) -> DataSpec:
    """A data set whose classes are named by their numbers, and all else as in CIFAR-10."""
    return dataclasses.replace(CIFAR10, class_names=tuple(map(str, range(num_classes))))


def _num_classes(found: dict[str, np.ndarray]) -> int:
    count = len(found["linear.bias"]) if np.ndim(found.get("linear.bias", 0)) == 1 else CIFAR10.num_classes
    if count < 2:
        raise UserError(f"the last layer has {count} output: expected one for each class, two or more")
    return count


def _config_of(found: dict[str, np.ndarray], strides: tuple[int, ...] | None) -> Config:
    widths, blocks = [], []
    while (name := f"layer{len(widths) + 1}.0.conv1.weight") in found:
        widths.append(int(np.shape(found[name])[0]) if np.ndim(found[name]) else 0)
        stage = name.partition(".")[0]
        blocks.append(next(j for j in range(len(found) + 1) if f"{stage}.{j}.conv1.weight" not in found))
    widths, blocks = tuple(widths), tuple(blocks)
    if not widths:
        raise UserError(
            "no layer1.0.conv1.weight among "
            f"{', '.join(sorted(found)[:5]) or 'no tensors'}: expected the state dict of the common CIFAR ResNet"
        )
    if thirds := sorted(name for name in found if ".conv3." in name):
        raise UserError(f"{thirds[0]} is of a Bottleneck block: expected basic blocks, as ResNet-18 and -34 have")
    if (size := np.shape(found.get("conv1.weight", 0))[2:]) not in ((), (3, 3)):
        raise UserError(
            f"the first convolution is {joined(size).replace(',', 'x')}, for large images as ImageNet's: "
            "expected 3x3 and no pooling after it, for images as small as CIFAR-10's"
        )
    has_batch_norm = any(name.endswith(("running_mean", "running_var")) for name in found)
    known = {preset.widths: preset for preset in PRESETS.values() if preset.dataset == "cifar10"}
    base = known.get(widths, PRESETS["resnet18"])
    if strides is None and has_batch_norm:  # as is usual elsewhere: 2 where the shortcut is projected
        strides = tuple(2 if f"layer{i + 1}.0.shortcut.0.weight" in found else 1 for i in range(len(widths)))
    elif strides is None:
        if widths not in known:
            raise UserError(
                f"strides of widths {joined(widths)} are not known: give them with --strides, as in 1,2,2,2"
            )
        strides = base.strides
    return config.from_flags(
        {
            "preset": base.preset,
            "widths": widths,
            "strides": strides,
            "blocks": () if set(blocks) == {2} else blocks,
            "norm": "affine" if has_batch_norm else "layer",
        }
    )


# ---- files ---------------------------------------------------------------------------------------


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{path}: a {path.suffix} file needs PyTorch; install it, or use .safetensors") from error
    return torch


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file, as NumPy arrays. No code in it is run.

    Raises:
      UserError: it cannot be read; or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: expected a .safetensors, .pth or .pt file")
    if path.suffix == ".safetensors":
        return weights.read_tensors(path)[0]
    if path.suffix not in _PICKLES:
        raise UserError(f"{path} is of an unknown kind: expected a .safetensors, .pth or .pt file")
    torch = _torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # pickle and torch raise nearly anything
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"  # as torch.save wrote before version 1.6; since then, a zip file
        if not is_pickle and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path} cannot be read: it is damaged, or no file of torch.save; copy or save it again"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read with weights_only=True: {reason} "
            "Save the state dict alone: torch.save(model.state_dict(), path)"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: expected names to tensors, as model.state_dict() gives")
    return {name: tensor.detach().float().numpy() for name, tensor in content.items()}


def stored(path: Path) -> tuple[tuple[int, ...] | None, DataSpec | None]:
    """The strides and the data set that `write_state_dict` stored in a `.safetensors` file; None where it has none.

    Raises:
      UserError: it says of a data set what cannot be.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None, None
    about = weights.read_tensors(path)[1]
    strides, spec = about.get("strides", ""), about.get("data")
    return (
        tuple(map(int, strides.split(","))) if re.fullmatch("[1-9](,[1-9])*", strides) else None,
        None if spec is None else DataSpec.from_json(spec),
    )


def write_state_dict(
    path: Path, state_dict: dict[str, np.ndarray], strides: tuple[int, ...] = (), spec: DataSpec | None = None
) -> None:
    """Writes a state dict, complete or not at all, as the path's suffix says.

    A `.safetensors` file also says the strides and the data set.

    Raises:
      UserError: the suffix is another, the file exists, or it cannot be written.
    """
    if path.suffix not in (".safetensors", *_PICKLES):
        raise UserError(f"--out {path} is of an unknown kind: expected .safetensors, .pth or .pt")
    files.refuse_existing(path)
    if path.suffix == ".safetensors":
        about = {"format": "pt", "strides": joined(strides)} | ({} if spec is None else {"data": spec.to_json()})
        content = safetensors.numpy.save(state_dict, about)
    else:
        torch = _torch(path)
        buffer = io.BytesIO()
        torch.save({name: torch.tensor(tensor) for name, tensor in state_dict.items()}, buffer)
        content = buffer.getvalue()
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}; choose another") from error
