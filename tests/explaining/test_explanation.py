import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.config import PRESETS
from cifar_flax.data import normalize
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam, explanation
from cifar_flax.explaining.explanation import DIFFERENCE, Network
from cifar_flax.network import model, weights
from cifar_flax.training.program import build_model

CONFIG = dataclasses.replace(PRESETS["compact"], widths=(4, 6), strides=(2, 2))


@pytest.fixture(scope="module")
def network():
    architecture = build_model(CONFIG)
    params = jax.device_get(model.init_params(architecture, jax.random.key(0)))
    # A fresh network's biases are 0: the sums below should not hold for that reason.
    params["linear"]["bias"] = np.linspace(-1, 1, 10, dtype=np.float32)
    return Network("test", architecture, params, CONFIG, [], weights.digest(params))


@pytest.fixture(scope="module")
def logits(network, sample):
    return explanation.predict(network, sample.test_images)


def test_predictions_are_those_of_the_network_at_any_batch_size(network, sample, logits):
    direct = model.forward(network.model, network.params, normalize(jnp.asarray(sample.test_images[:7])))
    chex.assert_shape(logits, (1000, 10))
    np.testing.assert_allclose(explanation.predict(network, sample.test_images[:7]), direct, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:7], direct, rtol=1e-4, atol=1e-5)


def test_arrays_that_are_no_images_are_refused(network, sample):
    images, labels = sample.test_images[:4], sample.test_labels[:4]
    for wrong, message in (
        (images / 255, r"images are float64: expected uint8, 0 to 255"),
        (images.astype(np.int32), r"images are int32: expected uint8"),
        (images[0], r"of shape \[32, 32, 3\]: expected \[N, 32, 32, 3\], one or more; one image is images\[None\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"of shape \[2, 64, 64, 3\]"),
        (images.transpose(0, 3, 1, 2), r"of shape \[4, 3, 32, 32\]"),
        (images[:0], "one or more"),
    ):
        with pytest.raises(UserError, match=message):
            explanation.predict(network, wrong)
        if wrong.ndim == 4 and len(wrong):
            given = labels[: len(wrong)]
            with pytest.raises(UserError, match=message):
                explanation.explain(network, wrong, given, given, stage="stage2", method="grad-cam")
    for wrong, message in (
        (labels + 10, r"labels hold 1\d: expected 0 to 9"),
        (labels - 10, "labels hold -"),
        (labels[:3], "expected 4 integers, one an image"),
        (labels.astype(float), "labels are float64"),
    ):
        with pytest.raises(UserError, match=message):
            explanation.explain(network, images, wrong, labels, stage="stage2", method="grad-cam")


def test_progress_counts_every_image(network, sample):
    seen = []
    explanation.predict(network, sample.test_images[:601], seen.append)
    assert sum(seen) == 601


def test_probabilities_are_a_softmax():
    p = explanation.probabilities(np.array([[0, np.log(3)], [1000, 0]], np.float32))
    np.testing.assert_allclose(p, [[0.25, 0.75], [1, 0]], atol=1e-7)


def test_selection_is_sorted_and_filtered():
    labels = np.array([0, 0, 1, 1, 2, 0])
    logits = np.full((6, 10), -9.0)
    for position, (guess, height) in enumerate([(1, 3), (0, 9), (0, 7), (1, 9), (0, 5), (2, 4)]):
        logits[position, guess] = height
    choose = lambda **options: explanation.select(labels, logits, **options).tolist()  # noqa: E731
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


def explain(network, sample, logits, count, **options):
    return explanation.explain(
        network,
        sample.test_images[:count],
        sample.test_labels[:count],
        logits[:count].argmax(axis=1),
        **{"stage": "stage2", "method": "grad-cam"} | options,
    )


def test_maps_sum_to_the_logits_of_every_image_and_class(network, sample, logits):
    raw = explain(network, sample, logits, 300)
    chex.assert_shape(raw, (300, 11, 8, 8))
    sums = raw[:, :10].sum(axis=(2, 3)) + network.params["linear"]["bias"][None]
    np.testing.assert_allclose(sums, logits[:300], rtol=1e-3, atol=1e-4)


def test_difference_is_predicted_minus_true(network, sample, logits):
    raw, images = explain(network, sample, logits, 50), np.arange(50)
    expected = raw[images, logits[:50].argmax(axis=1)] - raw[images, sample.test_labels[:50]]
    np.testing.assert_allclose(raw[:, DIFFERENCE], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", cam.METHODS)
@pytest.mark.parametrize("stage", ["stem", "stage1"])
def test_every_method_explains_every_stage(stage, method, network, sample, logits):
    raw = explain(network, sample, logits, 3, stage=stage, method=method)
    size = {"stem": 32, "stage1": 16}[stage]
    chex.assert_shape(raw, (3, 11, size, size))
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
    other = network._replace(params=jax.tree.map(lambda x: x + 1, network.params))
    explain(other, sample, explanation.predict(other, sample.test_images), 4)
    jax.monitoring.unregister_event_listener(listen)
    assert not missed


def test_nothing_to_explain_is_no_error(network, sample, logits):
    assert len(explain(network, sample, logits, 0)) == 0


def test_a_wide_network_is_given_smaller_batches():
    """64 channels, four times the compact network's: 64 images of 32x32 pixels are 2**22 numbers."""
    sizes = []
    for channels in (16, 64):
        params = {"conv": {"kernel": np.zeros((3, 3, 3, channels), np.float32)}}
        images = np.zeros((300, 1), np.float32)
        explanation.in_batches(lambda _, x: sizes.append(len(x)) or x, params, (images,), lambda n: None)
    assert sizes == [250] * 2 + [64] * 5
