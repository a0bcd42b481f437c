"""Writes the model card of committed weights: what they are, how right and how sure they are, and what they do to shifted images.

python results/card.py base [NAME ...]    evaluates the test images and writes cifar_jax/weights/NAME.md
"""

import csv
import pathlib
import sys

import cv2
import jax
import numpy as np

from cifar_jax import arguments
from cifar_jax.budget import summarize
from cifar_jax.data.augment import normalize
from cifar_jax.data.sources import load_dataset
from cifar_jax.models import create_model
from cifar_jax.scores import BINS, class_counts, expected_calibration_error, reliability
from cifar_jax.weights import COMMITTED, committed_names, load_weights

BATCH = 500


def _noisy(images, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def _jpeg(image, quality):
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return cv2.imdecode(content, cv2.IMREAD_COLOR)


def _each(function, images):
    return np.stack([function(image) for image in images])


# What is done to uint8 images (n, 32, 32, 3) before they are normalized.
SHIFTS = {
    "none": lambda images: images,
    "darker, x 0.6": lambda images: np.rint(images * 0.6).astype(np.uint8),
    "brighter, x 1.4": lambda images: np.clip(np.rint(images * 1.4), 0, 255).astype(np.uint8),
    "Gaussian blur, sigma 1 pixel": lambda images: _each(lambda image: cv2.GaussianBlur(image, (0, 0), 1.0), images),
    "Gaussian noise, sigma 10 levels": lambda images: _noisy(images, 10),
    "Gaussian noise, sigma 25 levels": lambda images: _noisy(images, 25),
    "JPEG, quality 50": lambda images: _each(lambda image: _jpeg(image, 50), images),
    "JPEG, quality 20": lambda images: _each(lambda image: _jpeg(image, 20), images),
}


def make_predict(weights):
    """predict(uint8 images) -> probabilities (n, classes)."""
    model = create_model(weights.config.model)
    apply = jax.jit(lambda images: jax.nn.softmax(model.apply(weights.variables, images, train=False)))

    def predict(images):
        batches = (normalize(images[i : i + BATCH], weights.mean, weights.std) for i in range(0, len(images), BATCH))
        return np.concatenate([apply(batch) for batch in batches])

    return predict


def measure(predict, test) -> dict:
    """{"shifts": {name: accuracy}, "classes": [accuracy], "ece", "confidence"} of a test split; fractions."""
    found = {name: predict(shift(test.images)) for name, shift in SHIFTS.items()}
    right = {name: probabilities.argmax(1) == test.labels for name, probabilities in found.items()}
    clean = found["none"]
    correct, images = class_counts(clean.argmax(1), test.labels, clean.shape[1])
    return {
        "shifts": {name: float(hits.mean()) for name, hits in right.items()},
        "classes": (correct / images).tolist(),
        "ece": expected_calibration_error(reliability(clean.max(1), right["none"])),
        "confidence": float(clean.max(1).mean()),
    }


def epochs_trained(name: str, config) -> str:
    """As runs.csv has it: all the config's epochs, or such as "179 of 200" of a run that was stopped and is not finished yet."""
    with (pathlib.Path(__file__).parent / "runs.csv").open(newline="") as file:
        rows = [row["epochs"] for row in csv.DictReader(file) if (row["config"], row["seed"]) == (name, str(config.seed))]
    whole = str(config.train.epochs)
    return next((text for text in rows if whole not in rows and text.endswith(f" of {whole}")), whole)


def format_card(name: str, weights, measured: dict) -> str:
    """The card as Markdown."""
    config, cost = weights.config, summarize(weights.config.model)
    percent = "{:.2f} %".format
    augment = config.augment
    used = [key for key, section in augment.items() if hasattr(section, "items") and section["p"] > 0]
    held_out = f" less {config.data.num_validation:,} held out" if config.data.num_validation else ""
    epochs = epochs_trained(name, config)
    recipe = [
        f"{epochs} epochs of batches of {config.train.batch_size}",
        f"{config.optim.name}, {config.schedule.name} to a learning rate of {config.schedule.learning_rate}",
        f"label smoothing {config.train.label_smoothing}",
        *([f"taught by {config.distill.weights}"] if config.distill.weights else []),
        f"{', '.join(used) or 'no augmentation'} on the {augment.backend}",
    ]
    facts = {
        "network": f"{config.model.name}, variant {config.model.variant}, widths {tuple(config.model.widths)}",
        "parameters; bytes in float32": f"{cost.parameters:,}; {cost.weight_bytes:,}",
        "multiply-accumulates an image": f"{cost.macs:,}",
        "receptive field": f"{cost.receptive_field} pixels",
        "input": "32 x 32 RGB; uint8 / 255, minus mean, over std (both in the metadata of the file)",
        "output": "logits of ten classes, in the order of the metadata",
        "data": f"CIFAR-10, 50,000 training images{held_out}",
        "recipe": "; ".join(recipe),
        "seed": f"{config.seed}: fixed before training, not chosen among several",
        f"test accuracy, {'not final' if ' of ' in epochs else 'final epoch'}": percent(100 * measured["shifts"]["none"]),
        f"expected calibration error, {BINS} bins": percent(100 * measured["ece"]),
        "mean confidence": percent(100 * measured["confidence"]),
    }

    def table(head, rows):
        return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])

    classes = zip(weights.classes, (percent(100 * value) for value in measured["classes"]), strict=True)
    shifts = ((key, percent(100 * value)) for key, value in measured["shifts"].items())
    return f"""# {name}

Weights in `{name}.safetensors`, used by `python run.py evaluate --weights {name}`. Written by `results/card.py`; all figures over
the 10,000 test images, without test-time augmentation.

{table(("what", ""), facts.items())}

## Each class

{table(("class", "accuracy"), classes)}

## Shifted images

{table(("what is done to the test images", "accuracy"), shifts)}

## Not for

- Photographs in general: it knows ten classes and gives one of them to anything it is shown, often with confidence.
- Images that are not 32 x 32 pixels of one centred object.
- Decisions about people, safety or money.
- Confidence as a probability under any of the shifts above; some 0.5 % of the test labels are wrong (arXiv:2103.14749).
"""


def main(argv: list[str]) -> None:
    parser = arguments.Parser(prog="python results/card.py", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=committed_names())
    for name in parser.parse_args(argv).names:
        weights = load_weights(name)
        dataset = load_dataset(weights.config.data.source, "")
        card = format_card(name, weights, measure(make_predict(weights), dataset.test))
        (COMMITTED / f"{name}.md").write_text(card)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
