"""Weights files: safetensors, no pickle. The committed networks lie beside this file and are named without suffix.

Keys are params/LAYER/NAME and batch_stats/LAYER/NAME; the metadata makes the file self-sufficient: config (without keys
that depend on the machine), classes, mean, std, and the SHA-256 of all that.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cifar_jax.config import from_json
from cifar_jax.errors import InputError
from cifar_jax.files import replace_file

FORMAT_VERSION = 2  # 1 had no digest
# The names of 100,000 classes take half the header, the widest network allowed (4096 channels throughout) 2.4 GB;
# parsed JSON takes twenty times its text.
MOST_HEADER, MOST_BYTES = 2**22, 2**32
COMMITTED = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Weights:
    """variables: {"params", "batch_stats"}, numpy; config: the training config; mean, std: fractions of 255.

    sha256: of the tensors and the metadata.
    """

    variables: dict
    config: Any
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    path: str
    sha256: str
    train_seconds: float | None = None  # None: not known


def save_weights(path: str | os.PathLike, variables, *, config: dict, classes, mean, std, train_seconds: float | None) -> None:
    """Writes the file in one piece: it appears whole or not at all."""
    flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    content = {"config": config, "classes": classes, "mean": mean, "std": std, "train_seconds": train_seconds}
    content["format_version"] = FORMAT_VERSION
    metadata = {key: json.dumps(value) for key, value in content.items()}
    flat = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    metadata["sha256"] = json.dumps(_digest(flat, metadata))
    replace_file(pathlib.Path(path), _with_sorted_header(save(flat, metadata)))


def _digest(tensors: dict, metadata: dict[str, str]) -> str:
    """SHA-256 of the tensors and of the metadata other than itself."""
    found = hashlib.sha256()
    for key, text in sorted(metadata.items()):
        if key != "sha256":
            found.update(json.dumps([key, text]).encode())
    for key, value in sorted(tensors.items()):
        found.update(json.dumps([key, value.dtype.str, value.shape]).encode())
        found.update(np.ascontiguousarray(value))
    return found.hexdigest()


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file, its header in the order of the keys: `save` writes metadata in another order each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def committed_names() -> list[str]:
    """The names of the weights that the package brings, sorted."""
    return sorted(path.stem for path in COMMITTED.glob("*.safetensors"))


def find_weights(name: str) -> pathlib.Path:
    """The file of a committed name or a path; raises InputError where there is neither."""
    names = committed_names()
    path = COMMITTED / f"{name}.safetensors" if name in names else pathlib.Path(name)
    if not os.path.isfile(path):  # False, not an error, for a name that no file can have
        raise InputError(f"weights: got {name}, expected a file or a committed name ({', '.join(names)}); name one of these")
    return path


def _check_sizes(path: pathlib.Path) -> None:
    """Raises ValueError where the file ends before its header, or either is longer than that of any network that trains here."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if 8 + header > size:
        raise ValueError("it does not begin as a safetensors file does, or was cut off")
    if header > MOST_HEADER or size > MOST_BYTES:
        raise ValueError(f"a header of {header} bytes in {size}, at most {MOST_HEADER} in {MOST_BYTES} will do")


def load_weights(name: str) -> Weights:
    """Reads a committed name or a file; raises InputError where it is no weights file of this project, damaged or not finite.

    Whether the tensors are those of the config's network is for check_variables.
    """
    path = find_weights(name)
    try:
        _check_sizes(path)
        with safe_open(path, "numpy") as file:
            texts = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}
        metadata = {key: json.loads(text) for key, text in texts.items()}
        if metadata["format_version"] > FORMAT_VERSION:
            raise InputError(
                f"weights {path}: got format {metadata['format_version']}, expected at most {FORMAT_VERSION}; update cifar_jax"
            )
        digest = _digest(flat, texts)
        if metadata["format_version"] != 1 and metadata["sha256"] != digest:
            raise ValueError("its content does not match its sha256")
        variables = traverse_util.unflatten_dict(flat, sep="/")
        config = from_json(metadata["config"])
        classes = tuple(metadata["classes"])
        mean, std = (tuple(float(value) for value in metadata[key]) for key in ("mean", "std"))
        sizes = (len(classes), len(mean), len(std))
        if sizes != (config.model.num_classes, 3, 3):
            raise ValueError(f"{sizes} classes, means and deviations for {config.model.num_classes} classes and 3 channels")
        # fractions of 255; a deviation is 1 / 255 or more where a data set is read
        if not all(0 <= value <= 1 for value in mean) or not all(1e-3 <= value <= 1 for value in std):
            raise ValueError(f"mean {mean} and std {std}")
        seconds = metadata.get("train_seconds")
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("class names of another type")
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < np.inf):
            raise ValueError(f"train_seconds {seconds!r}")
        for key, value in flat.items():
            if not np.isfinite(value).all():
                raise InputError(f"weights {path}: tensor {key}: got numbers that are not finite; use a run that did not diverge")
        return Weights(variables, config, classes, mean, std, str(path), digest, seconds)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"weights {path}: not a whole weights file of cifar_jax ({type(error).__name__}: {reason}); "
            "expected what training writes as weights.safetensors; name another, or train again"
        ) from error


def check_variables(variables, expected, path: str) -> None:
    """Raises InputError naming the first tensor that is missing, unexpected, or of another shape or type than the network's.

    expected: a tree of arrays or ShapeDtypeStructs.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    have = {key: f"{value.dtype} {value.shape}" for key, value in flat.items()}
    want = {key: f"{leaf.dtype} {leaf.shape}" for key, leaf in traverse_util.flatten_dict(expected, sep="/").items()}
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            raise InputError(
                f"weights {path}: tensor {key}: got {have.get(key, 'nothing')}, expected {want.get(key, 'nothing')}; "
                "these weights are for another network"
            )
