"""Convolution in the fastest exact formulation of the backend: two functions, two Linen modules.

On CPU, XLA's convolution loses to products of shifted inputs wherever there are groups, and where much of
what a kernel sees is padding; the figures beside the cases are milliseconds of CPU time of forward and
backward pass on two cores. Every other case, and every other backend, takes `lax.conv_general_dilated`.
All formulations multiply the same numbers, add them in another order, and can be differentiated any
number of times (in reverse: there is not always a forward mode).
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Share of the products that see input, not padding, below which one matrix product per tap is faster on CPU
# than XLA, which multiplies the zeros too. At 3x3 it took 29 against 44 ms for 2x16x16x512 -> 256 with
# dilation 6 (share 0.56), 63 against 89 ms for 2x16x16x512 with dilation 4 (0.69), 11 against 536 ms for
# 16x2x2x512 (0.44); but 166 against 181 ms for 1x65x65x256 with dilation 12 (0.77), and 239 against 176 ms
# with dilation 4 (0.92).
SEEN = 0.75
LARGE = 2**16  # numbers in a kernel, below which the products are not worth their longer compilation


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1, groups: int = 1) -> jax.Array:
    """2-D cross-correlation, padded on all sides with dilation * (k - 1) // 2 zeros.

    Args:
      x: f[B,H,W,C], in the kernel's dtype.
      kernel: f[k,k,C/groups,D] with odd k.
      stride: step between the places of the output.
      dilation: step between the taps of the kernel.
      groups: into how many parts the channels of input and output are cut, each seeing its own
        alone; a divisor of C and D, which it equals in a depthwise convolution.

    Returns:
      f[B, ceil(H / stride), ceil(W / stride), D], in the dtype of `x`.
    """
    if jax.default_backend() != "cpu":
        return _lax_conv(x, kernel, stride, dilation, groups)
    kernel = _reaching(kernel, x.shape[1:3], dilation)
    if 1 < groups == kernel.shape[3]:  # 14 against 120 ms for 3x3 on 4x32x32x256, depthwise
        inputs = kernel.shape[2]  # that each output sees
        parts = [_depthwise(x[..., i::inputs], kernel[:, :, i], stride, dilation) for i in range(inputs)]
        return sum(parts).astype(x.dtype)
    if groups > 1:  # 14 against 905 ms for 3x3 on 2x24x32x128 in 32 groups
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([conv(*part, stride, dilation) for part in parts], -1)
    if kernel.shape[:2] == (1, 1):  # 6 against 8 ms for 4x32x32x256 -> 64
        return _matmul(x[:, ::stride, ::stride], kernel[0, 0]).astype(x.dtype)
    if kernel.size > LARGE and _seen(x.shape[1:3], kernel.shape[:2], stride, dilation) < SEEN:
        return _valid_taps(x, kernel, stride, dilation)
    return _lax_conv(x, kernel, stride, dilation)


def _lax_conv(x, kernel, stride, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(dilation * (n // 2),) * 2 for n in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _accumulator(x):
    """Sums are at least float32, whatever is summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _reaching(kernel, image, dilation):
    """The kernel f[h,w,...], h and w odd, without the outer taps that see padding alone."""
    for axis, length in enumerate(image):
        middle = kernel.shape[axis] // 2
        reach = min(middle, (length - 1) // dilation)
        kernel = lax.slice_in_dim(kernel, middle - reach, middle + reach + 1, axis=axis)
    return kernel


@jax.custom_vjp
def _matmul(x, tap):
    """f[...,C] @ f[C,D], summed in float32. XLA's gradient of it spends most of its time on a transpose."""
    return jnp.matmul(x, tap, preferred_element_type=_accumulator(x))


def _matmul_backward(saved, g):
    x, tap = saved
    rows, columns = (a.reshape(-1, a.shape[-1]).astype(g.dtype) for a in (x, g))
    # XLA transposes the left operand of this product: let that be the narrower one.
    if rows.shape[1] <= columns.shape[1]:
        dtap = rows.T @ columns
    else:
        dtap = (columns.T @ rows).T
    return _matmul(g, tap.T.astype(g.dtype)).astype(x.dtype), dtap.astype(tap.dtype)


_matmul.defvjp(lambda x, tap: (_matmul(x, tap), (x, tap)), _matmul_backward)


def _pad(x, size, dilation):
    """f[B,H,W,C] with the zeros around it that a kernel of this size sees."""
    return jnp.pad(x, [(0, 0), *((dilation * (n // 2),) * 2 for n in size), (0, 0)])


def _weigh(x, kernel, stride, dilation):
    """f[B,H,W,C], f[h,w,C] -> f[B, ceil(H / stride), ceil(W / stride), C]: XLA makes one loop of it."""
    rows, columns = x.shape[1:3]
    x, total = _pad(x, kernel.shape[:2], dilation), 0
    for row, column in itertools.product(*map(range, kernel.shape[:2])):
        top, left = dilation * row, dilation * column
        total += x[:, top : top + rows : stride, left : left + columns : stride] * kernel[row, column]
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, dilation):
    """`_weigh` in float32, whose gradients are loops too."""
    return _weigh(x.astype(_accumulator(x)), kernel, stride, dilation)


def _depthwise_backward(stride, dilation, saved, g):
    x, kernel = saved
    if stride == 1:
        dx = _depthwise(g, kernel[::-1, ::-1], 1, dilation)
    else:
        dx = jax.vjp(lambda x: _weigh(x, kernel, stride, dilation), x.astype(g.dtype))[1](g)[0]
    height, width = kernel.shape[:2]
    padded = _pad(x.astype(g.dtype), (height, width), dilation)

    def gradient(tap):
        corner = (0, dilation * (tap // width), dilation * (tap % width), 0)
        shifted = lax.dynamic_slice(padded, corner, x.shape)[:, ::stride, ::stride]
        return jnp.sum(shifted * g, (0, 1, 2))

    # One tap after another: XLA would hold the shifts of all at a time. It counts the FLOPs of one.
    dkernel = lax.map(gradient, jnp.arange(height * width)).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_depthwise.defvjp(
    lambda x, kernel, stride, dilation: (_depthwise(x, kernel, stride, dilation), (x, kernel)),
    _depthwise_backward,
)


def _seen(image, size, stride, dilation):
    """Share of the products with the kernel's taps that see input, not padding."""
    share = 1.0
    for length, taps in zip(image, size, strict=True):
        outputs = -(-length // stride)
        beside = 0
        for tap in range(taps):
            before, _, after = _overlap(length, dilation * (tap - taps // 2), stride)
            beside += before + after
        share *= 1 - beside / (outputs * taps)
    return share


def _valid_taps(x, kernel, stride, dilation):
    """Sum over the taps of `shifted input @ tap`, on the part of each shift that has input."""
    size = kernel.shape[:2]
    height, width = (-(-n // stride) for n in x.shape[1:3])
    total = jnp.zeros((x.shape[0], height, width, kernel.shape[-1]), _accumulator(x))
    for row, column in itertools.product(*map(range, size)):
        above, rows, below = _overlap(x.shape[1], dilation * (row - size[0] // 2), stride)
        left, columns, right = _overlap(x.shape[2], dilation * (column - size[1] // 2), stride)
        patch = x[:, rows, columns]
        if patch.size:
            part = _matmul(patch, kernel[row, column])
            total += jnp.pad(part, ((0, 0), (above, below), (left, right), (0, 0)))
    return total.astype(x.dtype)


def _overlap(length: int, shift: int, stride: int) -> tuple[int, slice, int]:
    """Output places before, input slice at, and output places after those where the input exists.

    Output place i reads input place i * stride + shift.
    """
    outputs = -(-length // stride)
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (length - 1 - shift) // stride)
    if last < first:
        return outputs, slice(0, 0), 0
    start = first * stride + shift
    return first, slice(start, last * stride + shift + 1, stride), outputs - 1 - last


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """2-D transposed convolution whose output is `stride` times as large as the input.

    Each pixel is spread over k x k pixels, `stride` apart, which add up. It is torch's ConvTranspose2d with
    padding ceil((k - stride) / 2) and output_padding 1 where k - stride is odd, else 0: (k 2, stride 2) and
    (k 4, stride 4) without either, (k 4, stride 2) with padding 1, (k 3, stride 2) with 1 of both.

    Args:
      x: f[B,H,W,C], in the kernel's dtype.
      kernel: f[k,k,C,D] with k >= stride; torch's is [C,D,k,k].

    Returns:
      f[B, stride * H, stride * W, D], in the dtype of `x`.
    """
    if jax.default_backend() != "cpu":
        return _lax_transpose(x, kernel, stride)
    size, _, inputs, outputs = kernel.shape
    if size == stride:  # nothing overlaps: 52 against 74 ms for 1x24x24x256, k 4
        tiles = _matmul(x, jnp.moveaxis(kernel, 2, 0).reshape(inputs, -1)).astype(x.dtype)
        batch, height, width, _ = x.shape
        tiles = tiles.reshape(batch, height, width, stride, stride, outputs).swapaxes(2, 3)
        return tiles.reshape(batch, stride * height, stride * width, outputs)
    return _spread(x, kernel, stride)


def _borders(size, stride):
    """How many of the k - stride rows and columns that are too many are before and after the output."""
    before = -((stride - size) // 2)
    return before, size - stride - before


def _lax_transpose(x, kernel, stride):
    size = kernel.shape[0]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[tuple(size - 1 - border for border in _borders(size, stride))] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gather(x, kernel, stride):
    """The convolution that has this transpose: f[B,stride*H,stride*W,D], f[k,k,C,D] -> f[B,H,W,C]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[_borders(kernel.shape[0], stride)] * 2,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(x, kernel, stride):
    """`_lax_transpose`, whose kernel gradient is found as that of the convolution: 13 against 944 ms for
    2x12x16x256, k 4, stride 2."""
    return _lax_transpose(x, kernel, stride)


def _spread_backward(stride, saved, g):
    x, kernel = saved
    _, to_kernel = jax.vjp(lambda kernel: _gather(g, kernel, stride), kernel)
    return _gather(g, kernel, stride), *to_kernel(x)


_spread.defvjp(lambda x, kernel, stride: (_spread(x, kernel, stride), (x, kernel)), _spread_backward)


class Conv(nn.Module):
    """Square convolution with the padding of `conv`, He-normal weights, float32 parameters.

    Attributes:
      features: D, channels of the output.
      size: k, odd.
      groups: see `conv`.
      kernel_init: of the weights.
      dtype: of the computation and the output.
    """

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), D]."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation, self.groups)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class ConvTranspose(nn.Module):
    """`conv_transpose`, He-normal weights, float32 parameters.

    Attributes:
      features: D, channels of the output.
      size: k, at least `stride`.
      kernel_init: of the weights f[k,k,C,D]; by default, of the (k / stride)^2 * C inputs of an output.
      dtype: of the computation and the output.
    """

    features: int
    size: int = 2
    stride: int = 2
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,H,W,C] -> f[B, stride * H, stride * W, D]."""
        # Of the k * k taps that the initialiser counts, an output sees one in stride * stride.
        start = self.kernel_init or nn.initializers.variance_scaling(
            2.0 * self.stride**2, "fan_in", "truncated_normal"
        )
        kernel = self.param("kernel", start, (self.size, self.size, x.shape[-1], self.features))
        y = conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y
