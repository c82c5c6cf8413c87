"""Where a run writes: log, rows, curves and checkpoints. Another process than the first writes nothing."""

import concurrent.futures
import contextlib
import functools
import sys
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from cifar_flax import plots
from cifar_flax.config import Config
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.execution import Execution
from cifar_flax.training import checkpoint, rundir
from cifar_flax.training.checkpoint import Progress


class Run:
    """A run directory that this process alone writes into; a context manager.

    Args:
      folder: the directory, made if absent; `rundir` says what is written there.
      resume: whether it may hold a run already.

    Raises:
      UserError: it holds a run and `resume` is false, is in use or cannot be written.
    """

    def __init__(self, folder: Path, *, resume: bool):
        self.folder = folder
        self._stack = contextlib.ExitStack()
        rundir.claim(folder, resume=resume)
        self._log: IO[str] = self._stack.enter_context(
            (folder / rundir.LOG).open("a", encoding="utf-8", errors="backslashreplace")
        )
        try:
            rundir.lock(self._log, folder)
        except UserError:
            self._stack.close()
            raise
        self._writer: checkpoint.Writer | None = None
        self._drawer = concurrent.futures.ThreadPoolExecutor(1)
        self._drawn: list[concurrent.futures.Future[None]] = []
        self._events: Any = None
        self._draw = functools.partial(plots.plot_curves, title="")

    def __enter__(self) -> "Run":
        self._stack.callback(self._drawer.shutdown)
        self._stack.callback(self._finish_drawing)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def say(self, line: str) -> None:
        """Tells the person a line, and the log."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self._log, flush=True)

    def begin(
        self, config: Config, dataset: Dataset, execution: Execution, progress: Progress, *, tensorboard: bool
    ) -> None:
        """Writes what the run is, and the rows that it has so far."""
        rundir.write_config(self.folder, config)
        rundir.write_spec(self.folder, dataset.spec)
        rundir.write_rows(self.folder, progress.rows)
        title = f"{config.preset}, {dataset.title}"
        self._draw = functools.partial(plots.plot_curves, title=title, taught=bool(config.teacher))
        if tensorboard:
            self._events = self._stack.enter_context(_event_writer(self.folder))
        self._writer = self._stack.enter_context(
            checkpoint.Writer(self.folder / rundir.CHECKPOINTS, config, dataset.spec, execution.record())
        )

    def save(self, progress: Progress) -> None:
        """Keeps a run within an epoch."""
        assert self._writer is not None
        self._writer.save(progress)

    def publish(self, progress: Progress) -> None:
        """Keeps a finished epoch; draws the curves while training goes on, and writes TensorBoard's events."""
        rundir.require_in_place(self._log, self.folder)
        row = progress.rows[-1]
        rundir.append_row(self.folder, row)
        self.save(progress)
        self._finish_drawing()
        path = self.folder / rundir.CURVES
        self._drawn.append(self._drawer.submit(self._draw, list(progress.rows), path))
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, row["epoch"])

    def _finish_drawing(self) -> None:
        if self._drawn:
            self._drawn.pop().result()  # raises what went wrong


class Silent:
    """The `Run` of a process that is not the first: nothing is said or written."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def begin(self, *_: Any, **__: Any) -> None:
        pass

    def save(self, progress: Progress) -> None:
        pass

    def publish(self, progress: Progress) -> None:
        pass


def _event_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
