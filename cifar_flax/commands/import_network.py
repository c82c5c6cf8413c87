"""Makes a network of this program's from a PyTorch state dict of the common CIFAR ResNet, or of torchvision's."""

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_flax import cli, files
from cifar_flax.errors import UserError, require_whole

if TYPE_CHECKING:  # heavy imports, which --help does without
    from cifar_flax.data import DataSpec


def _numbers(kind: type, count: int | None = None, least: float = math.ulp(0)) -> Any:
    """A parser of finite numbers with commas between, none below `least`."""

    def parse(text: str) -> tuple:
        numbers = tuple(kind(part) for part in text.split(","))
        if not all(least <= number < math.inf for number in numbers) or (count and len(numbers) != count):
            raise ValueError
        return numbers

    parse.__name__ = f"list of {count or 'positive'} numbers"
    return parse


def _parser(prog: str) -> cli.Parser:
    parser = cli.Parser(prog, __doc__)
    parser.add_argument("model", type=Path, help="a .safetensors, .pth or .pt file")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--strides",
        type=_numbers(int),
        help="stride of each stage (those in the file; else with BatchNorm 1,2,2,2, or the preset's of these widths)",
    )
    parser.add_argument(
        "--classes", help="names of its classes: a file with one a line, or a,b,... (CIFAR-10's, if 10; else 0,1,...)"
    )
    parser.add_argument(
        "--mean", type=_numbers(float, 3, 0), help="means that it subtracted (CIFAR-10's 0.491,0.482,0.447)"
    )
    parser.add_argument(
        "--std", type=_numbers(float, 3), help="deviations that it divided by (CIFAR-10's 0.247,0.243,0.262)"
    )
    parser.add_argument("--image-size", type=int, help="rows and columns of its images, in pixels (32)")
    parser.add_argument("--name", help="of the data set that it was trained on (CIFAR-10, or the name of the file)")
    return parser


def _class_names(text: str) -> tuple[str, ...]:
    """`--classes`: the lines of a file that are not empty, or what is between commas."""
    try:
        listed = Path(text).read_text(encoding="utf-8-sig").splitlines() if os.path.isfile(text) else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {text} cannot be read: expected a text file with one name a line") from error
    names = tuple(name.strip() for name in listed if name.strip())
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--classes {text} names {twice[0]} twice: expected another name for each class")
    return names


def _spec(flags: argparse.Namespace, num_classes: int, stored: "DataSpec | None") -> "DataSpec":
    """What the flags, or else the file, say of the data set that a network of so many classes was trained on."""
    from cifar_flax.data import CIFAR10, DataSpec
    from cifar_flax.data.assemble import SIZES
    from cifar_flax.interop import convert

    if stored is None or stored.num_classes != num_classes:
        is_cifar10 = num_classes == CIFAR10.num_classes and flags.image_size in (None, CIFAR10.image_size)
        like = CIFAR10 if is_cifar10 else convert.numbered(num_classes)
        is_named = is_cifar10 and flags.classes is None
    else:
        like, is_named = stored, True
    size = like.image_size if flags.image_size is None else flags.image_size
    require_whole(size, "--image-size", *SIZES)
    if flags.mean is not None and max(flags.mean) > 1:
        shown = ",".join(f"{number:g}" for number in flags.mean)
        raise UserError(f"--mean is {shown}: expected means of pixels from 0 to 1, not to 255")
    names = like.class_names if flags.classes is None else _class_names(flags.classes)
    if len(names) != num_classes:
        raise UserError(
            f"--classes {flags.classes} has {len(names)} names and the network {num_classes} classes: "
            "expected a file with a name a line, or names with commas between"
        )
    name = flags.name or (like.name if is_named else flags.model.stem)
    spec = DataSpec(name, names, size, flags.mean or like.mean, flags.std or like.std)
    return like if like == dataclasses.replace(spec, digest=like.digest) else spec


def _import(flags: argparse.Namespace) -> None:
    import jax  # heavy imports, not needed before here

    from cifar_flax.interop import convert
    from cifar_flax.network import weights

    out = flags.out
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name that ends in .safetensors")
    files.refuse_existing(out)
    strides, spec = convert.stored(flags.model)
    strides = flags.strides or strides
    params, config = convert.from_state_dict(convert.read_state_dict(flags.model), strides)
    spec = _spec(flags, len(params["linear"]["bias"]), spec)
    try:
        weights.save_weights(out, params, config, {"imported_from": flags.model.name}, spec)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = f"widths {convert.joined(config.widths)}, strides {convert.joined(config.strides)}"
    shape += " (assumed; else give --strides)" if strides is None else ""
    shape += f", blocks {convert.joined(config.blocks)}" if config.blocks else ""
    shape += ", BatchNorm as scale and bias" if config.norm == "affine" else ""
    print(f"Wrote {out}: {count:,} parameters, {shape}, {spec.num_classes} classes of {spec.name}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax import") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _import(_parser(prog).parse_args(argv)))
