"""Nearest vectors against a sort of all, and near duplicates against correlations one by one."""

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data import open_dataset, similar


@pytest.mark.parametrize(("n", "known", "count"), [(1700, 6200, 4), (3, 120, 5), (0, 50, 2), (4, 3, 3)])
def test_the_nearest_are_the_first_of_all_sorted(n, known, count, rng):
    a, b = rng.integers(-3, 4, (n, 3)), rng.integers(-3, 4, (known, 3))  # of many equal products
    found = similar.nearest(a, b, count)
    products = (a @ b.T).astype(np.float32)
    np.testing.assert_array_equal(found.places, np.argsort(-products, axis=1, kind="stable")[:, :count])
    np.testing.assert_array_equal(found.similarity, np.take_along_axis(products, found.places, axis=1))


def test_a_vector_need_not_be_its_own_neighbour(rng):
    a = similar.unit(rng.normal(size=(2300, 6)))
    found = similar.nearest(a, a, 3, skip_self=True)
    products = (a @ a.T).astype(np.float32)
    np.fill_diagonal(products, -np.inf)
    np.testing.assert_array_equal(found.places, np.argsort(-products, axis=1, kind="stable")[:, :3])
    assert (similar.nearest(a, a, 1).places[:, 0] == np.arange(len(a))).all()


def test_a_zero_vector_stays_zero():
    np.testing.assert_allclose(similar.unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_near_duplicates_are_those_that_correlate(rng):
    """A darker, a brighter and a slightly noisy copy are near duplicates; a mirrored one and a grey square are not."""
    images = open_dataset("sample").train.images[:60]
    noisy = np.clip(images[7] + rng.normal(0, 4, images[7].shape), 0, 255).astype(np.uint8)
    flat = np.full((2, 32, 32, 3), 90, np.uint8)
    others = np.stack([images[3] // 2, images[5] // 2 + 100, noisy, images[9][:, ::-1], *flat])
    ours = similar.thumbnails(np.concatenate([images, flat]))
    found = similar.near_duplicates(ours, similar.thumbnails(others))
    assert found.tolist() == [[3, 0], [5, 1], [7, 2]]
    twice = similar.thumbnails(np.concatenate([images[:8], images[3:4], images[3:4]]))
    assert similar.near_duplicates(twice).tolist() == [[8, 3], [9, 3]]  # each with the first one like it
    both = np.concatenate([images, others[:3]])
    assert similar.near_duplicates(similar.thumbnails(both)).tolist() == [[60, 3], [61, 5], [62, 7]]

    def small(image):
        return np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX), float).ravel()

    np.testing.assert_allclose(
        ours[3] @ similar.thumbnails(others)[2], np.corrcoef(small(images[3]), small(noisy))[0, 1], rtol=1e-5
    )
    assert similar.near_duplicates(ours[:0], ours).shape == (0, 2)
