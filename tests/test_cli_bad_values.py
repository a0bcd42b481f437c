"""Bad values for every key, on the command line and in config files: what was got, expected and to be done; exit code 2.

The keys are those of configs/base.py: a new one needs a line in BAD.
"""

import math
import pathlib

import pytest

from cifar_jax.config import CHOICES, RANGES, flatten, read_config
from cifar_jax.data import augment

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
VALUES = flatten(read_config(str(ROOT / "configs" / "base.py"), []))

WHOLE, NUMBER, TRUTH = "a whole number", "a number", "true or false"
PROBABILITY, STRENGTH = "a probability from 0 to 1", "a strength from 0 to 1"
ON_DEVICE = "made on the device only; set it to 0.0, or augment.backend=device"


def no_number(expected):
    """What no setting is that is a number, nor within its limits."""
    return {"nan": expected, "inf": expected, "-inf": expected, "half": NUMBER, "": NUMBER, "1,5": NUMBER}


# Every key of a config: bad values, each with what its message says to expect.
BAD = {
    "seed": {"-1": "0 to 4294967295", "4294967296": "0 to 4294967295", "one": WHOLE, "0.5": WHOLE},
    "model.name": {"resnet": "c1c2c3c40", "": "c1c2c3c40"},
    "model.variant": {"stided": "did you mean strided?", "": "strided, dilated, mixed, early, coarse, gated"},
    "model.widths": {
        "(8,8,8)": "four whole numbers",
        "(8,8,8,0)": "1 to 4096",
        "(8,8,8,4097)": "1 to 4096",
        "8": "four",
        "": "numbers",
    },
    "model.num_classes": {"1": "2 to 100000", "100001": "2 to 100000", "ten": WHOLE, "9.5": WHOLE},
    "model.head": {"conv": "dense, pointwise", "": "dense, pointwise"},
    "model.dtype": {"float16": "did you mean bfloat16?", "": "float32, bfloat16"},
    "model.kernels": {"fast": "auto, xla", "": "auto, xla"},
    "init.weights": {
        "nosuch": "a committed name (base, ",
        "/nonexistent": "expected a file",
        "base": "strided with widths (32, 64, 96, 128)",
    },
    "distill.weights": {"nosuch": "a committed name (base, ", "/nonexistent": "expected a file"},
    "distill.share": {"1.1": "0.0 to 1.0", "-0.1": "0.0 to 1.0", **no_number("0.0 to 1.0")},
    "distill.temperature": {"0": "0.01 to 100.0", "101": "0.01 to 100.0", **no_number("0.01 to 100.0")},
    "data.source": {"shape": "did you mean shapes?", "": "auto, tfds"},
    "data.dir": {"/nonexistent": "a folder with the data", "~nosuchuser/x": "a folder with the data"},
    "data.num_validation": {"-1": "0 to", "1000000001": "0 to", "60": "fewer than the 60", "some": WHOLE, "0.1": WHOLE},
    "data.workers": {"-1": "0 to 256", "257": "0 to 256", "2.5": WHOLE, "": WHOLE},
    "augment.backend": {"gpu": "'host'", "": "'host'"},
    "augment.horizontal_flip.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, **no_number(PROBABILITY)},
    "augment.horizontal_flip.alternate": {
        "maybe": TRUTH,
        "2": TRUTH,
        "": TRUTH,
        "true": "set it to False, or augment.backend=device",
    },
    "augment.translate.padding": {"0": "from 1 to 16", "17": "from 1 to 16", "2.5": WHOLE, "four": WHOLE},
    "augment.translate.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "1": ON_DEVICE, **no_number(PROBABILITY)},
    **{
        f"augment.color_jitter.{name}": {"1.5": STRENGTH, "-0.1": STRENGTH, **no_number(STRENGTH)}
        for name in ("brightness", "contrast", "saturation", "sharpness")
    },
    "augment.color_jitter.sharpness_mean": {"3.5": "from 0 to 3", "-0.1": "from 0 to 3", **no_number("from 0 to 3")},
    "augment.color_jitter.hue": {"0.6": "from 0 to 0.5", "-0.1": "from 0 to 0.5", **no_number("from 0 to 0.5")},
    "augment.color_jitter.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "0.5": ON_DEVICE, **no_number(PROBABILITY)},
    "augment.shift_scale_rotate.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, **no_number(PROBABILITY)},
    "augment.shift_scale_rotate.shift": {"-0.1": "from 0 to 1", "1.1": "from 0 to 1", **no_number("from 0 to 1")},
    "augment.shift_scale_rotate.scale": {"-0.1": "from 0 to 0.99", "1": "from 0 to 0.99", **no_number("from 0 to 0.99")},
    "augment.shift_scale_rotate.rotate": {"-1": "from 0 to 180", "181": "from 0 to 180", **no_number("from 0 to 180")},
    "augment.coarse_dropout.p": {"2": PROBABILITY, "-1e-9": PROBABILITY, **no_number(PROBABILITY)},
    "augment.coarse_dropout.size": {"0": "from 1 to 32", "33": "from 1 to 32", "8.5": WHOLE, "big": WHOLE},
    "augment.cutout.size": {"0": "from 1 to 32", "33": "from 1 to 32", "8.5": WHOLE, "big": WHOLE},
    "augment.cutout.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "1": ON_DEVICE, **no_number(PROBABILITY)},
    "augment.mixup.alpha": {"0": "from 0.01 to 100", "101": "from 0.01 to 100", **no_number("from 0.01 to 100")},
    "augment.mixup.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "0.5": ON_DEVICE, **no_number(PROBABILITY)},
    "augment.mixup.ramp": {"1.5": "from 0 to 1", "-0.1": "from 0 to 1", **no_number("from 0 to 1")},
    "augment.mixup.until": {"1.5": "from 0 to 1", "-0.1": "from 0 to 1", **no_number("from 0 to 1")},
    "augment.cutmix.alpha": {"0": "from 0.01 to 100", "101": "from 0.01 to 100", **no_number("from 0.01 to 100")},
    "augment.cutmix.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "0.5": ON_DEVICE, **no_number(PROBABILITY)},
    "augment.to_gray.p": {"-0.1": PROBABILITY, "1.1": PROBABILITY, **no_number(PROBABILITY)},
    "optim.name": {"adam": "did you mean adamw?", "moun": "did you mean muon?", "": "sgd, adamw, muon"},
    "optim.momentum": {"1": "0.0 to 0.9999", "-0.1": "0.0 to 0.9999", **no_number("0.0 to 0.9999")},
    "optim.b2": {"1": "0.0 to 0.999999", "-0.1": "0.0 to 0.999999", **no_number("0.0 to 0.999999")},
    "optim.nesterov": {"maybe": TRUTH, "2": TRUTH, "": TRUTH},
    "optim.weight_decay": {"-1": "0.0 to 1.0", "1.1": "0.0 to 1.0", **no_number("0.0 to 1.0")},
    "schedule.name": {"cosin": "did you mean cosine?", "": "one_cycle, cosine, constant"},
    "schedule.learning_rate": {"0": "1e-09 to 100.0", "101": "1e-09 to 100.0", **no_number("1e-09 to 100.0")},
    "schedule.warmup_fraction": {"1": "0.0 to 0.999", "-0.1": "0.0 to 0.999", **no_number("0.0 to 0.999")},
    "schedule.final_fraction": {"1.1": "0.0 to 1.0", "-0.1": "0.0 to 1.0", **no_number("0.0 to 1.0")},
    "ema.decay": {"1": "0.0 to 0.999999", "-1": "0.0 to 0.999999", **no_number("0.0 to 0.999999")},
    "train.batch_size": {"0": "1 to 65536", "65537": "1 to 65536", "61": "60 training images", "x": WHOLE, "1.5": WHOLE},
    "train.epochs": {"0": "1 to 100000", "-1": "1 to 100000", "100001": "1 to 100000", "2.5": WHOLE, "": WHOLE},
    "train.label_smoothing": {"1": "0.0 to 0.999", "-0.1": "0.0 to 0.999", **no_number("0.0 to 0.999")},
    "checkpoint.every_epochs": {"0": "1 to 100000", "100001": "1 to 100000", "a": WHOLE, "0.5": WHOLE},
    "checkpoint.every_seconds": {"-1": "0.0 to 1000000.0", "2e6": "0.0 to 1000000.0", **no_number("0.0 to 1000000.0")},
    "log.progress": {"none": "auto, bar, lines, off", "": "auto, bar, lines, off"},
    "log.tensorboard": {"maybe": TRUTH, "2": TRUTH, "": TRUTH},
    "budget.parameters": {
        "0": "1 to 1000000000000",
        "1000000000001": "1 to",
        "2434": "fewer than 2,434",
        "many": WHOLE,
        "1.5": WHOLE,
    },
    "parallel.devices": {"-1": "0 to 10000", "10001": "0 to 10000", "3": "set it to 2", "all": WHOLE, "1.5": WHOLE},
    "parallel.coordinator": {"host": "expected HOST:PORT", "host:1": "give all three"},
    "parallel.num_processes": {"-1": "0 to", "100001": "0 to", "2": "give all three", "two": WHOLE, "1.5": WHOLE},
    "parallel.process_id": {"-2": "-1 to 99999", "100000": "-1 to 99999", "first": WHOLE, "0.5": WHOLE},
    "budget.receptive_field": {"-1": "0 to 1000000", "1000001": "0 to 1000000", "83": "more than 83", "far": WHOLE, "4.5": WHOLE},
}


def limits(key):
    """(lowest, highest) of a number."""
    if key in RANGES:
        return RANGES[key]
    _, section, name = key.split(".")
    return augment._SECTIONS[section][name][1:3]


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def test_every_key_has_bad_values():
    assert BAD.keys() == VALUES.keys()


@pytest.mark.parametrize("key", [key for key, value in VALUES.items() if type(value) in (int, float)])
def test_the_bad_values_of_a_number_are_of_every_kind(key):
    low, high = limits(key)
    numbers = [value for value in map(number, BAD[key]) if value is not None]
    assert len(numbers) < len(BAD[key]), "a text"
    assert any(value < low for value in numbers) and any(high < value < math.inf for value in numbers)
    if isinstance(VALUES[key], float):
        assert {"nan", "inf"} <= BAD[key].keys()
    else:
        assert any(value % 1 for value in numbers), "a fraction"


@pytest.mark.parametrize("key", CHOICES)
def test_the_bad_values_of_a_choice_are_none_and_another(key):
    assert "" in BAD[key] and len(BAD[key]) > 1


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_bad_values(refused, key, value):
    small = ["--config.model.widths=(8,8,8,16)"] if key != "model.widths" else []
    source = ["--config.data.source=archive"] if key == "data.dir" else []
    line = refused("--config", SMOKE, *small, *source, f"--config.{key}={value}")
    named = key in line or (key == "budget.parameters" and "(budget.parameters)" in line)
    assert named and "got " in line and BAD[key][value] in line, line


BASE = "from configs import smoke\ndef get_config():\n    config = smoke.get_config()\n"
UNTYPED = BASE + "    with config.ignore_type():\n"
# By the type of a key: values of another type, which only a config file can give.
OTHER_TYPES = {
    int: (True, None, 2.0, "5", [1]),
    float: (True, None, "0.5", [0.5]),
    bool: (1, None, "true"),
    str: (5, None, True, ["a"]),
    list: (8, None, "(8, 8, 8, 8)", (8, 8, 8, True), (8, 8, 8, 8.0)),
}


@pytest.mark.parametrize(("key", "value"), [(key, other) for key in VALUES for other in OTHER_TYPES[type(VALUES[key])]])
def test_a_config_file_with_a_value_of_another_type(refused, tmp_path, key, value):
    names = "".join(f"[{name!r}]" for name in key.split("."))
    changed = f"    values = config.to_dict()\n    values{names} = {value!r}\n    return type(config)(values)\n"
    (tmp_path / "typed.py").write_text(BASE + changed)
    line = refused("--config", tmp_path / "typed.py")
    assert f"{key}: got {value!r}, expected " in line and ";" in line, line


@pytest.mark.parametrize("section", sorted({key.split(".")[0] for key in VALUES if "." in key}))
def test_a_section_is_no_value(refused, tmp_path, section):
    line = refused("--config", SMOKE, f"--config.{section}=1")
    assert "it is a section: set " in line and f"--config.{section}." in line
    (tmp_path / "flat.py").write_text(f"{UNTYPED}        config.{section} = 1\n    return config\n")
    line = refused("--config", tmp_path / "flat.py")
    assert section in line and "configs/base.py" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import nosuchmodule\n", "nosuchmodule"),
        ("value = 1\n", "no get_config()"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", "ValueError: two lines"),
        ("def get_config():\n    raise SystemExit(0)\n", "SystemExit"),
        ("def get_config():\n    return {'seed': 0}\n", "returned a dict"),
        ("def get_config():\n    pass\n", "returned a NoneType"),
        (BASE + "    config.train.batchsize = 1\n    return config\n", "did you mean train.batch_size?"),
        (BASE + "    del config.optim.nesterov\n    return config\n", "optim.nesterov is missing"),
        (BASE + "    del config.augment\n    return config\n", "augment: got None"),
        (BASE + "    config.train.epochs = '5'\n    return config\n", "TypeError"),
        (UNTYPED + "        config.train = 5\n    return config\n", "the key train,"),
        (UNTYPED + "        config.train.epochs = '5'\n    return config\n", "train.epochs: got '5'"),
        (UNTYPED + "        config.train.epochs = True\n    return config\n", "train.epochs: got True"),
        (UNTYPED + "        config.train.epochs = 2.5\n    return config\n", "train.epochs: got 2.5"),
        (UNTYPED + "        config.model.widths = 8\n    return config\n", "model.widths: got 8"),
        (UNTYPED + "        config.data.dir = 5\n    return config\n", "data.dir: got 5"),
        ("\x00", "null bytes"),
    ],
)
def test_broken_config_files(refused, tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert said in refused("--config", str(path))


@pytest.mark.parametrize("name", ["nosuch.py", "", "folder"])
def test_config_that_is_no_file(refused, tmp_path, name):
    (tmp_path / "folder").mkdir()
    line = refused("--config", str(tmp_path / name))
    assert "cannot be read" in line and "configs/*.py" in line


def test_a_locked_config_file_is_read_as_any_other(refused, tmp_path):
    (tmp_path / "locked.py").write_text(BASE + "    return config.lock()\n")
    assert "got 0" in refused("--config", str(tmp_path / "locked.py"), "--config.train.epochs=0")
