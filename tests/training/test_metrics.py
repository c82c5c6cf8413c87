import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cifar_flax.training.metrics import NO_STEP, Metrics, measure, smoothing_entropy


@pytest.fixture
def batch(rng):
    logits = rng.normal(size=(12, 10)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, 10, 12)), jnp.ones(12, bool)


def test_measure_agrees_with_numpy(batch):
    logits, labels = (np.asarray(x, np.float64) for x in batch[:2])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(12), labels.astype(int)]
    sums = measure(*batch)
    np.testing.assert_allclose(sums.loss_sum, -own.sum(), rtol=1e-5)
    assert sums.correct == (logits.argmax(axis=1) == labels).sum()
    assert sums.count == 12
    smoothed = measure(*batch, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed.loss_sum, -(0.9 * own + 0.1 * log_p.mean(axis=1)).sum(), rtol=1e-5)


@pytest.mark.parametrize("junk", [0.0, 1e30, np.inf, np.nan])
def test_padding_counts_nowhere_whatever_it_holds(batch, junk):
    logits, labels, mask = batch
    padded = measure(
        jnp.concatenate([logits, jnp.full((4, 10), junk)]),
        jnp.concatenate([labels, jnp.zeros(4, labels.dtype)]),
        jnp.concatenate([mask, jnp.zeros(4, bool)]),
    )
    chex.assert_trees_all_close(padded, measure(*batch), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_sums_do_not_depend_on_how_images_are_grouped(batch, size):
    parts = [measure(*(x[i : i + size] for x in batch)) for i in range(0, 12, size)]
    chex.assert_trees_all_close(sum(parts, Metrics.empty()), measure(*batch), rtol=1e-6)


def test_the_first_bad_step_wins():
    bad = [Metrics.empty().replace(bad_step=jnp.int32(step)) for step in (7, 3, 9)]
    assert sum(bad, Metrics.empty()).bad_step == 3
    assert Metrics.empty().bad_step == NO_STEP


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_entropy_of_smoothed_targets_is_the_least_loss(smoothing):
    """By Gibbs' inequality: the loss is least where the prediction is the target itself."""
    labels = jnp.arange(10)
    targets = np.full((10, 10), smoothing / 10) + (1 - smoothing) * np.eye(10)
    logits = jnp.asarray(np.log(np.maximum(targets, 1e-30)), jnp.float32)
    found = smoothing_entropy(10, smoothing)
    np.testing.assert_allclose(found, scipy.stats.entropy(targets[0]), rtol=1e-12)
    measured = measure(logits, labels, jnp.ones(10, bool), label_smoothing=smoothing)
    np.testing.assert_allclose(measured.loss_sum / 10, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teachers_part_of_the_loss_is_the_divergence_from_its_answers(batch, rng, temperature):
    logits, labels, mask = batch
    answers = jnp.asarray(rng.normal(size=logits.shape), jnp.float32)
    options = dict(label_smoothing=0.1, teacher_weight=0.7, teacher_temperature=temperature)
    found = measure(logits, labels, mask, teacher_logits=answers, **options)
    ours, theirs = (scipy.special.softmax(np.asarray(x, np.float64) / temperature, axis=1) for x in (logits, answers))
    divergence = scipy.special.rel_entr(theirs, ours).sum()
    alone = measure(logits, labels, mask, label_smoothing=0.1)
    np.testing.assert_allclose(found.loss_sum, 0.3 * alone.loss_sum + 0.7 * temperature**2 * divergence, rtol=1e-5)
    assert (found.correct, found.count) == (alone.correct, alone.count)
    same = measure(logits, labels, mask, teacher_logits=logits, **options)
    np.testing.assert_allclose(same.loss_sum, 0.3 * alone.loss_sum, rtol=1e-5)


def test_metrics_are_a_pytree():
    chex.assert_trees_all_equal(jax.jit(lambda m: m + m)(Metrics.empty()), Metrics.empty())
