"""A trained network as an ONNX file, written by PyTorch from the twin in baselines/, run by ONNX Runtime.

Input "images": uint8 RGB (n, 32, 32, 3), any n; output "logits": float32 (n, classes). What one must know to use it is
metadata of the file, each value as JSON.
"""

import io
import json
import os
import warnings

from cifar_jax import __version__, port
from cifar_jax.budget import summarize
from cifar_jax.weights import Weights

OPSET = 17


def make_onnx(weights: Weights) -> bytes:
    """The content of the file, in float32; batch normalization is folded into the convolutions."""
    import onnx
    import torch

    from baselines.model import create_model

    network = create_model(weights.config.model)
    state_dict = port.to_state_dict(weights.variables, weights.config.model)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state_dict.items()})
    mean, std = (torch.tensor(value) * 255 for value in (weights.mean, weights.std))

    class Deployed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):  # b h w c -> b c h w
            return self.network(((images.float() - mean) * (1 / std)).permute(0, 3, 1, 2))

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # dynamo=False is the older exporter. The newer one writes the pooling as a dozen nodes, which quantization leaves in
        # float, needs another package (onnxscript), and takes ten times as long.
        torch.onnx.export(
            Deployed().eval(),
            (torch.zeros((2, 32, 32, 3), dtype=torch.uint8),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    return to_bytes(onnx.load_from_string(file.getvalue()), weights)


def to_bytes(model, weights: Weights) -> bytes:
    """An ONNX model as the content of a file, with its metadata: classes, mean, std, parameters, source."""
    import onnx

    model.producer_name, model.producer_version = "cifar_jax", __version__
    model.doc_string = "images: uint8 RGB (n, 32, 32, 3). logits: float32 (n, classes); their softmax are probabilities."
    content = {
        "classes": weights.classes,
        "mean": weights.mean,  # of images / 255: what the graph subtracts, before it divides by std
        "std": weights.std,
        "parameters": summarize(weights.config.model).parameters,
        "source": os.path.basename(weights.path),
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in content.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def run_onnx(content: bytes, **options):
    """logits(uint8 images) of a file, on the CPU; options: fields of ONNX Runtime's SessionOptions."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    for key, value in options.items():
        setattr(settings, key, value)
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]
