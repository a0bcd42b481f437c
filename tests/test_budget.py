"""The budget: against counts by hand, the Flax parameters and shapes, and the network's own gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from cifar_jax.budget import check_budget, format_table, summarize
from cifar_jax.errors import InputError
from cifar_jax.models import c1c2c3c40, create_model, describe
from cifar_jax.models.layers import conv, gate, make_layer

WIDTHS = (32, 64, 96, 128)
# field += (kernel - 1) * dilation * (product of the strides before); a term a layer, 1x1 convolutions add nothing
FIELDS = {
    "strided": 1 + (2 + 2 + 2) + 2 * (4 + 2 + 2 + 2) + 4 * (4 + 2 + 2 + 2) + 8 * 2,
    "dilated": 1 + (2 + 2 + 8) + (4 + 2 + 8) + (4 + 4 + 2 + 8) + (4 + 2),
    "mixed": 1 + (2 + 2) + (4 + 16) + (4 + 2 + 2) + 2 * (4 + 2),
    "early": 1 + 2 + 2 * (2 + 2 + 4 + 2 + 2) + 4 * (4 + 2 + 2 + 2) + 8 * 2,
    "coarse": 1 + 3 + 2 * (2 + 2) + 4 * (4 + 2 + 2 + 4 + 2 + 2) + 8 * 2,
    "gated": 1 + 2 + (2 + 1) * (2 + 18) + 3 + 2 * (2 + 1) * (2 + 18),  # turns of an average of 3, then 7 of dilation 3
}
CASES = pytest.mark.parametrize("variant, head", [(variant, head) for variant in FIELDS for head in ("dense", "pointwise")])


@functools.cache  # tracing costs seconds a network
def shapes(model):
    """The parameters, and the shapes that every layer gave out, one a turn."""
    x = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    _, seen = jax.eval_shape(lambda v: model.apply(v, x, train=False, capture_intermediates=True), variables)
    return variables["params"], {
        name: [out.shape for out in module["__call__"]] for name, module in seen["intermediates"].items() if name != "__call__"
    }


def dense_cost(k, c, features):
    """Kernel, scale and bias."""
    return k * k * c * features + 2 * features


def separable_cost(c, features):
    """Depthwise 3x3, 1x1, scale and bias."""
    return 9 * c + c * features + 2 * features


def count_strided(a, b, c, d):
    c1, t1 = dense_cost(3, 3, a) + separable_cost(a, a), separable_cost(a, b)
    c2, t2 = 3 * separable_cost(b, b), separable_cost(b, c)
    c3, t3 = 3 * separable_cost(c, c), separable_cost(c, d)
    return c1 + t1 + c2 + t2 + c3 + t3 + separable_cost(d, d)


def count_dilated(a, b, c, d):
    c1, t1 = dense_cost(3, 3, a) + separable_cost(a, a), dense_cost(3, a, b)
    c2, t2 = 2 * separable_cost(b, b), dense_cost(3, b, c)
    c3, t3 = 3 * separable_cost(c, c), dense_cost(3, c, d)
    return c1 + t1 + c2 + t2 + c3 + t3 + 2 * separable_cost(d, d)


def count_mixed(a, b, c, d):
    c1, t1 = dense_cost(3, 3, a) + separable_cost(a, a), dense_cost(1, a, b)
    c2, t2 = separable_cost(b, b), dense_cost(3, b, c)
    c3, t3 = 2 * separable_cost(c, c), dense_cost(3, c, d)
    return c1 + t1 + c2 + t2 + c3 + t3 + 2 * separable_cost(d, d)


def count_early(a, b, c, d):
    c1, t1 = dense_cost(3, 3, a) + separable_cost(a, a), separable_cost(a, b)
    c2, t2 = 2 * separable_cost(b, b), separable_cost(b, c)
    c3, t3 = 3 * separable_cost(c, c), separable_cost(c, d)
    return c1 + t1 + c2 + t2 + c3 + t3 + separable_cost(d, d)


def count_coarse(a, b, c, d):
    c1, t1 = dense_cost(4, 3, a) + separable_cost(a, a), separable_cost(a, b)
    c2, t2 = 2 * separable_cost(b, b), separable_cost(b, c)
    c3, t3 = 2 * separable_cost(c, c), separable_cost(c, d)
    return c1 + t1 + c2 + t2 + c3 + t3 + separable_cost(d, d)


def gated_cost(c, features):
    """Windows of a quarter each, norm, the pair of 1x1 and the last one, and the shortcut's scale."""
    windows = (9 + 49 + 49) * (c // 4) + 3 * (c // 4)
    pair, last = c * 2 * features + 2 * features, features * features + features
    return windows + 2 * c + pair + last + (c if c == features else 0)


def count_gated(a, b, c, d):
    c1, t2 = 27 * a + 3 * a + gated_cost(a, a), 16 * b + b * c + 3 * c
    return c1 + gated_cost(a, b) + t2 + gated_cost(c, c) + gated_cost(c, d)


BY_HAND = {
    "strided": count_strided,
    "dilated": count_dilated,
    "mixed": count_mixed,
    "early": count_early,
    "coarse": count_coarse,
    "gated": count_gated,
}


@CASES
@pytest.mark.parametrize("widths", [WIDTHS, (3, 5, 4, 7)])
def test_parameters_equal_the_flax_tree(model_config, variant, head, widths):
    config = model_config(variant=variant, head=head, widths=widths)
    params, _ = shapes(create_model(config))
    assert summarize(config).parameters == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@CASES
def test_parameters_equal_the_count_by_hand(model_config, variant, head):
    config = model_config(variant=variant, head=head, widths=WIDTHS)
    assert summarize(config).parameters == BY_HAND[variant](*WIDTHS) + 128 * 10 + 10


def test_strided_of_the_base_config_has_89_386_parameters(model_config):
    # c1 928 + 1,376; t1 2,464; c2 3 x 4,800; t2 6,912; c3 3 x 10,272; t3 13,408; c4 17,792; head 1,290
    assert 928 + 1376 + 2464 + 3 * 4800 + 6912 + 3 * 10272 + 13408 + 17792 + 1290 == 89_386
    assert summarize(model_config(variant="strided", widths=WIDTHS)).parameters == 89_386


def test_the_record_config_has_93_506_parameters(model_config):
    # c1 1,680; four gated layers: 2 x 11,284 and 2 x 30,864; t2 6,560; head 970
    assert 1680 + 2 * 11_284 + 2 * 30_864 + 6560 + 970 == 93_506
    assert summarize(model_config(variant="gated", widths=(56, 56, 96, 96))).parameters == 93_506


@CASES
def test_rows_have_the_shapes_of_the_network(model_config, variant, head):
    config = model_config(variant=variant, head=head, widths=(3, 5, 4, 7))
    _, outputs = shapes(create_model(config))
    rows = {row.name: row.shape for row in summarize(config).layers if row.name != "gap"}
    assert rows == {name: (1,) * (4 - len(shape)) + shape[1:] for name, [*_, shape] in outputs.items()}


@CASES
def test_macs_equal_weights_times_positions_of_the_flax_network(model_config, variant, head):
    config = model_config(variant=variant, head=head, widths=(3, 5, 4, 7))
    params, outputs = shapes(create_model(config))
    macs = 0
    for name, turns in outputs.items():
        weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[name]) if len(leaf.shape) > 1)
        macs += weights * sum(math.prod(shape[1:-1]) for shape in turns)  # b h w c, or b c of the dense head
    assert summarize(config).macs == macs


def test_macs_equal_the_count_by_hand(model_config):
    maps = 1024 * (27 * 2 + 18 + 4) + 256 * (18 + 4 + 3 * (18 + 4)) + 64 * (18 + 4 + 3 * (18 + 4)) + 16 * 2 * (18 + 4)
    assert summarize(model_config(variant="strided", widths=(2, 2, 2, 2))).macs == maps + 2 * 10


def test_a_layer_of_two_turns_has_its_weights_once_and_its_operations_twice(model_config):
    layers = {row.name: row for row in summarize(model_config(variant="gated", widths=(8, 8, 8, 12))).layers}
    first, second, third, last = (layers[name] for name in ("c1_gated", "c2_gated", "c3_gated", "c4_gated"))
    assert first.parameters == second.parameters == third.parameters == gated_cost(8, 8)
    weights = 107 * 2 + 8 * 16 + 8 * 8
    assert first.macs == second.macs == 2 * weights * 1024 and third.macs == 2 * weights * 256
    assert last.macs == (107 * 2 + 8 * 24 + 12 * 12) * 256  # the width changes: one turn
    assert second.receptive_field - first.receptive_field == 2 * 20 and last.receptive_field - third.receptive_field == 2 * 20
    assert first.activation_bytes == 4 * 32 * 32 * (2 * 8 + 8 + 8)  # the pair of maps, their product, and x for the shortcut


def test_turns_that_change_the_shape_are_refused(model_config, monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "growing", lambda *widths: (gate("first", 3), gate("second", 4, turns=2)))
    with pytest.raises(InputError, match="layer second takes 2 turns"):
        summarize(model_config(variant="growing"))


@pytest.mark.parametrize("variant", FIELDS)
def test_receptive_field_equals_the_count_by_hand(model_config, variant):
    assert summarize(model_config(variant=variant)).receptive_field == FIELDS[variant] > 44


class Features(nn.Module):
    """The layers before global average pooling."""

    layers: tuple

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = make_layer(layer, jnp.float32, None)(x, train=False)
        return x


# Not `gated`: a norm over one channel gives 0, and more channels take long to compile; tests/parity has it, by PyTorch.
@pytest.mark.parametrize("variant", [name for name in FIELDS if name != "gated"])
def test_receptive_field_equals_the_extent_of_the_input_gradient(model_config, variant):
    config = model_config(variant=variant, widths=(1, 1, 1, 1))
    field = summarize(config).receptive_field
    model, x = Features(describe(config)), jnp.ones((1, 2 * field + 8, 2 * field + 8, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))["params"]
    # Every parameter 1, the statistics of an untrained network: every relu passes and every path adds.
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    stats = {layer.name: {"norm": {"mean": jnp.zeros(1), "var": jnp.ones(1)}} for layer in model.layers}

    def central_unit(x):
        y = model.apply({"params": params, "batch_stats": stats}, x)
        return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

    gradient = jax.jit(jax.grad(central_unit))(x)[0, :, :, 0]
    assert (gradient >= 0).all()
    for seen in (np.flatnonzero(gradient.any(1)), np.flatnonzero(gradient.any(0))):
        assert 0 < seen[0] and seen[-1] < len(gradient) - 1  # not cut off by the border
        assert seen[-1] - seen[0] + 1 == field


@CASES
def test_bytes_are_those_of_float32(model_config, variant, head):
    summary = summarize(model_config(variant=variant, head=head, widths=WIDTHS))
    assert summary.weight_bytes == 4 * summary.parameters
    assert summary.peak_activation_bytes == max(row.activation_bytes for row in summary.layers)
    side = 16 if variant in ("early", "coarse") else 32
    if variant == "gated":  # at c2_gated: the pair of maps and their product
        assert summary.peak_activation_bytes == 4 * 32 * 32 * (2 * 64 + 64)
    assert summary.layers[0].activation_bytes == 4 * (32 * 32 * 3 + side * side * 32)


def test_a_network_below_the_limit_passes(model_config):
    config = model_config(variant="strided", widths=WIDTHS)
    limits = ConfigDict({"parameters": 89_387, "receptive_field": FIELDS["strided"] - 1})
    assert check_budget(config, limits) == summarize(config)


def test_as_many_parameters_as_the_limit_are_refused(model_config):
    limits = ConfigDict({"parameters": 89_386, "receptive_field": 44})
    with pytest.raises(InputError, match=r"got 89,386 parameters, expected fewer than 89,386"):
        check_budget(model_config(variant="strided", widths=WIDTHS), limits)


def test_a_receptive_field_at_the_limit_is_refused(model_config):
    limits = ConfigDict({"parameters": 100_000, "receptive_field": FIELDS["mixed"]})
    with pytest.raises(InputError, match=r"got a receptive field of 45, expected more than 45"):
        check_budget(model_config(variant="mixed"), limits)


def test_a_map_that_shrinks_to_nothing_is_refused_by_name(model_config, monkeypatch):
    layers = conv("first", 4, dilation=8, padding=0), conv("second", 4, dilation=8, padding=0)
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "vanishing", lambda *widths: layers)
    with pytest.raises(InputError, match="layer second needs more than its input of 16x16"):
        summarize(model_config(variant="vanishing"))


@CASES
def test_the_table_has_a_line_for_each_layer_and_the_totals(model_config, variant, head):
    summary = summarize(model_config(variant=variant, head=head, widths=WIDTHS))
    _, *rows, totals = format_table(summary).splitlines()
    assert [row.split()[0] for row in rows] == [layer.name for layer in summary.layers]
    assert f"parameters {summary.parameters:,} " in totals and f"receptive field {summary.receptive_field} " in totals
