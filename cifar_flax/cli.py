"""What the command lines share: a wrong input is one line on stderr and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from cifar_flax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are `UserError`s, and which wants flags in full."""

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code: 0, 2 for a wrong input, 130 for Ctrl-C."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
