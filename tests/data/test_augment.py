"""The training transform: its order and parameters, what each step does to pixels, and one random stream an image.

Statistics are taken over fixed keys, so these tests cannot flicker; the bounds are five standard deviations, which
independent draws of the right probability would pass but for 6 in 10 million choices of the keys.
"""

import copy
import pathlib
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

import cifar_jax
from cifar_jax.data.augment import (
    augment_batch,
    check_augment,
    make_eval_transform,
    make_image_augment,
    make_train_transform,
    normalize,
    seed_sequence,
)
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.errors import InputError

SEED_LOG = {
    "backend": "host",
    "horizontal_flip": {"p": 0.3, "alternate": False},
    "translate": {"padding": 4, "p": 0.0},
    "shift_scale_rotate": {"shift": 0.1, "scale": 0.1, "rotate": 30.0, "p": 0.5},
    "color_jitter": {
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "sharpness": 0.5,
        "sharpness_mean": 1.0,
        "hue": 0.02,
        "p": 0.0,
    },
    "coarse_dropout": {"size": 16, "p": 0.5},
    "cutout": {"size": 8, "p": 0.0},
    "to_gray": {"p": 0.5},
    "mixup": {"alpha": 0.2, "p": 0.0, "ramp": 0.0, "until": 1.0},
    "cutmix": {"alpha": 1.0, "p": 0.0},
}
FILL = np.array((125, 123, 114), np.uint8)


def make_section(**changes):
    """The recipe of the log with all probabilities 0 but for `changes`: key__subkey=value."""
    section = copy.deepcopy(SEED_LOG)
    for name in list(section)[1:]:
        section[name]["p"] = 0.0
    for key, value in changes.items():
        name, _, sub = key.rpartition("__")
        section[name][sub] = value
    return section


def make(section):
    return make_train_transform(section, CIFAR10_MEAN, CIFAR10_STD)


def draw(section, image, num, *, seed=0, epoch=0):
    compose = make(section)
    return np.stack([make_image_augment(compose, seed=seed, epoch=epoch)(image, i) for i in range(num)])


def to_pixels(x):
    return np.rint((x.astype(np.float64) * CIFAR10_STD + CIFAR10_MEAN) * 255).astype(int)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(7).integers(0, 256, (32, 32, 3), np.uint8)


def test_the_pipeline_is_the_logs_in_order_and_parameters():
    flip, affine, dropout, scale, gray = make(SEED_LOG).transforms
    assert (type(flip).__name__, flip.p) == ("HorizontalFlip", 0.3)
    assert (type(affine).__name__, affine.p) == ("ShiftScaleRotate", 0.5)
    assert affine.shift_limit_x == affine.shift_limit_y == (-0.1, 0.1)
    # scale_limit is the zoom less one in ShiftScaleRotate's words, and the zoom itself in Affine's, which it is.
    assert affine.scale["x"] == pytest.approx((0.9, 1.1)) and affine.rotate == (-30.0, 30.0)
    assert (affine.interpolation, affine.border_mode) == (cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101)
    assert (type(dropout).__name__, dropout.p) == ("CoarseDropout", 0.5)
    assert dropout.num_holes_range == (1, 1)
    assert dropout.hole_height_range == dropout.hole_width_range == (16, 16)
    assert dropout.fill == tuple(FILL)
    assert (type(scale).__name__, scale.p, scale.max_pixel_value) == ("Normalize", 1.0, 255.0)
    assert (tuple(scale.mean), tuple(scale.std)) == (CIFAR10_MEAN, CIFAR10_STD)
    assert (type(gray).__name__, gray.p) == ("ToGray", 0.5)


def test_a_transform_of_probability_zero_is_left_out():
    assert [type(t).__name__ for t in make(make_section()).transforms] == ["Normalize"]
    names = [type(t).__name__ for t in make(make_section(to_gray__p=0.1)).transforms]
    assert names == ["Normalize", "ToGray"]


def test_a_config_dict_serves_as_well_as_a_dict(image):
    got = draw(ConfigDict(SEED_LOG), image, 8)
    np.testing.assert_array_equal(got, draw(SEED_LOG, image, 8))


def test_normalize_is_the_formula_and_albumentations_to_the_bit():
    every = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), (16, 16, 3))
    got = normalize(every, CIFAR10_MEAN, CIFAR10_STD)
    assert got.dtype == np.float32
    formula = (every / np.float64(255) - CIFAR10_MEAN) / CIFAR10_STD
    np.testing.assert_allclose(got, formula, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got, make_eval_transform(CIFAR10_MEAN, CIFAR10_STD)(image=every)["image"])


def test_no_transform_leaves_normalize(image):
    np.testing.assert_array_equal(draw(make_section(), image, 1)[0], normalize(image, CIFAR10_MEAN, CIFAR10_STD))


def test_flip_mirrors_with_its_probability(image):
    plain = normalize(image, CIFAR10_MEAN, CIFAR10_STD)
    drawn = draw(make_section(horizontal_flip__p=0.3), image, 900)
    flipped = (drawn == plain[:, ::-1]).all((1, 2, 3))
    assert (flipped | (drawn == plain).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 900)
    # Neighbouring indices are independent too.
    assert abs(np.corrcoef(flipped[:-1], flipped[1:])[0, 1]) < 5 / np.sqrt(899)


def test_shift_scale_rotate_by_nothing_is_the_identity(image):
    zero = {"shift_scale_rotate__" + key: 0.0 for key in ("shift", "scale", "rotate")}
    got = draw(make_section(shift_scale_rotate__p=1.0, **zero), image, 3)
    np.testing.assert_array_equal(got, np.stack([normalize(image, CIFAR10_MEAN, CIFAR10_STD)] * 3))


def test_shift_moves_no_farther_than_its_fraction_and_reflects_at_the_border():
    ramp = np.broadcast_to((np.arange(32, dtype=np.uint8) * 8)[None, :, None], (32, 32, 3)).copy()
    section = make_section(shift_scale_rotate__p=1.0, shift_scale_rotate__scale=0.0, shift_scale_rotate__rotate=0.0)
    pixels = to_pixels(draw(section, ramp, 200))[:, 16, :, 0]
    shifts = (pixels[:, 16] - 16 * 8) / 8
    assert np.abs(shifts).max() <= 3.2 + 0.1 and np.abs(shifts).max() > 2.8  # 0.1 of 32 pixels, and a level of rounding
    assert shifts.min() < -2.5 and shifts.max() > 2.5
    for row, shift in zip(pixels, shifts, strict=True):
        position = np.abs(np.arange(32) + shift)
        expected = 8 * np.where(position > 31, 62 - position, position)
        # Where the ramp turns around, interpolation rounds the tip off by up to half a step.
        assert np.abs(row - expected).max() <= 5


def test_shift_scale_rotate_brings_no_border_colour_in():
    constant = np.full((32, 32, 3), 200, np.uint8)
    section = make_section(shift_scale_rotate__p=1.0, shift_scale_rotate__shift=1.0, shift_scale_rotate__rotate=180.0)
    np.testing.assert_array_equal(to_pixels(draw(section, constant, 30)), 200)


@pytest.mark.parametrize("size", [1, 8, 16, 32])
def test_dropout_makes_one_hole_of_exactly_its_size_with_the_fill(size):
    black = np.zeros((32, 32, 3), np.uint8)
    drawn = draw(make_section(coarse_dropout__p=1.0, coarse_dropout__size=size), black, 40)
    fill = normalize(FILL, CIFAR10_MEAN, CIFAR10_STD)
    corners = set()
    for x in drawn:
        hole = (x == fill).all(-1)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == size * size and len(rows) == len(columns) == size
        assert (to_pixels(x)[~hole] == 0).all()
        corners.add((rows[0], columns[0]))
    assert len(corners) > 20 or size == 32


def test_gray_weighs_the_normalized_channels(image):
    (x,) = draw(make_section(to_gray__p=1.0), image, 1)
    np.testing.assert_array_equal(x[..., 0], x[..., 1])
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    expected = normalize(image, CIFAR10_MEAN, CIFAR10_STD) @ np.array((0.299, 0.587, 0.114))
    np.testing.assert_allclose(x[..., 0], expected, rtol=0, atol=1e-5)
    assert x.min() < -0.5  # not clipped to an image's range


def test_flip_and_dropout_are_independent():
    marked = np.zeros((32, 32, 3), np.uint8)
    marked[:, :16] = 255
    section = make_section(horizontal_flip__p=0.5, coarse_dropout__p=0.5, coarse_dropout__size=8)
    pixels = to_pixels(draw(section, marked, 400))
    flipped = (pixels[:, :, :16, 0] == 0).any((1, 2))
    dropped = (pixels == FILL).all(-1).any((1, 2))
    for event in (flipped, dropped):
        assert abs(event.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
    assert abs(np.corrcoef(flipped, dropped)[0, 1]) < 5 / np.sqrt(400)


def test_the_same_key_gives_the_same_bits_whatever_went_before(image):
    first = make_image_augment(make(SEED_LOG), seed=3, epoch=5)(image, 9)
    compose = make(SEED_LOG)
    draws = [make_image_augment(compose, seed=3, epoch=5)(image, i) for i in (30, 9, 2, 9)]
    np.testing.assert_array_equal(draws[1], first)
    np.testing.assert_array_equal(draws[3], first)
    assert first.dtype == np.float32 and first.shape == (32, 32, 3)


def test_a_batch_is_its_images_one_by_one(image):
    images = np.stack([image, image[::-1], image[:, ::-1]])
    out = np.empty((2, 32, 32, 3), np.float32)
    compose = make(SEED_LOG)
    augment_batch(compose, images, np.array([2, 0]), out, seed=1, epoch=4)
    for row, index in enumerate((2, 0)):
        alone = make_image_augment(compose, seed=1, epoch=4)(images[index], index)
        np.testing.assert_array_equal(out[row], alone)


def test_seed_epoch_and_index_each_change_the_draw(image):
    always = {name + "__p": 1.0 for name in ("shift_scale_rotate", "coarse_dropout")}
    compose = make(make_section(**always))
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (2**64 - 1, 0, 0)]
    draws = {make_image_augment(compose, seed=s, epoch=e)(image, i).tobytes() for s, e, i in keys}
    assert len(draws) == len(keys)


def test_seeds_beyond_32_bits_do_not_meet_smaller_ones():
    keys = [(0, 1, 0), (2**32, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)]
    assert len({tuple(seed_sequence(*key).generate_state(4)) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("horizontal_flip.p", -0.1, "0 to 1"),
        ("to_gray.p", 1.5, "0 to 1"),
        ("to_gray.p", float("nan"), "0 to 1"),
        ("to_gray.p", True, "0 to 1"),
        ("coarse_dropout.p", "half", "0 to 1"),
        ("coarse_dropout.size", 0, "1 to 32"),
        ("coarse_dropout.size", 33, "1 to 32"),
        ("coarse_dropout.size", 8.0, "whole number"),
        ("shift_scale_rotate.shift", -0.1, "0 to 1"),
        ("shift_scale_rotate.scale", 1.0, "0 to 0.99"),
        ("shift_scale_rotate.rotate", 181, "0 to 180"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_key_value_and_range(key, value, expected):
    section = copy.deepcopy(SEED_LOG)
    name, sub = key.split(".")
    section[name][sub] = value
    with pytest.raises(InputError) as error:
        check_augment(section)
    text = str(error.value)
    assert text.startswith(f"augment.{key}: got {value!r}, expected") and expected in text and "\n" not in text


@pytest.mark.parametrize(
    ("name", "sub", "hint"),
    [
        ("horizontal_flop", None, "augment.horizontal_flip?"),
        ("coarse_dropout", "sise", "augment.coarse_dropout.size?"),
        ("xyzzy", None, "remove it"),
    ],
)
def test_an_unknown_key_names_the_nearest(name, sub, hint):
    section = copy.deepcopy(SEED_LOG)
    if sub is None:
        section[name] = {"p": 0.1}
    else:
        section[name][sub] = 1
    with pytest.raises(InputError, match="unknown key") as error:
        check_augment(ConfigDict(section))
    assert hint in str(error.value)


def test_a_missing_key_a_section_that_is_none_and_another_backend_are_refused():
    section = copy.deepcopy(SEED_LOG)
    del section["to_gray"]["p"]
    with pytest.raises(InputError, match="augment.to_gray.p: missing"):
        check_augment(section)
    with pytest.raises(InputError, match="augment.to_gray: got 0.5, expected"):
        check_augment({**SEED_LOG, "to_gray": 0.5})
    with pytest.raises(InputError, match="augment.backend: got 'gpu', expected 'host' or 'device'; set it to one of them"):
        check_augment({**SEED_LOG, "backend": "gpu"})
    for backend in ("host", "device"):
        check_augment({**SEED_LOG, "backend": backend})


def test_a_warning_of_albumentations_is_an_error(monkeypatch):
    import albumentations

    def flip(p):
        warnings.warn("Argument(s) 'colour'\nare not valid", UserWarning, stacklevel=2)

    monkeypatch.setattr(albumentations, "HorizontalFlip", flip)
    with pytest.raises(InputError) as error:
        make(SEED_LOG)
    assert "'colour' are not valid" in str(error.value) and "\n" not in str(error.value)


def test_a_check_imports_neither_albumentations_nor_jax_and_a_transform_no_torch():
    code = f"""
import sys, cifar_jax.data.loader
from cifar_jax.data.augment import check_augment, make_train_transform
check_augment({SEED_LOG!r})
assert not {{"albumentations", "cv2", "jax", "flax"}} & set(sys.modules), sorted(sys.modules)
make_train_transform({SEED_LOG!r}, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
assert "albumentations" in sys.modules and not {{"jax", "torch"}} & set(sys.modules), sorted(sys.modules)
"""
    root = pathlib.Path(cifar_jax.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=root).returncode == 0
