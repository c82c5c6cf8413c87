"""ROAD's imputation beside pytorch-grad-cam's."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cifar_flax.explaining import faithfulness

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")


@pytest.fixture
def impute(monkeypatch):
    """The peer's imputer without noise, imported without the rest of its package, which asks for torchvision."""
    found = importlib.util.find_spec("pytorch_grad_cam")
    if found is None or found.origin is None:
        pytest.skip("needs grad-cam: pip install -e '.[bench]'")
    package = types.ModuleType("pytorch_grad_cam")
    package.__path__ = [str(Path(found.origin).parent)]
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", package)
    imputer = importlib.import_module("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    return lambda image, known: imputer(torch.tensor(image), torch.tensor(known.astype(np.float32))).numpy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the peer calls NumPy with PyTorch's tensors
@pytest.mark.parametrize("share", [1 / 8, 1 / 2, 3 / 4])
def test_imputation_is_that_of_pytorch_grad_cam(images, rng, impute, share):
    known = (rng.permutation(64).reshape(8, 8) >= 64 * share).repeat(4, axis=0).repeat(4, axis=1)
    image = images[0].transpose(2, 0, 1)
    found = np.asarray(faithfulness.impute(image[None], known[None]))[0]
    np.testing.assert_allclose(found, impute(image, known), atol=1e-3)
