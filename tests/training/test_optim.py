import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_flax.training import optim

RECORDED = json.loads((Path(__file__).parent / "torch_plateau.json").read_text())["cases"]
SGD = dict(learning_rate=optim.warmup_schedule(0.1, 0), momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=0.0)


MUON = SGD | {"muon_learning_rate": optim.warmup_schedule(0.05, 0)}


def run(optimizer, params, grads, steps):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.fixture
def params():
    return {"kernel": jnp.ones((3, 3, 2, 2)), "scale": jnp.ones(2), "bias": jnp.ones(2)}


def test_plateau_decides_as_pytorch_with_patience_one_higher():
    """60 sequences of 40 values, recorded from PyTorch, not-a-number values among them."""
    for case in RECORDED:
        plateau = optim.build_plateau(
            patience=case["patience"],
            factor=case["factor"],
            threshold=case["rtol"],
            cooldown=case["cooldown"],
            min_scale=case["min_scale"],
        )

        def advance(state, value, plateau=plateau):
            state = optim.advance_plateau(plateau, state, value)
            return state, state.scale

        values = jnp.array([np.nan if value is None else value for value in case["values"]], jnp.float32)
        scales = jax.lax.scan(advance, plateau.init({}), values)[1]
        np.testing.assert_allclose(scales, case["scales"], rtol=1e-5)


def test_recorded_sequences_do_lower_the_rate():
    assert sum(case["scales"][-1] < 1 for case in RECORDED) > 50


def test_sgd_is_pytorchs_nesterov():
    """v = m v + g; p = p - lr (g + m v)."""
    grads, params = {"x": jnp.array([2.0])}, {"x": jnp.array([1.0])}
    velocity, expected = 0.0, 1.0
    for _ in range(5):
        velocity = 0.9 * velocity + 2.0
        expected -= 0.1 * (2.0 + 0.9 * velocity)
    np.testing.assert_allclose(run(optim.build_optimizer(**SGD), params, grads, 5)["x"], [expected], rtol=1e-6)


def test_weight_decay_shrinks_kernels_only(params):
    optimizer = optim.build_optimizer(**(SGD | {"weight_decay": 0.1, "momentum": 0.0, "nesterov": False}))
    decayed = run(optimizer, params, jax.tree.map(jnp.zeros_like, params), 1)
    chex.assert_trees_all_close(decayed, params | {"kernel": params["kernel"] * 0.99}, rtol=1e-6)


def test_warmup_rises_linearly_and_stays():
    schedule = optim.warmup_schedule(0.4, 3)
    np.testing.assert_allclose([schedule(i) for i in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(optim.warmup_schedule(0.4, 0)(0), 0.4)


def test_clipping_bounds_the_norm_and_keeps_the_direction(params):
    optimizer = optim.build_optimizer(**(SGD | {"clip_norm": 1.0, "momentum": 0.0, "nesterov": False}))
    grads = jax.tree.map(lambda x: 100 * x, params)
    step = jax.tree.map(lambda a, b: a - b, params, run(optimizer, params, grads, 1))
    np.testing.assert_allclose(optax.tree.norm(step), 0.1, rtol=1e-5)
    chex.assert_trees_all_close(step, optax.tree.scale(0.1 / optax.tree.norm(grads), grads), rtol=1e-5)


@pytest.fixture
def kernels(rng):
    """Convolutions of two shapes, two of one of them, beside a norm and a last layer."""
    shapes = {"a": (3, 3, 4, 8), "b": (3, 3, 4, 8), "c": (1, 1, 4, 8), "norm": (8,), "last": (8, 10)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_muon_moves_each_convolution_as_optax_moves_it_alone(kernels, rng):
    found = run(optim.build_optimizer(**MUON), kernels, kernels, 3)
    for name in "abc":
        matrix = kernels[name].reshape(-1, 8)
        alone = run(optax.chain(optax.contrib.scale_by_muon(), optax.scale(-0.05)), matrix, matrix, 3)
        chex.assert_trees_all_close(found[name].reshape(-1, 8), alone, rtol=1e-4, atol=1e-6)


def test_muon_moves_every_direction_of_a_convolution_alike(kernels):
    moved = run(optim.build_optimizer(**MUON), kernels, kernels, 1)
    for name in "ab":
        lengths = np.linalg.svd((moved[name] - kernels[name]).reshape(-1, 8), compute_uv=False) / 0.05
        assert lengths.min() > 0.6 and lengths.max() < 1.3


def test_beside_muon_the_rest_is_left_to_sgd(kernels):
    by_both, by_sgd = (run(optim.build_optimizer(**options), kernels, kernels, 3) for options in (MUON, SGD))
    for name in ("norm", "last"):
        chex.assert_trees_all_close(by_both[name], by_sgd[name])


def test_muon_decays_convolutions_by_its_own_share(kernels):
    optimizer = optim.build_optimizer(**MUON, muon_weight_decay=0.1)
    decayed = run(optimizer, kernels, jax.tree.map(jnp.zeros_like, kernels), 1)
    expected = {name: x * (0.995 if x.ndim == 4 else 1.0) for name, x in kernels.items()}
    chex.assert_trees_all_close(decayed, expected, rtol=1e-6)


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.fixture
def wide_kernels(rng):
    """Convolutions wide enough to share, of three shapes, one of them with more outputs than inputs."""
    shapes = {"a": (3, 3, 128, 128), "b": (3, 3, 128, 128), "c": (3, 3, 64, 128), "d": (1, 1, 128, 256)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_muon_moves_a_wide_convolution_as_optax_moves_it(wide_kernels):
    found = run(optim.build_optimizer(**MUON, mesh=one_device()), wide_kernels, wide_kernels, 2)
    for name, kernel in wide_kernels.items():
        matrix = kernel.reshape(-1, kernel.shape[-1])
        alone = run(optax.chain(optax.contrib.scale_by_muon(), optax.scale(-0.05)), matrix, matrix, 2)
        chex.assert_trees_all_close(found[name].reshape(matrix.shape), alone, rtol=1e-4, atol=1e-6)


def test_what_is_small_in_a_wide_gradient_is_moved_as_optax_moves_it(rng):
    """Singular values from 1 to 1e-5: the squares of the last ones are below float32's rounding of the first's."""
    left, right = (np.linalg.qr(rng.normal(size=(size, 128)))[0] for size in (1152, 128))
    matrix = jnp.asarray((left * np.logspace(0, -5, 128)) @ right.T, jnp.float32)
    kernels = {"a": matrix.reshape(3, 3, 128, 128)}
    zeros = jax.tree.map(jnp.zeros_like, kernels)
    found = run(optim.build_optimizer(**MUON, mesh=one_device()), zeros, kernels, 1)["a"].reshape(matrix.shape)
    alone = run(optax.chain(optax.contrib.scale_by_muon(), optax.scale(-0.05)), 0 * matrix, matrix, 1)
    lengths, expected = (np.linalg.svd(left.T @ moved @ right, compute_uv=False) for moved in (found, alone))
    np.testing.assert_allclose(lengths, expected, atol=1e-3 * expected.max())
    np.testing.assert_allclose(found, alone, atol=1e-3 * float(jnp.abs(alone).max()))


def test_devices_share_the_work_of_muon(wide_kernels):
    """The same update, each device with about half the floating-point operations."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    results, flops = [], []
    for sharing in (one_device(), mesh):
        placed = jax.device_put(wide_kernels, NamedSharding(sharing, PartitionSpec()))
        optimizer = optim.build_optimizer(**MUON, mesh=sharing)
        update = jax.jit(optimizer.update).lower(placed, optimizer.init(placed), placed).compile()
        results.append(update(placed, optimizer.init(placed), placed)[0])
        flops.append(update.cost_analysis()["flops"])
    chex.assert_trees_all_close(*jax.device_get(results), rtol=1e-4, atol=1e-6)
    assert 0.4 < flops[1] / flops[0] < 0.6
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(results[1]))
