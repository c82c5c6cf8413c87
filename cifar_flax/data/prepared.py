"""Data sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_flax.data.assemble import Labelled, assemble
from cifar_flax.data.folders import natural
from cifar_flax.data.kept import kept
from cifar_flax.data.sources import default_data_dir
from cifar_flax.data.spec import Dataset
from cifar_flax.errors import UserError


def load_prepared(
    name: str, data_dir: str | os.PathLike | None, *, report: Callable[[str], None], **options: Any
) -> Dataset:
    """The newest version of `NAME`, or `NAME/CONFIG` or `NAME:VERSION`, in the order in which it is stored.

    It is looked for in `data_dir`, else in `$TFDS_DATA_DIR` or `~/tensorflow_datasets`, and where this program
    prepares CIFAR-10.

    Raises:
      UserError: it is not prepared, or not so that it can be read without TensorFlow; or as `assemble`.
    """
    prepared = _find(name, data_dir)
    prepare = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
    if not list(prepared.glob("*.array_record*")):
        raise UserError(f"{prepared} is in a format that only TensorFlow reads: prepare it, with it, by {prepare}")
    make = functools.partial(_decode, prepared, prepare, report=report, **options)
    return kept(prepared, sorted(prepared.iterdir()), make, options=options, report=report)


def _decode(prepared: Path, prepare: str, **options: Any) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(prepared))
        info: Any = builder.info
        features = dict(info.features)
        keys = [*(info.supervised_keys or ()), *features]  # those that it names itself come first
        image, label = (
            next((key for key in keys if isinstance(key, str) and type(features.get(key)).__name__ == kind), None)
            for kind in ("Image", "ClassLabel")
        )
        if image is None or label is None:
            raise UserError(f"{prepared} does not hold images and classes: expected a set for image classification")
        splits = list(info.splits)
        if "train" not in splits:
            raise UserError(f"{prepared} has no split called train: choose another data set")
        test = next((split for split in ("test", "validation", "valid", "val") if split in splits), None)

        def read(split: str) -> Labelled:
            decoders = {image: tfds.decode.SkipDecoding()}
            source: Any = builder.as_data_source
            records = list(source(split=split, decoders=decoders))
            where = f"{prepared}, {split}"
            return Labelled([x[image] for x in records], [x[label] for x in records], where)

        train, held_out = read("train"), None if test is None else read(test)
    except UserError:
        raise
    except Exception as error:  # TFDS and array_record raise their own
        raise UserError(f"{prepared} cannot be read ({error}): delete it, and prepare it anew by {prepare}") from error
    return assemble(builder.name, features[label].names, train, held_out, **options)


def _find(name: str, data_dir: str | os.PathLike | None) -> Path:
    """The folder of a prepared version."""
    if not re.fullmatch(r"\w[\w/.+-]*(:\w[\w.]*)?", name):
        raise UserError(f"tfds:{name}: expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, such as tfds:mnist")
    if data_dir is not None:
        folders = [Path(data_dir), Path(data_dir) / "tensorflow_datasets"]
    else:
        user_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        folders = [user_dir, default_data_dir() / "tensorflow_datasets"]
    for folder in folders:
        found = [path.parent for path in folder.glob(f"{name.partition(':')[0]}/**/dataset_info.json")]
        if name.partition(":")[2]:
            found = [path for path in found if path.name == name.partition(":")[2]]
        configs = sorted({path.parent.name for path in found})
        if len(configs) > 1:
            raise UserError(
                f"tfds:{name} is prepared as {', '.join(configs)}: name one of them, as in tfds:NAME/CONFIG"
            )
        if found:
            return max(found, key=lambda path: natural(path.name))
    looked = " and ".join(map(str, folders))
    raise UserError(
        f"tfds:{name} is not prepared in {looked}: prepare it with TensorFlow by tfds.builder({name!r}, "
        "file_format='array_record').download_and_prepare()"
    )
