"""The devices that share a batch: which they are, how values lie on them, and a step split over them.

One device needs no mesh (None), and then nothing here changes anything. On several the state lies whole on each and the
batch is split over the axis `data`: across the devices of a process, and across processes in their order.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax.errors import InputError

AXIS = "data"
WHOLE = P()  # a value that lies whole on each device


def make_mesh(num_devices: int, batch_size: int) -> Mesh | None:
    """The devices that share batches of `batch_size` images: `num_devices` of each process, all that divide it for 0.

    None where that is one in all. Raises InputError where the batch cannot be split so, or a process has fewer devices.
    """
    processes, local = jax.process_count(), jax.local_device_count()
    if batch_size % processes:
        raise InputError(
            f"train.batch_size: got {batch_size} on {processes} processes, expected a multiple of {processes}; change it, or "
            "start fewer processes"
        )
    possible = [n for n in range(1, local + 1) if batch_size % (n * processes) == 0]
    if num_devices and num_devices not in possible:
        nearest = min(possible, key=lambda n: abs(n - num_devices))
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"parallel.devices: got {num_devices}{each} where there are {local}, for batches of {batch_size}, expected a number "
            f"that divides them; set it to {nearest}, or 0 for the most"
        )
    chosen = num_devices or possible[-1]
    if chosen * processes == 1:
        return None
    of_process = [[d for d in jax.devices() if d.process_index == p][:chosen] for p in range(processes)]
    return Mesh(np.array(of_process).ravel(), (AXIS,), axis_types=(AxisType.Auto,))


def meet(mesh: Mesh | None) -> None:
    """Makes the first exchange over the mesh: its transport gives up on processes that come 30 s late, as they may to the first
    step, which not all compile in the same time. To be called where all are known to be.
    """
    if mesh is not None:
        numbers = place(np.ones(mesh.size, np.float32), mesh, P(AXIS))
        add = jax.jit(split(lambda _, numbers: jax.lax.psum(numbers.sum(), AXIS), mesh))
        jax.block_until_ready(add(place(np.float32(0), mesh), numbers))


def split(step, mesh: Mesh | None):
    """The step on a batch that is split over the mesh, from values that lie whole on each device, to such values.

    step(values, batch): pure, made with axis_name=AXIS where there is a mesh; see steps.py.
    """
    if mesh is None:
        return step
    # check_vma=False: the step averages its gradients itself; checked, they would come added up already.
    return jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False)


def place(tree, mesh: Mesh | None, spec: P = WHOLE):
    """Puts host arrays on the devices: whole on each, or split as `spec` says. Each process gives the whole arrays."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, spec)

    def put(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def make_put(mesh: Mesh | None):
    """Returns put(batch): this process's rows of a batch, host arrays, onto its devices; together they are the batch."""
    if mesh is None:
        return jax.device_put
    sharding = NamedSharding(mesh, P(AXIS))
    return lambda batch: jax.make_array_from_process_local_data(sharding, batch)


def round_up(size: int, mesh: Mesh | None) -> int:
    """The next number of images from `size` on that splits evenly."""
    return size if mesh is None else -(-size // mesh.size) * mesh.size


def own_rows(batch_size: int) -> slice:
    """Which rows of every batch are this process's."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def constrain(tree, mesh: Mesh | None):
    """Inside a compiled function: splits the leading axis of arrays over the mesh."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(AXIS)))
