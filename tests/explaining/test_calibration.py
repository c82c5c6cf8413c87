import math

import numpy as np
import pytest
from scipy.special import softmax

from cifar_flax.explaining import calibration

# Two images of two classes, by hand: confidences 0.8 and 0.6, the first right, the second wrong.
P = np.array([[0.8, 0.2], [0.4, 0.6]])
LABELS = np.array([0, 0])


@pytest.fixture
def predictions(rng):
    """600 images of ten classes, overconfident."""
    logits = rng.normal(size=(600, 10))
    labels = np.array([rng.choice(10, p=p) for p in softmax(logits, axis=1)])
    return 2 * logits, labels


def test_figures_of_a_2x2_example():
    found = calibration.evaluate(np.log(P), LABELS, np.random.default_rng(0))
    assert found["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert found["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert found["ece"] == pytest.approx((0.2 + 0.6) / 2) == found["adaptive_ece"]
    assert found["classwise_ece"] == pytest.approx(0.4)
    assert found["aurc"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["augrc"] == pytest.approx((0 + 1 / 2) / 2)
    assert calibration.accuracy_at(0.5, P.max(axis=1), np.array([True, False])) == 1


def test_every_list_of_a_figure_is_that_of_its_definition(predictions):
    """Bins, risks and temperatures, image by image in plain Python."""
    logits, labels = predictions
    found = calibration.evaluate(logits, labels, np.random.default_rng(3), draws=300)
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    sure = [max(row) for row in p]
    right = [row.index(max(row)) == label for row, label in zip(p, labels.tolist(), strict=True)]
    bins = {}
    for confidence, correct in zip(sure, right, strict=True):
        bins.setdefault(min(int(15 * confidence), 14), []).append((confidence, correct))
    shown = found["reliability"]
    assert shown["bin"] == sorted(bins) and shown["count"] == [len(bins[i]) for i in sorted(bins)]
    for name, part in (("confidence", 0), ("accuracy", 1)):
        np.testing.assert_allclose(shown[name], [np.mean([x[part] for x in bins[i]]) for i in sorted(bins)])
    for low, high, i in zip(shown["calibrated_low"], shown["calibrated_high"], shown["bin"], strict=True):
        mean = np.mean([x[0] for x in bins[i]])
        spread = math.sqrt(sum(x[0] * (1 - x[0]) for x in bins[i])) / len(bins[i])
        assert low <= mean <= high and high - low <= 5 * spread + 2 / len(bins[i])
        assert spread < 0.02 or high - low > 2 * spread
    order = np.argsort(-np.array(sure))
    errors = [sum(not right[i] for i in order[:k]) for k in range(1, len(order) + 1)]
    assert found["aurc"] == pytest.approx(np.mean([e / k for k, e in enumerate(errors, start=1)]))
    assert found["augrc"] == pytest.approx(np.mean(errors) / 600)
    assert found["risk"]["coverage"] == [i / 100 for i in range(1, 101)]
    np.testing.assert_allclose(found["risk"]["error_rate"], [errors[6 * i - 1] / (6 * i) for i in range(1, 101)])
    for share in (0.9, 0.8):
        kept = round(600 * share)
        assert found["accuracy_at_coverage"][f"{share}"] == pytest.approx(1 - errors[kept - 1] / kept)
    assert found["ece"] == pytest.approx(sum(abs(sum(c - r for c, r in x)) for x in bins.values()) / 600)
    ranked = np.argsort(sure)
    parts = [ranked[[40 * i <= j < 40 * (i + 1) for j in range(600)]] for i in range(15)]
    by_count = [abs(sum(sure[j] - right[j] for j in part)) for part in parts]
    assert found["adaptive_ece"] == pytest.approx(sum(by_count) / 600)
    assert found["temperature"] == pytest.approx([2, 2], rel=0.25) and found["after_temperature"]["nll"] < found["nll"]


def test_certain_predictions_share_the_last_bin():
    np.testing.assert_array_equal(calibration.equal_width(np.array([0, 0.95, 1.0])), [0, 14, 14])


def test_bins_of_equal_count_keep_the_order(rng):
    values = rng.random(100)
    bins = calibration.equal_count(values)
    assert set(np.bincount(bins, minlength=15)) == {6, 7}
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()


def test_ties_share_their_errors():
    """Any order of the right and the wrong of equal confidence gives the same, and it is the mean of the orders."""
    errors = [
        calibration.risk_coverage(np.array([0.9, 0.5, 0.5]), np.array([True, *order]))
        for order in ((True, False), (False, True))
    ]
    np.testing.assert_array_equal(errors[0], errors[1])
    np.testing.assert_array_equal(errors[0], [0, 0.5, 1])


def test_bins_that_part_a_tie_share_its_errors():
    """Else the order of the images would decide about the adaptive error."""
    logits, labels = np.tile(np.log([0.9, 0.1]), (1000, 1)), np.repeat([0, 1], [900, 100])
    found = calibration.evaluate(logits, labels, np.random.default_rng(0), draws=2)
    assert found["adaptive_ece"] == pytest.approx(0, abs=1e-6)


def test_a_perfect_ranking_has_the_smallest_area(rng):
    correct = rng.random(200) < 0.8
    best = calibration.augrc(correct + 0.1 * rng.random(200), correct)
    assert best == pytest.approx((~correct).sum() * ((~correct).sum() + 1) / 2 / 200**2)
    assert best < calibration.augrc(rng.random(200), correct)


def test_temperature_undoes_a_scale(predictions):
    logits, labels = predictions
    fitted = calibration.fit_temperature(logits, labels)
    assert fitted == pytest.approx(2, rel=0.15)
    assert calibration.fit_temperature(3 * logits, labels) == pytest.approx(3 * fitted, rel=1e-3)


def test_halves_are_fitted_on_each_other(predictions):
    """What a half is given does not depend on its own labels."""
    logits, labels = predictions
    first = np.random.default_rng(3).permutation(len(labels))[:300]
    changed = labels.copy()
    changed[first] = (changed[first] + 1) % 10
    p, _ = calibration.cross_fit(logits, labels, np.random.default_rng(3))
    q, _ = calibration.cross_fit(logits, changed, np.random.default_rng(3))
    np.testing.assert_array_equal(p[first], q[first])
    assert not np.allclose(p, q)


def test_equal_seeds_give_equal_figures(predictions):
    runs = [calibration.evaluate(*predictions, np.random.default_rng(1), draws=20) for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_band_holds_a_calibrated_network(rng):
    logits = rng.normal(size=(5000, 10))
    labels = np.array([rng.choice(10, p=p) for p in softmax(logits, axis=1)])
    found = calibration.evaluate(logits, labels, rng, draws=200)
    bins = {name: np.array(values) for name, values in found["reliability"].items()}
    inside = (bins["calibrated_low"] <= bins["accuracy"]) & (bins["accuracy"] <= bins["calibrated_high"])
    assert inside.mean() >= 0.8
    assert found["ece"] < 2 * found["ece_calibrated"]["percentile_95"]


def test_agrees_with_scikit_learn(predictions):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn: the group test")
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    logits, labels = predictions
    p = softmax(logits, axis=1)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    found = calibration.evaluate(logits, labels, np.random.default_rng(0), draws=2)
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, p, labels=range(10)))
    brier = metrics.brier_score_loss(labels, p, labels=list(range(10)), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier)
    accuracies, confidences = curve(correct, confidence, n_bins=calibration.NUM_BINS)
    np.testing.assert_allclose(found["reliability"]["accuracy"], accuracies)
    np.testing.assert_allclose(found["reliability"]["confidence"], confidences)
    weights = np.histogram(confidence, calibration.NUM_BINS, (0, 1))[0] / len(labels)
    assert found["ece"] == pytest.approx(weights[weights > 0] @ abs(accuracies - confidences))


def test_temperature_is_that_of_scikit_learn(predictions):
    pytest.importorskip("sklearn", reason="needs scikit-learn: the group test")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):
        """A classifier whose inputs are its logits."""

        def fit(self, x, y):
            self.classes_ = np.arange(10)
            return self

        def decision_function(self, x):
            return x

        def predict(self, x):
            return x.argmax(axis=1)

    logits, labels = predictions
    peer = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, labels)), method="temperature")
    peer.fit(logits, labels)
    expected = peer.predict_proba(logits)
    found = softmax(logits / calibration.fit_temperature(logits, labels), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-3)
