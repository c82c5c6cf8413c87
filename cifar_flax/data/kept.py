"""What decoding pictures gave, kept in the cache of this program: it takes minutes for a large set.

One file for a source and its options. It holds the names, sizes, times and inodes of the files that it was made of,
and is made anew when these have changed.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_flax import cli, files
from cifar_flax.data.layout import empty_aligned
from cifar_flax.data.sources import default_data_dir
from cifar_flax.data.spec import Dataset, DataSpec, whole_split

_VERSION = 3  # another one when the same files would give other arrays
_MOST = 10  # data sets that are kept, those decoded last; 50,000 images of 32x32 pixels are 150 MB


def kept(
    source: Path,
    sources: Sequence[Path],
    make: Callable[[], Dataset],
    *,
    options: Any,
    report: Callable[[str], None],
) -> Dataset:
    """What `make` gives, from the cache if it was made of these very files before.

    Args:
      source: what the data set is called by.
      sources: all files that it is read from.
      make: decodes it, and reports its notes.
      options: what else it depends on, ready for JSON.
      report: called with a line of text as work goes on.
    """
    place = json.dumps([str(source.resolve()), options])
    key = json.dumps([_VERSION, place, [(os.path.relpath(path, source), *_stat(path)) for path in sources]])
    cache = default_data_dir() / "decoded" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.npz"
    if (found := _read(cache, key)) is not None:
        report(f"{source}: as decoded before, kept in {cache}")
        for note in found.notes:
            report(note)
        return found
    with cli.waiting("reading pictures"):
        dataset = make()
    try:
        _write(dataset, cache, key)
    except OSError as error:
        report(f"not kept in {cache.parent}: {error.strerror or error}")
    return dataset


def _stat(path: Path) -> tuple[int, ...]:
    """What changes with a file: also where another one of the same size and time is put in its place."""
    try:
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    except OSError:  # a link to nothing: a broken picture
        return ()


def _read(cache: Path, key: str) -> Dataset | None:
    """What was kept for this key; None if there is nothing, or nothing whole."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            spec = DataSpec.from_json(str(stored["spec"]))
            splits = []
            for split in ("train", "test"):
                images = empty_aligned(stored[f"{split}_images"].shape)
                images[...] = stored[f"{split}_images"]
                splits.append(whole_split(images, stored[f"{split}_labels"]))
            return Dataset(spec, *splits, notes=tuple(json.loads(str(stored["notes"]))))
    except Exception:  # a broken file raises nearly anything; it is made anew
        return None


def _write(dataset: Dataset, cache: Path, key: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{name}_{kind}": getattr(split, kind)
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for kind in ("images", "labels")
    }
    with tempfile.TemporaryDirectory(prefix=".part-", dir=cache.parent) as part:
        whole = Path(part) / cache.name
        np.savez(whole, key=key, spec=dataset.spec.to_json(), notes=json.dumps(dataset.notes), **arrays)
        whole.replace(cache)
    files.keep_newest(cache.parent, _MOST)
