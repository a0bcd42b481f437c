"""Configs: read from a file with overrides, checked key by key, compared, and turned into JSON and back."""

import difflib
import errno
import json
import os
import shlex

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from cifar_jax.data.augment import check_augment
from cifar_jax.errors import InputError

# key: (lowest, highest); both allowed; a whole number where the lowest is one
RANGES = {
    "seed": (0, 2**32 - 1),
    "model.num_classes": (2, 100_000),
    "data.num_validation": (0, 10**9),
    "data.workers": (0, 256),
    "optim.momentum": (0.0, 0.9999),
    "optim.b2": (0.0, 0.999999),
    "optim.weight_decay": (0.0, 1.0),
    "schedule.learning_rate": (1e-9, 100.0),
    "schedule.warmup_fraction": (0.0, 0.999),
    "schedule.final_fraction": (0.0, 1.0),
    "distill.share": (0.0, 1.0),
    "distill.temperature": (0.01, 100.0),
    "ema.decay": (0.0, 0.999999),
    "train.batch_size": (1, 65_536),
    "train.epochs": (1, 100_000),
    "train.label_smoothing": (0.0, 0.999),
    "checkpoint.every_epochs": (1, 100_000),
    "checkpoint.every_seconds": (0.0, 1e6),  # 0: only after epochs
    "parallel.devices": (0, 10_000),  # 0: as many as divide the batch
    "parallel.num_processes": (0, 100_000),  # 0: as the cluster says, else one
    "parallel.process_id": (-1, 99_999),  # -1: as the cluster says
    "budget.parameters": (1, 10**12),
    "budget.receptive_field": (0, 10**6),
}
CHOICES = {
    "model.name": ("c1c2c3c40",),
    "model.variant": ("strided", "dilated", "mixed", "early", "coarse", "gated"),
    "model.head": ("dense", "pointwise"),
    "model.dtype": ("float32", "bfloat16"),
    "model.kernels": ("auto", "xla"),
    "data.source": ("auto", "tfds", "archive", "npm", "cache", "folder", "shapes"),
    "optim.name": ("sgd", "adamw", "muon"),
    "schedule.name": ("one_cycle", "cosine", "constant"),
    "log.progress": ("auto", "bar", "lines", "off"),
}
TYPES = {
    "init.weights": str,
    "distill.weights": str,
    "data.dir": str,
    "optim.nesterov": bool,
    "parallel.coordinator": str,
    "log.tensorboard": bool,
}
KNOWN = {*RANGES, *CHOICES, *TYPES, "model.widths"}  # and the augment section, which augment.check_augment knows


def _run_file(path: str) -> ConfigDict:
    """What get_config() of a config file returns; raises InputError where it is missing or does not run."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a FIFO would be waited for
            raise OSError(errno.EINVAL, "no ordinary file")
        with open(path) as file:
            scope = {"__name__": "config", "__file__": path}
            exec(compile(file.read(), path, "exec"), scope)
        if "get_config" not in scope:
            raise TypeError("it has no get_config()")
        config = scope["get_config"]()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returned a {type(config).__name__}")
        flatten(config)  # raises where a value is missing
        return config
    except OSError as error:
        raise InputError(f"--config: got {path}, which cannot be read ({error.strerror}); name one of configs/*.py") from error
    except (Exception, SystemExit) as error:  # whatever the file itself raises is bad input, too
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"--config: got {path}, which does not run ({reason}), expected get_config() to return a ConfigDict; mend it"
        ) from error


def read_config(path: str, overrides: list[str]) -> ConfigDict:
    """Runs the config file's get_config() and applies overrides of the form --config.key=value.

    Raises InputError for a missing or broken file, an unknown key (with the nearest), or a value of the wrong type.
    """
    return _override(_run_file(path), overrides, path)


def with_overrides(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """A copy of a config made in memory with overrides --config.key=value; raises InputError like read_config."""
    return _override(config.copy_and_resolve_references(), overrides, "the stored config")


def _override(config: ConfigDict, overrides: list[str], name: str) -> ConfigDict:
    """The config itself, locked, with overrides; name: what errors call it."""
    known, values, argv = flatten(config), flags.FlagValues(), ["run.py", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)  # sets the overrides already
        values(argv)
    except Exception as error:
        raise InputError(_explain(error, name, overrides, known)) from error
    return config.lock()


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "numbers in brackets"}
# How ml_collections reads the text of an override, by the type of the value that it replaces.
_READERS = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    list: tuple_parser.TupleParser(),
}


def _explain(error: Exception, path: str, overrides: list[str], known: dict) -> str:
    """One line for an error that ml_collections raised while it applied overrides to the values `known` of a config."""
    for override in overrides:
        name, equals, text = override.partition("=")
        key = name.removeprefix("--config.")
        if key not in known:
            return f"{name}: no such key in {path}; {_nearest(key, known)}"
        kind = type(known[key])
        value = "VALUE" if known[key] == "" else known[key]
        example = f"write {shlex.quote(f'--config.{key}={value}')}, for example"
        if not equals and kind is not bool:  # which is true without a value
            return f"{key}: got no value, expected {_WORDS[kind]}; {example}"
        try:
            _READERS[kind].parse(text if equals else "true")
        except Exception:  # a TupleParser passes on what Python's parser raises
            return f"{key}: got {text!r}, expected {_WORDS[kind]}; {example}"
    reason = " ".join(str(error).split())
    return f"config {path}: {' '.join(overrides)}: {reason}; give a value of the key's type"


def _nearest(key: str, known: dict) -> str:
    """What to do about a key that there is not."""
    if inner := sorted(name for name in known if name.startswith(f"{key}.")):
        return f"it is a section: set --config.{' or --config.'.join(inner)}"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"did you mean --config.{near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"


def flatten(config) -> dict:
    """{"a.b": value} of a nested config or dict; tuples become lists, as JSON has them.

    >>> flatten({"model": {"widths": (4, 8), "variant": "strided"}})
    {'model.widths': [4, 8], 'model.variant': 'strided'}
    """
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_json(config) -> dict:
    """The config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


_NOT_TAUGHT = {"weights": "", "share": 0.9, "temperature": 4.0}
ANYWHERE = {"devices": 0, "coordinator": "", "num_processes": 0, "process_id": -1}
_NOT_AUGMENTED = {
    "translate": {"padding": 4, "p": 0.0},
    "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "sharpness": 0.5, "hue": 0.02, "p": 0.0},
    "cutout": {"size": 8, "p": 0.0},
    "mixup": {"alpha": 0.2, "p": 0.0},
    "cutmix": {"alpha": 1.0, "p": 0.0},
}


def from_json(values: dict) -> ConfigDict:
    """The inverse of to_json; lists become tuples, as config files write them."""
    # First what files made before there was that key did.
    model = {"kernels": "xla"} | values["model"] | {"widths": tuple(values["model"]["widths"])}
    checkpoint = {"every_seconds": 0.0} | values["checkpoint"]
    parallel = ANYWHERE | values.get("parallel", {})
    init = {"weights": ""} | values.get("init", {})
    distill = _NOT_TAUGHT | values.get("distill", {})
    augment = _NOT_AUGMENTED | values["augment"]
    augment["horizontal_flip"] = {"alternate": False} | augment["horizontal_flip"]
    augment["mixup"] = {"ramp": 0.0, "until": 1.0} | augment["mixup"]
    augment["color_jitter"] = {"sharpness_mean": 1.0} | augment["color_jitter"]
    sections = {"model": model, "checkpoint": checkpoint, "augment": augment, "parallel": parallel, "init": init}
    sections["distill"] = distill
    sections["optim"] = {"b2": 0.999} | values["optim"]
    sections["schedule"] = {"final_fraction": 0.0} | values["schedule"]
    return ConfigDict(values | sections).lock()


def differing_keys(one, other) -> list[str]:
    """Keys whose values differ between two configs, as "key (one value, not the other)"; sorted."""
    one, other = flatten(one), flatten(other)
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return [f"{key} ({one.get(key)} there, {other.get(key)} here)" for key in keys]


def check_config(config) -> None:
    """Raises InputError for the first key that is missing or unknown, or value of a wrong type or out of range."""
    flat = flatten(config)
    _check_keys({key for key in flat if key.split(".")[0] != "augment"})
    for key, (low, high) in RANGES.items():
        value, kind = flat[key], int if isinstance(low, int) else (int, float)
        # `not low <= value` also refuses NaN; bool is an int to Python, a slip in a config
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            words = _WORDS[type(low)]
            raise InputError(f"{key}: got {value!r}, expected {words} from {low} to {high}; change it in the config")
    for key, kind in TYPES.items():
        if not isinstance(flat[key], kind):
            raise InputError(f"{key}: got {flat[key]!r}, expected {_WORDS[kind]}; change it in the config")
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            near = difflib.get_close_matches(str(flat[key]), choices, 1)
            hint = f"did you mean {near[0]}?" if near else "choose one of them"
            raise InputError(f"{key}: got {flat[key]!r}, expected one of {', '.join(choices)}; {hint}")
    widths = config.model.widths
    whole = isinstance(widths, tuple | list) and all(type(w) is int and 1 <= w <= 4096 for w in widths)
    if not whole or len(widths) != 4:
        raise InputError(
            f"model.widths: got {widths!r}, expected four whole numbers from 1 to 4096, one a block, such as (32, 64, 96, 128); "
            "change it in the config"
        )
    if config.optim.name == "adamw" and config.optim.nesterov:
        raise InputError("optim.nesterov: got True beside adamw, expected False: it belongs to sgd and muon; set it to False")
    check_augment(config.get("augment"))


def _check_keys(keys: set[str]) -> None:
    for key in sorted(keys - KNOWN):
        near = difflib.get_close_matches(key, KNOWN, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        raise InputError(f"config: got the key {key}, expected only keys of configs/base.py; {hint}")
    for key in sorted(KNOWN - keys):
        raise InputError(f"config: the key {key} is missing, expected every key of configs/base.py; start from that file")
