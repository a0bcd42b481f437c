"""A gated layer and its gradient on a GPU, as Pallas kernels: what gated.Gated computes, in fewer passes over memory.

XLA makes a pass for each of the windows, the norm, the matrix products, the gate and the shortcut, and half as many again
for their gradients. Here depthwise.py makes the windows; then a program reads some positions once, keeps what lies between
in registers and writes the result. The gradient starts again from what the windows made; of what it computes it writes
what the weights' gradients are products of, which XLA makes. Matrix products are of x's type with sums in float32;
parameters are float32, and so are their gradients.

Shapes: x is (b, h, w, c); (n, c) is the same with all positions in one axis. In a kernel every axis is a power of 2, so
channels are a list of blocks of columns, and only the last may have more than there are, zeros; matrices get theirs beforehand.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from cifar_jax.models import depthwise
from cifar_jax.models.depthwise import check_batch, fma, triton
from cifar_jax.models.norm import EPSILON

POSITIONS = 64  # of one program
CHUNK = {"bfloat16": 32, "float32": 16}  # values of the gated product, and gates, that a program has in registers at a time


class Windows(NamedTuple):
    """Kernels (k, k, channels) and biases of the parts of x that go through a window; dilations go by themselves."""

    kernels: tuple
    biases: tuple


class Weights(NamedTuple):
    """The other parameters of a layer from c to `features` channels by way of a gated product of h, all float32."""

    scale: jax.Array  # (c,), of the norm
    bias: jax.Array  # (c,)
    conv_in: jax.Array  # (c, 2 h): to values and to gates
    in_bias: jax.Array  # (2 h,)
    conv_out: jax.Array  # (h, features)
    out_bias: jax.Array  # (features,)
    skip: jax.Array | None  # (features,): of x, which is added where c == features


class Sizes(NamedTuple):
    """Of a layer from c to `features` channels by way of a gated product of h, which goes in turns of `chunk` values."""

    c: int
    h: int
    features: int
    chunk: int

    @property
    def turns(self) -> int:
        return pl.cdiv(self.h, self.chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def gated_layer(x, windows: Windows, weights: Weights, dilations: tuple[int, ...], average, interpret: bool = False):
    """(b, h, w, c) -> (b, h, w, features). The last window's part is averaged first, by `average`, its own transpose.

    The windows' parts are the last channels of x, in their order. interpret: in Python instead of on a GPU, for tests.
    """
    return _forward(x, windows, weights, dilations, average, interpret)[0]


def _forward(x, windows, weights, dilations, average, interpret):
    averaged = average(x[..., -windows.kernels[-1].shape[-1] :])
    firsts = _firsts(x, windows)
    parts = [x[..., : firsts[0]]]
    for first, source, kernel, bias, dilation in zip(firsts, _sources(x, averaged, firsts), *windows, dilations, strict=True):
        start = 0 if source is averaged else first
        seen = depthwise.correlate(source, kernel, x.shape[1:3], 1, dilation, _low(kernel, dilation), interpret, start)
        parts.append(seen + bias.astype(x.dtype))
    y = jnp.concatenate(parts, -1)
    return _mix(y, x, weights, interpret), (x, averaged, y, windows, weights)


def _backward(dilations, average, interpret, residuals, grad):
    x, averaged, y, windows, weights = residuals
    grad_y, sums = _gradients(y, x, weights, grad, interpret)
    firsts = _firsts(x, windows)
    through, kernels = [grad_y[..., : firsts[0]]], []
    for first, source, kernel, dilation in zip(firsts, _sources(x, averaged, firsts), windows.kernels, dilations, strict=True):
        low, start = _low(kernel, dilation), 0 if source is averaged else first
        transposed = 1, dilation, dilation * (len(kernel) - 1) - low, interpret
        through.append(depthwise.correlate(grad_y, kernel[::-1, ::-1], x.shape[1:3], *transposed, first))
        kernels.append(depthwise.correlate_kernel(source, grad_y, kernel.shape, 1, dilation, low, interpret, (start, first)))
    through[-1] = average(through[-1])
    grad_x = jnp.concatenate(through, -1)
    if weights.skip is not None:
        grad_x = (grad_x + grad.astype(jnp.float32) * weights.skip).astype(x.dtype)
    biases = tuple(jnp.split(sums.pop("y"), firsts)[1:])
    return grad_x, Windows(tuple(kernels), biases), Weights(**{"skip": None} | sums)


gated_layer.defvjp(_forward, _backward)


def _low(kernel, dilation):
    return dilation * (len(kernel) - 1) // 2


def _firsts(x, windows):
    """The channel at which each window's part begins."""
    sizes = [kernel.shape[-1] for kernel in windows.kernels]
    return [x.shape[-1] - sum(sizes[n:]) for n in range(len(sizes))]


def _sources(x, averaged, firsts):
    return [x] * (len(firsts) - 1) + [averaged]


# These two are compiled by themselves so that each is traced once for all layers of a shape.
@functools.partial(jax.jit, static_argnums=3)
def _mix(y, x, weights, interpret):
    """value * tanh(exp(value)) * gate of the normalized y, mapped to the result, plus x * skip."""
    sizes, n = _sizes(weights, y.dtype), y.size // y.shape[-1]
    (c, _, features, _), weights = sizes, _padded(weights, y.dtype)

    def program(y_ref, x_ref, *refs):
        *weight_refs, out_ref = refs
        ref, rows = _unpack(weight_refs), _rows(pl.program_id(0))
        normed, _, _ = _normalize(_load(y_ref, rows, n, c), ref, c, y.dtype, interpret)

        def add(turn, out):
            hidden = _hidden(normed, ref.in_bias, _in_blocks(ref.conv_in, sizes, turn), sizes, turn)
            product = _gate(hidden, y.dtype, interpret)[0].astype(y.dtype)
            matrices = _out_blocks(ref.conv_out, sizes, turn)
            return tuple(o + _dot(product, matrix, ((1,), (0,))) for o, matrix in zip(out, matrices, strict=True))

        out = tuple(jnp.zeros((POSITIONS, width), jnp.float32) for _, width in _blocks(features))
        if y.dtype == jnp.float32:  # written out it spills kilobytes of registers a thread
            out = lax.fori_loop(0, sizes.turns, add, out)
        else:
            for turn in range(sizes.turns):
                out = add(turn, out)
        out = [o + bias for o, bias in zip(out, _load_row(ref.out_bias, features), strict=True)]
        if weights.skip is not None:
            added = zip(_load(x_ref, rows, n, c), _load_row(ref.skip, c), out, strict=True)
            out = [fma(value, scale, o, interpret) for value, scale, o in added]
        _store(out_ref, rows, n, features, out)

    out = jax.ShapeDtypeStruct((*y.shape[:-1], features), y.dtype)
    grid, name = (pl.cdiv(n, POSITIONS),), f"gate_{c}_{features}"
    return _call(name, program, out, grid, interpret, y, x, *jax.tree.leaves(weights))


@functools.partial(jax.jit, static_argnums=4)
def _gradients(y, x, weights, grad, interpret):
    """y's gradient and those of the weights, and the sum of y's over positions, for the windows' biases."""
    sizes, n = _sizes(weights, y.dtype), y.size // y.shape[-1]
    (c, h, features, chunk), weights, programs = sizes, _padded(weights, y.dtype), pl.cdiv(n, POSITIONS)
    lengths = {"out_bias": features} | ({} if weights.skip is None else {"skip": features})
    lengths |= {"in_bias": 2 * h, "scale": c, "bias": c, "y": c}
    total = sum(lengths.values())
    starts = {name: sum(list(lengths.values())[:i]) for i, name in enumerate(lengths)}

    def program(grad_ref, y_ref, x_ref, *refs):
        *weight_refs, grad_y_ref, normed_ref, product_ref, hidden_ref, sum_ref = refs
        ref, own = _unpack(weight_refs), pl.program_id(0)
        rows = _rows(own)

        def store_sum(name, values, blocks, limit):
            for (first, width), value in zip(blocks, values, strict=True):
                lane = first + lax.iota(jnp.int32, width)
                place = own * total + starts[name] + lane
                triton.store(sum_ref.at[place], value.sum(0), mask=lane < limit)

        slope = _load(grad_ref, rows, n, features)
        store_sum("out_bias", slope, _blocks(features), features)
        if weights.skip is not None:
            products = [s * v for s, v in zip(slope, _load(x_ref, rows, n, c), strict=True)]
            store_sum("skip", products, _blocks(features), features)
        slope = [s.astype(y.dtype) for s in slope]
        normed, centered, inverse = _normalize(_load(y_ref, rows, n, c), ref, c, y.dtype, interpret)
        _store(normed_ref, rows, n, c, normed)

        def add(turn, grad_normed):
            first, grad_normed = turn * chunk, list(grad_normed)
            matrices = _in_blocks(ref.conv_in, sizes, turn)
            grad_product = sum(
                _dot(part, matrix, ((1,), (1,)))
                for part, matrix in zip(slope, _out_blocks(ref.conv_out, sizes, turn), strict=True)
            )
            product, by_value, by_gate = _gate(_hidden(normed, ref.in_bias, matrices, sizes, turn), y.dtype, interpret)
            _store(product_ref, rows, n, h, [product], [(first, chunk)])
            for number, part in enumerate((grad_product * by_value, grad_product * by_gate)):
                store_sum("in_bias", [part], [(number * h + first, chunk)], (number + 1) * h)
                part = part.astype(y.dtype)
                _store(hidden_ref, rows, n, (number + 1) * h, [part], [(number * h + first, chunk)], 2 * h)
                for i, matrix in enumerate(matrices[number]):
                    grad_normed[i] += _dot(part, matrix, ((1,), (1,)))
            return tuple(grad_normed)

        zeros = tuple(jnp.zeros((POSITIONS, width), jnp.float32) for _, width in _blocks(c))
        grad_normed = lax.fori_loop(0, sizes.turns, add, zeros)
        store_sum("scale", [g * z for g, z in zip(grad_normed, centered, strict=True)], _blocks(c), c)
        store_sum("bias", grad_normed, _blocks(c), c)
        scaled = [g * scale for g, scale in zip(grad_normed, _load_row(ref.scale, c), strict=True)]
        mean = sum(s.sum(1, keepdims=True) for s in scaled) / c
        spread = sum((s * z).sum(1, keepdims=True) for s, z in zip(scaled, centered, strict=True)) / c
        grad_y = [fma(z, -spread, s - mean, interpret) * inverse for s, z in zip(scaled, centered, strict=True)]
        _store(grad_y_ref, rows, n, c, grad_y)
        # A position beyond the last has no slope, and so no gradient.
        store_sum("y", grad_y, _blocks(c), c)

    shapes = (c, c, h, 2 * h)
    outs = tuple(jax.ShapeDtypeStruct((*y.shape[:-1], width), y.dtype) for width in shapes)
    outs += (jax.ShapeDtypeStruct((programs, total), jnp.float32),)
    name, arrays = f"gate_gradient_{c}_{features}", (grad, y, x, *jax.tree.leaves(weights))
    grad_y, normed, product, hidden, sums = _call(name, program, outs, (programs,), interpret, *arrays)
    parts = jnp.split(sums.sum(0), list(starts.values())[1:])
    return grad_y, dict(zip(lengths, parts, strict=True)) | {"conv_in": _outer(normed, hidden), "conv_out": _outer(product, grad)}


def _outer(a, b):
    """Sum over positions of a's channels times b's, float32."""
    axes = tuple(range(a.ndim - 1))
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, ((axes, axes), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _sizes(weights, dtype):
    return Sizes(len(weights.conv_in), *weights.conv_out.shape, CHUNK[dtype.name])


def _unpack(refs):
    return Weights(*refs, *[None] * (len(Weights._fields) - len(refs)))


def _rows(number):
    return number * POSITIONS + lax.iota(jnp.int32, POSITIONS)


def _blocks(size):
    """(first, width) of each block of an axis: powers of 2, at least 16, which a matrix unit takes at least.

    >>> _blocks(56), _blocks(48)  # one block where no more than an eighth of it is empty
    ([(0, 64)], [(0, 32), (32, 16)])
    """
    blocks, first = [], 0
    while first < size:
        left = size - first
        above = 1 << (left - 1).bit_length()
        width = max(above if above - left <= above // 8 else above // 2, 16)
        blocks.append((first, width))
        first += width
    return blocks


def _whole(size):
    """The size of an axis in whole blocks."""
    return sum(_blocks(size)[-1])


def _padded(weights, dtype):
    """The matrices as x's type, with zeros up to whole blocks: conv_in (values and gates, turns, c, chunk), conv_out
    (h, features); and in_bias (values and gates, h). A load without a mask is a wide one, and XLA does this once a step.
    """
    c, h, features, chunk = sizes = _sizes(weights, dtype)
    more = sizes.turns * chunk - h
    conv_in = jnp.pad(weights.conv_in.reshape(c, 2, h), ((0, _whole(c) - c), (0, 0), (0, more)))
    return weights._replace(
        conv_in=conv_in.reshape(_whole(c), 2, sizes.turns, chunk).transpose(1, 2, 0, 3).astype(dtype),
        in_bias=jnp.pad(weights.in_bias.reshape(2, h), ((0, 0), (0, more))),
        conv_out=jnp.pad(weights.conv_out, ((0, more), (0, _whole(features) - features))).astype(dtype),
    )


def _in_blocks(ref, sizes, turn):
    """Of conv_in the blocks for a turn's values and for its gates: (c's width, chunk) each."""
    lanes, height = lax.iota(jnp.int32, sizes.chunk)[None, :], _whole(sizes.c)

    def block(number, first, width):
        row = (number * sizes.turns + turn) * height + first + lax.iota(jnp.int32, width)[:, None]
        return triton.load(ref.at[row * sizes.chunk + lanes])

    return [[block(number, *where) for where in _blocks(sizes.c)] for number in range(2)]


def _out_blocks(ref, sizes, turn):
    """Of conv_out the blocks for a turn: (chunk, features' width) each."""
    row = turn * sizes.chunk + lax.iota(jnp.int32, sizes.chunk)[:, None]
    stride, blocks = _whole(sizes.features), _blocks(sizes.features)
    return [triton.load(ref.at[row * stride + first + lax.iota(jnp.int32, width)[None, :]]) for first, width in blocks]


def _normalize(y, ref, c, dtype, interpret):
    """Over the channels: the normalized y, what of it comes before scale and bias, and 1 / its standard deviation."""
    mean = sum(block.sum(1, keepdims=True) for block in y) / c
    centered = [block - mean for block in y]
    first, width = _blocks(c)[-1]
    if first + width > c:
        centered[-1] = jnp.where((first + lax.iota(jnp.int32, width) < c)[None, :], centered[-1], 0.0)
    inverse = lax.rsqrt(sum((block * block).sum(1, keepdims=True) for block in centered) / c + EPSILON)
    centered = [block * inverse for block in centered]
    scaled = zip(centered, _load_row(ref.scale, c), _load_row(ref.bias, c), strict=True)
    return [fma(block, scale, bias, interpret).astype(dtype) for block, scale, bias in scaled], centered, inverse


def _hidden(normed, bias_ref, matrices, sizes, turn):
    """(value, gate) of a turn's places; matrices: as from _in_blocks."""

    def affine(number):
        place = (number * sizes.turns + turn) * sizes.chunk + lax.iota(jnp.int32, sizes.chunk)
        return sum(
            (_dot(block, matrix, ((1,), (0,))) for block, matrix in zip(normed, matrices[number], strict=True)),
            triton.load(bias_ref.at[place])[None, :],
        )

    return affine(0), affine(1)


def _gate(hidden, dtype, interpret):
    """value * tanh(exp(value)) * gate, and the factors of its gradient by value and by gate."""
    value, gate = hidden
    exp = jnp.exp2(jnp.minimum(value, 4.0) * math.log2(math.e))  # from 4 on the factor is 1
    # The processor's own tanh is good to 11 bits.
    factor = jnp.tanh(exp) if interpret or dtype == jnp.float32 else triton.approx_tanh(exp)
    slope = fma(value * exp, 1 - factor * factor, factor, interpret)
    return value * factor * gate, gate * slope, value * factor


def _dot(a, b, contract):
    # Without a say of ours float32 would be cut to the 10 bits of TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _at(rows, n, block, c, stride=None):
    """Places of rows and of a block of columns, and which of them are among the first n and c."""
    first, width = block
    row, column = rows[:, None], first + lax.iota(jnp.int32, width)[None, :]
    return row * (stride or c) + column, (row < n) & (column < c)


def _load(ref, rows, n, c):
    places = [_at(rows, n, block, c) for block in _blocks(c)]
    return [triton.load(ref.at[place], mask=mask, other=0).astype(jnp.float32) for place, mask in places]


def _store(ref, rows, n, c, value, blocks=None, stride=None):
    """To an array (n, stride), or (n, c), whose columns from c on are left as they are."""
    for block, part in zip(blocks or _blocks(c), value, strict=True):
        place, mask = _at(rows, n, block, c, stride)
        triton.store(ref.at[place], part.astype(ref.dtype), mask=mask)


def _load_row(ref, size):
    lanes = [first + lax.iota(jnp.int32, width) for first, width in _blocks(size)]
    return [triton.load(ref.at[lane], mask=lane < size, other=0)[None, :] for lane in lanes]


def _call(name, kernel, out_shape, grid, interpret, *arrays):
    """The kernel on flat arrays, to flat arrays, which then get their shapes."""
    check_batch(len(arrays[0]), *jax.tree.leaves(out_shape), *arrays)
    flat = jax.tree.map(lambda s: jax.ShapeDtypeStruct((s.size,), s.dtype), out_shape)
    params = triton.CompilerParams(num_warps=4, num_stages=1)
    call = pl.pallas_call(kernel, out_shape=flat, grid=grid, compiler_params=params, interpret=interpret, name=name)
    results = call(*(array.reshape(-1) for array in arrays))
    return jax.tree.map(lambda s, array: array.reshape(s.shape), out_shape, results)
