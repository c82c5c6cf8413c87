"""What a person looks at, computed anew: by NumPy and `jax.grad`, from the file of weights and the images.

Nothing here is read from what the program computed on its way: the network is the plain form, a map is a gradient and
a product, a picture is decoded or taken from the figure that matplotlib was given.
"""

import base64
import contextlib
import io
import json
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax

from cifar_flax.commands import compare
from cifar_flax.data import CIFAR10
from cifar_flax.explaining import cam
from cifar_flax.explaining.folder import EXPLANATION, check
from cifar_flax.network import ResNet, model, weights
from cifar_flax.training import trained

pytestmark = pytest.mark.slow

COUNT = 6


def colours(picture):
    """An RGB array of a PNG's bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.array(image.convert("RGB"))


class Oracle:
    """A network on the sample: logits, and the maps of Grad-CAM at its last stage of any weights on the logits."""

    def __init__(self, file, images):
        loaded = weights.load_weights(file)
        network = ResNet(loaded.config.widths, loaded.config.strides)
        mean, std = np.float32([0.491400, 0.482158, 0.446531]), np.float32([0.247032, 0.243485, 0.261588])
        stage = f"stage{len(loaded.config.widths)}"
        inputs = (images.astype(np.float32) / 255 - mean) / std
        self.head = lambda activations: model.head(network, loaded.params, activations, stage=stage)
        self.activations = np.concatenate(
            [model.features(network, loaded.params, part, stage=stage) for part in np.split(inputs, 4)]
        )
        self.logits = np.asarray(self.head(self.activations), np.float64)
        self.p = softmax(self.logits, axis=1)
        self.guesses = self.logits.argmax(axis=1)

    def maps(self, positions, target):
        """Raw maps `[n, h, w]` of sums of logits weighted by `target`, `[n, 10]`."""
        a = self.activations[positions]
        gradient = np.asarray(jax.grad(lambda x: (self.head(x) * target).sum())(a), np.float64)
        return np.einsum("nhwk,nk->nhw", a, gradient.mean(axis=(1, 2)))

    def maps_of(self, positions, classes):
        return self.maps(positions, np.eye(10, dtype=np.float32)[classes])


def same(picture, expected):
    """Whether two pictures are the same but for places where a colour of the table's 256 gives way to the next."""
    return abs(np.asarray(picture, float) - expected).mean() < 1.5


@pytest.fixture(scope="module")
def test_set(sample):
    return sample.test


@pytest.fixture(scope="module")
def folder(tmp_path_factory, test_set):
    """The embedded network in float32, so that what is computed anew differs by no rounding to bfloat16; another
    network, so different that of what it breaks not all is kept; and what people say, made up."""
    folder = tmp_path_factory.mktemp("artefacts")
    embedded, rng = weights.load_weights(trained.PUBLISHED["compact"]), np.random.default_rng(0)
    about = embedded.about | {"precision": "float32"}
    weights.save_weights(folder / "ours.safetensors", embedded.params, embedded.config, about)
    worse = jax.tree.map(lambda x: x * (1 + 0.25 * rng.normal(size=x.shape)).astype("f"), embedded.params)
    weights.save_weights(folder / "other.safetensors", worse, embedded.config, {})
    counts = rng.multinomial(50, [0.02] * 10, size=10_000)
    counts[test_set[2], test_set[1]] += rng.choice([0, 40, 400], len(test_set[1]))
    counts[test_set[2][::3]] = 51 * np.eye(10, dtype=int)[test_set[1][::3]]
    np.save(folder / "counts.npy", counts)
    votes = [
        {
            "id": int(index),
            "given_original_label": int(label),
            "mturk": {"given": int(given), "guessed": 5 - int(given), "neither": 0, "both": 0},
        }
        for index, label, given in zip(test_set[2], test_set[1], rng.integers(0, 6, 1000), strict=True)
    ]
    (folder / "votes.json").write_text(json.dumps(votes[::2]))
    return folder


@pytest.fixture(scope="module")
def ours(test_set):
    return Oracle(trained.PUBLISHED["compact"], test_set[0])


@pytest.fixture(scope="module")
def other(folder, test_set):
    return Oracle(folder / "other.safetensors", test_set[0])


@pytest.fixture(scope="module")
def figures(folder):
    """Runs the command; every figure that was saved, by the words above it."""
    saved = {}
    save = Figure.savefig

    def note(figure, *arguments, **options):
        above = figure.get_suptitle() or figure.axes[0].get_title()
        saved[above] = figure
        return save(figure, *arguments, **options)

    words = ["other.safetensors", "--ckpt", "ours.safetensors", "--dataset", "sample"]
    words += ["--count", str(COUNT), "--out", "a"]
    words += ["--human-labels", "counts.npy", "--label-errors", "votes.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Figure, "savefig", note)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert compare.main(words) == 0
    check(folder / "a", EXPLANATION, overwrite=True)  # all that it wrote may be replaced
    (folder / "said").write_text(said.getvalue())
    return saved


@pytest.fixture(scope="module")
def manifest(folder, figures):
    return json.loads((folder / "a" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def page(folder, figures):
    """The page's JSON."""
    html = (folder / "a" / "report.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def chosen(ours, test_set):
    """Positions of the wrong and of the correct predictions that are explained: the first ones."""
    right = ours.guesses == test_set[1]
    return {"wrong": np.flatnonzero(~right)[:COUNT], "correct": np.flatnonzero(right)[:COUNT]}


def figure_named(figures, *words):
    (found,) = [figure for name, figure in figures.items() if all(word in name for word in words)]
    return found


class Panel(NamedTuple):
    """A picture in a figure: its pixels, the words above and within it, and its extent in the figure, in inches."""

    pixels: np.ndarray
    title: str
    within: str
    box: tuple[float, float, float, float]


def panels(figure):
    """The pictures of a figure, in the order in which they were put there."""
    board, found = figure.axes[0], []
    for shown in board.images:
        left, right, bottom, top = box = shown.get_extent()
        words = {"above": "", "within": ""}
        for text in board.texts:
            x, y = text.get_position()
            if abs(x - (left + right) / 2) < 1e-6 and bottom < y < top + 0.1:
                words["above" if y > top else "within"] += text.get_text()
        found.append(Panel(shown.get_array(), *words.values(), box))
    return found


def confusion_by_hand(labels, guesses):
    return [[sum((labels == i) & (guesses == j)) for j in range(10)] for i in range(10)]


# ---- the test set --------------------------------------------------------------------------------


def test_the_manifest_says_what_was_predicted(manifest, ours, test_set, chosen):
    _, labels, indices = test_set
    right = int((ours.guesses == labels).sum())
    assert (manifest["accuracy"], manifest["correct_count"], manifest["count"]) == (right / 1000, right, 1000)
    for kind, positions in chosen.items():
        assert [entry["index"] for entry in manifest[kind]] == indices[positions].tolist()
        predicted, true = (ours.maps_of(positions, of[positions]) for of in (ours.guesses, labels))
        for i, entry in enumerate(manifest[kind]):
            assert entry["true"] == CIFAR10.class_names[labels[positions[i]]]
            assert entry["predicted"] == CIFAR10.class_names[ours.guesses[positions[i]]]
            np.testing.assert_allclose(entry["probabilities"], ours.p[positions[i]], atol=2e-4)
            for name, raw in (("predicted", predicted[i]), ("true", true[i])):
                np.testing.assert_allclose(entry["raw_min"][name], raw.min(), rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(entry["raw_max"][name], raw.max(), rtol=1e-3, atol=1e-3)
                assert entry["zero_map"][name] == bool((raw <= 0).all())


def test_every_cell_of_the_confusion_matrix_is_counted(figures, page, ours, test_set, folder):
    expected = np.array(confusion_by_hand(test_set[1], ours.guesses))
    assert not (expected == expected.T).all()
    np.testing.assert_array_equal(page["confusion"], expected)
    (axes,) = figure_named(figures, "of 1,000 images correct").axes
    written = {tuple(text.get_position()): int(text.get_text()) for text in axes.texts}
    assert written == {(j, i): expected[i, j] for i in range(10) for j in range(10)}  # across: predicted, down: true
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == list(CIFAR10.class_names)


def test_the_confusion_matrix_is_shaded_by_its_errors(folder, figures, ours, test_set):
    """In the picture itself: the darker a cell's corner, the more errors; the diagonal is white."""
    picture = colours((folder / "a" / "confusion_matrix.png").read_bytes()).astype(int)
    box = figure_named(figures, "of 1,000 images correct").axes[0].get_window_extent()
    scale = picture.shape[0] / figure_named(figures, "of 1,000 images correct").bbox.height
    left, top, side = box.x0 * scale, picture.shape[0] - box.y1 * scale, box.width * scale / 10
    places = [int(left + (j + 0.12) * side) for j in range(10)], [int(top + (i + 0.12) * side) for i in range(10)]
    blue = picture[np.ix_(places[1], places[0])][..., 2]
    assert (blue.diagonal() == 255).all()
    others = ~np.eye(10, dtype=bool)
    order = np.argsort(np.array(confusion_by_hand(test_set[1], ours.guesses))[others], kind="stable")
    assert (np.diff(blue[others][order]) <= 1).all() and len(set(blue[others])) > 5 and blue[others].max() < 255


def test_the_raw_maps_are_those_of_their_images(folder, figures, ours, test_set, chosen):
    _, labels, indices = test_set
    positions = np.concatenate([chosen["wrong"], chosen["correct"]])
    with np.load(folder / "a" / "cams.npz") as kept:
        assert kept["indices"].tolist() == indices[positions].tolist() and kept["raw"].dtype == np.float32
        np.testing.assert_array_equal(kept["classes"], np.tile(np.arange(10), (len(positions), 1)))
        for label in range(10):
            expected = ours.maps_of(positions, np.full(len(positions), label))
            np.testing.assert_allclose(kept["raw"][:, label], expected, rtol=1e-3, atol=2e-3)
        one_hot = np.eye(10, dtype=np.float32)
        expected = ours.maps(positions, one_hot[ours.guesses[positions]] - one_hot[labels[positions]])
        np.testing.assert_allclose(kept["difference"], expected, rtol=1e-3, atol=2e-3)


def decoded_panels(folder, name, figures, *words):
    """The panels of a picture, decoded: RGB `[h, w, 3]` each, without their frames, by their titles."""
    picture, figure = colours((folder / "a" / name).read_bytes()), figure_named(figures, *words)
    height, found = picture.shape[0], {}
    for panel in panels(figure):
        left, right, bottom, top = (round(x * height / figure.get_figheight()) for x in panel.box)
        found[panel.title] = picture[height - top + 3 : height - bottom - 3, left + 3 : right - 3]
    return found


def at_size(picture, expected):
    """The expected picture at the size of a panel, and how much they differ in the mean, of 255."""
    rows, columns = (((np.arange(n) + 0.5) * 256 / n).astype(int) for n in picture.shape[:2])
    return abs(picture.astype(float) - expected[rows][:, columns]).mean()


def test_one_picture_shows_its_image_its_maps_and_their_difference(folder, figures, ours, test_set, chosen, drawn):
    """Decoded from the PNG: which image, which class, which colours, and which sign."""
    images, labels, indices = test_set
    position = chosen["wrong"][0]
    true, guess = int(labels[position]), int(ours.guesses[position])
    found = decoded_panels(folder, "gradcam_images/wrong_1.png", figures, f"test image {indices[position]}:")
    zoomed = images[position].repeat(8, axis=0).repeat(8, axis=1)
    assert at_size(found["image"], zoomed) < 8
    shown = {label: drawn.overlay(images[position], ours.maps_of([position], [label])[0]) for label in (true, guess)}
    for label, another in ((true, guess), (guess, true)):
        panel = found[f"for {CIFAR10.class_names[label]}"]
        assert at_size(panel, shown[label]) < 8 < at_size(panel, shown[another])
    one_hot = np.eye(10, dtype=np.float32)
    raw = ours.maps([position], one_hot[[guess]] - one_hot[[true]])[0]
    panel = found["predicted minus true"].astype(int)
    decoded = panel[..., 2] - panel[..., 0]  # blue is for the predicted class, orange for the true one
    rows, columns = (((np.arange(n) + 0.5) * 256 / n).astype(int) for n in panel.shape[:2])
    expected = drawn.enlarged(raw)[rows][:, columns]
    assert np.corrcoef(decoded.ravel(), expected.ravel())[0, 1] > 0.97


def test_the_picture_of_training_images_shows_those_of_the_manifest(figures, folder, sample):
    entries = json.loads((folder / "a" / "manifest.json").read_text())["wrong"]
    shown = iter(panels(figure_named(figures, "The training images nearest to ")))
    for entry in entries:
        assert next(shown).title.startswith(f"#{entry['index']}\ntrue: {entry['true']}\n")
        for found in entry["neighbours"]:
            (place,) = np.flatnonzero(sample.train.indices == found["index"])
            panel = next(shown)
            np.testing.assert_array_equal(panel.pixels, sample.train.images[place])
            assert found["label"] == CIFAR10.class_names[sample.train.labels[place]]
            assert panel.title == f"{found['label']}\n{found['similarity']:.2f}"
    assert not list(shown)


def test_all_pictures_show_their_images_and_maps(figures, ours, test_set, chosen, drawn):
    images, labels, indices = test_set
    for kind, word in (("wrong", "Wrong predictions"), ("correct", "Correct predictions")):
        positions = chosen[kind]
        shown, grid = (panels(figure_named(figures, f"{word}{mark} ")) for mark in ",:")
        width = len(grid) // len(positions)
        assert width == (3 if kind == "wrong" else 2)
        for place, position in enumerate(positions):
            true, guess, index = int(labels[position]), int(ours.guesses[position]), indices[position]
            title = shown[place].title
            assert title.startswith(f"#{index}\n") and f"predicted: {CIFAR10.class_names[guess]} " in title
            assert f"{100 * ours.p[position, guess]:.0f}%" in title
            assert (f"true: {CIFAR10.class_names[true]}" in title) == (kind == "wrong")
            np.testing.assert_array_equal(shown[place].pixels, images[position])
            row = grid[width * place : width * (place + 1)]
            np.testing.assert_array_equal(row[0].pixels, images[position])
            assert row[0].title == title
            single = figure_named(figures, f"test image {index}:").axes
            bars = next(axes for axes in single if axes.get_title() == "probability")
            np.testing.assert_allclose([bar.get_width() for bar in bars.patches], ours.p[position], atol=2e-4)
            assert [tick.get_text() for tick in bars.get_yticklabels()] == list(CIFAR10.class_names)
            for panel, label in zip(row[1:], (guess, true), strict=False):
                raw = ours.maps_of([position], [label])[0]
                assert panel.title == f"for {CIFAR10.class_names[label]}"
                if (raw > 0).any():
                    assert same(panel.pixels, drawn.overlay(images[position], raw)) and not panel.within
                else:
                    assert "zero map" in panel.within


def test_the_curves_are_those_of_the_run(figures):
    rows = weights.load_weights(trained.PUBLISHED["compact"]).about["metrics"]
    for axes, name in zip(figure_named(figures, "training of compact").axes, ("loss", "accuracy"), strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        train = {"loss": "train: labels and teacher", "accuracy": "train (augmented)"}[name]  # it had a teacher
        for split, label in (("train", train), ("test", "test")):
            assert list(lines[label].get_xdata()) == [row["epoch"] for row in rows]
            shares = [row[f"{split}_correct"] / row[f"{split}_total"] for row in rows]
            expected = [100 * x for x in shares] if name == "accuracy" else [row[f"{split}_loss"] for row in rows]
            assert list(lines[label].get_ydata()) == pytest.approx(expected)


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_holds_the_predictions_images_and_maps(page, ours, test_set):
    images, labels, indices = test_set
    assert page["is_sample"] is True and page["class_names"] == list(CIFAR10.class_names)
    assert page["image_size"] == 32 and all(image["classes"] == list(range(10)) for image in page["images"])
    tables = {cmap: np.frombuffer(base64.b64decode(table), np.uint8) for cmap, table in page["colors"].items()}
    inferno = np.round(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    assert {cmap: table.tobytes() for cmap, table in tables.items()} == {
        "jet": cam.JET.tobytes(),
        "inferno": inferno.tobytes(),
    }
    assert page["accuracy"] == (ours.guesses == labels).sum() / 1000
    rows = weights.load_weights(trained.PUBLISHED["compact"]).about["metrics"]
    assert [row["test_accuracy"] for row in page["rows"]] == [row["test_correct"] / 10_000 for row in rows]
    assert [row["test_loss"] for row in page["rows"]] == [row["test_loss"] for row in rows]
    place = {int(index): i for i, index in enumerate(indices)}
    positions = np.array([place[image["index"]] for image in page["images"]])
    wrong = np.flatnonzero(ours.guesses != labels)
    assert set(wrong) <= set(positions) and (np.diff(positions) > 0).all()
    for label in range(10):
        assert sum((labels == label) & (ours.guesses == label) & np.isin(np.arange(1000), positions)) >= 20
    np.testing.assert_array_equal([image["true"] for image in page["images"]], labels[positions])
    np.testing.assert_array_equal([image["predicted"] for image in page["images"]], ours.guesses[positions])
    np.testing.assert_allclose([image["probabilities"] for image in page["images"]], ours.p[positions], atol=3e-4)
    sheet = colours(base64.b64decode(page["sprite"]))
    for i, position in enumerate(positions):
        row, column = divmod(i, page["sprite_columns"])
        cell = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_array_equal(cell, images[position])
    kept = np.frombuffer(base64.b64decode(page["maps"]), np.int8).reshape(len(positions), 11, *page["map_shape"])
    ranges = np.array([image["ranges"] for image in page["images"]])
    scales = abs(ranges).max(axis=-1)
    one_hot = np.eye(10, dtype=np.float32)
    targets = [np.tile(one_hot[label], (len(positions), 1)) for label in range(10)]
    targets.append(one_hot[ours.guesses[positions]] - one_hot[labels[positions]])
    for which, target in enumerate(targets):
        raw = kept[:, which] * scales[:, which, None, None] / 127
        limit, expected = scales[:, which, None, None] / 200 + 3e-3, ours.maps(positions, target)
        assert (abs(raw - expected) < limit).all()
        bounds = np.stack([expected.min(axis=(-2, -1)), expected.max(axis=(-2, -1))], axis=-1)
        np.testing.assert_allclose(ranges[:, which], bounds, atol=4e-3)
    sure = ours.p[positions].max(axis=1)
    ranks = [image["rank"] for image in page["images"]]
    assert sorted(ranks) == list(range(len(positions))) and (np.diff(sure[np.argsort(ranks)]) < 1e-5).all()


def test_people_are_said_to_say_what_they_said(page, manifest, ours, test_set, folder):
    """Badges and their counts, worked out from the definitions image by image."""
    _, labels, indices = test_set
    counts, votes = np.load(folder / "counts.npy"), json.loads((folder / "votes.json").read_text())
    disputed = {vote["id"] for vote in votes if vote["mturk"]["given"] < 3}
    badges = {}
    for index, label, guess in zip(indices.tolist(), labels, ours.guesses, strict=True):
        if label == guess:
            continue
        row = counts[index]
        if index in disputed:
            badges[index] = "label disputed"
        elif 10 * row[guess] >= row.sum():
            badges[index] = "people disagree too"
        else:
            badges[index] = "people are unanimous" if row[label] == row.sum() else "some people differ"
    assert len(set(badges.values())) == 4
    assert {image["index"]: image["badge"] for image in page["images"] if "badge" in image} == badges
    assert [entry["badge"] for entry in manifest["wrong"]] == [badges[entry["index"]] for entry in manifest["wrong"]]
    assert not any("badge" in entry for entry in manifest["correct"])
    said, words = manifest["people"], list(badges.values())
    assert {name: said[name] for name in set(words)} == {name: words.count(name) for name in set(words)}
    sure = {int(index): p.max() for index, p in zip(indices, ours.p, strict=True)}
    steps = [(0.9, 2), (0.7, 0.9), (0.5, 0.7), (0, 0.5)]
    for (low, high), row in zip(steps, said["by_confidence"], strict=True):
        inside = [badge for index, badge in badges.items() if low <= sure[index] < high]
        assert (row["confidence_from"], row["wrong"]) == (low, len(inside))
        assert all(row[name] == inside.count(name) for name in set(words))
    right, own = ours.guesses == labels, counts[indices]
    agreed, whole = own[np.arange(1000), labels], own.sum(axis=1)
    groups = {
        "all images": np.full(1000, True),
        "label not disputed": ~np.isin(indices, list(disputed)),
        "at least 90% of people chose the label": 10 * agreed >= 9 * whole,
        "all people chose the label": agreed == whole,
    }
    expected = {name: {"count": int(sum(x)), "accuracy": right[x].mean()} for name, x in groups.items()}
    assert said["accuracy"] == expected == page["people"]["accuracy"]


# ---- another network -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(ours, other, test_set):
    """Positions that the other network mends and breaks, the other surest first."""
    labels = test_set[1]
    right, also = ours.guesses == labels, other.guesses == labels
    kinds = {"mended": np.flatnonzero(~right & also), "broken": np.flatnonzero(right & ~also)}
    found = {kind: x[np.argsort(-other.p.max(axis=1)[x], kind="stable")] for kind, x in kinds.items()}
    assert len(found["broken"]) > 310 and len(found["mended"]) > 10
    return found


def test_the_comparison_counts_what_was_mended_and_broken(folder, figures, ours, other, test_set, changed):
    found = json.loads((folder / "a" / "comparison.json").read_text())
    labels = test_set[1]
    right, also = ours.guesses == labels, other.guesses == labels
    assert (found["mended"], found["broken"]) == tuple(len(changed[kind]) for kind in ("mended", "broken"))
    assert (found["both_right"], found["both_wrong"]) == (sum(right & also), sum(~right & ~also))
    assert (found["accuracy"], found["other_accuracy"]) == (right.mean(), also.mean())
    words = f"mends {found['mended']} and breaks {found['broken']} (p = {found['p']:.2g})"
    assert f"other.safetensors: {100 * also.mean():.2f}%, {words}" in (folder / "said").read_text()
    assert f"Test accuracy: {100 * right.mean():.2f}% ({right.sum()}/1000)" in (folder / "said").read_text()
    for label, name in enumerate(CIFAR10.class_names):
        of, row = labels == label, found["by_class"][name]
        assert (row["mended"], row["broken"]) == (sum(of & ~right & also), sum(of & right & ~also))
        assert (row["accuracy"], row["other_accuracy"]) == (right[of].mean(), also[of].mean())


def test_the_page_holds_the_other_networks_own_maps(page, other, test_set, changed):
    """Of those that the other is surest of, three hundred at most."""
    place = {int(index): i for i, index in enumerate(test_set[2])}
    shown = [(place[page["images"][x["place"]]["index"]], x) for x in page["compared"]["images"]]
    for kind, mended in (("mended", True), ("broken", False)):
        assert {i for i, x in shown if x["mended"] == mended} == set(changed[kind][:300].tolist())
    positions = np.array([i for i, _ in shown])
    np.testing.assert_array_equal([x["predicted"] for _, x in shown], other.guesses[positions])
    np.testing.assert_allclose([x["probabilities"] for _, x in shown], other.p[positions], atol=3e-4)
    shape = page["compared"]["map_shape"]
    kept = np.frombuffer(base64.b64decode(page["compared"]["maps"]), np.int8).reshape(len(shown), *shape)
    scales = np.array([abs(np.array(x["ranges"])).max() for _, x in shown])[:, None, None]
    expected = other.maps_of(positions, other.guesses[positions])
    assert (abs(kept * scales / 127 - expected) < scales / 200 + 3e-3).all()


def test_pictures_of_what_changed_show_both_networks_maps(figures, ours, other, test_set, changed, drawn):
    images, labels, indices = test_set
    for kind in ("mended", "broken"):
        shown = panels(figure_named(figures, f" {kind}: "))
        surest = changed[kind][:20]
        assert len(shown) == 3 * len(surest)
        for number, position in enumerate(surest):
            image, mine, theirs = shown[3 * number : 3 * number + 3]
            assert image.title == f"#{indices[position]}\ntrue: {CIFAR10.class_names[labels[position]]}"
            np.testing.assert_array_equal(image.pixels, images[position])
            for panel, who, oracle in ((mine, "this", ours), (theirs, "other", other)):
                guess = oracle.guesses[position]
                sure = f"{100 * oracle.p[position, guess]:.0f}%"
                assert panel.title == f"{who}: {CIFAR10.class_names[guess]} {sure}"
                raw = oracle.maps_of([position], [guess])[0]
                if (raw > 0).any():
                    assert same(panel.pixels, drawn.overlay(images[position], raw)) and not panel.within
                else:
                    assert "zero map" in panel.within
