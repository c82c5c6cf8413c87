"""From a trained network to its predictions, a choice of images and their class activation maps."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.data import normalize, require_images, require_labels
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve
from cifar_flax.explaining import cam
from cifar_flax.network import model
from cifar_flax.network.model import NUM_CLASSES, ResNet
from cifar_flax.training.trained import Network

SORTS = ("index", "confidence", "loss")
_BATCH_SIZE = 250
# Few enough to stay on one core: XLA:CPU comes to a stop where several devices are in LAPACK at once.
_EIGEN_BATCH_SIZE = 50
# Numbers in the first stage's map of a batch: it bounds the memory that wide networks take.
_LARGEST_MAP = 2**22


class TestSet(NamedTuple):
    """Images to explain.

    Attributes:
      name: what they are, for titles.
      images: uint8 `[N, 32, 32, 3]`.
      labels: int `[N]`.
      indices: int `[N]`, their places in the official test set.
      class_names: the ten names.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    class_names: Sequence[str]


def compiled(network: ResNet) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with the compiler's options that this machine has for a network's dtype."""
    options = resolve(jnp.dtype(network.dtype).name, 1).compiler_options
    return functools.partial(jax.jit, compiler_options=options)


# ---- predictions ---------------------------------------------------------------------------------


def spread(params: Any, batch: Sequence[Any]) -> tuple[Any, Sequence[jax.Array]]:
    """Parameters whole on each of the devices, and arrays of equal length, of which each device has a part."""
    execution = resolve("float32", len(batch[0]))
    return jax.device_put(params, execution.replicated), jax.device_put(batch, execution.by_batch)


def in_batches(
    function: Callable[..., jax.Array],
    params: Any,
    arrays: tuple[np.ndarray, ...],
    on_batch: Callable[[int], None],
    methods: Sequence[str] = (),
) -> np.ndarray:
    """Applies a jitted function of parameters and slices of arrays, the last one padded, and joins the results.

    Args:
      function: of the parameters and the slices.
      params: the network's.
      arrays: `[N, ...]` each.
      on_batch: called with the number of images done since the last call.
      methods: the maps that the function makes, if any.
    """
    count = len(arrays[0])
    batch_size = _EIGEN_BATCH_SIZE if "eigen-cam" in methods else _BATCH_SIZE
    an_image = math.prod(model.IMAGE_SHAPE[:2]) * params["conv"]["kernel"].shape[-1]
    size = min(batch_size, count, max(1, _LARGEST_MAP // an_image))
    results = []
    for start in range(0, count, size):
        parts = [array[start : start + size] for array in arrays]
        length = len(parts[0])
        padded = [np.pad(part, [(0, size - length)] + [(0, 0)] * (part.ndim - 1)) for part in parts]
        params, batch = spread(params, padded)  # parameters that are there already stay
        results.append(np.asarray(function(params, *batch))[:length])
        on_batch(length)
    return np.concatenate(results)


def build_logits(network: ResNet) -> Callable[..., jax.Array]:
    """A compiled function of parameters and images `[B, 32, 32, 3]`: a batch of `predict`."""

    @compiled(network)
    def logits(params, images):
        return model.forward(network, params, normalize(images))

    return logits


def predict(network: Network, images: np.ndarray, on_batch: Callable[[int], None] = lambda n: None) -> np.ndarray:
    """Logits of images.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      on_batch: called with the number of images done since the last call.

    Returns:
      float32 `[N, 10]`.

    Raises:
      UserError: the images are not such, or the logits are not finite.
    """
    images = require_images(images)
    logits = in_batches(build_logits(network.model), network.params, (images,), on_batch)
    _require_finite(logits, "logits")
    return logits


def _require_finite(numbers: np.ndarray, what: str) -> None:
    """Refuses numbers `[N, ...]` of N images that are not finite, since nothing can be said of them.

    Raises:
      UserError: so it is.
    """
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the network's {what} are not finite for {int((~finite).sum())} of {len(numbers)} images: "
            "its parameters are too large; use an earlier checkpoint"
        )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits `[N, 10]`, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def select(
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    correct: bool,
    sort: str = "index",
    true: int | None = None,
    predicted: int | None = None,
) -> np.ndarray:
    """Positions of the images that the network gets right, or wrong, in the order asked for.

    Args:
      labels: int `[N]`.
      logits: float `[N, 10]`.
      correct: whether to choose those it gets right.
      sort: `index`; `confidence`, the most confident first; `loss`, the largest first.
      true: only images of this class.
      predicted: only images taken for this class.

    Returns:
      int positions.
    """
    p = probabilities(logits)
    guesses = logits.argmax(axis=1)
    chosen = (guesses == labels) == correct
    if true is not None:
        chosen &= labels == true
    if predicted is not None:
        chosen &= guesses == predicted
    positions = np.flatnonzero(chosen)
    keys = {
        "index": positions,
        "confidence": -p[positions, guesses[positions]],
        "loss": p[positions, labels[positions]],
    }
    return positions[np.argsort(keys[sort], kind="stable")]


# ---- maps ----------------------------------------------------------------------------------------

# Row of an image's maps that holds the map of predicted minus true; rows 0 to 9 are the classes.
DIFFERENCE = NUM_CLASSES


def build_maps(network: ResNet, stage: str, method: str) -> Callable[..., jax.Array]:
    """A compiled function of parameters, images `[B, 32, 32, 3]`, labels and predictions: a batch of `explain`."""
    to_map = jax.vmap(jax.vmap(cam.METHODS[method], in_axes=(None, 0)))

    @compiled(network)
    def maps(params, images, labels, predicted):
        head = functools.partial(model.head, network, params, stage=stage)
        activations = model.features(network, params, normalize(images), stage=stage)
        classes = jnp.broadcast_to(jnp.eye(NUM_CLASSES), (len(images), NUM_CLASSES, NUM_CLASSES))
        difference = jax.nn.one_hot(predicted, NUM_CLASSES) - jax.nn.one_hot(labels, NUM_CLASSES)
        targets = jnp.concatenate([classes, difference[:, None]], axis=1)
        return to_map(activations, cam.target_gradients(head, activations, targets))

    return maps


def explain(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    *,
    stage: str,
    method: str,
    on_batch: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """Raw maps of every class, and of predicted minus true, for each image.

    Args:
      network: the network.
      images: uint8 `[N, 32, 32, 3]`.
      labels: int `[N]`.
      predicted: int `[N]`.
      stage: the stage whose activation is explained.
      method: one of `cam.METHODS`.
      on_batch: called with the number of images done since the last call.

    Returns:
      float32 `[N, 11, h, w]`: the ten classes, then `DIFFERENCE`.

    Raises:
      UserError: images, labels or predictions are not such, or the maps are not finite.
    """
    if not len(images):
        return np.zeros((0, NUM_CLASSES + 1, 1, 1), np.float32)
    images = require_images(images)
    labels, predicted = require_labels(labels, len(images)), require_labels(predicted, len(images), "predictions")
    maps = build_maps(network.model, stage, method)
    raw = in_batches(maps, network.params, (images, labels, predicted), on_batch, [method])
    _require_finite(raw, "maps")
    return raw
