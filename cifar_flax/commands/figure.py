"""Draws a figure for a paper, and writes its caption: maps of test images, a confusion matrix, or training curves."""

import argparse
from pathlib import Path

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.errors import UserError

# `figures.MAPS` and `drawing.CMAPS`: here, since --help is quick.
MAPS = ("predicted", "true", "difference")
CMAPS = ("inferno", "viridis", "cividis", "jet")
# What a kind of figure does not ask for.
_OF_MAPS = ("maps", "cmap", "method", "stage", "count", "true", "predicted", "sort", "indices")
_UNUSED = {"maps": (), "confusion": _OF_MAPS, "curves": (*_OF_MAPS, "dataset", "data_dir", "source")}


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        __doc__,
        "A name that ends in .pdf, .svg or .png says the format. The caption is in a file of the same name with .txt.",
    )
    parser.add_argument("--kind", choices=_UNUSED, default="maps", help="what is drawn (maps)")
    common.add_network(parser)
    common.add_dataset(parser)
    common.add_maps(parser)
    parser.add_argument(
        "--maps", default="predicted,true", help="columns: of predicted,true,difference (predicted,true)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write: x.pdf, x.svg or x.png")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument("--width", type=float, default=5.5, help="inches: 3.3 for a column (5.5, a page's text)")
    parser.add_argument("--cmap", choices=CMAPS, default=CMAPS[0], help="colours of maps (inferno)")
    rare = parser.rare("rarely needed")
    common.add_selection(parser, rare)
    rare.add_argument("--dpi", type=int, default=300, help="dots an inch of a .png (300)")
    common.add_source(rare)
    parser.set_defaults(neighbours=0)  # no training images are looked up
    return parser


def _maps(flags: argparse.Namespace) -> list[str]:
    """The columns asked for."""
    names = flags.maps.split(",")
    for place, name in enumerate(names):
        common.one_of("--maps", name, MAPS)
        if name in names[:place]:
            raise UserError(f"--maps names {name} twice: name each once")
    return names


def _figure(argv: list[str] | None, prog: str) -> None:
    parser = _parser(prog)
    flags = parser.parse_args(argv)
    common.check_selection(flags)
    maps = _maps(flags)
    for name in _UNUSED[flags.kind]:
        if getattr(flags, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} is not for --kind {flags.kind}: leave it out")
    from cifar_flax import plots

    plots.require_size(flags.width, flags.dpi, "--")
    plots.require_format(flags.out)
    from cifar_flax import machine  # heavy imports, not needed before here
    from cifar_flax.explaining import figures
    from cifar_flax.training import trained

    figures.check(flags.out, overwrite=flags.overwrite)
    machine.set_up()
    found = trained.load(flags.ckpt)
    if flags.kind == "curves":
        drawn = figures.of_curves(found, width=flags.width)
    else:
        network, selection, dataset = common.inputs(flags, found)
        if flags.kind == "confusion":
            drawn = figures.of_confusion(network, dataset, width=flags.width, progress=common.progress())
        else:
            drawn = figures.of_maps(
                network, dataset, selection, maps, width=flags.width, cmap=flags.cmap, progress=common.progress()
            )
    figures.write(flags.out, drawn, dpi=flags.dpi)
    print(drawn.caption)
    print(f"Wrote {flags.out}, and this caption to {figures.caption_path(flags.out)}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax figure") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _figure(argv, prog))
