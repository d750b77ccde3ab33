"""Published MobileNetV2s against torchvision, timm, and the layout of astmt's release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.mobilenet_v2 import STAGES, MobileNetV2
from mtl_jax.models.modulation import Modulation
from mtl_jax.weights.mobilenet_v2 import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, filled, photograph, randomise, shapes_of, tensors_of

ENDS = (3, 6, 13, 17)  # in torchvision's sequence, the blocks that give the four maps


def run(ours, variables, image, *args):
    return jax.jit(lambda v, x: ours.apply(v, x, False, *args))(variables, image)


def to_torch(torch, image):
    return torch.from_numpy(image.transpose(0, 3, 1, 2))


def dilate(torch, blocks, output_stride):
    """Depthwise convolutions of the last stages without their stride, and dilated by it.

    blocks: of each stage, modules with a convolution of groups.
    """
    reached, dilation = 2, 1
    for (*_, wanted), modules in zip(STAGES, blocks, strict=True):
        if reached * wanted > output_stride:
            dilation *= wanted
        else:
            reached *= wanted
        for module in modules:
            for conv in module.modules():
                if isinstance(conv, torch.nn.Conv2d) and conv.groups > 1 and dilation > 1:
                    conv.stride, conv.dilation, conv.padding = 1, (dilation,) * 2, (dilation,) * 2


def maps_of(sequence, ends, x):
    """Outputs of a sequence at those places."""
    found = []
    for place, module in enumerate(sequence):
        x = module(x)
        if place in ends:
            found.append(x)
    return found


def with_head(variables):
    """Room for the classifier behind the encoder."""
    head = {"kernel": jnp.zeros((1280, 1000)), "bias": jnp.zeros(1000)}
    return variables | {"params": {**variables["params"], "head": head}}


def logits_of(ours, theirs, source, image):
    tensors = source.tensors(tensors_of(theirs), "memory")
    variables = fill(with_head(shapes_of(ours)), tensors, source, ours, "memory")
    head = variables["params"].pop("head")
    return run(ours, variables, image)[-1][:, 0, 0] @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_torchvisions_maps(torch, torchvision, output_stride):
    theirs = randomise(torchvision.models.mobilenet_v2())
    counts = [blocks for *_, blocks, _ in STAGES]
    starts = [1 + sum(counts[:stage]) for stage in range(len(counts))]
    stages = [theirs.features[a : a + n] for a, n in zip(starts, counts, strict=True)]
    dilate(torch, stages, output_stride)
    ours = MobileNetV2(output_stride=output_stride)
    image = photograph((65, 64))
    maps = run(ours, filled(ours, theirs, SOURCES["torchvision"]), image)
    expected = maps_of(theirs.features, ENDS, to_torch(torch, image))
    assert len(maps) == len(expected) == 4
    for mine, other in zip(maps, expected, strict=True):
        assert_close(mine, other)


def test_torchvisions_classifier(torch, torchvision):
    theirs = randomise(torchvision.models.mobilenet_v2())
    image = photograph((65, 64))
    logits = logits_of(MobileNetV2(output_stride=32, top=True), theirs, SOURCES["torchvision"], image)
    assert_close(logits, theirs(to_torch(torch, image)))


# Released: 050, 100, 110d, 120d, 140. Widths are rounded alike in all of them.
@pytest.mark.parametrize(
    "name,width,depth,output_stride",
    [
        ("mobilenetv2_050", 0.5, 1.0, 32),
        ("mobilenetv2_140", 1.4, 1.0, 16),
        pytest.param("mobilenetv2_100", 1.0, 1.0, 8, marks=pytest.mark.slow),
        ("mobilenetv2_110d", 1.1, 1.2, 8),
        pytest.param("mobilenetv2_120d", 1.2, 1.4, 16, marks=pytest.mark.slow),
    ],
)
def test_timms_maps_and_features(torch, timm, name, width, depth, output_stride):
    theirs = randomise(timm.create_model(name, num_classes=0))
    dilate(torch, theirs.blocks, output_stride)
    ours = MobileNetV2(width, output_stride=output_stride, top=True, depth=depth)
    image = photograph((65, 64), batch=1)
    *maps, top = run(ours, filled(ours, theirs, SOURCES["timm"]), image)
    x = to_torch(torch, image)
    stem = theirs.bn1(theirs.conv_stem(x))
    for mine, other in zip(maps, maps_of(theirs.blocks, [1, 2, 4, 6], stem), strict=True):
        assert_close(mine, other)
    assert_close(top[:, 0, 0], theirs(x))


def test_timms_classifier(torch, timm):
    theirs = randomise(timm.create_model("mobilenetv2_035"))
    image = photograph((65, 64), batch=1)
    logits = logits_of(MobileNetV2(0.35, output_stride=32, top=True), theirs, SOURCES["timm"], image)
    assert_close(logits, theirs(to_torch(torch, image)))


def released_by_astmt(torch, gates):
    """The network of facebookresearch/astmt: its names, and what they do."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, features, stride, expansion):
            super().__init__()
            hidden = expansion * inputs
            parts = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
            parts = parts if expansion > 1 else []
            depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
            parts += [depthwise, nn.BatchNorm2d(hidden), nn.ReLU6()]
            parts += [nn.Conv2d(hidden, features, 1, bias=False), nn.BatchNorm2d(features)]
            self.conv, self.same = nn.Sequential(*parts), stride == 1 and inputs == features
            if gates:
                fc = nn.Linear(features, features // 4), nn.ReLU6(), nn.Linear(features // 4, features)
                self.se = nn.ModuleDict({"fc": nn.Sequential(*fc, nn.Sigmoid())})

        def forward(self, x):
            y = self.conv(x)
            if gates:
                y = y * self.se["fc"](y.mean((2, 3)))[:, :, None, None]
            return x + y if self.same else y

    def unit(inputs, features, size, stride):
        conv = nn.Conv2d(inputs, features, size, stride, size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())

    inputs, features = 32, [unit(3, 32, 3, 2)]
    for expansion, channels, blocks, stride in STAGES:
        for block in range(blocks):
            features.append(Block(inputs, channels, stride if block == 0 else 1, expansion))
            inputs = channels
    classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))
    parts = {"features": nn.Sequential(*features, unit(320, 1280, 1, 1)), "classifier": classifier}
    return randomise(nn.ModuleDict(parts))


def merged(first, second):
    """Both trees in one."""
    if not isinstance(first, dict):
        return first
    keys = {**first, **second}
    return {key: merged(first.get(key, second.get(key)), second.get(key, first.get(key))) for key in keys}


def saved_by_astmt(network):
    return {"model_state": {f"module.{name}": x for name, x in tensors_of(network).items()}, "epoch": 100}


def test_astmts_gates_and_norms_go_to_each_task(torch):
    theirs = released_by_astmt(torch, gates=True)
    source, tasks = SOURCES["astmt"], ("edges", "depth")
    ours = MobileNetV2(output_stride=32, modulation=Modulation("task", norm=True))
    image = photograph((64, 65))
    shapes = [jax.eval_shape(lambda t=t: dict(ours.init(jax.random.key(0), image, False, t))) for t in tasks]
    tensors = source.tensors(saved_by_astmt(theirs), "memory")
    variables = fill(merged(*shapes), tensors, source, ours, "memory")
    expected = maps_of(theirs["features"], ENDS, to_torch(torch, image))
    for task in tasks:
        for mine, other in zip(run(ours, variables, image, task), expected, strict=True):
            assert_close(mine, other)


def test_astmts_release_without_gates(torch):
    theirs = released_by_astmt(torch, gates=False)
    image = photograph((64, 65), batch=1)
    logits = logits_of(MobileNetV2(output_stride=32, top=True), theirs, SOURCES["astmt"], image)
    pooled = theirs["features"](to_torch(torch, image)).mean((2, 3))
    assert_close(logits, theirs["classifier"](pooled))


def test_gates_must_have_a_place(torch):
    theirs, ours = released_by_astmt(torch, gates=True), MobileNetV2()
    with pytest.raises(UserError, match=r"has besides features\.1\.se\.fc\.0\.weight"):
        filled(ours, theirs, SOURCES["astmt"])


def test_gates_start_anew_where_none_are_published(torch, torchvision):
    theirs = torchvision.models.mobilenet_v2()
    ours = MobileNetV2(modulation=Modulation("shared"))
    source = SOURCES["torchvision"]
    started = shapes_of(ours)
    tree = fill(started, source.tensors(tensors_of(theirs), "memory"), source, ours, "memory")
    block, before = (tree["params"]["stage2_block2"]["conv3"] for tree in (tree, started))
    assert block["se"]["squeeze"]["kernel"] is before["se"]["squeeze"]["kernel"]
    assert isinstance(block["conv"]["kernel"], np.ndarray)
