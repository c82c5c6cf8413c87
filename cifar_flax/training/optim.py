"""The optimizer, and ReduceLROnPlateau beside it.

The two are apart because they tick at different rates: the optimizer once a step, the plateau
once an epoch, on that epoch's own value. `train_step` multiplies its updates by the plateau's
scale; `advance_plateau` moves the scale.

Against `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", threshold_mode="rel")` the same
decisions are made where `patience` here is PyTorch's plus one: PyTorch lowers the rate when the
number of bad epochs exceeds its patience, Optax when it reaches it.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, ReduceLROnPlateauState


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """A rate that rises linearly over `warmup_steps` steps and then stays at `learning_rate`."""
    return optax.warmup_constant_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)


def _is_kernel(params):
    """Norm scales and biases are left out of weight decay: shrinking them only rescales the network."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _is_convolution(params):
    return jax.tree.map(lambda x: x.ndim == 4, params)


def _muon(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon for kernels `[h, w, in, out]`, each seen as a matrix from its `h * w * in` inputs to its outputs.

    Kernels of one shape take their step as one array: an accelerator then starts one operation for all of
    them, where each alone would not keep it busy.
    """

    def as_matrices(stacks):
        return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=(1, 2, 3), output_axis=4), stacks)

    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=as_matrices)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        stacks, state = muon.update(_stack(updates), state._replace(mu=_stack(state.mu)))
        return _unstack(stacks, updates), state._replace(mu=_unstack(state.mu, updates))

    return optax.chain(
        optax.GradientTransformation(muon.init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _stack(tree: Any) -> dict[tuple[int, ...], jax.Array]:
    """The arrays of each shape as one array `[n, *shape]`."""
    stacks = collections.defaultdict(list)
    for x in jax.tree.leaves(tree):
        stacks[x.shape].append(x)
    return {shape: jnp.stack(arrays) for shape, arrays in stacks.items()}


def _unstack(stacks: Any, like: Any) -> Any:
    """The inverse of `_stack`, for a tree `like` the one that was stacked."""
    arrays = {shape: iter(stack) for shape, stack in stacks.items()}
    return jax.tree.map(lambda x: next(arrays[x.shape]), like)


def build_optimizer(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float,
    muon_learning_rate: optax.Schedule | None = None,
    muon_weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with momentum, or Muon for the convolutions and SGD for the rest; apart from the plateau.

    Args:
      learning_rate: SGD's rate at each step, before the plateau's scale.
      momentum: decay of the velocity; 0 for none.
      nesterov: look ahead along the velocity.
      weight_decay: added to the gradient of convolution and dense kernels, as PyTorch's SGD does.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      muon_learning_rate: Muon's rate at each step: about the spectral norm of a kernel's change.
        None leaves the convolutions to SGD.
      muon_weight_decay: share of a kernel that Muon takes away a step, times its rate.

    Returns:
      The gradient transformation; its updates are to be scaled by the plateau and added.

    References:
      Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_is_kernel),
        optax.sgd(learning_rate, momentum or None, nesterov),
    )
    if muon_learning_rate is not None:
        optimizer = optax.partition(
            {True: _muon(muon_learning_rate, muon_weight_decay), False: optimizer}, _is_convolution
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), optimizer)


def build_plateau(
    *, patience: int, factor: float, rtol: float, cooldown: int, min_scale: float
) -> optax.GradientTransformationExtraArgs:
    """ReduceLROnPlateau: see `optax.contrib.reduce_on_plateau`, and the module's note on PyTorch."""
    return optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience, rtol=rtol, atol=0.0, cooldown=cooldown, min_scale=min_scale
    )


def advance_plateau(
    plateau: optax.GradientTransformationExtraArgs, state: ReduceLROnPlateauState, value: jax.typing.ArrayLike
) -> ReduceLROnPlateauState:
    """The plateau's state after an epoch whose monitored value, a scalar to minimise, was `value`."""
    return plateau.update((), state, value=jnp.asarray(value, jnp.float32))[1]  # type: ignore[return-value]
