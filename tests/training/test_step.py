import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data import CIFAR10
from cifar_flax.data.augment import augment
from cifar_flax.network.model import ResNet, forward
from cifar_flax.training import metrics, optim, step

MODEL = ResNet(widths=(8,), strides=(2,))
OPTIMIZER = optim.build_optimizer(
    optim.warmup_schedule(0.1, 0), momentum=0.9, nesterov=True, weight_decay=5e-4, clip_norm=1.0
)
PLATEAU = optim.build_plateau(patience=0, factor=0.5, threshold=0.02, cooldown=0, min_scale=0.0)
STATIC = dict(model=MODEL, optimizer=OPTIMIZER, augment=augment, label_smoothing=0.0, ema_decay=0.9)


def take_step(**changes):
    return jax.jit(functools.partial(step.train_step, **(STATIC | changes)))


TAKE_STEP = take_step()


@pytest.fixture(scope="module")
def state():
    return step.create_state(jax.random.key(0), MODEL, OPTIMIZER, PLATEAU)


@pytest.fixture(scope="module")
def batch(sample):
    return jnp.asarray(sample.train.images[:24]), jnp.asarray(sample.train.labels[:24]), jnp.ones(24, bool)


def test_one_batch_can_be_overfitted(state, batch):
    train = take_step(augment=lambda key, images: images)
    for _ in range(300):
        state, sums = train(state, *batch)
    assert sums.correct == 24
    assert sums.loss_sum / 24 < 0.1
    assert step.eval_step(state.ema_params, *batch, model=MODEL).correct == 24


@pytest.mark.slow
def test_eager_agrees_with_jit(state, batch):
    eager = functools.partial(step.train_step, **STATIC)(state, *batch)
    jitted = TAKE_STEP(state, *batch)
    chex.assert_trees_all_close(eager[1], jitted[1], rtol=1e-4)
    chex.assert_trees_all_close(eager[0].params, jitted[0].params, rtol=1e-3, atol=1e-5)


def test_a_step_does_not_recompile_on_new_values(state, batch):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(state, *batch):
        return step.train_step(state, *batch, **STATIC)

    for _ in range(3):
        state, _ = train(state, *batch)


def test_padding_changes_neither_parameters_nor_metrics(state, batch):
    images, labels, mask = batch
    junk = (jnp.full_like(images[:8], 200), jnp.full_like(labels[:8], 3), jnp.zeros(8, bool))
    padded = tuple(jnp.concatenate(pair) for pair in zip(batch, junk, strict=True))
    no_draws = take_step(augment=lambda key, images: images)  # a draw depends on the batch's size
    ours, theirs = no_draws(state, *padded), no_draws(state, images, labels, mask)
    chex.assert_trees_all_close(ours[1], theirs[1], rtol=1e-5)
    chex.assert_trees_all_close(ours[0].params, theirs[0].params, rtol=1e-4, atol=1e-6)
    evaluate = functools.partial(step.eval_step, model=MODEL)
    chex.assert_trees_all_close(evaluate(state.params, *padded), evaluate(state.params, *batch), rtol=1e-5)


def test_plateau_scale_multiplies_the_update(state, batch):
    half = state.replace(plateau_state=state.plateau_state._replace(scale=jnp.float32(0.5)))
    whole_step = jax.tree.map(lambda a, b: a - b, TAKE_STEP(state, *batch)[0].params, state.params)
    half_step = jax.tree.map(lambda a, b: a - b, TAKE_STEP(half, *batch)[0].params, state.params)
    chex.assert_trees_all_close(half_step, jax.tree.map(lambda x: x / 2, whole_step), rtol=1e-3, atol=1e-6)


def test_steps_draw_different_augmentations(state, batch):
    seen = []

    def spy(key, images):
        seen.append(jax.random.key_data(key))
        return images

    for number in (0, 1, 2):
        functools.partial(step.train_step, **(STATIC | {"augment": spy}))(
            state.replace(step=jnp.int32(number)), *batch
        )
    assert len({key.tobytes() for key in map(np.asarray, seen)}) == 3


def test_averaged_parameters_follow_their_decay(state, batch):
    late = state.replace(step=jnp.int32(10_000))
    after, _ = TAKE_STEP(late, *batch)
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, late.ema_params, after.params)
    chex.assert_trees_all_close(after.ema_params, expected, rtol=1e-5, atol=1e-7)
    off, _ = take_step(ema_decay=0.0)(late, *batch)
    chex.assert_trees_all_equal(off.ema_params, off.params)


def test_non_finite_gradient_is_noted_with_its_step(state, batch):
    broken = state.replace(step=jnp.int32(41), params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params))
    assert TAKE_STEP(broken, *batch)[1].bad_step == 41


def test_learning_changes_every_parameter_and_keeps_all_finite(state, batch):
    for _ in range(2):  # the first step moves the zero scales, the second what is behind them
        before, (state, sums) = state, TAKE_STEP(state, *batch)
    chex.assert_tree_all_finite((state.params, state.ema_params, state.opt_state, sums))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 3), (12, 4), (5, 8), (1, 1)])
def test_epoch_order_visits_every_image_once(num_images, batch_size):
    order = step.epoch_order(jax.random.key(0), 1, num_images, batch_size)
    chex.assert_shape(order, (-(-num_images // batch_size), batch_size))
    flat = np.asarray(order).ravel()
    np.testing.assert_array_equal(np.sort(flat[:num_images]), np.arange(num_images))
    assert (flat[num_images:] == -1).all()


def test_the_order_is_drawn_by_a_key_that_is_no_steps():
    """Of 2**32 - 1, the last number that a key takes: a run that goes on with another version keeps its order."""
    key = jax.random.key(5)
    drawn = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), 3), 60)
    np.testing.assert_array_equal(step.epoch_order(key, 3, 60, 20), np.reshape(drawn, (3, 20)))


def test_epochs_differ_in_their_order():
    orders = [step.epoch_order(jax.random.key(0), epoch, 100, 10) for epoch in (1, 2, 3)]
    assert len({np.asarray(order).tobytes() for order in orders}) == 3


def test_uphill_goes_so_far_as_told_and_raises_the_loss_most(state, batch):
    """By Cauchy-Schwarz no change of that relative length raises the loss's linear part more."""
    images, labels, mask = batch
    inputs = CIFAR10.normalize(images)

    def loss_fn(params):
        return metrics.measure(forward(MODEL, params, inputs), labels, mask).loss_sum

    grads, rho = jax.grad(loss_fn)(state.params), 1e-3
    moved = step.uphill(state.params, grads, rho)
    lengths = jax.tree.map(lambda x: float(jnp.sum(jnp.square(x))), state.params)
    shares = jax.tree.map(
        lambda x, y, square: float(jnp.sum(jnp.square(y - x))) / square if square else 0.0,
        state.params,
        moved,
        lengths,
    )
    np.testing.assert_allclose(sum(jax.tree.leaves(shares)), rho**2, rtol=1e-3)
    rise = sum(jax.tree.leaves(jax.tree.map(lambda g, x, y: float(jnp.vdot(g, y - x)), grads, state.params, moved)))
    slopes = jax.tree.map(lambda g, square: square * float(jnp.vdot(g, g)), grads, lengths)
    np.testing.assert_allclose(rise, rho * np.sqrt(sum(jax.tree.leaves(slopes))), rtol=1e-3)


def test_the_gradient_is_taken_uphill_once_the_rate_has_fallen(state, batch):
    plain, sharp = (
        take_step(augment=lambda key, images: images),
        take_step(augment=lambda key, images: images, sam_rho=0.1),
    )
    chex.assert_trees_all_equal(plain(state, *batch)[0].params, sharp(state, *batch)[0].params)
    fallen = state.replace(plateau_state=state.plateau_state._replace(scale=jnp.float32(0.5)))
    found, sums = sharp(fallen, *batch)
    grads = jax.grad(
        lambda p: metrics.measure(forward(MODEL, p, CIFAR10.normalize(batch[0])), *batch[1:]).loss_sum / 24
    )
    moved = step.uphill(state.params, grads(state.params), 0.1)
    updates, _ = OPTIMIZER.update(grads(moved), state.opt_state, state.params)
    expected = jax.tree.map(lambda x, update: x + 0.5 * update, state.params, updates)
    chex.assert_trees_all_close(found.params, expected, rtol=1e-3, atol=1e-6)
    chex.assert_trees_all_equal(sums, plain(fallen, *batch)[1].replace(relative_step_sum=sums.relative_step_sum))


def test_a_relative_step_is_the_change_of_the_kernels(state, batch):
    moved, sums = TAKE_STEP(state, *batch)
    shares = [
        np.sum((np.asarray(y) - np.asarray(x)) ** 2) / np.sum(np.asarray(x) ** 2)
        for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(moved.params), strict=True)
        if x.ndim == 4
    ]
    np.testing.assert_allclose(sums.relative_step_sum, np.sqrt(np.mean(shares)), rtol=1e-3)
    squares = [np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(state.params) if x.ndim == 4]
    np.testing.assert_allclose(step.kernel_norm(state.params), np.sqrt(np.mean(squares)), rtol=1e-5)


def test_the_teacher_sees_the_same_augmented_images(state, batch):
    """A network that is taught by itself alone has nothing to learn, whatever the augmentation drew."""
    taught = dict(teacher=MODEL, teacher_weight=1.0, teacher_temperature=2.0)
    still = optim.build_optimizer(
        optim.warmup_schedule(0.1, 0), momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=0.0
    )
    train = take_step(optimizer=still, **taught)
    state = state.replace(opt_state=still.init(state.params))
    found, sums = train(state, *batch, state.params)
    chex.assert_trees_all_close(found.params, state.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.loss_sum, 0.0, atol=1e-4)
    other = jax.tree.map(lambda x: x + 0.1, state.params)
    found, sums = train(state, *batch, other)
    assert sums.loss_sum > 0.01
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), found.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_a_teacher_that_was_normalised_otherwise_sees_the_same_pixels(state, batch):
    """As one whose first convolution knows the other mean and deviation: its answers are the same."""
    spec = dataclasses.replace(MODEL.spec, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    found = spec.renormalize(MODEL.spec.normalize(pixels), MODEL.spec)
    np.testing.assert_allclose(found, (pixels / 255 - 0.5) / 0.25, atol=1e-5)
    taught = dict(teacher_weight=1.0, teacher_temperature=2.0)
    _, sums = take_step(teacher=MODEL, **taught)(state, *batch, state.params)
    _, other_sums = take_step(teacher=MODEL.clone(spec=spec), **taught)(state, *batch, state.params)
    assert sums.loss_sum < 1e-4 < 1e-2 < other_sums.loss_sum
