"""Maps and overlays against pytorch-grad-cam 1.5.7."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")
peers = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e . --group bench")

from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from cifar_flax.explaining import cam
from cifar_flax.network import model

PEERS = {
    "grad-cam": peers.GradCAM,
    "grad-cam++": peers.GradCAMPlusPlus,
    "hires-cam": peers.HiResCAM,
    "layer-cam": peers.LayerCAM,
    "xgrad-cam": peers.XGradCAM,
    "eigen-cam": peers.EigenCAM,
}
CLASSES = [3, 9, 1]


@pytest.fixture(scope="module")
def ours(make_pair, images):
    """A function of a network and a stage: activations and gradients, from which every method makes its maps."""

    @functools.cache
    def find(preset, dtype, stage):
        pair = make_pair(preset, dtype)
        targets = jnp.eye(10, dtype=pair.dtype)[jnp.array(CLASSES)][:, None]

        @jax.jit
        def both(params, pixels):
            activations = model.features(pair.model, params, pixels, stage=stage)
            head = functools.partial(model.head, pair.model, params, stage=stage)
            return activations, cam.target_gradients(head, activations, targets)

        return both(pair.params, jnp.asarray(images[: len(CLASSES)], pair.dtype))

    return find


def their_maps(pair, images, stage, method):
    layer = getattr(pair.torch, f"layer{stage.removeprefix('stage')}")[-1]
    targets = [ClassifierOutputTarget(c) for c in CLASSES]
    with PEERS[method](model=pair.torch, target_layers=[layer]) as peer:
        return peer(input_tensor=pair.to_torch(images), targets=targets)


def compare(theirs, activations, gradients, method, tolerance):
    raw = jax.vmap(jax.vmap(cam.METHODS[method], in_axes=(None, 0)))(activations, gradients)[:, 0]
    ours = np.asarray(cam.to_image(raw))
    if method == "eigen-cam":  # the sign of a singular vector is arbitrary; ours is fixed
        flipped = np.asarray(cam.to_image(-raw))
        same = np.abs(ours - theirs).max(axis=(1, 2)) < np.abs(flipped - theirs).max(axis=(1, 2))
        ours = np.where(same[:, None, None], ours, flipped)
    assert ours.shape == theirs.shape == (len(CLASSES), 32, 32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3", "stage4"])
@pytest.mark.parametrize("method", PEERS)
def test_maps_in_float64_at_every_stage(method, stage, make_pair, images, ours):
    with jax.enable_x64(True):
        theirs = their_maps(make_pair("resnet18", "float64"), images[: len(CLASSES)], stage, method)
        compare(theirs, *ours("resnet18", "float64", stage), method, 1e-6)


@pytest.mark.parametrize("preset", ["resnet18", "compact"])
@pytest.mark.parametrize("method", PEERS)
def test_maps_in_float32_at_the_last_stage(method, preset, make_pair, images, ours):
    theirs = their_maps(make_pair(preset, "float32"), images[: len(CLASSES)], "stage4", method)
    compare(theirs, *ours(preset, "float32", "stage4"), method, 5e-5)


def test_overlays_are_identical(sample, make_pair, images):
    heats = their_maps(make_pair("compact", "float32"), images[: len(CLASSES)], "stage4", "grad-cam")
    for image, heat in zip(sample.test.images[::125], heats, strict=False):
        picture = np.float32(image) / 255
        np.testing.assert_array_equal(cam.overlay(picture, heat), show_cam_on_image(picture, heat, use_rgb=True))
