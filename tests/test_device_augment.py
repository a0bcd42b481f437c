"""What the device draws, given only the seed: each parameter's distribution, and independence of all from all.

A test fails below a p-value of 1e-6: for true draws that is one failure in a million choices of the seed, which is fixed.
With 20,000 draws a probability wrong by 0.03 or a range wrong by a tenth of itself comes out far below that.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from cifar_jax.color_ops import Jitter, apply_jitter
from cifar_jax.data.augment import normalize
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.device_augment import (
    alternating_flip,
    apply_parameters,
    draw_batch,
    draw_cutout,
    draw_offset,
    make_device_augment,
    make_epoch_key,
)
from cifar_jax.errors import InputError
from tests.data.test_augment import SEED_LOG, make_section

NUM = 20_000
P_VALUE = 1e-6
SECTION = SEED_LOG | {"backend": "device"}


def draw(section=SECTION, *, seed=0, epoch=0, indices=None):
    indices = np.arange(NUM) if indices is None else np.asarray(indices)
    return jax.tree.map(np.asarray, draw_batch(make_epoch_key(seed, epoch), indices, section))


@pytest.fixture(scope="module")
def drawn():
    return draw()


def numbers(parameters):
    """All that is drawn of an image as a row of numbers: (n, 11)."""
    return np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in jax.tree.leaves(parameters)], axis=1)


def assert_independent(a, b):
    """Kendall's and the linear correlation would both be 0; a pair of flags is a 2x2 table with the linear one."""
    r = np.corrcoef(a, b)[0, 1]
    assert 2 * stats.norm.sf(abs(r) * np.sqrt(len(a))) > P_VALUE


@pytest.mark.parametrize(("flag", "p"), [("flip", 0.3), ("warp", 0.5), ("drop", 0.5), ("gray", 0.5)])
def test_each_transform_fires_with_its_probability(drawn, flag, p):
    fired = getattr(drawn, flag)
    assert fired.dtype == bool
    assert stats.binomtest(int(fired.sum()), NUM, p).pvalue > P_VALUE


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_probability_of_nothing_and_of_all_is_meant_so(p):
    flags = ("horizontal_flip", "shift_scale_rotate", "coarse_dropout", "to_gray")
    drawn = draw(make_section(**{f"{name}__p": p for name in flags}))
    for flag in (drawn.flip, drawn.warp, drawn.drop, drawn.gray):
        assert (flag == bool(p)).all()


def test_zoom_and_angle_are_uniform_over_their_ranges(drawn):
    for values, low, high in ((drawn.scale[:, 0], 0.9, 1.1), (drawn.scale[:, 1], 0.9, 1.1), (drawn.rotate, -30, 30)):
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("axis", [0, 1])
def test_shifts_are_whole_pixels_cut_towards_zero(drawn, axis):
    values, counts = np.unique(drawn.shift[:, axis], return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-3, 4))
    # Of a uniform number from -3.2 to 3.2: the whole part; 0 has the two intervals about it, 3 a fifth of one.
    assert stats.chisquare(counts, NUM * np.array((0.2, 1, 1, 2, 1, 1, 0.2)) / 6.4).pvalue > P_VALUE


@pytest.mark.parametrize("size", [1, 16])
def test_a_hole_begins_anywhere_it_fits(size):
    corner = draw(make_section(coarse_dropout__p=0.5, coarse_dropout__size=size)).corner
    places = 33 - size
    counts = np.zeros((places, places))
    np.add.at(counts, (corner[:, 0], corner[:, 1]), 1)
    assert stats.chisquare(counts.sum(0)).pvalue > P_VALUE and stats.chisquare(counts.sum(1)).pvalue > P_VALUE
    assert stats.chisquare(counts.reshape(-1)).pvalue > P_VALUE


def test_a_hole_of_the_whole_image_begins_at_its_corner():
    assert (draw(make_section(coarse_dropout__p=1.0, coarse_dropout__size=32)).corner == 0).all()


def test_nothing_drawn_of_an_image_depends_on_anything_else_drawn_of_it(drawn):
    columns = numbers(drawn).T
    for i in range(len(columns)):
        for j in range(i):
            assert_independent(columns[i], columns[j])
    # Flags are compared as events too: of four fair-ish coins each of the 16 outcomes has its product's probability.
    outcome = drawn.flip + 2 * drawn.warp + 4 * drawn.drop + 8 * drawn.gray
    p = [np.prod([q if i >> k & 1 else 1 - q for k, q in enumerate((0.3, 0.5, 0.5, 0.5))]) for i in range(16)]
    assert stats.chisquare(np.bincount(outcome, minlength=16), NUM * np.array(p)).pvalue > P_VALUE


def test_images_epochs_and_seeds_draw_independently(drawn):
    here = numbers(drawn)
    for other in (np.roll(here, 1, axis=0), numbers(draw(epoch=1)), numbers(draw(seed=1))):
        assert (other != here).any(1).mean() > 0.999
        for a, b in zip(here.T, other.T, strict=True):
            assert_independent(a, b)


def test_seed_epoch_and_index_are_not_exchangeable():
    keys = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0), (1, 1, 0), (2**32 - 1, 0, 0), (2**31, 0, 0), (0, 2**31, 0)]
    rows = {numbers(draw(seed=s, epoch=e, indices=[i])).tobytes() for s, e, i in keys}
    assert len(rows) == len(keys)


def test_an_epochs_key_may_be_made_inside_a_compiled_program():
    make = jax.jit(lambda seed, epoch: jax.random.key_data(make_epoch_key(seed, epoch)))
    for seed in (0, 7, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(make(np.uint32(seed), jnp.int32(3)), jax.random.key_data(make_epoch_key(seed, 3)))


def test_an_images_draws_do_not_depend_on_its_batch(drawn):
    indices = np.array([17, 3, 19_999, 3])
    for got, all_of_them in zip(*map(jax.tree.leaves, (draw(indices=indices), drawn)), strict=True):
        np.testing.assert_array_equal(got, all_of_them[indices])


def test_one_transforms_probability_changes_no_other_draw(drawn):
    section = copy.deepcopy(SECTION)
    section["horizontal_flip"]["p"] = 0.0
    without = draw(section)
    assert not without.flip.any()
    for got, expected in zip(*map(jax.tree.leaves, (without[1:], drawn[1:])), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(7).integers(0, 256, (8, 32, 32, 3), np.uint8)


def test_augmenting_is_applying_what_is_drawn_in_any_batch(images, strict_ranks):
    augment = jax.jit(make_device_augment(ConfigDict(SECTION), CIFAR10_MEAN, CIFAR10_STD))
    indices = jnp.arange(8) + 40
    got = augment(images, indices, 3, 5)
    assert got.dtype == jnp.float32 and got.shape == (8, 32, 32, 3)
    apply = jax.jit(lambda images, drawn: apply_parameters(images, drawn, SECTION, CIFAR10_MEAN, CIFAR10_STD))
    expected = apply(images, draw_batch(make_epoch_key(3, 5), indices, SECTION))
    # Compiled together or apart: positions may differ in the last bit, and so a level at a rounding.
    close = np.isclose(got, expected, rtol=0, atol=1e-6)
    assert close.mean() > 0.999
    other_order = augment(images[::-1], indices[::-1], 3, 5)
    np.testing.assert_array_equal(other_order[::-1], got)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_a_transform_it_is_normalize_and_with_all_it_is_not(images, p):
    flags = ("horizontal_flip", "shift_scale_rotate", "coarse_dropout", "to_gray")
    augment = make_device_augment(make_section(**{f"{name}__p": p for name in flags}), CIFAR10_MEAN, CIFAR10_STD)
    got = jax.jit(augment)(images, jnp.arange(8), 0, 0)
    same = np.isclose(got, normalize(images, CIFAR10_MEAN, CIFAR10_STD), rtol=2e-7, atol=0)  # a last bit
    assert same.all() if p == 0 else same.mean() < 0.1


def test_a_transform_left_out_leaves_no_operation():
    def operations(section):
        augment = make_device_augment(section, CIFAR10_MEAN, CIFAR10_STD)
        args = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((8,), jnp.int32)
        return jax.jit(augment).lower(*args, 0, 0).compile().as_text()

    assert "gather" in operations(SECTION)
    left = operations(make_section())
    assert not any(name in left for name in ("gather", "while", "sine", "xor"))  # nothing looked up, nothing drawn


def test_an_invalid_section_is_refused():
    with pytest.raises(InputError, match="augment.to_gray.p: got 2"):
        make_device_augment(make_section(to_gray__p=2), CIFAR10_MEAN, CIFAR10_STD)


def test_an_image_is_flipped_in_every_other_epoch_half_of_them_in_the_first():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(4), i))(np.arange(NUM))
    flips = np.stack([jax.vmap(lambda key: alternating_flip(key, epoch))(keys) for epoch in range(4)])  # noqa: B023
    assert stats.binomtest(int(flips[0].sum()), NUM, 0.5).pvalue > P_VALUE
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2:], flips[:2])


@pytest.mark.parametrize(
    ("draw_one", "size", "low", "high"), [(draw_offset, 4, -4, 4), (draw_cutout, 8, -4, 27), (draw_cutout, 5, -2, 29)]
)
def test_crops_and_cutouts_are_uniform_over_their_places(draw_one, size, low, high):
    places = np.asarray(jax.vmap(lambda key: draw_one(key, size))(jax.random.split(jax.random.key(1), NUM)))
    for axis in (0, 1):
        values, counts = np.unique(places[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(low, high + 1))
        assert stats.chisquare(counts).pvalue > P_VALUE
    assert_independent(places[:, 0], places[:, 1])


MORE = {"translate__padding": 4, "translate__p": 0.7, "cutout__size": 8, "cutout__p": 0.6, "color_jitter__p": 0.8}


def test_what_the_host_does_not_make_fires_with_its_probability_and_is_neutral_else():
    drawn = draw(make_section(**MORE))
    # An offset of (0, 0) is one of the 81 that are drawn, too.
    assert stats.binomtest(int(drawn.offset.any(1).sum()), NUM, 0.7 * 80 / 81).pvalue > P_VALUE
    assert stats.binomtest(int((drawn.cutout < 28).all(1).sum()), NUM, 0.6).pvalue > P_VALUE
    assert (drawn.cutout[(drawn.cutout >= 28).any(1)] == 32).all()
    factors = np.stack(drawn.jitter, 1)
    neutral = (factors == np.float32((1, 1, 1, 1, 0))).all(1)
    assert stats.binomtest(int((~neutral).sum()), NUM, 0.8).pvalue > P_VALUE
    strengths, middle = np.array((0.2, 0.2, 0.2, 0.5, 0.02)), np.array((1, 1, 1, 1, 0))
    for column, strength, center in zip(factors[~neutral].T, strengths, middle, strict=True):
        assert stats.kstest(column, stats.uniform(center - strength, 2 * strength).cdf).pvalue > P_VALUE
    fired = np.stack([drawn.offset.any(1), (drawn.cutout < 28).all(1), ~neutral]).astype(float)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_independent(fired[i], fired[j])
    rows = drawn.cutout[(drawn.cutout < 28).all(1), 0]  # uniform also among those whose draw said yes
    assert stats.chisquare(np.unique(rows, return_counts=True)[1]).pvalue > P_VALUE
    columns = numbers(draw(make_section(**{f"{name}__p": 1.0 for name in ("translate", "cutout", "color_jitter")}))).T
    for i in range(11, len(columns)):
        for j in range(i):
            if columns[j].std() > 0:  # flags of probability 0 are drawn nowhere
                assert_independent(columns[i], columns[j])


def test_strengths_of_nothing_leave_their_operation_out():
    section = make_section(color_jitter__p=1.0, color_jitter__contrast=0.0, color_jitter__hue=0.0)
    drawn = draw(section, indices=[0]).jitter
    assert [factor is None for factor in drawn] == [False, True, False, False, True]


@pytest.mark.parametrize("warped", [False, True])
def test_crop_flip_colours_and_cutout_are_made_in_this_order(images, warped):
    """Against numpy and the single operations, which have tests of their own."""
    section = make_section(**MORE, horizontal_flip__p=0.5, shift_scale_rotate__p=0.5 if warped else 0.0)
    drawn = draw_batch(make_epoch_key(3, 5), jnp.arange(8), section)._replace(warp=jnp.zeros(8, bool))
    got = np.asarray(jax.jit(lambda images, p: apply_parameters(images, p, section, CIFAR10_MEAN, CIFAR10_STD))(images, drawn))
    seen = set()
    for i, image in enumerate(images):
        (top, left), (row, column) = np.asarray(drawn.offset[i]) + 4, np.asarray(drawn.cutout[i])
        image = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")[top : top + 32, left : left + 32]
        image = image[:, ::-1] if drawn.flip[i] else image
        image = np.array(apply_jitter(image, Jitter(*(factor[i] for factor in drawn.jitter))))
        image[max(row, 0) : max(row + 8, 0), max(column, 0) : max(column + 8, 0)] = (125, 123, 114)
        expected = (image / 255 - CIFAR10_MEAN) / CIFAR10_STD
        np.testing.assert_allclose(got[i], expected, rtol=0, atol=2e-5)  # levels of up to 255 in float32
        seen.add((bool(drawn.flip[i]), row < 32, (top, left) != (4, 4)))
    assert len(seen) > 2


def test_images_are_flipped_in_every_other_epoch_and_half_of_them_in_the_first(images):
    section = make_section(horizontal_flip__alternate=True, horizontal_flip__p=0.5) | {"backend": "device"}
    augment = make_device_augment(section, (0,) * 3, (1,) * 3)
    image, indices = np.broadcast_to(images[:1], (500, 32, 32, 3)), np.arange(500)
    shown = [np.asarray(jax.jit(augment)(image, indices, 2, epoch)) for epoch in (1, 2, 3)]
    assert not (shown[0] == shown[1]).all((1, 2, 3)).any() and (shown[0] == shown[2]).all()
    np.testing.assert_array_equal(shown[1], shown[0][:, :, ::-1])
    plain = (shown[0] == shown[0][0]).all((1, 2, 3)).sum()
    assert stats.binomtest(int(plain), 500, 0.5).pvalue > P_VALUE
    other = np.asarray(jax.jit(augment)(image, indices, 3, 1))  # of another seed
    assert stats.binomtest(int((other == shown[0]).all((1, 2, 3)).sum()), 500, 0.5).pvalue > P_VALUE
