"""Mixup and CutMix of a batch: each image with the one before it in the batch, whose order is random already.

Sources: mixup arXiv:1710.09412, CutMix arXiv:1905.04899; partners, box and share as in torchvision.transforms.v2.
"""

import jax
import jax.numpy as jnp


def draw_shares(key, num: int, alpha: float):
    """Draws the share that each of `num` images keeps, Beta(alpha, alpha); alpha = 1 is uniform. Returns float32, (num,)."""
    return jax.random.beta(key, alpha, alpha, (num,))


def mixup(images, labels, shares):
    """Returns (mixed images, (labels, partners' labels, shares)): image x share + partner x (1 - share).

    images: (b, h, w, c), normalized or not; labels: int, (b,); shares: float32, (b,), 0 to 1.
    """
    share = shares[:, None, None, None]
    mixed = images * share + jnp.roll(images, 1, axis=0) * (1 - share)
    return mixed, (labels, jnp.roll(labels, 1), shares)


def draw_boxes(key, shares, height: int, width: int):
    """Draws CutMix's boxes: centres uniform over the pixels, area (1 - share) of the image before the border cuts it.

    shares: float32, (b,). Returns int32, (b, 4): top, left, bottom, right, the last two not included.
    """
    half = 0.5 * jnp.sqrt(1 - shares)
    half_height, half_width = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
    key_y, key_x = jax.random.split(key)
    y = jax.random.randint(key_y, shares.shape, 0, height)
    x = jax.random.randint(key_x, shares.shape, 0, width)
    top, bottom = jnp.clip(y - half_height, 0, height), jnp.clip(y + half_height, 0, height)
    left, right = jnp.clip(x - half_width, 0, width), jnp.clip(x + half_width, 0, width)
    return jnp.stack([top, left, bottom, right], axis=1)


def cutmix(images, labels, boxes):
    """Returns (mixed images, (labels, partners' labels, shares)): the partner's pixels inside the box, its own outside.

    images: (b, h, w, c); labels: int, (b,); boxes: as from `draw_boxes`. shares: float32, (b,), the pixels kept.
    """
    _, height, width, _ = images.shape
    top, left, bottom, right = (boxes[:, i : i + 1] for i in range(4))
    rows, columns = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]  # b h w
    mixed = jnp.where(inside[..., None], jnp.roll(images, 1, axis=0), images)
    shares = 1 - inside.mean((1, 2), dtype=jnp.float32)
    return mixed, (labels, jnp.roll(labels, 1), shares)


def soft_labels(labels, num_classes: int):
    """Returns the targets of mixed labels (labels, partners' labels, shares): float32, (b, num_classes), rows sum to 1."""
    own, partners, shares = labels
    share = shares[:, None]
    return jax.nn.one_hot(own, num_classes) * share + jax.nn.one_hot(partners, num_classes) * (1 - share)
