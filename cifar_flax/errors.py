"""What ends a command other than success: each knows its exit code."""

import errno
import math
from typing import Any


class UserError(ValueError):
    """A wrong input: the message says what was wrong, what was expected and what to do.

    The command lines print it as one line and exit with code 2; anything else is a bug and
    keeps its traceback.
    """

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """Text that a terminal and a JSON file take: what is no printable character, or no character at all, escaped.

    >>> printable("a\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, one of NumPy's or JAX's too; True and False are none."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ()


def require_whole(value: Any, what: str, least: int, most: float = math.inf) -> None:
    """Refuses what is no whole number from `least` to `most`.

    Raises:
      UserError: so it is.
    """
    if not is_whole(value) or not least <= value <= most:
        bounds = f"{least} or more" if most == math.inf else f"{least} to {most:,}"
        raise UserError(f"{what} is {value!r}: expected {bounds}, a whole number")


class FailedRunsError(UserError):
    """Runs of a sweep that ended without their last checkpoint: exit code 1."""

    exit_code = 1


class NonFiniteError(UserError):
    """A loss or gradient that is not finite: exit code 3."""

    exit_code = 3


class LostProcessError(UserError):
    """Another process of the same job is gone or stuck: exit code 75, which means that it is worth trying again."""

    exit_code = 75

    def __init__(self, reason: str):
        super().__init__(f"a process of this job is gone or stuck ({reason}): start all of them again, with --resume")


def known(error: BaseException) -> BaseException:
    """The `UserError` for a name that is too long, or a device that XLA says is out of a resource; else the error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UserError(f"{str(error.filename)[:40]}... is too long a name: choose a shorter one")
    if not isinstance(error, RuntimeError) or not str(error).startswith("RESOURCE_EXHAUSTED"):
        return error
    return UserError(
        f"a device is out of memory, or of another resource ({str(error).splitlines()[0]}): end what else uses it; "
        "in training a smaller --batch-size takes less"
    )


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal asked for an end, and everything was saved: exit code 128 plus its number."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number
