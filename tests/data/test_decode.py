"""Whatever the kind and mode of an image file, what is decoded are the colours that a viewer shows, upright.

References are Pillow's, or numpy's by the definition; both are exact for lossless files.
"""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from cifar_jax.data.decode import decode_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 3, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (5, 3, 1), np.uint8)
OVER_WHITE = np.round((RGB * 1.0 * ALPHA + 255.0 * (255 - ALPHA)) / 255).astype(np.uint8)
LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})]


def encode(array_or_image, kind="PNG", **options):
    image = array_or_image if isinstance(array_or_image, PIL.Image.Image) else PIL.Image.fromarray(array_or_image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(number):
    exif = PIL.Image.Exif()
    exif[0x0112] = number
    return exif


def check(content, expected):
    image = decode_image(content)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (*expected.shape[:2], 3)))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_an_image_is_upright_as_its_exif_says(kind, options, number):
    tagged = PIL.Image.open(io.BytesIO(encode(RGB, kind, exif=oriented(number), **options)))
    check(encode(RGB, kind, exif=oriented(number), **options), np.asarray(PIL.ImageOps.exif_transpose(tagged)))
    turned = PIL.Image.fromarray(OVER_WHITE)
    turned.getexif()[0x0112] = number
    content = encode(np.concatenate([RGB, ALPHA], -1), kind, exif=oriented(number), **options)
    check(content, np.asarray(PIL.ImageOps.exif_transpose(turned)))


def test_a_photograph_is_upright_too():
    content = encode(np.repeat(np.repeat(RGB, 16, 0), 16, 1), "JPEG", quality=100, subsampling=0, exif=oriented(6))
    difference = decode_image(content)[8::16, 8::16].astype(int) - np.rot90(RGB, -1)
    assert np.abs(difference).max() < 8  # JPEG rounds; two patches differ by 85 on average


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_what_is_transparent_shows_white(kind, options):
    check(encode(np.concatenate([RGB, ALPHA], -1), kind, **options), OVER_WHITE)


def test_grey():
    grey = RGB[..., 0]
    check(encode(grey), grey[..., None])
    check(encode(np.concatenate([RGB[..., :1], ALPHA], -1)), OVER_WHITE[..., :1])
    check(encode(grey, transparency=int(grey[1, 1])), np.where(grey == grey[1, 1], 255, grey)[..., None])
    bits = PIL.Image.fromarray(grey).convert("1")
    check(encode(bits), np.asarray(bits)[..., None] * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_palette(kind):
    image = PIL.Image.fromarray(RGB).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=6)
    check(encode(image, kind), np.asarray(image.convert("RGB")))


def test_a_palette_with_a_transparent_colour():
    image = PIL.Image.fromarray(RGB).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=6)
    expected = np.where(np.asarray(image)[..., None] == 2, 255, np.asarray(image.convert("RGB")))
    check(encode(image, transparency=2), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_16_bits_the_upper_eight_are_taken(channels):
    levels = RNG.integers(0, 2**16, (5, 3, channels), np.uint16)
    levels[..., 3:] = 2**16 - 1
    content = cv2.imencode(".png", levels)[1].tobytes()
    check(content, (levels[..., 2::-1] if channels > 1 else levels) >> 8)


def test_a_colour_of_16_bits_of_grey_that_is_transparent_is_grey():
    levels = RNG.integers(0, 2**16, (5, 3), np.uint16)
    content = encode(PIL.Image.fromarray(levels), transparency=int(levels[0, 0]))
    assert PIL.Image.open(io.BytesIO(content)).has_transparency_data
    check(content, (levels >> 8)[..., None])


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_a_transparent_image_that_is_cut_is_refused(kind, options):
    content = encode(np.concatenate([RGB, ALPHA], -1), kind, **options)
    for size in range(len(content)):
        with pytest.raises(ValueError, match="header|chunk|decode|whole"):
            decode_image(content[:size])
