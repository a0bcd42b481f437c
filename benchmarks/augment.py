"""Augmentation inside a compiled program: ours on the device against Albumentations on the host, kornia and torchvision.

python -m benchmarks.augment [--config configs/base.py] [--json]

Every side makes normalized float32 batches of uint8 images that lie ready, with the config's five transforms, drawing for
each image. Ours, kornia and torchvision run on the GPU where there is one; Albumentations runs in this process alone (the
loader's workers multiply it by their number). kornia and torchvision take part where they can be imported; torchvision
draws once a call and so goes image by image. ratio = Albumentations' time over ours.

Latest result, 1 CPU core (taskset -c 0; AMD EPYC), Python 3.11.7, jax 0.10.2, base, medians of n = 9: ours 89,640 images/s,
Albumentations 5,154; ratio 17.2 (quartiles 16.8 - 19.2).
An earlier state of this code, other work beside, kornia 0.9.0, torchvision 0.28.0: kornia's time over ours 4.8; torchvision's,
on a busier machine, 24.
"""

import itertools
import sys

import jax
import numpy as np

from benchmarks import measure
from cifar_jax import arguments
from cifar_jax.data.augment import augment_batch, make_train_transform
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.device_augment import make_device_augment

BATCHES = 20  # of one measurement


def make_ours(images, augment):
    run_batch = jax.jit(make_device_augment(augment, CIFAR10_MEAN, CIFAR10_STD))
    on_device, indices = jax.device_put(images), jax.device_put(np.arange(len(images), dtype=np.int32))

    def run():
        for epoch in range(BATCHES):
            out = run_batch(on_device, indices, 0, epoch)
        out.block_until_ready()

    return run


def make_host(images, augment):
    compose = make_train_transform(augment, CIFAR10_MEAN, CIFAR10_STD)
    out = np.empty(images.shape, np.float32)
    epochs = itertools.count()

    def run():
        for epoch in itertools.islice(epochs, BATCHES):
            augment_batch(compose, images, range(len(images)), out, seed=0, epoch=epoch)

    return run


def make_kornia(images, augment):
    import kornia.augmentation as K
    import torch

    affine, size = augment["shift_scale_rotate"], augment["coarse_dropout"]["size"]
    shift, zoom = affine["shift"], (1 - affine["scale"], 1 + affine["scale"])
    area = size**2 / 32**2
    steps = (
        K.RandomHorizontalFlip(p=augment["horizontal_flip"]["p"]),
        K.RandomAffine(affine["rotate"], (shift, shift), zoom * 2, padding_mode="reflection", align_corners=True, p=affine["p"]),
        K.RandomErasing((area, area), (1.0, 1.0), value=sum(CIFAR10_MEAN) / 3, p=augment["coarse_dropout"]["p"]),
        K.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        K.RandomGrayscale(p=augment["to_gray"]["p"]),
    )
    return _torch_side(torch.nn.Sequential(*steps), images, torch)


def make_torchvision(images, augment):
    import torch
    from torchvision.transforms import InterpolationMode, v2

    affine, size = augment["shift_scale_rotate"], augment["coarse_dropout"]["size"]
    shift, zoom = affine["shift"], (1 - affine["scale"], 1 + affine["scale"])
    area = size**2 / 32**2
    # It fills with a constant what it cannot reflect, and zooms both axes alike: less work than the others'.
    move = v2.RandomAffine(affine["rotate"], (shift, shift), zoom, interpolation=InterpolationMode.BILINEAR)
    one = v2.Compose(
        [
            v2.RandomHorizontalFlip(augment["horizontal_flip"]["p"]),
            v2.RandomApply([move], p=affine["p"]),
            v2.RandomErasing(augment["coarse_dropout"]["p"], (area, area), (1.0, 1.0), value=list(CIFAR10_MEAN)),
            v2.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            v2.RandomGrayscale(augment["to_gray"]["p"]),
        ]
    )
    return _torch_side(lambda batch: torch.stack([one(image) for image in batch]), images, torch)


def _torch_side(transform, images, torch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

    def run():
        with torch.inference_mode():
            for _ in range(BATCHES):
                transform(batch.float() / 255)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main(argv):
    flags, config = measure.parse(measure.make_parser(__doc__), argv)
    batch_size = config.train.batch_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    augment = config.augment.to_dict()
    sides = {"ours": make_ours(images, augment), "host": make_host(images, augment)}
    left_out = {}
    for name, make in (("kornia", make_kornia), ("torchvision", make_torchvision)):
        try:
            sides[name] = make(images, augment)
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            left_out[name] = str(error).splitlines()[0]
    seconds = measure.in_turn(sides, flags.repeats)
    ratios = {f"{name} over ours": measure.ratio(seconds, "ours", name) for name in sides if name != "ours"}
    summaries = measure.summarize(seconds, BATCHES)
    report = {
        "benchmark": "augment",
        "machine": measure.machine(),
        "batch": f"{batch_size} images",
        "images_per_second": {name: round(batch_size / s["median"]) for name, s in summaries.items()},
        "left_out": left_out,
        "sides": summaries,
        "ratios": ratios,
        "ratio": ratios["host over ours"]["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
