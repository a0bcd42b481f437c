"""The steps: they learn, compile once, average, count what counts, and do the same on two devices as on one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from cifar_jax import metrics
from cifar_jax.distill import Teacher
from cifar_jax.losses import cross_entropy, distillation
from cifar_jax.models.c1c2c3c40 import Network
from cifar_jax.models.layers import conv, separable
from cifar_jax.state import create_state, final_variables
from cifar_jax.steps import make_eval_step, make_train_step

CLASSES, BATCH, SMOOTHING, EMA_DECAY = 3, 4, 0.1, 0.9
LAYERS = conv("c1_conv", 4), separable("c1_sep", 4), separable("t1", 6, stride=2)  # one of each kind of layer
TX = optax.sgd(0.1, momentum=0.9, nesterov=True)


def network(axis_name=None):
    return Network(LAYERS, CLASSES, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames="train")
def apply(variables, images, *, train):
    """The logits."""
    return network().apply(variables, images, train=train, mutable=["batch_stats"])[0]


def train_step_of(axis_name=None):
    return make_train_step(network(axis_name), TX, label_smoothing=SMOOTHING, ema_decay=EMA_DECAY, axis_name=axis_name)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": np.array([0, 1, 2, 1], np.int32)}


@pytest.fixture(scope="module")
def train_step():
    """Compiled once for all tests; donates its state, as training does, and fails where it would compile again."""
    return jax.jit(chex.assert_max_traces(train_step_of(), n=1), donate_argnums=0)


@pytest.fixture(scope="module")
def eval_step():
    return jax.jit(make_eval_step(network()))


@pytest.fixture(scope="module")
def start():
    """The initial state on the host: never donated."""
    return jax.device_get(create_state(network(), TX, 0, with_ema=True))


def test_a_teacher_has_its_share_of_the_objective(start, batch):
    taught = 5 * batch["image"].mean((1, 2))  # of each image, of as many classes as colours
    teacher = Teacher(lambda images: 5 * images.mean((1, 2)), 0.25, 2.0)
    _, sums = jax.jit(make_train_step(network(), TX, label_smoothing=SMOOTHING, teacher=teacher))(start, batch)
    logits = apply({"params": start.params, "batch_stats": start.batch_stats}, batch["image"], train=True)
    labelled = cross_entropy(logits, batch["label"], label_smoothing=SMOOTHING)
    expected = 0.75 * labelled + 0.25 * distillation(logits, taught, 2.0)
    np.testing.assert_allclose(sums["loss"], expected.sum(), rtol=1e-5)


def on_device(state):
    return jax.tree.map(jnp.array, state)


def test_a_target_is_what_the_loss_is_of_and_the_label_what_is_counted(start, batch):
    step = jax.jit(train_step_of())
    swapped = batch | {"target": jax.nn.one_hot(batch["label"], CLASSES), "label": np.array([1, 1, 1, 1], np.int32)}
    plain, mixed = step(on_device(start), batch), step(on_device(start), swapped)
    np.testing.assert_allclose(mixed[1]["loss"], plain[1]["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mixed[0].params, plain[0].params)
    logits = apply({"params": start.params, "batch_stats": start.batch_stats}, batch["image"], train=True)
    assert int(mixed[1]["correct"]) == int((logits.argmax(1) == 1).sum())


def test_the_loss_of_a_fixed_batch_falls(train_step, start, batch):
    state, losses = on_device(start), []
    for _ in range(20):
        state, sums = train_step(state, batch)
        losses.append(float(sums["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] / 2


def test_several_steps_with_a_donated_state_compile_once(train_step, start, batch):
    state = on_device(start)
    for _ in range(3):
        state, _ = train_step(state, batch)  # assert_max_traces
    assert train_step._cache_size() == 1
    assert state.step == 3


def test_a_step_keeps_the_shapes_and_types_of_the_state(train_step, start, batch):
    state, _ = train_step(on_device(start), batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)


def test_a_step_moves_every_parameter_and_statistic(train_step, start, batch):
    state, _ = train_step(on_device(start), batch)
    for new, old in ((state.params, start.params), (state.batch_stats, start.batch_stats)):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), new, old)))


def test_sums_are_those_of_the_smoothed_objective(train_step, start, batch):
    _, sums = train_step(on_device(start), batch)
    variables = {"params": start.params, "batch_stats": start.batch_stats}
    apply = jax.jit(lambda variables, x: network().apply(variables, x, train=True, mutable=["batch_stats"]))
    logits, _ = apply(variables, batch["image"])
    targets = (1 - SMOOTHING) * np.eye(CLASSES)[batch["label"]] + SMOOTHING / CLASSES
    # float32, a forward pass in another order
    np.testing.assert_allclose(sums["loss"], -(targets * jax.nn.log_softmax(logits)).sum(), rtol=1e-5)
    assert sums["correct"] == (logits.argmax(1) == batch["label"]).sum()
    assert sums["examples"] == BATCH


def test_the_average_follows_its_formula(train_step, start, batch):
    """decay = min(EMA_DECAY, (1 + step) / (10 + step)), over parameters and statistics."""
    state, expected = on_device(start), start.ema
    for step in range(3):
        state, _ = train_step(state, batch)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        new = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, new)
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-6)  # float32, three steps


def test_the_average_never_decays_slower_than_asked_for(batch):
    model = Network(LAYERS[:1], CLASSES)
    start = create_state(model, TX, 0, with_ema=True)
    step = make_train_step(model, TX, ema_decay=0.05)  # below the first step's 1 / 10
    state, _ = jax.jit(step)(start, batch)
    new = {"params": state.params, "batch_stats": state.batch_stats}
    expected = jax.tree.map(lambda old, new: 0.05 * old + 0.95 * new, start.ema, new)
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-6)  # float32


def test_without_a_decay_no_average_is_kept(batch):
    step = make_train_step(network(), TX)
    state, _ = jax.eval_shape(step, create_state(network(), TX, 0, with_ema=False), batch)
    assert state.ema is None


def test_the_seed_decides_the_initial_weights():
    states = [create_state(Network(LAYERS[:1], CLASSES), TX, seed, with_ema=True) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(states[0], states[1])
    assert not np.array_equal(*(state.params["c1_conv"]["conv"] for state in states[1:]))


def test_the_average_is_what_is_shipped(start):
    assert final_variables(start) is start.ema
    bare = start.replace(ema=None)
    assert final_variables(bare) == {"params": start.params, "batch_stats": start.batch_stats}


def mapped_by_pmap(function):
    devices = jax.devices("cpu")[:2]
    mapped = jax.pmap(function, axis_name="batch", in_axes=(None, 0), devices=devices)

    def run(first, batch):
        halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), batch)  # b ... -> devices b/devices ...
        outputs = jax.device_get(mapped(first, halves))
        for leaf in jax.tree.leaves(outputs):
            np.testing.assert_array_equal(leaf[0], leaf[1])  # both devices end with the same
        return jax.tree.map(lambda a: a[0], outputs)

    return run


def mapped_by_shard_map(function):
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices("cpu")[:2], axis_types=(auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P(), check_vma=False))


def partitioned_by_jit(function):
    """The whole batch is one value, split over the devices by its sharding: no axis has a name."""
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices("cpu")[:2], axis_types=(auto,))
    whole, split = (jax.sharding.NamedSharding(mesh, spec) for spec in (P(), P("batch")))
    return jax.jit(function, in_shardings=(whole, split), out_shardings=whole)


MAPPED = pytest.mark.parametrize(
    "mapped, axis_name",
    [(mapped_by_pmap, "batch"), (mapped_by_shard_map, "batch"), (partitioned_by_jit, None)],
    ids=["pmap", "shard_map", "jit"],
)


@MAPPED
def test_training_on_two_devices_equals_one_on_the_whole_batch(mapped, axis_name, train_step, start, batch):
    on_two = mapped(train_step_of(axis_name))
    one, two = start, start
    for _ in range(2):
        one, one_sums = jax.device_get(train_step(on_device(one), batch))
        two, two_sums = jax.device_get(on_two(two, batch))
    for name in ("params", "batch_stats", "opt_state", "ema"):
        # float32: sums over the batch in another order, through two steps of rate 0.1
        chex.assert_trees_all_close(getattr(two, name), getattr(one, name), rtol=1e-5, atol=1e-6)
    assert two.step == one.step == 2
    np.testing.assert_allclose(two_sums.pop("loss"), one_sums.pop("loss"), rtol=1e-5)
    chex.assert_trees_all_equal(two_sums, one_sums)  # counts are exact


@MAPPED
def test_evaluation_on_two_devices_equals_one_on_the_whole_batch(mapped, axis_name, eval_step, start, batch):
    batch = batch | {"mask": np.array([1, 1, 1, 0], np.float32)}
    variables = final_variables(start)
    two = mapped(make_eval_step(network(), axis_name=axis_name))(variables, batch)
    one, two = jax.device_get((eval_step(variables, batch), two))
    np.testing.assert_allclose(two.pop("loss"), one.pop("loss"), rtol=1e-6)  # float32, a sum of three
    chex.assert_trees_all_equal(two, one)


@pytest.mark.parametrize("junk", [1.0, np.nan])
def test_evaluation_counts_nothing_where_the_mask_is_0(eval_step, start, batch, junk):
    variables, mask = final_variables(start), np.array([1, 0, 1, 0], np.float32)
    images = np.where(mask[:, None, None, None] > 0, batch["image"], np.float32(junk))
    sums = eval_step(variables, {"image": images, "label": batch["label"], "mask": mask})
    logits = apply(variables, batch["image"][::2], train=False)
    expected = metrics.eval_sums(logits, batch["label"][::2], jnp.ones(2), CLASSES)
    chex.assert_trees_all_close(sums, expected, rtol=1e-5)  # counts exactly; the loss in float32


def test_evaluation_is_of_the_unsmoothed_loss_and_of_each_class(eval_step, start, batch):
    variables = final_variables(start)
    sums = eval_step(variables, batch | {"mask": np.ones(BATCH, np.float32)})
    log_p = jax.nn.log_softmax(apply(variables, batch["image"], train=False))
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(BATCH), batch["label"]].sum(), rtol=1e-5)  # float32
    np.testing.assert_array_equal(sums["class_examples"], [1, 2, 1])
    assert sums["class_correct"].sum() == sums["correct"]
