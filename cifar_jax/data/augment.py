"""Albumentations on the host: the training transform, evaluation's Normalize, and one random stream an image.

An image's draws depend on (seed, epoch, index) alone: not on its batch, on the worker, or on the order of work.
Albumentations is imported by the functions that need it: the import takes seconds, and a command that only checks its
config must not pay them.
"""

import difflib
import importlib.util
import os
import random
import sys
import warnings

import numpy as np

from cifar_jax.errors import InputError

# Where the training transform runs: Albumentations in the loader, or `device_augment.py` in the compiled step.
BACKENDS = ("host", "device")
_PROBABILITY = (float, 0.0, 1.0, "a probability from 0 to 1")
_STRENGTH = (float, 0.0, 1.0, "a strength from 0 to 1")
_ALPHA = (float, 0.01, 100.0, "a number from 0.01 to 100")
_EPOCHS = (float, 0.0, 1.0, "a fraction of the epochs from 0 to 1")
_SIZE = (int, 1, 32, "a whole number of pixels from 1 to 32")
# What may stand in the augment section: (type, lowest, highest, in words); a bool is true or false.
_SECTIONS = {
    "horizontal_flip": {"p": _PROBABILITY, "alternate": (bool, False, True, "true or false")},
    "translate": {"padding": (int, 1, 16, "a whole number of pixels from 1 to 16"), "p": _PROBABILITY},
    "shift_scale_rotate": {
        "shift": (float, 0.0, 1.0, "a fraction of the side from 0 to 1"),
        "scale": (float, 0.0, 0.99, "a fraction from 0 to 0.99"),
        "rotate": (float, 0.0, 180.0, "degrees from 0 to 180"),
        "p": _PROBABILITY,
    },
    "color_jitter": {
        "brightness": _STRENGTH,
        "contrast": _STRENGTH,
        "saturation": _STRENGTH,
        "sharpness": _STRENGTH,
        "sharpness_mean": (float, 0.0, 3.0, "a factor from 0 to 3"),
        "hue": (float, 0.0, 0.5, "turns of the colour circle from 0 to 0.5"),
        "p": _PROBABILITY,
    },
    "coarse_dropout": {"size": _SIZE, "p": _PROBABILITY},
    "cutout": {"size": _SIZE, "p": _PROBABILITY},
    "to_gray": {"p": _PROBABILITY},
    "mixup": {"alpha": _ALPHA, "p": _PROBABILITY, "ramp": _EPOCHS, "until": _EPOCHS},
    "cutmix": {"alpha": _ALPHA, "p": _PROBABILITY},
}
# What the host's Albumentations do not do here.
DEVICE_ONLY = ("translate", "color_jitter", "cutout", "mixup", "cutmix")
# Affine draws a float zoom about 1 and its own border; ShiftScaleRotate is what the recipe names, so this one is known.
_KNOWN_WARNING = "ShiftScaleRotate is a special case of Affine"
# The last word of a SeedSequence's entropy: what is drawn for one purpose must not be drawn again for another.
SHUFFLE, AUGMENT, FLIP, MIX = range(4)


def check_augment(augment) -> None:
    """Raises InputError, naming the key, unless `augment` is a complete and valid augment section.

    augment: ConfigDict or nested dict with backend = "host" or "device" and the sections and keys of configs/base.py.
    Does not import Albumentations.
    """
    _check_keys("augment", augment, ("backend", *_SECTIONS))
    if augment["backend"] not in BACKENDS:
        raise InputError(f"augment.backend: got {augment['backend']!r}, expected 'host' or 'device'; set it to one of them")
    for section, keys in _SECTIONS.items():
        _check_keys(f"augment.{section}", augment[section], tuple(keys))
        for key, (kind, low, high, words) in keys.items():
            value = augment[section][key]
            accepted = (int, float) if kind is float else (kind,)
            # `not low <= value` also refuses NaN; bool is an int to Python, a slip in a config.
            wrong = isinstance(value, bool) is not (kind is bool)
            if wrong or not isinstance(value, accepted) or not low <= value <= high:
                raise InputError(f"augment.{section}.{key}: got {value!r}, expected {words}; change it in the config")
    if augment["horizontal_flip"]["alternate"] and augment["horizontal_flip"]["p"] != 0.5:
        raise InputError(
            f"augment.horizontal_flip.p: got {augment['horizontal_flip']['p']} beside alternate, which mirrors each image every "
            "other time, expected 0.5; set it so, or augment.horizontal_flip.alternate=false"
        )
    if augment["mixup"]["p"] + augment["cutmix"]["p"] > 1:
        raise InputError(
            f"augment.mixup.p: got {augment['mixup']['p']} beside augment.cutmix.p of {augment['cutmix']['p']}, expected a sum "
            "of at most 1, since a batch is mixed in one way or the other; lower one of them"
        )
    if augment["backend"] == "host":
        check_host(augment)


def check_host(augment) -> None:
    """Raises InputError where a valid augment section asks for what Albumentations do not make here."""
    wanted = {f"{name}.p": augment[name]["p"] for name in DEVICE_ONLY}
    wanted["horizontal_flip.alternate"] = augment["horizontal_flip"]["alternate"]
    for key, value in wanted.items():
        if value:
            raise InputError(
                f"augment.{key}: got {value} for Albumentations, expected {type(value)()}: it is made on the device only; "
                f"set it to {type(value)()}, or augment.backend=device where run.py trains"
            )


def check_albumentations() -> None:
    """Raises InputError where Albumentations is not there to be imported; does not import it."""
    if importlib.util.find_spec("albumentations") is None:
        raise InputError(
            "augment.backend: got 'host' in a Python without the module albumentations, expected one that has it; "
            "pip install -e . in the repository, or set augment.backend=device"
        )


def _check_keys(name, section, expected):
    if not hasattr(section, "keys"):
        keys = ", ".join(expected)
        raise InputError(f"{name}: got {section!r}, expected a section of {keys}; copy it from configs/base.py")
    for key in section.keys():
        if key not in expected:
            near = difflib.get_close_matches(str(key), expected, 1, cutoff=0.4)
            hint = f"did you mean {name}.{near[0]}?" if near else "remove it"
            raise InputError(f"{name}.{key}: unknown key, expected {', '.join(expected)}; {hint}")
    for key in expected:
        if key not in section.keys():
            raise InputError(f"{name}.{key}: missing, expected {', '.join(expected)}; copy it from configs/base.py")


def _import_albumentations():
    # Without this the import asks the network for a newer version, two seconds in every worker.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # It imports PyTorch where there is one, two seconds and 200 MB for a transform unused here; None makes that fail.
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None
    try:
        import albumentations
        import cv2
    finally:
        if hide_torch:
            del sys.modules["torch"]

    cv2.setNumThreads(0)  # a 32x32 image is too small to share; workers are the parallelism
    return albumentations, cv2


def make_train_transform(augment, mean, std):
    """Makes the training transform: flip, shift-scale-rotate, coarse dropout, normalize, gray, in this order.

    augment: see `check_augment`; a transform with p == 0 is left out. mean, std: one a channel, fractions of 255.
    The hole is filled with the rounded mean x 255: a fill is truncated to the image's type, so 0.49 would be black.
    ToGray sees normalized values, as in the recipe this follows: its gray is not neutral.
    Returns an albumentations.Compose from uint8 (32, 32, 3) to float32 (32, 32, 3); draw through `make_image_augment`.
    Raises InputError for an invalid section, and for any warning: Albumentations ignores an argument it does not know
    with a warning only.
    """
    check_augment(augment)
    check_host(augment)
    A, cv2 = _import_albumentations()
    flip, affine = augment["horizontal_flip"], augment["shift_scale_rotate"]
    dropout, gray = augment["coarse_dropout"], augment["to_gray"]
    size = (dropout["size"], dropout["size"])
    fill = tuple(round(255 * m) for m in mean)

    def build():
        steps = (
            (flip["p"], lambda p: A.HorizontalFlip(p=p)),
            (
                affine["p"],
                lambda p: A.ShiftScaleRotate(
                    shift_limit=affine["shift"],
                    scale_limit=affine["scale"],
                    rotate_limit=affine["rotate"],
                    interpolation=cv2.INTER_LINEAR,
                    border_mode=cv2.BORDER_REFLECT_101,
                    p=p,
                ),
            ),
            (
                dropout["p"],
                lambda p: A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=size, hole_width_range=size, fill=fill, p=p),
            ),
            (1.0, lambda p: _make_normalize(A, mean, std)),
            (gray["p"], lambda p: A.ToGray(p=p)),
        )
        return A.Compose([make(p) for p, make in steps if p > 0])

    return _without_warnings(build)


def make_eval_transform(mean, std):
    """Makes evaluation's transform, Normalize alone; `normalize` does the same to a batch.

    mean, std: one a channel, fractions of 255.
    """
    A, _ = _import_albumentations()
    return _without_warnings(lambda: A.Compose([_make_normalize(A, mean, std)]))


def _make_normalize(A, mean, std):
    return A.Normalize(mean=tuple(mean), std=tuple(std), max_pixel_value=255.0)


def _without_warnings(build):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=_KNOWN_WARNING)
        try:
            return build()
        except (Warning, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"augment: Albumentations says {reason!r}, expected no complaint; install 'albumentations>=2.0.8,<2.1'"
            ) from error


def normalize(images: np.ndarray, mean, std) -> np.ndarray:
    """Normalizes images, (x / 255 - mean) / std a channel, bit for bit as Albumentations' Normalize does.

    images: uint8, (..., 3). mean, std: fractions of 255. Returns float32 of the same shape.
    """
    mean, std = (np.asarray(v, np.float32) * np.float32(255) for v in (mean, std))
    table = (np.arange(256, dtype=np.float32)[:, None] - mean) * np.reciprocal(std)
    out = np.empty(images.shape, np.float32)
    for c in range(images.shape[-1]):
        out[..., c] = table[:, c][images[..., c]]
    return out


def seed_sequence(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    """Hashes (seed, epoch, purpose) into the root of a random stream; 0 <= seed < 2**64, 0 <= epoch < 2**32.

    Always four words: SeedSequence splits a large integer and pads with zeros: (2**32,) and (0, 1) would be the same.
    """
    return np.random.SeedSequence((seed & 0xFFFFFFFF, seed >> 32, epoch, purpose))


def make_image_augment(compose, *, seed: int, epoch: int):
    """Returns augment(image, index) -> float32 (32, 32, 3): `compose` of the uint8 image with random streams of its own.

    One Philox generator keyed by (seed, epoch), its counter set from the index before each image: distinct counters are
    distinct streams by construction, and setting a counter costs a tenth of making a generator. `Compose(seed=n)` would
    give every transform the same stream: a flip and a dropout of equal probability then fire together.
    The function returned draws through `compose`: of several made from one compose only the newest may be called.
    """
    bits = np.random.Philox(seed_sequence(seed, epoch, AUGMENT))
    start = bits.state
    python_random = random.Random()
    compose.set_random_state(np.random.Generator(bits), python_random)
    counter = start["state"]["counter"]

    def augment(image, index):
        counter[:] = (0, index, 0, 0)
        bits.state = start
        python_random.seed(int(bits.random_raw()))
        return compose(image=image)["image"]

    return augment


def augment_batch(compose, images, indices, out, *, seed: int, epoch: int) -> None:
    """Writes compose(images[i]) for each i of `indices` into the rows of `out`; see `make_image_augment`.

    images: uint8, (n, 32, 32, 3); indices: (b,), 0 <= i < n; out: float32, (b, 32, 32, 3).
    """
    augment = make_image_augment(compose, seed=seed, epoch=epoch)
    for row, index in enumerate(indices):
        out[row] = augment(images[index], index)
