"""Faithfulness beside pytorch-grad-cam's imputer and torchcam's deletion and insertion."""

import numpy as np
import pytest

from cifar_flax.explaining import faithfulness

peers = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: the extra bench")
torch = pytest.importorskip("torch", reason="needs PyTorch: the extra bench")


@pytest.mark.slow
def test_imputation_is_that_of_pytorch_grad_cam(images, rng):
    road = peers.metrics.road
    for share in (1 / 8, 1 / 2, 7 / 8):
        known = (rng.permutation(64).reshape(8, 8) >= 64 * share).repeat(4, axis=0).repeat(4, axis=1)
        image = images[0].transpose(2, 0, 1)
        expected = road.NoisyLinearImputer(noise=0)(torch.tensor(image), torch.tensor(known.astype(np.float32)))
        found = np.asarray(faithfulness.impute(image[None], known[None]))[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)
