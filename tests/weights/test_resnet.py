import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import resnet
from mtl_jax.weights.resnet import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, filled, photograph, randomise, shapes_of, tensors_of


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_a_torchvision_resnet_gives_the_same_maps(torch, torchvision, output_stride):
    dilate = [False, output_stride < 16, output_stride < 32]
    theirs = randomise(torchvision.models.resnet50(replace_stride_with_dilation=dilate))
    ours = resnet.ResNet(50, output_stride=output_stride)
    variables = filled(ours, theirs, SOURCES["torchvision"])
    image = photograph((65, 64))
    maps = jax.jit(lambda v, x: ours.apply(v, x, False))(variables, image)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for ours_map, stage in zip(
        maps, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
    ):
        x = stage(x)
        assert_close(ours_map, x)


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
