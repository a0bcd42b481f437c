"""The functions of native/, compiled for this machine on first use and registered with XLA as `cifar_jax_*` calls.

A compiler is $CC, cc, gcc, clang or the one in the package ziglang (the extra "compiler"). Where there is none the networks
are computed by XLA alone: the same numbers up to rounding, at less than half the speed on a CPU.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib
import numpy as np

from cifar_jax.files import default_cache_dir
from cifar_jax.models import ops

SOURCES = Path(__file__).parent / "native"
FUNCTIONS = ("block_apply", "block_forward", "relu_sums", "block_backward", "gated_forward", "gated_backward")
REALS = {"float32": "float", "float64": "double", "bfloat16": "bfloat16"}
DEFINES = {"float": ("-DREAL=float",), "double": ("-DREAL=double",), "bfloat16": ("-DREAL=float", "-DBFLOAT16")}
# Sums may be taken in any order. Not -ffast-math: a library linked so makes its process round small numbers to zero.
ORDER = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=fast")
FLAGS = ("-std=gnu11", "-O3", "-march=native", *ORDER, "-fPIC", "-shared")


def find_compiler() -> list[str] | None:
    """The command of a C compiler, or None."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name.split() and shutil.which(name.split()[0]):
            return name.split()
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    keys = ("model name", "flags", "Features", "CPU")  # x86: the first two; ARM: the others
    return "\n".join([platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(keys)})])


def build(real: str, cache: Path) -> Path:
    """Compiles native/ for arrays of type `real` (a key of DEFINES), unless the cache holds it; returns the library.

    Raises OSError or subprocess.SubprocessError where that fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler; install one, or `pip install ziglang`")
    command = [*compiler, *FLAGS, *DEFINES[real], f"-I{jax.ffi.include_dir()}", *map(str, sorted(SOURCES.glob("*.c")))]
    parts = [*map(str, command), jaxlib.__version__, _cpu(), *(p.read_text() for p in sorted(SOURCES.glob("*.[ch]")))]
    library = cache / f"layers-{real}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            output = Path(folder) / "layers.so"
            subprocess.run([*command, "-o", output], check=True, capture_output=True, text=True, errors="replace")
            if not output.exists():
                raise FileNotFoundError(f"{compiler[0]} ended well but made no library")
            output.rename(library)  # at once: another process may be looking for it
    return library


def load(real: str, cache: Path) -> ctypes.CDLL:
    """The library that build returns, built anew where the one in the cache is damaged; raises what build does."""
    library = build(real, cache)
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        library.unlink(missing_ok=True)  # another process may have done it
        return ctypes.CDLL(str(build(real, cache)))


@functools.cache
def register(real: str) -> str:
    """Makes the calls `cifar_jax_FUNCTION_REAL` known to XLA. Returns what went wrong, in one line, or ""."""
    try:
        library = load(real, Path(default_cache_dir()) / "native")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        reason = next((line for line in lines if "error:" in line), lines[0] if lines else f"exit code {error.returncode}")
        return f"{error.cmd[0]} failed: {reason}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    for name in FUNCTIONS:
        jax.ffi.register_ffi_target(f"cifar_jax_{name}_{real}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return ""


def call(name: str, results, images, weights, **attributes: int):
    """The function `name` on lists of arrays: images, whose type says which is called, and weights and such, of ops.wide of it.

    results: their shapes. Raises TypeError for arrays of another type, which C would read wrongly.
    """
    dtype = images[0].dtype
    wrong = [a.dtype for a in images if a.dtype != dtype] + [a.dtype for a in weights if a.dtype != ops.wide(dtype)]
    if wrong:
        raise TypeError(f"{name}: got {wrong[0]} beside {dtype}, expected images of one type and the rest of {ops.wide(dtype)}")
    call = jax.ffi.ffi_call(f"cifar_jax_{name}_{REALS[dtype.name]}", results, vmap_method="sequential")
    return call(*images, *weights, **{key: np.int64(value) for key, value in attributes.items()})
