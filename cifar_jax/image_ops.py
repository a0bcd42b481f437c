"""Operations on one image for use inside a compiled program; `jax.vmap` makes them operations on a batch.

An image is (h, w, c), uint8 or float32, in grey levels from 0 to 255 unless a docstring says otherwise. Nothing here is
random: positions and angles are arguments, so each operation can be compared with what another library makes of the same.
"""

import jax.numpy as jnp
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as cv2 and PIL weigh red, green and blue


def warp(image, matrix):
    """Resamples a uint8 RGB image bilinearly, mirrored about its border pixels (reflect-101) wherever a position lies outside.

    matrix: float32, (2, 3), from (x, y, 1) of a pixel of the result to (x, y) in `image`, both counted from the centre
    of the image: rotation, zoom and flip then need no shift. A whole position gives the pixel itself, exactly.
    Returns float32, not rounded. Source: cv2.warpAffine of OpenCV 5, whose `matrix` is the inverse, counted from a corner.
    """
    height, width, _ = image.shape
    cx, cy = (width - 1) / 2, (height - 1) / 2
    x = (jnp.arange(width, dtype=jnp.float32) - cx)[None, :]
    y = (jnp.arange(height, dtype=jnp.float32) - cy)[:, None]
    # Sums of products, not a matrix product, which a GPU would compute in TF32.
    ix, fx = _split_position(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + cx, width)
    iy, fy = _split_position(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + cy, height)
    # One look-up of a word a neighbour, instead of one a channel, and later operations on channels cost no look-ups.
    # The packing is a sum because XLA repeats, for every look-up, all that it can do by shifts and ors alone.
    shifts = 8 * jnp.arange(3, dtype=jnp.uint32)
    words = (image.astype(jnp.uint32) << shifts[None, None]).sum(-1, dtype=jnp.uint32).reshape(-1)
    corner = iy * width + ix
    neighbours = [words[corner + offset] for offset in (0, 1, width, width + 1)]  # h w

    def channel(c):
        nw, ne, sw, se = (((word >> (8 * c)) & 255).astype(jnp.int32).astype(jnp.float32) for word in neighbours)
        above, below = nw + fx * (ne - nw), sw + fx * (se - sw)
        return above + fy * (below - above)

    return stack_rgb(*(channel(c) for c in range(3)))


def stack_rgb(red, green, blue):
    """jnp.stack of three planes (h, w) into (h, w, 3), by selection, which XLA vectorizes; a concatenation it does not."""
    c = jnp.arange(3)[None, None]
    return jnp.where(c == 0, red[..., None], jnp.where(c == 1, green[..., None], blue[..., None]))


def _split_position(position, size):
    """(index of the lower neighbour, weight of the upper one), each (h, w); both neighbours lie inside the image.

    The mirrored image's interpolation is mirrored too, so one fold of the position serves both neighbours.
    """
    last = size - 1
    position = position - 2 * last * jnp.floor(position / (2 * last))
    position = last - jnp.abs(last - position)
    index = jnp.clip(jnp.floor(position), 0, last - 1)
    return index.astype(jnp.int32), position - index


def translate(image, top, left, fill=None):
    """Crops an image of its own size whose corner lies `top` pixels below and `left` pixels right of the image's own.

    With both drawn from -n to n this is the random crop of an image padded by n. What lies outside is the reflection
    about the border pixels (reflect-101), or `fill`: a whole level, or one a channel. top, left: int, |top| < h, |left| < w.
    """
    height, width, _ = image.shape
    rows, columns = jnp.arange(height) + top, jnp.arange(width) + left
    moved = image[_reflect(rows, height)][:, _reflect(columns, width)]
    if fill is None:
        return moved
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    return jnp.where(inside[..., None], moved, _fill_like(image, fill))


def _reflect(index, size):
    last = size - 1
    return last - jnp.abs(last - jnp.abs(index))


def _fill_like(image, fill):
    return jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)


def fill_square(image, top, left, size, fill):
    """Sets a square of size x size pixels to `fill`: a level, or one a channel; whole ones where the image is uint8.

    top, left: int, of its first pixel; what lies outside the image is cut off. Coarse dropout keeps the square inside;
    cutout (DeVries & Taylor, arXiv:1708.04552) centres it on any pixel: top = row - size // 2.
    """
    rows, columns = jnp.arange(image.shape[0]), jnp.arange(image.shape[1])
    inside = ((rows >= top) & (rows < top + size))[:, None] & ((columns >= left) & (columns < left + size))[None, :]
    return jnp.where(inside[..., None], _fill_like(image, fill), image)


def normalize(image, mean, std):
    """(x / 255 - mean) / std, in the order of `cifar_jax.data.augment.normalize`. mean, std: one a channel, of 255.

    Returns float32.
    """
    mean, std = (np.asarray(v, np.float32) * np.float32(255) for v in (mean, std))
    return (image.astype(jnp.float32) - mean[None, None]) * np.reciprocal(std)[None, None]


def luma(image):
    """Returns the brightness of each pixel, float32 (h, w, 1); image: (h, w, 3) on any scale, normalized too."""
    red, green, blue = (image[..., c : c + 1].astype(jnp.float32) * LUMA[c] for c in range(3))
    return red + green + blue


def to_gray(image):
    """Gives all three channels of an image, on any scale, its `luma`. Returns float32."""
    return jnp.broadcast_to(luma(image), image.shape)
