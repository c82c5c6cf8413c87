"""What the command lines share: a wrong input is one line on stderr and exit code 2."""

import argparse
import contextlib
import difflib
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from cifar_flax.errors import Interrupted, UserError, known


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        assert isinstance(parser, Parser)
        parser.shows_all = True
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are `UserError`s, and which wants flags in full.

    `--help` leaves out the flags of a `rare` group, so that it fits a screen; `--help-all` has them.
    """

    def __init__(
        self,
        prog: str,
        description: str | None = None,
        epilog: str | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ):
        """`elsewhere` says of flags that this parser does not have what to type instead."""
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.shows_all = False
        self._elsewhere = elsewhere or {}
        self._rare: list[argparse._ArgumentGroup] = []

    def rare(self, title: str) -> argparse._ArgumentGroup:
        """A group of flags that only `--help-all` shows."""
        if not self._rare:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show every flag and exit"
            )
        self._rare.append(self.add_argument_group(title))
        return self._rare[-1]

    def format_help(self) -> str:
        if not self._rare:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage("%(prog)s [options]", [], [])
        formatter.add_text(self.description)
        for group in self._action_groups:
            if self.shows_all or group not in self._rare:
                formatter.start_section(group.title)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"unrecognized arguments: (-[^\s=]*)", message):
            flag = match[1]
            if flag in self._elsewhere:
                raise UserError(f"{flag} is not a flag of {self.prog}: use {self._elsewhere[flag]}")
            if near := difflib.get_close_matches(flag, self._option_string_actions, 1):
                message += f"; did you mean {near[0]}?"
        raise UserError(f"{message}; see --help")


def call(prog: str) -> str:
    """How a program is called: `python train.py` in a clone, `cifar-flax train` where it is installed."""
    return f"python {prog}" if prog.endswith(".py") else prog


def command_line() -> list[str]:
    """The command, for a record of what was run; of a file given by its full path, the name alone."""
    return [os.path.basename(part) if os.path.isabs(part) else part for part in sys.argv]


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal, while a block runs, what is waited for and for how long already."""
    from tqdm import tqdm

    bar = tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False, disable=None)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        bar.close()


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code.

    0; 1 for a sweep of which runs failed; 2 for a wrong input or a device out of memory; 3 for a number that is not
    finite; 130 for Ctrl-C and 143 for SIGTERM; 141 where nobody reads what it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook has put there
            stream.reconfigure(errors="backslashreplace")  # a name may have letters that a terminal has not
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 141
    except (UserError, RuntimeError, OSError) as raised:
        error = known(raised)
        if not isinstance(error, UserError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interruption:
        return interruption.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
