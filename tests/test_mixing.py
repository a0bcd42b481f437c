"""Mixup and CutMix against the formulas of their papers in float64, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cifar_jax.mixing import cutmix, draw_boxes, draw_shares, make_mix, mixup, soft_labels

RNG = np.random.default_rng(8)
IMAGES = RNG.normal(0, 1, (5, 32, 32, 3)).astype(np.float32)
LABELS = np.array([3, 1, 4, 1, 9])
SHARES = np.float32([0.0, 1.0, 0.25, 0.7, 0.5])


def test_mixup_is_the_weighted_mean_with_the_image_before():
    mixed, (own, partners, shares) = mixup(IMAGES, LABELS, SHARES)
    np.testing.assert_array_equal(own, LABELS)
    np.testing.assert_array_equal(partners, [9, 3, 1, 4, 1])
    np.testing.assert_array_equal(shares, SHARES)
    for i, share in enumerate(SHARES.astype(np.float64)):
        expected = share * IMAGES[i].astype(np.float64) + (1 - share) * IMAGES[i - 1].astype(np.float64)
        np.testing.assert_allclose(mixed[i], expected, rtol=0, atol=1e-6)  # two float32 products of size 4
    np.testing.assert_array_equal(mixed[1], IMAGES[1])


def test_cutmix_pastes_the_box_and_counts_its_pixels():
    boxes = np.array([[0, 0, 32, 32], [5, 5, 5, 9], [0, 3, 10, 32], [31, 31, 32, 32], [8, 0, 24, 16]])
    mixed, (own, partners, shares) = cutmix(IMAGES, LABELS, boxes)
    for i, (top, left, bottom, right) in enumerate(boxes):
        expected = IMAGES[i].copy()
        expected[top:bottom, left:right] = IMAGES[i - 1][top:bottom, left:right]
        np.testing.assert_array_equal(mixed[i], expected)
        area = (bottom - top) * (right - left)
        assert shares[i] == pytest.approx(1 - area / 1024, abs=1e-7)
    np.testing.assert_array_equal(own, LABELS)
    np.testing.assert_array_equal(partners, np.roll(LABELS, 1))


def test_soft_labels_carry_the_shares():
    got = soft_labels((jnp.array([0, 2]), jnp.array([1, 2]), jnp.array([0.75, 0.4])), 3)
    np.testing.assert_allclose(got, [[0.75, 0.25, 0], [0, 0, 1]], rtol=0, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = np.asarray(draw_shares(jax.random.key(0), 20_000, alpha), np.float64)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-6  # as in test_device_augment


def test_boxes_have_their_area_and_uniform_centres():
    shares = np.full(20_000, 0.75, np.float32)  # a quarter of the area: half of each side, 8 pixels either way
    top, left, bottom, right = np.asarray(draw_boxes(jax.random.key(3), shares, 32, 32)).T
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == 32
    for low, high in ((top, bottom), (left, right)):
        center = np.where(low > 0, low + 8, high - 8)
        np.testing.assert_array_equal(low, np.maximum(center - 8, 0))
        np.testing.assert_array_equal(high, np.minimum(center + 8, 32))
        assert stats.chisquare(np.bincount(center, minlength=32)).pvalue > 1e-6
    assert abs(np.corrcoef(top, left)[0, 1]) < 5 / np.sqrt(20_000)


def test_boxes_follow_each_images_share():
    shares = np.float32([0.0, 0.5, 0.9, 1.0])
    sides = np.int32(np.floor(0.5 * np.sqrt(1 - shares.astype(np.float64)) * 32)) * 2  # before the border cuts them
    draw = jax.jit(jax.vmap(lambda key: draw_boxes(key, shares, 32, 32)))
    boxes = np.asarray(draw(jax.random.split(jax.random.key(5), 500)))
    heights = boxes[..., 2] - boxes[..., 0]
    np.testing.assert_array_equal(heights.max(0), sides)
    assert (heights >= sides // 2 - 1).all()


def section(mixup_p, cutmix_p, ramp=0.0, until=1.0):
    return {"mixup": {"alpha": 0.2, "p": mixup_p, "ramp": ramp, "until": until}, "cutmix": {"alpha": 1.0, "p": cutmix_p}}


@pytest.mark.parametrize("cutmix_p", [0.45, 0.0])
def test_a_batch_is_mixed_one_way_or_the_other_or_not_with_its_probability(cutmix_p):
    """Told apart by the pixels: a pixel of CutMix comes from one image, and of mixup none does."""
    images = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None, None] ** 2, (6, 8, 8, 3))
    batch = {"image": images, "label": np.arange(6)}
    mix = jax.jit(jax.vmap(lambda key: make_mix(section(0.3, cutmix_p), 6)(batch, key, 0.0)))
    mixed = jax.device_get(mix(jax.random.split(jax.random.key(2), 4000)))
    pure = (mixed["image"] == images).all((1, 2, 3, 4))
    boxes = np.isin(mixed["image"], images[:, 0, 0, 0]).all((1, 2, 3, 4)) & ~pure
    counts = [pure.sum(), boxes.sum(), (~pure & ~boxes).sum()]
    probabilities = np.array((0.7 - cutmix_p, cutmix_p, 0.3))
    assert stats.chisquare(counts[:: 1 if cutmix_p else 2], 4000 * probabilities[probabilities > 0]).pvalue > 1e-6
    assert boxes.any() == (cutmix_p > 0)
    np.testing.assert_array_equal(mixed["label"], np.broadcast_to(np.arange(6), (4000, 6)))
    # What the target says is what the pixels hold: shares of an image and of the one before it.
    own = mixed["target"][:, np.arange(6), np.arange(6)]
    expected = own[..., None] * images[:, 0, 0] + (1 - own[..., None]) * np.roll(images[:, 0, 0], 1, 0)
    np.testing.assert_allclose(mixed["image"].mean((2, 3)), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(mixed["target"].sum(-1), 1, rtol=0, atol=1e-6)


def test_mixup_becomes_as_probable_as_it_will_be_over_the_ramp():
    batch = {"image": IMAGES, "label": LABELS}
    mix = jax.vmap(lambda done, key: make_mix(section(0.8, 0.0, 0.5), 10)(batch, key, done), (None, 0))
    keys = jax.random.split(jax.random.key(3), 1000)
    counted = jax.jit(jax.vmap(lambda done: (mix(done, keys)["target"].max(-1) < 1).any(-1).mean(), 0))
    found = counted(np.float32([0.0, 0.25, 0.5, 0.9]))
    assert found[0] == 0
    # Five deviations of a fraction of 1000; the last two differ by nothing at all.
    np.testing.assert_allclose(found[1:], [0.4, 0.8, 0.8], rtol=0, atol=5 * np.sqrt(0.25 / 1000))
    assert found[2] == found[3]


@pytest.mark.parametrize("cutmix_p", [0.25, 0.0])
def test_mixup_ends_where_the_config_says(cutmix_p):
    batch = {"image": IMAGES, "label": LABELS}
    mix = jax.vmap(lambda done, key: make_mix(section(0.75, cutmix_p, 0.0, 0.7), 10)(batch, key, done), (None, 0))
    keys = jax.random.split(jax.random.key(3), 500)
    blended = lambda done: (mix(done, keys)["target"].max(-1) < 1).any(-1).mean()  # noqa: E731
    before, rounded, at, late = jax.jit(jax.vmap(blended))(np.float32([0.69, 0.7 - 6e-8, 0.7, 0.99]))
    assert before > 0.9 * (0.75 + cutmix_p) and 0.8 * cutmix_p <= rounded == at == late <= 1.2 * cutmix_p


def test_without_mixing_a_batch_is_as_it_was():
    batch = {"image": IMAGES, "label": LABELS}
    assert make_mix(section(0.0, 0.0), 10)(batch, None, 0.0) is batch
