"""A data set of one's own, from its files to a report: scikit-learn's digits, as four kinds of files."""

import base64
import functools
import gzip
import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import cifar_flax
from cifar_flax import commands
from cifar_flax.explaining.folder import EXPLANATION, check

pytestmark = pytest.mark.slow

RECIPE = ["--preset", "smoke", "--epochs", "12", "--widths", "16,32", "--strides", "1,2"]


@pytest.fixture(scope="module")
def digits():
    """1,797 grey images of 8x8 pixels, class by class; by split, uint8 `[N, 8, 8]` and labels."""
    found = load_digits()
    images, labels = (255 * found.images / 16).round().astype(np.uint8), found.target
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::5]] = True
    splits = {}
    for name, chosen in (("train", ~test), ("test", test)):
        order = np.flatnonzero(chosen)[np.argsort(labels[chosen], kind="stable")]
        splits[name] = images[order], labels[order]
    return splits


def write_folder(path, digits):
    for split, (images, labels) in digits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (path / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / split / str(label) / f"{number:04}.png")
    return path


def write_npz(path, digits):
    arrays = {f"{x}_{split}": array for split, pair in digits.items() for x, array in zip("xy", pair, strict=True)}
    np.savez(path, **arrays)
    return path.with_suffix(".npz")


def write_idx(path, digits):
    path.mkdir()
    for split, (images, labels) in digits.items():
        prefix = {"train": "train", "test": "t10k"}[split]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (path / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return path


def write_parquet(path, digits):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    names = {"info": {"features": {"label": {"names": [str(i) for i in range(10)], "_type": "ClassLabel"}}}}
    for split, (images, labels) in digits.items():
        encoded = []
        for image in images:
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            encoded.append({"bytes": content.getvalue(), "path": None})
        table = pyarrow.table({"image": encoded, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        parquet.write_table(table, path / f"{split}-00000-of-00001.parquet")
    return path


WRITERS = {"folder": write_folder, "npz": write_npz, "idx": write_idx, "parquet": write_parquet}


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """Trained on the digits as a folder: the folder, and the run's."""
    here = tmp_path_factory.mktemp("digits")
    folder = write_folder(here / "digits", digits)
    assert commands.main(["train", "--dataset", str(folder), *RECIPE, "--out", str(here / "run")]) == 0
    return folder, here / "run"


def test_it_learns_and_its_errors_are_explained(run, capsys):
    _, out = run
    network = cifar_flax.load(out)
    assert network.history[-1]["test_accuracy"] > 0.97
    assert network.spec.class_names == tuple("0123456789") and network.spec.image_size == 8 and network.spec.digest
    assert commands.main(["explain", "--ckpt", str(out), "--count", "3"]) == 0
    manifest = json.loads((out / "explain" / "manifest.json").read_text())
    assert manifest["accuracy"] == pytest.approx(network.history[-1]["test_accuracy"])
    assert manifest["class_names"] == list("0123456789") and not manifest["is_sample"]
    assert (out / "explain" / "report.html").exists()


@pytest.fixture(scope="module")
def train_shortly(tmp_path_factory):
    """A function of a data set: the digest of the network after an epoch of it."""

    @functools.cache
    def train(dataset):
        out = tmp_path_factory.mktemp("short") / "run"
        assert commands.main(["train", "--dataset", str(dataset), *RECIPE, "--epochs", "1", "--out", str(out)]) == 0
        return cifar_flax.load(out).trained.digest

    return train


@pytest.mark.parametrize("kind", ["npz", "idx", "parquet"])
def test_the_same_images_make_the_same_network_whatever_their_files(kind, run, digits, train_shortly, tmp_path):
    folder, _ = run
    path = WRITERS[kind](tmp_path / "files", digits)
    ours, theirs = cifar_flax.open_dataset(folder), cifar_flax.open_dataset(path)
    for split in ("train", "test"):
        for a, b in zip(getattr(ours, split), getattr(theirs, split), strict=True):
            np.testing.assert_array_equal(a, b)
    assert ours.spec.digest == theirs.spec.digest and ours.spec.mean == theirs.spec.mean
    assert train_shortly(folder) == train_shortly(path)


def test_another_data_set_is_refused_in_a_line_that_names_both(run, digits, tmp_path, capsys):
    _, out = run
    assert commands.main(["explain", "--ckpt", str(out), "--dataset", "sample", "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "was trained on" in said and "CIFAR-10" in said and said.count("\n") == 1
    fewer = {name: (images[1:], labels[1:]) for name, (images, labels) in digits.items()}
    other = write_folder(tmp_path / "digits", fewer)
    assert commands.main(["explain", "--ckpt", str(out), "--dataset", str(other), "--out", str(tmp_path / "a")]) == 2
    assert "images of digest" in capsys.readouterr().err
    assert commands.main(["compare", "compact", "--ckpt", str(out), "--out", str(tmp_path / "a")]) == 2
    assert "compact network was trained on CIFAR-10, and this data set is digits" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_published_network_is_fine_tuned_to_other_classes(digits, tmp_path, capsys):
    folder = write_folder(tmp_path / "digits", digits)
    words = ["train", "--preset", "compact", "--init", "compact", "--dataset", str(folder), "--epochs", "2"]
    assert commands.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "all of it is kept but its last layer, which begins anew" in capsys.readouterr().out
    assert cifar_flax.load(tmp_path / "run").history[-1]["test_accuracy"] > 0.5


def test_pictures_in_folders_of_their_classes_have_an_accuracy(run, capsys, tmp_path):
    folder, out = run
    assert commands.main(["pictures", str(folder / "test"), "--ckpt", str(out), "--out", str(tmp_path / "a")]) == 0
    manifest = json.loads((tmp_path / "a" / "pictures.json").read_text())
    assert manifest["accuracy"] == pytest.approx(cifar_flax.load(out).history[-1]["test_accuracy"])
    assert np.trace(manifest["confusion"]) == round(manifest["accuracy"] * len(manifest["pictures"]))
    assert "pictures, by their folders' names" in capsys.readouterr().out


def test_an_evaluation_is_in_files_pictures_report_and_card(run, tmp_path, monkeypatch):
    """Of small images, and beside another network: the same some epochs before."""
    monkeypatch.chdir(tmp_path)
    ours = str(run[1])
    before = str(sorted((run[1] / "checkpoints").iterdir(), key=lambda path: int(path.name))[0])
    words = ["evaluate", "--ckpt", ours, "--num-images", "30", "--count", "1", "--corruptions", "--compare", before]
    assert commands.main([*words, "--out", "a"]) == 0
    folder = tmp_path / "a"
    trust = json.loads((folder / "trust.json").read_text())
    assert trust["images"] == 30 and trust["seed"] == 0 and "digits" in trust["data"]
    assert set(trust["pointing"]) >= {"stem", "stage1", "stage2"}
    assert sum(trust["faithfulness"]["images"].values()) == 30
    parts = ("faithfulness", "randomisation", "class_sensitivity", "pointing", "whole", "calibration")
    assert set(parts) < set(trust) and set(parts) < set(trust["definitions"])
    html = (folder / "report.html").read_text()
    found = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    robust = json.loads((folder / "robustness.json").read_text())
    assert robust["images"] == 30 and robust["accuracy"] != robust["other"]["accuracy"]
    with Image.open(folder / "corruptions.png") as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 50
    assert robust["about"][0] in html
    assert commands.main(["publish", "card", "--ckpt", ours, "--report", "a"]) == 0
    assert (tmp_path / "card" / "index.html").read_bytes() == (folder / "report.html").read_bytes()
    card = (tmp_path / "card" / "README.md").read_text()
    assert robust["about"][0] in card and f"| clean | {100 * robust['accuracy']['clean'][0]:.1f}% | | | | |" in card
    snow = " | ".join(f"{100 * x:.1f}%" for x in robust["accuracy"]["snow"])
    assert f"| snow | {snow} |" in card
    check(folder, EXPLANATION, overwrite=True)  # all that it wrote may be replaced
    drawn = [base64.b64decode(table["picture"]) for table in found["trust"] if table["picture"]]
    assert drawn == [
        (folder / f"{name}.png").read_bytes() for name in ("faithfulness", "confusion_maps", "calibration")
    ]


def test_animals_and_vehicles(sample, tmp_path):
    """The sample's pictures in two folders."""
    for split in ("train", "test"):
        images, labels, _ = getattr(sample, split).take(slice({"train": 500, "test": 200}[split]))
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            kind = "vehicle" if label in (0, 1, 8, 9) else "animal"
            (tmp_path / "two" / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "two" / split / kind / f"{number}.png")
    words = ["train", *RECIPE, "--strides", "2,2", "--epochs", "5", "--dataset", str(tmp_path / "two")]
    assert commands.main([*words, "--out", str(tmp_path / "run")]) == 0
    network = cifar_flax.load(tmp_path / "run")
    assert network.spec.class_names == ("animal", "vehicle") and network.history[-1]["test_accuracy"] > 0.7
    dataset = cifar_flax.open_dataset(tmp_path / "two")
    analysis = cifar_flax.analyse(network, dataset, cifar_flax.Selection(num_wrong=2))
    assert analysis.maps.shape[1] == 2 and analysis.predictions.confusion.shape == (2, 2)
    analysis.save(tmp_path / "explained")
