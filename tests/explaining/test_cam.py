import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.explaining import cam
from cifar_flax.network.model import ResNet, features, forward, head, init_params

MODEL = ResNet(widths=(4, 6), strides=(1, 2))


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (64, 32, 32, 3))


@functools.partial(jax.jit, static_argnames="stage")
def all_classes(params, images, stage):
    """Activations, and gradients of each of the ten logits."""
    activations = features(MODEL, params, images, stage=stage)
    targets = jnp.broadcast_to(jnp.eye(10), (len(images), 10, 10))
    gradients = cam.target_gradients(lambda a: head(MODEL, params, a, stage=stage), activations, targets)
    return activations, gradients


def maps_of(method, activations, gradients):
    return jax.vmap(jax.vmap(cam.METHODS[method], in_axes=(None, 0)))(activations, gradients)


@pytest.fixture(scope="module")
def last_stage(params, images):
    return all_classes(params, images, "stage2")


def test_last_stage_gradient_is_the_dense_kernel_over_the_area(last_stage, params):
    gradients = last_stage[1]
    chex.assert_shape(gradients, (64, 10, 16, 16, 6))
    expected = jnp.broadcast_to(params["linear"]["kernel"].T[None, :, None, None, :] / 256, gradients.shape)
    chex.assert_trees_all_close(gradients, expected, rtol=1e-5, atol=1e-8)


def test_last_stage_map_sums_to_the_logit_less_its_bias(last_stage, params, images):
    sums = maps_of("grad-cam", *last_stage).sum(axis=(-2, -1))
    bias = jnp.broadcast_to(params["linear"]["bias"] + 0.0, sums.shape)
    chex.assert_trees_all_close(sums + bias, forward(MODEL, params, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["hires-cam", "xgrad-cam"])
def test_methods_agree_with_grad_cam_where_the_gradient_is_constant(method, last_stage):
    chex.assert_trees_all_close(maps_of(method, *last_stage), maps_of("grad-cam", *last_stage), rtol=1e-4, atol=1e-6)


def test_a_map_of_a_difference_is_the_difference_of_the_maps(last_stage, params):
    activations, gradients = last_stage
    weights = jnp.broadcast_to((jnp.eye(10)[3] - jnp.eye(10)[5])[None, None], (64, 1, 10))
    difference = cam.target_gradients(lambda a: head(MODEL, params, a, stage="stage2"), activations, weights)
    ours, every = maps_of("grad-cam", activations, difference)[:, 0], maps_of("grad-cam", activations, gradients)
    chex.assert_trees_all_close(ours, every[:, 3] - every[:, 5], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", MODEL.stage_names)
def test_gradients_are_those_of_jax_grad_an_image_and_a_target_at_a_time(stage, params, images):
    activations = features(MODEL, params, images[:3], stage=stage)
    targets = jax.random.normal(jax.random.key(2), (3, 2, 10))

    @jax.jit
    def together(activations, targets):
        return cam.target_gradients(lambda a: head(MODEL, params, a, stage=stage), activations, targets)

    @jax.jit
    @jax.grad
    def alone(activation, weights):
        return head(MODEL, params, activation[None], stage=stage)[0] @ weights

    found = together(activations, targets)
    for i, t in np.ndindex(3, 2):
        chex.assert_trees_all_close(found[i, t], alone(activations[i], targets[i, t]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stage", MODEL.stage_names)
def test_gradients_agree_with_finite_differences(stage, params, images):
    with jax.enable_x64(True):
        params64 = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        model = ResNet(widths=(4, 6), strides=(1, 2), dtype=jnp.float64)
        activation = features(model, params64, images[:1], stage=stage)

        @jax.jit
        def logits(a):
            return head(model, params64, a, stage=stage)

        direction = jax.random.normal(jax.random.key(3), activation.shape, jnp.float64)
        gradients = cam.target_gradients(logits, activation, jnp.eye(10)[None, :1])
        slope = (logits(activation + 1e-6 * direction) - logits(activation - 1e-6 * direction))[0, 0] / 2e-6
        np.testing.assert_allclose((gradients[0, 0] * direction[0]).sum(), slope, rtol=1e-5)


@pytest.mark.parametrize("method", cam.METHODS)
def test_an_image_is_explained_alike_alone_and_in_any_batch(method, params, images, last_stage):
    together = maps_of(method, *last_stage)
    alone = maps_of(method, *all_classes(params, images[4:5], "stage2"))
    chex.assert_trees_all_close(alone[0], together[4], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", cam.METHODS)
def test_jit_agrees_with_eager(method, last_stage):
    activation, gradient = last_stage[0][0], last_stage[1][0, 0]
    function = cam.METHODS[method]
    eager = function(activation, gradient)
    # Where a sum nearly cancels, its rounding is that of its terms: of the map's largest value.
    atol = 1e-6 * max(1.0, float(jnp.abs(eager).max()))
    chex.assert_trees_all_close(jax.jit(function)(activation, gradient), eager, rtol=1e-4, atol=atol)


def test_definitions_agree_with_numpy_in_loops(rng):
    """Each formula once more, written out place by place."""
    a, g = rng.uniform(0, 1, (3, 4, 5)), rng.normal(size=(3, 4, 5))
    expected = {name: np.zeros((3, 4)) for name in cam.METHODS}
    for k in range(5):
        total = a[:, :, k].sum()
        weights = {
            "grad-cam": g[:, :, k].mean(),
            "xgrad-cam": (g[:, :, k] * a[:, :, k]).sum() / (total + 1e-7),
            "grad-cam++": sum(
                max(x, 0) * x**2 / (2 * x**2 + total * x**3 + 1e-6) for x in g[:, :, k].ravel() if x != 0
            ),
        }
        for name, weight in weights.items():
            expected[name] += weight * a[:, :, k]
        expected["hires-cam"] += g[:, :, k] * a[:, :, k]
        expected["layer-cam"] += np.maximum(g[:, :, k], 0) * a[:, :, k]
    flat = a.reshape(12, 5)
    centred = flat - flat.mean(axis=0)
    vector = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    expected["eigen-cam"] = (centred @ (vector * np.sign(flat.sum(axis=0) @ vector))).reshape(3, 4)
    for name, function in cam.METHODS.items():
        ours = function(jnp.asarray(a, jnp.float32), jnp.asarray(g, jnp.float32))
        np.testing.assert_allclose(ours, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_no_method_divides_by_zero(last_stage):
    zeros = jnp.zeros((8, 8, 4))
    for function in cam.METHODS.values():
        chex.assert_tree_all_finite(function(zeros, zeros))
    chex.assert_tree_all_finite(cam.to_image(jnp.zeros((8, 8))))


def test_shown_map_spans_zero_to_one_and_a_negative_one_is_marked(rng):
    raw = jnp.stack([jnp.asarray(rng.normal(size=(8, 8)), jnp.float32), -jnp.ones((8, 8))])
    shown = cam.to_image(raw)
    chex.assert_shape(shown, (2, 32, 32))
    assert shown[0].min() == 0 and abs(shown[0].max() - 1) < 1e-6
    assert (shown[1] == 0).all()
    assert cam.is_zero(raw).tolist() == [False, True]


def test_enlarging_is_bilinear_between_half_pixel_centres():
    raw = jnp.zeros((2, 2)).at[0, 1].set(1.0)
    shown = cam.to_image(raw, (4, 4))
    expected = np.outer([1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_overlay_is_the_definitions_own_arithmetic(rng):
    image, heat = rng.uniform(size=(32, 32, 3)).astype(np.float32), rng.uniform(size=(32, 32)).astype(np.float32)
    ours = cam.overlay(image, heat)
    mixed = 0.5 * np.float32(cam.JET[np.uint8(255 * heat)]) / 255 + 0.5 * image
    np.testing.assert_array_equal(ours, np.uint8(255 * (mixed / np.max(mixed))))
    assert ours.max() == 255


def test_colours_are_opencvs_jet():
    chex.assert_shape(cam.JET, (256, 3))
    known = {0: (0, 0, 128), 1: (0, 0, 132), 100: (18, 255, 238), 128: (130, 255, 126), 254: (132, 0, 0)}
    for place, colour in known.items():
        assert tuple(cam.JET[place]) == colour


@pytest.mark.parametrize("method", cam.METHODS)
def test_maps_of_bfloat16_activations_are_computed_in_float32(method, rng):
    arrays = [jnp.asarray(rng.normal(size=(4, 4, 6)), jnp.bfloat16) for _ in range(2)]
    found = cam.METHODS[method](*arrays)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, cam.METHODS[method](*(x.astype(jnp.float32) for x in arrays)))
