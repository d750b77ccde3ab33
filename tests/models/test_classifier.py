"""Backbones with the classifiers that are released with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models import classifier
from mtl_jax.models.backbones import resnet
from mtl_jax.tasks import classification, depth
from mtl_jax.weights import pretrained
from tests.weights import conftest
from tests.weights.reference import assert_close, randomise

torch, torchvision = conftest.torch, conftest.torchvision

KIND = {"kind": classification.build("kind", 10)}
IMAGE = np.random.default_rng(0).uniform(size=(2, 65, 64, 3)).astype(np.float32)


def shapes_of(model):
    return dict(jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, tuple(model.tasks), train=False)))


def test_a_released_resnet_gives_the_same_logits(torch, torchvision, tmp_path, monkeypatch):
    """From its file and a photograph to the logits, with torchvision's normalisation."""
    monkeypatch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
    modules = torchvision.models.resnet
    theirs = randomise(modules.ResNet(modules.Bottleneck, (1, 1, 1, 1), num_classes=10))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = classifier.build(KIND, "float32", encoder={"depth": 26})
    options = {"source": "torchvision", "path": str(tmp_path / "resnet.pth"), "parts": ("encoder", "head")}
    variables = pretrained.start(shapes_of(model), model, ConfigDict(options))
    logits = jax.jit(lambda v: model.apply(v, IMAGE, ("kind",), train=False).outputs["kind"])(variables)
    assert logits.shape == (2, 1, 1, 10)
    channels_first = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2))
    ready = torchvision.transforms.functional.normalize(
        channels_first, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        assert_close(logits[:, 0, 0], theirs(ready))


@pytest.mark.parametrize(
    "backbone,encoder",
    [
        ("resnet", {"depth": 26}),
        ("mobilenet_v2", {}),
        ("efficientnet", {"variant": "lite0"}),
        ("hrnet", {"depth": "small_v1", "width": 16}),
    ],
)
def test_the_classifier_reads_the_top(backbone, encoder):
    """One layer behind it, and nothing else; the networks' stride is 32."""
    model = classifier.build(KIND, "float32", backbone, encoder)
    variables = shapes_of(model)
    assert set(variables["params"]) == {"encoder", "head@kind"} and model.encoder.top
    maps = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((1, 64, 96, 3)), "kind", False, method="encode"), variables
    )
    assert maps[-2].shape[1:3] == (2, 3) and maps[-1].shape[1:3] == (1, 1)
    kernel = variables["params"]["head@kind"]["dense"]["kernel"]
    assert kernel.shape == (maps[-1].shape[-1], 10)


def test_several_tasks_share_the_backbone():
    two = {n: classification.build(n, k) for n, k in (("one", 3), ("two", 4))}
    model = classifier.build(two, "float32", encoder={"width": 0.125})
    variables = shapes_of(model)
    assert set(variables["params"]) == {"encoder", "head@one", "head@two"}
    prediction = jax.eval_shape(lambda v: model.apply(v, IMAGE, ("one", "two"), False), variables)
    assert {n: x.shape for n, x in prediction.outputs.items()} == {"one": (2, 1, 1, 3), "two": (2, 1, 1, 4)}
    leaf = variables["params"]
    for key in model.last_shared:
        leaf = leaf[key]
    assert leaf["kernel"].shape[:2] == (1, 1)


def test_options_reach_the_backbone():
    model = classifier.build(KIND, "bfloat16", encoder={"output_stride": 16, "depth": 26, "norm": "group"})
    encoder = model.encoder
    assert (encoder.output_stride, encoder.depth, encoder.norm, encoder.top) == (16, 26, "group", True)
    assert encoder.dtype == model.dtype == jnp.bfloat16
    assert classifier.build(KIND, "float32").encoder.output_stride == 32


@pytest.mark.parametrize(
    "tasks,options,words",
    [
        (KIND, {"dtype": "half"}, "config.dtype is 'half': choose one of float32, bfloat16"),
        (
            KIND | {"depth": depth.build("depth")},
            {},
            "task 'depth' has a label per pixel: choose another config.model.name",
        ),
        (KIND, {"backbone": "alexnet"}, "unknown name 'alexnet' in models/backbones: choose one of"),
        (KIND, {"encoder": {"depth": 34}}, "config.model.encoder.depth is 34: choose one of 26, 50"),
        (KIND, {"backbone": "segnet"}, "models.backbones.segnet has no option 'top'"),
        (KIND, {"width": 2}, "models.classifier has no option 'width'"),
    ],
)
def test_wrong_options_are_named(tasks, options, words):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    with pytest.raises(UserError) as error:
        names.build("models", "classifier", options, tasks, dtype)
    assert words in str(error.value)
