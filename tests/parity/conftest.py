"""The same numbers as PyTorch and pytorch-grad-cam: needs the extra `bench`."""

import contextlib
import runpy

import jax
import numpy as np
import pytest

from cifar_flax import augment, explanation, interop, model, weights
from cifar_flax.config import PRESETS
from cifar_flax.program import build_model

with contextlib.suppress(ImportError):
    import torch

    # A CPU build of PyTorch beside torchvision's wheel lacks two operators that its import asks for.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")


@pytest.fixture(scope="session")
def images(sample):
    """24 real test images, normalised: float32 `[24, 32, 32, 3]`."""
    return np.asarray(augment.normalize(sample.test_images[::42]))


@pytest.fixture(scope="session")
def labels(sample):
    return sample.test_labels[::42]


class Pair:
    """The same network here and in PyTorch, in float32 or float64."""

    def __init__(self, preset: str, dtype: str):
        config = PRESETS[preset]
        self.dtype = np.dtype(dtype)
        self.model = build_model(config, self.dtype)
        if preset == "compact":
            params = weights.load_weights(explanation.EMBEDDED).params
        else:
            params = jax.device_get(model.init_params(build_model(config), jax.random.key(0)))
            # A block whose last scale is 0 would hide its convolutions from the comparison.
            params = jax.tree.map(lambda x: x if x.any() else np.full_like(x, 0.3), params)
        self.params = jax.tree.map(lambda x: np.asarray(x, self.dtype), params)
        self.torch = runpy.run_path(str(interop.MODULE))["ResNet"](config.widths, config.strides).to(
            getattr(torch, dtype)
        )
        state_dict = {name: torch.tensor(tensor) for name, tensor in interop.to_state_dict(self.params).items()}
        self.torch.load_state_dict(state_dict, strict=True)

    def to_torch(self, images):
        """`[N, H, W, C]` of NumPy to `[N, C, H, W]` of PyTorch."""
        return torch.tensor(np.asarray(images, self.dtype).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="session")
def make_pair():
    pairs = {}

    def make(preset: str, dtype: str) -> Pair:
        if (preset, dtype) not in pairs:
            pairs[preset, dtype] = Pair(preset, dtype)
        return pairs[preset, dtype]

    return make
