"""What the report shows of one run, as plain numbers and numpy arrays: everything is counted here, nothing is drawn."""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from cifar_jax import budget
from cifar_jax.data.augment import normalize
from cifar_jax.data.dataset import split_training
from cifar_jax.evaluate import Trained
from cifar_jax.report import network
from cifar_jax.report.runs import Run
from cifar_jax.scores import Reliability, class_counts, confusion_matrix, reliability

MOST_IN_MATRIX = 25  # classes, up to which a confusion matrix can be read
NUM_CONFUSIONS = 10
NUM_MISTAKES = 12
NUM_MAPS = 4  # of right answers, and as many of wrong ones
NUM_SAMPLES, SAMPLE_EPOCHS = 6, 3
NUM_GRADIENTS = 256  # images over which the effective receptive field is averaged


class Answer(NamedTuple):
    """One test image and what the network said. index: in the test set; image: uint8, (32, 32, 3)."""

    index: int
    image: np.ndarray
    label: int
    predicted: int
    confidence: float


class Maps(NamedTuple):
    """Class-activation maps of an answer, float32 (32, 32): of the predicted class, and of the true one if that is another.

    logits: of the same classes.
    """

    answer: Answer
    maps: list[np.ndarray]
    logits: list[float]


class Field(NamedTuple):
    """The receptive field of the central unit of the last map: centre and side of the theoretical one, in pixels of the
    image; effective: mean magnitude of the input's gradient, (32, 32); image: uint8, to draw them on; num_images: averaged.
    """

    centre: float
    side: int
    effective: np.ndarray
    image: np.ndarray
    num_images: int


@dataclasses.dataclass(frozen=True)
class Findings:
    """What is found of a run, most of it on its test set.

    cifar10: whether that is CIFAR-10's; confusion: see scores, None above MOST_IN_MATRIX classes; confusions: the most frequent
    (label, predicted class, images); originals, samples: see network.augmented; kernels: see network.first_kernels.
    """

    classes: tuple[str, ...]
    cifar10: bool
    summary: budget.Summary
    correct: int
    class_correct: np.ndarray
    class_images: np.ndarray
    confusion: np.ndarray | None
    confusions: list[tuple[int, int, int]]
    reliability: Reliability
    mistakes: list[Answer]
    originals: np.ndarray
    samples: dict[str, np.ndarray]
    field: Field
    kernels: np.ndarray
    right_maps: list[Maps]
    wrong_maps: list[Maps]


def find(run: Run, trained: Trained) -> Findings:
    """Runs the test set through the network once and gathers what the report shows."""
    weights, config, model, dataset = trained
    variables, test, statistics = weights.variables, dataset.test, (weights.mean, weights.std)
    classes, labels = len(weights.classes), test.labels
    predicted, confidence = network.predict(model, variables, test, *statistics)
    right, (class_correct, class_images) = predicted == labels, class_counts(predicted, labels, classes)

    def answers(indices):
        return [Answer(int(i), test.images[i], int(labels[i]), int(predicted[i]), float(confidence[i])) for i in indices]

    by_confidence = np.argsort(-confidence, kind="stable")
    mistakes = answers([i for i in by_confidence if not right[i]][:NUM_MISTAKES])
    kept, _ = split_training(dataset, config)
    centres = network.unit_centres(config.model)
    maps = _maps_of(model, variables, statistics, centres)
    return Findings(
        classes=weights.classes,
        cifar10=dataset.verified,
        summary=budget.summarize(config.model),
        correct=int(right.sum()),
        class_correct=class_correct,
        class_images=class_images,
        confusion=confusion_matrix(predicted, labels, classes) if classes <= MOST_IN_MATRIX else None,
        confusions=most_confused(predicted, labels),
        reliability=reliability(confidence, right),
        mistakes=mistakes,
        originals=kept.images[:NUM_SAMPLES],
        samples=network.augmented(config, kept, *statistics, num=NUM_SAMPLES, epochs=SAMPLE_EPOCHS),
        field=_field(config, model, variables, test, statistics, centres),
        kernels=network.first_kernels(variables, model),
        right_maps=maps(answers(_first_of_each_class(labels, right)[:NUM_MAPS])),
        wrong_maps=maps(mistakes[:NUM_MAPS]),
    )


def most_confused(predicted, labels) -> list[tuple[int, int, int]]:
    """The most frequent (label, predicted class, images) of wrong answers, the most frequent first."""
    wrong = predicted != labels
    pairs, images = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-images, kind="stable")[:NUM_CONFUSIONS]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(images[i])) for i in order]


def _first_of_each_class(labels, right) -> list[int]:
    """The first image of each class that is answered right, in the order of the test set."""
    hits = np.flatnonzero(right)
    return sorted(hits[np.unique(labels[hits], return_index=True)[1]].tolist())


def _maps_of(model, variables, statistics, centres):
    """maps(answers) -> their Maps."""

    def maps(answers):
        if not answers:
            return []
        images = normalize(np.stack([answer.image for answer in answers]), *statistics)
        logits, added = network.class_maps(model, variables, images)
        found = []
        for answer, row, positions in zip(answers, logits, added, strict=True):
            classes = list(dict.fromkeys([answer.predicted, answer.label]))
            found.append(Maps(answer, [spread(positions[..., c], centres) for c in classes], [float(row[c]) for c in classes]))
        return found

    return maps


def spread(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Interpolates a map between the centres of its units' fields, in pixels: (h, h) -> (32, 32); held beyond the outermost."""
    pixels = np.arange(budget.IMAGE_SIZE)
    place = np.interp(pixels, centres, np.arange(len(centres))).astype(np.float32)
    x, y = np.meshgrid(place, place)
    return cv2.remap(values.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _field(config, model, variables, test, statistics, centres) -> Field:
    chosen = np.linspace(0, len(test) - 1, min(NUM_GRADIENTS, len(test))).astype(int)
    effective = network.effective_field(model, variables, normalize(test.images[chosen], *statistics))
    side = budget.summarize(config.model).receptive_field
    return Field(float(centres[len(centres) // 2]), side, effective, test.images[0], len(chosen))
