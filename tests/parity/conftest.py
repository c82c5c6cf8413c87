"""The same numbers as PyTorch and pytorch-grad-cam: needs the group `bench`."""

import contextlib
import importlib
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cifar_flax import interop
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10
from cifar_flax.execution import resolve
from cifar_flax.network import weights
from cifar_flax.network.build import build_model
from cifar_flax.training import trained

ROOT = Path(__file__).parents[2]
PUBLISHED = trained.PUBLISHED

sys.path.append(str(ROOT / "benchmarks"))
with contextlib.suppress(ImportError):
    import torch

    importlib.import_module("peers")  # defines what torchvision's import asks for


@pytest.fixture(scope="session")
def images(sample):
    """8 real test images, normalised: float32 `[8, 32, 32, 3]`."""
    return np.asarray(CIFAR10.normalize(sample.test.images[::125]))


@pytest.fixture(scope="session")
def labels(sample):
    return sample.test.labels[::125]


class Pair:
    """A published network here and in PyTorch, in float32 or float64."""

    def __init__(self, preset: str, dtype: str):
        config = PRESETS[preset]
        self.dtype = np.dtype(dtype)
        self.model = build_model(config, resolve("float32", 1)).clone(dtype=self.dtype)
        params = weights.load_weights(PUBLISHED[preset]).params
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
