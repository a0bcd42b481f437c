"""Brightness, contrast, saturation, sharpness and hue of one image; `jax.vmap` makes them operations on a batch.

An image is (h, w, 3), RGB, uint8 or float32 in grey levels from 0 to 255; results are float32 in the same range, clipped
and not rounded. The formulas are torchvision's: a blend of the image with a degenerate one, where a factor of 1 changes
nothing, 0 gives the degenerate image and more than 1 goes beyond the image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.image_ops import luma, stack_rgb


class Jitter(NamedTuple):
    """Strengths, where 0 leaves an operation out, or the factors drawn with them, None for one left out.

    A factor lies within its strength of 1, that of sharpness of its mean, and above 0; that of `hue` within its strength of 0,
    in turns of the colour circle (strengths up to 0.5).
    """

    brightness: float | None = 0.0
    contrast: float | None = 0.0
    saturation: float | None = 0.0
    sharpness: float | None = 0.0
    hue: float | None = 0.0


def draw_jitter(key, strength: Jitter, sharpness_mean: float = 1.0) -> Jitter:
    """Draws one image's factors, each uniform and independent of the others and of whether they are drawn."""

    def draw(index, low, high):
        return jax.random.uniform(jax.random.fold_in(key, index), (), minval=low, maxval=high)

    *factors, hue = strength
    means = (1.0, 1.0, 1.0, sharpness_mean)
    drawn = [draw(i, max(0.0, m - s), m + s) if s else None for i, (s, m) in enumerate(zip(factors, means, strict=True))]
    return Jitter(*drawn, draw(len(factors), -hue, hue) if hue else None)


def apply_jitter(image, factors: Jitter):
    """Adjusts an image by the factors that are not None, in the order of `Jitter`'s fields."""
    steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_sharpness, shift_hue)
    for step, factor in zip(steps, factors, strict=True):
        if factor is not None:
            image = step(image, factor)
    return image


def _blend(image, degenerate, factor):
    return jnp.clip(degenerate + factor * (image.astype(jnp.float32) - degenerate), 0.0, 255.0)


def adjust_brightness(image, factor):
    """Blends with black."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image, factor):
    """Blends with the mean brightness of the whole image."""
    return _blend(image, luma(image).mean(), factor)


def adjust_saturation(image, factor):
    """Blends with the gray image."""
    return _blend(image, luma(image), factor)


def adjust_sharpness(image, factor):
    """Blends with the smoothed image: the mean of 3x3 pixels, the middle one counted five times; border pixels are kept."""
    image = jnp.asarray(image, jnp.float32)
    total = lax.reduce_window(image, 0.0, lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    smooth = (total + 4 * image[1:-1, 1:-1]) / 13
    return _blend(image, image.at[1:-1, 1:-1].set(smooth), factor)


def shift_hue(image, turn):
    """Turns the colour circle by `turn` of a whole turn: 1/3 makes red green. Value and saturation (HSV) are kept."""
    red, green, blue = (image[..., c].astype(jnp.float32) for c in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    # Sixths of a turn from red. A gray pixel has none, and its chroma of 0 makes what is said here of no consequence.
    hue = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )

    def channel(start):
        k = jnp.mod(start + hue + 6 * turn, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return stack_rgb(channel(5), channel(3), channel(1))
