"""Every formulation of the convolution against brute force in float64; derivatives against lax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import conv as conv_lib
from mtl_jax.models.conv import Conv, ConvTranspose, conv, conv_transpose

# Size, stride, dilation, image: odd and even sizes, taps that see nothing but padding.
CASES = [
    *((1, stride, 1, image) for stride in (1, 2) for image in ((7, 5), (6, 8))),
    *((3, stride, d, image) for stride in (1, 2) for d in (1, 2, 3, 6) for image in ((7, 5), (6, 8))),
    (3, 1, 4, (1, 3)),
    (5, 2, 1, (7, 5)),
    (5, 1, 2, (6, 8)),
]

# Inputs, outputs, groups.
FULL = (4, 6, 1)
DEPTHWISE = (4, 4, 4)
MERGING = (4, 2, 2)  # each output sees two inputs that no other one sees
GROUPED = (4, 6, 2)
SPREADING = (2, 6, 2)  # each input has three outputs


def arrays(size, image, channels=FULL, dtype=np.float32):
    inputs, outputs, groups = channels
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, inputs))
    kernel = rng.normal(size=(size, size, inputs // groups, outputs))
    return jnp.array(x, dtype), jnp.array(kernel, dtype)


def brute_force(x, kernel, stride, dilation, groups):
    """Place by place and tap by tap, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size = kernel.shape[0]
    pad = dilation * (size - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[1] - 2 * pad, stride)
    columns = range(0, x.shape[2] - 2 * pad, stride)
    inputs, outputs = kernel.shape[2], kernel.shape[3]
    seen = [o // (outputs // groups) * inputs + np.arange(inputs) for o in range(outputs)]  # by each output
    y = np.zeros((x.shape[0], len(rows), len(columns), outputs))
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        for a, b in itertools.product(range(size), repeat=2):
            pixel = x[:, r + a * dilation, c + b * dilation]
            y[:, i, j] += np.einsum("boi,io->bo", pixel[:, seen], kernel[a, b])
    return y


def reference(x, kernel, stride, dilation, groups):
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


@pytest.fixture(params=["taps", "lax", "other backend"])
def path(request, monkeypatch):
    """Every way through `conv` on this machine."""
    if request.param == "taps":
        monkeypatch.setattr(conv_lib, "SEEN", 2)
        monkeypatch.setattr(conv_lib, "LARGE", 0)
    elif request.param == "lax":
        monkeypatch.setattr(conv_lib, "SEEN", 0)
    else:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("channels", [FULL, DEPTHWISE, MERGING, GROUPED, SPREADING], ids=str)
def test_values_are_those_of_the_definition(path, channels):
    groups = channels[2]
    cases = CASES if channels in (FULL, DEPTHWISE) else CASES[::3]
    inputs = [arrays(size, image, channels) for size, _, _, image in cases]
    all_at_once = jax.jit(
        lambda inputs: [conv(*i, s, d, groups) for i, (_, s, d, _) in zip(inputs, cases, strict=True)]
    )
    for y, (x, kernel), case in zip(all_at_once(inputs), inputs, cases, strict=True):
        expected = brute_force(x, kernel, case[1], case[2], groups)
        np.testing.assert_allclose(y, expected, atol=2e-5, err_msg=str(case))


@pytest.mark.parametrize(
    "size,stride,dilation,channels",
    [
        (1, 2, 1, FULL),
        (3, 1, 1, FULL),
        (3, 2, 1, FULL),
        (3, 2, 3, FULL),
        (3, 2, 2, DEPTHWISE),
        (3, 1, 2, MERGING),
        (3, 2, 1, GROUPED),
        (1, 1, 1, SPREADING),
    ],
)
def test_first_and_second_derivatives_are_those_of_lax(path, size, stride, dilation, channels):
    x, kernel = arrays(size, (7, 5), channels)

    def gradients(function):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, stride, dilation, channels[2])))

        def norm(x, kernel):  # of the gradient: what double backpropagation descends
            return sum(jnp.sum(jnp.tanh(g) ** 2) for g in jax.grad(loss, (0, 1))(x, kernel))

        return jax.jit(lambda x, k: (jax.grad(loss, (0, 1))(x, k), jax.grad(norm, (0, 1))(x, k)))(x, kernel)

    ours, theirs = gradients(conv), gradients(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, theirs)


@pytest.mark.parametrize(
    "size,dilation,channels",
    [
        (1, 1, (32, 6, 1)),
        (3, 1, (32, 6, 1)),
        (3, 2, (32, 6, 1)),
        (3, 1, (32, 32, 32)),
        (3, 1, (32, 2, 2)),
        (3, 1, (32, 4, 2)),
    ],
)
def test_bfloat16_sums_in_float32(monkeypatch, size, dilation, channels):
    """The result is off by its own rounding alone (2**-9 relative), not by that of many partial sums."""
    monkeypatch.setattr(conv_lib, "LARGE", 0)
    groups = channels[2]
    x, kernel = arrays(size, (6, 8), channels, jnp.bfloat16)
    y = jax.jit(conv, static_argnums=(2, 3, 4))(x, kernel, 1, dilation, groups)
    assert y.dtype == jnp.bfloat16
    expected = brute_force(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, dilation, groups)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= np.abs(expected) / 256 + 1e-4)
    grad = jax.grad(lambda x, k: jnp.sum(conv(x, k, 1, dilation, groups) ** 2), (0, 1))
    grads = jax.eval_shape(grad, x, kernel)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("channels", [(16, 16, 1), (16, 16, 16)])
def test_taps_that_see_padding_alone_cost_nothing(channels):
    def flops(size, dilation):
        x, kernel = arrays(size, (4, 4), channels)
        lowered = jax.jit(lambda x, k: conv(x, k, 1, dilation, channels[2])).lower(x, kernel)
        return lowered.cost_analysis()["flops"]

    assert flops(3, 6) < 1.1 * flops(1, 1)


def test_groups_divide_the_arithmetic(path):

    def flops(channels):
        x, kernel = arrays(3, (8, 8), channels)
        lowered = jax.jit(lambda x, k: conv(x, k, groups=channels[2])).lower(x, kernel)
        return lowered.cost_analysis()["flops"]

    full = flops((32, 16, 1))
    np.testing.assert_allclose(flops((32, 16, 4)), full / 4, rtol=0.1)
    np.testing.assert_allclose(flops((32, 16, 16)), full / 16, rtol=0.2)  # some of the padding too


def test_maps_of_few_pixels_cost_what_they_see(monkeypatch):
    monkeypatch.setattr(conv_lib, "LARGE", 0)

    def flops(image):
        x, kernel = arrays(3, image, (16, 16, 1))
        return jax.jit(conv).lower(x, kernel).cost_analysis()["flops"]

    np.testing.assert_allclose(flops((1, 1)), 2 * 16 * 16 * 2, rtol=0.1)
    np.testing.assert_allclose(flops((2, 2)), 16 * 2 * 16 * 16 * 2, rtol=0.1)  # of 36 pairs of pixel and tap


# Size, stride; torch's padding and output_padding.
TRANSPOSED = [
    (2, 2, 0, 0),
    (4, 4, 0, 0),
    (3, 2, 1, 1),
    (4, 2, 1, 0),
    (5, 2, 2, 1),
    (3, 1, 1, 0),
    (7, 4, 2, 1),
]


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@pytest.mark.parametrize("size,stride,padding,output_padding", TRANSPOSED)
def test_transposed_is_that_of_torch(backend, size, stride, padding, output_padding):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 5, 6)).astype(np.float32)
    layer = torch.nn.ConvTranspose2d(5, 6, size, stride, padding, output_padding, bias=False)
    layer.weight.data = torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy())
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = layer(image)
    expected.sin().sum().backward()

    y = jax.jit(conv_transpose, static_argnums=2)(x, kernel, stride)
    assert y.shape == (2, 4 * stride, 3 * stride, 6)
    np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=2e-5)
    gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv_transpose(x, k, stride))), (0, 1))
    dx, dkernel = jax.jit(gradient)(x, kernel)
    np.testing.assert_allclose(dx, image.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(dkernel, layer.weight.grad.numpy().transpose(2, 3, 0, 1), atol=1e-4)


@pytest.mark.parametrize("size,stride", [(2, 2), (3, 2), (4, 2)])
def test_transposed_has_second_derivatives(monkeypatch, size, stride):
    x, kernel = arrays(size, (4, 3))

    def second(x, kernel):
        def norm(x, kernel):
            gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv_transpose(x, k, stride))), (0, 1))(
                x, kernel
            )
            return sum(jnp.sum(jnp.tanh(g) ** 2) for g in gradients)

        return jax.jit(jax.grad(norm, (0, 1)))(x, kernel)

    ours = second(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # derivatives are lax's own
    for mine, other in zip(ours, second(x, kernel), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size,stride", [(2, 2), (3, 2)])
def test_transposed_in_bfloat16(size, stride):
    x, kernel = arrays(size, (4, 3), (32, 6, 1), jnp.bfloat16)
    y = jax.jit(conv_transpose, static_argnums=2)(x, kernel, stride)
    assert y.dtype == jnp.bfloat16
    exact = conv_transpose(x.astype(jnp.float32), kernel.astype(jnp.float32), stride)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-7, atol=1e-2)
    grads = jax.grad(lambda x, k: jnp.sum(conv_transpose(x, k, stride) ** 2), (0, 1))(x, kernel)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("size,stride", [(2, 2), (4, 2)])
def test_transposed_module_keeps_the_variance(size, stride):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 64))
    module = ConvTranspose(64, size, stride, use_bias=True, dtype=jnp.bfloat16)
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.jit(module.apply)({"params": params}, jnp.maximum(x, 0))
    assert y.dtype == jnp.bfloat16 and y.shape == (2, 8 * stride, 8 * stride, 64)
    np.testing.assert_allclose(np.mean(np.square(y[:, 2:-2, 2:-2], dtype=np.float32)), 1, rtol=0.15)
    shifted = {**params, "bias": jnp.full(64, 3.0)}
    difference = module.apply({"params": shifted}, x) - module.apply({"params": params}, x)
    np.testing.assert_allclose(difference.astype(jnp.float32), 3.0, atol=0.05)


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


def test_a_module_with_groups_starts_he_normal():
    """Each output is a sum over the inputs of its own group alone."""
    params = jax.jit(Conv(256, groups=32).init)(jax.random.key(0), jnp.ones((1, 3, 3, 64)))["params"]
    assert params["kernel"].shape == (3, 3, 2, 256)
    np.testing.assert_allclose(np.std(params["kernel"]), np.sqrt(2 / (9 * 2)), rtol=0.03)
