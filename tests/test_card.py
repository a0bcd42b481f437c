"""The model card's figures against their definitions, on answers that are made up."""

import importlib.util
import pathlib

import numpy as np
import pytest

from cifar_jax import arguments
from cifar_jax.data.dataset import Split
from cifar_jax.weights import COMMITTED, load_weights

spec = importlib.util.spec_from_file_location("card", pathlib.Path(__file__).parent.parent / "results" / "card.py")
card = importlib.util.module_from_spec(spec)
spec.loader.exec_module(card)


@pytest.mark.parametrize("argv", [[], ["nosuch"], ["base", "--x"]])
def test_what_is_no_committed_name_is_refused(argv, capsys):
    assert arguments.run(card.main, argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_what_is_measured_is_counted_over_every_image_of_each_shift():
    images = np.full((6, 32, 32, 3), 100, np.uint8)
    images[:3] = 200

    def predict(images):
        """Class 1 where an image is brighter than 130."""
        bright = images.mean((1, 2, 3)) > 130
        return np.stack([np.where(bright, 0.2, 0.8), np.where(bright, 0.8, 0.2)], 1)

    measured = card.measure(predict, Split(images, np.array([1, 1, 1, 0, 0, 1])))
    assert measured["shifts"].keys() == card.SHIFTS.keys()
    assert measured["shifts"]["none"] == pytest.approx(5 / 6) and measured["classes"] == [1.0, 0.75]
    assert measured["shifts"]["darker, x 0.6"] == pytest.approx(2 / 6)  # all are dark
    assert measured["shifts"]["brighter, x 1.4"] == pytest.approx(4 / 6)  # all are bright
    assert measured["confidence"] == pytest.approx(0.8) and measured["ece"] == pytest.approx(abs(5 / 6 - 0.8))


@pytest.mark.parametrize("name", card.SHIFTS)
def test_a_shift_changes_pixels_and_nothing_else(name):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    before = images.copy()
    shifted = card.SHIFTS[name](images)
    assert (shifted.shape, shifted.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    assert (shifted == images).all() == (name == "none")
    assert abs(shifted.mean() - images.mean()) < (60 if "x " in name else 4)


def test_every_committed_network_has_a_card_that_says_what_its_file_says():
    names = sorted(path.stem for path in COMMITTED.glob("*.safetensors"))
    assert names and names == sorted(path.stem for path in COMMITTED.glob("*.md"))
    for name in names:
        weights, text = load_weights(name), (COMMITTED / f"{name}.md").read_text()
        measured = {"shifts": dict.fromkeys(card.SHIFTS, 0.0), "classes": [0.0] * 10, "ece": 0.0, "confidence": 0.0}
        made = card.format_card(name, weights, measured)
        numbers = (line for line in made.splitlines() if "0.00 %" not in line)
        assert all(line in text for line in numbers)
