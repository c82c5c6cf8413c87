"""Data sets by name (CIFAR-10, its sample, CIFAR-100, what TFDS prepared) or by path (pictures, files of arrays)."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_flax.data.assemble import SIZES, Labelled, assemble
from cifar_flax.data.cifar100 import load_cifar100
from cifar_flax.data.folders import load_folder
from cifar_flax.data.prepared import load_prepared
from cifar_flax.data.sources import load_cifar10, require_ours
from cifar_flax.data.spec import Dataset
from cifar_flax.data.tables import find_idx, find_parquet, load_idx, load_npz, load_parquet
from cifar_flax.errors import UserError, require_whole

KNOWN = (
    "cifar10, cifar100, sample, tfds:NAME, a folder of pictures or of IDX or Parquet files, a .npz or .parquet file"
)


def open_dataset(
    name: str | os.PathLike = "cifar10",
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    source: str = "auto",
    report: Callable[[str], None] = lambda line: None,
    skip_broken: bool = False,
) -> Dataset:
    """A data set by name.

    Args:
      name: `cifar10`; `sample`, the part of it that comes with this package; `cifar100`; `tfds:NAME`; or a path: a
        folder of pictures (`folders`), a file or folder of arrays or records (`tables`). Of a folder that is called
        as one of the names, `./cifar10` is the path.
      data_dir: where CIFAR-10, CIFAR-100 and TFDS's sets are looked for, and the first two kept.
      image_size: 8 to 96 pixels on a side; None for the images' own size where all are squares of one size of 8 to 64
        pixels, else 32. The middle square of others is brought there by a bilinear filter.
      source: where CIFAR-10 comes from, as for `load_cifar10`; of CIFAR-100 `cache` for what is there already.
      report: called with a line of text as work goes on.
      skip_broken: leave out pictures that cannot be read.

    Raises:
      UserError: there is none of that name, or it is not what a network can be trained on.

    Example:
      >>> import cifar_flax
      >>> sample = cifar_flax.open_dataset("sample")
      >>> sample.test.images.shape, sample.spec.class_names[3]
      ((1000, 32, 32, 3), 'cat')
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise UserError(f"the data set is {name!r}: expected {KNOWN}")
    name, path = os.fspath(name), Path(name)
    if image_size is not None:
        require_whole(image_size, "--image-size", *SIZES)
        image_size = int(image_size)
    if source != "auto" and name != "cifar10" and (name, source) != ("cifar100", "cache"):
        raise UserError(f"--source {source} says where CIFAR-10 comes from, and --dataset is {name}: leave it out")
    if name == "sample":
        if data_dir is not None:
            require_ours(Path(data_dir))
            raise UserError(
                f"--data-dir {data_dir} is where all of CIFAR-10 is kept, and --dataset sample is embedded: "
                "leave it out, or give --dataset cifar10"
            )
        return _resized(load_cifar10(source="sample"), image_size)
    if name == "cifar10":
        if source == "sample":
            raise UserError("--source sample is not a source of all of CIFAR-10; for the sample use --dataset sample")
        return _resized(load_cifar10(data_dir, source, report), image_size)
    if name == "cifar100":
        return load_cifar100(data_dir, image_size, report, download=source != "cache")
    options: dict[str, Any] = dict(image_size=image_size, skip_broken=skip_broken, report=report)
    if name.startswith("tfds:"):
        return load_prepared(name.removeprefix("tfds:"), data_dir, **options)
    if not path.exists():
        raise UserError(f"there is no data set {name}: expected {KNOWN}")
    if data_dir is not None:
        raise UserError(f"--data-dir is where CIFAR and TFDS's sets are kept, and {name} is a path: leave it out")
    if not path.is_dir():
        if path.suffix == ".npz":
            return load_npz(path, **options)
        if path.suffix == ".parquet":
            return load_parquet(path, [path], [], **options)
        raise UserError(f"{name} is no data set: expected {KNOWN}")
    if (idx := find_idx(path)) is not None:
        return load_idx(path, idx, **options)
    if (parquet := find_parquet(path)) is not None:
        return load_parquet(path, *parquet, **options)
    return load_folder(path, image_size, skip_broken, report)


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    """CIFAR-10 or its sample at another size: its images have the same numbers as before."""
    if size in (None, dataset.spec.image_size):
        return dataset
    splits = (dataset.train, dataset.test)
    train, test = (Labelled(split.images, split.labels, dataset.spec.name) for split in splits)
    new = assemble(dataset.spec.name, dataset.spec.class_names, train, test, image_size=size)
    train, test = (a._replace(indices=b.indices) for a, b in zip((new.train, new.test), splits, strict=True))
    return dataclasses.replace(new, train=train, test=test, is_sample=dataset.is_sample)
