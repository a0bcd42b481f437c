"""What a network costs and loses when it is shipped: ONNX and int8 ONNX in ONNX Runtime, against JAX, on the test images.

python -m benchmarks.deploy [--weights base] [--repeats 30] [--json]

Correct of all test images; milliseconds of one image and of a batch of 128 on one thread of ONNX Runtime (JAX takes as
many as it likes), uint8 in, logits out; bytes of the file, of the tensors in it, and the most that activations take.
Needs the extra `export`. No choice is made by these figures: how int8 is calibrated was chosen on training images.

Latest result (2 cores, AMD EPYC, onnxruntime 1.32.0), test images right in JAX, ONNX, int8: base 9051, 9051, 9046; mixed
8577, 8577, 8571; dilated 8561, 8561, 8563 of 10,000. One image of base takes 0.59, 0.39, 0.41 ms, 128 take 33, 33, 23 ms, n = 30.
In int8 the sums round as the processor has it: on a Xeon base got 9047.
"""

import functools
import sys

from benchmarks.measure import in_turn, machine, make_plain_parser, print_report, summarize
from cifar_jax import arguments

BATCHES = (1, 128)


def make_sides(weights) -> tuple[dict, dict]:
    """({name: logits(images)}, {name: content of the file}) of JAX, ONNX and int8 ONNX."""
    from cifar_jax import export, onnx_file, quantize

    images = quantize.load_images(weights, [])
    content = onnx_file.make_onnx(weights)
    files = {"onnx": content, "int8": quantize.quantize(content, images[-quantize.NUM_CALIBRATION :], weights)}
    sides = {name: onnx_file.run_onnx(file, intra_op_num_threads=1) for name, file in files.items()}
    return {"jax": export.make_reference(weights)} | sides, files


def count_correct(logits, test, batch=500) -> int:
    """How many images of a split get their label."""
    starts = range(0, len(test), batch)
    return sum(int((logits(test.images[i : i + batch]).argmax(1) == test.labels[i : i + batch]).sum()) for i in starts)


def tensor_bytes(content: bytes) -> int:
    """Bytes of all weights, biases, scales and zero points in an ONNX file."""
    import onnx

    tensors = onnx.load_from_string(content).graph.initializer
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors)


def measure(name: str, repeats: int) -> dict:
    """The report for a committed network or a weights file."""
    from cifar_jax import export
    from cifar_jax.budget import summarize as count
    from cifar_jax.data.sources import load_dataset
    from cifar_jax.weights import load_weights

    export.check_packages(export.INT8)
    weights = load_weights(name)
    sides, files = make_sides(weights)
    counted, test = count(weights.config.model), load_dataset(weights.config.data.source, "").test
    report = {"benchmark": "deploy", "weights": name, "machine": machine()}
    report |= {"parameters": counted.parameters, "examples": len(test)}
    report["correct"] = {side: count_correct(logits, test) for side, logits in sides.items()}
    report["file_bytes"] = {side: len(content) for side, content in files.items()}
    report["tensor_bytes"] = {side: tensor_bytes(content) for side, content in files.items()}
    report["peak_activation_bytes"] = {"onnx": counted.peak_activation_bytes, "int8": counted.peak_activation_bytes // 4}
    for n in BATCHES:
        calls = {side: functools.partial(logits, test.images[:n]) for side, logits in sides.items()}
        report[f"milliseconds_of_{n}"] = summarize(in_turn(calls, repeats), 1e-3)
    return report


def main(argv) -> int:
    parser = make_plain_parser(__doc__)
    parser.add_argument("--weights", type=arguments.path, default="base", help="a committed name or a weights file")
    parser.add_argument("--repeats", type=arguments.whole(1), default=30, help="of every side")
    flags = parser.parse_args(argv)
    print_report(measure(flags.weights, flags.repeats), flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
