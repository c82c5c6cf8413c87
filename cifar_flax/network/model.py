"""ResNet for small images with layer normalisation over height, width and channels.

The forward pass splits at any named stage into two pure functions, so that a gradient with
respect to a feature map is `jax.grad` of the second one:

    activation = features(model, params, images, stage="stage4")    # [B, 8, 8, 512]
    logits     = head(model, params, activation, stage="stage4")    # [B, 10]
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.data.spec import CIFAR10, DataSpec
from cifar_flax.network.forms import PLAIN, Forms

# PyTorch's padding=1. Flax's "SAME" pads a strided 3x3 convolution (0, 1) and would shift the grid.
_PAD_3X3 = ((1, 1), (1, 1))
# He et al. 2015, fan-out: keeps the variance of the gradients, and is what torchvision's ResNet uses.
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def build_conv(features: int, size: int, stride: int, dtype: Any, forms: Forms) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=_PAD_3X3 if size == 3 else "VALID",
        use_bias=False,  # the norm that follows subtracts any constant
        kernel_init=_he_fan_out,
        dtype=dtype,
        precision=_precision(dtype),
        conv_general_dilated=forms.conv_general_dilated,
    )


def _precision(dtype: Any) -> jax.lax.Precision | None:
    """float32 is float32: an accelerator would multiply in TF32 or bfloat16 unless told not to."""
    return None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


class Affine(nn.Module):
    """A scale and a bias a channel, and no statistics: what a trained BatchNorm does to an image."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        scale, bias = (a.reshape((1,) * (x.ndim - 1) + a.shape) for a in (scale, bias))
        return (x * scale + bias).astype(self.dtype)  # in float32 or wider, as the parameters are


def build_norm(kind: str, dtype: Any, forms: Forms) -> nn.Module:
    """Affine, or over height, width and channels, then a scale and a bias a channel: PyTorch's GroupNorm(1, C)."""
    if kind == "affine":
        return Affine(dtype)
    return forms.layer_norm(reduction_axes=(-3, -2, -1), feature_axes=-1, epsilon=1e-5, dtype=dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    channels: int
    stride: int
    project: bool
    dtype: Any
    forms: Forms
    norm_kind: str

    def setup(self):
        self.conv1 = build_conv(self.channels, 3, self.stride, self.dtype, self.forms)
        self.norm1 = build_norm(self.norm_kind, self.dtype, self.forms)
        self.conv2 = build_conv(self.channels, 3, 1, self.dtype, self.forms)
        self.norm2 = build_norm(self.norm_kind, self.dtype, self.forms)
        if self.project:
            self.shortcut_conv = build_conv(self.channels, 1, self.stride, self.dtype, self.forms)
            self.shortcut_norm = build_norm(self.norm_kind, self.dtype, self.forms)

    def __call__(self, x):
        y = self.forms.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.project else x
        return self.forms.relu(y + shortcut)


class ResNet(nn.Module):
    """A ResNet whose stages are named `stem`, `stage1`, ..., `stageN`.

    Attributes:
      widths: channels of each stage; the stem has the first stage's.
      strides: stride of each stage's first block.
      blocks_per_stage: basic blocks of each stage; () for two in each.
      dtype: dtype of the activations; parameters, statistics and logits are float32, or this if wider.
      forms: the operations that it computes with.
      spec: the data set that it is for: its classes, the size of its images, and how they are normalised.
      norm_kind: `layer`; or `affine`, which is what a network with BatchNorm becomes.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    strides: Sequence[int] = (1, 2, 2, 1)
    blocks_per_stage: Sequence[int] = ()
    dtype: Any = jnp.float32
    forms: Forms = PLAIN
    spec: DataSpec = CIFAR10
    norm_kind: str = "layer"  # not `norm`, which is the stem's norm, and its name among the parameters

    def __post_init__(self):
        # A list has no hash, and a network is a static argument.
        for name in ("widths", "strides", "blocks_per_stage"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.widths))))

    def blocks(self, first_stage: int = 0) -> list[tuple[str, int, int]]:
        """Name, width and stride of each block in the stages that follow the first `first_stage`."""
        return [
            (f"stage{i + 1}_block{j + 1}", self.widths[i], self.strides[i] if j == 0 else 1)
            for i in range(first_stage, len(self.widths))
            for j in range(self.blocks_per_stage[i] if self.blocks_per_stage else 2)
        ]

    def setup(self):
        self.conv = build_conv(self.widths[0], 3, 1, self.dtype, self.forms)
        self.norm = build_norm(self.norm_kind, self.dtype, self.forms)
        channels = self.widths[0]
        for block, width, stride in self.blocks():
            project = stride != 1 or channels != width
            module = BasicBlock(width, stride, project, self.dtype, self.forms, self.norm_kind)
            setattr(self, block, module)
            channels = width
        # At least float32: a softmax over bfloat16 logits loses the small differences Grad-CAM looks at.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        self.linear = nn.Dense(self.spec.num_classes, dtype=wide, precision=_precision(wide))

    def features(self, x, stage: str):
        x = self.forms.relu(self.norm(self.conv(x.astype(self.dtype))))
        later = len(self.blocks(first_stage=self.stage_names.index(stage)))
        return self._run(x, self.blocks()[: len(self.blocks()) - later])

    def head(self, activation, stage: str):
        x = self._run(activation, self.blocks(first_stage=self.stage_names.index(stage)))
        return self.linear(x.astype(self.linear.dtype).mean(axis=(-3, -2)))

    def _run(self, x, blocks: list[tuple[str, int, int]]):
        for name, _, _ in blocks:
            x = getattr(self, name)(x)
        return x

    def __call__(self, x):
        return self.head(self.features(x, "stem"), "stem")


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: ResNet, key: jax.Array):
    """Draws the parameters: a nested dict of float32 arrays."""
    return model.init(key, jnp.zeros((1, *model.spec.image_shape)))["params"]


def param_shapes(model: ResNet):
    """The shapes and dtypes of `init_params`, without computing anything."""
    return init_params.eval_shape(model, jax.random.key(0))


def forward(model: ResNet, params, images: jax.Array) -> jax.Array:
    """Logits of normalised images.

    Args:
      model: the network.
      params: its parameters, as `init_params` returns them.
      images: float `[B, H, W, 3]`, normalised by `model.spec`.

    Returns:
      float32 `[B, num_classes]`.
    """
    return model.apply({"params": params}, images)  # type: ignore[return-value]


def features(model: ResNet, params, images: jax.Array, *, stage: str) -> jax.Array:
    """The activation `[B, h, w, C]` that leaves the named stage: the first half of `forward`."""
    return model.apply({"params": params}, images, stage, method="features")  # type: ignore[return-value]


def head(model: ResNet, params, activation: jax.Array, *, stage: str) -> jax.Array:
    """Logits `[B, num_classes]` from the activation that left `stage`: the second half of `forward`."""
    return model.apply({"params": params}, activation, stage, method="head")  # type: ignore[return-value]


class Layer(NamedTuple):
    """A row of the layer table: its path, its kind, its output's shape, its own parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_params: int


def layer_table(model: ResNet) -> list[Layer]:
    """The layers in the order they run, each block after its parts, its shortcut last among these.

    Shapes are those of one image, found without computing anything.
    """

    def init(key):
        return model.init(key, jnp.zeros((1, *model.spec.image_shape)), capture_intermediates=True)

    variables = jax.eval_shape(init, jax.random.key(0))
    params, outputs = variables["params"], variables["intermediates"]
    kinds = {"conv": "Conv2d", "norm": "LayerNorm", "linear": "Linear"}
    if model.norm_kind == "affine":
        kinds["norm"] = "Affine"

    def row(name: str, tree, output) -> Layer:
        kind = next((kinds[word] for word in kinds if word in name), "BasicBlock")
        own = sum(x.size for x in tree.values() if hasattr(x, "size"))
        return Layer(name, kind, output["__call__"][0].shape[1:], own)

    rows = [row(name, params[name], outputs[name]) for name in ("conv", "norm")]
    parts = ("conv1", "norm1", "conv2", "norm2", "shortcut_conv", "shortcut_norm")
    for block, _, _ in model.blocks():
        tree, output = params[block], outputs[block]
        rows += [row(f"{block}.{part}", tree[part], output[part]) for part in parts if part in tree]
        rows.append(row(block, tree, output))
    return [*rows, row("linear", params["linear"], outputs["linear"])]


def format_layer_table(model: ResNet) -> str:
    """The layer table as text, with totals and sizes in MB (2**20 bytes) of float32 numbers."""
    rows = layer_table(model)
    lines = [f"{'Layer':<30}{'Kind':<12}{'Output (H, W, C)':<20}{'Parameters':>12}"]
    lines += [f"{row.name:<30}{row.kind:<12}{row.shape!s:<20}{row.num_params:>12,}" for row in rows]
    total = sum(row.num_params for row in rows)
    outputs = sum(math.prod(row.shape) for row in rows)
    megabytes = {"input": math.prod(model.spec.image_shape), "outputs": outputs, "parameters": total}
    sizes = ", ".join(f"{name} {4 * count / 2**20:.2f} MB" for name, count in megabytes.items())
    return "\n".join([*lines, "", f"{len(rows)} layers, {total:,} parameters, all trainable", f"One image: {sizes}"])
