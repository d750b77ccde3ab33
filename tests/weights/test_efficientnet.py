"""Published forms of EfficientNet against the networks of those who published them."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import conv
from mtl_jax.models.backbones.efficientnet import EfficientNet
from mtl_jax.weights.efficientnet import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, filled, photograph, randomise, shapes_of, tensors_of


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """One convolution instead of 25 products of shifted maps: for images this small, these take longer."""
    monkeypatch.setattr(conv, "conv", conv._lax_conv)


TENSORFLOW = {"padding": "same", "epsilon": 1e-3}


def timm_network(
    timm, lite=False, width=0.25, depth=0.5, output_stride=32, padding="symmetric", epsilon=1e-5
):
    from timm.models import efficientnet

    make, name = efficientnet._gen_efficientnet, "efficientnet_b0"
    if lite:
        make, name = efficientnet._gen_efficientnet_lite, "efficientnet_lite0"
    network = make(
        name,
        channel_multiplier=width,
        depth_multiplier=depth,
        output_stride=output_stride,
        pad_type="same" if padding == "same" else "",
        bn_eps=epsilon,
    )
    return randomise(network)


def run(encoder, variables, image):
    return jax.jit(lambda v, x: encoder.apply(v, x, False))(variables, image)


def with_head(encoder, network, source, classes=1000):
    """The encoder's variables and the classifier, {"kernel": ..., "bias": ...}."""
    tree = shapes_of(encoder)
    pooled = jax.eval_shape(lambda v: encoder.apply(v, photograph(), False), tree)[-1]
    assert pooled.shape[1:3] == (1, 1)
    head = {"kernel": np.zeros((pooled.shape[-1], classes)), "bias": np.zeros(classes)}
    variables = fill({**tree, "head": {"head": head}}, tensors_of(network), source, encoder, "memory")
    return variables, variables.pop("head")["head"]


# Odd and even sizes at every level; blocks with and without a shortcut.
@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("output_stride,size", [(32, (65, 60)), (16, (52, 64)), (8, (65, 64))])
def test_a_timm_network_gives_the_same_maps(torch, timm, lite, padding, output_stride, size):
    options, source = {}, f"timm_{'lite0' if lite else 'b0'}"
    if padding == "same":
        options, source = TENSORFLOW, source.replace("timm", "timm_tf")
    theirs = timm_network(timm, lite, output_stride=output_stride, **options)
    ours = EfficientNet(0.25, 0.5, lite, output_stride=output_stride, **options)
    image = photograph(size)
    maps = run(ours, filled(ours, theirs, SOURCES[source]), image)
    _, expected = theirs.forward_intermediates(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    for mine, published in zip(maps, expected[1:], strict=True):
        assert_close(mine, published)


@pytest.mark.parametrize("variant", ["b0", pytest.param("lite0", marks=pytest.mark.slow)])
def test_the_classifier_of_a_whole_network_gives_the_same_logits(torch, timm, variant):
    theirs = randomise(timm.create_model(f"tf_efficientnet_{variant}"))
    ours = EfficientNet(lite=variant == "lite0", output_stride=32, top=True, **TENSORFLOW)
    variables, head = with_head(ours, theirs, SOURCES[f"timm_tf_{variant}"])
    image = photograph((64, 64), 1)
    pooled = run(ours, variables, image)[-1]
    logits = pooled[:, 0, 0] @ head["kernel"] + head["bias"]
    assert_close(logits, theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))))


def test_a_torchvision_network_gives_the_same_maps(torch, torchvision):
    settings = torchvision.models.efficientnet._efficientnet_conf(
        "efficientnet_b0", width_mult=0.25, depth_mult=0.5
    )[0]
    theirs = randomise(torchvision.models.EfficientNet(settings, 0.2, last_channel=320))
    ours = EfficientNet(0.25, 0.5, output_stride=32, top=True)
    variables, head = with_head(ours, theirs, SOURCES["torchvision_b0"])
    image = photograph((65, 60))
    *maps, pooled = run(ours, variables, image)
    x, outputs = torch.from_numpy(image.transpose(0, 3, 1, 2)), []
    for stage in theirs.features:
        x = stage(x)
        outputs.append(x)
    for mine, index in zip(maps, (2, 3, 5, 7), strict=True):
        assert_close(mine, outputs[index])
    logits = pooled[:, 0, 0] @ head["kernel"] + head["bias"]
    assert_close(logits, theirs.classifier(theirs.avgpool(x).flatten(1)))


def as_package(tensors):
    """A timm network's tensors by the names that efficientnet_pytorch gives them.

    Both hold their layers in the order in which they are run, so that blocks can be counted.
    """
    rename = {
        "conv_pw": "_expand_conv",
        "conv_dw": "_depthwise_conv",
        "se.conv_reduce": "_se_reduce",
        "se.conv_expand": "_se_expand",
        "conv_pwl": "_project_conv",
        "bn1": "_bn0",
        "bn2": "_bn1",
        "bn3": "_bn2",
    }
    separable = {**rename, "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    outside = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    blocks, renamed = [], {}
    for name, x in tensors.items():
        module, _, leaf = name.rpartition(".")
        found = re.fullmatch(r"blocks\.(\d)\.(\d+)\.(.*)", module)
        if found:
            block = found.group(1, 2)
            blocks += [] if block in blocks else [block]
            names = separable if block[0] == "0" else rename
            renamed[f"_blocks.{blocks.index(block)}.{names[found[3]]}.{leaf}"] = x
        else:
            renamed[f"{outside[module]}.{leaf}"] = x
    return renamed


@pytest.mark.parametrize("lite", [False, True])
def test_the_packages_names_mean_the_same(torch, timm, lite):
    tensors = tensors_of(timm_network(timm, lite, depth=1.0))
    ours = EfficientNet(0.25, 1.0, lite, top=True, **TENSORFLOW)
    package = SOURCES["efficientnet_lite_pytorch_lite0" if lite else "efficientnet_pytorch_b0"]
    tree = shapes_of(ours)
    expected = fill(tree, tensors, SOURCES["timm_tf_lite0" if lite else "timm_tf_b0"], ours, "memory")
    found = fill(tree, as_package(tensors), package, ours, "memory")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("variant", ["b0", "lite0"])
@pytest.mark.parametrize("image", [(64, 64), (65, 60)])
def test_the_packages_own_network_gives_the_same_maps(torch, variant, image):
    lite = variant == "lite0"
    package = pytest.importorskip("efficientnet_lite_pytorch" if lite else "efficientnet_pytorch")
    theirs = randomise(package.EfficientNet.from_name(f"efficientnet-{variant}", image_size=image))
    ours = EfficientNet(lite=lite, output_stride=32, top=True, **TENSORFLOW)
    source = SOURCES[f"efficientnet_{'lite_' if lite else ''}pytorch_{variant}"]
    variables, head = with_head(ours, theirs, source)
    image = photograph(image, 1)
    pooled = run(ours, variables, image)[-1]
    logits = pooled[:, 0, 0] @ head["kernel"] + head["bias"]
    assert_close(logits, theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))))


@pytest.mark.parametrize("options,key", [({"padding": "same"}, "epsilon"), ({"epsilon": 1e-3}, "padding")])
def test_weights_made_for_another_padding_or_epsilon_are_refused(options, key):
    with pytest.raises(UserError, match=f"config.model.encoder.{key} is"):
        SOURCES["timm_tf_b0"].take("stem/conv/kernel", EfficientNet(**options))


# Tags of timm 1.0 whose facts each form's must agree with.
@pytest.mark.parametrize(
    "form,tag",
    [
        ("timm_b0", "efficientnet_b0.ra_in1k"),
        ("timm_b1", "efficientnet_b1.ft_in1k"),
        ("timm_b2", "efficientnet_b2.ra_in1k"),
        ("timm_b3", "efficientnet_b3.ra2_in1k"),
        ("timm_b4", "efficientnet_b4.ra2_in1k"),
        ("timm_b5", "efficientnet_b5.sw_in12k_ft_in1k"),
        ("timm_lite0", "efficientnet_lite0.ra_in1k"),
        ("timm_ra4_b0", "efficientnet_b0.ra4_e3600_r224_in1k"),
        ("timm_ra4_b1", "efficientnet_b1.ra4_e3600_r240_in1k"),
        *((f"timm_tf_b{i}", f"tf_efficientnet_b{i}.ns_jft_in1k") for i in range(8)),
        *((f"timm_tf_ap_b{i}", f"tf_efficientnet_b{i}.ap_in1k") for i in range(8)),
        *((f"timm_tf_lite{i}", f"tf_efficientnet_lite{i}.in1k") for i in range(5)),
        ("timm_tf_l2", "tf_efficientnet_l2.ns_jft_in1k"),
        ("timm_tf_l2_475", "tf_efficientnet_l2.ns_jft_in1k_475"),
    ],
)
def test_preprocessing_is_what_timm_says(timm, form, tag):
    published = timm.get_pretrained_cfg(tag)
    ours = dataclasses.asdict(SOURCES[form].preprocessing)
    assert (ours["size"], ours["mean"], ours["std"]) == (
        published.input_size[1],
        published.mean,
        published.std,
    )
    assert ours["crop"] == pytest.approx(published.crop_pct, abs=2.5e-3)


@pytest.mark.parametrize("number", range(8))
def test_preprocessing_is_what_torchvision_says(torchvision, number):
    published = getattr(
        torchvision.models, f"EfficientNet_B{number}_Weights"
    ).IMAGENET1K_V1.transforms.keywords
    ours = SOURCES[f"torchvision_b{number}"].preprocessing
    assert ours.size == published["crop_size"]
    assert ours.crop == pytest.approx(published["crop_size"] / published["resize_size"])
