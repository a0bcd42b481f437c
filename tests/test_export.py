"""The verb export: a file computes what JAX computes, for any number of images, and says what it is; or there is none.

Networks are tiny, in float32, of random numbers; bounds are those of cifar_jax.export, 1e-4 of the largest logit. Tests
that need PyTorch or ONNX Runtime are skipped where the extra `export` is not installed.
"""

import importlib.util
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run
from cifar_jax import export as module
from cifar_jax import onnx_file, quantize
from cifar_jax.config import read_config, to_json
from cifar_jax.data import shapes, sources
from cifar_jax.data.augment import normalize
from cifar_jax.errors import RunError
from cifar_jax.models import create_model
from cifar_jax.models.c1c2c3c40 import VARIANTS
from cifar_jax.weights import load_weights, save_weights
from tests.conftest import SMALL, read_files
from tests.launcher import SMOKE

HEADS = {"strided": "dense", "dilated": "pointwise", "mixed": "dense", "early": "pointwise", "coarse": "dense", "gated": "dense"}
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
COUNTS = (1, 3)  # of images in a batch


def extra(*packages):
    """A mark: skip where one of the packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f'without {", ".join(missing)}: pip install -e ".[export]"')


needs_onnx = extra("torch", "onnx", "onnxruntime")
needs_flatbuffers = extra("flatbuffers")


def write_weights(path, variant):
    config = read_config(SMOKE, [f"--config.model.variant={variant}", f"--config.model.head={HEADS[variant]}"]).unlock()
    config.model.widths = (4, 8, 12, 16)
    network = create_model(config.model)
    leaves = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)

    def draw(shape):
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape)
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))

    variables = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), dict(leaves))
    save_weights(path, variables, config=to_json(config), classes=SMALL.classes, mean=MEAN, std=STD, train_seconds=None)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{variant: a weights file}."""
    folder = tmp_path_factory.mktemp("weights")
    return {variant: write_weights(folder / f"{variant}.safetensors", variant) for variant in VARIANTS}


def expected_logits(path, images):
    weights = load_weights(str(path))
    apply = jax.jit(create_model(weights.config.model).apply, static_argnames="train")
    return np.asarray(apply(weights.variables, normalize(images, weights.mean, weights.std), train=False))


def assert_same_logits(got, expected):
    assert got.dtype == np.float32 and expected.std() > 0.1
    assert np.abs(got - expected).max() < module.TOLERANCE * max(1, np.abs(expected).max())


def call(*argv):
    assert run.main([str(word) for word in argv]) == 0


@needs_onnx
@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_computes_what_jax_computes(made, tmp_path, capsys, variant):
    output = tmp_path / "model.onnx"
    call("export", "--weights", made[variant], "--output", output)
    assert "largest difference of a logit from JAX's" in capsys.readouterr().out
    images = shapes.make_shapes(1, max(COUNTS), seed=1).test.images
    logits, expected = onnx_file.run_onnx(output.read_bytes()), expected_logits(made[variant], images)
    for n in COUNTS:
        assert_same_logits(logits(images[:n]), expected[:n])


@needs_onnx
def test_onnx_says_what_it_is_and_not_where_it_was_made(made, tmp_path, capsys):
    import onnx
    import onnxruntime

    output = tmp_path / "model.onnx"
    call("export", "--weights", made["strided"], "--output", output, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(output) and report["bytes"] == output.stat().st_size and report["images"] == 64
    assert report["max_difference"] <= report["tolerance"]
    model = onnx.load(output)
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata == {
        "classes": list(SMALL.classes),
        "mean": list(MEAN),
        "std": list(STD),
        "parameters": report["parameters"],
        "source": "strided.safetensors",
    }
    assert str(tmp_path.parent).encode() not in output.read_bytes() and os.getcwd().encode() not in output.read_bytes()
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["n", 32, 32, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["n", 10])
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


@needs_onnx
def test_int8_has_integer_weights_and_the_classes_of_jax(made, tmp_path, capsys, monkeypatch):
    import onnx

    monkeypatch.setattr(sources, "make_shapes", lambda: SMALL)
    output = tmp_path / "model.int8.onnx"
    call("export", "--weights", made["mixed"], "--output", output, "--json")
    first, (out, err) = output.read_bytes(), capsys.readouterr()
    assert json.loads(out)["agreement"] >= module.LEAST_AGREEMENT and err == ""
    model = onnx.load_from_string(first)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == 17
    for node in convolutions:
        assert {producers[name].op_type for name in node.input} == {"DequantizeLinear"}
        assert types[producers[node.input[1]].input[0]] == onnx.TensorProto.INT8
    logits = onnx_file.run_onnx(first)
    images = SMALL.test.images
    assert logits(images[:1]).shape == (1, 10) and logits(images[:3]).shape == (3, 10)
    expected = expected_logits(made["mixed"], images)
    assert 0 < np.abs(logits(images) - expected).max() < 0.1 * np.abs(expected).max()
    call("export", "--weights", made["mixed"], "--output", output)
    assert output.read_bytes() == first
    assert "training images get the class that JAX gives them" in capsys.readouterr().out


def test_calibration_sees_training_images_that_were_not_held_out(made, monkeypatch):
    monkeypatch.setattr(sources, "make_shapes", lambda: SMALL)
    weights = load_weights(str(made["strided"]))
    with weights.config.unlocked():
        weights.config.data.num_validation = 20
    images = quantize.load_images(weights, [])
    held_out = set(np.random.default_rng(0).permutation(60)[:20].tolist())
    kept = sorted(SMALL.train.images[i].tobytes() for i in range(60) if i not in held_out)
    assert sorted(image.tobytes() for image in images) == kept


@needs_flatbuffers
@pytest.mark.parametrize("variant", ["dilated"])
def test_stablehlo_round_trip(made, tmp_path, variant):
    output = tmp_path / "model.stablehlo"
    call("export", "--weights", made[variant], "--output", output)
    exported = jax.export.deserialize(bytearray(output.read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    assert "cifar_jax_" not in exported.mlir_module()  # the names of native kernels
    images = shapes.make_shapes(1, max(COUNTS), seed=1).test.images
    expected = expected_logits(made[variant], images)
    for n in COUNTS:
        assert_same_logits(np.asarray(exported.call(images[:n])), expected[:n])


@pytest.mark.parametrize("name", ["model", "model.tflite", "model.onnx.gz", "onnx", "model.ONNX", "model.onnx/"])
def test_another_suffix(refused, name):
    line = refused("export", "--weights", "base", "--output", name)
    assert f"--output: got {name}, expected a name that ends in .int8.onnx, .onnx, .stablehlo" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing/x.onnx", "missing is no folder"),
        ("file/x.onnx", "which cannot be a file (Not a directory)"),
        ("folder.onnx", "expected a file or a new name"),
        ("pipe.stablehlo", "expected a file or a new name"),
        ("dangling.onnx", "expected a file or a new name"),
        ("x" * 250 + ".onnx", "which cannot be a file (File name too long)"),
        ("/proc/x.onnx", "/proc cannot be written"),
    ],
)
def test_where_no_file_can_be(refused, tmp_path, name, said):
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.stablehlo")
    (tmp_path / "dangling.onnx").symlink_to("missing/x")
    line = refused("export", "--weights", "base", "--output", name)
    assert f"--output: got {name}, " in line and said in line and "name another" in line


@pytest.mark.parametrize(
    ("name", "package"),
    [("x.onnx", "torch"), ("x.int8.onnx", "torch"), ("x.stablehlo", "flatbuffers")],  # the first that each needs
)
def test_without_the_extra(refused, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused("export", "--weights", "base", "--output", name)
    assert f'got no package {package}, expected it for .{name.split(".", 1)[1]}; pip install -e ".[export]"' in line


@needs_flatbuffers
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--weights", "nosuch"], "weights: got nosuch, expected a file or a committed name"),
        (["--weights", "base", "--config.data.dir=x"], "--config.data.dir=x: got an override, expected none for .stablehlo"),
    ],
)
def test_bad_arguments(refused, argv, said):
    assert said in refused("export", *argv, "--output", "x.stablehlo")


@needs_onnx
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.seed=1", "expected only --config.data.dir and --config.data.source"),
        ("--config.data.source=folder", "data.dir: got nothing, expected a folder"),
        ("--config.data.dir=nosuch", "data.dir: got 'nosuch'"),
    ],
)
def test_where_the_training_images_lie(refused, override, said):
    assert said in refused("export", "--weights", "base", "--output", "x.int8.onnx", override)


def assert_fails(capsys, folder, said, *argv):
    before = read_files(folder)
    assert run.main([str(word) for word in argv]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("failed: ") and said in err
    assert read_files(folder) == before


@needs_onnx
@pytest.mark.parametrize(("name", "error"), [("old.onnx", 1.0), ("new.onnx", np.nan)])
def test_a_file_that_differs_from_jax_is_not_written(made, tmp_path, capsys, monkeypatch, name, error):
    carry = onnx_file.port.to_state_dict

    def carry_wrongly(*args):
        state_dict = carry(*args)
        return state_dict | {"head.bias": state_dict["head.bias"] + np.float32(error)}

    monkeypatch.setattr(onnx_file.port, "to_state_dict", carry_wrongly)
    (tmp_path / "old.onnx").write_text("what was there before")
    argv = ("export", "--weights", made["strided"], "--output", tmp_path / name)
    assert_fails(capsys, tmp_path, "a logit differs from JAX's by", *argv)


@needs_onnx
def test_a_full_disk_leaves_nothing(made, tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    argv = ("export", "--weights", made["strided"], "--output", tmp_path / "x.onnx")
    assert_fails(capsys, tmp_path, "x.onnx cannot be written (No space left on device); make room", *argv)


def test_classes_are_compared_image_by_image():
    def classify(step):
        return lambda images: np.eye(4)[(images[:, 0, 0, 0] >= step).astype(int)]

    images = np.zeros((200, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(200)
    compared = module.compare_classes(classify(100), classify(120), images)
    assert compared == {"images": 200, "agreement": 0.9, "least_agreement": module.LEAST_AGREEMENT}
    with pytest.raises(RunError, match="89.5 % of 200 training images get the class that JAX gives them, expected 90 %"):
        module.compare_classes(classify(100), classify(121), images)
