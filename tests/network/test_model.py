import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from cifar_flax.config import PRESETS
from cifar_flax.network import model as model_lib
from cifar_flax.network.cpu import cpu_forms
from cifar_flax.network.forms import PLAIN
from cifar_flax.network.model import ResNet

SMALL = ResNet(widths=(4, 6, 8), strides=(1, 2, 2))
FORMS = pytest.mark.parametrize("forms", [PLAIN, cpu_forms(1)], ids=["plain", "cpu"])


@pytest.fixture(scope="module")
def params():
    """Parameters with random norm scales and biases, so that no test rests on their being 1 and 0."""
    params = model_lib.init_params(SMALL, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        treedef, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(2), (5, 32, 32, 3))


def count(model: ResNet) -> int:
    shapes = model_lib.param_shapes(model)
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_resnet18_has_the_parameters_and_layers_of_the_assignment():
    table = model_lib.layer_table(ResNet())
    assert count(ResNet()) == sum(row.num_params for row in table) == 11_173_962
    assert len(table) == 49
    kinds = [row.kind for row in table]
    assert [kinds.count(kind) for kind in ("Conv2d", "LayerNorm", "BasicBlock", "Linear")] == [20, 20, 8, 1]
    assert [row.shape for row in table if row.kind == "BasicBlock"] == [
        *[(32, 32, 64)] * 2,
        *[(16, 16, 128)] * 2,
        *[(8, 8, 256)] * 2,
        *[(8, 8, 512)] * 2,
    ]
    stage4 = [row.name for row in table if row.name.startswith("stage4_block1")]
    assert stage4[-3:] == ["stage4_block1.shortcut_conv", "stage4_block1.shortcut_norm", "stage4_block1"]


def test_compact_is_no_larger_than_the_reference():
    compact = PRESETS["compact"]
    assert count(ResNet(compact.widths, compact.strides)) == 172_002 <= 176_426


def test_a_network_of_lists_is_that_of_tuples():
    model = ResNet(widths=[4, 6], strides=[1, 2], blocks_per_stage=[1, 1])
    assert model == ResNet(widths=(4, 6), strides=(1, 2), blocks_per_stage=(1, 1))
    assert count(model) == sum(x.size for x in jax.tree.leaves(model_lib.init_params(model, jax.random.key(0))))


def test_printed_table_states_layers_and_total():
    text = model_lib.format_layer_table(ResNet())
    assert "49 layers, 11,173,962 parameters" in text
    assert "(8, 8, 512)" in text


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("stage", SMALL.stage_names)
def test_forward_splits_at_any_stage(transform, stage, params, images):
    def split(params, images):
        return model_lib.head(SMALL, params, model_lib.features(SMALL, params, images, stage=stage), stage=stage)

    logits = model_lib.forward(SMALL, params, images)
    chex.assert_shape(logits, (5, 10))
    chex.assert_trees_all_close(transform(split)(params, images), logits, rtol=1e-5, atol=1e-5)


def test_last_stage_is_8_by_8_by_512():
    shapes = jax.eval_shape(
        lambda key, x: model_lib.features(ResNet(), model_lib.init_params(ResNet(), key), x, stage="stage4"),
        jax.random.key(0),
        jnp.zeros((2, 32, 32, 3)),
    )
    chex.assert_shape(shapes, (2, 8, 8, 512))


def test_features_are_after_the_relu(params, images):
    for stage in SMALL.stage_names:
        activation = model_lib.features(SMALL, params, images, stage=stage)
        assert activation.min() == 0 and activation.max() > 0


@FORMS
def test_norm_standardises_each_image_over_height_width_and_channels(forms, rng):
    x = rng.normal(3, 5, (4, 8, 8, 6)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    ours = model_lib.build_norm("layer", jnp.float32, forms).apply({"params": {"scale": scale, "bias": bias}}, x)
    mean, var = x.mean(axis=(1, 2, 3), keepdims=True), x.var(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(ours, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_affine_norm_is_a_line_a_channel(dtype, rng):
    x = jnp.asarray(rng.normal(3, 5, (4, 8, 8, 6)), dtype)
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    ours = model_lib.build_norm("affine", dtype, PLAIN).apply({"params": {"scale": scale, "bias": bias}}, x)
    assert ours.dtype == dtype
    expected = (np.asarray(x, np.float32) * scale + bias).astype(dtype)
    np.testing.assert_allclose(np.float32(ours), np.float32(expected), rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)


def test_an_affine_network_has_the_same_parameters_and_knows_no_statistics(params, images):
    affine = SMALL.clone(norm_kind="affine")
    chex.assert_trees_all_equal_shapes(model_lib.init_params(affine, jax.random.key(0)), params)
    kinds = [row.kind for row in model_lib.layer_table(affine)]
    assert kinds.count("Affine") == 15 and "LayerNorm" not in kinds
    # A pixel changes what is near it alone; LayerNorm would change all.
    near = model_lib.features(affine, params, images.at[:, 0, 0].add(9.0), stage="stem")
    same = near == model_lib.features(affine, params, images, stage="stem")
    assert not same[:, :2, :2].all() and same[:, 2:].all() and same[:, :, 2:].all()


@FORMS
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_pads_as_pytorch_does(stride, forms, rng):
    x = rng.normal(size=(1, 8, 8, 1)).astype(np.float32)
    kernel = rng.normal(size=(3, 3)).astype(np.float32)
    conv = model_lib.build_conv(1, 3, stride, jnp.float32, forms)
    ours = conv.apply({"params": {"kernel": kernel[:, :, None, None]}}, x)
    # padding=1: an output pixel is centred on the input pixel (stride * row, stride * column).
    centred = scipy.signal.correlate2d(x[0, :, :, 0], kernel, mode="same")[::stride, ::stride]
    np.testing.assert_allclose(ours[0, :, :, 0], centred, atol=1e-5)


def test_logits_ignore_the_scale_of_a_kernel_that_a_norm_follows(params, images):
    """LayerNorm divides it out again: only true if a norm follows each convolution, with no bias between."""
    scaled = jax.tree.map(lambda x: 3 * x if x.ndim == 4 else x, params)
    chex.assert_trees_all_close(
        model_lib.forward(SMALL, scaled, images), model_lib.forward(SMALL, params, images), rtol=1e-2, atol=1e-3
    )


def test_an_image_does_not_depend_on_its_batch(params, images):
    """True of LayerNorm, false of BatchNorm."""
    alone = jnp.concatenate([model_lib.forward(SMALL, params, images[i : i + 1]) for i in range(len(images))])
    chex.assert_trees_all_close(alone, model_lib.forward(SMALL, params, images), rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_keep_float32_parameters_and_logits(images):
    model = ResNet(widths=(4, 6), strides=(1, 2), dtype=jnp.bfloat16)
    params = model_lib.init_params(model, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert model_lib.features(model, params, images, stage="stage2").dtype == jnp.bfloat16
    logits = model_lib.forward(model, params, images)
    assert logits.dtype == jnp.float32
    exact = model_lib.forward(ResNet(widths=(4, 6), strides=(1, 2)), params, images)
    assert jnp.linalg.norm(logits - exact) < 0.05 * jnp.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "strides", "norm"),
    [((16, 32, 64), (1, 2, 2), "layer"), ((16, 64), (1, 2), "affine")],
)
def test_both_forms_are_the_same_network(widths, strides, norm, rng):
    """In values and in gradients by parameters, by images and by a feature map.

    In float64: in float32 an activation next to 0 may be rounded to either side, and ReLU's gradient with it.
    """
    with jax.enable_x64(True):
        images, weights = jnp.asarray(rng.normal(size=(2, 16, 16, 3))), rng.normal(size=(2, 10))
        plain, cpu = (
            ResNet(widths, strides, dtype=jnp.float64, forms=forms, norm_kind=norm) for forms in (PLAIN, cpu_forms(1))
        )
        params = jax.tree.map(lambda x: x.astype(np.float64), model_lib.init_params(plain, jax.random.key(0)))
        activation = model_lib.features(plain, params, images, stage="stage2")

        @functools.partial(jax.jit, static_argnums=2)
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def by_params_and_images(params, images, model):
            return (model_lib.forward(model, params, images) * weights).sum()

        @functools.partial(jax.jit, static_argnums=2)
        @jax.grad
        def by_map(activation, params, model):
            return (model_lib.head(model, params, activation, stage="stage2") * weights).sum()

        theirs, ours = ((by_params_and_images(params, images, x), by_map(activation, params, x)) for x in (plain, cpu))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_flaxs_own_forms_are_lowered_for_any_platform_from_any(platform, images):
    """What is given decides, not the machine."""
    model = ResNet((4,), (1,), forms=PLAIN)
    params = model_lib.param_shapes(model)
    traced = jax.jit(lambda params, x: model_lib.forward(model, params, x)).trace(params, images)
    assert traced.lower(lowering_platforms=(platform,)).out_info.shape == (len(images), 10)


def test_a_cpu_form_refuses_a_convolution_that_the_network_does_not_have():
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
    for unknown in ({"padding": "VALID"}, {"kernel_dilation": 2}, {"feature_group_count": 2}):
        options = {"padding": 1, "conv_general_dilated": cpu_forms(1).conv_general_dilated} | unknown
        kernel = jnp.zeros((3, 3, 4 // options.get("feature_group_count", 1), 4))
        with pytest.raises(NotImplementedError):
            nn.Conv(4, (3, 3), use_bias=False, **options).apply({"params": {"kernel": kernel}}, x)


def test_float32_is_multiplied_as_float32():
    """Whatever an accelerator's default is: every product of the network asks for it."""
    model = ResNet((4,), (2,))
    params = model_lib.param_shapes(model)
    jaxpr = str(jax.make_jaxpr(lambda p, x: model_lib.forward(model, p, x))(params, jnp.zeros((1, 32, 32, 3))))
    products = re.findall(r"(?:conv_general_dilated|dot_general)\[.*?\]\s", jaxpr, re.DOTALL)
    assert len(products) == 7 and all("HIGHEST" in product for product in products)


def test_layers_are_in_the_order_that_they_run_in():
    names = [
        row.name for row in model_lib.layer_table(ResNet((4,) * 11, (1, 2) + (1,) * 9)) if row.kind == "BasicBlock"
    ]
    assert names[2:4] == ["stage2_block1", "stage2_block2"] and names[-1] == "stage11_block2"
