"""The baseline as a program: the same images in, the same rows and files out; and its weights run in JAX."""

import json

import numpy as np
import pytest

from cifar_jax import arguments
from cifar_jax.data.augment import augment_batch, make_train_transform
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from configs import smoke
from tests.parity.twins import torch  # noqa: F401 - skips where there is no PyTorch

TINY = [
    "--config.train.epochs=1",
    "--config.model.widths=(4, 6, 8, 10)",
    "--config.data.workers=0",
    "--config.log.tensorboard=False",
]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_hands_out_the_images_that_ours_would(workers):
    from baselines.data import make_train_loader

    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (20, 32, 32, 3), np.uint8), np.arange(20, dtype=np.int32))
    augment = smoke.get_config().augment.to_dict() | {"horizontal_flip": {"p": 0.5, "alternate": False}}
    options = {"batch_size": 8, "seed": 5, "workers": workers, "start_method": "spawn"}
    loader = make_train_loader(split, augment, CIFAR10_MEAN, CIFAR10_STD, **options)
    expected = np.empty((20, 32, 32, 3), np.float32)
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        compose = make_train_transform(augment, CIFAR10_MEAN, CIFAR10_STD)
        augment_batch(compose, split.images, range(20), expected, seed=5, epoch=epoch)
        batches = list(loader)
        seen = np.concatenate([labels for _, labels in batches])
        assert len(batches) == len(loader) == 2 and len(set(seen.tolist())) == 16  # the last four are dropped
        for images, labels in batches:
            np.testing.assert_array_equal(images.numpy(), expected[labels.numpy()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from baselines.train import main

    path = tmp_path_factory.mktemp("torch") / "run"
    held_out = ["--config.data.num_validation=4500", "--config.ema.decay=0.9"]
    assert arguments.run(main, ["--config", "configs/smoke.py", "--workdir", str(path), *TINY, *held_out]) == 0
    return path


def test_it_leaves_the_rows_and_results_of_a_run(finished):
    row = json.loads((finished / "metrics.jsonl").read_text())
    documented = (
        "epoch step learning_rate train_loss train_accuracy eval_split eval_loss eval_accuracy eval_correct eval_examples "
        "seconds images_per_second input_wait_fraction"
    )
    assert set(row) == set(documented.split())
    assert row["eval_split"] == "validation" and row["eval_examples"] == 4500
    assert 0 < row["train_accuracy"] < 1 and row["eval_correct"] == round(row["eval_accuracy"] * 4500)
    result = json.loads((finished / "result.json").read_text())
    assert result["framework"] == "pytorch" and "torch" in result["versions"]
    assert result["split"] == "test" and result["correct"] == round(result["accuracy"] * result["examples"])


def test_its_weights_get_the_same_images_right_in_jax(finished):
    from cifar_jax.evaluate import evaluate_files

    theirs = json.loads((finished / "result.json").read_text())
    ours = evaluate_files(None, str(finished / "weights.safetensors"), [])
    assert ours["examples"] == theirs["examples"] and ours["correct"] == theirs["correct"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
