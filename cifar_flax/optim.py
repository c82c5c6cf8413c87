"""The optimizer, and ReduceLROnPlateau beside it.

The two are apart because they tick at different rates: the optimizer once a step, the plateau
once an epoch, on that epoch's own value. `train_step` multiplies its updates by the plateau's
scale; `advance_plateau` moves the scale.

Against `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", threshold_mode="rel")` the same
decisions are made where `patience` here is PyTorch's plus one: PyTorch lowers the rate when the
number of bad epochs exceeds its patience, Optax when it reaches it.
"""

import collections
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
_NEWTON_SCHULZ_STEPS = 5
_DECAY = 0.95  # of Muon's momentum: Jordan's too
# On a CPU, matrices with as many rows and columns are iterated on by their product with themselves.
_LEAST_OF_WIDE = 128


def _muon(learning_rate: optax.Schedule, weight_decay: float, mesh: Mesh | None) -> optax.GradientTransformation:
    """Muon for kernels `[h, w, in, out]`, each seen as a matrix from its `h * w * in` inputs to its outputs.

    Kernels of one shape take their step as one array: an accelerator then starts one operation for all of
    them, where each alone would not keep it busy.
    """

    def as_matrices(stacks):
        return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=(1, 2, 3), output_axis=4), stacks)

    muon = optax.contrib.scale_by_muon(
        _NEWTON_SCHULZ, _NEWTON_SCHULZ_STEPS, _DECAY, weight_dimension_numbers=as_matrices
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        grads, treedef = jax.tree.flatten(updates)
        before = jax.tree.leaves(state.mu)
        wide = [i for i, x in enumerate(grads) if _is_wide(x)]
        momenta, directions = _momentum([grads[i] for i in wide], [before[i] for i in wide], state.count)
        narrow = [i for i in range(len(grads)) if i not in wide]
        moved, kept = [grads[i] for i in narrow], [before[i] for i in narrow]
        stacks: Any
        next_state: Any
        stacks, next_state = muon.update(_stack(moved), state._replace(mu=_stack(kept)))
        results = dict(zip(wide, zip(_orthogonalized(directions, mesh), momenta, strict=True), strict=True))
        results |= zip(narrow, zip(_unstack(stacks, moved), _unstack(next_state.mu, kept), strict=True), strict=True)
        updates, mu = (treedef.unflatten([results[i][part] for i in range(len(grads))]) for part in range(2))
        return updates, next_state._replace(mu=mu)

    return optax.chain(
        optax.GradientTransformation(muon.init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _is_wide(kernel: jax.Array) -> bool:
    sides = (math.prod(kernel.shape[:-1]), kernel.shape[-1])
    return jax.default_backend() == "cpu" and min(sides) >= _LEAST_OF_WIDE


def _momentum(grads: list[jax.Array], momenta: Any, count: Any) -> tuple[list, list]:
    """The next momenta, and the directions that these and the gradients give: as `optax.contrib.scale_by_muon`'s."""
    count = optax.safe_increment(count)
    momenta = optax.tree.update_moment(grads, momenta, _DECAY, 1)
    ahead = optax.tree.bias_correction(momenta, _DECAY, optax.safe_increment(count))
    now = optax.tree.bias_correction(grads, _DECAY, count)
    return momenta, [_DECAY * m + (1 - _DECAY) * g for m, g in zip(ahead, now, strict=True)]


def _orthogonalized(kernels: list[jax.Array], mesh: Mesh | None) -> list[jax.Array]:
    """Newton and Schulz's iteration, of less than half the multiplications that its plain form has.

    A step is X p(X'X) with a polynomial p, so all of them are X Q with a Q as small as X'X. The devices share
    the rows of X, and the matrices X'X of one size.

    Args:
      kernels: float32 `[h, w, in, out]`. Fewer digits would not do: the iteration multiplies what is small in a
        kernel by up to 500.
      mesh: of the devices that share the work; None where each does all of it.
    """

    def shared(x: jax.Array, axis: int | None) -> jax.Array:
        if mesh is None or (axis is not None and x.shape[axis] % mesh.size):
            return x
        spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, *mesh.axis_names)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    tall, by_size = [], collections.defaultdict(list)
    for i, kernel in enumerate(kernels):
        matrix = shared(kernel, None).reshape(-1, kernel.shape[-1])
        matrix = shared(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, 0)
        tall.append(matrix / (jnp.linalg.norm(matrix) + 1e-8))
        by_size[matrix.shape[1]].append(i)
    results = dict[int, jax.Array]()
    for places in by_size.values():
        squares = jnp.stack([tall[i].T @ tall[i] for i in places])
        factors = shared(_newton_schulz_factor(shared(squares, 0)), None)
        for i, factor in zip(places, factors, strict=True):
            result = shared(tall[i] @ factor, None)
            results[i] = (result if result.shape[1] == kernels[i].shape[3] else result.T).reshape(kernels[i].shape)
    return [results[i] for i in range(len(kernels))]


def _newton_schulz_factor(square: jax.Array) -> jax.Array:
    """Q `[n, c, c]`, by which the iteration multiplies X, from X'X `[n, c, c]`: both symmetric, and they commute."""
    a, b, c = _NEWTON_SCHULZ
    one = jnp.eye(square.shape[-1])[None]
    product = one
    for i in range(_NEWTON_SCHULZ_STEPS):
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
      mesh: devices that share Muon's work; None where each is to do all of it.

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
            {True: _muon(muon_learning_rate, muon_weight_decay, mesh), False: optimizer}, _is_convolution
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
