"""The semantic branch against the paper's description in torch, and the decoder against its two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost
from mtl_jax.models.decoders.fpn import FPN
from mtl_jax.models.decoders.semantic_fpn import SemanticBranch, SemanticFPNDecoder
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.preprocessing import PLAIN
from mtl_jax.weights.source import TORCH_NORM, Source, fill, plain, torch_conv
from tests.models.decoders.test_fpn import maps_of, run, shapes_of
from tests.weights import conftest
from tests.weights.reference import assert_close, randomise, tensors_of

torch = conftest.torch

HRNET = (18, 36, 72, 144)


def branch_in_torch(torch, channels, features, norm):
    """Figure 3 and section 3.1 of the paper; 1/32 takes three steps, 1/16 two, 1/8 one, 1/4 a convolution."""

    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for level, steps in zip((2, 3, 4, 5), (1, 1, 2, 3), strict=True):
                for step in range(steps):
                    inputs = features if step else channels
                    conv = torch.nn.Conv2d(inputs, features, 3, padding=1, bias=False)
                    self.add_module(f"conv{level}{step + 1}", conv)
                    group = torch.nn.GroupNorm(32, features)
                    batch = torch.nn.BatchNorm2d(features)
                    self.add_module(f"norm{level}{step + 1}", group if norm == "group" else batch)

        def step(self, x, name, size):
            x = getattr(self, f"norm{name}")(getattr(self, f"conv{name}")(x)).relu()
            return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)

        def forward(self, p2, p3, p4, p5):
            s2, s3, s4 = (p.shape[2:] for p in (p2, p3, p4))
            fifth = self.step(self.step(self.step(p5, "51", s4), "52", s3), "53", s2)
            fourth = self.step(self.step(p4, "41", s3), "42", s2)
            return self.step(p2, "21", s2) + self.step(p3, "31", s2) + fourth + fifth

    return randomise(Branch())


def branch_names(path, branch):
    unit, kind, leaf = path.split("/")
    name = unit.removeprefix("level").replace("_conv", "")
    return torch_conv(f"conv{name}.weight") if kind == "conv" else plain(f"norm{name}.{TORCH_NORM[leaf]}")


@pytest.mark.parametrize("norm,size", [("group", (64, 128)), ("batch", (65, 97))])
def test_the_branch_is_the_papers(torch, norm, size):
    theirs = branch_in_torch(torch, 16, 64, norm)
    ours = SemanticBranch(64, norm)
    levels = maps_of(size, 4 * (16,))
    source = Source(branch_names, PLAIN, unused=(r".*\.num_batches_tracked",))
    variables = fill(shapes_of(ours, levels), tensors_of(theirs), source, ours, "memory")
    actual = run(ours, variables, levels)
    assert_close(actual, theirs(*(torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in levels)))


def test_parameters_beside_an_hrnet():
    """Kirillov et al.'s 128 channels of a pyramid of 256: seven convolutions, seven norms."""
    levels = maps_of((64, 64), 4 * (256,))
    branch = 9 * 128 * (4 * 256 + 3 * 128) + 7 * 2 * 128
    assert cost.parameters(shapes_of(SemanticBranch(), levels)["params"]) == branch == 1_623_808
    maps = maps_of((64, 64), HRNET)
    pyramid = cost.parameters(shapes_of(FPN(), maps)["params"])
    assert pyramid == 2_430_464
    assert cost.parameters(shapes_of(SemanticFPNDecoder(), maps)["params"]) == pyramid + branch


def test_the_decoder_is_a_pyramid_and_the_branch_on_it(random_variables):
    maps = maps_of((65, 97))
    decoder = SemanticFPNDecoder(12, 8)
    variables = random_variables(decoder, maps, False)
    inner = {c: {p: v for p, v in variables[c].items()} for c in variables}
    levels = run(FPN(8), {"params": inner["params"]["fpn"]}, maps)
    expected = run(SemanticBranch(12), {c: inner[c]["branch"] for c in inner}, levels)
    actual = run(decoder, variables, maps)
    assert actual.shape == (1, 17, 25, 12)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_tasks_share_the_pyramid_and_own_their_modules():
    maps = maps_of((64, 64))
    decoder = SemanticFPNDecoder(32, 8, modulation=Modulation("task", adapters=True, norm=True))

    def both(key):
        return decoder.init(key, maps, False, "depth")

    params = jax.eval_shape(both, jax.random.key(0))["params"]
    assert decoder.modulation.per_task and "@" not in "".join(params["fpn"])
    unit = params["branch"]["level3_conv1"]
    assert set(unit) == {"conv", "adapter@depth", "norm@depth", "se@depth"}


def test_training_moves_every_parameter_and_statistic(random_variables):
    maps = maps_of((33, 65))
    decoder = SemanticFPNDecoder(12, 8)
    variables = random_variables(decoder, maps, False)

    @jax.jit
    def step(params):
        def loss(params):
            y, updates = decoder.apply({**variables, "params": params}, maps, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updates

        return jax.grad(loss, has_aux=True)(params)

    gradients, updates = step(variables["params"])
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_bfloat16_is_close(random_variables):
    maps = maps_of((33, 64))
    decoder = SemanticFPNDecoder(32, 8, norm="group")
    variables = random_variables(decoder, maps, False)
    bf16 = decoder.clone(dtype=jnp.bfloat16)
    exact, rounded = (run(module, variables, maps) for module in (decoder, bf16))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(np.float32), exact, atol=0.1 * np.abs(exact).max())


def test_the_last_convolution_is_there():
    decoder = SemanticFPNDecoder(12, 8)
    leaf = shapes_of(decoder, maps_of((64, 64)))["params"]
    for name in decoder.last:
        leaf = leaf[name]
    assert leaf["kernel"].shape == (3, 3, 8, 12)
    assert decoder.last == ("branch", *SemanticBranch().last)
