"""Ten classes of drawn shapes and textures: a data set that needs no download, for smoke runs and tests.

Made so that a linear model fails and a small convolutional network does not: place, size, tilt, colours, polarity and
light vary at random and say nothing about the class; no class turns into another when flipped, tilted by 15° or greyed.
"""

import cv2
import numpy as np

from cifar_jax.data.dataset import Dataset, Split, channel_statistics

CLASSES = ("disk", "square", "triangle", "star", "cross", "ring", "rows", "columns", "checkerboard", "dots")
OVERSAMPLING = 2  # drawn at 64×64 and averaged down, so that edges are smooth
SIDE = 32 * OVERSAMPLING
CONTRAST = 70  # least difference in lightness between the two colours, of 255
LIGHTNESS = np.array([0.299, 0.587, 0.114])  # of R, G, B
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float32)
RAMP = np.linspace(-1, 1, 32, dtype=np.float32)


def make_shapes(num_train: int = 5000, num_test: int = 1000, seed: int = 0) -> Dataset:
    """Draws a Dataset of ten balanced classes, the same for the same arguments; mean and std are the training images'.

    num_train, num_test: at least 1 each. seed: 0 or more; training and test images never share a random stream.

    >>> data = make_shapes(20, 10)
    >>> data.train.images.shape, data.train.images.dtype, sorted(data.test.labels.tolist())
    ((20, 32, 32, 3), dtype('uint8'), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    train, test = (_draw_split(num, np.random.default_rng([seed, i])) for i, num in enumerate((num_train, num_test)))
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, CLASSES, mean, std, source="shapes", path="", verified=False)


def _draw_split(num_images: int, rng: np.random.Generator) -> Split:
    labels = rng.permutation(np.arange(num_images, dtype=np.int32) % len(CLASSES))
    return Split(np.stack([_draw_image(CLASSES[label], rng) for label in labels]), labels)


def _draw_image(name: str, rng: np.random.Generator) -> np.ndarray:
    """One uint8 (32, 32, 3) image: the mask of the class between two colours, a slant of light across it, noise."""
    mask = _draw_texture(name, rng) if name in TEXTURES else _draw_shape(name, rng)
    mask = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)  # h w 1
    back, front = _two_colours(rng)
    slant = rng.uniform(-20, 20, 2).astype(np.float32)
    light = (slant[0] * RAMP[:, None] + slant[1] * RAMP)[..., None]
    noise = rng.standard_normal((32, 32, 3), np.float32) * np.float32(rng.uniform(2, 10))
    image = back + (front - back) * mask + light + noise
    return image.clip(0, 255).round().astype(np.uint8)


def _two_colours(rng: np.random.Generator) -> np.ndarray:
    """Two random RGB colours (2, 3), float32, far enough apart in lightness to be told apart without colour."""
    while True:
        colours = rng.uniform(0, 255, (2, 3))
        if abs(np.subtract(*(colours @ LIGHTNESS))) >= CONTRAST:
            return colours.astype(np.float32)


def _draw_shape(name: str, rng: np.random.Generator) -> np.ndarray:
    """A mask, uint8 0 or 255, (SIDE, SIDE), of one shape at random place, size (18–28 pixels of 32) and tilt (±15°)."""
    radius = rng.uniform(9, 14) * OVERSAMPLING
    centre = SIDE / 2 + rng.uniform(-1, 1, 2) * (SIDE / 2 - radius)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if name in ("disk", "ring"):
        middle = tuple(centre.round().astype(int).tolist())
        cv2.circle(mask, middle, round(radius), 255, cv2.FILLED)
        if name == "ring":
            cv2.circle(mask, middle, round(radius * rng.uniform(0.45, 0.65)), 0, cv2.FILLED)
        return mask
    tilt = np.deg2rad(rng.uniform(-15, 15))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    corners = OUTLINES[name] @ turn.T * radius + centre
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 255)
    return mask


def _draw_texture(name: str, rng: np.random.Generator) -> np.ndarray:
    """A mask, uint8, (SIDE, SIDE), of one texture with random period (6–10 pixels of 32), phase and tilt (±10°)."""
    tilt, period = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(6, 10) * OVERSAMPLING
    cos, sin = np.float32(np.cos(tilt) / period), np.float32(np.sin(tilt) / period)
    across = X * cos + Y * sin + np.float32(rng.uniform())
    down = Y * cos - X * sin + np.float32(rng.uniform())
    return TEXTURES[name](across - np.floor(across), down - np.floor(down)).astype(np.uint8) * 255


def _regular(radii: list[float]) -> np.ndarray:
    """The corners (n, 2) of a polygon with these distances from its centre, at equal angles, the first at the top."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.array(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


_ARM = 0.3  # half the width of an arm of the cross
OUTLINES = {  # corners at a distance of about 1 from the centre
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8,
    "triangle": _regular([1, 1, 1]),
    "star": _regular([1, 0.42] * 5),
    "cross": np.array(
        [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
        + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
    ),
}
TEXTURES = {  # of the place within a period, 0 to 1 to the right and downwards
    "rows": lambda across, down: down < 0.5,
    "columns": lambda across, down: across < 0.5,
    "checkerboard": lambda across, down: (across < 0.5) == (down < 0.5),
    "dots": lambda across, down: (across - 0.5) ** 2 + (down - 0.5) ** 2 < 0.33**2,
}
