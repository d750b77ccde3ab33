"""MiDaS against its release's structure in torch, whose tensors are named as in the released files."""

import jax
import jax.numpy as jnp
import pytest

from mtl_jax.models import midas
from mtl_jax.models.backbones import resnet
from mtl_jax.models.midas import MiDaS
from mtl_jax.weights.midas import SOURCES
from tests.weights.reference import assert_close, filled, photograph, randomise


def release(torch, stages, channels, features, light):
    """The network on an encoder's four stages.

    Args:
      channels: of their maps.
      features: of the decoder's levels, both fine to coarse.
      light: as the small network.
    """
    nn, interpolate = torch.nn, torch.nn.functional.interpolate

    class Unit(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x):
            inner = x.relu() if light else x.relu_()  # in place: x itself changes
            return self.conv2(self.conv1(inner).relu()) + x

    class Step(nn.Module):
        def __init__(self, width, outputs):
            super().__init__()
            self.resConfUnit1, self.resConfUnit2 = Unit(width), Unit(width)
            if light:
                self.out_conv = nn.Conv2d(width, outputs, 1)

        def forward(self, x, own=None):
            x = self.resConfUnit2(x if own is None else x + self.resConfUnit1(own))
            x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            return self.out_conv(x) if light else x

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained = nn.ModuleDict({f"layer{n}": s for n, s in enumerate(stages, 1)})
            half = features[0] // 2
            double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            last = [nn.Conv2d(features[0], half, 3, padding=1), double, nn.Conv2d(half, 32, 3, padding=1)]
            parts = {"output_conv": nn.Sequential(*last, nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU())}
            finer = (features[0], *features)
            for n, (inputs, width) in enumerate(zip(channels, features, strict=True), 1):
                parts[f"layer{n}_rn"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                parts[f"refinenet{n}"] = Step(width, finer[n - 1])
            self.scratch = nn.ModuleDict(parts)

        def forward(self, x):
            maps = []
            for n in "1234":
                x = self.pretrained[f"layer{n}"](x)
                maps.append(self.scratch[f"layer{n}_rn"](x))
            x = self.scratch["refinenet4"](maps[3])
            for n in (3, 2, 1):
                x = self.scratch[f"refinenet{n}"](x, maps[n - 1])
            return self.scratch["output_conv"](x)

    return randomise(Network())


def large(torch, torchvision, blocks, features, **groups):
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks, **groups)
    first = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    stages = (first, net.layer2, net.layer3, net.layer4)
    return release(torch, stages, (256, 512, 1024, 2048), 4 * (features,), light=False)


def small(torch, timm):
    net = timm.create_model("tf_efficientnet_lite3")
    first = torch.nn.Sequential(net.conv_stem, net.bn1, net.bn1.act, *net.blocks[:2])
    stages = (first, *(torch.nn.Sequential(*net.blocks[a:b]) for a, b in ((2, 3), (3, 5), (5, 7))))
    return release(torch, stages, (32, 48, 136, 384), (64, 128, 256, 512), light=True)


def assert_same_depth(torch, ours, theirs, source, size=(32, 64)):
    image = photograph(size, 1)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    bias = theirs.scratch["output_conv"][4].bias
    with torch.no_grad():
        bias[:] = 10
        bias -= theirs(x).median()  # the last ReLU cuts off one half
        expected = theirs(x)
    assert 0.4 < float((expected > 0).float().mean()) < 0.6
    variables = filled(ours, theirs, source)
    assert_close(jax.jit(lambda v, x: ours.apply(v, x, False))(variables, image), expected)


def test_the_large_network_gives_the_same_depth(torch, torchvision, monkeypatch):
    """With one block in each stage, and fewer groups and features."""
    monkeypatch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
    theirs = large(torch, torchvision, (1, 1, 1, 1), 32, groups=4, width_per_group=8)
    encoder = resnet.ResNet(26, output_stride=32, groups=4, group_width=8)
    assert_same_depth(torch, MiDaS(encoder, 32), theirs, SOURCES["large"])


def test_the_small_network_gives_the_same_depth(torch, timm):
    assert_same_depth(torch, midas.make(jnp.float32, "small"), small(torch, timm), SOURCES["small"])


@pytest.mark.slow
def test_the_whole_large_network_gives_the_same_depth(torch, torchvision):
    theirs = large(torch, torchvision, (3, 4, 23, 3), 256, groups=32, width_per_group=8)
    assert_same_depth(torch, midas.make(jnp.float32, "large"), theirs, SOURCES["large"])


def test_the_working_sizes_are_the_releases():
    assert [SOURCES[variant].preprocessing.size for variant in midas.VARIANTS] == [384, 256]


@pytest.mark.parametrize("size", [(65, 97), (40, 23)])
def test_images_are_resized_as_by_torch(torch, size):
    image = photograph(size, 1)
    bicubic = {"mode": "bicubic", "align_corners": False}
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    x = torch.nn.functional.interpolate(x, midas.working_size(size, 96), **bicubic)
    x = torch.nn.functional.interpolate((x**2).sum(1, keepdim=True), size, **bicubic)

    def network(x):
        return jnp.sum(x**2, -1, keepdims=True)

    assert_close(midas.estimate(network, image, 96), x)
