"""A folder of pictures, a folder a class: `train/<class>/*` and `test/<class>/*`, or `<class>/*`."""

import collections
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from cifar_flax.data import pictures
from cifar_flax.data.assemble import Labelled, assemble
from cifar_flax.data.kept import kept
from cifar_flax.data.spec import Dataset
from cifar_flax.errors import UserError

_TEST_NAMES = ("test", "val", "valid", "validation")

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
    beside = [path for path in _visible(folder) if is_split and path.is_dir() and path.name != "train"]
    named = {path.name.lower(): path for path in sorted(beside, key=lambda path: path.name.islower())}
    where = next((named[name] for name in _TEST_NAMES if name in named), None)
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

    def labelled(found: dict[str, list[Path]], where: Path) -> Labelled:
        labels = [names.index(name) for name, paths in found.items() for _ in paths]
        return Labelled([path for paths in found.values() for path in paths], labels, str(where))

    empty = list(dict.fromkeys(name for split in (train, test or {}) for name, paths in split.items() if not paths))
    notes = [f"folders without pictures were left out: {', '.join(empty)}"] if empty else []
    if unused := [path.name for path in beside if path != where]:
        notes.append(f"folders beside train were left out: {', '.join(unused)}")
    notes += _left_out([folder / "train" if is_split else folder, *([] if where is None else [where])])

    def make() -> Dataset:
        report(f"{folder}: reading {len(files):,} pictures of {len(names)} class{'es' * (len(names) > 1)}")
        return assemble(
            folder.resolve().name or "pictures",
            names,
            labelled(train, folder / "train" if is_split else folder),
            None if test is None or where is None else labelled(test, where),
            image_size=image_size,
            skip_broken=skip_broken,
            report=report,
        )

    dataset = kept(folder, files, make, options=[image_size, skip_broken], report=report)
    for note in notes:  # they are of what is in the folder now, and not of its pictures
        report(note)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *notes))


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


def _left_out(places: list[Path]) -> list[str]:
    """What is in the folders of classes and is no picture by its ending: a line on files, and one on folders."""
    others = [path for place in places for own in _visible(place) if own.is_dir() for path in _visible(own)]
    endings = pictures.endings()
    others = [path for path in others if path.suffix.lower() not in endings or path.is_dir()]
    files = collections.Counter(path.suffix.lower() or "without ending" for path in others if not path.is_dir())
    folders = sorted({path.name for path in others if path.is_dir()}, key=natural)
    lines = []
    if files:
        kinds = ", ".join(f"{ending} {count:,}" for ending, count in files.most_common(5))
        lines.append(f"files that are no pictures by their endings were left out: {kinds}")
    if folders:
        lines.append(
            f"folders inside of classes were left out: {', '.join(folders[:5])}{', ...' * (len(folders) > 5)}"
        )
    return lines


def _list(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each folder in a folder, by their endings."""
    endings = pictures.endings()
    return {
        path.name: [x for x in _visible(path) if x.suffix.lower() in endings and (x.is_file() or x.is_symlink())]
        for path in _visible(folder)
        if path.is_dir()
    }
