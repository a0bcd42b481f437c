"""A trained network as a file for other programs: ONNX, ONNX in int8, or StableHLO, as the suffix of its name says.

Every such file takes uint8 RGB images (n, 32, 32, 3), any n, and returns logits (n, classes) in float32: normalization is
inside, softmax is not. A file is put in place only after what is in it was run and compared with JAX.
"""

import contextlib
import importlib.util
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from ml_collections import ConfigDict

from cifar_jax import onnx_file, quantize, stopping
from cifar_jax.budget import summarize
from cifar_jax.classifier import load_network
from cifar_jax.data.augment import normalize
from cifar_jax.data.shapes import make_shapes
from cifar_jax.errors import InputError, RunError
from cifar_jax.files import replace_file
from cifar_jax.models import create_model
from cifar_jax.weights import Weights

INT8, ONNX, STABLEHLO = ".int8.onnx", ".onnx", ".stablehlo"
PACKAGES = {
    INT8: ("torch", "onnx", "onnxruntime", "baselines"),
    ONNX: ("torch", "onnx", "onnxruntime", "baselines"),
    STABLEHLO: ("flatbuffers",),
}
PLATFORMS = ("cpu", "cuda")  # on which a StableHLO file runs
NUM_DRAWN = 64  # images on which a float file is compared with JAX
# Of the largest logit. Sums in another order differ by 1e-6; twice the epsilon of the normalization would by 5e-4.
TOLERANCE = 1e-4
NUM_COMPARED = 1000  # training images on which an int8 file is compared
LEAST_AGREEMENT = 0.9  # of their classes; 0.98 where a network is well trained


def export(name: str, output: str, overrides: list[str]) -> dict:
    """Writes a committed network or a weights file, `name`, to `output`; returns what `export --json` prints.

    overrides: where the training images lie, for int8 only; see quantize.load_images.
    Raises InputError for a bad argument or a missing package, RunError where the file would differ from JAX or cannot be
    written; then there is no new file, and one that was there is as it was.
    """
    path, suffix = _check_output(output)
    check_packages(suffix)
    if overrides and suffix != INT8:
        raise InputError(f"{overrides[0]}: got an override, expected none for {suffix}; leave it out")
    weights, _ = load_network(name)
    if suffix == INT8:
        images = quantize.load_images(weights, overrides)
        content = quantize.quantize(onnx_file.make_onnx(weights), images[-quantize.NUM_CALIBRATION :], weights)
        compared = compare_classes(make_reference(weights), onnx_file.run_onnx(content), images[:NUM_COMPARED])
    elif suffix == ONNX:
        content = onnx_file.make_onnx(weights)
        compared = compare_logits(make_reference(weights), onnx_file.run_onnx(content))
    else:
        content = make_stablehlo(weights)
        compared = compare_logits(make_reference(weights), run_stablehlo(content))
    _write(path, content)
    parameters = summarize(weights.config.model).parameters
    described = {"weights": weights.path, "output": str(path), "format": suffix[1:], "bytes": len(content)}
    return described | {"parameters": parameters} | compared


def format_report(report: dict) -> str:
    """What `export` prints, as lines for a terminal."""
    if report["format"] == INT8[1:]:
        compared = f"{100 * report['agreement']:.1f} % of {report['images']} training images get the class that JAX gives them"
    else:
        difference, allowed = report["max_difference"], report["tolerance"]
        compared = f"largest difference of a logit from JAX's {difference:.1e}, of {allowed:.1e} allowed"
    return f"{report['output']}: {report['parameters']:,} parameters in {report['bytes']:,} bytes; {compared}"


def _check_output(output: str) -> tuple[pathlib.Path, str]:
    """Returns (path, suffix); raises InputError where it has none of the suffixes, or no file can be made there."""
    path = pathlib.Path(output)
    suffix = next((suffix for suffix in PACKAGES if output.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"--output: got {output}, expected a name that ends in {', '.join(PACKAGES)}; name one of these formats")
    try:
        path.with_name(path.name + ".tmp").lstat()  # as replace_file calls it: too long?
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"--output: got {output}, which cannot be a file ({error.strerror}); name another") from error
    if not path.parent.is_dir():
        raise InputError(f"--output: got {output}, but {path.parent} is no folder; make it or name another")
    if path.is_symlink() or path.exists() and not path.is_file():
        raise InputError(f"--output: got {output}, expected a file or a new name; name another")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # a read-only mount answers yes to os.access for root
            pass
    except OSError as error:
        raise InputError(
            f"--output: got {output}, but {path.parent} cannot be written ({error.strerror}); name another"
        ) from error
    return path, suffix


def check_packages(suffix: str) -> None:
    """Raises InputError where a package is missing that a file of this suffix needs."""
    for package in PACKAGES[suffix]:
        if importlib.util.find_spec(package) is None:
            remedy = "start run.py of a clone of the repository" if package == "baselines" else 'pip install -e ".[export]"'
            raise InputError(f"export: got no package {package}, expected it for {suffix}; {remedy}")


def _make_model(weights: Weights, **changes):
    """The Flax module, in float32 whatever the training was in; changes: of the config's model section."""
    return create_model(ConfigDict(weights.config.model.to_dict() | {"dtype": "float32"} | changes))


def make_reference(weights: Weights):
    """logits(uint8 images) as `evaluate` computes them: images normalized on the host, the kernels of this machine."""
    model = _make_model(weights)
    apply = jax.jit(lambda images: model.apply(weights.variables, images, train=False))

    def logits(images):
        with jax.default_matmul_precision("highest"):  # no TF32 where this runs on a GPU
            return np.asarray(apply(normalize(images, weights.mean, weights.std)))

    return logits


def compare_logits(reference, run) -> dict:
    """Both on drawn images, the first of them alone as well; raises RunError where a logit differs by more than rounding."""
    images = make_shapes(NUM_DRAWN, 1).train.images
    expected = reference(images)
    stopping.check()
    differences = np.abs(run(images) - expected).max(), np.abs(run(images[:1]) - expected[:1]).max()
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference = float(np.max(differences))
    stopping.check()
    if not difference <= allowed:  # also where it is NaN
        raise RunError(
            f"export: a logit differs from JAX's by {difference:.1e}, allowed are {allowed:.1e}; no file is written: "
            "use weights whose outputs are finite, and the pinned versions of the extra export"
        )
    return {"images": len(images), "max_difference": difference, "tolerance": allowed}


def compare_classes(reference, run, images: np.ndarray) -> dict:
    """The share of images that get the same class from both; raises RunError where it is below LEAST_AGREEMENT."""
    batches = [images[i : i + 100] for i in range(0, len(images), 100)]
    same = []
    for batch in batches:
        stopping.check()
        same.append(reference(batch).argmax(1) == run(batch).argmax(1))
    agreement = float(np.concatenate(same).mean())
    if agreement < LEAST_AGREEMENT:
        raise RunError(
            f"export: {100 * agreement:.1f} % of {len(images)} training images get the class that JAX gives them, expected "
            f"{100 * LEAST_AGREEMENT:.0f} % or more; no file is written: use {ONNX} in place of {INT8}"
        )
    return {"images": len(images), "agreement": agreement, "least_agreement": LEAST_AGREEMENT}


def make_stablehlo(weights: Weights) -> bytes:
    """The network as jax.export serializes it: any n, each of PLATFORMS, XLA's operations alone."""
    model = _make_model(weights, kernels="xla")
    mean, std = (np.asarray(value, np.float32) * np.float32(255) for value in (weights.mean, weights.std))

    def logits(images):
        return model.apply(weights.variables, (images.astype(jnp.float32) - mean) * np.reciprocal(std), train=False)

    (n,) = jax_export.symbolic_shape("n")
    with jax.default_matmul_precision("highest"):  # written into the file: no TF32 on a GPU
        exported = jax_export.export(jax.jit(logits), platforms=PLATFORMS)(jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.uint8))
    return bytes(exported.serialize())


def run_stablehlo(content: bytes):
    """logits(uint8 images) of such a file, by JAX."""
    exported = jax_export.deserialize(bytearray(content))
    return lambda images: np.asarray(exported.call(images))


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.with_name(path.name + ".tmp").unlink()
        raise RunError(f"{path} cannot be written ({error.strerror}); make room there or name another --output") from error
