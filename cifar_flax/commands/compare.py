"""Compares two networks on the same images: which errors the other one corrects, and which it adds."""

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common


def _parser(prog: str) -> Parser:
    parser = Parser(prog, __doc__)
    parser.add_argument("other", metavar="OTHER", help="the network to compare with: as --ckpt")
    common.add_analysis(parser, "compare")
    return parser


def _compare(argv: list[str] | None, prog: str) -> None:
    flags = _parser(prog).parse_args(argv)
    common.analyse(flags, "compare", other=flags.other)


def main(argv: list[str] | None = None, prog: str = "cifar-flax compare") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _compare(argv, prog))
