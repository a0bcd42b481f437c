"""Small pictures of the report: test images as they are, and class-activation maps laid over them."""

import cv2
import matplotlib
import numpy as np

from cifar_jax.report.data import Maps
from cifar_jax.report.figures import Picture


def encode(image: np.ndarray) -> bytes:
    """A uint8 RGB image as a PNG file."""
    done, content = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    assert done
    return content.tobytes()


def picture_of(name: str, image: np.ndarray, scale: int) -> Picture:
    """An image as it is; the page enlarges it by `scale`."""
    return Picture(name, encode(image), image.shape[1] * scale)


def picture_of_maps(name: str, found: Maps) -> Picture:
    """The image and, beside it, each of its maps laid over its grey form: bright where a position speaks for the class."""
    scale = 4
    image = np.repeat(np.repeat(found.answer.image, scale, 0), scale, 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    low, high = min(m.min() for m in found.maps), max(m.max() for m in found.maps)
    strip = [image]
    for values in found.maps:
        large = np.repeat(np.repeat((values - low) / max(high - low, 1e-12), scale, 0), scale, 1)
        heat = matplotlib.colormaps["inferno"](large)[..., :3] * 255
        strip += [np.full((len(image), 4, 3), 255, np.uint8), (0.35 * grey + 0.65 * heat).astype(np.uint8)]
    return picture_of(name, np.concatenate(strip, 1), 1)
