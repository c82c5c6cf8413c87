"""Makes a folder of a network to publish: its weights, a model card, and its report as a page."""

import argparse
from pathlib import Path

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        __doc__,
        "The card is read by the Hugging Face Hub, the page is what GitHub Pages or a static Space shows, and "
        "cifar_flax.load reads the folder back. With what evaluate --corruptions wrote, its figures are in the card.",
    )
    parser.add_argument("folder", type=Path, help="the folder to make")
    common.add_network(parser)
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="what explain, compare or evaluate wrote of this network"
    )
    return parser


def _publish(flags: argparse.Namespace) -> None:
    from cifar_flax.interop import card  # heavy imports, not needed before here
    from cifar_flax.training import trained

    written = card.write(flags.folder, trained.load(flags.ckpt), flags.report)
    print(f"Wrote {flags.folder}: {', '.join(written)}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax publish") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _publish(_parser(prog).parse_args(argv)))
