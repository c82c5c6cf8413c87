"""ROAD's imputation beside pytorch-grad-cam's, deletion and insertion beside torchcam's."""

import contextlib
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.explaining import faithfulness, measures
from cifar_flax.network import model

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")


@pytest.fixture
def impute(monkeypatch):
    """The peer's imputer without noise, imported without the rest of its package, which asks for torchvision."""
    found = importlib.util.find_spec("pytorch_grad_cam")
    if found is None or found.origin is None:
        pytest.skip("needs grad-cam: pip install -e . --group bench")
    package = types.ModuleType("pytorch_grad_cam")
    package.__path__ = [str(Path(found.origin).parent)]
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", package)
    imputer = importlib.import_module("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    return lambda image, known: imputer(torch.tensor(image), torch.tensor(known.astype(np.float32))).numpy()


def scattered(share, rng):
    return rng.permutation(64).reshape(8, 8) >= 64 * share


KNOWN = {
    "1/8 replaced": lambda rng: scattered(1 / 8, rng),
    "1/2 replaced": lambda rng: scattered(1 / 2, rng),
    "7/8 replaced": lambda rng: scattered(7 / 8, rng),
    "all but a row": lambda rng: np.arange(64).reshape(8, 8) < 8,
    "all but a corner": lambda rng: np.outer(np.arange(8) < 2, np.arange(8) < 4),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the peer calls NumPy with PyTorch's tensors
@pytest.mark.parametrize("case", KNOWN)
def test_imputation_is_that_of_pytorch_grad_cam(images, rng, impute, case):
    known = KNOWN[case](rng).repeat(4, axis=0).repeat(4, axis=1)
    image = images[0].transpose(2, 0, 1)
    found = np.asarray(faithfulness.impute(image[None], known[None]))[0]
    np.testing.assert_allclose(found, impute(image, known), atol=3e-3)


def test_curves_have_the_areas_of_torchcams_deletion_and_insertion(make_pair, images, rng):
    """On images of 8x8 pixels, where a cell is one. Insertion goes the way of least-relevant-first backwards."""
    metrics = pytest.importorskip("torchcam.metrics", reason="needs torchcam: pip install -e . --group bench")
    pair, small, maps = make_pair("compact", "float32"), images[:6, ::4, ::4], rng.normal(size=(6, 8, 8))

    class Extractor:
        model = pair.torch

        def __call__(self, classes, scores):
            return [torch.tensor(maps)]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return contextlib.nullcontext()

    peer = metrics.DeletionInsertionMetric(Extractor(), lambda x: x.softmax(dim=-1), steps=faithfulness.NUM_STEPS)
    peer.update(pair.to_torch(small))

    logits = model.forward(pair.model, pair.params, jnp.asarray(small))
    probability = measures.probability_of(pair.model, pair.params, logits.argmax(axis=-1))
    ranks = faithfulness.rank(maps, rng)
    curves = faithfulness.curves(probability, jnp.asarray(small), ranks, jnp.zeros(small.shape), "mean")
    areas = faithfulness.area(np.asarray(curves)).mean(axis=0)
    np.testing.assert_allclose(areas, [peer.summary()[name] for name in ("deletion_auc", "insertion_auc")], rtol=1e-4)
