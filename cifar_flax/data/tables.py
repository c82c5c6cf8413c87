"""Data sets in files of arrays or records: NumPy's `.npz`, MNIST's IDX, and Parquet as on the Hugging Face Hub.

All keep the order of their files.
"""

import contextlib
import functools
import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cifar_flax.data.assemble import Labelled, assemble
from cifar_flax.data.kept import kept
from cifar_flax.data.spec import Dataset
from cifar_flax.errors import UserError

_LABEL_COLUMNS = ("label", "fine_label", "labels")


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Makes one line of what is raised about a broken file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as {kind} ({reason}): make or download it anew") from error


def load_npz(path: Path, **options: Any) -> Dataset:
    """The arrays `x_train`, `y_train`, `x_test` and `y_test` of a file, and `class_names` if it has them.

    Without the last two, a fifth of the images is for testing.

    Raises:
      UserError: it cannot be read, or as `assemble`.
    """
    with _reading(path, "an .npz file"), open(path, "rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        is_split = "x_test" in arrays or "y_test" in arrays
        expected = ["x_train", "y_train", *(["x_test", "y_test"] if is_split else [])]
        if missing := [name for name in expected if name not in arrays]:
            raise UserError(
                f"{path} lacks {missing[0]}: expected x_train, y_train, maybe x_test and y_test, maybe class_names"
            )
        train = Labelled(arrays["x_train"], arrays["y_train"], f"{path}, train" if is_split else str(path))
        test = Labelled(arrays["x_test"], arrays["y_test"], f"{path}, test") if is_split else None
        names = arrays["class_names"].astype(str).ravel().tolist() if "class_names" in arrays else None
    return assemble(path.stem, names, train, test, **options)


# ---- IDX ----


def find_idx(folder: Path) -> list[Path] | None:
    """MNIST's four files: images and labels to train on, then to test on; None if the folder has none of them."""
    stems = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images?idx3-ubyte", "labels?idx1-ubyte")]
    found = [next((path for end in ("", ".gz") for path in folder.glob(stem + end)), None) for stem in stems]
    if not any(found):
        return None
    if None in found:
        missing = stems[found.index(None)].replace("?", "-")
        raise UserError(f"{folder} lacks {missing}.gz: expected MNIST's four files")
    return [path for path in found if path]


def load_idx(folder: Path, files: list[Path], **options: Any) -> Dataset:
    """MNIST's four files, as `find_idx` finds them.

    Raises:
      UserError: one cannot be read, or as `assemble`.
    """
    images, labels, test_images, test_labels = map(_read_idx, files)
    train, test = Labelled(images, labels, str(files[0])), Labelled(test_images, test_labels, str(files[2]))
    return assemble(folder.resolve().name, None, train, test, **options)


def _read_idx(path: Path) -> np.ndarray:
    """A uint8 array: two zero bytes, the type (8), the number of dimensions, each as four bytes, and the content."""

    def read(file: BinaryIO) -> np.ndarray:
        head = file.read(4)
        if head[:3] != b"\0\0\x08" or len(head) < 4:
            raise ValueError("it does not begin as such a file of bytes")
        shape = tuple(np.frombuffer(file.read(4 * head[3]), ">u4").tolist())
        size = math.prod(shape)
        content = file.read(size + 1)
        if len(shape) != head[3] or len(content) != size:
            raise ValueError(f"it holds another number of bytes than {size:,}, as it says")
        return np.frombuffer(content, np.uint8).reshape(shape)

    with _reading(path, "an IDX file"):
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return read(file)  # type: ignore[arg-type]
        with open(path, "rb") as file:
            return read(file)


# ---- Parquet ----


def find_parquet(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """The files `train*` and `test*` (or `val*`) of a folder or of its `data`; None if there is none to train on."""
    for place in (folder, folder / "data"):
        if train := sorted(place.glob("train*.parquet")):
            test = sorted(place.glob("test*.parquet")) or sorted(place.glob("val*.parquet"))
            return train, test
    return None


def load_parquet(
    path: Path, train: list[Path], test: list[Path], *, report: Callable[[str], None], **options: Any
) -> Dataset:
    """Records of an encoded image and a label, whose names are in the Hub's metadata, else the labels themselves.

    Raises:
      UserError: a file cannot be read, or has no such columns; or as `assemble`.
    """
    make = functools.partial(_decode_parquet, path, train, test, report=report, **options)
    return kept(path, [*train, *test], make, options=options, report=report)


def _decode_parquet(path: Path, train: list[Path], test: list[Path], **options: Any) -> Dataset:
    read = [_read_parquet(file) for file in [*train, *test]]
    names = read[0][2]
    if other := [file for file, (*_, own) in zip([*train, *test], read, strict=True) if own != names]:
        raise UserError(f"{other[0]} names other classes than {train[0]}: put each data set into its own folder")

    def joined(parts: list, where: str) -> Labelled:
        images = [image for part, *_ in parts for image in part]
        return Labelled(images, np.concatenate([labels for _, labels, _ in parts]), where)

    ahead = joined(read[: len(train)], f"{path}, train" if test else str(path))
    behind = joined(read[len(train) :], f"{path}, test") if test else None
    place = path.resolve()
    return assemble(place.name if place.is_dir() else place.stem, names, ahead, behind, **options)


def _read_parquet(path: Path) -> tuple[list[bytes], np.ndarray, list[str] | None]:
    """Encoded images, labels, and the names of the classes."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    with _reading(path, "a Parquet file"):
        try:
            schema = pq.read_schema(path)

            def is_image(field: pa.Field) -> bool:
                kind = field.type
                if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                    kind = kind.field("bytes").type
                return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

            images = [field.name for field in schema if is_image(field)]
            integers = [field.name for field in schema if pa.types.is_integer(field.type)]
            known = [name for name in _LABEL_COLUMNS if name in schema.names] or integers
            if not images:
                raise UserError(
                    f"{path} has no column of images: expected encoded ones, as bytes or a struct with bytes"
                )
            if not known or (known is integers and len(integers) > 1):
                raise UserError(f"{path} has no column of labels: expected whole numbers, called label")
            image, label = "image" if "image" in images else images[0], known[0]
            table = pq.read_table(path, columns=[image, label])
        except pa.ArrowException as error:
            raise ValueError(str(error).rstrip(".")) from error
        column = table.column(image).to_pylist()
        encoded = [(x["bytes"] if isinstance(x, dict) else x) or b"" for x in column]
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", label, "names"):
            features = features.get(key) if isinstance(features, dict) else None
        return encoded, table.column(label).to_numpy(), list(map(str, features)) if features else None
