"""What the command lines share: a wrong input is one line on stderr and exit code 2."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from cifar_flax.errors import Interrupted, UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are `UserError`s, and which wants flags in full."""

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def command_line() -> list[str]:
    """The command, for a record of what was run; of a file given by its full path, the name alone."""
    return [os.path.basename(part) if os.path.isabs(part) else part for part in sys.argv]


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code.

    0; 2 for a wrong input; 3 for a number that is not finite; 130 for Ctrl-C and 143 for SIGTERM;
    141 where nobody reads what it prints.
    """
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interruption:
        return interruption.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 141
    return 0
