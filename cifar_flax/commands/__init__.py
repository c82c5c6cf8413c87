"""What a person types: `cifar-flax train`, `cifar-flax explain` and the rest; in a clone `train.py` and `explain.py`.

In: the words after the command's name. Out: an exit code (`main`), as `cli.run` gives it.
"""

import difflib
import importlib
import importlib.metadata
import sys

import cifar_flax
from cifar_flax import cli
from cifar_flax.errors import UserError

# Each command's module, imported when it is called for.
_COMMANDS = {
    "train": ("train", "train a network"),
    "explain": ("explain", "show the images that a network gets wrong, with Grad-CAM maps"),
    "compare": ("compare", "compare two networks on the same images"),
    "evaluate": ("evaluate", "measure how far a network's maps and confidence can be trusted"),
    "figure": ("figure", "draw a figure for a paper: maps, confusion matrix or curves, as PDF, SVG or PNG"),
    "pictures": ("pictures", "explain your own pictures"),
    "sweep": ("sweep", "train several settings and seeds, and compare them"),
    "data": ("data", "download or check CIFAR-10, or show any data set"),
    "export": ("export", "write a network for this program, PyTorch or StableHLO"),
    "publish": ("publish", "make a folder to publish: weights, model card, report"),
    "import": ("import_network", "import a network from PyTorch"),
}


def _version() -> str:
    return f"cifar-flax {cifar_flax.__version__} (jax {importlib.metadata.version('jax')})"


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items()]
    return "\n".join(["usage: cifar-flax COMMAND ...", "", cifar_flax.__doc__ or "", "", *lines]) + (
        "\n\n`cifar-flax COMMAND --help` lists a command's flags; --version prints the version."
    )


def main(argv: list[str] | None = None) -> int:
    """`cifar-flax`; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in _COMMANDS:
        module = importlib.import_module(f"cifar_flax.commands.{_COMMANDS[words[0]][0]}")
        return module.main(words[1:], f"cifar-flax {words[0]}")
    return cli.run(lambda: _answer(words))


def _answer(words: list[str]) -> None:
    if words == ["--version"]:
        print(_version())
    elif words in ([], ["-h"], ["--help"]):
        print(_usage())
    else:
        near = difflib.get_close_matches(words[0], _COMMANDS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{words[0]} is no command: {meant}expected one of {', '.join(_COMMANDS)}; see --help")
