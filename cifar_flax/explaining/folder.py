"""An output directory that appears by one rename, complete or not at all."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cifar_flax.errors import UserError

# One of these is in each of our directories.
MANIFEST, PICTURES = "manifest.json", "pictures.json"


def check(folder: Path, *, overwrite: bool) -> None:
    """Refuses an output directory that exists, unless it is an earlier one of ours and `overwrite` is set.

    Raises:
      UserError: so it is.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"--out {folder} exists: replace it with --overwrite, or choose another")
    ours = folder.is_dir() and any((folder / name).exists() for name in (MANIFEST, PICTURES))
    if not folder.is_dir() or (any(folder.iterdir()) and not ours):
        raise UserError(f"--out {folder} is no explanation, and is not overwritten: choose another")


@contextlib.contextmanager
def replacing(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a new directory beside `folder`, which takes its place when the block ends without an error.

    Raises:
      UserError: as `check`; or it cannot be written.
    """
    check(folder, overwrite=overwrite)
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
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another") from error
