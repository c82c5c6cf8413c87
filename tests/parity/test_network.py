"""Logits, a training step, the plateau and the augmentation, against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")

from cifar_flax import interop
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10, augment
from cifar_flax.network import model
from cifar_flax.training import optim, step


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("preset", ["compact", "resnet18"])
def test_logits(preset, dtype, tolerance, make_pair, images):
    pair = make_pair(preset, dtype)
    with jax.enable_x64(dtype == "float64"):
        forward = jax.jit(functools.partial(model.forward, pair.model))
        ours = np.asarray(forward(pair.params, jnp.asarray(images, pair.dtype)))
    with torch.no_grad():
        theirs = pair.torch(pair.to_torch(images)).numpy()
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_the_published_resnet18_predicts_the_same_classes(make_pair, sample):
    pair = make_pair("resnet18", "float32")
    forward = jax.jit(functools.partial(model.forward, pair.model))
    some = sample.test.take(slice(None, None, 4))
    batches = np.split(np.asarray(CIFAR10.normalize(some.images)), 5)
    ours = np.concatenate([forward(pair.params, batch) for batch in batches]).argmax(axis=1)
    with torch.no_grad():
        theirs = np.concatenate([pair.torch(pair.to_torch(batch)).numpy() for batch in batches]).argmax(axis=1)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours == some.labels).mean() > 0.92


def test_two_steps_of_sgd(make_pair, sample, labels):
    """Clipping, decay of kernels only, Nesterov momentum; and a second step, so that the momentum counts.

    In float64, but for the rate, which Optax's schedule has in float32.
    """
    with jax.enable_x64(True):
        pair = make_pair("compact", "float64")
        images, params = sample.test.images[::125], jax.tree.map(jnp.asarray, pair.params)
        optimizer = optim.build_optimizer(
            optim.warmup_schedule(0.1, 0), momentum=0.9, nesterov=True, weight_decay=5e-4, clip_norm=1.0
        )
        plateau = optim.build_plateau(patience=0, factor=0.5, threshold=0.1, cooldown=0, min_scale=0.0)
        state = step.create_state(jax.random.key(0), pair.model, optimizer, plateau)
        state = state.replace(params=params, ema_params=params, opt_state=optimizer.init(params))
        train = jax.jit(
            functools.partial(
                step.train_step,
                model=pair.model,
                optimizer=optimizer,
                augment=lambda key, images: images,
                label_smoothing=0.1,
                ema_decay=0.0,
            )
        )
        network = type(pair.torch)(PRESETS["compact"].widths, PRESETS["compact"].strides).double()
        network.load_state_dict(pair.torch.state_dict())
        groups = [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4},
            {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(2):
            state, _ = train(state, images, labels, np.ones(len(labels), bool))
            sgd.zero_grad()
            logits = network(pair.to_torch(CIFAR10.normalize(images)))
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long(), label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            sgd.step()
            ours = interop.to_state_dict(jax.device_get(state.params))
            for name, theirs in network.state_dict().items():
                np.testing.assert_allclose(ours[name], theirs.numpy(), rtol=0, atol=1e-7, err_msg=name)


def test_200_decisions_of_the_plateau(rng):
    for patience, cooldown, threshold in ((0, 0, 1e-4), (1, 1, 0.02), (2, 0, 0.05), (3, 2, 1e-4)):
        parameter = torch.nn.Parameter(torch.zeros(1))
        sgd = torch.optim.SGD([parameter], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            sgd, factor=0.7, patience=patience, cooldown=cooldown, threshold=threshold, min_lr=1e-3
        )
        ours = optim.build_plateau(
            patience=patience, factor=0.7, threshold=threshold, cooldown=cooldown, min_scale=1e-3
        )
        state = ours.init({})
        for value in np.float32(np.exp(-np.arange(50) / 30) + 0.05 * rng.normal(size=50)):
            theirs.step(float(value))
            state = optim.advance_plateau(ours, state, value)
            np.testing.assert_allclose(state.scale, sgd.param_groups[0]["lr"], rtol=1e-5)
        assert state.scale < 1


def test_crop_and_rotation(images, rng):
    """torchvision rotates a larger window about the same centre; its middle is compared."""
    transforms = pytest.importorskip("torchvision.transforms.functional", reason="needs torchvision")
    shifts = rng.integers(-4, 5, (len(images), 2))
    angles = rng.uniform(-5, 5, len(images))
    ours = augment.shift_and_rotate(jnp.asarray(images), jnp.asarray(shifts), jnp.asarray(angles, jnp.float32))
    for image, (row, column), angle, our in zip(images, shifts, angles, ours, strict=True):
        padded = torch.tensor(np.pad(image.transpose(2, 0, 1), [(0, 0), (12, 12), (12, 12)]))
        window = padded[:, row + 4 : row + 52, column + 4 : column + 52]
        turned = transforms.rotate(window, float(angle), interpolation=transforms.InterpolationMode.BILINEAR)
        np.testing.assert_allclose(our, turned[:, 8:40, 8:40].numpy().transpose(1, 2, 0), atol=2e-4)


def test_cutout(images, rng):
    """The classroom's implementation: a mask of ones, a slice of it set to zero, clipped at the border."""
    centers = rng.integers(0, 32, (len(images), 2))
    ours = augment.cutout(jnp.asarray(images), jnp.asarray(centers), 16)
    for image, (y, x), our in zip(images, centers, ours, strict=True):
        mask = torch.ones(32, 32)
        mask[max(y - 8, 0) : min(y + 8, 32), max(x - 8, 0) : min(x + 8, 32)] = 0
        np.testing.assert_array_equal(our, image * mask[..., None].numpy())
