"""An ONNX file in int8: ONNX Runtime's static quantization (QDQ), ranges of activations from training images.

Weights are signed, a scale each channel; activations unsigned, a scale each tensor, from their least and largest value.
Of 5,000 training images that calibration does not see, base gets 22 fewer right than in float, mixed and dilated 3 more
each. For base, ranges by entropy or percentiles change that count by 3 at most; signed activations change it by 1 and are
three to five times slower in ONNX Runtime on x86.
"""

import pathlib
import tempfile

import numpy as np

from cifar_jax import stopping
from cifar_jax.config import check_config, with_overrides
from cifar_jax.data.dataset import hold_out
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError, RunError
from cifar_jax.onnx_file import to_bytes
from cifar_jax.weights import Weights

NUM_CALIBRATION = 512
BATCH_SIZE = 64
DATA_KEYS = ("--config.data.dir", "--config.data.source")
# All but what normalizes the images.
OPERATORS = ("Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm")


def load_images(weights: Weights, overrides: list[str]) -> np.ndarray:
    """The images that the weights were trained on, uint8 (n, 32, 32, 3), in a fixed random order.

    overrides: --config.data.dir=DIR and --config.data.source=NAME, to say where the data lies on this machine.
    Raises InputError for any other, or where the data has other classes.
    """
    for override in overrides:
        if override.split("=")[0] not in DATA_KEYS:
            raise InputError(
                f"{override}: the config of trained weights is a fact, expected only {' and '.join(DATA_KEYS)}; leave it out"
            )
    config = with_overrides(weights.config, ["--config.data.dir=", *overrides])  # a stranger's may not choose what is read
    check_config(config)
    with stopping.interruptible():
        dataset = load_dataset(config.data.source, config.data.dir)
    if dataset.classes != weights.classes:
        raise InputError(
            f"data: got the classes {', '.join(dataset.classes[:10])}, expected those of the weights: "
            f"{', '.join(weights.classes[:10])}; name the data with --config.data.source and --config.data.dir"
        )
    images = hold_out(dataset.train, config.data.num_validation)[0].images
    return images[np.random.default_rng(0).permutation(len(images))]  # a folder's are sorted by class


def quantize(content: bytes, images: np.ndarray, weights: Weights) -> bytes:
    """An ONNX file of float32 in int8, calibrated by uint8 images (n, 32, 32, 3); input and output stay the same."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter([{"images": images[i : i + BATCH_SIZE]} for i in range(0, len(images), BATCH_SIZE)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared, made = pathlib.Path(folder, "prepared.onnx"), pathlib.Path(folder, "int8.onnx")
            # Its optimizations are made already, and would name operator sets of which the file has no operator.
            quant_pre_process(onnx.load_from_string(content), prepared, skip_optimization=True, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                made,
                Reader(),
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                reduce_range=True,  # weights of 7 bits: sums of products cannot saturate on x86 without VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return to_bytes(onnx.load(made), weights)
    except OSError as error:
        raise RunError(f"{tempfile.gettempdir()} cannot be written ({error.strerror}); make room there or set TMPDIR") from error
