"""A folder of pictures, a folder a class: `train/<class>/*` and `test/<class>/*`, or `<class>/*`.

Decoding takes minutes for a large set, so what came out of it is kept in the cache of this program: one file for a
folder and a size, which holds the names, sizes and times of the pictures that it was made of.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_flax import cli
from cifar_flax.data.assemble import Labelled, assemble
from cifar_flax.data.layout import empty_aligned
from cifar_flax.data.sources import default_data_dir
from cifar_flax.data.spec import Dataset, DataSpec, whole_split
from cifar_flax.errors import UserError

_TEST_NAMES = ("test", "val", "valid", "validation")
_CACHE_VERSION = 1  # another one when the same pictures would give other arrays

Report = Callable[[str], None]


def load_folder(folder: Path, image_size: int | None, skip_broken: bool, report: Report) -> Dataset:
    """The pictures of a folder, class by class, each class in the natural order of its files' names.

    It is a split one if its `train` holds folders; else each of its folders is a class, and a fifth of it is for
    testing. Hidden files, and files that are no pictures by their endings, are ignored.

    Raises:
      UserError: as `assemble`; there are no pictures, or a test class that is no training class.
    """
    is_split = any(path.is_dir() for path in _visible(folder / "train"))
    train = _list(folder / "train" if is_split else folder)
    where = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None) if is_split else None
    test = None if where is None else _list(where)
    for place, found in ((folder, train), *([] if where is None or test is None else [(where, test)])):
        if not any(found.values()):
            raise UserError(
                f"{place} holds no folders with pictures: expected train/CLASS/* and test/CLASS/*, or CLASS/*"
            )
    names = [name for name, files in train.items() if files]
    if strange := [name for name, files in (test or {}).items() if files and name not in names]:
        raise UserError(
            f"{where} holds class {strange[0]}, which {folder / 'train'} lacks: add training images, or leave it out"
        )
    if len(names) < 2:
        raise UserError(f"{folder} holds pictures of one class, {names[0]}: expected a folder for each of two or more")

    files = [path for split in (train, test or {}) for paths in split.values() for path in paths]
    stats = [(str(path.relative_to(folder)), *_stat(path)) for path in files]
    key = json.dumps([_CACHE_VERSION, str(folder.resolve()), image_size, skip_broken, stats])
    place = json.dumps([str(folder.resolve()), image_size, skip_broken])
    cache = default_data_dir() / "folders" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.npz"
    if (cached := _from_cache(cache, key)) is not None:
        report(f"{folder}: as decoded before, kept in {cache}")
        for note in cached.notes:
            report(note)
        return cached

    def labelled(found: dict[str, list[Path]], where: Path) -> Labelled:
        labels = [names.index(name) for name, paths in found.items() for _ in paths]
        return Labelled([path for paths in found.values() for path in paths], labels, str(where))

    empty = [name for split in (train, test or {}) for name, paths in split.items() if not paths]
    notes = [f"folders without pictures were left out: {', '.join(empty)}"] if empty else []
    report(f"{folder}: reading {len(files):,} pictures of {len(names)} classes")
    with cli.waiting("reading pictures"):
        dataset = assemble(
            folder.resolve().name or "pictures",
            names,
            labelled(train, folder / "train" if is_split else folder),
            None if test is None or where is None else labelled(test, where),
            image_size=image_size,
            skip_broken=skip_broken,
            report=report,
            notes=notes,
        )
    try:
        _to_cache(dataset, cache, key)
    except OSError as error:
        report(f"not kept in {cache.parent}: {error.strerror or error}")
    return dataset


def natural(name: str) -> list:
    """A key that sorts names as a person does: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [[int(part) if i % 2 else part for i, part in enumerate(parts)], name]


def _visible(folder: Path) -> list[Path]:
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; change its rights, or leave it out") from error
    return sorted(paths, key=lambda path: natural(path.name))


def _list(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each folder in a folder, by their endings."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return {
        path.name: [x for x in _visible(path) if x.suffix.lower() in endings and (x.is_file() or x.is_symlink())]
        for path in _visible(folder)
        if path.is_dir()
    }


def _stat(path: Path) -> tuple[int, int]:
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except OSError:  # a link to nothing: a broken picture
        return -1, -1


def _from_cache(cache: Path, key: str) -> Dataset | None:
    """What was kept for this key; None if there is nothing, or nothing whole."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            spec = DataSpec.from_json(str(kept["spec"]))
            splits = []
            for split in ("train", "test"):
                stored = kept[f"{split}_images"]
                images = empty_aligned(stored.shape)
                images[...] = stored
                splits.append(whole_split(images, kept[f"{split}_labels"]))
            return Dataset(spec, *splits, notes=tuple(json.loads(str(kept["notes"]))))
    except Exception:  # a broken file raises nearly anything; it is made anew
        return None


def _to_cache(dataset: Dataset, cache: Path, key: str) -> None:
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
