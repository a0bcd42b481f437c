"""Settings of every test, made before JAX starts: two CPU devices for the mapped steps, and float32 that is float32."""

import os
import signal

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

import run
from cifar_jax.data import shapes, sources
from configs import base

SMALL = shapes.make_shapes(60, 20)

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # tests compile much and compute little
jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 where a GPU runs the tests
# Compiles in two thirds of the time, here and in the processes that tests start. XLA reads it as it starts; of a later JAX it
# would end the process.
PLAIN_LOOPS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
os.environ["XLA_FLAGS"] = f"{PLAIN_LOOPS} {os.environ.get('XLA_FLAGS', '')}".strip()

settings.register_profile("compiling", deadline=None, derandomize=True)  # an example's time is mostly compilation
settings.load_profile("compiling")


@pytest.fixture
def model_config():
    """A function that returns the model section of base.py with changes; small unless they say otherwise."""

    def make(**changes):
        return ConfigDict(base.get_config().model.to_dict() | {"widths": (4, 5, 6, 7)} | changes)

    return make


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """A program that several tests need is compiled once and kept on disk."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()  # what collecting the tests compiled has begun one without a folder


@pytest.fixture
def strict_ranks():
    """Makes an implicit change of rank, such as (b,) against (b, 1), an error."""
    with jax.numpy_rank_promotion("raise"):
        yield


def read_files(folder):
    """{path: (content, time of its last change)} of all below a folder; None for what is no ordinary file."""
    found = (path for path in folder.rglob("*") if path.name != ".lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None for path in found}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that runs arguments, checks that they are refused in one line and change no file, and returns the line.

    Everything is below tmp_path, the current folder; the data are SMALL: 60 training and 20 test images.
    """
    monkeypatch.setattr(sources, "make_shapes", lambda: SMALL)
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # the default workdir is runs/NAME here
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def check(*argv, main=run.main):
        before = read_files(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        assert read_files(tmp_path) == before
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err
        return err

    yield check
    for number, handler in handlers.items():
        signal.signal(number, handler)
