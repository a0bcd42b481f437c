"""The page in web/: built from a copy of its folder, driven in headless Chromium, compared with JAX.

Tests of the page are `slow` (npm fetches packages) and need npm, Chromium and the extra `export`; those of its modules
need node alone. Bounds: 1e-4 of a probability, as `run.py export` allows of a logit, and 1e-3 of a logit.
"""

import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import threading

import cv2
import numpy as np
import PIL.Image
import pytest

import cifar_jax
from cifar_jax import export, onnx_file
from cifar_jax.classifier import load_network
from cifar_jax.data import shapes
from cifar_jax.data.augment import normalize
from cifar_jax.data.folder import read_image
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError
from cifar_jax.report.network import class_maps
from tests.test_export import needs_onnx, write_weights
from web.assets import add_activation_maps
from web.build import build

WEB = pathlib.Path(__file__).parent.parent / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# width, height: fractions and whole multiples, one side alone below 32, both
SIZES = [(32, 32), (64, 64), (96, 64), (100, 77), (33, 32), (500, 333), (20, 20), (1, 1), (31, 200), (400, 8)]


def node_version():
    try:
        return int(subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0])
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0


needs_node = pytest.mark.skipif(node_version() < 20, reason="without node 20 or newer")
missing = [name for name in ("torch", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
missing += [] if shutil.which("npm") else ["npm"]
missing += [] if CHROMIUM else ["chromium"]


def slow(test):
    return pytest.mark.slow(pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)}")(test))


def resize_cases():
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield image, width, height


@needs_node
def test_the_modules_of_the_page(tmp_path):
    cases = []
    for image, width, height in resize_cases():
        cv2.imwrite(str(tmp_path / "image.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        expected = read_image(tmp_path / "image.png")
        cases.append({"width": width, "height": height, "pixels": image.ravel().tolist(), "expected": expected.ravel().tolist()})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    tests = sorted(str(test) for test in (WEB / "tests").glob("*.test.js"))
    command = ["node", "--test", "--test-reporter=tap", *tests]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RESIZE_CASES": str(path)})
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# skipped 0" in ran.stdout and ran.stdout.count("values differ") == len(SIZES)


@needs_onnx
@pytest.mark.parametrize(("variant", "head"), [("strided", "dense"), ("dilated", "pointwise")])
def test_the_file_gives_the_activation_maps_of_jax(tmp_path, variant, head):
    import onnxruntime

    weights, model = load_network(str(write_weights(tmp_path / "x.safetensors", variant)))
    assert weights.config.model.head == head
    content = onnx_file.make_onnx(weights)
    session = onnxruntime.InferenceSession(add_activation_maps(content, weights), providers=["CPUExecutionProvider"])
    images = shapes.make_shapes(1, 3, seed=1).test.images
    logits, maps = session.run(["logits", "activation_maps"], {"images": images})
    assert np.array_equal(logits, onnx_file.run_onnx(content)(images))
    expected = jax_maps(weights, model, images)
    assert maps.shape == expected.shape and maps.std((2, 3)).min() > 0
    assert np.abs(maps - expected).max() < export.TOLERANCE * np.abs(expected).max()
    assert np.abs(maps.mean((2, 3)) - logits).max() < export.TOLERANCE * np.abs(expected).max()


def test_without_npm_the_build_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm: found none on the PATH, expected that of Node.js"):
        build("base", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A copy of web/ as a clone has it, built; dist/ is the page."""
    folder = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "public", "__pycache__"))
    build("base", folder)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Cache-Control", "no-store")  # what works without the server is the service worker's doing
        super().end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(folder, port=0):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drive(page, url, profile, *files):
    command = ["node", str(page / "tests" / "drive.js"), CHROMIUM, url, str(profile), *map(str, files)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def draw_files(folder, image):
    """{file: the 32 x 32 pixels that it holds}, in several sizes and kinds that any exact decoder and resizer reads alike.

    Each pixel is a block of one colour: a mean over it is exact, and so is JPEG, but for the rounding of its colours.
    """
    big = PIL.Image.fromarray(image.repeat(8, 0).repeat(8, 1))
    big.save(folder / "big.png")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    big.save(folder / "turned.jpg", quality=100, subsampling=0, exif=turned)
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:20, :30] = 0
    see_through = np.dstack([image.repeat(2, 0).repeat(3, 1), alpha])
    PIL.Image.fromarray(see_through).save(folder / "see-through.png")
    found = {folder / name: read_image(folder / name) for name in ("big.png", "turned.jpg", "see-through.png")}
    big.save(folder / "moving.gif", save_all=True, append_images=[PIL.Image.new("RGB", big.size, "red")], duration=20)
    with PIL.Image.open(folder / "moving.gif") as moving:  # of as many colours as its palette holds
        assert moving.n_frames == 2
        return found | {folder / "moving.gif": np.array(moving.convert("RGB"))[::8, ::8]}


def draw_no_images(folder):
    """{file: what the page has to say of it}."""
    none = "no image that this browser can read, or one far too large; choose a PNG, JPEG, WebP or BMP file."
    (folder / "notes.txt").write_text("words")
    (folder / "empty.png").touch()
    PIL.Image.new("1", (8200, 8200)).save(folder / "huge.png")
    PIL.Image.new("1", (20000, 10)).save(folder / "wide.png")
    whole = io.BytesIO()
    PIL.Image.linear_gradient("L").save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    said = {name: none for name in ("notes.txt", "empty.png", "cut.jpg")}
    said["huge.png"] = "8200 × 8200 pixels; choose one of at most 64 million, and 16384 a side."
    said["wide.png"] = "20000 × 10 pixels; choose one of at most 64 million, and 16384 a side."
    return {folder / name: f"{name}: {text}" for name, text in said.items()}


def jax_maps(weights, model, images):
    """What each place adds to each logit, (n, classes, h, w), so that the mean over the places is the logit."""
    logits, maps = class_maps(model, weights.variables, normalize(images, weights.mean, weights.std))
    maps = np.moveaxis(maps, -1, 1) * maps.shape[1] * maps.shape[2]
    assert np.abs(maps.mean((2, 3)) - logits).max() < export.TOLERANCE * np.abs(maps).max()
    return maps


def assert_as_jax(shown, classes, probabilities, maps):
    """What the page showed of an image against JAX: five probabilities, the means of their maps, the map of the first."""
    expected = dict(zip(classes, probabilities.tolist(), strict=True))
    assert list(shown["probabilities"])[::-1] == sorted(expected, key=expected.get, reverse=True)[:5]
    for name, probability in shown["probabilities"].items():
        assert abs(probability - expected[name]) < 1e-4, (shown["name"], name)
        assert abs(shown["means"][name] - maps[classes.index(name)].mean()) < 1e-3
    assert shown["said"].startswith(f"{shown['name']}: {max(expected, key=expected.get)} ")
    assert_colours(shown["with"], shown["without"], maps[int(probabilities.argmax())].ravel())


def assert_colours(colours, without, values):
    """The map is drawn over the picture as web/src/picture.js says: in orange or blue, as opaque as its values are large."""
    opacity = 0.75 * np.abs(values) / np.abs(values).max()
    over = np.where(values[:, None] > 0, (240, 120, 0), (0, 110, 255))
    expected = np.array(without) * (1 - opacity[:, None]) + over * opacity[:, None]
    assert np.abs(expected - colours).max() < 4  # of 255: opacity and colour are bytes, and smoothed from centre to centre


@slow
def test_the_page_shows_what_jax_computes_also_without_its_server(page, tmp_path):
    weights, model = load_network("base")
    classifier = cifar_jax.load("base")
    test = load_dataset("auto", "").test
    numbers = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    files, no_images = draw_files(tmp_path, test.images[numbers[3]]), draw_no_images(tmp_path)
    images = np.stack([*test.images[numbers], *files.values()])
    with serve(page / "dist") as url:
        online = drive(page, url, tmp_path / "profile", *files, *no_images)
    offline = drive(page, url, tmp_path / "profile", *files, *no_images)  # nothing answers there any more
    probabilities, maps = classifier.predict(images), jax_maps(weights, model, images)
    correct = int((classifier.predict(test.images).argmax(1) == test.labels).sum())
    for seen in (online, offline):
        assert seen["complaints"] == [] and seen["elsewhere"] == []
        named = zip(classifier.classes, numbers, strict=True)
        assert [shown["name"] for shown in seen["samples"]] == [f"Test image {number} ({name})" for name, number in named]
        good, bad = seen["given"][: len(files)], seen["given"][len(files) :]
        assert {shown["kind"] for shown in good} == {"drop", "choose", "paste"}
        for shown, of_image, of_map in zip(seen["samples"] + good, probabilities, maps, strict=True):
            assert_as_jax(shown, classifier.classes, of_image, of_map)
        assert [shown["problem"] for shown in bad] == list(no_images.values())
        assert seen["problem"] == "There is no file in it; save the image and choose or drop the file."
        assert "89,386" in seen["about"] and f"{correct / 100:.2f}\u00a0% ({correct:,} of CIFAR-10's 10,000" in seen["about"]
        assert seen["widths"] == [1280, 390, 320]  # nothing reaches beyond the window


@slow
def test_npm_alone_builds_no_page_without_its_network(page):
    (page / "public" / "model.onnx").rename(page / "model.onnx")
    built = subprocess.run(["npm", "--prefix", str(page), "run", "build"], capture_output=True, text=True)
    assert built.returncode != 0 and "`python -m web.build` writes it" in built.stderr + built.stdout
