"""The page in web/: built from a copy of its folder, driven in headless Chromium, compared with JAX.

Tests of the page are `slow` (npm fetches packages) and need npm, Chromium and the extra `export`; those of its modules
need node alone. Bounds: 1e-4 of a probability, as `run.py export` allows of a logit, and 1e-3 of a logit.
"""

import contextlib
import functools
import http.server
import importlib.util
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
from cifar_jax.data import shapes
from cifar_jax.data.folder import read_image
from cifar_jax.data.sources import load_dataset
from cifar_jax.weights import load_weights
from tests.test_export import needs_onnx, write_weights

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
def test_the_mean_of_an_activation_map_is_the_logit(tmp_path, variant, head):
    import onnxruntime

    from web.assets import add_activation_maps

    weights = load_weights(str(write_weights(tmp_path / "x.safetensors", variant)))
    assert weights.config.model.head == head
    content = onnx_file.make_onnx(weights)
    session = onnxruntime.InferenceSession(add_activation_maps(content, weights), providers=["CPUExecutionProvider"])
    images = shapes.make_shapes(1, 3, seed=1).test.images
    logits, maps = session.run(["logits", "activation_maps"], {"images": images})
    assert np.array_equal(logits, onnx_file.run_onnx(content)(images))
    assert maps.shape[:2] == logits.shape and maps.shape[2] == maps.shape[3] > 1 and maps.std((2, 3)).min() > 0
    assert np.abs(maps.mean((2, 3)) - logits).max() < export.TOLERANCE * max(1, np.abs(logits).max())


def npm(folder, *words):
    return subprocess.run(["npm", "--prefix", str(folder), *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A copy of web/ as a clone has it, built; dist/ is the page."""
    from web.assets import write_assets

    folder = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "public", "__pycache__"))
    installed = npm(folder, "ci", "--no-audit", "--no-fund")
    assert installed.returncode == 0, installed.stderr
    early = npm(folder, "run", "build")
    assert early.returncode != 0 and "write it with `python -m web.assets`" in early.stderr + early.stdout
    write_assets("base", folder / "public")
    built = npm(folder, "run", "build")
    assert built.returncode == 0, built.stderr + built.stdout
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
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def draw_files(folder, image):
    """Files of several sizes and kinds that any exact decoder and resizer reads as the same 32 x 32 pixels, or turned.

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
    return [folder / name for name in ("big.png", "turned.jpg", "see-through.png")]


def assert_as_jax(shown, model, logits, image):
    """What the page showed of an image against JAX: five probabilities, the means of five maps."""
    expected = dict(zip(model.classes, model.predict(image)[0].tolist(), strict=True))
    assert len(shown["probabilities"]) == len(shown["means"]) == 5
    assert list(shown["probabilities"]) == sorted(expected, key=expected.get, reverse=True)[:5]
    for name, probability in shown["probabilities"].items():
        assert abs(probability - expected[name]) < 1e-4, (shown["name"], name)
        assert abs(shown["means"][name] - logits(image[None])[0][model.classes.index(name)]) < 1e-3
    assert shown["said"].startswith(f"{shown['name']}: {next(iter(shown['probabilities']))} ")


@slow
def test_the_page_shows_what_jax_computes_also_without_its_server(page, tmp_path):
    model, logits = cifar_jax.load("base"), export.make_reference(load_weights("base"))
    test = load_dataset("auto", "").test
    numbers = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    files = draw_files(tmp_path, test.images[numbers[3]])
    with serve(page / "dist") as url:
        online = drive(page, url, tmp_path / "profile", *files)
    offline = drive(page, url, tmp_path / "profile", *files)  # nothing answers there any more
    for seen in (online, offline):
        assert seen["complaints"] == [] and seen["elsewhere"] == []
        assert [shown["name"] for shown in seen["samples"]] == [
            f"{name}, test image {number}" for name, number in zip(model.classes, numbers, strict=True)
        ]
        for shown, number in zip(seen["samples"], numbers, strict=True):
            assert_as_jax(shown, model, logits, test.images[number])
        assert [shown["kind"] for shown in seen["given"]] == ["drop", "choose", "paste"]
        for shown, file in zip(seen["given"], files, strict=True):
            assert_as_jax(shown, model, logits, read_image(file))
        assert "drive.js: this browser cannot read it as an image" in seen["problem"]
        assert "89,386" in seen["about"] and "87.10\u00a0% (8,710 of CIFAR-10's 10,000 test images)" in seen["about"]
