"""HRNets with the weights of published networks, against timm's maps."""

import functools
import types

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import conv
from mtl_jax.models.backbones import hrnet
from mtl_jax.models.backbones.hrnet import Depth, HRNet
from mtl_jax.weights.hrnet import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, filled, photograph, randomise, shapes_of, tensors_of

WIDTH, DEPTH = 6, Depth(bottlenecks=2, inner=8, modules=(1, 2, 1), blocks=2)


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """Not the products of shifted maps, which run faster and compile slower."""
    monkeypatch.setattr(conv, "conv", conv._lax_conv)
    monkeypatch.setitem(hrnet.DEPTHS, "small_v1", DEPTH)


ours_of = functools.partial(HRNet, WIDTH, "small_v1")


def theirs_of(timm, name="hrnet_w18_small"):
    """timm's network, of the same sizes."""
    stages = {"stage1": {"num_channels": (DEPTH.inner,), "num_blocks": (DEPTH.bottlenecks,)}}
    stages["stage1"]["block_type"] = "BOTTLENECK"
    for stage, modules in enumerate(DEPTH.modules, 2):
        stages[f"stage{stage}"] = {
            "num_modules": modules,
            "num_branches": stage,
            "block_type": "BASIC",
            "num_blocks": (DEPTH.blocks,) * stage,
            "num_channels": tuple(WIDTH * 2**branch for branch in range(stage)),
            "fuse_method": "SUM",
        }
    return randomise(timm.create_model(name, **stages))


def bilinear(torch, network):
    """The network with the upsampling of those for segmentation (their lib/models/seg_hrnet.py)."""

    def forward(module, maps):
        maps = [branch(x) for branch, x in zip(module.branches, maps, strict=True)]
        return [
            torch.relu(sum(moved(layers[source], maps, source, target) for source in range(len(maps))))
            for target, layers in enumerate(module.fuse_layers)
        ]

    def moved(layer, maps, source, target):
        if source <= target:
            return layer(maps[source])
        size = maps[target].shape[-2:]
        return torch.nn.functional.interpolate(layer[:2](maps[source]), size=size, mode="bilinear")

    for module in network.modules():
        if hasattr(module, "fuse_layers"):
            module.forward = types.MethodType(forward, module)
    return network


def maps_of(torch, network, image):
    with torch.no_grad():
        x = torch.from_numpy(image.transpose(0, 3, 1, 2))
        x = network.act1(network.bn1(network.conv1(x)))
        return network.stages(network.act2(network.bn2(network.conv2(x))))


def run(encoder, variables, image):
    return jax.jit(lambda v, x: encoder.apply(v, x, False))(variables, image)


@pytest.mark.parametrize("name,source", [("hrnet_w18_small", "timm"), ("hrnet_w18_ssld", "timm_ssld")])
def test_a_classifier_gives_the_same_maps_and_logits(torch, timm, name, source):
    ours, theirs, image = ours_of(upsampling="nearest", top=True), theirs_of(timm, name), photograph()
    head = {"kernel": np.zeros((2048, 1000)), "bias": np.zeros(1000)}
    tree = {**shapes_of(ours), "head": {"head": head}}
    variables = fill(tree, tensors_of(theirs), SOURCES[source], ours, "memory")
    head = variables.pop("head")["head"]
    *maps, pooled = run(ours, variables, image)
    for ours_map, theirs_map in zip(maps, maps_of(torch, theirs, image), strict=True):
        assert_close(ours_map, theirs_map)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    assert_close(pooled[:, 0, 0] @ head["kernel"] + head["bias"], logits)


def test_a_network_for_segmentation_gives_the_same_maps(torch, timm):
    theirs, image = bilinear(torch, theirs_of(timm)), photograph((65, 40))
    released = {f"model.{name}": x for name, x in tensors_of(theirs).items() if not is_top(name)}
    released["model.last_layer.3.bias"] = released["loss.criterion.weight"] = np.zeros(19, np.float32)
    tensors = SOURCES["official"].tensors({"state_dict": released}, "memory")
    ours = ours_of()
    variables = fill(shapes_of(ours), tensors, SOURCES["official"], ours, "memory")
    for ours_map, theirs_map in zip(run(ours, variables, image), maps_of(torch, theirs, image), strict=True):
        assert_close(ours_map, theirs_map)


def is_top(name):
    return name.startswith(("incre_modules", "downsamp_modules", "final_layer", "classifier"))


def test_w18_gives_the_same_maps(torch, timm):
    ours, theirs, image = HRNet(upsampling="nearest"), randomise(timm.create_model("hrnet_w18")), photograph()
    variables = filled(ours, theirs, SOURCES["timm"])
    for ours_map, theirs_map in zip(run(ours, variables, image), maps_of(torch, theirs, image), strict=True):
        assert_close(ours_map, theirs_map)


def test_every_tensor_of_a_release_is_taken(torch, timm):
    with torch.device("meta"):
        theirs = timm.create_model("hrnet_w18_small_v2")
    tensors = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in theirs.state_dict().items()}
    ours = HRNet(depth="small_v2", top=True)
    fill(shapes_of(ours), tensors, SOURCES["official"], ours, "memory")


def test_what_is_missing_is_named(torch, timm):
    tensors = tensors_of(theirs_of(timm))
    del tensors["stage3.1.fuse_layers.2.0.1.0.weight"]
    tensors["stage5.0.weight"] = np.zeros(1)
    ours = ours_of()
    with pytest.raises(UserError) as error:
        fill(shapes_of(ours), tensors, SOURCES["official"], ours, "a.pth")
    assert str(error.value) == (
        "a.pth does not fit this network: it lacks stage3.1.fuse_layers.2.0.1.0.weight for"
        " params/stage3_module2/down1to3_2/conv/kernel; has besides stage5.0.weight"
    )
