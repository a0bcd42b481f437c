"""Settings of every test, made before JAX starts: two CPU devices for the mapped steps, and float32 that is float32."""

import jax
import pytest
from hypothesis import settings
from ml_collections import ConfigDict

from configs import base

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # tests compile much and compute little
jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 where a GPU runs the tests

settings.register_profile("compiling", deadline=None, derandomize=True)  # an example's time is mostly compilation
settings.load_profile("compiling")


@pytest.fixture
def model_config():
    """A function that returns the model section of base.py with changes; small unless they say otherwise."""

    def make(**changes):
        return ConfigDict(base.get_config().model.to_dict() | {"widths": (4, 5, 6, 7)} | changes)

    return make


@pytest.fixture
def strict_ranks():
    """Makes an implicit change of rank, such as (b,) against (b, 1), an error."""
    with jax.numpy_rank_promotion("raise"):
        yield
