"""The networks: shapes and types, gradients everywhere, no pooling but the last, names that weights files rely on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.budget import summarize
from cifar_jax.models import create_model, describe
from cifar_jax.models.c1c2c3c40 import VARIANTS, Network, coarse, dilated, early, mixed, strided
from cifar_jax.models.layers import conv, separable

BATCH = 2
LAYERS = conv("c1_conv", 4), separable("t1", 6, stride=2)  # where all twelve would add nothing but time
ALL_VARIANTS = pytest.mark.parametrize("variant", VARIANTS)
SLOW = {"gated": pytest.mark.slow}  # its gradient takes as long to compile as all others


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))


@functools.cache  # tracing costs seconds a network
def init_shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def draw_variables(model):
    """Weights without compiling the initializers: normal, and the statistics and scales positive."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.standard_normal(leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, init_shapes(model))


@functools.cache
def train_shapes(model, batch=BATCH):
    """Shapes and types of (logits, new statistics) of a training pass, without compiling it."""
    x = jnp.zeros((batch, 32, 32, 3))
    return jax.eval_shape(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]), init_shapes(model))


def train_jaxpr(model):
    x = jnp.zeros((BATCH, 32, 32, 3))
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), init_shapes(model))
    return str(jax.make_jaxpr(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables))


@ALL_VARIANTS
@pytest.mark.parametrize("head, dtype", [("dense", "float32"), ("dense", "bfloat16"), ("pointwise", "bfloat16")])
def test_logits_are_float32_of_every_class(model_config, variant, head, dtype):
    logits, _ = train_shapes(create_model(model_config(variant=variant, head=head, dtype=dtype)))
    chex.assert_shape(logits, (BATCH, 10))
    assert logits.dtype == jnp.float32


@ALL_VARIANTS
def test_parameters_and_statistics_stay_float32_in_bfloat16(model_config, variant):
    model = create_model(model_config(variant=variant, dtype="bfloat16"))
    _, updated = train_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves((init_shapes(model), updated))} == {jnp.dtype("float32")}


@ALL_VARIANTS
@pytest.mark.parametrize("kernels", ["auto", "xla"])
def test_every_layer_returns_bfloat16_where_that_is_the_networks_type(model_config, variant, kernels):
    config = model_config(variant=variant, dtype="bfloat16", kernels=kernels)
    model, image = create_model(config), jnp.zeros((1, 32, 32, 3))
    run = functools.partial(model.apply, train=True, capture_intermediates=True, mutable=["batch_stats", "intermediates"])
    seen = jax.eval_shape(run, init_shapes(model), image)[1]["intermediates"]
    types = {layer.name: {y.dtype.name for y in seen[layer.name]["__call__"]} for layer in describe(config)}
    assert types == {layer.name: {"bfloat16"} for layer in describe(config)}


def test_activations_are_of_the_networks_type_but_a_cpu_multiplies_no_bfloat16():
    def jaxpr(dtype):
        return train_jaxpr(Network(LAYERS, 10, dtype=dtype))

    assert "bf16[2,32,32,4]" in jaxpr(jnp.bfloat16)
    products = [line for line in jaxpr(jnp.bfloat16).splitlines() if "dot_general" in line]
    assert products and not any("bf16" in line for line in products)
    assert "bf16" not in jaxpr(jnp.float32)


@pytest.mark.parametrize("variant", [pytest.param(name, marks=SLOW.get(name, ())) for name in VARIANTS])
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(model_config, images, variant):
    model = create_model(model_config(variant=variant))
    variables = draw_variables(model)

    @jax.jit
    @jax.grad
    def gradients(params):
        logits, _ = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[:, 3].mean()

    grads = gradients(variables["params"])
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, variables["params"])
    chex.assert_tree_all_finite(grads)
    without = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grads) if not jnp.any(g)]
    assert without == []


def test_the_heads_give_the_same_logits_from_the_same_weights(images):
    dense, pointwise = (Network(LAYERS, 10, head=head) for head in ("dense", "pointwise"))
    variables = draw_variables(dense)
    apply = jax.jit(lambda v, x: (dense.apply(v, x, train=False), pointwise.apply(v, x, train=False)))
    # A mean and a linear map change places: float32 rounding only.
    chex.assert_trees_all_close(*apply(variables, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 7, 100])
def test_any_number_of_classes(num_classes):
    logits, _ = train_shapes(Network(LAYERS, num_classes))
    chex.assert_shape(logits, (BATCH, num_classes))


@pytest.mark.parametrize("batch", [1, 3, 128])
def test_any_batch_size(batch):
    logits, _ = train_shapes(Network(LAYERS, 10), batch)
    chex.assert_shape(logits, (batch, 10))


def test_any_widths():
    model = Network(strided(3, 5, 2, 7), 4)
    assert init_shapes(model)["params"]["head"]["kernel"].shape == (7, 4)
    assert init_shapes(model)["params"]["c3_sep1"]["conv_pw"].shape == (1, 1, 2, 2)


@ALL_VARIANTS
def test_no_pooling_window_anywhere(model_config, variant):
    jaxpr = train_jaxpr(create_model(model_config(variant=variant)))
    assert "reduce_window" not in jaxpr and "select_and_scatter" not in jaxpr
    assert "reduce_max" not in jaxpr
    assert "reduce_sum" in jaxpr  # the means are seen here, so a maximum would be


def test_dilated_has_no_stride():
    assert {layer.stride for layer in dilated(1, 1, 1, 1)} == {1}


def test_dilated_shrinks_by_its_convolutions_alone(model_config):
    model = create_model(model_config(variant="dilated"))
    _, seen = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True), init_shapes(model)
    )
    size, changes = 32, {}
    for layer in model.layers:
        before, size = size, seen["intermediates"][layer.name]["__call__"][0].shape[1]
        if size != before:
            changes[layer.name] = size
    assert changes == {"t1": 24, "t2": 16, "t3": 8}


def test_strided_has_three_transitions_of_stride_2():
    assert [layer.name for layer in strided(1, 1, 1, 1) if layer.stride == 2] == ["t1", "t2", "t3"]


def test_early_leaves_the_full_resolution_at_once_and_has_two_thirds_of_the_operations(model_config):
    assert [layer.name for layer in early(1, 1, 1, 1) if layer.stride == 2] == ["c1_conv", "t2", "t3"]
    widths = (32, 64, 96, 128)
    ours, strided_ones = (summarize(model_config(variant=name, widths=widths)).macs for name in ("early", "strided"))
    assert 0.65 < ours / strided_ones < 0.7


def test_coarse_is_at_8x8_from_t1_on_and_has_two_fifths_of_the_operations(model_config):
    assert [layer.name for layer in coarse(1, 1, 1, 1) if layer.stride == 2] == ["c1_conv", "t1", "t3"]
    widths = (32, 64, 96, 128)
    ours, strided_ones = (summarize(model_config(variant=name, widths=widths)).macs for name in ("coarse", "strided"))
    assert 0.37 < ours / strided_ones < 0.43


def test_mixed_transitions_are_1x1_then_dilated_then_strided():
    layers = {layer.name: layer for layer in mixed(1, 1, 1, 1)}
    t1, t2, t3 = (layers[name] for name in ("t1", "t2", "t3"))
    assert (t1.kernel, t1.stride, t1.dilation) == (1, 1, 1)
    assert (t2.kernel, t2.stride, t2.dilation, t2.output_size(32)) == (3, 1, 8, 16)
    assert (t3.kernel, t3.stride, t3.dilation, t3.output_size(16)) == (3, 2, 1, 8)


def test_mixed_has_six_separable_convolutions():
    assert sum(layer.kind == "separable" for layer in mixed(1, 1, 1, 1)) == 6


@ALL_VARIANTS
def test_every_variant_has_a_separable_and_a_dilated_convolution(variant):
    layers = VARIANTS[variant](1, 1, 1, 1)
    assert any(layer.kind in ("separable", "separable_ln") for layer in layers)
    assert any(layer.dilation > 1 for layer in layers)


NAMES = {
    "strided": "c1_conv c1_sep t1 c2_sep1 c2_sep2 c2_sep3 t2 c3_sep1 c3_sep2 c3_sep3 t3 c4_sep",
    "dilated": "c1_conv c1_sep t1 c2_sep1 c2_sep2 t2 c3_sep1 c3_sep2 c3_sep3 t3 c4_sep1 c4_sep2",
    "mixed": "c1_conv c1_sep t1 c2_sep t2 c3_sep1 c3_sep2 t3 c4_sep1 c4_sep2",
    "early": "c1_conv c1_sep t1 c2_sep1 c2_sep2 t2 c3_sep1 c3_sep2 c3_sep3 t3 c4_sep",
    "coarse": "c1_conv c1_sep t1 c2_sep1 c2_sep2 t2 c3_sep1 c3_sep2 t3 c4_sep",
    "gated": "c1_conv c1_gated c2_gated t2 c3_gated c4_gated",
}
KERNELS = {
    "conv": {"conv"},
    "separable": {"conv_dw", "conv_pw"},
    "conv_ln": {"conv"},
    "separable_ln": {"conv_dw", "conv_pw"},
    "gated": {"conv_near", "conv_wide", "conv_far", "conv_in", "conv_out"},
}


@ALL_VARIANTS
def test_names_are_those_that_weights_files_hold(model_config, variant):
    config = model_config(variant=variant)
    variables = init_shapes(create_model(config))
    names = NAMES[variant].split()
    assert [layer.name for layer in describe(config)] == names
    assert {path: set(tree) - {"skip"} for path, tree in variables["params"].items()} == {
        layer.name: KERNELS[layer.kind] | {"norm"} for layer in describe(config)
    } | {"head": {"kernel", "bias"}}
    for name in names:
        assert set(variables["params"][name]["norm"]) == {"scale", "bias"}
    if variant == "gated":
        assert "batch_stats" not in variables
        return
    for name in names:
        assert set(variables["batch_stats"][name]["norm"]) == {"mean", "var"}
    assert set(variables["batch_stats"]) == set(names)


def test_a_gated_layer_has_a_scaled_shortcut_where_its_width_stays(model_config):
    params = init_shapes(create_model(model_config(variant="gated", widths=(4, 4, 5, 6))))["params"]
    assert {name for name, tree in params.items() if "skip" in tree} == {"c1_gated", "c2_gated", "c3_gated"}
