import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.explaining import faithfulness


@pytest.fixture
def weights(rng):
    """A linear 'network' on 8x8 images of one pixel a cell: the probability is the sum of weights times pixels."""
    return rng.normal(size=(8, 8)) / 64


def linear(weights):
    return lambda images: (images.mean(axis=-1) * weights[None]).sum(axis=(-2, -1))


def test_cells_of_a_2x2_example():
    maps = np.array([[1.0, 3.0], [5.0, 7.0]])
    np.testing.assert_array_equal(faithfulness.to_cells(maps, grid=2), maps)
    np.testing.assert_array_equal(faithfulness.to_cells(maps, grid=4), maps.repeat(2, axis=0).repeat(2, axis=1))
    assert faithfulness.to_cells(maps, grid=1).item() == 4
    assert faithfulness.to_cells(np.zeros((2, 3, 32, 32))).shape == (2, 3, 8, 8)
    several = np.stack([maps, -maps])[None]  # coarser than the grid, and of more than one image
    np.testing.assert_array_equal(faithfulness.to_cells(several), several.repeat(4, axis=-2).repeat(4, axis=-1))


def test_ranks_put_the_largest_first_and_break_ties_by_the_seed():
    scores = np.arange(64.0).reshape(1, 8, 8)
    np.testing.assert_array_equal(faithfulness.rank(scores, np.random.default_rng(0)), 63 - scores)
    tied = [faithfulness.rank(np.zeros((50, 8, 8)), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(tied[0], tied[1])
    assert (tied[0] != tied[2]).any()
    assert abs(tied[0].mean(axis=0) - 31.5).max() < 12  # no place is preferred
    assert all(set(image.ravel()) == set(range(64)) for image in tied[0])


def test_curves_of_a_linear_network_are_sums_of_its_weights(weights, rng):
    ranks = faithfulness.rank(weights[None], rng)
    images = jnp.ones((1, 8, 8, 3))
    found = faithfulness.curves(linear(weights), images, ranks, jnp.zeros(images.shape), "mean")[0]
    descending = np.sort(weights.ravel())[::-1]
    for step in range(9):
        np.testing.assert_allclose(found[0, step], descending[8 * step :].sum(), atol=1e-6)
        np.testing.assert_allclose(found[1, step], descending[: 64 - 8 * step].sum(), atol=1e-6)


def test_no_ranking_beats_that_of_a_linear_networks_weights(weights, rng):
    images = jnp.ones((20, 8, 8, 3))
    scores = np.concatenate([weights[None], rng.normal(size=(18, 8, 8)), -weights[None]])
    gains = faithfulness.relevance_gain(
        np.asarray(
            faithfulness.curves(
                linear(weights), images, faithfulness.rank(scores, rng), jnp.zeros(images.shape), "mean"
            )
        )
    )
    assert gains.argmax() == 0 and gains.argmin() == 19
    np.testing.assert_allclose(gains[0], -gains[19], rtol=1e-4)


def test_area_of_an_example_by_hand():
    assert faithfulness.area(np.array([1.0, 0.5, 0.0])) == 0.5
    assert faithfulness.relevance_gain(np.array([[[1.0, 0, 0], [1.0, 1, 0]]])) == 0.75 - 0.25


def test_curves_of_a_2x2_example_by_hand(rng):
    """Four quarters that are worth 0.4, 0.3, 0.2 and 0.1; two steps replace one of them."""
    worth = np.array([[0.4, 0.3], [0.2, 0.1]])
    cells = worth.repeat(4, axis=0).repeat(4, axis=1) / 16
    images = jnp.ones((1, 8, 8, 3))
    ranks = faithfulness.rank(cells[None], rng)
    found = np.asarray(faithfulness.curves(linear(cells), images, ranks, jnp.zeros(images.shape), "mean"))
    np.testing.assert_allclose(found[0, 0], [1, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0], atol=1e-6)
    np.testing.assert_allclose(found[0, 1], [1, 0.95, 0.9, 0.8, 0.7, 0.55, 0.4, 0.2, 0], atol=1e-6)
    assert faithfulness.relevance_gain(found) == pytest.approx(0.625 - 0.375)


def test_occlusion_of_a_linear_network_is_its_weights(weights):
    found = faithfulness.occlusion(linear(weights), jnp.ones((2, 8, 8, 3)))
    np.testing.assert_allclose(found[1], weights, atol=1e-6)


def test_baselines():
    centre = faithfulness.centre_scores(2)
    assert centre.shape == (2, 8, 8) and centre[0, 3, 4] == centre.max() and centre[1, 0, 0] == centre.min()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[:, :, 14:] = 255
    edges = faithfulness.edge_scores(images)[0]
    assert (edges[:, 3] > 0).all() and np.delete(edges, 3, axis=1).max() == 0
    for count in (2, 5, 8):
        other = faithfulness.others(count)
        assert sorted(other) == list(range(count)) and (other != np.arange(count)).all()


def test_imputation_solves_its_equations(rng):
    """Every replaced pixel is the weighted mean of its neighbours; known ones stay."""
    images = rng.normal(size=(3, 2, 32, 32)).astype(np.float32)
    known = rng.random((3, 8, 8)).repeat(4, axis=1).repeat(4, axis=2) < np.array([0.1, 0.5, 0.9])[:, None, None]
    filled = np.asarray(faithfulness.impute(images, known))
    weights = np.asarray(faithfulness.neighbours(jnp.ones((32, 32))))
    means = np.asarray(faithfulness.neighbours(filled)) / weights
    holes = np.broadcast_to(~known[:, None], filled.shape)
    np.testing.assert_allclose(filled[holes], means[holes], atol=2e-3)
    np.testing.assert_array_equal(filled[~holes], images[~holes])


def test_an_image_without_known_pixels_becomes_the_mean():
    known = np.zeros((1, 32, 32), bool)
    assert (faithfulness.impute(jnp.ones((1, 3, 32, 32)), known) == 0).all()
    constant = faithfulness.impute(jnp.full((1, 3, 32, 32), 2.0), known.copy() | (np.arange(32) < 1))
    np.testing.assert_allclose(constant, 2, atol=1e-5)


def test_noise_is_added_to_replaced_pixels_only():
    images, known = jnp.ones((1, 32, 32, 3)), jnp.arange(32)[None, None, :].repeat(32, axis=1) < 16
    found = np.asarray(faithfulness.fill(images, known, jnp.ones(images.shape), "road"))
    np.testing.assert_allclose(found[:, :, :16], 1)
    np.testing.assert_allclose(found[:, :, 16:], 1.01, atol=1e-4)


@pytest.mark.parametrize("kind", faithfulness.FILLS)
def test_equal_seeds_give_equal_curves(weights, rng, kind):
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)

    def run(seed):
        ranks = faithfulness.rank(np.zeros((2, 8, 8)), np.random.default_rng(seed))
        noise = jax.random.normal(jax.random.key(seed), images.shape)
        score = jax.jit(lambda x: linear(np.kron(weights, np.ones((4, 4))))(x))
        return np.asarray(faithfulness.curves(score, images, ranks, noise, kind))

    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).any()


def test_interval_covers_the_mean(rng):
    """Of normal values, in about 95 of 100 draws."""
    hits = 0
    for _ in range(100):
        low, high = faithfulness.bootstrap([rng.normal(size=200)], [1.0], rng, draws=200)
        hits += low <= 0 <= high
    assert 86 <= hits <= 100
