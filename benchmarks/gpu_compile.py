"""What a GPU's compiler makes of a training step, without a GPU: seconds it takes, and registers and spills of Pallas kernels.

python -m benchmarks.gpu_compile [--config configs/record.py] [--config.model.dtype=float32] [--json]
needs `pip install -e ".[cuda12]"` (6 GB) and no more than a CPU. It compiles for an H100: step and gradient, without augmentation
and without the trials of kernels that XLA makes on a card. Of each program: threads have at most 255 registers, what does not
fit is spilled to memory; a card of capability 9.0 has 227 KB of shared memory for a program, 8.6 and 8.9 have 99.

Latest result (2 CPU cores, AMD EPYC, jax 0.10.2, n = 2): record, 28 s, of them 7 of tracing; 67 s while the columns of a window
were written out. No program of record spills in bfloat16; the gradient of 96 channels has 253 registers.
"""

import contextlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import make_plain_parser, parse, print_report
from cifar_jax import arguments
from cifar_jax.errors import InputError

# What XLA asks of a card; the numbers are of NVIDIA's data sheet and of the device's properties by CUDA.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
KERNELS = ("gate", "depthwise")  # how the names of ours begin
PTXAS = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL)
SHARED = re.compile(r"\] (\w+) grid: .* shared_memory: (\d+) bytes")


def make_step(config, sharding):
    """(train_step, its arguments as shapes on the GPU), of the network by Pallas kernels."""
    import jax
    import jax.numpy as jnp

    from cifar_jax.models import create_model
    from cifar_jax.optim import make_optimizer, make_schedule
    from cifar_jax.state import create_state
    from cifar_jax.steps import make_train_step

    model, tx = create_model(config.model), make_optimizer(config.optim, make_schedule(config.schedule, 1000))
    state = create_state(model, tx, config.seed, with_ema=config.ema.decay > 0)
    options = {"label_smoothing": config.train.label_smoothing, "ema_decay": config.ema.decay}
    size = config.train.batch_size
    batch = {"image": jnp.zeros((size, 32, 32, 3)), "label": jnp.zeros(size, jnp.int32)}
    if config.augment.mixup.p or config.augment.cutmix.p:
        batch["target"] = jnp.zeros((size, config.model.num_classes))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), (state, batch))
    return make_train_step(model.clone(kernels="pallas"), tx, **options), shapes


def find_gpu():
    """The sharding of arrays on a GPU that is not there. Raises InputError without JAX's compiler for it."""
    import jax
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc("gpu", "cuda", target_config=H100, topology="1x1x1")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise InputError('got a JAX without a compiler for GPUs, expected one; pip install -e ".[cuda12]" brings it') from error
    return jax.sharding.SingleDeviceSharding(found.devices[0])


def read_kernels(said: str, sequence: str) -> dict[str, dict]:
    """{name: registers, spilled and shared bytes} of our kernels, from what ptxas said and from XLA's sequence of programs."""
    shared = {name: int(size) for name, size in SHARED.findall(sequence)}
    found = {name: (int(registers), int(spilled)) for name, spilled, registers in PTXAS.findall(said)}
    return {
        name: {"registers": registers, "spilled_bytes": spilled, "shared_bytes": shared[name]}
        for name, (registers, spilled) in sorted(found.items())
        if name.startswith(KERNELS)
    }


def find_ptxas() -> pathlib.Path:
    """NVIDIA's assembler, which came with JAX's compiler. Raises InputError where it did not."""
    for name in ("nvidia.cu13", "nvidia.cuda_nvcc"):  # where CUDA 13 and 12 lay it
        with contextlib.suppress(ImportError):
            for folder in importlib.import_module(name).__path__:
                if (path := pathlib.Path(folder, "bin/ptxas")).exists():
                    return path
    raise InputError('got no ptxas beside JAX\'s compiler for GPUs, expected one; pip install -e ".[cuda12]" brings it')


def run_ptxas(ptxas: pathlib.Path, programs: list[pathlib.Path]) -> str:
    """What the assembler says of files of PTX."""
    command = [ptxas, "-v", "-arch=sm_90a", "-o", os.devnull]
    return "".join(subprocess.run([*command, path], capture_output=True, text=True, check=True).stderr for path in programs)


def measure(config, folder: pathlib.Path) -> dict:
    """The report; XLA writes what it compiles to the folder."""
    import jax

    options = {"xla_dump_to": str(folder), "xla_gpu_autotune_level": 0}
    gpu, ptxas = find_gpu(), find_ptxas()
    step, shapes = make_step(config, gpu)
    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(*shapes)
    traced = time.perf_counter()
    lowered.compile(compiler_options=options)
    seconds = {"trace_seconds": traced - began, "compile_seconds": time.perf_counter() - traced}
    sequence = next(folder.glob("*.thunk_sequence.txt")).read_text()
    programs = [path for path in sorted(folder.glob("*.ptx")) if re.search(rf"\.entry ({'|'.join(KERNELS)})", path.read_text())]
    return seconds | {"jax": jax.__version__, "kernels": read_kernels(run_ptxas(ptxas, programs), sequence)}


def main(argv) -> int:
    parser = make_plain_parser(__doc__)
    parser.add_argument("--config", type=arguments.path, default="configs/record.py", help="chooses the network and the recipe")
    flags, config = parse(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_PLATFORMS"] = "cpu"  # read when JAX starts
        report = measure(config, pathlib.Path(folder))
    if not flags.json:
        report |= {
            name: "; ".join(f"{key} {value}" for key, value in found.items()) for name, found in report.pop("kernels").items()
        }
    print_report(report, flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
