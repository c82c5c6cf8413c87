"""Networks to and from PyTorch.

PyTorch's are state dicts of the common CIFAR ResNet (`conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`,
`layer1.0.shortcut.0.weight`, ..., `linear.weight`, its norms `GroupNorm(1, C)`), as `.safetensors`, which needs no
PyTorch, or `.pth` or `.pt`, which does.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from cifar_flax import config, files
from cifar_flax.config import PRESETS, Config
from cifar_flax.data import CIFAR10
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


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
    """A parameter tree of ours as PyTorch's state dict."""
    flat = {path: np.asarray(leaf) for path, leaf in weights.flatten(params).items()}
    return {torch_name(path): np.ascontiguousarray(leaf.transpose(_AXES[leaf.ndim])) for path, leaf in flat.items()}


def from_state_dict(
    state_dict: dict[str, np.ndarray], strides: tuple[int, ...] | None = None
) -> tuple[dict[str, Any], Config]:
    """A state dict of PyTorch's as a parameter tree of ours, and the config of its network.

    Args:
      state_dict: names to arrays; the prefix `module.` that DataParallel adds is dropped.
      strides: stride of each stage's first block, which no tensor tells. None: those of the preset
        with the same widths.

    Returns:
      A nested dict of float32 arrays, and a preset's config with the network's widths and strides.

    Raises:
      UserError: it has running statistics, as BatchNorm has; or tensors are missing, of another
        shape or left over.
    """
    found = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    running = sorted(name for name in found if name.endswith(("running_mean", "running_var")))
    if running:
        raise UserError(
            f"this is a network with BatchNorm ({running[0]} and {len(running) - 1} more): its running "
            "statistics cannot become LayerNorm; expected norms that are GroupNorm(1, C)"
        )
    run_config = _config_of(found, strides)
    network = build_model(run_config)
    like = weights.flatten(jax.eval_shape(lambda key: model.init_params(network, key), jax.random.key(0)))
    expected = to_state_dict(weights.unflatten({path: np.broadcast_to(0.0, x.shape) for path, x in like.items()}))
    problems = weights.differences(found, expected)
    if not problems:
        weights.require_finite("the state dict", found)
    if problems:
        raise UserError(
            f"the state dict is not that of a ResNet of widths {joined(run_config.widths)} and strides "
            f"{joined(run_config.strides)}: {problems}"
        )
    ours = {path: found[torch_name(path)].transpose(np.argsort(_AXES[x.ndim])) for path, x in like.items()}
    return weights.unflatten({path: np.ascontiguousarray(x, np.float32) for path, x in ours.items()}), run_config


def joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _config_of(found: dict[str, np.ndarray], strides: tuple[int, ...] | None) -> Config:
    widths = []
    while (name := f"layer{len(widths) + 1}.0.conv1.weight") in found:
        widths.append(int(np.shape(found[name])[0]) if np.ndim(found[name]) else 0)
    widths = tuple(widths)
    if not widths:
        raise UserError(
            "no layer1.0.conv1.weight among "
            f"{', '.join(sorted(found)[:5]) or 'no tensors'}: expected the state dict of the common CIFAR ResNet"
        )
    known = {preset.widths: preset for preset in PRESETS.values() if preset.dataset == "cifar10"}
    base = known.get(widths, PRESETS["resnet18"])
    if strides is None:
        if widths not in known:
            raise UserError(
                f"strides of widths {joined(widths)} are not known: give them with --strides, as in 1,2,2,2"
            )
        strides = base.strides
    return config.from_flags({"preset": base.preset, "widths": widths, "strides": strides})


def rescale_input(kernel: np.ndarray, std: tuple[float, ...]) -> np.ndarray:
    """The first kernel `[3, 3, 3, out]` of a network whose input was divided by another deviation.

    Padding is 0 before and after, so a factor on each input channel moves into the kernel exactly.

    Args:
      kernel: the kernel as trained.
      std: the three deviations that training divided by.
    """
    return (
        kernel * (np.array(CIFAR10.std, np.float32).astype(np.float64) / np.array(std))[None, None, :, None]
    ).astype(np.float32)


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


def write_state_dict(path: Path, state_dict: dict[str, np.ndarray]) -> None:
    """Writes a state dict, complete or not at all, as the path's suffix says.

    Raises:
      UserError: the suffix is another, the file exists, or it cannot be written.
    """
    if path.suffix not in (".safetensors", *_PICKLES):
        raise UserError(f"--out {path} is of an unknown kind: expected .safetensors, .pth or .pt")
    refuse_existing(path)
    if path.suffix == ".safetensors":
        content = safetensors.numpy.save(state_dict, {"format": "pt"})
    else:
        torch = _torch(path)
        buffer = io.BytesIO()
        torch.save({name: torch.tensor(tensor) for name, tensor in state_dict.items()}, buffer)
        content = buffer.getvalue()
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}; choose another") from error


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"--out {path} exists: choose another, or delete it")
