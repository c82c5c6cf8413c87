"""The optimizer, and ReduceLROnPlateau beside it.

The two are apart because they tick at different rates: the optimizer once a step, the plateau
once an epoch, on that epoch's own value. `train_step` multiplies its updates by the plateau's
scale; `advance_plateau` moves the scale.

The plateau makes the decisions of `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min",
threshold_mode="rel")`, with its names. PyTorch lowers the rate when the number of bad epochs exceeds
its patience, Optax when it reaches it: so Optax is given one more.
"""

import collections
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, ReduceLROnPlateauState


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """A rate that rises linearly over `warmup_steps` steps and then stays at `learning_rate`."""
    return optax.warmup_constant_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)


def _is_kernel(params):
    """Norm scales and biases are left out of weight decay: shrinking them only rescales the network."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _is_convolution(params):
    return jax.tree.map(lambda x: x.ndim == 4, params)


# Optax's defaults for Newton and Schulz's iteration, which are Jordan's.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Steps between two products with the whole matrix. With fewer digits than float32's, rounding errors in X'X would be
# multiplied by up to 500 over five steps, so X'X is computed anew after two.
_NEWTON_SCHULZ_STEPS = {"float32": (5,), "bfloat16": (2, 3)}
# In float32, matrices with as many rows and columns are iterated on in our form, and smaller ones in Optax's.
_LEAST_OF_WIDE = 128


def _muon(
    learning_rate: optax.Schedule, weight_decay: float, mesh: Mesh | None, precision: str
) -> optax.GradientTransformation:
    """Muon for kernels `[h, w, in, out]`, each seen as a matrix from its `h * w * in` inputs to its outputs.

    Kernels of one shape take their step as one array: an accelerator then starts one operation for all of
    them, where each alone would not keep it busy.
    """

    def scale_by_muon(steps: int, reduction_axis: Any, output_axis: Any) -> optax.GradientTransformation:
        axes = MuonDimensionNumbers(reduction_axis, output_axis)
        return optax.contrib.scale_by_muon(
            ns_steps=steps, weight_dimension_numbers=lambda stacks: jax.tree.map(lambda _: axes, stacks)
        )

    muon = scale_by_muon(sum(_NEWTON_SCHULZ_STEPS["float32"]), (1, 2, 3), 4)
    # Without a step Optax only divides by the Frobenius norm, whatever the axes. It would transpose a matrix of more
    # rows than columns; of these axes it does not.
    normalised_momentum = scale_by_muon(0, 1, (2, 3, 4))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        stacks, momenta = _stack(updates), _stack(state.mu)
        ours = {shape for shape in stacks if precision == "bfloat16" or (mesh is not None and _is_wide(shape))}
        parts: list[Any] = []
        for transformation, shapes in ((muon, stacks.keys() - ours), (normalised_momentum, ours)):
            chosen, kept = ({shape: tree[shape] for shape in shapes} for tree in (stacks, momenta))
            parts.append(transformation.update(chosen, state._replace(mu=kept)))
        (stacks, state), (normalised, our_state) = parts
        stacks |= _orthogonalized(normalised, mesh, precision)
        return _unstack(stacks, updates), state._replace(mu=_unstack(state.mu | our_state.mu, updates))

    return optax.chain(
        optax.GradientTransformation(muon.init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _is_wide(shape: tuple[int, ...]) -> bool:
    return min(math.prod(shape[:-1]), shape[-1]) >= _LEAST_OF_WIDE


def _orthogonalized(
    stacks: dict[tuple[int, ...], jax.Array], mesh: Mesh | None, precision: str
) -> dict[tuple[int, ...], jax.Array]:
    """Newton and Schulz's iteration, of less than half the multiplications that its plain form has.

    A step is X p(X'X) with a polynomial p, so several of them are X Q with a Q as small as X'X. Devices share
    the rows of X, and the matrices X'X of one size.

    Args:
      stacks: float32 `[n, h, w, in, out]` by the kernel's shape, each kernel of Frobenius norm 1.
      mesh: of the devices that share the work; None where each does all of it.
      precision: of the products with X, `float32` or `bfloat16`; sums are float32.
    """

    def shared(x: jax.Array, axis: int | None) -> jax.Array:
        if mesh is None or (axis is not None and x.shape[axis] % mesh.size):
            return x
        spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, *mesh.axis_names)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    matrices, by_size = {}, collections.defaultdict(list)
    for shape, stack in stacks.items():
        matrix = shared(stack.astype(precision), None).reshape(len(stack), -1, shape[-1])
        matrices[shape] = shared(matrix if matrix.shape[1] >= matrix.shape[2] else matrix.swapaxes(1, 2), 1)
        by_size[matrices[shape].shape[2]].append(shape)
    for shapes in by_size.values():
        for steps in _NEWTON_SCHULZ_STEPS[precision]:
            squares = [
                jnp.einsum("nri,nrj->nij", matrices[shape], matrices[shape], preferred_element_type=jnp.float32)
                for shape in shapes
            ]
            factors = shared(_newton_schulz_factor(shared(jnp.concatenate(squares), 0), steps), None)
            ends = itertools.accumulate(len(stacks[shape]) for shape in shapes)
            for shape, factor in zip(shapes, jnp.split(factors, list(ends)[:-1]), strict=True):
                matrices[shape] = matrices[shape] @ factor.astype(precision)
    results = {}
    for shape, stack in stacks.items():
        result = shared(matrices[shape], None)
        wide = math.prod(shape[:-1]) < shape[-1]
        results[shape] = (result.swapaxes(1, 2) if wide else result).reshape(stack.shape).astype(stack.dtype)
    return results


def _newton_schulz_factor(square: jax.Array, steps: int) -> jax.Array:
    """Q `[n, c, c]`, by which so many steps multiply X, from X'X `[n, c, c]`: both symmetric, and they commute."""
    a, b, c = _NEWTON_SCHULZ
    one = jnp.eye(square.shape[-1])[None]
    product = one
    for i in range(steps):
        step = a * one + b * square + c * (square @ square)
        product = step @ product if i else step
        square = step @ (step @ square)  # what follows the last step is not computed: nothing reads it
    return product


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
    mesh: Mesh | None = None,
    precision: str = "float32",
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
      mesh: of the devices that share Muon's work; None where each does all of it.
      precision: of Muon's products with a kernel's momentum, `float32` or `bfloat16`.

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
            {True: _muon(muon_learning_rate, muon_weight_decay, mesh, precision), False: optimizer}, _is_convolution
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), optimizer)


def build_plateau(
    *, patience: int, factor: float, threshold: float, cooldown: int, min_scale: float
) -> optax.GradientTransformationExtraArgs:
    """PyTorch's ReduceLROnPlateau, by `optax.contrib.reduce_on_plateau`; see the module's note on PyTorch.

    Args:
      patience: epochs without improvement that are let pass; Optax counts the one that the rate falls after, too.
      factor: by which the rate falls.
      threshold: smallest relative improvement that counts.
      cooldown: epochs to wait after a fall.
      min_scale: lower limit of the scale.
    """
    return optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience + 1, rtol=threshold, atol=0.0, cooldown=cooldown, min_scale=min_scale
    )


def advance_plateau(
    plateau: optax.GradientTransformationExtraArgs, state: ReduceLROnPlateauState, value: jax.typing.ArrayLike
) -> ReduceLROnPlateauState:
    """The plateau's state after an epoch whose monitored value, a scalar to minimise, was `value`."""
    return plateau.update((), state, value=jnp.asarray(value, jnp.float32))[1]  # type: ignore[return-value]
