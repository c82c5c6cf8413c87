"""The scoring of benchmarks/planted_patch.py: what knows nothing must fail, and what knows the place must not."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
planted_patch = pytest.importorskip("planted_patch")


def test_random_scores_fail(rng):
    found = planted_patch.localise(rng.random((4000, 8, 8)), rng.integers(64, size=4000), rng)
    assert abs(found["hit"] - 1 / 64) < 0.01 and abs(found["mass"] - 1 / 64) < 0.002
    assert abs(found["mean_rank"] - 31.5) < 1.5


def test_constant_scores_fail_by_their_ties(rng):
    found = planted_patch.localise(np.ones((4000, 8, 8)), np.full(4000, 9), rng)
    assert abs(found["hit"] - 1 / 64) < 0.01 and found["mass"] == pytest.approx(1 / 64)


def test_the_place_itself_is_found_and_zero_maps_are_not_scored(rng):
    cells = rng.integers(64, size=50)
    scores = np.eye(64)[cells].reshape(50, 8, 8)
    scores[:10] = -1
    assert planted_patch.localise(scores, cells, rng) == {"hit": 1, "mass": 1, "mean_rank": 0, "zero_maps": 10}


def test_a_pattern_is_planted_in_its_cell_only(rng):
    images, patterns = np.zeros((3, 32, 32, 3), np.uint8), np.arange(1, 11, dtype=np.uint8)[:, None, None, None]
    planted = planted_patch.plant(images, np.array([0, 4, 9]), np.array([0, 9, 63]), np.tile(patterns, (1, 4, 4, 3)))
    assert (planted[1, 4:8, 4:8] == 5).all() and (planted[2, 28:, 28:] == 10).all()
    assert [image.astype(bool).sum() for image in planted] == [48, 48, 48] and not images.any()
