"""ResNet for 32x32 images with layer normalisation over height, width and channels.

The forward pass splits at any named stage into two pure functions, so that a gradient with
respect to a feature map is `jax.grad` of the second one:

    activation = features(model, params, images, stage="stage4")    # [B, 8, 8, 512]
    logits     = head(model, params, activation, stage="stage4")    # [B, 10]
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax import convolution
from cifar_flax.norm import layer_norm

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10

# PyTorch's padding=1. Flax's "SAME" pads a strided 3x3 convolution (0, 1) and would shift the grid.
_PAD_3X3 = ((1, 1), (1, 1))
# He et al. 2015, fan-out: keeps the variance of the gradients, and is what torchvision's ResNet uses.
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features: int, size: int, stride: int, dtype: Any, factors: Any) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=_PAD_3X3 if size == 3 else "VALID",
        use_bias=False,  # the norm that follows subtracts any constant
        kernel_init=_he_fan_out,
        dtype=dtype,
        conv_general_dilated=convolution.for_flax(factors) if jax.default_backend() == "cpu" else None,
    )


def _rows(x: jax.Array) -> jax.Array:
    """On a CPU, feature maps `[..., H, W, C]` with a row's pixels in one axis, `[..., H, W * C]`; else the same maps.

    XLA:CPU's loops run over the last axis: over 16 channels they are five times as slow as over 512 numbers.
    """
    return x.reshape(*x.shape[:-2], -1) if jax.default_backend() == "cpu" else x


def _kept(x: jax.Array) -> jax.Array:
    """On a CPU, an array that is computed once, in the shape that it has.

    The gradient of a convolution's kernel reads the convolution's input transposed. Without the barrier
    XLA:CPU fuses that transposition with the norms, residuals and ReLUs that led to the input, and
    computes them all again, in an order that misses the cache.
    """
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


class LayerNorm(nn.Module):
    """Layer normalisation over height, width and channels, a scale and a bias a channel: PyTorch's GroupNorm(1, C)."""

    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        rows = _rows(x)
        scale, bias = (_kept(jnp.tile(a, rows.shape[-1] // x.shape[-1])) for a in (scale, bias))
        normalised = layer_norm(_kept(rows), scale, bias, rows.ndim - x.ndim + 3)
        return normalised.reshape(x.shape)  # type: ignore[attr-defined]


def _relu(*maps: jax.Array) -> jax.Array:
    """ReLU of a sum of feature maps."""
    rows = sum(map(_rows, maps[1:]), _rows(maps[0]))
    return _kept(nn.relu(rows)).reshape(maps[0].shape)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    channels: int
    stride: int
    project: bool
    zero_init_residual: bool
    dtype: Any
    factors: Any

    def setup(self):
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        self.conv1 = _conv(self.channels, 3, self.stride, self.dtype, self.factors)
        self.norm1 = LayerNorm()
        self.conv2 = _conv(self.channels, 3, 1, self.dtype, self.factors)
        self.norm2 = LayerNorm(last_scale)
        if self.project:
            self.shortcut_conv = _conv(self.channels, 1, self.stride, self.dtype, self.factors)
            self.shortcut_norm = LayerNorm()

    def __call__(self, x):
        y = _relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.project else x
        return _relu(y, shortcut)


class ResNet(nn.Module):
    """A ResNet whose stages are named `stem`, `stage1`, ..., `stageN`.

    Attributes:
      widths: channels of each stage; the stem has the first stage's.
      strides: stride of each stage's first block.
      blocks_per_stage: basic blocks in each stage.
      num_classes: length of the logits.
      zero_init_residual: start the last norm scale of each block at 0, so that a block is the
        identity at first (Goyal et al. 2017).
      dtype: dtype of the activations; parameters, statistics and logits are float32, or this if wider.
      factors: dtype to which a CPU rounds what its wide convolutions multiply, the sums being of `dtype`; None
        for no rounding.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    strides: Sequence[int] = (1, 2, 2, 1)
    blocks_per_stage: int = 2
    num_classes: int = NUM_CLASSES
    zero_init_residual: bool = False
    dtype: Any = jnp.float32
    factors: Any = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.widths))))

    def _blocks(self, first_stage: int = 0) -> list[tuple[str, int, int]]:
        """Name, width and stride of each block in the stages that follow the first `first_stage`."""
        return [
            (f"stage{i + 1}_block{j + 1}", self.widths[i], self.strides[i] if j == 0 else 1)
            for i in range(first_stage, len(self.widths))
            for j in range(self.blocks_per_stage)
        ]

    def setup(self):
        self.conv = _conv(self.widths[0], 3, 1, self.dtype, self.factors)
        self.norm = LayerNorm()
        channels = self.widths[0]
        for block, width, stride in self._blocks():
            project = stride != 1 or channels != width
            options = (project, self.zero_init_residual, self.dtype, self.factors)
            setattr(self, block, BasicBlock(width, stride, *options))
            channels = width
        # At least float32: a softmax over bfloat16 logits loses the small differences Grad-CAM looks at.
        self.linear = nn.Dense(self.num_classes, dtype=jnp.promote_types(self.dtype, jnp.float32))

    def features(self, x, stage: str):
        x = _kept(_rows(x.astype(self.dtype))).reshape(x.shape)
        x = _relu(self.norm(self.conv(x)))
        num_blocks = self.stage_names.index(stage) * self.blocks_per_stage
        return self._run(x, self._blocks()[:num_blocks])

    def head(self, activation, stage: str):
        x = self._run(activation, self._blocks(first_stage=self.stage_names.index(stage)))
        return self.linear(x.astype(self.linear.dtype).mean(axis=(-3, -2)))

    def _run(self, x, blocks: list[tuple[str, int, int]]):
        for name, _, _ in blocks:
            x = getattr(self, name)(x)
        return x

    def __call__(self, x):
        return self.head(self.features(x, "stem"), "stem")


def init_params(model: ResNet, key: jax.Array):
    """Draws the parameters: a nested dict of float32 arrays."""
    return model.init(key, jnp.zeros((1, *IMAGE_SHAPE)))["params"]


def forward(model: ResNet, params, images: jax.Array) -> jax.Array:
    """Logits of normalised images.

    Args:
      model: the network.
      params: its parameters, as `init_params` returns them.
      images: float `[B, 32, 32, 3]`, normalised.

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
        return model.init(key, jnp.zeros((1, *IMAGE_SHAPE)), capture_intermediates=True)

    variables = jax.eval_shape(init, jax.random.key(0))
    params, outputs = variables["params"], variables["intermediates"]
    kinds = {"conv": "Conv2d", "norm": "LayerNorm", "linear": "Linear"}

    def row(name: str, tree, output) -> Layer:
        kind = next((kinds[word] for word in kinds if word in name), "BasicBlock")
        own = sum(x.size for x in tree.values() if hasattr(x, "size"))
        return Layer(name, kind, output["__call__"][0].shape[1:], own)

    rows = [row(name, params[name], outputs[name]) for name in ("conv", "norm")]
    parts = ("conv1", "norm1", "conv2", "norm2", "shortcut_conv", "shortcut_norm")
    for block in sorted(name for name in params if name.startswith("stage")):
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
    megabytes = {"input": math.prod(IMAGE_SHAPE), "outputs": outputs, "parameters": total}
    sizes = ", ".join(f"{name} {4 * count / 2**20:.2f} MB" for name, count in megabytes.items())
    return "\n".join([*lines, "", f"{len(rows)} layers, {total:,} parameters, all trainable", f"One image: {sizes}"])
