"""Bad flags and config values: one line on stderr that says what was got, expected and to be done; exit code 2."""

import pathlib
import signal
import subprocess
import sys

import pytest

import run
from cifar_jax.config import flatten, read_config
from cifar_jax.data import shapes, sources

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
SMALL = shapes.make_shapes(60, 20)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that runs arguments, checks that they are refused, and returns the line on stderr."""
    monkeypatch.setattr(sources, "make_shapes", lambda: SMALL)
    monkeypatch.chdir(tmp_path)  # the default workdir is runs/NAME here
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def check(*argv):
        before = sorted(tmp_path.rglob("*"))
        assert run.main(list(argv)) == 2
        assert sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err
        return err

    yield check
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], ["required", "--help"]),
        (["-x"], ["required", "--help"]),
        (["tarin"], ["'tarin'", "train", "--help"]),
        (["train"], ["--config", "required", "run.py train --help"]),
        (["--workdir", "x"], ["--config", "required", "--help"]),
        (["--config", SMOKE, "--epochs=3"], ["--epochs=3", "unknown argument", "--config.key=value"]),
        (["--config", SMOKE, "--confi.train.epochs=3"], ["--confi.train.epochs=3", "unknown argument"]),
        (["--config", SMOKE, "3"], ["3: unknown argument", "--help"]),
        (["--config", SMOKE, "--workdir"], ["--workdir", "expected one argument", "--help"]),
        (["--config"], ["--config", "expected one argument", "--help"]),
        (["--config", SMOKE, "--workdir", ""], ["--workdir", "an empty name", "leave the flag out"]),
        (["--config", SMOKE, "--json"], ["--json", "unknown argument"]),
        (["--config", SMOKE, "--weights", "base"], ["--weights", "unknown argument"]),
        (["summary"], ["--config", "required", "run.py summary --help"]),
        (["summary", "--config"], ["--config", "expected one argument"]),
        (["summary", "--config", SMOKE, "--json=yes"], ["--json", "yes"]),
        (["data", "--config"], ["--config", "expected one argument"]),
        (["data", "--json"], ["--json", "unknown argument"]),
        (["evaluate", "--weights"], ["--weights", "expected one argument"]),
        (["evaluate", "--workdir"], ["--workdir", "expected one argument"]),
        (["evaluate", "--weights", ""], ["--workdir", "--weights", "expected one of"]),
        (["evaluate", "--weights", "base", "--config", SMOKE], ["--config", "unknown argument"]),
        (["summary", "--config", SMOKE, "--workdir", "x"], ["--workdir", "unknown argument"]),
        (["evaluate"], ["--workdir", "--weights", "expected one of"]),
        (["evaluate", "--workdir", "x", "--weights", "y"], ["--workdir", "--weights", "expected one of"]),
    ],
)
def test_bad_flags(refused, argv, said):
    line = refused(*argv)
    assert all(word in line for word in said), line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batchsize=1", ["train.batchsize", "did you mean --config.train.batch_size?"]),
        ("trian.epochs=1", ["trian.epochs", "did you mean --config.train.epochs?"]),
        ("augment.to_grey.p=1", ["augment.to_grey.p", "did you mean --config.augment.to_gray.p?"]),
        ("train=1", ["no such key", "did you mean --config.train."]),
        ("zzz=1", ["zzz", "known keys", "train.epochs"]),
        ("train.epochs=abc", ["train.epochs: got 'abc', expected a whole number; write --config.train.epochs=3"]),
        ("train.epochs=2.5", ["train.epochs: got '2.5', expected a whole number"]),
        ("train.epochs=", ["train.epochs: got '', expected a whole number"]),
        ("optim.nesterov=maybe", ["optim.nesterov: got 'maybe', expected true or false"]),
        ("schedule.learning_rate=fast", ["schedule.learning_rate: got 'fast', expected a number"]),
        ("model.widths=abc", ["model.widths", "'abc'", "four whole numbers"]),
        ("model.widths=(8,8,8)", ["model.widths", "(8, 8, 8)", "four whole numbers"]),
        ("model.widths=(8,8,8,0)", ["model.widths", "(8, 8, 8, 0)", "1 to 4096"]),
        ("model.widths=(8,8,8,8.5)", ["model.widths", "8.5", "four whole numbers"]),
    ],
)
def test_bad_keys_and_types(refused, override, said):
    line = refused("--config", SMOKE, f"--config.{override}")
    assert all(word in line for word in said), line


WHOLE, NUMBER, TRUTH = "a whole number", "a number", "true or false"
PROBABILITY = "a probability from 0 to 1"
# Every key of a config: bad values, each with what its message says to expect.
BAD = {
    "seed": {"-1": "0 to 4294967295", "4294967296": "0 to 4294967295", "one": WHOLE},
    "model.name": {"resnet": "c1c2c3c40", "": "c1c2c3c40"},
    "model.variant": {"stided": "did you mean strided?", "": "strided, dilated, mixed"},
    "model.widths": {
        "(8,8,8)": "four whole numbers",
        "(8,8,8,0)": "1 to 4096",
        "(8,8,8,4097)": "1 to 4096",
        "8": "four",
        "": "numbers",
    },
    "model.num_classes": {"1": "2 to 100000", "100001": "2 to 100000", "ten": WHOLE},
    "model.head": {"conv": "dense, pointwise"},
    "model.dtype": {"float16": "did you mean bfloat16?"},
    "model.kernels": {"fast": "auto, xla"},
    "data.source": {"shape": "did you mean shapes?"},
    "data.dir": {"/nonexistent": "a folder with the data"},
    "data.num_validation": {"-1": "0 to", "60": "fewer than the 60", "some": WHOLE},
    "data.workers": {"-1": "0 to 256", "257": "0 to 256", "2.0": WHOLE},
    "augment.backend": {"gpu": "'host'"},
    "augment.horizontal_flip.p": {"1.5": PROBABILITY, "-0.1": PROBABILITY, "nan": PROBABILITY, "half": NUMBER},
    "augment.shift_scale_rotate.p": {"1.5": PROBABILITY, "inf": PROBABILITY, "half": NUMBER},
    "augment.shift_scale_rotate.shift": {"-0.1": "from 0 to 1", "1.1": "from 0 to 1", "nan": "from 0 to 1", "far": NUMBER},
    "augment.shift_scale_rotate.scale": {"-0.1": "from 0 to 0.99", "1": "from 0 to 0.99", "big": NUMBER},
    "augment.shift_scale_rotate.rotate": {"-1": "from 0 to 180", "181": "from 0 to 180", "left": NUMBER},
    "augment.coarse_dropout.p": {"2": PROBABILITY, "nan": PROBABILITY, "half": NUMBER},
    "augment.coarse_dropout.size": {"0": "from 1 to 32", "33": "from 1 to 32", "8.5": WHOLE},
    "augment.to_gray.p": {"-0.1": PROBABILITY, "1.1": PROBABILITY, "half": NUMBER},
    "optim.name": {"adam": "sgd"},
    "optim.momentum": {"1": "0.0 to 0.9999", "-0.1": "0.0 to 0.9999", "nan": "0.0 to 0.9999", "much": NUMBER},
    "optim.nesterov": {"maybe": TRUTH, "2": TRUTH, "": TRUTH},
    "optim.weight_decay": {"-1": "0.0 to 1.0", "1.1": "0.0 to 1.0", "nan": "0.0 to 1.0", "some": NUMBER},
    "schedule.name": {"cosin": "did you mean cosine?"},
    "schedule.learning_rate": {"0": "1e-09 to 100.0", "101": "1e-09 to 100.0", "nan": "1e-09", "inf": "1e-09", "fast": NUMBER},
    "schedule.warmup_fraction": {"1": "0.0 to 0.999", "-0.1": "0.0 to 0.999", "nan": "0.0 to 0.999", "a": NUMBER},
    "ema.decay": {"1": "0.0 to 0.999999", "-1": "0.0 to 0.999999", "nan": "0.0 to 0.999999", "slow": NUMBER},
    "train.batch_size": {"0": "1 to 65536", "65537": "1 to 65536", "61": "60 training images", "x": WHOLE},
    "train.epochs": {"0": "1 to 100000", "-1": "1 to 100000", "100001": "1 to 100000", "2.5": WHOLE, "": WHOLE},
    "train.label_smoothing": {"1": "0.0 to 0.999", "-0.1": "0.0 to 0.999", "nan": "0.0 to 0.999", "a": NUMBER},
    "checkpoint.every_epochs": {"0": "1 to 100000", "100001": "1 to 100000", "a": WHOLE},
    "checkpoint.every_seconds": {"-1": "0.0 to 1000000.0", "2e6": "0.0 to 1000000.0", "nan": "0.0 to", "a": NUMBER},
    "log.progress": {"none": "auto, bar, lines, off"},
    "log.tensorboard": {"maybe": TRUTH},
    "budget.parameters": {"0": "1 to 1000000000000", "2434": "fewer than 2,434", "many": WHOLE},
    "budget.receptive_field": {"-1": "0 to 1000000", "83": "more than 83", "far": WHOLE},
}


def test_every_key_has_bad_values():
    assert BAD.keys() == flatten(read_config(SMOKE, [])).keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_bad_values(refused, key, value):
    small = ["--config.model.widths=(8,8,8,16)"] if key != "model.widths" else []
    source = ["--config.data.source=archive"] if key == "data.dir" else []
    line = refused("--config", SMOKE, *small, *source, f"--config.{key}={value}")
    named = key in line or (key == "budget.parameters" and "(budget.parameters)" in line)
    assert named and "got " in line and BAD[key][value] in line, line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=61"], ["train.batch_size", "got 61", "60 training images"]),
        (["train.batch_size=41", "data.num_validation=20"], ["train.batch_size", "got 41", "40 training images"]),
        (["data.num_validation=60"], ["data.num_validation", "got 60", "fewer than the 60"]),
        (["model.num_classes=7"], ["model.num_classes", "got 7", "expected 10", "--config.model.num_classes=10"]),
        (["model.widths=(64,128,192,256)"], ["parameters", "fewer than 100,000", "lower model.widths"]),
        (["budget.receptive_field=83"], ["receptive field of 83", "more than 83", "variant"]),
        (["data.source=folder"], ["data.dir", "got nothing", "--config.data.dir=FOLDER"]),
    ],
)
def test_values_that_do_not_fit_together(refused, overrides, said):
    line = refused("--config", SMOKE, *(f"--config.{override}" for override in overrides))
    assert all(word in line for word in said), line


BASE = "from configs import smoke\ndef get_config():\n    config = smoke.get_config()\n"
UNTYPED = BASE + "    with config.ignore_type():\n"


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


@pytest.mark.parametrize("override", ["train.epochs=abc", "train.batch_size=6000"])
def test_a_process_of_its_own_says_one_line_too(tmp_path, override):
    command = [sys.executable, str(ROOT / "run.py"), "--config", SMOKE, f"--config.{override}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
