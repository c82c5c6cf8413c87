"""CIFAR-100, from one of its two official archives, by its MD5 sum."""

import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cifar_flax import cli
from cifar_flax.data.assemble import Labelled, assemble
from cifar_flax.data.layout import VerificationError
from cifar_flax.data.sources import SourceUnavailableError, default_data_dir, read_members, require_ours, unpickle
from cifar_flax.data.spec import Dataset

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
ARCHIVES = {
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
}
_LARGEST_MEMBER = 200_000_000  # bytes; the training images are 154 million
_TIMEOUT_SECONDS = 10


def load_cifar100(
    data_dir: str | os.PathLike | None,
    image_size: int | None,
    report: Callable[[str], None],
    *,
    download: bool = True,
) -> Dataset:
    """CIFAR-100 with its 100 fine labels, in the official order; downloaded if need be, unless `download` is false.

    Raises:
      UserError: there is no archive and it cannot be downloaded, or it is not the official one.
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    if folder != default_data_dir():
        require_ours(folder)
    archive = next((folder / name for name in ARCHIVES if (folder / name).exists()), None)
    if archive is None and not download:
        raise SourceUnavailableError(f"CIFAR-100 is not in {folder}: put {' or '.join(ARCHIVES)} there")
    if archive is None:
        archive = _download(folder, report)
    report(f"reading {archive}")
    with cli.waiting("reading CIFAR-100"):
        _verify(archive)
        read = _read_binary if "binary" in archive.name else _read_python
        try:
            names, train, test = read(archive)
        except VerificationError:
            raise
        except Exception as error:  # a broken pickle raises nearly anything
            raise VerificationError(f"{archive} is not CIFAR-100: {error}; delete it") from error
    report("CIFAR-100, from the official archive")
    return assemble("CIFAR-100", names, train, test, image_size=image_size, report=report)


def _verify(archive: Path) -> None:
    try:
        with open(archive, "rb") as file:
            actual = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise VerificationError(f"{archive} cannot be read: {error.strerror}; delete it") from error
    if actual != (known := ARCHIVES[archive.name]):
        expected = f"MD5 {actual}, expected {known}"
        raise VerificationError(f"{archive} is not the official CIFAR-100 ({expected}); delete it")


def _download(folder: Path, report: Callable[[str], None]) -> Path:
    """Appears in the folder by one rename, once it is whole."""
    name = next(iter(ARCHIVES))
    report(f"downloading {ADDRESS}{name} (169 MB)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar_flax-", dir=folder) as part, cli.waiting("downloading"):
            whole = Path(part) / name
            with urllib.request.urlopen(ADDRESS + name, timeout=_TIMEOUT_SECONDS) as reply, open(whole, "wb") as file:
                shutil.copyfileobj(reply, file)
            _verify(whole)
            return whole.replace(folder / name)
    except (OSError, ValueError) as error:
        if isinstance(error, VerificationError):
            raise VerificationError(f"{ADDRESS}{name} did not come whole, or is another file: try again") from error
        raise SourceUnavailableError(
            f"CIFAR-100 could not be had ({ADDRESS}{name}: {error}); put {' or '.join(ARCHIVES)} into {folder}"
        ) from error


def _labelled(pixels: np.ndarray, labels: np.ndarray, where: str) -> Labelled:
    """From planes of R, G and B, uint8 `[N, 3072]`."""
    return Labelled(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, where)


def _read_binary(archive: Path) -> tuple[list[str], Labelled, Labelled]:
    """Records of a coarse label, a fine one and 3,072 pixel bytes."""
    members = {name: f"cifar-100-binary/{name}" for name in ("train.bin", "test.bin", "fine_label_names.txt")}
    content = read_members(archive, {path: name for name, path in members.items()}, _LARGEST_MEMBER)
    tables = [np.frombuffer(content[f"{split}.bin"], np.uint8).reshape(-1, 3074) for split in ("train", "test")]
    train, test = (_labelled(table[:, 2:], table[:, 1], str(archive)) for table in tables)
    return content["fine_label_names.txt"].decode().split(), train, test


def _read_python(archive: Path) -> tuple[list[str], Labelled, Labelled]:
    """Pickled dicts of pixels and labels, of which nothing but arrays is made."""
    members = {f"cifar-100-python/{name}": name for name in ("train", "test", "meta")}
    content = {name: unpickle(x) for name, x in read_members(archive, members, _LARGEST_MEMBER).items()}
    batches = [content[split] for split in ("train", "test")]
    train, test = (
        _labelled(np.asarray(batch[b"data"]), np.asarray(batch[b"fine_labels"]), str(archive)) for batch in batches
    )
    return [name.decode() for name in content["meta"][b"fine_label_names"]], train, test
