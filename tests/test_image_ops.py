"""Translation, squares, gray: each against numpy or cv2 doing the same. The warp's comparison is in tests/parity."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_jax import image_ops
from cifar_jax.device_augment import Parameters, source_matrix

IMAGE = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
PAD = 9

translate_reflecting = jax.jit(image_ops.translate)
translate_filling = jax.jit(lambda image, top, left: image_ops.translate(image, top, left, (125, 123, 114)))
fill_square = jax.jit(lambda image, top, left, size: image_ops.fill_square(image, top, left, size, (1, 2, 3)))
offsets = st.integers(-PAD, PAD)


@given(offsets, offsets)
def test_a_translation_is_the_crop_of_the_padded_image(top, left):
    area = np.s_[PAD + top : PAD + top + 32, PAD + left : PAD + left + 32]
    padded = cv2.copyMakeBorder(IMAGE, PAD, PAD, PAD, PAD, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(translate_reflecting(IMAGE, top, left), padded[area])
    padded = cv2.copyMakeBorder(IMAGE, PAD, PAD, PAD, PAD, cv2.BORDER_CONSTANT, value=(125, 123, 114))
    np.testing.assert_array_equal(translate_filling(IMAGE, top, left), padded[area])


def test_a_translation_by_almost_the_whole_side_still_reflects():
    padded = np.pad(IMAGE, ((31, 31), (31, 31), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(translate_reflecting(IMAGE, 31, -31), padded[62:, :32])


@given(st.integers(1, 12), st.integers(-13, 35), st.integers(-13, 35))
def test_a_square_is_cut_off_at_the_border(size, top, left):
    expected = IMAGE.copy()
    expected[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = (1, 2, 3)
    got = fill_square(IMAGE, top, left, size)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, expected)


def test_types_are_kept_where_pixels_only_move():
    for image in (IMAGE, IMAGE.astype(np.float32)):
        assert image_ops.translate(image, 1, 2, 0).dtype == image.dtype
        assert image_ops.fill_square(image, 1, 2, 3, 0).dtype == image.dtype


def test_gray_is_cv2s_on_any_scale():
    x = np.random.default_rng(2).normal(0, 1, (32, 32, 3)).astype(np.float32)
    expected = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
    got = image_ops.to_gray(x)
    for c in range(3):
        np.testing.assert_allclose(got[..., c], expected, rtol=0, atol=1e-6)  # the order and fusing of three products


def test_planes_are_stacked_as_jnp_does():
    planes = [jnp.full((2, 3), value) for value in (1.0, 2.0, 3.0)]
    np.testing.assert_array_equal(image_ops.stack_rgb(*planes), jnp.stack(planes, -1))


@pytest.mark.parametrize("flip", [False, True])
def test_the_matrix_undoes_flip_zoom_rotation_and_shift(flip):
    scale, rotate, shift = np.array((0.9, 1.2)), 25.0, np.array((3.0, -2.0))
    p = Parameters(flip, True, jnp.float32(shift), jnp.float32(scale), jnp.float32(rotate), False, jnp.zeros(2), False)
    cos, sin = np.cos(np.deg2rad(rotate)), np.sin(np.deg2rad(rotate))
    forward = np.array([[cos, sin], [-sin, cos]]) @ np.diag(scale) @ np.diag((-1 if flip else 1, 1))
    inverse = np.linalg.inv(forward)
    expected = np.concatenate([inverse, -(inverse @ shift)[:, None]], axis=1)
    np.testing.assert_allclose(source_matrix(p), expected, rtol=0, atol=1e-6)  # float32, values below 4
