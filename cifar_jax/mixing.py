"""Mixup and CutMix of a batch: each image with the one before it in the batch, whose order is random already.

Sources: mixup arXiv:1710.09412, CutMix arXiv:1905.04899; partners and boxes as in torchvision.transforms.v2, but each image
draws a share and a box of its own.
"""

import jax
import jax.numpy as jnp
from jax import lax


def draw_shares(key, num: int, alpha: float):
    """Draws the share that each of `num` images keeps, Beta(alpha, alpha). Returns float32, (num,)."""
    if alpha == 1:  # uniform; what draws the others loops, and on a GPU the host waits at every turn
        return jax.random.uniform(key, (num,))
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


def make_mix(augment, num_classes: int):
    """Returns mix(batch, key, done) -> batch with mixed "image" and "target", or as it is where nothing is to be mixed.

    A batch is mixed by mixup with augment.mixup.p, by CutMix with augment.cutmix.p, else by neither; "label" stays each
    image's own. key: of the batch; done: the fraction of the epochs that lie behind. Over the first augment.mixup.ramp of them
    the probability of mixup rises from 0, and from augment.mixup.until on it is 0; that of CutMix stays. Shares are drawn with
    the section's alpha.
    """
    mixup_p, cutmix_p = augment["mixup"]["p"], augment["cutmix"]["p"]
    ramp, until = augment["mixup"]["ramp"], augment["mixup"]["until"]
    if mixup_p == cutmix_p == 0:
        return lambda batch, key, done: batch

    def by_mixup(images, labels, key):
        return mixup(images, labels, draw_shares(key, len(labels), augment["mixup"]["alpha"]))

    def by_cutmix(images, labels, key):
        share_key, box_key = jax.random.split(key)
        shares = draw_shares(share_key, len(labels), augment["cutmix"]["alpha"])
        return cutmix(images, labels, draw_boxes(box_key, shares, *images.shape[1:3]))

    def unmixed(images, labels, key):
        return images, (labels, labels, jnp.ones(len(labels)))

    def mix(batch, key, done):
        draw_key, mix_key = jax.random.split(key)
        u = jax.random.uniform(draw_key)
        p = mixup_p * (jnp.minimum(done / ramp, 1.0) if ramp else 1.0)
        # A fraction of the epochs may be rounded down; one epoch is never less than 1e-5.
        p = jnp.where(done < until - 1e-6, p, 0.0)
        if cutmix_p:
            which = (u >= p).astype(jnp.int32) + (u >= p + cutmix_p)
            image, labels = lax.switch(which, (by_mixup, by_cutmix, unmixed), batch["image"], batch["label"], mix_key)
        else:  # on a GPU the host would wait for which of two it is
            shares = jnp.where(u < p, draw_shares(mix_key, len(batch["label"]), augment["mixup"]["alpha"]), 1.0)
            image, labels = mixup(batch["image"], batch["label"], shares)
        return batch | {"image": image, "target": soft_labels(labels, num_classes)}

    return mix
