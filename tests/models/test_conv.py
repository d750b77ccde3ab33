"""Every formulation of the convolution against brute force in float64; derivatives against lax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import conv as conv_lib
from mtl_jax.models.conv import Conv, conv

# Size, stride, dilation, image: odd and even sizes, taps that see nothing but padding.
CASES = [
    *((1, stride, 1, image) for stride in (1, 2) for image in ((7, 5), (6, 8))),
    *((3, stride, d, image) for stride in (1, 2) for d in (1, 2, 3, 6) for image in ((7, 5), (6, 8))),
    (3, 1, 4, (1, 3)),
    (5, 2, 1, (7, 5)),
    (5, 1, 2, (6, 8)),
]


def arrays(size, image, depthwise=False, channels=4, outputs=6, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, channels))
    shape = (size, size, 1, channels) if depthwise else (size, size, channels, outputs)
    return jnp.array(x, dtype), jnp.array(rng.normal(size=shape), dtype)


def brute_force(x, kernel, stride, dilation, depthwise):
    """Place by place and tap by tap, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size = kernel.shape[0]
    pad = dilation * (size - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[1] - 2 * pad, stride)
    columns = range(0, x.shape[2] - 2 * pad, stride)
    y = np.zeros((x.shape[0], len(rows), len(columns), kernel.shape[3]))
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        for a, b in itertools.product(range(size), repeat=2):
            pixel = x[:, r + a * dilation, c + b * dilation]
            y[:, i, j] += pixel * kernel[a, b, 0] if depthwise else pixel @ kernel[a, b]
    return y


def reference(x, kernel, stride, dilation, depthwise):
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
        precision="highest",
    )


@pytest.fixture(params=["narrow", "wide", "other backend"])
def path(request, monkeypatch):
    """Every way through `conv` on this machine."""
    if request.param == "wide":
        monkeypatch.setattr(conv_lib, "WIDE", 0)
    if request.param == "other backend":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("depthwise", [False, True])
def test_values_are_those_of_the_definition(path, depthwise):
    inputs = [arrays(size, image, depthwise) for size, _, _, image in CASES]
    all_at_once = jax.jit(
        lambda inputs: [conv(*i, s, d, depthwise) for i, (_, s, d, _) in zip(inputs, CASES, strict=True)]
    )
    for y, (x, kernel), case in zip(all_at_once(inputs), inputs, CASES, strict=True):
        expected = brute_force(x, kernel, case[1], case[2], depthwise)
        np.testing.assert_allclose(y, expected, atol=2e-5, err_msg=str(case))


@pytest.mark.parametrize(
    "size,stride,dilation,depthwise",
    [(1, 2, 1, False), (3, 1, 1, False), (3, 2, 1, False), (3, 2, 3, False), (3, 2, 2, True)],
)
def test_first_and_second_derivatives_are_those_of_lax(path, size, stride, dilation, depthwise):
    x, kernel = arrays(size, (7, 5), depthwise)

    def gradients(function):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, stride, dilation, depthwise)))

        def norm(x, kernel):  # of the gradient: what double backpropagation descends
            return sum(jnp.sum(jnp.tanh(g) ** 2) for g in jax.grad(loss, (0, 1))(x, kernel))

        return jax.jit(lambda x, k: (jax.grad(loss, (0, 1))(x, k), jax.grad(norm, (0, 1))(x, k)))(x, kernel)

    ours, theirs = gradients(conv), gradients(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, theirs)


@pytest.mark.parametrize(
    "size,dilation,depthwise", [(1, 1, False), (3, 1, False), (3, 2, False), (3, 1, True)]
)
def test_bfloat16_sums_in_float32(size, dilation, depthwise):
    """The result is off by its own rounding alone (2**-9 relative), not by that of many partial sums."""
    x, kernel = arrays(size, (6, 8), depthwise, channels=32, dtype=jnp.bfloat16)
    y = jax.jit(conv, static_argnums=(2, 3, 4))(x, kernel, 1, dilation, depthwise)
    assert y.dtype == jnp.bfloat16
    expected = brute_force(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, dilation, depthwise)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= np.abs(expected) / 256 + 1e-4)
    grad = jax.grad(lambda x, k: jnp.sum(conv(x, k, 1, dilation, depthwise) ** 2), (0, 1))
    grads = jax.eval_shape(grad, x, kernel)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]


def test_taps_that_see_padding_alone_cost_nothing():
    def flops(size, dilation):
        x, kernel = arrays(size, (4, 4), channels=16, outputs=16)
        return jax.jit(lambda x, k: conv(x, k, 1, dilation)).lower(x, kernel).cost_analysis()["flops"]

    assert flops(3, 6) < 1.1 * flops(1, 1)


def test_module_starts_he_normal_in_float32():
    x = jnp.ones((1, 3, 3, 256))
    module = Conv(64, use_bias=True, dtype=jnp.bfloat16)
    params = module.init(jax.random.key(0), x)["params"]
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(np.std(params["kernel"]), np.sqrt(2 / (9 * 256)), rtol=0.02)
    assert not params["bias"].any()
    shifted = {**params, "bias": jnp.full(64, 3.0)}
    difference = module.apply({"params": shifted}, x) - module.apply({"params": params}, x)
    np.testing.assert_allclose(difference.astype(jnp.float32), 3.0, atol=0.05)
