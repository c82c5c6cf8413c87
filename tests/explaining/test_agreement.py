import numpy as np
import pytest
from scipy.stats import spearmanr

from cifar_flax.explaining import agreement

MAP = np.array([[3.0, 1.0], [0.0, -2.0]])


def test_figures_of_a_2x2_map():
    shares = agreement.share(MAP)
    np.testing.assert_array_equal(shares, [[0.75, 0.25], [0, 0]])
    assert agreement.entropy(shares) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4))
    np.testing.assert_allclose(agreement.centre_of_mass(shares), [8, 0.75 * 8 + 0.25 * 24])
    assert agreement.overlap(shares, np.full((2, 2), 0.25)) == 0.5
    np.testing.assert_array_equal(agreement.pointing(np.stack([MAP] * 4)), [0.75, 0.25, 0, 0])


def test_a_constant_map_is_uniform_and_has_no_correlation():
    constant = agreement.share(np.ones((4, 4)))
    assert agreement.entropy(constant) == pytest.approx(1)
    np.testing.assert_allclose(agreement.centre_of_mass(constant), [16, 16])
    np.testing.assert_allclose(agreement.pointing(np.ones((4, 8, 8))), 0.25)
    assert np.isnan(agreement.spearman(np.ones((4, 4)), np.arange(16.0).reshape(4, 4)))


def test_a_zero_map_is_never_scored():
    zero = agreement.share(-np.ones((2, 2)))
    for figure in (agreement.entropy(zero), agreement.overlap(zero, zero), *agreement.centre_of_mass(zero)):
        assert np.isnan(figure)
    assert np.isnan(agreement.pointing(-np.ones((4, 2, 2)))).all()


def test_correlation_is_scipys_with_ties(rng):
    first, second = rng.integers(0, 5, (2, 3, 8, 8)).astype(float)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(agreement.spearman(first, second), expected)
    assert agreement.spearman(first[0], -first[0]) == pytest.approx(-1)
