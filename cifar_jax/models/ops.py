"""Convolutions in the forms that are fast on a CPU and on a GPU, as pure functions of (x, kernel).

XLA's own grouped and small dense convolutions are several times slower on a CPU: a 1x1 convolution is written as a matrix
product, a dense k x k one as im2col and a matrix product, a depthwise one as k*k shifted multiply-adds whose weight
gradient is taken over groups of images. All are exact: they equal lax.conv_general_dilated up to the
order of the sums. Elsewhere the k x k ones are convolutions over all channels, which matrix units are made for: a grouped
one, and most of all its gradient, takes several times as long there. Faster for depthwise ones is depthwise.py, where it runs.

Shapes: x is (b, h, w, c); kernels are HWIO. `padding` is that of PyTorch: the same number of zeros on every side, so the
output has (h + 2 * padding - dilation * (k - 1) - 1) // stride + 1 rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.models import depthwise

# Images whose products are added at once in the depthwise weight gradient; 16 is no faster and compiles for longer.
_GROUP_SIZE = 8
_LARGE = 5  # the side of a kernel from which on that gradient has too many taps to be written out


def wide(dtype):
    """The type of statistics and sums beside images of `dtype`: float32 or better."""
    return jnp.promote_types(dtype, jnp.float32)


def compute_dtype(dtype, kernels: str):
    """The type of a layer's weights and of what it computes between an input and an output of `dtype`.

    On a CPU float32 or better: native kernels round by themselves what they multiply, and XLA takes three times as long over a
    training step in bfloat16.
    """
    return wide(dtype) if kernels != "pallas" and jax.default_backend() == "cpu" else dtype


def output_size(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Rows (or columns) that a convolution makes of `size` rows; below 1 where the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv_pointwise(x, kernel):
    """1x1 convolution. kernel: (1, 1, c, features)."""
    return _matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _matmul(x, kernel):
    """(n, c) @ (c, features). Its own gradient keeps XLA from transposing whole activations first."""
    return x @ kernel


def _matmul_backward(residuals, grad):
    x, kernel = residuals
    transposed = lax.optimization_barrier(kernel.T)
    return grad @ transposed, lax.dot_general(x, grad, (((0,), (0,)), ((), ())))


_matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)


def conv_dense(x, kernel, *, stride=1, dilation=1, padding=0):
    """k x k convolution over all channels, as im2col and one matrix product. kernel: (k, k, c, features)."""
    k, _, c, features = kernel.shape
    if k == 1 and stride == 1 and padding == 0:
        return conv_pointwise(x, kernel)
    if jax.default_backend() != "cpu":
        return conv_xla(x, kernel, stride=stride, dilation=dilation, padding=padding)
    rows = output_size(x.shape[1], k, stride, dilation, padding)
    cols = output_size(x.shape[2], k, stride, dilation, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # Columns first, then rows: the second concatenation copies long runs.
    x = jnp.concatenate([_taps(x, 2, j, cols, stride, dilation) for j in range(k)], -1)  # b h+ cols k*c
    x = jnp.concatenate([_taps(x, 1, i, rows, stride, dilation) for i in range(k)], -1)  # b rows cols k*k*c
    return conv_pointwise(x, kernel.reshape(1, 1, k * k * c, features))


def conv_depthwise(x, kernel, *, stride=1, dilation=1, padding=0, pallas=False):
    """k x k convolution of each channel by itself. kernel: (k, k, 1, c); pallas: by depthwise.py, on a GPU."""
    if pallas:
        return depthwise.depthwise(x, kernel[:, :, 0], stride, dilation, padding)
    if jax.default_backend() != "cpu":
        diagonal = kernel * jnp.eye(x.shape[-1], dtype=kernel.dtype)
        return conv_xla(x, diagonal, stride=stride, dilation=dilation, padding=padding)
    if kernel.shape[0] < _LARGE:
        return _depthwise(x, kernel[:, :, 0], stride, dilation, padding)
    return _depthwise_large(x, kernel[:, :, 0], stride, dilation, padding)


def conv_xla(x, kernel, *, stride=1, dilation=1, padding=0):
    """XLA's own convolution: over all channels, or grouped where the kernel sees fewer than x has."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def average(x, size: int):
    """Mean over size x size positions around each, size odd; what lies outside counts as zeros."""
    for axis in (1, 2):
        padded = _pad_axis(x, axis, size // 2, size // 2)
        x = sum(_taps(padded, axis, i, x.shape[axis], 1, 1) for i in range(size)) * (1 / size)
    return x


def _taps(x, axis, tap, size, stride, dilation):
    """The `size` entries along `axis` that a kernel's tap number `tap` meets."""
    start = tap * dilation
    return lax.slice_in_dim(x, start, start + (size - 1) * stride + 1, stride, axis)


def _pad_axis(x, axis, low, high, interior=0):
    """lax.pad along one axis; negative amounts cut."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, interior)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _shifted_sum(x, kernel, stride, dilation, low, rows, cols):
    """Depthwise correlation with `low` zeros above and left of x and as many as needed below and right.

    The k*k products are first summed over the kernel's rows, which are cheap slices of memory, then over its columns.
    """
    k = kernel.shape[0]
    needed = (rows - 1) * stride + dilation * (k - 1) + 1
    x = _pad_axis(x, 1, low, needed - low - x.shape[1])
    width = (cols - 1) * stride + 1
    total = 0.0
    for j in range(k):
        column = sum(_taps(x, 1, i, rows, stride, dilation) * kernel[i, j] for i in range(k))
        left = low - j * dilation
        total += _pad_axis(column, 2, left, width - left - x.shape[2])[:, :, ::stride]
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, stride, dilation, padding):
    rows, cols = (output_size(n, kernel.shape[0], stride, dilation, padding) for n in x.shape[1:3])
    return _shifted_sum(x, kernel, stride, dilation, padding, rows, cols)


def _depthwise_forward(x, kernel, stride, dilation, padding):
    return _depthwise(x, kernel, stride, dilation, padding), (x, kernel)


def _depthwise_backward(stride, dilation, padding, residuals, grad):
    x, kernel = residuals
    grad_x = grad
    if stride > 1:
        for axis in (1, 2):
            grad_x = _pad_axis(grad_x, axis, 0, 0, stride - 1)
    k = kernel.shape[0]
    kernel_grad = (
        _kernel_grad_by_rows(x, grad_x, k, dilation, padding)
        if k >= _LARGE
        else _depthwise_kernel_grad(x, grad, k, stride, dilation, padding)
    )
    low = dilation * (k - 1) - padding
    return _shifted_sum(grad_x, kernel[::-1, ::-1], 1, dilation, low, x.shape[1], x.shape[2]), kernel_grad


def _depthwise_kernel_grad(x, grad, k, stride, dilation, padding):
    """Sum over images and positions of x * grad for each tap: (k, k, c).

    A scan over groups of images adds into one map a tap, elementwise, and only the maps are reduced to numbers: XLA
    vectorizes such sums, and not the direct reduction, and a group's maps stay in cache.
    """
    rows, cols = grad.shape[1:3]
    taps = [(i, j) for i in range(k) for j in range(k)]

    def add_group(maps, group):
        x, grad = (a.astype(maps[0].dtype) for a in group)
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        seen = [_taps(_taps(x, 1, i, rows, stride, dilation), 2, j, cols, stride, dilation) for i, j in taps]
        return [sum((tap[n] * grad[n] for n in range(len(grad))), total) for total, tap in zip(maps, seen, strict=True)], None

    b = x.shape[0]
    size = max(n for n in range(1, _GROUP_SIZE + 1) if b % n == 0)
    groups = [a.reshape(b // size, size, *a.shape[1:]) for a in (x, grad)]
    start = jnp.zeros(grad.shape[1:], wide(grad.dtype))  # long sums: never in bfloat16
    maps, _ = lax.scan(add_group, [start] * len(taps), groups)
    return jnp.stack(maps).sum((1, 2)).reshape(k, k, -1).astype(x.dtype)


def _kernel_grad_by_rows(x, grad, k, dilation, padding):
    """The same for a large kernel, one of its rows after the other; grad: with zeros between its positions for a stride.

    Images one at a time: a row's maps then stay in cache. k * k maps at once would take four times as long to compile.
    """
    b, rows, cols, c = grad.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # Columns and channels as one axis: there may be fewer channels than a vector has places.
    images = x.reshape(b, x.shape[1], -1), grad.reshape(b, rows, -1)
    start = jnp.zeros((rows, cols * c), wide(grad.dtype))

    def grad_of_row(i):
        def add_image(maps, image):
            band, grad = lax.dynamic_slice_in_dim(image[0], i * dilation, rows, 0).astype(start.dtype), image[1]
            firsts = [j * dilation * c for j in range(k)]
            return [total + band[:, n : n + cols * c] * grad for total, n in zip(maps, firsts, strict=True)], None

        maps, _ = lax.scan(add_image, [start] * k, images)
        return jnp.stack(maps).reshape(k, rows, cols, c).sum((1, 2))

    return lax.map(grad_of_row, jnp.arange(k)).astype(x.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
# Written out, a large kernel is hundreds of operations: they are traced once for all layers of a shape.
_depthwise_large = jax.jit(_depthwise, static_argnums=(2, 3, 4))
