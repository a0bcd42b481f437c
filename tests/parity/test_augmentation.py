"""The device's transform against Albumentations', given the parameters that Albumentations drew."""

import random

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from albumentations.augmentations.geometric import functional as geometric

from cifar_jax import image_ops
from cifar_jax.data.augment import make_image_augment, make_train_transform, normalize
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.device_augment import Parameters, apply_parameters, source_matrix
from tests.data.test_augment import SEED_LOG, make_section

NUM = 1500
CENTER = np.array((15.5, 15.5))
# Gray is a sum of three float32 products of size 3 or less; cv2 may fuse a product and a sum, XLA does not.
GRAY_ATOL = 1e-6


@pytest.fixture(scope="module")
def noise():
    """Neighbouring pixels differ by 85 levels on average: a position off by 1/85 of a pixel is a level."""
    return np.random.default_rng(3).integers(0, 256, (NUM, 32, 32, 3), np.uint8)


def run_host(images, section):
    """Returns (Albumentations' images, the parameters it drew as numpy arrays)."""
    compose = make_train_transform(section, CIFAR10_MEAN, CIFAR10_STD)
    compose.save_applied_params = True
    applied, out = [], []

    def recording(image):
        result = compose(image=image)
        applied.append(dict(result["applied_transforms"]))
        return result

    recording.set_random_state = compose.set_random_state
    augment = make_image_augment(recording, seed=11, epoch=2)
    for i, image in enumerate(images):
        out.append(augment(image, i))
    rows = [read_parameters(a) for a in applied]
    return np.stack(out), jax.tree.map(lambda *values: np.stack(values), *rows)


def read_parameters(applied) -> Parameters:
    affine, hole = applied.get("ShiftScaleRotate"), applied.get("CoarseDropout")
    scale, shift, rotate = np.ones(2), np.zeros(2), 0.0
    if affine:
        scale, rotate = np.array((affine["scale"]["x"], affine["scale"]["y"])), affine["rotate"]
        # The matrix moves the centre by the shift alone.
        shift = np.rint(affine["matrix"][:2, :2] @ CENTER + affine["matrix"][:2, 2] - CENTER)
    return Parameters(
        flip=np.bool_("HorizontalFlip" in applied),
        warp=np.bool_(affine is not None),
        shift=np.float32(shift),
        scale=np.float32(scale),
        rotate=np.float32(rotate),
        drop=np.bool_(hole is not None),
        corner=np.int32(hole["holes"][0][:2] if hole else (0, 0)),
        gray=np.bool_("ToGray" in applied),
    )


def run_device(images, parameters, section):
    run = jax.jit(lambda images, p: apply_parameters(images, p, section, CIFAR10_MEAN, CIFAR10_STD))
    return np.asarray(run(images, parameters))


def test_the_whole_transform_is_albumentations_within_a_grey_level(noise):
    expected, parameters = run_host(noise, SEED_LOG)
    for flag in (parameters.flip, parameters.warp, parameters.drop, parameters.gray):
        assert 0.2 < flag.mean() < 0.6  # what is compared has all of them, together and apart
    got = run_device(noise, parameters, SEED_LOG)
    assert got.dtype == np.float32 and got.shape == expected.shape
    difference = np.abs(got - expected)
    level = 1 / (255 * np.array(CIFAR10_STD))  # of each channel; gray's is an average of the three
    limit = np.where(parameters.gray[:, None, None, None], level.max(), level) + GRAY_ATOL
    assert (difference <= limit).all()
    # A warp rounded the other way at a half is rare; where nothing was warped nothing may differ.
    assert (difference > GRAY_ATOL).mean() < 1e-3
    assert difference[~parameters.warp].max() <= GRAY_ATOL


@pytest.mark.parametrize("name", ["horizontal_flip", "coarse_dropout"])
def test_a_flip_and_a_hole_alone_are_albumentations_to_the_bit(noise, name):
    section = make_section(**{f"{name}__p": 0.5})
    expected, parameters = run_host(noise[:200], section)
    np.testing.assert_array_equal(run_device(noise[:200], parameters, section), expected)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_holes_of_any_size_are_albumentations_to_the_bit(noise, size):
    section = make_section(coarse_dropout__p=1.0, coarse_dropout__size=size)
    expected, parameters = run_host(noise[:50], section)
    np.testing.assert_array_equal(run_device(noise[:50], parameters, section), expected)


def test_gray_alone_is_albumentations(noise):
    section = make_section(to_gray__p=0.5)
    expected, parameters = run_host(noise[:100], section)
    np.testing.assert_allclose(run_device(noise[:100], parameters, section), expected, rtol=0, atol=GRAY_ATOL)


def test_with_nothing_to_do_it_is_normalize_to_the_bit(noise):
    _, parameters = run_host(noise[:4], make_section())
    got = run_device(noise[:4], parameters, make_section())
    np.testing.assert_array_equal(got, normalize(noise[:4], CIFAR10_MEAN, CIFAR10_STD))


def make_grid():
    """Parameters far beyond any recipe's, as (flip, scale, rotate, shift): turns, zooms to a hundredth, moves of a whole side."""
    draws = random.Random(5)
    exact = [(flip, (1, 1), turn, (0, 0)) for flip in (False, True) for turn in (0, 90, 180, -90)]
    zooms = [(False, (z, z), a, (0, 0)) for z in (0.01, 0.3, 0.9, 1.1, 1.99) for a in (-30, 0, 10, 45)]
    moves = [(False, (1, 1), 0, (x, y)) for x in (-32, -3, 1, 31) for y in (-31, 0, 2, 32)]
    rest = [
        (
            draws.random() < 0.5,
            (draws.uniform(0.5, 1.5), draws.uniform(0.5, 1.5)),
            draws.uniform(-180, 180),
            (draws.randint(-32, 32), draws.randint(-32, 32)),
        )
        for _ in range(600)
    ]
    return exact + zooms + moves + rest


def warp_on_host(image, flip, scale, rotate, shift):
    matrix = geometric.create_affine_transformation_matrix(
        {"x": shift[0], "y": shift[1]}, {"x": 0, "y": 0}, {"x": scale[0], "y": scale[1]}, rotate, tuple(CENTER)
    )
    image = np.ascontiguousarray(image[:, ::-1]) if flip else image
    return geometric.warp_affine(image, matrix, cv2.INTER_LINEAR, 0, cv2.BORDER_REFLECT_101, (32, 32))


def warp_on_device(images, grid):
    flip, scale, rotate, shift = (np.array(column) for column in zip(*grid, strict=True))
    yes, no = np.ones(len(grid), bool), np.zeros(len(grid), bool)
    corner = np.zeros((len(grid), 2), np.int32)
    p = Parameters(flip, yes, np.float32(shift), np.float32(scale), np.float32(rotate), no, corner, no)
    run = jax.jit(jax.vmap(lambda image, p: jnp.round(image_ops.warp(image, source_matrix(p)))))
    return np.asarray(run(images, p))


def test_the_warp_is_cv2s_within_a_level_over_all_parameters(noise):
    grid = make_grid()
    images = noise[: len(grid)]
    expected = np.stack([warp_on_host(image, *row) for image, row in zip(images, grid, strict=True)])
    difference = np.abs(warp_on_device(images, grid) - expected)
    assert (difference <= 1).mean() >= 0.999
    # What differs was rounded the other way at a half, so it differs by one.
    assert (difference > 0).mean() < 1e-3 and difference.max() <= 1


def test_quarter_turns_flips_and_whole_shifts_only_move_pixels(noise):
    image = noise[0]
    grid = [(flip, (1, 1), turn, (0, 0)) for flip in (False, True) for turn in (0, 90, 180, 270)] + [(False, (1, 1), 0, (3, -2))]
    got = warp_on_device(np.stack([image] * len(grid)), grid)
    for flip in (False, True):
        for quarters in range(4):
            expected = np.rot90(image[:, ::-1] if flip else image, quarters)
            np.testing.assert_array_equal(got[4 * flip + quarters], expected)
    padded = np.pad(image, ((2, 2), (3, 3), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(got[-1], padded[4:36, 0:32])
