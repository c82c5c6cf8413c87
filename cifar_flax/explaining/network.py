"""A network that can be asked: what it predicts, and which places of an image speak for a class."""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cifar_flax import config
from cifar_flax.data import DataSpec, pictures
from cifar_flax.errors import UserError, is_whole
from cifar_flax.execution import Execution, resolve
from cifar_flax.explaining import cam
from cifar_flax.explaining.maps import Maps
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.network import model as model_lib
from cifar_flax.network.build import build_model, checked
from cifar_flax.network.model import ResNet
from cifar_flax.training import trained
from cifar_flax.training.trained import Trained

_BATCH_SIZE = 250
_CHECKED_IMAGES = 32  # by which a CPU's convolutions in bfloat16 are compared with those in float32
# Few enough to stay on one core: XLA:CPU comes to a stop where several devices are in LAPACK at once.
_EIGEN_BATCH_SIZE = 50
# Numbers in the first stage's map of a batch: it bounds the memory that wide networks take.
_LARGEST_MAP = 2**22
NO_CLASS = -1

# Told how many more images are done.
OnBatch = Callable[[int], None]
# (what, total) to a function that is told how many more are done.
Progress = Callable[[str, int], OnBatch]


def no_progress(what: str, total: int) -> OnBatch:
    """A `Progress` that shows nothing."""
    del what, total
    return lambda count: None


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network on this machine.

    Attributes:
      trained: what was trained: parameters, config, data set, history.
      model: its architecture, in the form for this machine.
      execution: the precision and options of its programs; a batch may be spread over more devices.
    """

    trained: Trained
    model: ResNet
    execution: Execution
    _compiled: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def params(self) -> Any:
        return self.trained.params

    @property
    def spec(self) -> DataSpec:
        """The data set that it was trained on."""
        return self.model.spec

    @property
    def name(self) -> str:
        return self.trained.name

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of its training, one dict an epoch; empty if unknown."""
        return self.trained.history

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its stages, from `stem` on."""
        return self.model.stage_names

    def identity(self) -> dict[str, Any]:
        """What says which network this is: its name, its parameters' SHA-256 and its kind."""
        return {
            "checkpoint": self.name,
            "checkpoint_sha256": self.trained.digest,
            "model": config.architecture(self.trained.config),
        }

    # ---- pure functions of normalised images ---------------------------------------------------

    def forward(self, images: jax.Array) -> jax.Array:
        """Logits `[B, C]` of images `[B, H, W, 3]` that `spec.normalize` has normalised."""
        self._require_normalised(images)
        return model_lib.forward(self.model, self.params, images)

    def features(self, images: jax.Array, *, stage: str) -> jax.Array:
        """The activation `[B, h, w, K]` that leaves a stage: the first half of `forward`."""
        self._require_normalised(images)
        self.require_known(stage, [])
        return model_lib.features(self.model, self.params, images, stage=stage)

    def head(self, activation: jax.Array, *, stage: str) -> jax.Array:
        """Logits `[B, C]` from the activation that left a stage: the second half of `forward`."""
        self.require_known(stage, [])
        return model_lib.head(self.model, self.params, activation, stage=stage)

    def _require_normalised(self, images: jax.Array) -> None:
        shape = self.spec.image_shape
        if not jnp.issubdtype(jnp.result_type(images), jnp.floating) or jnp.shape(images)[1:] != shape:
            raise UserError(
                f"images are {jnp.result_type(images)} {list(jnp.shape(images))}: expected what spec.normalize makes "
                f"of [B, {', '.join(map(str, shape))}]; predict takes uint8"
            )

    # ---- many images -----------------------------------------------------------------------------

    def compiled(self, build: Callable[..., Callable[..., jax.Array]], *arguments: Any) -> Callable[..., jax.Array]:
        """`build(model, *arguments)`, a function of parameters and arrays, compiled once for what this runs on."""
        key = (build, arguments)
        if key not in self._compiled:
            function = build(self.model, *arguments)
            self._compiled[key] = jax.jit(function, compiler_options=self.execution.compiler_options)
        return self._compiled[key]

    def in_batches(
        self,
        function: Callable[..., jax.Array],
        arrays: Sequence[np.ndarray],
        on_batch: OnBatch = lambda count: None,
        *,
        methods: Sequence[str] = (),
        params: Any = None,
    ) -> np.ndarray:
        """Applies a function of parameters and slices of arrays, the last one padded, and joins the results.

        Args:
          function: as `compiled` returns it.
          arrays: `[N, ...]` each, the first of images.
          on_batch: called with the number of images done since the last call.
          methods: of the maps that the function makes, if it makes any.
          params: in place of the network's own.
        """
        count = len(arrays[0])
        batch_size = _EIGEN_BATCH_SIZE if "eigen-cam" in methods else _BATCH_SIZE
        an_image = math.prod(arrays[0].shape[1:3]) * self.model.widths[0]
        size = min(batch_size, count, max(1, _LARGEST_MAP // an_image))
        spread = resolve(self.execution.precision, size)  # over as many devices as divide it
        params = jax.device_put(self.params if params is None else params, spread.replicated)
        results = []
        for start in range(0, count, size):
            parts = [array[start : start + size] for array in arrays]
            length = len(parts[0])
            padded = [np.pad(part, [(0, size - length)] + [(0, 0)] * (part.ndim - 1)) for part in parts]
            batch = jax.device_put(padded, spread.by_batch)
            results.append(np.asarray(function(params, *batch))[:length])
            on_batch(length)
        return np.concatenate(results)

    def predict(
        self, images: Any, labels: np.ndarray | None = None, on_batch: OnBatch = lambda count: None
    ) -> Predictions:
        """What it says of images.

        Args:
          images: uint8 `[N, H, W, 3]`; or a picture, or several, each a file's path or an image of Pillow's, whose
            middle square is brought to the network's size.
          labels: int `[N]`, their true classes, if these are known.
          on_batch: called with the number of images done since the last call.

        Raises:
          UserError: the images or labels are not those of its data set, or the logits are not finite.
        """
        images = self.to_images(images)
        if labels is not None:
            labels = self.spec.check_labels(labels, len(images))
        outputs = self.in_batches(self.compiled(build_outputs), (images,), on_batch)
        logits, features = np.split(outputs, [self.spec.num_classes], axis=1)
        _require_finite(logits, "logits")
        return Predictions(logits, self.spec.class_names, labels, features)

    def channel_means(
        self, images: np.ndarray, stages: Sequence[str], on_batch: OnBatch = lambda count: None
    ) -> np.ndarray:
        """What stages see of uint8 images `[N, H, W, 3]`: the mean of each of their channels, float32 `[N, K]`."""
        return self.in_batches(self.compiled(build_means, tuple(stages)), (images,), on_batch)

    def explain(
        self,
        images: Any,
        target: str | int | Sequence[str | int] | np.ndarray | None = None,
        *,
        stage: str | None = None,
        method: str = "grad-cam",
    ) -> Maps:
        """Which places of images speak for a class.

        Args:
          images: as for `predict`.
          target: a class, by name or number, or one for each image; None for the one that it predicts.
          stage: whose activation is explained; None for the last one.
          method: one of `cam.METHODS`.

        Raises:
          UserError: the images are not such, or there is no such class, stage or method.

        Example:
          >>> import cifar_flax
          >>> images = cifar_flax.open_dataset("sample").test.images[:2]
          >>> cifar_flax.load("compact").explain(images, target="cat").raw.shape
          (2, 8, 8)
        """
        images = self.to_images(images)
        predictions = self.predict(images)
        if target is None:
            classes = predictions.predicted
        else:
            given = [target] * len(images) if np.ndim(target) == 0 else np.asarray(target, object)
            classes = np.array([self.label_of(one) for one in given], int)
            if len(classes) != len(images):
                raise UserError(f"target names {len(classes)} classes: expected one, or one for each of {len(images)}")
        stage = stage or self.stages[-1]
        raw = self.maps(images, classes[:, None], stage=stage, methods=[method])[:, 0, 0]
        names = [self.spec.class_names[label] for label in classes]
        return Maps(raw, images, names, predictions.names, stage, method)

    def to_images(self, images: Any) -> np.ndarray:
        """What `predict` takes as uint8 `[N, H, W, 3]`.

        Raises:
          UserError: it is none of that, or a file cannot be read.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        if isinstance(images, list | tuple) and any(isinstance(x, str | os.PathLike | Image.Image) for x in images):
            for i, one in enumerate(images):
                if not isinstance(one, str | os.PathLike | Image.Image):
                    raise UserError(f"picture {i} is a {type(one).__name__}: expected a file's path or Pillow's image")
            size = self.spec.image_size
            images = np.stack(
                [
                    pictures.fit(pictures.whole_of(one, f"picture {i}"), size)
                    if isinstance(one, Image.Image)
                    else pictures.read(Path(one), size).pixels
                    for i, one in enumerate(images)
                ]
            )
        return self.spec.check_images(images)

    def label_of(self, given: Any, what: str = "target") -> int:
        """The label of a class that is given by name or label.

        Raises:
          UserError: it is none of the classes; `what` was to name one.
        """
        names = self.spec.class_names
        if isinstance(given, str):
            if given in names:
                return names.index(given)
        elif is_whole(given) and 0 <= given < len(names):
            return int(given)
        some = ", ".join([*names[:20], "..."] if len(names) > 20 else names)
        raise UserError(f"{what} {given} is no class of {self.spec.name}: expected one of {some}")

    def require_known(self, stage: str, methods: Sequence[str]) -> None:
        """Refuses a stage that the network has not, and a method that is none: a `UserError`."""
        if stage not in self.stages:
            raise UserError(f"stage {stage} is not known: expected one of {', '.join(self.stages)}")
        for method in methods:
            if method not in [*cam.METHODS]:
                raise UserError(f"method {method} is not known: expected one of {', '.join(cam.METHODS)}")

    def maps(
        self,
        images: Any,
        classes: np.ndarray,
        *,
        stage: str,
        methods: Sequence[str],
        against: np.ndarray | None = None,
        on_batch: OnBatch = lambda count: None,
        params: Any = None,
    ) -> np.ndarray:
        """Raw maps of given classes, by one or more methods.

        Args:
          images: uint8 `[N, H, W, 3]`; a map can be had of other sizes than the data set's too.
          classes: int `[N, T]`, which are explained of each image.
          stage: whose activation is explained.
          methods: of `cam.METHODS`.
          against: int `[N, T]`, the class whose logit is subtracted from the explained one, or `NO_CLASS`. By a method
            that is not linear in the gradient it is the class's map that is subtracted: of the difference of two
            logits such a method would only show what speaks for the first.
          on_batch: called with the number of images done since the last call.
          params: in place of the network's own.

        Returns:
          float32 `[N, T, methods, h, w]`.

        Raises:
          UserError: the images or classes are not such, the stage or method is not known, or a map is not finite.
        """
        self.require_known(stage, methods)
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"images are {images.dtype} {list(images.shape)}: expected uint8 [N, H, W, 3]")
        try:
            classes = np.asarray(classes)
            against = np.full_like(classes, NO_CLASS) if against is None else np.asarray(against)
        except ValueError as error:
            raise UserError("classes are of several lengths: expected as many for each image") from error
        if classes.ndim != 2 or len(classes) != len(images) or against.shape != classes.shape:
            raise UserError(f"classes are {list(classes.shape)}: expected [{len(images)}, T], T for each image")
        if not classes.size:
            return np.zeros((*classes.shape, len(methods), 1, 1), np.float32)
        for given in (classes.ravel(), against[against != NO_CLASS]):
            self.spec.check_labels(given, given.size, "classes")
        subtracted = (against != NO_CLASS).any(axis=0)
        if subtracted.any() and not set(methods) <= set(cam.LINEAR):
            other = np.where(against == NO_CLASS, classes, against)[:, subtracted]
            every = np.concatenate([classes, other], axis=1)
            raw = self.maps(images, every, stage=stage, methods=methods, on_batch=on_batch, params=params)
            raw, other = np.split(raw, [classes.shape[1]], axis=1)
            raw[:, subtracted] -= np.where((against != NO_CLASS)[:, subtracted, None, None, None], other, 0)
            return raw
        function = self.compiled(build_maps, stage, tuple(methods))
        raw = self.in_batches(function, (images, classes, against), on_batch, methods=methods, params=params)
        _require_finite(raw, "maps")
        return raw


def load(path: str | os.PathLike | None = None, *, precision: str | None = None) -> Network:
    """Loads a network for this machine.

    Args:
      path: a run directory, one of its `checkpoints/<epoch>`, a `.safetensors` file, or the name of a published
        network, `compact` or `resnet18`; None for the first of these.
      precision: `float32` or `bfloat16`; None for the one in which training evaluated it, where this machine has it.

    Raises:
      UserError: there is none, or it is broken.
    """
    return prepare(trained.load(path), precision)


def prepare(found: Trained, precision: str | None = None) -> Network:
    """A trained network, made ready for this machine."""
    if precision not in (None, "float32", "bfloat16"):
        raise UserError(f"precision is {precision!r}: expected float32 or bfloat16")
    execution = resolve(precision or found.precision, 1)
    model = build_model(found.config, execution, found.spec)
    execution = checked(model, execution, _CHECKED_IMAGES, lambda line: warnings.warn(line, stacklevel=2))
    return Network(found, build_model(found.config, execution, found.spec), execution)


# ---- what is compiled --------------------------------------------------------------------------------


def build_outputs(model: ResNet) -> Callable[..., jax.Array]:
    """A function of parameters and uint8 images `[B, H, W, 3]`: logits, and what the last layer sees, `[B, C + K]`."""
    last = model.stage_names[-1]

    def outputs(params, images):
        activation = model_lib.features(model, params, model.spec.normalize(images), stage=last)
        logits = model_lib.head(model, params, activation, stage=last)
        return jnp.concatenate([logits, activation.astype(logits.dtype).mean(axis=(1, 2))], axis=1)

    return outputs


def build_means(model: ResNet, stages: Sequence[str]) -> Callable[..., jax.Array]:
    """A function of parameters and uint8 images `[B, H, W, 3]`: the mean of each channel of these stages, `[B, K]`."""

    def means(params, images):
        images = model.spec.normalize(images)
        found = [model_lib.features(model, params, images, stage=stage) for stage in stages]
        return jnp.concatenate([stage.mean(axis=(1, 2), dtype=jnp.float32) for stage in found], axis=1)

    return means


def build_maps(model: ResNet, stage: str, methods: Sequence[str]) -> Callable[..., jax.Array]:
    """A function of parameters, uint8 images `[B, H, W, 3]`, classes and classes against them `[B, T]`.

    It gives maps `[B, T, methods, h, w]`.
    """

    def to_maps(activation, gradient):
        return jnp.stack([cam.METHODS[method](activation, gradient) for method in methods])

    def maps(params, images, classes, against):
        head = functools.partial(model_lib.head, model, params, stage=stage)
        activations = model_lib.features(model, params, model.spec.normalize(images), stage=stage)
        # The one-hot row of `NO_CLASS` is all zeros.
        count = model.spec.num_classes
        targets = jax.nn.one_hot(classes, count) - jax.nn.one_hot(against, count)
        gradients = cam.target_gradients(head, activations, targets)
        return jax.vmap(jax.vmap(to_maps, in_axes=(None, 0)))(activations, gradients)

    return maps


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
