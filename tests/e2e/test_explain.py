"""`python explain.py` as a person runs it, with the embedded network on the embedded sample."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cifar_flax import commands
from cifar_flax.explaining.folder import PICTURES, check
from cifar_flax.training import trained

ROOT = Path(__file__).parents[2]


def explain(*words, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "explain.py"), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A function that calls a command within this process, in `tmp_path`: without the start of another."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: commands.main([str(word) for word in words])


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The outputs of the command without any argument: its process and its directory."""
    cwd = tmp_path_factory.mktemp("explain")
    process = explain(cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process, cwd / "explain"


@pytest.fixture(scope="module")
def manifest(explained):
    return json.loads((explained[1] / "manifest.json").read_text())


@pytest.fixture(scope="module")
def reported(explained):
    """What the report was given."""
    html = (explained[1] / "report.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def described(path):
    """The test images that a picture says it shows."""
    with Image.open(path) as image:
        description = image.text["Description"]
    return [int(index) for index in re.fullmatch(r"test images (.*)", description)[1].split(", ")]


pytestmark = pytest.mark.slow


def test_it_says_that_it_is_a_sample_and_writes_everything(explained):
    process, folder = explained
    assert "embedded SAMPLE of the CIFAR-10 test set, 1,000 images" in process.stdout
    assert process.stderr == "" and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", process.stdout)
    singles = {
        f"gradcam_images/{kind}_{i}.png" for kind, n in (("wrong", 20), ("correct", 10)) for i in range(1, n + 1)
    }
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == singles | {
        "wrong_prediction.png",
        "correct_prediction.png",
        "gradcam_wrong.png",
        "gradcam_correct.png",
        "loss_accuracy.png",
        "neighbours_wrong.png",
        "confusion_matrix.png",
        "manifest.json",
        "cams.npz",
        "report.html",
    }


def test_the_twenty_images_are_the_same_everywhere(explained, manifest, reported):
    folder = explained[1]
    wrong = [entry["index"] for entry in manifest["wrong"]]
    correct = [entry["index"] for entry in manifest["correct"]]
    assert len(wrong) == len(set(wrong)) == 20 and wrong == sorted(wrong) and len(correct) == 10
    assert described(folder / "wrong_prediction.png") == described(folder / "gradcam_wrong.png") == wrong
    assert described(folder / "correct_prediction.png") == described(folder / "gradcam_correct.png") == correct
    for kind, indices in (("wrong", wrong), ("correct", correct)):
        for number, index in enumerate(indices, start=1):
            assert manifest[kind][number - 1]["picture"] == f"gradcam_images/{kind}_{number}.png"
            assert described(folder / "gradcam_images" / f"{kind}_{number}.png") == [index]
    assert np.load(folder / "cams.npz")["indices"].tolist() == wrong + correct
    in_report = [image["index"] for image in reported["images"] if image["true"] != image["predicted"]]
    assert in_report[:20] == wrong


def test_two_runs_write_the_same_bytes(tmp_path, explained):
    """In a process of its own each: how many cores compute is no part of an argument."""
    process = explain("--out", "a", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    sums = []
    for folder in (explained[1], tmp_path / "a"):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums.append([(path.relative_to(folder), hashlib.md5(path.read_bytes()).digest()) for path in files])
    assert sums[0] == sums[1]


def test_given_images_are_explained_and_classes_filtered(tmp_path, here):
    assert here("explain", "--indices", "0,3,1", "--out", "a", "--stage", "stage2", "--method", "layer-cam") == 0
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert sorted(entry["index"] for entry in manifest["wrong"] + manifest["correct"]) == [0, 1, 3]
    assert (manifest["stage"], manifest["method"]) == ("stage2", "layer-cam")
    words = ("--true", "cat", "--predicted", "dog", "--count", 3, "--sort", "confidence")
    assert here("explain", *words, "--out", "b") == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert {(entry["true"], entry["predicted"]) for entry in manifest["wrong"]} == {("cat", "dog")}
    confidences = [entry["probabilities"][5] for entry in manifest["wrong"]]
    assert confidences == sorted(confidences, reverse=True)


def test_an_empty_selection_says_so_and_writes_the_rest(tmp_path, here, capsys):
    assert here("explain", "--true", "cat", "--predicted", "cat", "--count", 2, "--out", "a") == 0
    assert "No wrong prediction fits" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["wrong"] == [] and len(manifest["correct"]) == 2
    assert (tmp_path / "a" / "report.html").exists() and (tmp_path / "a" / "wrong_prediction.png").exists()


def test_exported_network_is_explained_alike(tmp_path, manifest, here):
    assert here("export", "--out", "x.safetensors") == 0
    assert here("explain", "--ckpt", "x.safetensors", "--dataset", "sample", "--count", 1, "--out", "a") == 0
    again = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert again["checkpoint_sha256"] == manifest["checkpoint_sha256"]
    assert again["wrong"][0] == manifest["wrong"][0]


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path):
    """As a process; `tests/test_misuse.py` has the many kinds."""
    process = explain("--ckpt", "nowhere", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("error: --ckpt nowhere is no checkpoint") and process.stderr.count("\n") == 1


def test_overwriting_replaces_the_directory(tmp_path, here):
    ours = trained.load("compact")
    other = dataclasses.replace(ours, params=jax.tree.map(lambda x: 1.1 * x, ours.params))
    trained.export(other, tmp_path / "other.safetensors")
    assert here("compare", "other.safetensors", "--out", "a", "--count", 1) == 0
    assert (tmp_path / "a" / "mended.png").exists()
    assert here("explain", "--out", "a", "--overwrite", "--count", 1) == 0
    assert not (tmp_path / "a" / "mended.png").exists() and (tmp_path / "a" / "report.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other.safetensors"]


def test_pictures_of_ones_own_are_explained_and_broken_ones_named(tmp_path, sample, here, capsys):
    (tmp_path / "mine").mkdir()
    Image.fromarray(sample.test.images[0]).resize((200, 120)).save(tmp_path / "mine" / "a.jpg")
    Image.fromarray(sample.test.images[1]).save(tmp_path / "b.webp")
    (tmp_path / "mine" / "c.png").write_text("no picture")
    assert here("pictures", "mine", "b.webp", "nowhere") == 2
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert [line.split()[:2] for line in errors] == [["error:", "mine/c.png"], ["error:", "nowhere"]]
    check(tmp_path / "pictures", PICTURES, overwrite=True)  # all that it wrote may be replaced
    manifest = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert [entry["file"] for entry in manifest["pictures"]] == ["mine/a.jpg", "b.webp"]
    assert len(manifest["refused"]) == 2 and (tmp_path / "pictures" / "pictures.html").exists()
    assert re.search(r"^b\.webp: \w+ \d+%", said.out, re.MULTILINE)
    assert "names one of them for anything" in said.out
