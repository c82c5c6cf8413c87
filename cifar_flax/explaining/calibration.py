"""Calibration: whether a network's confidence is what it is right by, and whether it ranks its own errors.

Pure functions of plain arrays. The confidence of a prediction is its largest probability. Where two confidences tie,
the images share their errors: that is the mean over all orders in which the tie could be broken.

References: Naeini et al. 2015 (ECE), Nguyen and O'Connor 2015 (adaptive bins), Kull et al. 2019 (classwise ECE),
Guo et al. 2017 (temperature), Geifman and El-Yaniv 2017 (risk and coverage), Traub et al. 2024, arXiv 2407.01032
(AUGRC).
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

NUM_BINS = 15
COVERAGES = (0.9, 0.8)
DEFINITIONS = {
    "nll": "mean of -log(probability of the label), nats",
    "brier": "mean of the squared difference between probabilities and one-hot label, summed over classes: 0 to 2",
    "ece": f"top label: mean over images of |accuracy - mean confidence| in {NUM_BINS} bins of equal width, "
    "the last one closed",
    "ece_calibrated": "the same of simulated labels that are right exactly as often as the confidences say: what ECE "
    "is where nothing is wrong",
    "adaptive_ece": f"ECE in {NUM_BINS} bins of equal count",
    "classwise_ece": "ECE of each class's probability against whether it is the label, mean over classes",
    "aurc": "mean over coverages 1/N ... 1 of the error rate among the most confident",
    "augrc": "mean over coverages 1/N ... 1 of the errors among the most confident, as a share of all images",
    "accuracy_at_coverage": "accuracy among the most confident share of images",
    "temperature": "logits are divided by it; the one with the least NLL on one half of the images, applied to the "
    "other half, and the other way round",
}


class Reliability(NamedTuple):
    """Confidence and accuracy by bin: float `[bins]`, NaN where a bin is empty, and int counts."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray


def equal_width(confidence: np.ndarray) -> np.ndarray:
    """Bins of equal width in [0, 1] of values `[N]`, each closed below, the last one above too: int `[N]`."""
    return np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)


def equal_count(confidence: np.ndarray) -> np.ndarray:
    """Bins of equal count, give or take one, of values `[N]` in ascending order: int `[N]`."""
    order = np.argsort(confidence, kind="stable")
    bins = np.empty(len(order), int)
    bins[order] = np.arange(len(order)) * NUM_BINS // len(order)
    return bins


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: np.ndarray) -> Reliability:
    """Mean confidence and accuracy in each bin.

    Args:
      confidence: float `[N]`.
      correct: bool or float `[N]`.
      bins: int `[N]`, as `equal_width` or `equal_count` returns them.
    """
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, NUM_BINS) / counts for values in (confidence, correct)]
    return Reliability(means[0], means[1], counts)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighted by their counts.

    >>> float(calibration_error(np.array([0.75, 0.75]), np.array([True, False]), np.array([0, 0])))
    0.25
    """
    return _error(reliability(confidence, correct, bins))


def _error(found: Reliability) -> float:
    return float(np.nansum(abs(found.accuracy - found.confidence) * found.counts) / found.counts.sum())


def classwise_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the calibration error of a class's probability, `p` `[N, C]`, `labels` int `[N]`."""
    errors = [calibration_error(p[:, c], labels == c, equal_width(p[:, c])) for c in range(p.shape[1])]
    return float(np.mean(errors))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Expected number of errors among the k most confident, for k = 1 ... N: float `[N]`."""
    ties, errors = _shared_errors(confidence, correct)
    return errors[np.sort(ties)].cumsum()


def _shared_errors(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image's place among the different confidences, the largest first, and the error rate at each of these."""
    _, ties = np.unique(-confidence, return_inverse=True)
    return ties, np.bincount(ties, ~correct) / np.bincount(ties)


def aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the curve of risk against coverage."""
    errors = risk_coverage(confidence, correct)
    return float((errors / np.arange(1, len(errors) + 1)).mean())


def augrc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the curve of generalised risk, errors accepted as a share of all images, against coverage."""
    return float(risk_coverage(confidence, correct).mean() / len(correct))


def accuracy_at(coverage: float, confidence: np.ndarray, correct: np.ndarray) -> float:
    """Accuracy among the `round(coverage * N)`, but at least one, most confident images."""
    kept = max(1, round(coverage * len(correct)))
    return float(1 - risk_coverage(confidence, correct)[kept - 1] / kept)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.05, 20] with the least negative log likelihood: a convex problem in its inverse."""
    each = np.arange(len(labels))
    result = minimize_scalar(
        lambda inverse: -log_softmax(inverse * logits, axis=1)[each, labels].mean(),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / result.x)  # type: ignore[attr-defined]


def cross_fit(logits: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """Probabilities `[N, C]`, each half's with the temperature fitted on the other, and the two temperatures."""
    halves = np.array_split(rng.permutation(len(labels)), 2)
    temperatures = [fit_temperature(logits[half], labels[half]) for half in reversed(halves)]
    p = np.empty(logits.shape)
    for half, temperature in zip(halves, temperatures, strict=True):
        p[half] = softmax(logits[half] / temperature, axis=1)
    return p, temperatures


def simulate(confidence: np.ndarray, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """What a perfectly calibrated network of these confidences would show, by chance alone.

    Returns:
      Its calibration error in bins of equal width, float `[draws]`, and its accuracy by bin, `[draws, bins]`.
    """
    bins = equal_width(confidence)
    drawn = [reliability(confidence, rng.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    return np.array([_error(x) for x in drawn]), np.array([x.accuracy for x in drawn])


def _summary(p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    each, confidence, correct = np.arange(len(labels)), p.max(axis=1), p.argmax(axis=1) == labels
    ties, errors = _shared_errors(confidence, correct)  # bins of equal count part images of one confidence
    return {
        "nll": float(-np.log(np.maximum(p[each, labels], np.finfo(float).tiny)).mean()),
        "brier": float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1).mean()),
        "ece": calibration_error(confidence, correct, equal_width(confidence)),
        "adaptive_ece": calibration_error(confidence, 1 - errors[ties], equal_count(confidence)),
        "classwise_ece": classwise_error(p, labels),
    }


def evaluate(logits: np.ndarray, labels: np.ndarray, rng: np.random.Generator, draws: int = 500) -> dict[str, Any]:
    """All figures of this module, ready for JSON.

    Args:
      logits: float `[N, C]`, N of 2 or more.
      labels: int `[N]`.
      rng: draws the simulation and the halves of the cross-fit.
      draws: simulated networks.

    Returns:
      The figures by the names of `DEFINITIONS`; `reliability`, by bin, with the 95% band of the simulation; `risk`,
      the error rate at coverages 1%, 2% ... 100%; `after_temperature`, the same summary of the cross-fitted
      probabilities.
    """
    logits = logits.astype(np.float64)
    p = softmax(logits, axis=1)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    bins = reliability(confidence, correct, equal_width(confidence))
    errors, accuracies = simulate(confidence, rng, draws)
    fitted, temperatures = cross_fit(logits, labels, rng)
    filled = bins.counts > 0
    low, high = np.percentile(accuracies[:, filled], [2.5, 97.5], axis=0)
    coverages = [share / 100 for share in range(1, 101)]
    return {
        **_summary(p, labels),
        "ece_calibrated": {"mean": float(errors.mean()), "percentile_95": float(np.percentile(errors, 95))},
        "aurc": aurc(confidence, correct),
        "augrc": augrc(confidence, correct),
        "accuracy_at_coverage": {f"{share:g}": accuracy_at(share, confidence, correct) for share in COVERAGES},
        "temperature": temperatures,
        "after_temperature": _summary(fitted, labels),
        "reliability": {
            "bin": np.flatnonzero(filled).tolist(),
            "confidence": bins.confidence[filled].tolist(),
            "accuracy": bins.accuracy[filled].tolist(),
            "count": bins.counts[filled].tolist(),
            "calibrated_low": low.tolist(),
            "calibrated_high": high.tolist(),
        },
        "risk": {
            "coverage": coverages,
            "error_rate": [1 - accuracy_at(share, confidence, correct) for share in coverages],
        },
    }
