"""Measures how far a network's maps and its confidence can be trusted."""

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.errors import require_whole


def _parser(prog: str) -> Parser:
    time = "With all 10,000 images it takes the compact network some 15 minutes on two cores, corruptions included."
    parser = Parser(prog, __doc__, time)
    parser.add_argument("--num-images", type=int, metavar="N", help="evaluate N images, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    parser.add_argument(
        "--corruptions", action="store_true", help="also on noisy, blurred, snowy ... images (docs/explanations.md)"
    )
    parser.add_argument("--compare", metavar="OTHER", help="also as `cifar-flax compare OTHER` does")
    common.add_analysis(parser, "evaluate")
    return parser


def _evaluate(argv: list[str] | None, prog: str) -> None:
    flags = _parser(prog).parse_args(argv)
    require_whole(flags.seed, "--seed", 0, 2**32 - 1)
    if flags.num_images is not None:
        require_whole(flags.num_images, "--num-images", 2)
    options = {"num_images": flags.num_images, "seed": flags.seed, "corruptions": flags.corruptions}
    common.analyse(flags, "evaluate", other=flags.compare, evaluate=options)


def main(argv: list[str] | None = None, prog: str = "cifar-flax evaluate") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _evaluate(argv, prog))
