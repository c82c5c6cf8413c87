"""Files that are complete or not there at all."""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_flax.errors import UserError


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON text.

    Raises:
      UserError: a number in it is not finite; JSON has none such, and no browser reads them.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise UserError(
            "a figure is not finite, which JSON cannot hold: the network's parameters or the data are broken; "
            "nothing was written"
        ) from error


def refuse_existing(path: Path) -> None:
    """Refuses to write what is there already: a `UserError`."""
    if path.exists():
        raise UserError(f"--out {path} exists: choose another, or delete it")


def write_atomically(path: Path, content: bytes | bytearray | str) -> None:
    """Writes a file beside its place and renames it there once it is on the disk.

    Raises:
      OSError: it cannot be written; what was at `path` is as it was.
    """
    write_together({path: content})


def keep_newest(folder: Path, count: int) -> None:
    """Deletes the files of a cache but for so many, those written last."""
    with contextlib.suppress(OSError):  # another process may be at the same
        for path in sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime)[:-count]:
            path.unlink()


def write_together(contents: Mapping[Path, bytes | bytearray | str]) -> None:
    """Writes files beside their places and renames them there once all are on the disk.

    Raises:
      OSError: one cannot be written; what was there is as it was.
    """
    if folders := [path for path in contents if path.is_dir()]:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folders[0]))
    parts = {path: path.with_name(f".{path.name}.part") for path in contents}
    try:
        for path, content in contents.items():
            with open(parts[path], "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    except OSError:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
