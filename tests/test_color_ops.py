"""Colour and sharpness against Albumentations, Pillow and colorsys, and the draws' ranges."""

import colorsys

import jax
import numpy as np
import pytest
from albumentations.augmentations.pixel import functional as pixel
from PIL import Image, ImageEnhance
from scipy import stats

from cifar_jax import color_ops
from cifar_jax.color_ops import Jitter, apply_jitter, draw_jitter

IMAGE = np.random.default_rng(4).integers(0, 256, (32, 32, 3), np.uint8)
UNIT = IMAGE.astype(np.float32) / 255
FACTORS = (0.0, 0.4, 1.0, 1.7)
# Float32 on a scale of 255: 255 x 2**-24 a rounding, some tens of them.
ATOL = 1e-3


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color_ops.adjust_brightness, pixel.adjust_brightness_torchvision),
        (color_ops.adjust_contrast, pixel.adjust_contrast_torchvision),
        (color_ops.adjust_saturation, pixel.adjust_saturation_torchvision),
    ],
)
def test_colours_are_albumentations_on_floats(ours, theirs, factor):
    expected = np.clip(theirs(UNIT, factor), 0, 1) * 255
    got = np.asarray(ours(IMAGE, factor))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("factor", FACTORS)
def test_sharpness_is_pillows_within_its_rounding(factor):
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(IMAGE)).enhance(factor), np.float32)
    # Pillow rounds the smoothed image to whole levels (half a level, times |1 - factor|), and cuts off the result's fraction.
    difference = np.asarray(color_ops.adjust_sharpness(IMAGE, factor)) - expected
    assert np.abs(difference).max() <= 0.5 * abs(1 - factor) + 1 + ATOL


def test_sharpness_is_the_formula():
    x = IMAGE.astype(np.float64)
    smooth = x.copy()
    shifted = [x[i : i + 30, j : j + 30] for i in range(3) for j in range(3)]
    smooth[1:-1, 1:-1] = (sum(shifted) + 4 * x[1:-1, 1:-1]) / 13
    for factor in FACTORS:
        expected = np.clip(smooth + factor * (x - smooth), 0, 255)
        np.testing.assert_allclose(color_ops.adjust_sharpness(IMAGE, factor), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25, 1 / 3])
def test_hue_is_colorsys(turn):
    special = [(0, 0, 0), (255, 255, 255), (9, 9, 9), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (7, 200, 7)]
    image = IMAGE.copy()
    image[0, : len(special)] = special
    expected = np.empty((32, 32, 3))
    for y, x in np.ndindex(32, 32):
        h, s, v = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        expected[y, x] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    np.testing.assert_allclose(color_ops.shift_hue(image, turn), 255 * expected, rtol=0, atol=ATOL)


def test_factors_are_uniform_in_their_ranges_and_independent():
    strength = Jitter(brightness=0.4, contrast=0.2, saturation=1.5, sharpness=0.0, hue=0.1)
    keys = jax.random.split(jax.random.key(2), 20_000)
    assert draw_jitter(keys[0], strength, 1.6).sharpness is None
    drawn = jax.jit(jax.vmap(lambda key: draw_jitter(key, strength._replace(sharpness=0.6), 1.6)))(keys)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.8, 1.2), "saturation": (0.0, 2.5), "sharpness": (1.0, 2.2)}
    ranges["hue"] = (-0.1, 0.1)
    columns = []
    for name, (low, high) in ranges.items():
        values = np.asarray(getattr(drawn, name), np.float64)
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-6, name  # as in test_device_augment
        columns.append(values)
    correlation = np.corrcoef(columns) - np.eye(5)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)  # five standard deviations


def test_what_has_no_strength_is_left_out_and_the_rest_is_in_order():
    assert draw_jitter(jax.random.key(0), Jitter()) == Jitter(None, None, None, None, None)
    np.testing.assert_array_equal(apply_jitter(IMAGE, Jitter(None, None, None, None, None)), IMAGE)
    got = apply_jitter(IMAGE, Jitter(1.3, None, 0.5, None, 0.1))
    by_hand = color_ops.shift_hue(color_ops.adjust_saturation(color_ops.adjust_brightness(IMAGE, 1.3), 0.5), 0.1)
    np.testing.assert_array_equal(got, by_hand)
