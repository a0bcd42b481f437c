"""What the report asks of a trained network, computed by JAX and handed on as numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import stopping
from cifar_jax.budget import IMAGE_SIZE
from cifar_jax.data.augment import DEVICE_ONLY, make_image_augment, make_train_transform
from cifar_jax.data.dataset import Split
from cifar_jax.data.loader import Prefetch, eval_batches
from cifar_jax.device_augment import make_device_augment
from cifar_jax.evaluate import BATCH_SIZE
from cifar_jax.models import describe

GRADIENT_BATCH = 64


def predict(model, variables, split: Split, mean, std) -> tuple[np.ndarray, np.ndarray]:
    """(predicted class, its probability) of every image of a split, in order: int32 and float32, (n,)."""

    @jax.jit
    def answer(variables, images):
        probabilities = jax.nn.softmax(model.apply(variables, images, train=False))
        return jnp.argmax(probabilities, -1), jnp.max(probabilities, -1)

    answers = []
    for batch in Prefetch(eval_batches(split, mean, std, BATCH_SIZE), jax.device_put):
        stopping.check()
        answers.append(answer(variables, batch["image"]))
    predicted, confidence = (np.concatenate(parts)[: len(split)] for parts in zip(*jax.device_get(answers), strict=True))
    return predicted, confidence


def apply_with_map(model, variables, images):
    """(logits, the output of the last layer before pooling, (b, h, w, c)), of normalized images."""
    last = model.layers[-1].name
    logits, seen = model.apply(
        variables, images, train=False, capture_intermediates=lambda module, _: module.name == last, mutable=["intermediates"]
    )
    return logits, seen["intermediates"][last]["__call__"][-1]  # of its last turn


def class_maps(model, variables, images) -> tuple[np.ndarray, np.ndarray]:
    """(logits, (b, classes); what each position adds to each logit, (b, h, w, classes)), of normalized images.

    Average pooling and a linear output in either order are one sum over positions, so the maps add up to the logits exactly.
    Source: class activation maps, arXiv:1512.04150; the output's bias is spread evenly over the positions.
    """
    logits, features = jax.device_get(jax.jit(lambda v, x: apply_with_map(model, v, x))(variables, images))
    head = variables["params"]["head"]
    positions = features.shape[1] * features.shape[2]
    return logits, (features.astype(np.float32) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])) / positions


def effective_field(model, variables, images) -> np.ndarray:
    """Mean over normalized images of |d central unit of the last map / d input|, summed over colours: (32, 32).

    The central unit is the sum of its channels. Source: effective receptive fields, arXiv:1701.04128.
    """

    def central_unit(images):
        features = apply_with_map(model, variables, images)[1]
        return features[:, features.shape[1] // 2, features.shape[2] // 2].astype(jnp.float32).sum()

    gradient = jax.jit(lambda images: abs(jax.grad(central_unit)(images)).sum((0, -1)))
    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    for start in range(0, len(images), GRADIENT_BATCH):
        stopping.check()
        total += np.asarray(gradient(images[start : start + GRADIENT_BATCH]))
    return total / len(images)


def unit_centres(model) -> np.ndarray:
    """Where the units of the last map look, from the config's model section: centres of their fields along a side, in pixels."""
    start, jump, size = 0.0, 1, IMAGE_SIZE
    for layer in describe(model):
        start += ((layer.kernel - 1) / 2 * layer.dilation - layer.padding) * jump
        jump *= layer.stride
        size = layer.output_size(size)
    return start + jump * np.arange(size)


def augmented(config, split: Split, mean, std, *, num: int, epochs: int) -> dict[str, np.ndarray]:
    """{"host", "device"}: the first `num` images of the training split as each side shows them in its first epochs.

    uint8, (num, epochs, 32, 32, 3). The side that the config trains on shows exactly what the run saw; transforms that the
    host does not make are left out there.
    """
    images, indices = split.images[:num], np.arange(min(num, len(split)))
    section = config.augment.to_dict()
    shared = section | {"backend": "host"} | {name: section[name] | {"p": 0.0} for name in DEVICE_ONLY}
    shared["horizontal_flip"] = section["horizontal_flip"] | {"alternate": False}
    compose = make_train_transform(shared, mean, std)
    on_device = jax.jit(make_device_augment(section, mean, std))
    host, device = [], []
    for epoch in range(1, epochs + 1):
        augment = make_image_augment(compose, seed=config.seed, epoch=epoch)
        host.append([augment(image, index) for image, index in zip(images, indices, strict=True)])
        device.append(np.asarray(on_device(images, indices, np.uint32(config.seed), np.int32(epoch))))
    return {name: _to_pixels(np.stack(shown, 1), mean, std) for name, shown in (("host", host), ("device", device))}


def _to_pixels(images, mean, std) -> np.ndarray:
    """Normalized images as uint8: what the inverse of `normalize` makes of them, cut to 0 to 255."""
    return np.clip(np.rint((images * np.float32(std) + np.float32(mean)) * 255), 0, 255).astype(np.uint8)


def first_kernels(variables, model) -> np.ndarray:
    """Kernels of the first convolution as RGB images, float32 (features, k, k, 3): 0.5 is 0, and 0 or 1 the largest weight."""
    conv = variables["params"][model.layers[0].name]["conv"]
    kernel = conv["kernel"] if hasattr(conv, "items") else conv  # beside a bias, where there is one
    kernel = np.asarray(kernel, np.float32).transpose(3, 0, 1, 2)
    return 0.5 + kernel / (2 * max(float(abs(kernel).max()), 1e-12))
