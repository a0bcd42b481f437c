"""Bad files: data, workdirs and weights; one line on stderr, exit code 2, nothing written."""

import gzip
import io
import pathlib
import tarfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cifar_jax import workdir
from cifar_jax.config import read_config, to_json
from cifar_jax.data import shapes
from cifar_jax.data.formats import BINARY
from cifar_jax.models import create_model
from cifar_jax.weights import check_variables, load_weights, save_weights

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
SMALL = shapes.make_shapes(60, 20)
TINY = ["--config.model.widths=(8,8,8,16)", "--config.train.batch_size=50"]


def archive(content=b"x" * 3073, name="data_batch_1.bin"):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(f"{BINARY.folder}/{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, ["does not exist", "--config.data.dir"]),
        ({}, ["an empty folder", BINARY.archive, "--config.data.dir"]),
        ({"notes.txt": b"x"}, ["a folder without it", BINARY.archive]),
        ({BINARY.archive: archive()[:-20]}, [BINARY.archive]),
        ({BINARY.archive: archive()}, [BINARY.archive]),
        ({BINARY.archive: b""}, [BINARY.archive]),
        ({f"{BINARY.folder}/data_batch_1.bin": b"x"}, [BINARY.folder, "cannot be read"]),
    ],
)
@pytest.mark.parametrize("verb", ["train", "data"])
def test_bad_archives(refused, tmp_path, verb, files, said):
    folder = tmp_path / "data"
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if files == {}:
        folder.mkdir()
    line = refused(verb, "--config", SMOKE, "--config.data.source=archive", f"--config.data.dir={folder}")
    assert str(folder) in line and all(word in line for word in said), line


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, ["train", "no such folder"]),
        ({"train/a/1.png": b"no image", "test/a/1.png": None}, ["1.png", "not an image", "remove or replace"]),
        ({"train/a/1.png": None, "test/a/1.txt": b"text"}, ["1.txt", "not an image", ".png"]),
        ({"train/a/1.png": None, "test/b/1.png": None}, ["'a'", "expected in both"]),
        ({"train/a/1.png": None, "test/a/1.png": None}, ["model.num_classes", "got 10, expected 1"]),
    ],
)
def test_bad_image_folders(refused, tmp_path, files, said):
    png = cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png if content is None else content)
    (tmp_path / "data").mkdir(exist_ok=True)
    line = refused("--config", SMOKE, "--config.data.source=folder", f"--config.data.dir={tmp_path / 'data'}")
    assert all(word in line for word in said), line


def test_workdir_below_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"{tmp_path / 'file'} is no folder" in refused("--config", SMOKE, "--workdir", path)


def test_workdir_with_foreign_files(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    assert "no run; name a new or empty folder" in refused("--config", SMOKE, "--workdir", tmp_path / "run")


def test_workdir_of_another_config_names_every_differing_key(refused, tmp_path):
    workdir.create(tmp_path / "run", read_config(SMOKE, ["--config.seed=7", "--config.train.epochs=2"]), "data")
    may_differ = ["--config.data.workers=3", "--config.parallel.devices=1", "--config.log.progress=off"]
    line = refused("--config", SMOKE, "--workdir", tmp_path / "run", *may_differ)
    assert "seed (7 there, 0 here), train.epochs (2 there, 6 here); use the same values" in line
    assert "data.workers" not in line and "log.progress" not in line and "parallel" not in line


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format_version": "x"}', '{"format_version": 1}', '{"format_version": 1, "config": 5}'],
)
def test_workdir_with_damaged_json(refused, tmp_path, name, content):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    (tmp_path / "run" / name).write_text(content)
    line = refused("--config", SMOKE, "--workdir", tmp_path / "run")
    assert f"{tmp_path / 'run' / name}: got a damaged file" in line and "restore it" in line


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_workdir_of_a_later_version(refused, tmp_path, name):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    (tmp_path / "run" / name).write_text('{"format_version": 99}')
    assert "got format 99, expected at most 2; update" in refused("--config", SMOKE, "--workdir", tmp_path / "run")


@pytest.mark.parametrize("state", ["missing", "empty", "unfinished"])
def test_evaluating_a_workdir_without_a_finished_run(refused, tmp_path, state):
    if state == "empty":
        (tmp_path / "run").mkdir()
    if state == "unfinished":
        workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    line = refused("evaluate", "--workdir", tmp_path / "run")
    assert "no finished run" in line and "finish the run" in line


@pytest.fixture(scope="module")
def variables():
    model = create_model(read_config(SMOKE, TINY).model)
    shaped = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shaped)


def write(path, variables, overrides=TINY, **changes):
    config = to_json(read_config(SMOKE, overrides))
    content = {"config": config, "classes": SMALL.classes, "mean": SMALL.mean, "std": SMALL.std, "train_seconds": 1.0} | changes
    save_weights(path, variables, **content)
    return path


@pytest.fixture
def weights(tmp_path, variables):
    return write(tmp_path / "good.safetensors", variables)


def test_no_such_weights(refused):
    assert "got nosuch, expected a file or a committed name (" in refused("evaluate", "--weights", "nosuch")


def test_truncated_weights_at_many_places(refused, weights):
    content = weights.read_bytes()
    for size in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:size])
        line = refused("evaluate", "--weights", weights)
        assert str(weights) in line and "not a whole weights file" in line and "expected" in line


def test_random_bytes_as_weights(refused, tmp_path):
    (tmp_path / "w").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a whole weights file" in refused("evaluate", "--weights", tmp_path / "w")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format_version": "1"}, {"format_version": '"1"'}])
def test_weights_of_another_program(refused, tmp_path, metadata):
    save_file({"layer.weight": np.zeros(3, np.float32)}, tmp_path / "w", metadata)
    assert "not a whole weights file of cifar_jax" in refused("evaluate", "--weights", tmp_path / "w")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {}},
        {"config": 5},
        {"config": {"model": {"widths": 5}}},
        {"classes": 5},
        {"classes": ["only", "two"]},
        {"mean": [0.5]},
        {"std": ["a", "b", "c"]},
    ],
)
def test_weights_with_damaged_metadata(refused, tmp_path, variables, changes):
    path = write(tmp_path / "w", variables, **changes)
    assert str(path) in refused("evaluate", "--weights", path)


def test_weights_with_a_config_out_of_range(refused, tmp_path, variables):
    path = write(tmp_path / "w", variables, [*TINY, "--config.train.epochs=0"])
    assert "train.epochs: got 0" in refused("evaluate", "--weights", path)


def test_weights_of_another_network_name_the_tensor(refused, tmp_path, variables):
    path = write(tmp_path / "w", variables, ["--config.model.widths=(8,8,8,12)"])
    line = refused("evaluate", "--weights", path)
    assert (
        "tensor batch_stats/c4_sep" in line and "got float32 (16,), expected float32 (12,)" in line and "another network" in line
    )


@pytest.mark.parametrize("key", ["missing", "extra"])
def test_weights_with_a_tensor_too_few_or_too_many(refused, tmp_path, variables, key):
    head = variables["params"]["head"] | {"scale": np.zeros(2, np.float32)}
    if key == "missing":
        head = {"bias": head["bias"]}
    path = write(tmp_path / "w", variables | {"params": variables["params"] | {"head": head}})
    said = {
        "missing": "head/kernel: got nothing, expected float32 (16, 10)",
        "extra": "head/scale: got float32 (2,), expected nothing",
    }
    assert said[key] in refused("evaluate", "--weights", path)


def test_weights_for_other_classes(refused, tmp_path, variables):
    path = write(tmp_path / "w", variables, classes=list("abcdefghij"))
    line = refused("evaluate", "--weights", path)
    assert "got the classes disk, square" in line and "a, b, c" in line and "--config.data.source" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.data.dri=x", "expected only --config.data.dir and --config.data.source"),
        ("--config.data.source=shape", "did you mean shapes?"),
        ("--config.seed=7", "is a fact"),
        ("--config.model.variant=dilated", "is a fact"),
        ("--data.dir=x", "unknown argument"),
    ],
)
def test_evaluating_with_a_bad_override(refused, weights, override, said):
    assert said in refused("evaluate", "--weights", weights, override)


def test_a_finished_run_whose_weights_are_gone(refused, tmp_path):
    config = read_config(SMOKE, TINY)
    workdir.create(tmp_path / "run", config, "data")
    counts = {"examples": 20, "correct": 2, "accuracy": 0.1, "loss": 2.3, "class_accuracy": [0.1] * 10}
    row = {"seconds": 1.0, "train_loss": 2.3, "train_accuracy": 0.1}
    workdir.write_result(tmp_path / "run", config, SMALL, counts, [row])
    assert "weights.safetensors" in refused("evaluate", "--workdir", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.astype(np.int8), "int8 (16,), expected float32 (16,)"),
        (lambda x: np.full_like(x, np.nan), "numbers that are not finite"),
    ],
    ids=["type", "nan"],
)
def test_weights_that_hold_no_weights(refused, variables, tmp_path, change, said):
    params = variables["params"] | {"c4_sep": variables["params"]["c4_sep"] | {"norm": variables["params"]["c4_sep"]["norm"]}}
    norm = params["c4_sep"]["norm"] | {"scale": change(params["c4_sep"]["norm"]["scale"])}
    params["c4_sep"] = params["c4_sep"] | {"norm": norm}
    line = refused("evaluate", "--weights", write(tmp_path / "w", variables | {"params": params}))
    assert "params/c4_sep/norm/scale" in line and said in line


@pytest.mark.parametrize("changes", [{"std": [0, 1, 1]}, {"mean": [float("nan"), 0, 0]}])
def test_weights_whose_normalization_is_none(refused, variables, tmp_path, changes):
    assert "not a whole weights file" in refused("evaluate", "--weights", write(tmp_path / "w", variables, **changes))


def test_a_finished_run_whose_config_is_gone(refused, tmp_path, variables):
    config = read_config(SMOKE, TINY)
    workdir.create(tmp_path / "run", config, "data")
    counts = {"examples": 20, "correct": 2, "accuracy": 0.1, "loss": 2.3, "class_accuracy": [0.1] * 10}
    row = {"seconds": 1.0, "train_loss": 2.3, "train_accuracy": 0.1}
    workdir.write_result(tmp_path / "run", config, SMALL, counts, [row])
    write(tmp_path / "run" / "weights.safetensors", variables)
    (tmp_path / "run" / "config.json").unlink()
    assert "config.json: got a damaged file" in refused("evaluate", "--workdir", tmp_path / "run")


def test_the_good_weights_of_these_tests_are_accepted(weights, variables):
    found = load_weights(str(weights))
    check_variables(found.variables, variables, found.path)
    assert found.classes == SMALL.classes
