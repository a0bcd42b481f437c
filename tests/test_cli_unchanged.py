"""A folder with an unfinished run: what is refused leaves every byte and every time of its files as they were."""

import contextlib
import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

import run
from cifar_jax import arguments
from cifar_jax.data import shapes, sources
from cifar_jax.log import RunLog
from cifar_jax.models import c1c2c3c40
from cifar_jax.models.layers import conv, separable

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
TINY = [
    "--config.model.widths=(8,8,8,16)",
    "--config.train.batch_size=30",
    "--config.train.epochs=2",
    "--config.log.progress=off",
    "--config.budget.receptive_field=16",
    *(f"--config.augment.{name}.p=0" for name in ("horizontal_flip", "shift_scale_rotate", "coarse_dropout", "to_gray")),
]


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """Four layers in place of twelve, which take a quarter of the time to compile."""

    def describe(w1, *widths):
        return (conv("c1_conv", w1), *(separable(f"t{i}", w, stride=2) for i, w in enumerate(widths, 1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(c1c2c3c40.VARIANTS, "strided", describe)
        yield


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run that SIGTERM ended after one epoch of two; copy it."""
    path = tmp_path_factory.mktemp("half") / "run"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        write = RunLog.write

        def write_and_signal(self, *row):
            write(self, *row)
            signal.raise_signal(signal.SIGTERM)

        patch.setattr(RunLog, "write", write_and_signal)
        patch.setattr(sources, "make_shapes", lambda: shapes.make_shapes(60, 20))
        assert run.main(["--config", SMOKE, "--workdir", str(path), *TINY]) == 128 + signal.SIGTERM
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 1 and not (path / "result.json").exists()
    return path


@pytest.fixture
def unfinished(half, tmp_path):
    return pathlib.Path(shutil.copytree(half, tmp_path / "run"))


@pytest.fixture
def resume(refused, unfinished):
    """Like `refused`, for the command that began the run, with further arguments."""
    return lambda *more: refused("--config", SMOKE, "--workdir", unfinished, *TINY, *more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config.seed=1"], "seed (0 there, 1 here)"),
        (["--config.train.epochs=3"], "train.epochs (2 there, 3 here)"),
        (["--config.train.epochs=0"], "train.epochs: got 0"),
        (["--config.train.epoch=3"], "did you mean --config.train.epochs?"),
        (["--config.train.epochs=three"], "train.epochs: got 'three'"),
        (["--config.checkpoint.every_seconds=-1"], "checkpoint.every_seconds: got -1"),
        (["--config.data.source=folder", "--config.data.dir=nosuch"], "data.source (shapes there, folder here)"),
        (["--config.budget.parameters=10"], "expected fewer than 10"),
        (["--config", "nosuch.py"], "nosuch.py"),
        (["--wrokdir=x"], "--wrokdir=x"),
        (["x"], "x: unknown argument"),
    ],
)
def test_bad_arguments(resume, more, said):
    assert said in resume(*more)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b""), ("config.json", b"{}"), ("config.json", b"\xff"), ("result.json", b"{"), ("result.json", b"[]")],
)
def test_a_damaged_file(resume, unfinished, name, content):
    (unfinished / name).write_bytes(content)
    assert f"{unfinished / name}: got a damaged file" in resume()


def test_a_config_that_was_changed_by_hand(resume, unfinished):
    text = (unfinished / "config.json").read_text()
    (unfinished / "config.json").write_text(text.replace('"seed": 0', '"seed": 5'))
    assert f"{unfinished / 'config.json'}: got a damaged file" in resume("--config.seed=5")


def test_a_run_of_pytorch(resume, unfinished):
    stored = json.loads((unfinished / "config.json").read_text())
    changed = {"format_version": 1, "config": stored["config"], "data": stored["data"], "framework": "pytorch"}
    (unfinished / "config.json").write_text(json.dumps(changed))
    assert "holds a run of pytorch" in resume()


def test_checkpoints_that_are_a_file(resume, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    (unfinished / "checkpoints").write_text("x")
    assert "checkpoints" in resume()


def test_other_data(resume, monkeypatch):
    monkeypatch.setattr(sources, "make_shapes", lambda: shapes.make_shapes(60, 21))
    assert "holds a run on other data" in resume()


@contextlib.contextmanager
def locked(path):
    """Another process holds the lock of a workdir."""
    code = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.stdin.close()


def test_another_process_at_work(resume, unfinished):
    with locked(unfinished / ".lock"):
        assert "in use by another process" in resume()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "--workdir"], "holds no finished run"),
        (["evaluate", "--weights"], "expected a file"),
        (["data", "--config.data.source=folder", "--config.data.dir=run", "--config"], "--config: got "),
        (["summary", "--config"], "--config: got "),
    ],
)
def test_other_commands_on_the_folder(refused, unfinished, argv, said):
    assert said in refused(*argv, unfinished)


def test_the_pytorch_twin_in_the_same_folder(refused, unfinished):
    baseline = pytest.importorskip("baselines.train")
    line = refused("--config", SMOKE, "--workdir", unfinished, main=functools.partial(arguments.run, baseline.main))
    assert "expected a new or empty folder" in line
