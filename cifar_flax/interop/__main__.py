"""`cifar-flax import` and `cifar-flax export`: networks from and to PyTorch, as StableHLO, and with a model card."""

import sys
from pathlib import Path
from typing import Any

import jax

from cifar_flax import cli
from cifar_flax.errors import UserError
from cifar_flax.interop import card, convert, stablehlo
from cifar_flax.network import weights
from cifar_flax.training.trained import Network, load_network


def _import(source: Path, out: Path, strides: tuple[int, ...] | None, std: tuple[float, ...] | None) -> None:
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name that ends in .safetensors")
    convert.refuse_existing(out)
    params, run_config = convert.from_state_dict(convert.read_state_dict(source), strides)
    if std is not None:
        params["conv"]["kernel"] = convert.rescale_input(params["conv"]["kernel"], std)
    try:
        weights.save_weights(out, params, run_config, {"imported_from": source.name})
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = f"widths {convert.joined(run_config.widths)}, strides {convert.joined(run_config.strides)}"
    print(f"Wrote {out}: {count:,} parameters, {shape}")


def _numbers(kind: type, count: int | None = None) -> Any:
    def parse(text: str) -> tuple:
        numbers = tuple(kind(part) for part in text.split(","))
        if not all(number > 0 for number in numbers) or (count and len(numbers) != count):
            raise ValueError
        return numbers

    parse.__name__ = f"list of {count or 'positive'} numbers"
    return parse


def _command(argv: list[str] | None, prog: str) -> None:
    parser = cli.Parser(prog, "Import networks from PyTorch, and export networks.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=cli.Parser)
    importer = actions.add_parser("import", help="from a state dict of PyTorch")
    importer.add_argument("model", type=Path, help="a .safetensors, .pth or .pt file")
    importer.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    importer.add_argument(
        "--strides", type=_numbers(int), help="stride of each stage (those of the preset with the same widths)"
    )
    importer.add_argument(
        "--std",
        type=_numbers(float, 3),
        help="standard deviations that its inputs were divided by, if not 0.247,0.243,0.262",
    )
    exporter = actions.add_parser("export", help="to a state dict of PyTorch, StableHLO or a model card")
    exporter.add_argument(
        "--ckpt", type=Path, help="a run, one of its epochs, or a .safetensors file (the included network)"
    )
    exporter.add_argument("--out", type=Path, help="the file to write; for PyTorch .safetensors, .pth or .pt")
    exporter.add_argument(
        "--format",
        choices=("pytorch", "stablehlo"),
        default="pytorch",
        help="format of --out (pytorch): a PyTorch state dict, or StableHLO",
    )
    exporter.add_argument("--card", type=Path, metavar="DIR", help="write weights and a model card into DIR")
    exporter.add_argument(
        "--show-module", action="store_true", help="print the PyTorch module that loads the file, and exit"
    )
    arguments = parser.parse_args(argv)
    if arguments.action == "import":
        _import(arguments.model, arguments.out, arguments.strides, arguments.std)
    elif arguments.show_module:
        print(convert.MODULE.read_text(), end="")
    elif arguments.out is None and arguments.card is None:
        raise UserError("export needs --out: the file to write; or --card: a folder for weights and a model card")
    else:
        _export(load_network(arguments.ckpt), arguments.out, arguments.format, arguments.card)


def _export(network: Network, out: Path | None, kind: str, folder: Path | None) -> None:
    if folder is not None:
        card.write(folder, network)
        print(f"Wrote {folder / card.CARD} and {folder / card.WEIGHTS}")
    if out is None:
        return
    if kind == "stablehlo":
        stablehlo.write(out, network)
        print(f"Wrote {out}: jax.export.deserialize(...).call of uint8 [N,32,32,3] gives logits [N,10]")
    else:
        convert.write_state_dict(out, convert.to_state_dict(jax.device_get(network.params)))
        widths, strides = network.config.widths, network.config.strides
        print(f"Wrote {out}: load it into ResNet(widths={widths}, strides={strides}), see --show-module")


def main(argv: list[str] | None = None, prog: str = "python -m cifar_flax.interop") -> int:
    """`python -m cifar_flax.interop import|export`; returns the exit code."""
    return cli.run(lambda: _command(argv, prog))


if __name__ == "__main__":
    sys.exit(main())
