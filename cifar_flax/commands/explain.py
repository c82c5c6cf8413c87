"""Shows the images that a network gets wrong, with Grad-CAM maps: `python explain.py --ckpt runs/...`, or
`cifar-flax explain`.
"""

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        __doc__,
        "More: `cifar-flax compare`, `cifar-flax evaluate`, `cifar-flax pictures`; in a clone without installing "
        "`python -m cifar_flax compare` and so on.",
        elsewhere={
            "--compare": "cifar-flax compare OTHER --ckpt ...",
            "--evaluate": "cifar-flax evaluate --ckpt ...",
            "--images": "cifar-flax pictures PATH ... --ckpt ...",
            "--export": "cifar-flax export --out FILE --ckpt ...",
        },
    )
    common.add_analysis(parser, "explain")
    return parser


def main(argv: list[str] | None = None, prog: str = "explain.py") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: common.analyse(_parser(prog).parse_args(argv), "explain"))
