"""Networks that were trained elsewhere give the same logits and maps here: torchvision's, and other sizes of ours."""

import runpy

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")
models = pytest.importorskip("torchvision.models", reason="needs torchvision: pip install -e . --group bench")

import cifar_flax
from cifar_flax import commands, interop
from cifar_flax.errors import UserError

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def randomised(network):
    """With random norms, of which no statistic is 0 and no weight is 1: nothing rests on an untrained network's."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 3, generator=generator)
    return network.eval()


def torchvisions(build):
    """A network of torchvision's for 7 classes of small images: a 3x3 stem of stride 1, and no pooling after it."""
    torch.manual_seed(0)
    network = build(num_classes=len(NAMES))
    network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    return randomised(network)


def brought_here(network, folder, *words):
    torch.save(network.state_dict(), folder / "net.pth")
    out = folder / "ours.safetensors"
    assert commands.main(["import", str(folder / "net.pth"), "--out", str(out), *words]) == 0
    return cifar_flax.load(out)


def normalised(images, mean=MEAN, std=STD):
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.fixture(scope="module")
def pixels(sample):
    return sample.test.images[:3]


@pytest.fixture(scope="module", params=["resnet18", "resnet34"])
def pair(request, tmp_path_factory):
    """A network with BatchNorm here and there."""
    theirs = torchvisions(getattr(models, request.param))
    words = ["--classes", ",".join(NAMES), "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]
    return brought_here(theirs, tmp_path_factory.mktemp("net"), *words), theirs


def test_logits_of_a_network_with_batch_norm(pair, pixels):
    ours, theirs = pair
    with torch.no_grad():
        expected = theirs(normalised(pixels)).numpy()
    assert np.abs(expected).max() > 1
    found = ours.predict(pixels)
    np.testing.assert_allclose(found.logits, expected, rtol=0, atol=1e-4)
    assert found.names == [NAMES[label] for label in expected.argmax(axis=1)]


@pytest.mark.parametrize("stage", ["stage2", "stage4"])
def test_maps_of_a_network_with_batch_norm(pair, pixels, stage):
    peers = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e . --group bench")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    ours, theirs = pair
    layer = getattr(theirs, stage.replace("stage", "layer"))[-1]
    targets = [ClassifierOutputTarget(NAMES.index("eel")) for _ in pixels]
    with peers.GradCAM(model=theirs, target_layers=[layer]) as peer:
        expected = peer(input_tensor=normalised(pixels), targets=targets)
    found = np.asarray(ours.explain(pixels, "eel", stage=stage).heat)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_logits_of_a_deep_network_with_group_norm_and_100_classes(pixels, tmp_path):
    """By the module that `export --show-module` prints, which takes depth and classes too."""
    torch.manual_seed(0)
    shape = {"widths": (24, 32, 40, 40), "strides": (1, 2, 2, 1), "num_classes": 100, "blocks": (3, 4, 6, 3)}
    theirs = randomised(runpy.run_path(str(interop.MODULE))["ResNet"](**shape))
    ours = brought_here(theirs, tmp_path)
    assert ours.trained.config.blocks == (3, 4, 6, 3) and ours.spec.class_names[99] == "99"
    with torch.no_grad():
        expected = theirs(normalised(pixels, ours.spec.mean, ours.spec.std)).numpy()
    np.testing.assert_allclose(ours.predict(pixels).logits, expected, rtol=0, atol=1e-4)
    back = interop.to_state_dict(jax.device_get(ours.params))
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)


@pytest.mark.parametrize(("name", "message"), [("resnet18", "first convolution is 7x7"), ("resnet50", "a Bottleneck")])
def test_torchvisions_own_are_for_large_images_or_of_other_blocks(name, message):
    state_dict = {name: tensor.numpy() for name, tensor in getattr(models, name)().state_dict().items()}
    with pytest.raises(UserError, match=message):
        interop.from_state_dict(state_dict)
