import numpy as np
import pytest

from cifar_flax.explaining import comparison
from cifar_flax.explaining.predictions import Predictions


def guesses(right, labels, rng):
    """Predictions that are right where they are said to be."""
    return of(np.where(right, labels, (labels + rng.integers(1, 10, len(labels))) % 10), labels)


def of(predicted, labels):
    return Predictions(np.eye(10)[predicted], tuple("abcdefghij"), labels)


def test_counts_and_test_of_an_example_by_hand(rng):
    """Of 20 images 6 are right by both, 1 is broken, 9 are mended, 4 are wrong by both: p = 2 (1 + 10) / 2**10."""
    labels = rng.integers(0, 10, 20)
    right, other = np.repeat([1, 1, 0, 0], [6, 1, 9, 4]) > 0, np.repeat([1, 0, 1, 0], [6, 1, 9, 4]) > 0
    found = comparison.compare(guesses(right, labels, rng), guesses(other, labels, rng))
    counts = [found[name] for name in ("both_right", "broken", "mended", "both_wrong")]
    assert counts == [6, 1, 9, 4]
    assert found["p"] == pytest.approx(22 / 1024)
    assert (found["accuracy"], found["other_accuracy"]) == (7 / 20, 15 / 20)
    assert found["difference"] == pytest.approx(8 / 20)
    low, high = found["interval"]
    assert high - 0.4 == pytest.approx(0.4 - low) == pytest.approx(1.96 * np.sqrt(10 - 64 / 20) / 20)
    by_class = found["by_class"].values()
    for name in ("images", "both_right", "mended", "broken", "both_wrong"):
        assert sum(row[name] for row in by_class) == found[name]


def test_the_other_way_round_is_the_same_test(rng):
    labels = rng.integers(0, 10, 300)
    ours, theirs = (guesses(rng.random(300) < share, labels, rng) for share in (0.8, 0.7))
    pairs = ((ours, theirs), (theirs, ours))
    found, reverse = (comparison.compare(*pair) for pair in pairs)
    assert (found["mended"], found["broken"]) == (reverse["broken"], reverse["mended"])
    assert found["p"] == pytest.approx(reverse["p"]) and found["difference"] == pytest.approx(-reverse["difference"])


def test_a_network_against_itself_differs_in_nothing(rng):
    labels = rng.integers(0, 10, 50)
    found = comparison.compare(of(labels, labels), of(labels, labels))
    assert (found["mended"], found["broken"], found["p"], found["interval"]) == (0, 0, 1, [0, 0])


def test_equal_networks_are_called_different_as_often_as_p_says(rng):
    labels = rng.integers(0, 10, 400)
    p = []
    for _ in range(200):
        pair = [guesses(rng.random(400) < 0.8, labels, rng) for _ in range(2)]
        p.append(comparison.compare(*pair)["p"])
    assert np.mean(np.array(p) < 0.05) < 0.09
