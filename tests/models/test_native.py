"""Native kernels are built once for a machine, anew where a library is damaged, and do not depend on the number of threads."""

import ctypes
import os
import pathlib
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.models import native

ROOT = pathlib.Path(__file__).parents[2]

if not native.find_compiler():
    pytest.skip("no C compiler", allow_module_level=True)


@pytest.fixture
def quick(monkeypatch):
    """Builds that do not optimize."""
    monkeypatch.setattr(native, "FLAGS", ("-std=gnu11", "-fPIC", "-shared"))


def test_a_second_build_is_the_first_one(tmp_path, quick):
    first = native.build("float", tmp_path)
    made = first.stat().st_mtime_ns
    assert native.build("float", tmp_path) == first
    assert first.stat().st_mtime_ns == made
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_library_is_built_anew(tmp_path, quick, size):
    library = native.build("float", tmp_path)
    with library.open("rb+") as file:
        file.truncate(size)
    assert native.load("float", tmp_path).gated_forward
    assert library.stat().st_size > 1000


def test_what_an_editor_leaves_beside_the_sources_is_not_read(tmp_path, quick, monkeypatch):
    sources = tmp_path / "native"
    sources.mkdir()
    for path in native.SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(native, "SOURCES", sources)
    first = native.build("float", tmp_path)
    (sources / ".gated.c.swp").write_bytes(b"\xff\xfe")
    assert native.build("float", tmp_path) == first
    (sources / "frame.h").write_text((sources / "frame.h").read_text() + "\n")
    assert native.build("float", tmp_path) != first


@pytest.mark.parametrize(
    "compiler, said",
    [("false", "false failed: exit code 1"), ("true", "true ended well but made no library")],
)
def test_a_compiler_that_fails_is_named_and_leaves_nothing(tmp_path, monkeypatch, compiler, said):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path))
    assert native.register.__wrapped__("float") == said
    assert list((tmp_path / "native").iterdir()) == []


def test_without_a_compiler_the_reason_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path))
    assert "pip install ziglang" in native.register.__wrapped__("float")


X86 = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {clock}\nflags\t\t: fpu avx2\n"
ARM = "processor\t: 0\nBogoMIPS\t: {clock}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize("text, kept", [(X86, {"AMD EPYC", "avx2"}), (ARM, {"asimd", "0x41"}), ("", set())])
def test_a_library_is_of_a_processor_whatever_its_clock(monkeypatch, text, kept):
    found = []
    for clock in ("2000.1", "3000.2"):
        monkeypatch.setattr(pathlib.Path, "read_text", lambda self, clock=clock: text.format(clock=clock))
        found.append(native._cpu())
    assert found[0] == found[1] and all(word in found[0] for word in kept)


TANH_EXP = """
#include "tanhexp.h"
void run(const REAL* values, REAL* exps, REAL* factors, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    Vector exp, factor;
    tanh_exp(load(values + i), &exp, &factor);
    store(exps + i, exp), store(factors + i, factor);
  }
}
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_and_tanh_have_the_errors_that_are_stated(tmp_path, dtype):
    (tmp_path / "run.c").write_text(TANH_EXP)
    command = [*native.find_compiler(), *native.FLAGS, f"-I{native.SOURCES}", f"-DREAL={native.REALS[np.dtype(dtype).name]}"]
    subprocess.run([*command, tmp_path / "run.c", "-o", tmp_path / "run.so"], check=True)
    run = ctypes.CDLL(str(tmp_path / "run.so")).run

    def compute(values):
        values = np.array(values, dtype)
        exps, factors = np.empty_like(values), np.empty_like(values)
        run(*(array.ctypes.data_as(ctypes.c_void_p) for array in (values, exps, factors)), ctypes.c_int64(len(values)))
        return exps, factors

    values = np.linspace(-85, 4, 2**16, dtype=dtype)
    exact = np.exp(values.astype(np.longdouble))
    for ours, expected in zip(compute(values), (exact, np.tanh(exact)), strict=True):
        assert np.max(np.abs(ours - expected) / expected) <= 43 * np.finfo(dtype).eps
    special = [np.nan, -np.inf, np.inf, -1e30, 1e30, 4.5, -85.5, 0.0]
    factors = compute(special * 2)[1]  # two vectors of the widest
    np.testing.assert_allclose(factors, [np.nan, 0, 1, 0, 1, 1, 0, np.tanh(1)] * 2, rtol=1e-6)


BFLOAT16 = """
#include "gemm.h"
void narrow(const REAL* from, STORED* by_vector, STORED* one_by_one, int64_t count) {
  write_row(by_vector, from, count);
  for (int64_t i = 0; i < count; i++) one_by_one[i] = write_one(from[i]);
}
void widen(const STORED* from, REAL* by_vector, REAL* one_by_one, int64_t count) {
  read_row(by_vector, from, count);
  for (int64_t i = 0; i < count; i++) one_by_one[i] = read_one(from[i]);
}
// c (m x n) = a (m x depth) b, of rows of `width` and n numbers; turned: += a' (depth x m)' b.
void multiply(REAL* a, REAL* b, REAL* c, int64_t m, int64_t n, int64_t depth, int64_t width, int64_t turned) {
  const REAL* left = turned ? pair_across(a, depth, width, a) : pair_along(a, m, depth, width, a);
  gemm(m, n, depth, left, turned ? 1 : width, turned ? width : 1, pair_across(b, depth, n, b), n, c, n, turned);
}
"""


@pytest.fixture(scope="module", params=["", "-mno-avx512bf16"])
def half(request, tmp_path_factory):
    """BFLOAT16 compiled for this machine, and without the instructions for it that it may have."""
    if request.param and platform.machine() != "x86_64":
        pytest.skip("a flag of x86-64")
    folder = tmp_path_factory.mktemp("half")
    (folder / "half.c").write_text(BFLOAT16)
    command = [*native.find_compiler(), *native.FLAGS, *request.param.split(), *native.DEFINES["bfloat16"]]
    subprocess.run([*command, f"-I{native.SOURCES}", folder / "half.c", "-o", folder / "half.so"], check=True)
    return ctypes.CDLL(str(folder / "half.so"))


def pointers(*arrays):
    return [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]


def test_bfloat16_is_rounded_to_the_nearest_and_back(half):
    rng = np.random.default_rng(0)
    ties = np.arange(0x3F808000, 0x3F888000, 0x10000, dtype=np.uint32).view(np.float32)
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    special = np.concatenate([nans, np.float32([0, -0.0, np.inf, -np.inf, np.finfo(np.float32).max]), ties, -ties])
    drawn = rng.standard_normal(99) * 10.0 ** rng.integers(-30, 30, 99)
    values = np.concatenate([special, drawn.astype(np.float32)])  # what is special in whole vectors: the end goes one by one
    stored, wide = (np.zeros((2, len(values)), dtype) for dtype in (np.uint16, np.float32))
    half.narrow(*pointers(values, *stored), ctypes.c_int64(len(values)))
    with np.errstate(invalid="ignore"):
        expected = values.astype(jnp.bfloat16).astype(np.float32)
    for found in stored:
        np.testing.assert_array_equal(found.view(jnp.bfloat16).astype(np.float32), expected)
        half.widen(*pointers(found, *wide), ctypes.c_int64(len(values)))
        np.testing.assert_array_equal(wide, [expected, expected])


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("m, n, depth", [(1, 1, 1), (13, 40, 27), (29, 16, 48), (12, 33, 2)])
def test_products_of_bfloat16_are_summed_in_float32(half, m, n, depth, turned):
    """Numbers that are of bfloat16, so that the products are exact, whether or not the machine multiplies such."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape).astype(np.float32) for shape in ((m, depth), (depth, n)))

    def in_whole_vectors(rows, end):
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 16)), constant_values=end)

    left, right = in_whole_vectors(a.T if turned else a, np.nan), in_whole_vectors(b, 0)
    c = np.ones((m, right.shape[1]), np.float32)
    sizes = m, c.shape[1], depth, left.shape[1], turned
    half.multiply(*pointers(np.ascontiguousarray(left), right, c), *map(ctypes.c_int64, sizes))
    np.testing.assert_array_equal(c[:, :n], a @ b + turned)


# A gated layer with its gradient, and a training step of a network whose blocks are all native.
DIGESTS = f"""
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "models")]}
import jax, numpy
from benchmarks import kernels
from cifar_jax.config import read_config
from cifar_jax.models import native
from test_native_gated import draw, make_run

assert native.register("float") == native.register("bfloat16") == ""
def train(dtype):
    small = ["--config.model.widths=(8,8,12,16)", "--config.train.batch_size=40", f"--config.model.dtype={{dtype}}"]
    step, *arguments = kernels.make_steps(read_config("configs/base.py", small))["training"]
    return jax.jit(step)(*arguments)[0].params

results = [(make_run(12, "native")(*draw(12, 12, (40, 8, 8), dtype)), train(dtype)) for dtype in ("float32", "bfloat16")]
print(hashlib.sha256(b"".join(numpy.asarray(leaf).tobytes() for leaf in jax.tree.leaves(results))).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs two cores that can be chosen")
def test_one_core_and_two_compute_the_same_bits():
    plain = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # with PLAIN_LOOPS XLA splits the sums of the loss, too
    environment = os.environ | plain
    begun = [
        subprocess.Popen([sys.executable, "-c", DIGESTS, cores], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for cores in "12"
    ]
    one, two = (child.communicate(timeout=300)[0].strip() for child in begun)
    assert len(one) == 64 and one == two
