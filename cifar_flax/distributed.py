"""Several processes that train together: how they meet, agree, and leave.

JAX's runtime does the work: one program over the devices of all processes, and a service in process 0 that
notices when a process is gone. What is here are the agreements between two programs, and the end. Alone,
a process is a job of one, and every function here is free.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from cifar_flax.errors import Interrupted, LostProcessError, UserError, known, require_whole

# How an exception of JAX's runtime begins when another process, or the way to it, is gone.
_LOSS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|FAILED_PRECONDITION): ")


class Settings(NamedTuple):
    """How processes meet, and how long they wait for each other.

    Attributes:
      coordinator: `HOST:PORT` where process 0 listens; None: as the cluster says.
      num_processes: how many there are; None: as the cluster says.
      process_id: which one this is; None: as the cluster says.
      init_timeout: seconds for all of them to meet.
      heartbeat_timeout: seconds after which a process that was killed or stopped is given up.
      step_timeout: seconds that a step may take, or any other wait for the others.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    init_timeout: int = 300
    heartbeat_timeout: int = 60
    step_timeout: int = 600


def add_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of `from_flags`."""
    group.add_argument(
        "--distributed",
        action="store_true",
        help="train with several processes, started by SLURM, Kubernetes, Open MPI or Cloud TPU",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, unless the cluster gives it")
    group.add_argument(
        "--num-processes", type=int, metavar="N", help="number of processes, unless the cluster gives it"
    )
    group.add_argument(
        "--process-id", type=int, metavar="I", help="number of this process, from 0, unless the cluster gives it"
    )
    for name, help in (
        ("init_timeout", "seconds to wait until all processes have started"),
        ("heartbeat_timeout", "seconds after which a silent process counts as lost"),
        ("step_timeout", "seconds a step may take, or any other wait for another process"),
    ):
        flag, value = "--" + name.replace("_", "-"), Settings._field_defaults[name]
        group.add_argument(flag, type=_seconds, default=value, metavar="S", help=f"{help} ({value})")


def _seconds(text: str) -> int:
    if not 1 <= int(text) <= 10**6:
        raise ValueError
    return int(text)


_seconds.__name__ = "number of seconds"  # argparse names it in its messages


def from_flags(flags: dict[str, Any]) -> Settings | None:
    """What the parsed flags say, which are taken out of `flags`; None where this process is alone.

    Raises:
      UserError: a value is out of its range.
    """
    settings = Settings(**{name: flags.pop(name) for name in Settings._fields})
    if not flags.pop("distributed") and not any(value is not None for value in settings[:3]):
        if given := _given(settings):
            raise UserError(f"{next(iter(given))} is for several processes: leave it out, or --distributed")
        return None
    if settings.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", settings.coordinator):
        raise UserError(f"--coordinator is {settings.coordinator}: expected HOST:PORT, of process 0")
    if settings.num_processes is not None:
        require_whole(settings.num_processes, "--num-processes", 1)
    if settings.process_id is not None and not 0 <= settings.process_id < (settings.num_processes or 2**31):
        count = settings.num_processes or "the processes"
        raise UserError(f"--process-id is {settings.process_id}: expected 0 or more, below {count}")
    return settings


def to_flags(settings: Settings | None) -> list[str]:
    """The flags that say the same in each process, with `I` for its number; none where a process is alone."""
    if settings is None:
        return []
    given = {flag: "I" if flag == "--process-id" else value for flag, value in _given(settings).items()}
    flags = [f"{flag} {shlex.quote(str(value))}" for flag, value in given.items()]
    return flags if any(value is not None for value in settings[:3]) else ["--distributed", *flags]


def _given(settings: Settings) -> dict[str, Any]:
    """The flags whose values are not the default."""
    defaults = Settings._field_defaults
    return {
        "--" + name.replace("_", "-"): value for name, value in settings._asdict().items() if value != defaults[name]
    }


class Job:
    """The processes that train together, as one of them sees them.

    Args:
      client: JAX's client of the service in process 0; None for a process that is alone.
      process: number of this one.
      processes: how many there are.
      limit: seconds after which waiting for the others is given up.
    """

    def __init__(self, client: Any = None, process: int = 0, processes: int = 1, limit: float = math.inf):
        self.process, self.processes, self.limit = process, processes, limit
        self._client, self._rounds, self._last_beat = client, 0, time.monotonic()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which alone owns the run directory and the terminal."""
        return self.process == 0

    def share(self, value: Any) -> list[Any]:
        """The value that each process gives, a JSON value, in the order of the processes."""
        if self.processes == 1:
            return [value]
        self._rounds += 1
        key = f"cifar_flax/{self._rounds}"
        self._client.key_value_set(f"{key}/{self.process}", json.dumps(value))
        milliseconds = int(1000 * self.limit)
        texts = [self._client.blocking_key_value_get(f"{key}/{i}", milliseconds) for i in range(self.processes)]
        self.beat()
        return [json.loads(text) for text in texts]

    def together(self, function: Callable[[], Any]) -> Any:
        """What `function` returns here; if it fails in any process, it fails in all.

        Raises:
          UserError: that of this process, or of the first one that has any.
        """
        result, error = None, None
        try:
            result = function()
        except UserError as raised:
            error = raised
        messages = self.share(None if error is None else str(error))
        if error is not None:
            raise error
        for message in messages:
            if message is not None:
                raise UserError(message)
        return result

    def of_first(self, function: Callable[[], Any]) -> Any:
        """What `function` returns in process 0, a JSON value, which alone calls it.

        Raises:
          UserError: that of process 0.
        """
        return self.share(self.together(function if self.is_first else lambda: None))[0]

    def require_equal(self, values: dict[str, Any]) -> None:
        """Makes sure that JSON values are the same in all processes.

        Raises:
          UserError: they are not; it names the first that differs.
        """
        first, *others = self.share(values)
        for process, theirs in enumerate(others, 1):
            for name in sorted(first.keys() | theirs.keys()):
                if first.get(name) != theirs.get(name):
                    raise UserError(
                        f"process {process} has another {name} than process 0 ({_short(theirs.get(name, 'none'))} "
                        f"against {_short(first.get(name, 'none'))}): start all {self.processes} processes alike"
                    )

    def broadcast(self, tree: Any) -> Any:
        """Process 0's arrays in all processes, bit for bit.

        Args:
          tree: of arrays; in the other processes any arrays of these shapes and dtypes.

        Returns:
          The tree of process 0, as NumPy arrays.
        """
        if self.processes == 1:
            return tree
        import jax
        from jax.experimental import multihost_utils

        arrays, structure = jax.tree.flatten(tree)
        arrays = [np.asarray(x) for x in arrays]
        mine = np.concatenate([np.frombuffer(x.tobytes(), np.uint8) for x in arrays])
        content = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()
        results, start = [], 0
        for x in arrays:
            results.append(np.frombuffer(content, x.dtype, x.size, start).reshape(x.shape))
            start += x.nbytes
        self.beat()
        return jax.tree.unflatten(structure, results)

    def agreed(self, number: int | None) -> int | None:
        """The signal that came to any of the processes, the highest; all call this at the same step."""
        if self.processes == 1:
            return number
        from jax.experimental import multihost_utils

        numbers = multihost_utils.process_allgather(np.int32(number or 0))
        self.beat()
        return int(numbers.max()) or None

    def beat(self) -> None:
        """Notes that this process gets on: a step was taken, or a wait has ended."""
        self._last_beat = time.monotonic()

    def seconds_since_beat(self) -> float:
        return time.monotonic() - self._last_beat

    def end(self, limit: float) -> bool:
        """Leaves the job together with the others; false if they have not all come to their end in `limit` seconds."""
        import jax

        self.beat()
        try:
            self._client.wait_at_barrier("cifar_flax/end", int(1000 * limit))
            jax.distributed.shutdown()
        except Exception:  # of JAX's runtime, which has no one type for it
            return False
        return True


ALONE = Job()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def code_version() -> dict[str, str]:
    """What decides, beside config and data, about what a process computes."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {"code of cifar_flax": digest.hexdigest()[:12], **versions}


# ---- joining and leaving -------------------------------------------------------------------------


@contextlib.contextmanager
def joined(settings: Settings | None) -> Iterator[Job]:
    """A job of several processes, or without settings of this one, for as long as this lasts.

    To be entered before JAX is used. An end that all processes come to, in the same way, is the caller's to report.
    Any other one, as that of another process, is one line on stderr, and ends this process with its exit code.

    Raises:
      UserError: the processes cannot meet.
    """
    if settings is None:
        yield ALONE
        return
    # JAX's runtime aborts a process that has lost another, with pages of text: one line instead.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX's own choice, which it leaves to child processes
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "4"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, and that only
    met = False

    def on_abort(_: int) -> None:
        if met:
            _give_up(f"none was heard from for {settings.heartbeat_timeout} s, or process 0 ended")
        leave(_not_met(settings), UserError.exit_code)

    with _abort_handler(on_abort):
        try:
            jax.distributed.initialize(
                settings.coordinator,
                settings.num_processes,
                settings.process_id,
                initialization_timeout=settings.init_timeout,
                heartbeat_timeout_seconds=settings.heartbeat_timeout,
                shutdown_timeout_seconds=settings.heartbeat_timeout,
            )
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--distributed does not know how the processes meet ({error}): give each of them --coordinator, "
                "--num-processes and --process-id"
            ) from error
        except RuntimeError as error:
            leave(f"{_not_met(settings)} ({_first_line(error)})", UserError.exit_code)
        met = True
        state = _runtime()
        job = Job(state.client, state.process_id, state.num_processes, settings.step_timeout)
        with watchdog(job):
            try:
                yield job
            except BaseException as raised:
                error = known(raised)
                if not _ends_alike(job, error, settings):
                    _leave_with(error)
                raise
            if not job.end(settings.step_timeout):
                _give_up("one did not come to the end")


def _runtime() -> Any:
    """JAX's own record of this process's part in the job: JAX has no public name for its key-value store."""
    from jax._src import distributed

    return distributed.global_state


def _not_met(settings: Settings) -> str:
    where = settings.coordinator or "the coordinator that the cluster names"
    return (
        f"the processes did not meet at {where} within {settings.init_timeout} s (--init-timeout): start all of "
        "them, with the same --coordinator, which is process 0's and can be reached by all"
    )


def _ends_alike(job: Job, error: BaseException, settings: Settings) -> bool:
    """Whether all processes have come to an end like this one, after which this one is on its own."""
    if isinstance(error, Interrupted):
        return job.end(settings.step_timeout)
    return isinstance(error, UserError) and job.end(settings.heartbeat_timeout)


def _leave_with(error: BaseException) -> NoReturn:
    """Ends this process by an error that is not the others'."""
    if isinstance(error, UserError):
        leave(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        leave("", 130 if isinstance(error, KeyboardInterrupt) else 141)
    if isinstance(error, Interrupted):
        _give_up("one did not come to the end")
    if _LOSS.match(str(error)):
        _give_up(_first_line(error))
    leave("".join(traceback.format_exception(error)), 1)


def _give_up(reason: str) -> NoReturn:
    """Ends this process because another one is gone or stuck."""
    leave(str(LostProcessError(reason)), LostProcessError.exit_code)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


_leaving = threading.Lock()


def leave(message: str, code: int) -> NoReturn:
    """Ends this process at once, from any thread, with one line; the first to call this has its say."""
    if not _leaving.acquire(blocking=False):
        time.sleep(60)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        if message:
            os.write(2, (message if "\n" in message else f"error: {message}\n").encode())
    os._exit(code)


@contextlib.contextmanager
def _abort_handler(function: Callable[[int], None]) -> Iterator[None]:
    """Has SIGABRT call a function in whatever thread raises it; Python's own handlers wait for the main thread."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(function)
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, handler)
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, None)


@contextlib.contextmanager
def watchdog(job: Job) -> Iterator[None]:
    """Ends this process once it has not got on for `job.limit` seconds: it, or another one, is stuck."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(min(1.0, job.limit / 4)):
            if job.seconds_since_beat() > job.limit:
                _give_up(f"no step was finished for {job.limit:.0f} s, --step-timeout")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
