"""An output directory that appears by one rename, complete or not at all."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cifar_flax.errors import UserError


class Kind(NamedTuple):
    """A kind of directory: the file that says what is in it, and that file's format."""

    manifest: str
    format: str

    def header(self) -> dict[str, Any]:
        """What such a file begins with."""
        return {"format": self.format}


EXPLANATION = Kind("manifest.json", "cifar_flax-explanation/2")
PICTURES = Kind("pictures.json", "cifar_flax-pictures/2")


def check(folder: Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuses an output directory that exists, unless it is an earlier one of this kind and `overwrite` is set.

    Args:
      folder: the directory.
      kind: what is to be written there.
      overwrite: whether an earlier one of this kind, and with nothing else in it, may be replaced.

    Raises:
      UserError: so it is.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose another")
    if any(folder.iterdir()):
        written = _files_of(folder, kind)
        there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        if others := sorted(name for name in there if name not in written):
            raise UserError(f"--out {folder} also holds {others[0]}, which would be lost: move it, or choose another")
    if not overwrite:
        raise UserError(f"--out {folder} exists: replace it with --overwrite, or choose another")


def _files_of(folder: Path, kind: Kind) -> set[str]:
    """The files that a directory's own manifest lists, and that manifest.

    Raises:
      UserError: there is none, or it is another program's, or of an earlier version.
    """
    try:
        content = json.loads((folder / kind.manifest).read_bytes())
        if content.get("format") == kind.format:
            return {kind.manifest, *map(str, content["files"])}
        earlier = "checkpoint_sha256" in content
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        earlier = False
    if earlier:
        raise UserError(f"--out {folder} was written by an earlier version: delete it, or choose another")
    raise UserError(f"--out {folder} holds something else, and is not overwritten: choose another")


@contextlib.contextmanager
def replacing(folder: Path, kind: Kind, *, overwrite: bool) -> Iterator[Path]:
    """Yields a new directory beside `folder`, which takes its place when the block ends without an error.

    Raises:
      UserError: as `check`; or it cannot be written.
    """
    check(folder, kind, overwrite=overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}; choose another") from error
