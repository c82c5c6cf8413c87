"""Networks to and from PyTorch.

`python -m cifar_flax.interop import MODEL --out X.safetensors` reads a state dict of the common
CIFAR ResNet (`conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`, `layer1.0.shortcut.0.weight`,
..., `linear.weight`, its norms `GroupNorm(1, C)`) and writes weights of this program;
`export --ckpt RUN --out Y` goes the other way. Both take and give `.safetensors`, which needs no
PyTorch, and `.pth` or `.pt`, which does.
"""

import io
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from cifar_flax import cli, config, explanation, files, model, weights
from cifar_flax.augment import STD
from cifar_flax.config import PRESETS, Config
from cifar_flax.errors import UserError
from cifar_flax.program import build_model

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
    if problems:
        raise UserError(
            f"the state dict is not that of a ResNet of widths {_joined(run_config.widths)} and strides "
            f"{_joined(run_config.strides)}: {problems}"
        )
    ours = {path: found[torch_name(path)].transpose(np.argsort(_AXES[x.ndim])) for path, x in like.items()}
    return weights.unflatten({path: np.ascontiguousarray(x, np.float32) for path, x in ours.items()}), run_config


def _joined(numbers: tuple[int, ...]) -> str:
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
    known = {preset.widths: preset for preset in PRESETS.values() if preset.data == "full"}
    base = known.get(widths, PRESETS["resnet18"])
    if strides is None:
        if widths not in known:
            raise UserError(
                f"strides of widths {_joined(widths)} are not known: give them with --strides, as in 1,2,2,2"
            )
        strides = base.strides
    return config.from_flags({"preset": base.preset, "widths": widths, "strides": strides})


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
    except Exception as error:  # pickle and torch raise nearly anything
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
    return {name: tensor.float().numpy() for name, tensor in content.items()}


def write_state_dict(path: Path, state_dict: dict[str, np.ndarray]) -> None:
    """Writes a state dict, complete or not at all, as the path's suffix says.

    Raises:
      UserError: the suffix is another, the file exists, or it cannot be written.
    """
    if path.suffix not in (".safetensors", *_PICKLES):
        raise UserError(f"--out {path} is of an unknown kind: expected .safetensors, .pth or .pt")
    _refuse_existing(path)
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


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"--out {path} exists: choose another, or delete it")


# ---- the command ---------------------------------------------------------------------------------


def _import(source: Path, out: Path, strides: tuple[int, ...] | None, std: tuple[float, ...] | None) -> None:
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name that ends in .safetensors")
    _refuse_existing(out)
    params, run_config = from_state_dict(read_state_dict(source), strides)
    if std is not None:
        params["conv"]["kernel"] = rescale_input(params["conv"]["kernel"], std)
    try:
        weights.save_weights(out, params, run_config, {"imported_from": source.name})
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = f"widths {_joined(run_config.widths)}, strides {_joined(run_config.strides)}"
    print(f"Wrote {out}: {count:,} parameters, {shape}")


def rescale_input(kernel: np.ndarray, std: tuple[float, ...]) -> np.ndarray:
    """The first kernel `[3, 3, 3, out]` of a network whose input was divided by another deviation.

    Padding is 0 before and after, so a factor on each input channel moves into the kernel exactly.

    Args:
      kernel: the kernel as trained.
      std: the three deviations that training divided by.
    """
    return (kernel * (STD.astype(np.float64) / np.array(std))[None, None, :, None]).astype(np.float32)


def _numbers(kind: type, count: int | None = None) -> Any:
    def parse(text: str) -> tuple:
        numbers = tuple(kind(part) for part in text.split(","))
        if not all(number > 0 for number in numbers) or (count and len(numbers) != count):
            raise ValueError
        return numbers

    parse.__name__ = f"list of {count or 'positive'} numbers"
    return parse


def _command(argv: list[str] | None) -> None:
    parser = cli.Parser("python -m cifar_flax.interop", "Networks from and to PyTorch.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=cli.Parser)
    importer = actions.add_parser("import", help="from a state dict of PyTorch")
    importer.add_argument("model", type=Path, help="a .safetensors, .pth or .pt file")
    importer.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    importer.add_argument(
        "--strides", type=_numbers(int), help="stride of each stage (those of the preset of its widths)"
    )
    importer.add_argument(
        "--std", type=_numbers(float, 3), help="deviations that its inputs were divided by, if not 0.247,0.243,0.262"
    )
    exporter = actions.add_parser("export", help="to a state dict of PyTorch")
    exporter.add_argument("--ckpt", type=Path, help="what explain.py's --ckpt takes (the embedded network)")
    exporter.add_argument("--out", type=Path, help="the .safetensors, .pth or .pt file to write")
    exporter.add_argument(
        "--show-module", action="store_true", help="print the PyTorch module that loads it, and exit"
    )
    arguments = parser.parse_args(argv)
    if arguments.action == "import":
        _import(arguments.model, arguments.out, arguments.strides, arguments.std)
    elif arguments.show_module:
        print(MODULE.read_text(), end="")
    elif arguments.out is None:
        raise UserError("export needs --out: the .safetensors, .pth or .pt file to write")
    else:
        network = explanation.load_network(arguments.ckpt)
        write_state_dict(arguments.out, to_state_dict(jax.device_get(network.params)))
        widths, strides = network.config.widths, network.config.strides
        print(f"Wrote {arguments.out}: load it into ResNet(widths={widths}, strides={strides}), see --show-module")


def main(argv: list[str] | None = None) -> int:
    """`python -m cifar_flax.interop import|export`; returns the exit code."""
    return cli.run(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
