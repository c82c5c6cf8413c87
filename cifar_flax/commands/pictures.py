"""Explains your own pictures: what the network takes them for, and which places speak for each class."""

import argparse
import sys
from pathlib import Path

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.errors import UserError


def _parser(prog: str) -> Parser:
    parser = Parser(prog, __doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="pictures, or folders of pictures")
    common.add_network(parser)
    common.add_maps(parser)
    common.add_out(parser, "pictures")
    return parser


def _pictures(flags: argparse.Namespace) -> None:
    """All that can be read are explained; what cannot is a line each at the end, and a `UserError`."""
    from cifar_flax import data, machine  # heavy imports, not needed before here
    from cifar_flax.data import pictures
    from cifar_flax.explaining import folder, own
    from cifar_flax.explaining.network import prepare
    from cifar_flax.training import trained

    machine.set_up()
    found = trained.load(flags.ckpt)
    out = flags.out or found.folder / "pictures"
    folder.check(out, folder.PICTURES, overwrite=flags.overwrite)  # before anything slow
    network = prepare(found)
    stage = common.stage_of(network, flags)
    read, refused = [], []
    for path in flags.paths:
        try:
            files = pictures.find(path)
        except UserError as error:
            refused.append(str(error))
            continue
        for file in files:
            try:
                read.append(pictures.read(file, network.spec.image_size))
            except UserError as error:
                refused.append(str(error))
    if read:
        manifest = own.write(
            out,
            network,
            read,
            refused,
            stage=stage,
            method=flags.method,
            reference=data.load_cifar10(source="sample") if network.spec == data.CIFAR10 else None,
            overwrite=flags.overwrite,
            on_batch=common.progress()("explaining", len(read)),
        )
        for entry in manifest["pictures"]:
            marked = "  (unlike the training set)" if entry["unlike"] else ""
            print(f"{entry['file']}: {entry['predicted']} {100 * max(entry['probabilities']):.0f}%{marked}")
        print(f"The network knows {network.spec.num_classes} classes, and names one of them for anything it is shown.")
        print(f"Wrote {out}: open {out / 'pictures.html'}")
    for line in refused[:-1]:
        print(f"error: {line}", file=sys.stderr)
    if refused:
        raise UserError(refused[-1])


def main(argv: list[str] | None = None, prog: str = "cifar-flax pictures") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _pictures(_parser(prog).parse_args(argv)))
