"""What a person types: `cifar-flax train`, `cifar-flax explain` and the rest; in a clone `train.py` and `explain.py`.

In: the words after the command's name. Out: an exit code (`main`), as `cli.run` gives it.
"""

import importlib
import importlib.metadata
import sys

import cifar_flax
from cifar_flax import cli
from cifar_flax.errors import UserError

# Each command's module, imported when it is called for, and what is put before its words.
_COMMANDS = {
    "train": ("cifar_flax.commands.train", [], "train a network"),
    "sweep": ("cifar_flax.commands.sweep", [], "train several settings and seeds, and compare them"),
    "explain": ("cifar_flax.commands.explain", [], "show the images that a network gets wrong, with Grad-CAM maps"),
    "data": ("cifar_flax.data.__main__", [], "download or check CIFAR-10"),
    "import": ("cifar_flax.interop.__main__", ["import"], "import a network from PyTorch"),
    "export": (
        "cifar_flax.interop.__main__",
        ["export"],
        "export a network to PyTorch or StableHLO, or write a model card",
    ),
    "augment": ("cifar_flax.commands.augment", [], "draw what augmentation does to images"),
}


def _version() -> str:
    return f"cifar-flax {cifar_flax.__version__} (jax {importlib.metadata.version('jax')})"


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in _COMMANDS.items()]
    return "\n".join(["usage: cifar-flax COMMAND ...", "", cifar_flax.__doc__ or "", "", *lines]) + (
        "\n\n`cifar-flax COMMAND --help` lists a command's flags; --version prints the version."
    )


def main(argv: list[str] | None = None) -> int:
    """`cifar-flax`; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in _COMMANDS:
        module, before, _ = _COMMANDS[words[0]]
        prog = "cifar-flax" if before else f"cifar-flax {words[0]}"
        return importlib.import_module(module).main([*before, *words[1:]], prog)
    return cli.run(lambda: _answer(words))


def _answer(words: list[str]) -> None:
    if words == ["--version"]:
        print(_version())
    elif words in ([], ["-h"], ["--help"]):
        print(_usage())
    else:
        raise UserError(f"{words[0]} is no command: expected one of {', '.join(_COMMANDS)}; see --help")
