"""An output directory that appears by one rename, complete or not at all."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cifar_flax.errors import UserError

# The file that each kind of our directories is known by, and what else may be in it.
MANIFEST, PICTURES = "manifest.json", "pictures.json"
_FILES = {
    MANIFEST: r"(manifest|trust|comparison)\.json|report\.html|cams\.npz|(wrong|correct)_prediction\.png"
    r"|gradcam_(wrong|correct)\.png|gradcam_images/(wrong|correct)_\d+\.png|(loss_accuracy|confusion_matrix)\.png"
    r"|(calibration|faithfulness|confusion_maps|mended|broken)\.png",
    PICTURES: r"pictures\.(json|html)|cams\.npz",
}


def check(folder: Path, kind: str, *, overwrite: bool) -> None:
    """Refuses an output directory that exists, unless it is an earlier one of ours and `overwrite` is set.

    Args:
      folder: the directory.
      kind: `MANIFEST` or `PICTURES`: what is to be written there.
      overwrite: whether an earlier one of this kind, and with nothing else in it, may be replaced.

    Raises:
      UserError: so it is.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose another")
    if any(folder.iterdir()):
        if not _is_ours(folder / kind):
            raise UserError(f"--out {folder} holds something else, and is not overwritten: choose another")
        there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        if others := sorted(name for name in there if not re.fullmatch(_FILES[kind], name)):
            raise UserError(f"--out {folder} also holds {others[0]}, which would be lost: move it, or choose another")
    if not overwrite:
        raise UserError(f"--out {folder} exists: replace it with --overwrite, or choose another")


def _is_ours(path: Path) -> bool:
    """Whether this is what we write, and not another program's file, or a checkpoint's, of that name."""
    try:
        return "checkpoint_sha256" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


@contextlib.contextmanager
def replacing(folder: Path, kind: str, *, overwrite: bool) -> Iterator[Path]:
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
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another") from error
