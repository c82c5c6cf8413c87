"""Writes a network in one file: this program's own, a PyTorch state dict, or StableHLO."""

import argparse
from pathlib import Path

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.errors import UserError


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        __doc__,
        "flax: .safetensors, which --ckpt takes. pytorch: .safetensors, .pth or .pt, names as in the common CIFAR "
        "ResNet. stablehlo: uint8 images to logits, by JAX alone.",
        elsewhere={"--card": "cifar-flax publish DIR --ckpt ..."},
    )
    common.add_network(parser)
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument(
        "--format", choices=("flax", "pytorch", "stablehlo"), default="flax", help="what is written (flax)"
    )
    parser.add_argument("--half", action="store_true", help="flax: numbers of 16 bits, and half the size")
    parser.add_argument(
        "--show-module", action="store_true", help="print the PyTorch module that loads a state dict, and exit"
    )
    return parser


def _export(flags: argparse.Namespace) -> None:
    from cifar_flax.interop import convert  # heavy imports, not needed before here

    if flags.show_module:
        print(convert.MODULE.read_text(), end="")
        return
    if flags.out is None:
        raise UserError("export needs --out: the file to write")
    if flags.half and flags.format != "flax":
        raise UserError(f"--half is of --format flax, and not of {flags.format}: leave it out")
    import jax

    from cifar_flax.interop import stablehlo
    from cifar_flax.training import trained

    network, out = trained.load(flags.ckpt), flags.out
    if network.config.norm == "affine" and flags.format == "pytorch":
        raise UserError(
            f"--format pytorch is for networks with LayerNorm, and {network.name} had BatchNorm: use the file "
            "that it came from, or --format flax or stablehlo"
        )
    if flags.format == "stablehlo":
        stablehlo.write(out, network)
        side, classes = network.spec.image_size, network.spec.num_classes
        print(f"Wrote {out}: jax.export.deserialize(...).call of uint8 [N,{side},{side},3] gives logits [N,{classes}]")
    elif flags.format == "pytorch":
        config, classes = network.config, network.spec.num_classes
        tensors = convert.to_state_dict(jax.device_get(network.params))
        convert.write_state_dict(out, tensors, config.strides, network.spec)
        arguments = f"widths={config.widths}, strides={config.strides}"
        arguments += f", num_classes={classes}" if classes != 10 else ""
        arguments += f", blocks={config.blocks}" if config.blocks else ""
        print(f"Wrote {out}: load it into ResNet({arguments}), see --show-module")
        mean, std = (", ".join(f"{x:.4f}" for x in numbers) for numbers in (network.spec.mean, network.spec.std))
        print(f"Its images are divided by 255, then normalised: mean {mean}, deviation {std}")
    else:
        digest = trained.export(network, out, half=flags.half)
        print(f"Wrote {out}: {network.name}, SHA-256 {digest[:12]}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax export") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _export(_parser(prog).parse_args(argv)))
