"""A trained network in use: the Python API, files and folders through it, and the verb; refusals: test_cli_bad_predict.py."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax
import run
from cifar_jax import classifier, evaluate, predict, stopping
from cifar_jax.config import read_config, to_json
from cifar_jax.data.augment import normalize
from cifar_jax.data.dataset import Split
from cifar_jax.data.shapes import make_shapes
from cifar_jax.errors import InputError
from cifar_jax.models import create_model
from cifar_jax.steps import make_eval_step
from cifar_jax.weights import load_weights, save_weights

ROOT = pathlib.Path(__file__).parent.parent
SHAPES = make_shapes(60, 40)
IMAGES = SHAPES.test.images
RTOL = 1e-5  # float32 sums in another order, where a batch has another size


def apply(network, variables, images):
    return np.asarray(jax.jit(lambda images: network.apply(variables, images, train=False))(images))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of a tiny network, whose logits have mean 0 and deviation 1 over IMAGES, each."""
    config = read_config(str(ROOT / "configs" / "smoke.py"), ["--config.model.widths=(4,8,12,16)"])
    network, rng = create_model(config.model), np.random.default_rng(0)
    shaped = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))

    def draw(path, leaf):
        if leaf.ndim > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shaped)
    logits = apply(network, variables, normalize(IMAGES, SHAPES.mean, SHAPES.std))
    mean, deviation, head = logits.mean(0), logits.std(0), variables["params"]["head"]
    variables["params"]["head"] = {"kernel": head["kernel"] / deviation, "bias": (head["bias"] - mean) / deviation}
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    content = {"config": to_json(config), "classes": SHAPES.classes, "mean": SHAPES.mean, "std": SHAPES.std}
    save_weights(path, variables, train_seconds=None, **content)
    return str(path)


@pytest.fixture(scope="module")
def model(weights):
    return cifar_jax.load(weights)


@pytest.fixture(scope="module")
def probabilities(model):
    return model.predict(IMAGES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """IMAGES as 00.png to 39.png in the folder `images` of the current one."""
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(IMAGES):
        write_image(tmp_path / "images" / f"{i:02}.png", image)
    return tmp_path / "images"


def write_image(path, image=IMAGES[0]):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def answer(capsys, monkeypatch, weights, model):
    """A function that runs arguments in this process and returns what they print; the weights are loaded already."""
    monkeypatch.setattr(cifar_jax, "load", {weights: model}.__getitem__)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*argv):
        assert run.main([str(word) for word in argv]) == 0
        return capsys.readouterr().out

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_package_stays_light():
    code = "import cifar_jax, sys; sys.exit('numpy' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_probabilities_are_the_softmax_of_the_network(weights, probabilities):
    found = load_weights(weights)
    logits = apply(create_model(found.config.model), found.variables, normalize(IMAGES, found.mean, found.std))
    np.testing.assert_allclose(probabilities, softmax(logits), RTOL)
    assert probabilities.dtype == np.float32 and probabilities.shape == (40, 10)


def test_files_give_what_evaluate_counts(weights, model, folder, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 20)
    rows = list(predict.predict_files(model, predict.find_images(["images"])))
    labels = np.array([row.argmax() for _, row in rows], np.int32)
    assert len(set(labels.tolist())) > 2
    wrong = (labels + np.arange(40) % 4 // 3) % 10  # every fourth
    found = load_weights(weights)
    eval_step = jax.jit(make_eval_step(create_model(found.config.model)))
    counts = evaluate.evaluate(eval_step, found.variables, Split(IMAGES, wrong), found.mean, found.std)
    assert (counts["correct"], counts["examples"]) == (30, 40)


def test_an_image_that_is_not_there_is_said_not_to_be():
    with pytest.raises(InputError, match="nosuch.png: no such file"):
        cifar_jax.read_image("nosuch.png")


def test_files_give_what_their_arrays_give(model, folder, probabilities):
    assert (cifar_jax.read_image(folder / "07.png") == IMAGES[7]).all()
    paths, rows = zip(*predict.predict_files(model, predict.find_images(["images"])), strict=True)
    assert list(paths) == [f"images/{i:02}.png" for i in range(40)]
    assert np.array_equal(rows, probabilities)


@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 128, 129])
def test_any_number_of_images(model, probabilities, count):
    many = np.tile(IMAGES, (4, 1, 1, 1))[:count]
    np.testing.assert_allclose(model.predict(many), np.tile(probabilities, (4, 1))[:count], RTOL)


def test_one_image_needs_no_batch(model, probabilities):
    np.testing.assert_allclose(model.predict(IMAGES[3]), probabilities[3:4], RTOL)


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


class Means:
    """A model whose logits are the means of an image's channels; its shapes are those that it was traced for."""

    def __init__(self):
        self.shapes = []

    def apply(self, variables, images, *, train):
        self.shapes.append(images.shape[0])
        return images.mean((1, 2)) + variables["bias"]


def make_colours(weights, bias):
    """(Means, the Classifier of it), with that bias."""
    network, found = Means(), load_weights(weights)
    changes = {"variables": {"bias": np.array(bias, np.float32)}, "classes": ("red", "green", "blue")}
    return network, classifier.make_classifier(dataclasses.replace(found, **changes), network)


def test_at_most_three_programs_are_compiled(weights):
    network, model = make_colours(weights, [0, 0, 0])
    for count in (1, 5, 40, 300, 16, 7, 200, 1):
        many = np.resize(IMAGES, (count, 32, 32, 3))
        means = normalize(many, model.mean, model.std).mean((1, 2))
        np.testing.assert_allclose(model.predict(many), softmax(means), RTOL)
    assert sorted(network.shapes) == [1, 16, 128]


def test_what_is_known_of_the_network(weights, model):
    found = load_weights(weights)
    assert (model.classes, model.mean, model.std, model.path) == (SHAPES.classes, found.mean, found.std, weights)
    assert to_json(model.config) == to_json(found.config)
    assert model.parameters == sum(x.size for x in jax.tree.leaves(found.variables["params"]))
    assert model.receptive_field == 83
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.classes = ()


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES / 255, "float64 (40, 32, 32, 3)"),
        (IMAGES[:, :28, :28], "uint8 (40, 28, 28, 3)"),
        (IMAGES[..., 0], "uint8 (40, 32, 32)"),
        (IMAGES[None], "uint8 (1, 40, 32, 32, 3)"),
        ("images/00.png", "<U13 ()"),
    ],
)
def test_arrays_that_are_no_images(model, images, got):
    with pytest.raises(InputError) as error:
        model.predict(images)
    assert str(error.value).startswith(f"images: got {got}, expected uint8 (n, 32, 32, 3)")


def test_weights_whose_output_overflows(weights):
    _, model = make_colours(weights, [np.inf, 0, 0])
    with pytest.raises(InputError, match="got an output that is not finite"):
        model.predict(IMAGES[:3])


def test_a_folder_is_searched_in_order(folder, caplog):
    for name in ("b/1.jpg", "b/c/0.PNG", "B.webp", "a.bmp", ".hidden/x.png", ".x.png", "c.tmp.png"):
        write_image(folder.parent / "more" / name)
    (folder.parent / "more" / "b" / "notes.txt").touch()
    (folder.parent / "more" / "README").touch()
    write_image(folder.parent / "z.png")
    found = predict.find_images(["z.png", "more", "z.png", "./more/b"])
    inside = ["B.webp", "a.bmp", "b/1.jpg", "b/c/0.PNG", "c.tmp.png"]
    assert found[:7] == [("z.png", True), *((f"more/{name}", False) for name in inside), ("z.png", True)]
    assert found[7:] == [("./more/b/1.jpg", False), ("./more/b/c/0.PNG", False)]
    assert "passed over in more: 2 files not named *.png|jpg|jpeg|webp|bmp, such as more/README" in caplog.text


def test_a_folder_inside_that_cannot_be_read_is_passed_over(folder, caplog, monkeypatch):
    (folder / "secret").mkdir()
    scandir = predict.os.scandir

    def forbid(path):
        if path == "images/secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(predict.os, "scandir", forbid)
    assert len(predict.find_images(["images"])) == 40
    assert "passed over images/secret: it cannot be read (Permission denied)" in caplog.text


def test_a_broken_file_in_a_folder_is_passed_over(model, folder, probabilities, caplog):
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:-20])
    (folder / "05.png").write_bytes(b"text")
    paths, rows = zip(*predict.predict_files(model, predict.find_images(["images"])), strict=True)
    assert [path[-6:-4] for path in paths] == [f"{i:02}" for i in range(40) if i not in (3, 5)]
    assert np.array_equal(rows, np.delete(probabilities, [3, 5], 0))
    assert [record.message.split(":")[0] for record in caplog.records] == [f"passed over images/0{i}.png" for i in (3, 5)]


def test_images_are_read_shortly_before_they_are_needed(model, folder, monkeypatch):
    read = []
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    monkeypatch.setattr(predict, "read_image", lambda path: read.append(path) or IMAGES[0])
    rows = predict.predict_files(model, predict.find_images(["images"]))
    next(rows)
    assert len(read) <= 8
    assert len(list(rows)) == 39 and len(read) == 40


def test_a_signal_stops_before_the_next_image(model, folder, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    rows = predict.predict_files(model, predict.find_images(["images"]))
    assert [next(rows)[0] for _ in range(4)][-1] == "images/03.png"
    monkeypatch.setattr(stopping, "_received", [signal.SIGINT])
    with pytest.raises(stopping.Stopped):
        next(rows)


def test_lines_for_a_terminal(weights, answer, folder, probabilities):
    (folder / "00.png").rename(folder / "a\nlong \x1b[31mname.png")
    lines = answer("predict", "--weights", weights, "images/01.png", "images/a\nlong \x1b[31mname.png", "--top", 2).splitlines()
    shown = ["images/01.png", "images/a\\nlong \\x1b[31mname.png"]
    for line, path, row in zip(lines, shown, probabilities[[1, 0]], strict=True):
        assert line.split("  ")[0] == path
        (first, value), (second, other) = predict.top_classes(row, SHAPES.classes, 2)
        assert line.split()[-6:] == [first, f"{100 * value:.1f}", "%", second, f"{100 * other:.1f}", "%"]
        assert value == row.max() and value >= other
    assert len(lines[0]) == len(lines[1])


def test_names_of_classes_steer_no_terminal(model):
    model = dataclasses.replace(model, classes=("\x1b[31m", *model.classes[1:]))
    (line,) = predict.format_rows([("a", np.eye(10)[0])], model, [("a", True)], 1)
    assert line.split() == ["a", "\\x1b[31m", "100.0", "%"]


def test_json(weights, answer, folder, probabilities):
    found = json.loads(answer("predict", "images", "--weights", weights, "--json"))
    assert found.keys() == {"weights", "classes", "images", "images_per_second"}
    assert (found["weights"], found["classes"]) == (weights, list(SHAPES.classes)) and found["images_per_second"] > 0
    assert [image["path"] for image in found["images"]] == [f"images/{i:02}.png" for i in range(40)]
    for image, row in zip(found["images"], probabilities, strict=True):
        best = np.argsort(-row)[:3]
        assert image["top"] == [{"class": SHAPES.classes[i], "probability": float(row[i])} for i in best]


def test_more_classes_than_there_are(weights, answer, folder):
    found = json.loads(answer("predict", "images/00.png", "--weights", weights, "--json", "--top", 99))
    (image,) = found["images"]
    assert {best["class"] for best in image["top"]} == set(SHAPES.classes)
    assert sum(best["probability"] for best in image["top"]) == pytest.approx(1, rel=RTOL)


def test_the_command_itself(weights, folder, probabilities):
    (folder / "01.png").write_bytes(b"no image")
    command = [sys.executable, str(ROOT / "run.py"), "predict", "--weights", weights, "images", "--top", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("passed over images/01.png: not an image")
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    best = {f"images/{i:02}.png": SHAPES.classes[row.argmax()] for i, row in enumerate(probabilities) if i != 1}
    assert rows == best
