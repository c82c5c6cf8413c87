"""Makes a network of this program's from a PyTorch state dict of the common CIFAR ResNet."""

import argparse
from pathlib import Path
from typing import Any

from cifar_flax import cli
from cifar_flax.errors import UserError


def _numbers(kind: type, count: int | None = None) -> Any:
    def parse(text: str) -> tuple:
        numbers = tuple(kind(part) for part in text.split(","))
        if not all(number > 0 for number in numbers) or (count and len(numbers) != count):
            raise ValueError
        return numbers

    parse.__name__ = f"list of {count or 'positive'} numbers"
    return parse


def _parser(prog: str) -> cli.Parser:
    parser = cli.Parser(prog, __doc__)
    parser.add_argument("model", type=Path, help="a .safetensors, .pth or .pt file")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--strides", type=_numbers(int), help="stride of each stage (those of the preset with the same widths)"
    )
    parser.add_argument(
        "--std",
        type=_numbers(float, 3),
        help="standard deviations that its inputs were divided by, if not 0.247,0.243,0.262",
    )
    return parser


def _import(flags: argparse.Namespace) -> None:
    import jax  # heavy imports, not needed before here

    from cifar_flax.interop import convert
    from cifar_flax.network import weights

    out = flags.out
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name that ends in .safetensors")
    convert.refuse_existing(out)
    params, config = convert.from_state_dict(convert.read_state_dict(flags.model), flags.strides)
    if flags.std is not None:
        params["conv"]["kernel"] = convert.rescale_input(params["conv"]["kernel"], flags.std)
    try:
        weights.save_weights(out, params, config, {"imported_from": flags.model.name})
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = f"widths {convert.joined(config.widths)}, strides {convert.joined(config.strides)}"
    print(f"Wrote {out}: {count:,} parameters, {shape}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax import") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _import(_parser(prog).parse_args(argv)))
