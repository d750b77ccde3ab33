"""Convolution in the fastest exact formulation of the backend: one function, one Linen module.

On CPU, XLA's convolution loses to products of shifted inputs in four cases, and with groups to a
convolution for each group; beside them stand the milliseconds of forward and backward pass on two
cores. Every other case, and every other backend, takes `lax.conv_general_dilated`. All formulations
multiply the same numbers, add them in another order, and can be differentiated any number of times
(in reverse: on CPU there is no forward mode).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Elements of one input image (height * width * channels) from which XLA's kernel gradient on CPU
# falls behind one matrix product per tap: 3x3 at batch 4 takes 2.7 against 4.8 ms for 16x16x128,
# 156 against 78 ms for 32x32x256. With few channels it does not: 6 against 43 ms for 96x128x16 at
# batch 8, 14 against 34 ms for 64x64x64.
WIDE, DEEP = 100_000, 128


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
    if 1 < groups == kernel.shape[3]:  # 29 against 203 ms for 3x3 on 32x32x256, depthwise
        return _valid_taps(x, kernel, stride, dilation, _weigh)
    if groups > 1:  # 37 against 1062 ms for 3x3 on 64x64x76 -> 64 in 4 groups
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([conv(*part, stride, dilation) for part in parts], -1)
    if kernel.shape[0] == 1:  # 4.4 against 5.6 ms for 32x32x256 -> 64
        return _matmul(x[:, ::stride, ::stride], kernel[0, 0]).astype(x.dtype)
    if dilation > 1:  # 3.5 against 18 ms for 6x8x1024 -> 64 with dilation 6
        return _valid_taps(x, kernel, stride, dilation, _matmul)
    if x[0].size > WIDE and x.shape[3] >= DEEP:
        return _wide_conv(x, kernel, stride)
    return _lax_conv(x, kernel, stride)


def _lax_conv(x, kernel, stride, dilation=1, groups=1):
    pad = dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(pad, pad), (pad, pad)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _accumulator(x):
    """Sums are at least float32, whatever is summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


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


def _weigh(x, tap):
    """f[...,n*D], f[n,D] -> f[...,D]: each output is the weighted sum of the n inputs of its group."""
    inputs, x = tap.shape[0], x.astype(_accumulator(x))
    return sum(x[..., i::inputs] * tap[i] for i in range(inputs))


def _valid_taps(x, kernel, stride, dilation, product):
    """Sum over the taps of `product(shifted input, tap)`, on the part of each shift that has input.

    Large dilations on small maps leave little or nothing of most taps.
    """
    size = kernel.shape[0]
    height, width = (-(-n // stride) for n in x.shape[1:3])
    total = jnp.zeros((x.shape[0], height, width, kernel.shape[-1]), _accumulator(x))
    for row in range(size):
        above, rows, below = _overlap(x.shape[1], dilation * (row - size // 2), stride)
        for column in range(size):
            left, columns, right = _overlap(x.shape[2], dilation * (column - size // 2), stride)
            patch = x[:, rows, columns]
            if patch.size:
                part = product(patch, kernel[row, column])
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
        return 0, slice(0, 0), 0
    start = first * stride + shift
    return first, slice(start, last * stride + shift + 1, stride), outputs - 1 - last


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide_conv(x, kernel, stride):
    """`_lax_conv` whose kernel gradient is one matrix product per tap."""
    return _lax_conv(x, kernel, stride)


def _wide_backward(stride, saved, g):
    x, kernel = saved
    _, to_x = jax.vjp(lambda x: _lax_conv(x, kernel, stride), x)
    _, to_kernel = jax.vjp(lambda kernel: _valid_taps(x, kernel, stride, 1, _matmul), kernel)
    return *to_x(g), *to_kernel(g)


_wide_conv.defvjp(lambda x, kernel, stride: (_lax_conv(x, kernel, stride), (x, kernel)), _wide_backward)


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
