"""Depthwise convolution and its gradients on a GPU, as Pallas kernels; ops.conv_depthwise is what calls them.

XLA has no good form of it there: its grouped convolution and that one's gradient read every image many times over. Here a
lane is a column of a channel, and a program makes several rows of the result at once, so that what it reads of a row serves
all of them. On a GPU they can neither be mapped by vmap, for want of a fourth axis of programs, nor differentiated forward.

Shapes: x is (b, h, w, c); a kernel (k, k, c); sums are float32 whatever x is.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from cifar_jax.errors import InputError

try:
    from jax.experimental.pallas import triton
except ImportError:  # announced by JAX 0.11 for a later one
    triton = None

LANES = 128  # of one warp: four numbers each, which one access reads
ROWS = 12  # of the result that a program makes at most; more would not fit into registers
IMAGES = 2  # whose gradients by the kernel one program adds up
KINDS = ("bfloat16", "float32")
MOST_IMAGES = 65535  # programs along the last axis


def why_not(dtype: str) -> str:
    """ "" where these kernels and those of gate_kernels.py run on this machine's GPU, else the reason, in a few words."""
    if triton is None:
        return "this JAX has no Triton"
    if dtype not in KINDS:
        return f"they do not know {dtype}"
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "none"))
    new = capability.replace(".", "").isdecimal() and float(capability) >= 8
    return "" if new else f"they need CUDA and compute capability 8.0, this GPU has {capability}"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def depthwise(x, kernel, stride: int, dilation: int, padding: int, interpret: bool = False):
    """Convolution of each channel by itself, zeros around: (b, h, w, c), (k, k, c) -> (b, rows, cols, c).

    interpret: in Python instead of on a GPU, for tests.
    """
    k = kernel.shape[0]
    rows, cols = ((size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size in x.shape[1:3])
    return correlate(x, kernel, (rows, cols), stride, dilation, padding, interpret)


def _forward(x, kernel, stride, dilation, padding, interpret):
    return depthwise(x, kernel, stride, dilation, padding, interpret), (x, kernel)


def _backward(stride, dilation, padding, interpret, residuals, grad):
    x, kernel = residuals
    spread = grad
    if stride > 1:  # zeros between its positions
        spread = lax.pad(grad, jnp.zeros((), grad.dtype), ((0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)))
    low = dilation * (kernel.shape[0] - 1) - padding
    grad_x = correlate(spread, kernel[::-1, ::-1], x.shape[1:3], 1, dilation, low, interpret)
    grad_kernel = correlate_kernel(x, grad, kernel.shape, stride, dilation, padding, interpret)
    return grad_x, grad_kernel.astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)


class Blocks(NamedTuple):
    """Rows of a result in blocks whose taps meet the same rows of x: row n of block (group, remainder) is first + n * step.

    Tap i of row n of a block meets row u = n * skip + i, counted from the block's first in steps of the dilation.
    """

    step: int
    skip: int
    rows: int
    groups: int

    def first(self, block):
        return lax.div(block, self.step) * (self.rows * self.step) + lax.rem(block, self.step)

    def pairs(self, u: int, k: int):
        """(n, i) of each row of the block and its tap that meet row u."""
        return [(n, u - n * self.skip) for n in range(self.rows) if 0 <= u - n * self.skip < k]


def _make_blocks(rows: int, stride: int, dilation: int) -> Blocks:
    common = math.gcd(stride, dilation)
    step = dilation // common
    of_remainder = pl.cdiv(rows, step)
    groups = pl.cdiv(of_remainder, ROWS)
    return Blocks(step, stride // common, pl.cdiv(of_remainder, groups), groups)


# Compiled by itself so that it is traced once for all layers of a shape.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def correlate(x, kernel, shape, stride, dilation, low, interpret, start=0):
    """Correlation with `low` zeros above and left of x, and as many as needed below and right: (b, *shape, c).

    x may have more channels than the kernel, which then sees those from `start` on.
    """
    b, height, width, channels = x.shape
    (k, _, c), (rows, cols) = kernel.shape, shape
    blocks = _make_blocks(rows, stride, dilation)

    def program(x_ref, kernel_ref, y_ref):
        lane, channel, image, first = _place(blocks, c)

        def add(j, totals):
            totals = list(totals)
            weights = [_load(kernel_ref, (i * k + j) * c + channel, lane < cols * c) for i in range(k)]
            column = lax.div(lane, c) * stride + j * dilation - low
            for u in range((blocks.rows - 1) * blocks.skip + k):
                row = first * stride + u * dilation - low
                seen = _look(x_ref, image, row, column, start + channel, (height, width, channels))
                for n, i in blocks.pairs(u, k):
                    totals[n] = fma(seen, weights[i], totals[n], interpret)
            return tuple(totals)

        # Written out, seven columns compile for ten seconds.
        totals = lax.fori_loop(0, k, add, (jnp.zeros(LANES, jnp.float32),) * blocks.rows)
        for n, total in enumerate(totals):
            row = first + n * blocks.step
            mask = (lane < cols * c) & (row < rows)
            triton.store(y_ref.at[(image * rows + row) * (cols * c) + lane], total.astype(x.dtype), mask=mask)

    out = jax.ShapeDtypeStruct((b * rows * cols * c,), x.dtype)
    grid = (pl.cdiv(cols * c, LANES), blocks.groups * blocks.step, b)
    name = f"depthwise_k{k}_d{dilation}_c{c}"
    return _call(name, program, out, grid, interpret, x, kernel).reshape(b, rows, cols, c)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def correlate_kernel(x, grad, shape, stride, dilation, low, interpret, starts=(0, 0)):
    """The gradient of a kernel of that shape, (k, k, c), float32. x and grad may have more channels, where `starts` says.

    A program has one column of the kernel; XLA adds the columns of images.
    """
    b, height, width, channels = x.shape
    (k, _, c), (_, rows, cols, slopes_c) = shape, grad.shape
    blocks = _make_blocks(rows, stride, dilation)
    images = max(n for n in range(1, IMAGES + 1) if b % n == 0)
    num_blocks = blocks.groups * blocks.step

    def program(x_ref, grad_ref, out_ref):
        lane = pl.program_id(0) * LANES + lax.iota(jnp.int32, LANES)
        channel, j, part = lax.rem(lane, c), pl.program_id(1), pl.program_id(2)
        column = lax.div(lane, c) * stride + j * dilation - low
        place = lax.div(lane, c) * slopes_c + starts[1] + channel

        def add(number, totals):
            image, first = part * images + lax.div(number, num_blocks), blocks.first(lax.rem(number, num_blocks))
            totals, slopes = list(totals), []
            for n in range(blocks.rows):
                row = first + n * blocks.step
                index = (image * rows + row) * (cols * slopes_c) + place
                slopes.append(_load(grad_ref, index, (lane < cols * c) & (row < rows)))
            for u in range((blocks.rows - 1) * blocks.skip + k):
                row = first * stride + u * dilation - low
                seen = _look(x_ref, image, row, column, starts[0] + channel, (height, width, channels))
                for n, i in blocks.pairs(u, k):
                    totals[i] = fma(seen, slopes[n], totals[i], interpret)
            return tuple(totals)

        totals = lax.fori_loop(0, images * num_blocks, add, (jnp.zeros(LANES, jnp.float32),) * k)
        for i, total in enumerate(totals):
            out = ((part * k + i) * k + j) * (cols * c) + lane
            triton.store(out_ref.at[out], total, mask=lane < cols * c)

    out = jax.ShapeDtypeStruct((b // images * k * k * cols * c,), jnp.float32)
    grid = (pl.cdiv(cols * c, LANES), k, b // images)
    name = f"depthwise_gradient_k{k}_d{dilation}_c{c}"
    return _call(name, program, out, grid, interpret, x, grad).reshape(-1, k, k, cols, c).sum((0, 3))


def _place(blocks, c):
    lane = pl.program_id(0) * LANES + lax.iota(jnp.int32, LANES)
    return lane, lax.rem(lane, c), pl.program_id(2), blocks.first(pl.program_id(1))


def _look(ref, image, row, column, channel, shape):
    """What lies at (row, column, channel) of an image of that shape; zeros outside."""
    height, width, c = shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return _load(ref, (image * height + row) * (width * c) + column * c + channel, inside)


def _load(ref, index, mask):
    return triton.load(ref.at[index], mask=mask, other=0).astype(jnp.float32)


def fma(a, b, c, interpret):
    """a * b + c, float32, rounded once: Triton is kept from making one instruction of the two."""
    if interpret:
        return a * b + c
    a, b, c = jnp.broadcast_arrays(a, b, c)
    asm, out = "fma.rn.f32 $0, $1, $2, $3;", [jax.ShapeDtypeStruct(a.shape, a.dtype)]
    return triton.elementwise_inline_asm(asm, args=(a, b, c), constraints="=f,f,f,f", pack=1, result_shape_dtypes=out)[0]


def check_batch(images: int, *arrays):
    """Raises InputError for too many images, or a layer of more numbers than an int32 counts: places would be wrong."""
    largest = max(array.size for array in arrays)
    if largest >= 2**31 or images > MOST_IMAGES:
        raise InputError(
            f"model.kernels: got a layer of {largest} numbers from {images} images, expected less than 2**31 and at most "
            f"{MOST_IMAGES} for the Pallas kernels; make the batch smaller or set model.kernels=xla"
        )


def _call(name, kernel, out_shape, grid, interpret, *arrays):
    """The kernel on flat arrays."""
    check_batch(len(arrays[0]), out_shape, *arrays)
    params = triton.CompilerParams(num_warps=1, num_stages=1)
    call = pl.pallas_call(kernel, out_shape=out_shape, grid=grid, compiler_params=params, interpret=interpret, name=name)
    return call(*(array.reshape(-1) for array in arrays))
