"""Training on several devices: the numbers of one, for either pipeline, and which devices are taken."""

import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from benchmarks import scaling
from cifar_jax import mesh
from cifar_jax.budget import summarize
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.config import read_config
from cifar_jax.errors import InputError
from cifar_jax.models import describe

ROOT = pathlib.Path(__file__).parent.parent
NUMBERS = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "eval_examples")

# A process of its own: JAX cannot be given more devices once it has begun. Two epochs of four steps by each pipeline, with an
# average and, on the device, mixed images; 50 test images fill no batch that eight devices share.
PROGRAM = f"""
import json, pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
from cifar_jax import train
from cifar_jax.config import read_config
from cifar_jax.data import shapes
from cifar_jax.models import c1c2c3c40
from cifar_jax.models.layers import conv, separable

c1c2c3c40.VARIANTS["strided"] = lambda *_: (conv("c1", 4), separable("s1", 4), separable("t1", 6, stride=2))
train.load_dataset = lambda *_: shapes.make_shapes(70, 50)
overrides = ["train.batch_size=16", "train.epochs=2", "log.tensorboard=false", "log.progress=off", "ema.decay=0.9"]
overrides += ["budget.receptive_field=5"]
mixed = ["augment.backend=device", "augment.mixup.p=0.5", "augment.cutmix.p=0.5"]
for name, more in (("host", []), ("device", mixed)):
    for devices in (1, 8):
        flags = [f"--config.{{text}}" for text in (*overrides, *more, f"parallel.devices={{devices}}")]
        folder = pathlib.Path(sys.argv[1], f"{{name}}-{{devices}}")
        train.train(read_config("configs/smoke.py", flags), folder)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        print(json.dumps([name, devices, [[row[key] for key in {NUMBERS}] for row in rows]]))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{(pipeline, devices): [[the numbers of an epoch]]}."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("runs"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {(name, devices): found for name, devices, found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("pipeline", ["host", "device"])
def test_eight_devices_train_to_the_numbers_of_one(rows, pipeline):
    """Eight steps in float32: the sums of a batch are added in another order, which each step makes more of."""
    np.testing.assert_allclose(rows[pipeline, 8], rows[pipeline, 1], rtol=1e-3)
    losses = np.array(rows[pipeline, 8])[:, 0]
    assert losses[1] < losses[0]  # they learn
    assert rows["host", 1] != rows["device", 1]


def test_a_state_that_two_devices_saved_is_restored_exactly_onto_one_and_back(tmp_path):
    both = mesh.make_mesh(2, 2)
    state = {"kernel": np.random.default_rng(0).standard_normal((3, 4), np.float32), "step": np.int32(7)}
    with Checkpoints(tmp_path / "checkpoints", keep_best=False) as files:
        files.save(7, mesh.place(state, both), {"rows": []})
    with Checkpoints(tmp_path / "checkpoints", keep_best=False, resume_from=7) as files:
        restored, _ = files.restore(jax.device_put(jax.tree.map(np.zeros_like, state)))
    assert restored["kernel"].devices() == {jax.devices()[0]}
    chex.assert_trees_all_equal(restored, state, mesh.place(restored, both))


def test_by_default_the_most_devices_that_divide_the_batch_are_taken():
    assert jax.local_device_count() == 2
    assert mesh.make_mesh(0, 6).size == 2
    assert mesh.make_mesh(0, 7) is None
    assert mesh.make_mesh(1, 6) is None


@pytest.mark.parametrize("num_devices, batch_size, nearest", [(2, 7, 1), (8, 64, 2), (3, 64, 2)])
def test_devices_that_cannot_share_a_batch_are_refused_with_the_nearest_number(num_devices, batch_size, nearest):
    with pytest.raises(
        InputError, match=f"got {num_devices} where there are 2, for batches of {batch_size}.*set it to {nearest}"
    ):
        mesh.make_mesh(num_devices, batch_size)


def test_a_batch_that_no_number_of_processes_divides_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(InputError, match="got 64 on 3 processes, expected a multiple of 3"):
        mesh.make_mesh(0, 64)


def test_each_process_has_rows_of_its_own_in_their_order(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    rows = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        rows += range(12)[mesh.own_rows(12)]
    assert rows == list(range(12))


@pytest.mark.parametrize("variant", ["strided", pytest.param("dilated", marks=pytest.mark.slow)])
def test_what_a_step_exchanges_is_what_its_program_does(variant):
    """The formula of the cost model, against the all-reduces of the compiled step."""
    flags = ["model.widths=(4,5,6,7)", "model.kernels=xla", "train.batch_size=4", f"model.variant={variant}"]
    config = read_config(str(ROOT / "configs" / "base.py"), [f"--config.{flag}" for flag in flags])
    step, state, batch = scaling.make_step(config, mesh.make_mesh(2, 4))
    found = scaling.all_reduces(step.lower(state, batch).compile().as_text())
    assert found == scaling.exchanged(describe(config.model), summarize(config.model).parameters)


def test_the_model_of_many_devices():
    """Two exchanges of a megabyte at 1 GB/s among 8 devices, each hop 1 ms: 2 x 2 x 3 ms, and 2 x 7/8 ms."""
    assert scaling.model(8, 0.1, 2, 10**6, 0.001, 1e9) == pytest.approx(0.1 / (0.1 + 0.012 + 0.00175))
    assert scaling.model(1, 0.1, 2, 10**6, 0.001, 1e9) == 1.0


def test_the_documented_efficiencies_are_the_models():
    text = (ROOT / "docs" / "scaling.md").read_text()
    config = read_config(str(ROOT / "configs" / "base.py"), [])
    exchanges, num_bytes = scaling.exchanged(describe(config.model), summarize(config.model).parameters)
    assert f"{num_bytes:,} bytes in {exchanges} all-reduces" in text
    for name, (latency, bandwidth) in scaling.NETWORKS.items():
        values = (scaling.model(n, scaling.GPU_STEP_SECONDS, exchanges, num_bytes, latency, bandwidth) for n in (8, 64, 512))
        cells = [name, f"{1e6 * latency:.0f} µs, {bandwidth / 1e9:g} GB/s", *(f"{100 * value:.0f} %" for value in values)]
        assert f"| {' | '.join(cells)} |" in text
