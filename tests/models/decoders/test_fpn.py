"""Feature pyramids against torchvision's with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost
from mtl_jax.models.decoders.fpn import FPN
from mtl_jax.models.preprocessing import PLAIN
from mtl_jax.weights.source import Source, fill, plain, torch_conv
from tests.weights import conftest
from tests.weights.reference import assert_close, randomise, tensors_of

torch, torchvision = conftest.torch, conftest.torchvision

CHANNELS = (6, 10, 12, 16)


def maps_of(size, channels=CHANNELS, strides=(4, 8, 16, 32)):
    """Noise at the strides of an image of that size."""
    rng = np.random.default_rng(0)
    shapes = [(1, *(-(-n // stride) for n in size)) for stride in strides]
    return [rng.normal(size=(*s, c)).astype(np.float32) for s, c in zip(shapes, channels, strict=True)]


def shapes_of(module, maps):
    return dict(jax.eval_shape(lambda key: module.init(key, maps, False), jax.random.key(0)))


def run(module, variables, maps):
    return jax.jit(lambda v, m: module.apply(v, m, False))(variables, maps)


def torchvision_names(path, fpn):
    """Its pyramid numbers the maps that it is given."""
    name, leaf = path.split("/")
    kind, level = name[:-1], int(name[-1])
    theirs = {
        "lateral": f"inner_blocks.{level - fpn.first_level}.0",
        "output": f"layer_blocks.{level - fpn.first_level}.0",
        "coarser": f"extra_blocks.p{level}",
    }[kind]
    return torch_conv(f"{theirs}.weight") if leaf == "kernel" else plain(f"{theirs}.bias")


# Its level 6 is made of C5 where the numbers of channels differ, of P5 otherwise. A dilated encoder has two
# maps of one stride.
@pytest.mark.parametrize(
    "coarser,first_level,last_level,size,strides",
    [
        ("pool", 2, 6, (65, 97), (4, 8, 16, 32)),
        ("c5", 2, 7, (65, 97), (4, 8, 16, 32)),
        ("p5", 3, 7, (96, 64), (4, 8, 16, 32)),
        ("p5", 2, 5, (65, 97), (4, 8, 16, 16)),
    ],
)
def test_torchvisions_pyramid_gives_the_same_levels(
    torch, torchvision, coarser, first_level, last_level, size, strides
):
    ops = torchvision.ops.feature_pyramid_network
    features = CHANNELS[-1] if coarser == "p5" else 8
    extra = {5: None, 6: ops.LastLevelMaxPool(), 7: ops.LastLevelP6P7(CHANNELS[-1], features)}[last_level]
    theirs = randomise(ops.FeaturePyramidNetwork(CHANNELS[first_level - 2 :], features, extra))
    ours = FPN(features, first_level, last_level, coarser)
    maps = maps_of(size, strides=strides)
    source = Source(torchvision_names, PLAIN)
    variables = fill(shapes_of(ours, maps), tensors_of(theirs), source, ours, "memory")
    inputs = enumerate(torch.from_numpy(m.transpose(0, 3, 1, 2)) for m in maps[first_level - 2 :])
    expected = list(theirs({str(index): x for index, x in inputs}).values())
    levels = run(ours, variables, maps)
    assert len(levels) == len(expected) == last_level - first_level + 1
    for level, x in zip(levels, expected, strict=True):
        assert_close(level, x)


def test_parameters_beside_a_resnet():
    """Counted by hand: 1x1 and 3x3 convolutions with biases, and MuST's norms."""
    resnet = (256, 512, 1024, 2048)
    laterals = [c * 256 + 256 for c in resnet]
    output = 9 * 256 * 256 + 256

    def count(**options):
        maps = maps_of((64, 64), resnet)
        return cost.parameters(shapes_of(FPN(**options), maps)["params"])

    assert count() == count(last_level=6, coarser="pool") == sum(laterals) + 4 * output == 3_344_384
    assert count(first_level=3, last_level=7) == sum(laterals[1:]) + 5 * output
    from_c5 = 9 * 2048 * 256 + 256
    assert count(first_level=3, last_level=7, coarser="c5") == sum(laterals[1:]) + 4 * output + from_c5
    must = {"first_level": 3, "last_level": 7, "norm": "batch"}
    assert count(**must) == sum(laterals[1:]) + 5 * output + 5 * 2 * 256 == 3_871_232


def test_norms_come_last(random_variables):
    """Every level is normalised, and what coarser levels are made of is not."""
    maps = maps_of((33, 64))
    bare, normed = (FPN(8, 3, 7, norm=norm) for norm in (None, "batch"))
    variables = random_variables(normed, maps, False)
    inner = {"params": {k: v for k, v in variables["params"].items() if not k.startswith("norm")}}
    levels = run(bare, inner, maps)
    for level, (x, y) in enumerate(zip(levels, run(normed, variables, maps), strict=True), 3):
        affine, moments = (variables[c][f"norm{level}"]["BatchNorm_0"] for c in ("params", "batch_stats"))
        x = (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * affine["scale"] + affine["bias"]
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4)
        assert np.any(y < 0)
    _, updates = jax.jit(lambda v: normed.apply(v, maps, True, mutable=["batch_stats"]))(variables)
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_gradients_reach_every_map(random_variables):
    maps = maps_of((33, 65))
    fpn = FPN(8, 2, 7)
    variables = random_variables(fpn, maps, False)

    def total(variables, maps):
        return sum(jnp.sum(jnp.sin(x)) for x in fpn.apply(variables, maps, False))

    for gradient in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(variables, maps)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_bfloat16_is_close(random_variables):
    maps = maps_of((33, 64))
    fpn = FPN(8, 2, 7, norm="group")
    variables = random_variables(fpn, maps, False)
    exact, rounded = (run(fpn.clone(dtype=dtype), variables, maps) for dtype in (jnp.float32, jnp.bfloat16))
    for x, y in zip(exact, rounded, strict=True):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(np.float32), x, atol=0.1 * np.abs(x).max())


def test_the_last_convolution_is_there():
    fpn = FPN(8, 3, 7)
    assert fpn.last == ("output3",) and not fpn.modulation.per_task
    assert shapes_of(fpn, maps_of((64, 64)))["params"]["output3"]["kernel"].shape == (3, 3, 8, 8)
