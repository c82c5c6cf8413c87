import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cifar_flax import execution, machine
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10, DataSpec
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam
from cifar_flax.explaining.network import NO_CLASS, load, prepare
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.network import cpu, model
from cifar_flax.network.build import build_model
from cifar_flax.training.trained import Trained

CONFIG = dataclasses.replace(PRESETS["compact"], widths=(4, 6), strides=(2, 2))


@pytest.fixture(scope="module")
def network():
    architecture = build_model(CONFIG)
    params = jax.device_get(model.init_params(architecture, jax.random.key(0)))
    # A fresh network's biases are 0: the sums below should not hold for that reason.
    params["linear"]["bias"] = np.linspace(-1, 1, 10, dtype=np.float32)
    return prepare(Trained("test", params, CONFIG, CIFAR10, []))


@pytest.fixture(scope="module")
def logits(network, sample):
    return network.predict(sample.test.images).logits


def test_predictions_are_those_of_the_network_at_any_batch_size(network, sample, logits):
    direct = model.forward(network.model, network.params, CIFAR10.normalize(jnp.asarray(sample.test.images[:7])))
    chex.assert_shape(logits, (1000, 10))
    np.testing.assert_allclose(network.predict(sample.test.images[:7]).logits, direct, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:7], direct, rtol=1e-4, atol=1e-5)


def test_arrays_that_are_no_images_are_refused(network, sample):
    images, labels = sample.test.images[:4], sample.test.labels[:4]
    for wrong, message in (
        (images / 255, r"images are float64: expected uint8, 0 to 255"),
        (images.astype(np.int32), r"images are int32: expected uint8"),
        (images[0], r"of shape \[32, 32, 3\]: expected \[N, 32, 32, 3\], one or more; one image is images\[None\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"of shape \[2, 64, 64, 3\]"),
        (images.transpose(0, 3, 1, 2), r"of shape \[4, 3, 32, 32\]"),
        (images[:0], "one or more"),
    ):
        with pytest.raises(UserError, match=message):
            network.predict(wrong)
        if wrong.ndim == 4 and len(wrong):
            with pytest.raises(UserError, match=message):
                network.explain(wrong)
    for wrong, message in (
        (labels + 10, r"labels hold 1\d: expected 0 to 9"),
        (labels - 10, "labels hold -"),
        (labels[:3], "expected 4 integers, one an image"),
        (labels.astype(float), "labels are float64"),
    ):
        with pytest.raises(UserError, match=message):
            network.predict(images, wrong)


def test_progress_counts_every_image(network, sample):
    seen = []
    network.predict(sample.test.images[:601], on_batch=seen.append)
    assert sum(seen) == 601


def test_probabilities_are_a_softmax():
    predictions = Predictions(np.array([[0, np.log(3)], [1000, 0]], np.float32), ("a", "b"), np.array([1, 1]))
    np.testing.assert_allclose(predictions.probabilities, [[0.25, 0.75], [1, 0]], atol=1e-7)
    np.testing.assert_allclose(predictions.confidence, [0.75, 1], atol=1e-7)
    assert predictions.predicted.tolist() == [1, 0] and predictions.names == ["b", "a"]
    assert predictions.correct.tolist() == [True, False] and predictions.accuracy == 0.5
    assert predictions.ranked.tolist() == [[1, 0], [0, 1]]


def test_the_confusion_matrix_is_true_by_predicted():
    """Of three classes, one of which is never predicted."""
    logits = np.eye(3)[[0, 0, 1, 0, 1, 1, 1]]
    predictions = Predictions(logits, ("a", "b", "c"), np.array([0, 0, 0, 1, 1, 2, 2]))
    assert predictions.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 2, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_labels_of_few_bits_are_counted_as_others(dtype):
    """100 * 100 does not fit into 8 bits."""
    labels = np.arange(100, dtype=dtype)
    found = Predictions(np.eye(100), tuple(map(str, range(100))), labels).confusion
    np.testing.assert_array_equal(found, np.eye(100, dtype=int))
    assert CIFAR10.check_labels(labels[:10], 10).dtype == np.int32


def test_of_many_classes_the_most_probable_and_the_true_one_are_explained():
    logits = np.arange(12.0)[None].repeat(2, axis=0)  # the last class is the most probable
    names, labels = tuple("abcdefghijkl"), np.array([0, 5])
    best = list(range(11, 1, -1))
    assert Predictions(logits, names).explained_classes().tolist() == [best, best]
    assert Predictions(logits, names, labels).explained_classes().tolist() == [[*best[:-1], 0], best]
    assert Predictions(logits[:, :10], names[:10], labels).explained_classes().tolist() == [list(range(10))] * 2


def test_without_labels_nothing_is_right_or_wrong():
    with pytest.raises(ValueError, match="without labels"):
        _ = Predictions(np.eye(2), ("a", "b")).accuracy


def test_selection_is_sorted_and_filtered():
    labels = np.array([0, 0, 1, 1, 2, 0])
    logits = np.full((6, 10), -9.0)
    for position, (guess, height) in enumerate([(1, 3), (0, 9), (0, 7), (1, 9), (0, 5), (2, 4)]):
        logits[position, guess] = height
    choose = lambda **options: Predictions(logits, CIFAR10.class_names, labels).select(**options).tolist()  # noqa: E731
    assert choose(correct=True) == [1, 3]
    assert choose(correct=False) == [0, 2, 4, 5]
    assert choose(correct=False, true=0) == [0, 5]
    assert choose(correct=False, predicted=0) == [2, 4]
    assert choose(correct=False, true=1, predicted=2) == []
    assert choose(correct=False, sort="confidence") == [2, 4, 5, 0]
    assert choose(correct=False, sort="loss") == [2, 4, 5, 0]
    logits[0] = [-9, 9, 8, 8, 8, 8, 8, 8, 8, 8]  # unsure, and yet far from the truth
    assert choose(correct=False, sort="confidence")[-1] == 0
    assert choose(correct=False, sort="loss")[0] == 0


def explain(network, sample, logits, count, stage="stage2", method="grad-cam"):
    """The maps of all ten classes, and of predicted minus true."""
    classes = np.concatenate([np.tile(np.arange(10), (count, 1)), logits[:count].argmax(axis=1)[:, None]], axis=1)
    against = np.full_like(classes, NO_CLASS)
    against[:, 10] = sample.test.labels[:count]
    images = sample.test.images[:count]
    return network.maps(images, classes, against=against, stage=stage, methods=[method])[:, :, 0]


def test_maps_sum_to_the_logits_of_every_image_and_class(network, sample, logits):
    raw = explain(network, sample, logits, 300)
    chex.assert_shape(raw, (300, 11, 8, 8))
    sums = raw[:, :10].sum(axis=(2, 3)) + network.params["linear"]["bias"][None]
    np.testing.assert_allclose(sums, logits[:300], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", cam.METHODS)
def test_difference_is_predicted_minus_true(network, sample, logits, method):
    """Also by a method that shows nothing of what speaks against a class."""
    raw, images = explain(network, sample, logits, 50, method=method), np.arange(50)
    guesses, labels = logits[:50].argmax(axis=1), sample.test.labels[:50]
    expected = raw[images, guesses] - raw[images, labels]
    scale = abs(raw[:, :10]).max()
    np.testing.assert_allclose(raw[:, 10], expected, rtol=1e-3, atol=1e-5 * max(1, scale))
    assert (raw[guesses != labels, 10] < 0).any() == (method != "eigen-cam")
    classes, against = np.tile(np.arange(11) % 10, (50, 1)), np.full((50, 11), NO_CLASS)
    against[:2, 2] = 4
    ask = functools.partial(network.maps, sample.test.images[:50], classes, stage="stage2", methods=[method])
    given, found = ask(), ask(against=against)
    others = np.delete(np.arange(11), 2)
    np.testing.assert_allclose(found[:, others], given[:, others], rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(found[2:], given[2:], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "size"), [("stem", 32), ("stage1", 16)])
def test_every_method_explains_every_stage(stage, size, network, sample):
    raw = network.maps(sample.test.images[:3], np.tile(np.arange(10), (3, 1)), stage=stage, methods=[*cam.METHODS])
    chex.assert_shape(raw, (3, 10, len(cam.METHODS), size, size))
    chex.assert_tree_all_finite(raw)


def test_maps_do_not_depend_on_the_other_images(network, sample, logits):
    together, alone = explain(network, sample, logits, 260), explain(network, sample, logits, 1)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-3, atol=1e-5)


def test_another_network_of_the_same_shape_needs_no_other_program(network, sample, logits):
    """Parameters that were constants of the program would have it compiled, and kept, for each network anew."""
    explain(network, sample, logits, 4)
    missed = []

    def listen(event, **_):
        missed.extend([event] if event == "/jax/compilation_cache/cache_misses" else [])

    jax.monitoring.register_event_listener(listen)
    changed = jax.tree.map(lambda x: x + 1, network.params)
    other = prepare(dataclasses.replace(network.trained, params=changed))
    explain(other, sample, other.predict(sample.test.images).logits, 4)
    jax.monitoring.unregister_event_listener(listen)
    assert not missed


def test_nothing_to_explain_is_no_error(network, sample, logits):
    assert len(explain(network, sample, logits, 0)) == 0


@pytest.mark.parametrize(("widths", "size", "expected"), [((16,), 32, [250, 50]), ((64,), 32, [64] * 4 + [44])])
def test_a_wide_network_is_given_smaller_batches(widths, size, expected):
    """64 channels, four times the compact network's: 64 images of 32x32 pixels are 2**22 numbers."""
    config = dataclasses.replace(CONFIG, widths=widths, strides=(1,))
    network = prepare(Trained("test", {}, config, CIFAR10, []))
    counts = []
    network.in_batches(lambda params, x: x[:, 0, 0, 0], (np.zeros((300, size, size, 1)),), counts.append)
    assert counts == expected


def test_another_number_of_classes_and_pixels_is_predicted_and_explained(rng):
    """Of a hundred classes and 24 pixels: only the classes that are asked for are explained."""
    spec = DataSpec("many", tuple(f"class {i}" for i in range(100)), 24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    params = model.init_params(build_model(CONFIG, spec=spec), jax.random.key(0))
    network = prepare(Trained("test", params, CONFIG, spec, []))
    images = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    logits = network.predict(images).logits
    inputs = (images / 255 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(logits, network.forward(jnp.asarray(inputs, jnp.float32)), rtol=1e-4, atol=1e-5)
    raw = network.maps(images, np.array([[99, 7]] * 3), stage="stage2", methods=["grad-cam"])[:, :, 0]
    chex.assert_shape(raw, (3, 2, 6, 6))
    np.testing.assert_allclose(raw.sum(axis=(2, 3)), logits[:, [99, 7]], rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="classes hold 100: expected 0 to 99, the classes of many"):
        network.maps(images, np.array([[100]] * 3), stage="stage2", methods=["grad-cam"])


def test_pictures_are_given_as_arrays_files_or_images_of_pillow(network, sample, tmp_path):
    picture = Image.fromarray(sample.test.images[0])
    picture.save(tmp_path / "a.png")
    expected = network.predict(sample.test.images[:1]).logits
    for given in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), [picture]):
        np.testing.assert_array_equal(network.predict(given).logits, expected)
    assert len(network.predict([picture, tmp_path / "a.png"])) == 2


def test_a_class_is_named_or_numbered_or_the_predicted_one(network, sample):
    images = sample.test.images[:3]
    cats = network.explain(images, "cat")
    assert cats.targets == ["cat"] * 3 and cats.predicted == network.predict(images).names
    for label in (3, np.int64(3), jnp.array(3)):
        np.testing.assert_array_equal(cats.raw, network.explain(images, label).raw)
    np.testing.assert_array_equal(cats.raw[1:2], network.explain(images[1:2], ["cat"]).raw)
    assert network.explain(images).targets == network.explain(images).predicted
    mixed = network.explain(images, ["dog", 3, "ship"])
    np.testing.assert_allclose(mixed.raw[1], cats.raw[1], rtol=1e-4, atol=1e-6)
    for target, message in (
        ("unicorn", "target unicorn is no class of CIFAR-10: expected one of airplane"),
        (10, "target 10 is no class"),
        (1.0, "target 1.0 is no class"),
        ([0.0, 1.0, 2.0], "target 0.0 is no class"),
        (True, "target True is no class"),
        (["cat"], "target names 1 classes: expected one, or one for each of 3"),
    ):
        with pytest.raises(UserError, match=message):
            network.explain(images, target)
    with pytest.raises(UserError, match="stage stage9 is not known: expected one of stem, stage1, stage2"):
        network.explain(images, stage="stage9")
    with pytest.raises(UserError, match="method cam is not known: expected one of grad-cam"):
        network.explain(images, method="cam")
    with pytest.raises(UserError, match="classes hold -1: expected 0 to 9"):
        network.maps(images, np.full((3, 1), NO_CLASS), stage="stage2", methods=["grad-cam"])


@pytest.mark.slow
def test_maps_are_drawn_into_files_of_three_kinds(sample, tmp_path):
    maps = load("compact").explain(sample.test.images[:3], "cat")
    heat = maps.heat
    assert heat.shape == (3, 32, 32) and heat.min() >= 0 and heat.max() <= 1
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        maps.save(tmp_path / f"a.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes().startswith(start)
    with pytest.raises(UserError, match=r"expected a name that ends in \.png"):
        maps.save(tmp_path / "a.jpg")


def test_a_machine_is_asked_once_whether_its_bfloat16_is_right(tmp_path, monkeypatch):
    """Where it is not, a network says so and answers in float32."""
    answers = [3.0, 1e-3]
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(machine, "place_of_note", lambda what: tmp_path / "note")
    monkeypatch.setattr(cpu, "largest_error", lambda *arguments: answers.pop(0))
    with pytest.warns(UserWarning, match="this machine's convolutions in bfloat16 are wrong"):
        network = load("compact")
    assert network.execution.precision == network.model.dtype.name == "float32"
    assert [load("compact").execution.precision for _ in range(2)] == ["bfloat16", "bfloat16"]
    assert answers == [] and (tmp_path / "note").exists()
