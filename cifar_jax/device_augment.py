"""The training transform of `data/augment.py` as a pure JAX function, for use inside a compiled step, and more transforms.

What is drawn and what is done with it are two functions: given the host's parameters the pixels equal Albumentations',
and the parameters' distributions are compared by themselves. An image's draws depend on (seed, epoch, index) alone.
The host's draws for the same key are others: its random generator is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from cifar_jax import image_ops
from cifar_jax.color_ops import Jitter, apply_jitter, draw_jitter
from cifar_jax.data.augment import AUGMENT, FLIP, check_augment

SIDE = 32  # pixels; shifts are fractions of it
_NEUTRAL = Jitter(1.0, 1.0, 1.0, 1.0, 0.0)


class Parameters(NamedTuple):
    """What is done to an image; arrays, with a leading (b,) for a batch. The rest is ignored where its flag is False.

    The last ones are of transforms that the host does not make: None where they are left out.
    """

    flip: jax.Array  # bool
    warp: jax.Array  # bool
    shift: jax.Array  # float32, (2,): whole pixels right and down
    scale: jax.Array  # float32, (2,): zoom of x and of y
    rotate: jax.Array  # float32: degrees, counterclockwise
    drop: jax.Array  # bool
    corner: jax.Array  # int32, (2,): x and y of the hole's first pixel
    gray: jax.Array  # bool
    offset: jax.Array | None = None  # int32, (2,): top and left of image_ops.translate
    cutout: jax.Array | None = None  # int32, (2,): top and left of the square
    jitter: Jitter | None = None  # factors, None for those left out


def make_device_augment(augment, mean, std):
    """Returns augment_images(images, indices, seed, epoch) -> float32 (b, 32, 32, 3).

    The order: flip, translate, warp, colours, dropout, cutout, normalize, gray. What an image gets depends on (seed, epoch,
    index) alone. augment: as for `check_augment`; mean, std: one a channel, fractions of 255. images: uint8,
    (b, 32, 32, 3); indices: int, (b,), of the images in their split; seed, epoch: as for `make_epoch_key`. To be jitted or
    called in a jitted step. Raises InputError for an invalid section.
    """
    check_augment(augment)

    def augment_images(images, indices, seed, epoch):
        parameters = draw_batch(make_epoch_key(seed, epoch), indices, augment)
        if augment["horizontal_flip"]["alternate"]:
            keys = _fold_indices(make_epoch_key(seed, 0, FLIP), indices)  # the same in every epoch
            parameters = parameters._replace(flip=jax.vmap(lambda key: alternating_flip(key, epoch))(keys))
        return apply_parameters(images, parameters, augment, mean, std)

    return augment_images


def make_epoch_key(seed, epoch, purpose=AUGMENT):
    """Returns the key of what an epoch draws for a purpose; 0 <= seed, epoch < 2**32; both may be traced."""
    key = jax.random.key(seed, impl="threefry2x32")  # whatever jax_default_prng_impl says
    return jax.random.fold_in(jax.random.fold_in(key, purpose), epoch)


def draw_batch(key, indices, augment) -> Parameters:
    """Draws the parameters of images `indices`, (b,), whatever the batch they are in; key: an epoch's."""
    return jax.vmap(lambda key: draw_parameters(key, augment))(_fold_indices(key, indices))


def _fold_indices(key, indices):
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def draw_parameters(key, augment) -> Parameters:
    """Draws one image's parameters, with Albumentations' distributions; key: the image's.

    Shifts are cut to whole pixels towards zero, so no shift is twice as likely as any other; x and y are zoomed by
    factors of their own. Every draw has its place among the uniform numbers: a probability changes no other draw.
    """
    affine, hole = augment["shift_scale_rotate"], augment["coarse_dropout"]
    u = jax.random.uniform(key, (11,))
    symmetric = 2 * u - 1
    more = draw_more(jax.random.fold_in(key, 1), augment)
    return Parameters(
        flip=u[0] < augment["horizontal_flip"]["p"],
        warp=u[1] < affine["p"],
        shift=jnp.trunc(symmetric[2:4] * (affine["shift"] * SIDE)),
        scale=1 + symmetric[4:6] * affine["scale"],
        rotate=symmetric[6] * affine["rotate"],
        drop=u[7] < hole["p"],
        corner=jnp.floor(u[8:10] * (SIDE - hole["size"] + 1)).astype(jnp.int32),
        gray=u[10] < augment["to_gray"]["p"],
        **more,
    )


def draw_more(key, augment) -> dict:
    """Draws what the host does not make: the last fields of Parameters, neutral where an image's own draw says no."""
    translate, cutout, jitter = augment["translate"], augment["cutout"], augment["color_jitter"]
    keys, fires = jax.random.split(key, 3), jax.random.uniform(jax.random.fold_in(key, 3), (3,))  # split is fold_in of 0 to 2
    more = {}
    if translate["p"] > 0:
        more["offset"] = jnp.where(fires[0] < translate["p"], draw_offset(keys[0], translate["padding"]), 0)
    if cutout["p"] > 0:
        more["cutout"] = jnp.where(fires[1] < cutout["p"], draw_cutout(keys[1], cutout["size"]), SIDE)
    if jitter["p"] > 0:
        factors = draw_jitter(keys[2], Jitter(*(jitter[name] for name in Jitter._fields)), jitter["sharpness_mean"])
        fired = fires[2] < jitter["p"]
        more["jitter"] = Jitter(*(f if f is None else jnp.where(fired, f, n) for f, n in zip(factors, _NEUTRAL, strict=True)))
    return more


def apply_parameters(images, parameters: Parameters, augment, mean, std):
    """Does to each image, uint8 (b, 32, 32, 3), what its parameters say; the rest as in `make_device_augment`.

    Of `augment` it takes the hole's size and which transforms to leave out, those of p == 0.
    """
    fill = np.array([round(255 * m) for m in mean], np.float32)

    def apply(image, p):
        pixels = _per_image(p)
        if p.offset is not None:
            # Before the flip instead of after it: the offset's distribution is the same mirrored.
            image = image_ops.translate(image, *pixels["offset"].astype(jnp.int32))
        if augment["shift_scale_rotate"]["p"] > 0:
            # Rounded to whole levels because the host warps uint8.
            image = jnp.round(image_ops.warp(image, pixels["matrix"]))
        elif augment["horizontal_flip"]["p"] > 0:
            image = jnp.where(pixels["flip"] > 0, image[:, ::-1], image)
        if p.jitter is not None:
            image = apply_jitter(image, pixels["jitter"])
        if augment["coarse_dropout"]["p"] > 0:
            image = image_ops.fill_square(image, *pixels["hole"], augment["coarse_dropout"]["size"], fill)
        if p.cutout is not None:
            image = image_ops.fill_square(image, *pixels["cutout"], augment["cutout"]["size"], fill)
        image = image_ops.normalize(image, mean, std)
        if augment["to_gray"]["p"] > 0:
            image = jnp.where(pixels["gray"] > 0, image_ops.to_gray(image), image)
        return image

    return jax.vmap(apply)(images, parameters)


def _per_image(p: Parameters) -> dict:
    """What the pixels need of an image's parameters, as float32; a hole not made lies outside the image."""
    left, top = jnp.where(p.drop, p.corner, SIDE)
    values = {"matrix": source_matrix(p), "flip": p.flip, "hole": jnp.stack([top, left]), "gray": p.gray}
    values |= {"offset": p.offset, "cutout": p.cutout, "jitter": p.jitter}
    # One row, and a barrier behind it: XLA would otherwise compute sines and draws anew for every pixel, at three times
    # the cost of the warp itself.
    row, unravel = ravel_pytree(jax.tree.map(lambda value: value.astype(jnp.float32), values))
    return unravel(lax.optimization_barrier(row))


def source_matrix(p: Parameters):
    """The matrix of `image_ops.warp` for flip, then zoom, rotation and shift, in this order: float32, (2, 3).

    Inverse of Albumentations' shift @ rotation @ zoom about the centre. The flip costs nothing here: it changes the
    sign of the source's x, and without a warp every position is a whole pixel.
    """
    angle = jnp.where(p.warp, jnp.deg2rad(p.rotate), 0.0)
    scale = jnp.where(p.warp, p.scale, 1.0)
    shift = jnp.where(p.warp, p.shift, 0.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    row_x = jnp.stack([cos, -sin]) / scale[0]
    row_y = jnp.stack([sin, cos]) / scale[1]
    row_x = jnp.where(p.flip, -row_x, row_x)
    rows = jnp.stack([row_x, row_y])
    offset = -(rows[:, 0] * shift[0] + rows[:, 1] * shift[1])
    return jnp.concatenate([rows, offset[:, None]], axis=1)


def alternating_flip(key, epoch):
    """Whether to mirror an image in this epoch: a fair draw in even epochs, the opposite in odd ones. Returns bool.

    key: of the image, the same in all epochs: every two epochs then show both sides of it (airbench,
    arXiv:2404.00498). epoch: int, may be traced.
    """
    return jax.random.bernoulli(key) ^ (epoch % 2 == 1)


def draw_offset(key, padding: int):
    """Draws the (top, left) of `image_ops.translate` for a random crop of the padded image: int32, -padding to padding."""
    return jax.random.randint(key, (2,), -padding, padding + 1)


def draw_cutout(key, size: int):
    """Draws the (top, left) of `image_ops.fill_square` for cutout: int32, a square centred on any pixel of the image."""
    return jax.random.randint(key, (2,), 0, SIDE) - size // 2
