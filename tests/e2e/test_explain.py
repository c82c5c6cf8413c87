"""`python explain.py` as a person runs it, with the embedded network on the embedded sample."""

import base64
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

from cifar_flax import data
from cifar_flax.explaining import explanation
from cifar_flax.explaining.folder import MANIFEST, PICTURES, check
from cifar_flax.network import weights
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
            assert manifest[kind][number - 1]["files"] == [f"gradcam_images/{kind}_{number}.png"]
            assert described(folder / "gradcam_images" / f"{kind}_{number}.png") == [index]
    assert np.load(folder / "cams.npz")["indices"].tolist() == wrong + correct
    in_report = [image["index"] for image in reported["images"] if image["true"] != image["predicted"]]
    assert in_report[:20] == wrong


def test_the_manifest_is_true(manifest, sample):
    """Against the network itself, asked once more."""
    network = trained.load_network(None)
    logits = explanation.predict(network, sample.test_images)
    p, guesses = explanation.probabilities(logits), logits.argmax(axis=1)
    assert manifest["checkpoint_sha256"] == network.digest
    assert manifest["test_count"] == 1000
    assert manifest["test_accuracy"] == pytest.approx(100 * (guesses == sample.test_labels).mean())
    place = {index: position for position, index in enumerate(data.sample_indices("test").tolist())}
    for entry in manifest["wrong"] + manifest["correct"]:
        position = place[entry["index"]]
        assert entry["true"] == sample.class_names[sample.test_labels[position]]
        assert entry["predicted"] == sample.class_names[guesses[position]]
        np.testing.assert_allclose(entry["probabilities"], p[position], atol=1e-4)
        assert entry["raw_min"]["predicted"] < entry["raw_max"]["predicted"]
        assert entry["zero_map"]["predicted"] == (entry["raw_max"]["predicted"] <= 0)
    assert all(entry["true"] != entry["predicted"] for entry in manifest["wrong"])
    assert all(entry["true"] == entry["predicted"] for entry in manifest["correct"])


def test_the_images_drawn_are_the_test_sets_own(explained, manifest, sample):
    """The first picture's first image, pixel by pixel where nearest-neighbour drawing leaves their colours."""
    place = {index: position for position, index in enumerate(data.sample_indices("test").tolist())}
    with Image.open(explained[1] / manifest["wrong"][0]["files"][0]) as image:
        drawn = {color for _, color in image.convert("RGB").getcolors(1 << 22)}
    own = {tuple(color) for color in sample.test_images[place[manifest["wrong"][0]["index"]]].reshape(-1, 3).tolist()}
    assert own <= drawn


def test_the_report_holds_every_wrong_prediction(reported, manifest):
    wrong = [image for image in reported["images"] if image["true"] != image["predicted"]]
    assert len(wrong) == manifest["test_count"] - round(manifest["test_accuracy"] * manifest["test_count"] / 100)
    assert np.trace(reported["confusion"]) == manifest["test_count"] - len(wrong)
    assert reported["is_sample"]


def test_raw_maps_are_kept_and_finite(explained):
    raw = np.load(explained[1] / "cams.npz")["raw"]
    assert raw.shape == (30, 11, 8, 8) and raw.dtype == np.float32
    assert np.isfinite(raw).all() and (raw < 0).any()


def test_two_runs_write_the_same_bytes(tmp_path):
    sums = []
    for name in ("a", "b"):
        process = explain("--out", name, "--count", 2, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        sums.append([(path.relative_to(tmp_path / name), hashlib.md5(path.read_bytes()).digest()) for path in files])
    assert sums[0] == sums[1]


def test_given_images_are_explained_and_classes_filtered(tmp_path):
    process = explain("--indices", "0,3,1", "--out", "a", "--layer", "stage2", "--method", "layer-cam", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert sorted(entry["index"] for entry in manifest["wrong"] + manifest["correct"]) == [0, 1, 3]
    assert (manifest["layer"], manifest["method"]) == ("stage2", "layer-cam")
    process = explain(
        "--true", "cat", "--pred", "dog", "--count", 3, "--sort", "confidence", "--out", "b", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert {(entry["true"], entry["predicted"]) for entry in manifest["wrong"]} == {("cat", "dog")}
    confidences = [entry["probabilities"][5] for entry in manifest["wrong"]]
    assert confidences == sorted(confidences, reverse=True)


def test_an_empty_selection_says_so_and_writes_the_rest(tmp_path):
    process = explain("--true", "cat", "--pred", "cat", "--count", 2, "--out", "a", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "No wrong prediction fits" in process.stdout
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["wrong"] == [] and len(manifest["correct"]) == 2
    assert (tmp_path / "a" / "report.html").exists() and (tmp_path / "a" / "wrong_prediction.png").exists()


def test_exported_network_is_explained_alike(tmp_path, manifest):
    assert explain("--export", "x.safetensors", cwd=tmp_path).returncode == 0
    process = explain("--ckpt", "x.safetensors", "--data", "sample", "--count", 1, "--out", "a", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    again = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert again["checkpoint_sha256"] == manifest["checkpoint_sha256"]
    assert again["wrong"][0] == manifest["wrong"][0]


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path):
    """As a process; `tests/test_misuse.py` has the many kinds."""
    process = explain("--ckpt", "nowhere", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("error: --ckpt nowhere is no checkpoint") and process.stderr.count("\n") == 1


def test_overwriting_replaces_the_directory(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mended.png").write_text("")
    (tmp_path / "a" / "manifest.json").write_text('{"checkpoint_sha256": ""}')
    process = explain("--out", "a", "--overwrite", "--count", 1, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "a" / "mended.png").exists() and (tmp_path / "a" / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_people_say_is_in_manifest_and_report(tmp_path, sample):
    """Made-up files: people are unanimous, but that they dispute the label of the first wrong prediction."""
    places = data.sample_indices("test")
    counts = np.zeros((10_000, 10), int)
    counts[:, 0] = 50
    counts[places] = 50 * np.eye(10, dtype=int)[sample.test_labels]
    np.save(tmp_path / "counts.npy", counts)
    logits = explanation.predict(trained.load_network(None), sample.test_images)
    first = int(np.flatnonzero(logits.argmax(axis=1) != sample.test_labels)[0])
    votes = {"given": 0, "guessed": 5, "neither": 0, "both": 0}
    entry = {"id": int(places[first]), "given_original_label": int(sample.test_labels[first]), "mturk": votes}
    (tmp_path / "votes.json").write_text(json.dumps([entry]))
    flags = ("--human-labels", "counts.npy", "--label-errors", "votes.json")
    process = explain("--count", 2, "--out", "a", *flags, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [entry["badge"] for entry in manifest["wrong"]] == ["label disputed", "people are unanimous"]
    assert not any("badge" in entry for entry in manifest["correct"])
    assert manifest["people"]["label disputed"] == 1
    assert manifest["people"]["wrong"] == 1 + manifest["people"]["people are unanimous"]
    assert "label disputed" in (tmp_path / "a" / "report.html").read_text()


def test_an_evaluation_is_in_files_pictures_and_report(tmp_path):
    process = explain("--evaluate", 30, "--count", 1, "--out", "a", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "a"
    trust = json.loads((folder / "trust.json").read_text())
    assert trust["images"] == 30 and trust["seed"] == 0 and "SAMPLE" in trust["data"]
    assert sum(trust["faithfulness"]["images"].values()) == 30
    parts = ("faithfulness", "randomisation", "class_sensitivity", "pointing", "whole", "calibration")
    assert set(parts) < set(trust) and set(parts) < set(trust["definitions"])
    html = (folder / "report.html").read_text()
    tables = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])[
        "trust"
    ]
    check(folder, MANIFEST, overwrite=True)  # all that it wrote may be replaced
    drawn = [base64.b64decode(table["picture"]) for table in tables if table["picture"]]
    assert drawn == [
        (folder / f"{name}.png").read_bytes() for name in ("faithfulness", "confusion_maps", "calibration")
    ]


def test_pictures_of_ones_own_are_explained_and_broken_ones_named(tmp_path, sample):
    (tmp_path / "mine").mkdir()
    Image.fromarray(sample.test_images[0]).resize((200, 120)).save(tmp_path / "mine" / "a.jpg")
    Image.fromarray(sample.test_images[1]).save(tmp_path / "b.webp")
    (tmp_path / "mine" / "c.png").write_text("no picture")
    process = explain("--images", "mine", "b.webp", "nowhere", cwd=tmp_path)
    assert process.returncode == 2
    errors = process.stderr.splitlines()
    assert [line.split()[2] for line in errors] == ["mine/c.png", "nowhere"] and errors[0].startswith(
        "error: --images"
    )
    check(tmp_path / "pictures", PICTURES, overwrite=True)  # all that it wrote may be replaced
    manifest = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert [entry["file"] for entry in manifest["pictures"]] == ["mine/a.jpg", "b.webp"]
    assert len(manifest["refused"]) == 2 and (tmp_path / "pictures" / "pictures.html").exists()
    assert re.search(r"^b\.webp: \w+ \d+%", process.stdout, re.MULTILINE)
    assert "names one of them for anything" in process.stdout


def test_two_networks_are_compared_in_files_pictures_and_report(tmp_path, sample):
    network = trained.load_network(None)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x) * (1 + 0.1 * rng.normal(size=x.shape)).astype("f"), network.params)
    weights.save_weights(tmp_path / "other.safetensors", params, network.config, {})
    process = explain("--compare", "other.safetensors", "--count", 1, "--out", "a", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    check(tmp_path / "a", MANIFEST, overwrite=True)  # all that it wrote may be replaced
    found = json.loads((tmp_path / "a" / "comparison.json").read_text())
    other = trained.load_network(tmp_path / "other.safetensors")
    right, other_right = (
        explanation.predict(x, sample.test_images).argmax(axis=1) == sample.test_labels for x in (network, other)
    )
    assert found["mended"] == (~right & other_right).sum() > 0
    assert found["broken"] == (right & ~other_right).sum() > 0
    counts = f"mends {found['mended']} and breaks {found['broken']}"
    assert f"other.safetensors: {100 * other_right.mean():.2f}%, {counts}" in process.stdout
    places = data.sample_indices("test")
    for kind, positions in (("mended", ~right & other_right), ("broken", right & ~other_right)):
        assert set(described(tmp_path / "a" / f"{kind}.png")) <= set(places[positions].tolist())
    html = (tmp_path / "a" / "report.html").read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    in_page = {shown["images"][x["place"]]["index"] for x in shown["compared"]["images"] if x["mended"]}
    assert in_page == set(places[~right & other_right].tolist())
