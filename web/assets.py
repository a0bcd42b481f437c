"""What the page needs of a trained network, written to web/public before npm builds the page.

model.onnx: as `run.py export` writes it, with a second output, activation_maps: float32 (n, classes, h, w), what each place
of the last map adds to each logit; the mean over the places is the logit. model.json: what the page says of the network,
with its accuracy counted on the test images by that file. samples/: the first test image of each class, as PNG.
"""

import json
import pathlib

import cv2
import numpy as np

from cifar_jax import export, onnx_file
from cifar_jax.budget import summarize
from cifar_jax.classifier import load_network
from cifar_jax.data.dataset import CIFAR10_CLASSES, Split
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError
from cifar_jax.files import replace_file
from cifar_jax.weights import Weights

BATCH_SIZE = 500


def add_activation_maps(content: bytes, weights: Weights) -> bytes:
    """The same ONNX file with the output activation_maps (Zhou et al., arXiv:1512.04150, with the bias of the head added)."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    (pool,) = (node for node in graph.node if node.op_type == "GlobalAveragePool")
    if weights.config.model.head == "pointwise":  # what is pooled are the maps
        graph.node.append(onnx.helper.make_node("Identity", [pool.input[0]], ["activation_maps"]))
    else:
        (dense,) = (node for node in graph.node if node.op_type == "Gemm")
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        kernel = tensors[dense.input[1]][:, :, None, None]  # out in -> out in 1 1
        graph.initializer.append(onnx.numpy_helper.from_array(kernel, "activation_maps.weight"))
        inputs = [pool.input[0], "activation_maps.weight", dense.input[2]]
        graph.node.append(onnx.helper.make_node("Conv", inputs, ["activation_maps"]))
    shape = ("n", len(weights.classes), "h", "w")
    said = "what each place of the last map adds to each logit; the mean over h and w is the logit"
    graph.output.append(onnx.helper.make_tensor_value_info("activation_maps", onnx.TensorProto.FLOAT, shape, said))
    return onnx_file.to_bytes(model, weights)


def describe(name: str, weights: Weights, content: bytes, test: Split) -> dict:
    """What model.json holds; samples: number of the first test image of each class, in the order of the classes."""
    logits = onnx_file.run_onnx(content)
    batches = [logits(test.images[i : i + BATCH_SIZE]) for i in range(0, len(test), BATCH_SIZE)]
    counted = summarize(weights.config.model)
    return {
        "name": name,
        "classes": weights.classes,
        "parameters": counted.parameters,
        "receptive_field": counted.receptive_field,
        "test": {"examples": len(test), "correct": int((np.concatenate(batches).argmax(1) == test.labels).sum())},
        "samples": [int(np.flatnonzero(test.labels == label)[0]) for label in range(len(weights.classes))],
    }


def write_assets(name: str, public: pathlib.Path) -> dict:
    """Writes the files of a committed name or a weights file into `public`; returns what model.json holds.

    Raises InputError where the extra `export` is missing or the network has other classes than CIFAR-10, RunError where the
    file would differ from JAX; then nothing is written.
    """
    export.check_packages(export.ONNX)
    weights, _ = load_network(name)
    if weights.classes != CIFAR10_CLASSES:
        raise InputError(f"weights {weights.path}: got classes other than CIFAR-10's, expected those; name another network")
    content = add_activation_maps(onnx_file.make_onnx(weights), weights)
    export.compare_logits(export.make_reference(weights), onnx_file.run_onnx(content))
    test = load_dataset("auto", "").test
    described = describe(pathlib.Path(weights.path).stem, weights, content, test)
    (public / "samples").mkdir(parents=True, exist_ok=True)
    for label, number in zip(weights.classes, described["samples"], strict=True):
        _, png = cv2.imencode(".png", cv2.cvtColor(test.images[number], cv2.COLOR_RGB2BGR))
        replace_file(public / "samples" / f"{label}.png", png.tobytes())
    replace_file(public / "model.json", (json.dumps(described, indent=2) + "\n").encode())
    replace_file(public / "model.onnx", content)
    return described
