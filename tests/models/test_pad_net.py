"""PAD-Net: its size, its decoder against torch, what its distillation computes, its own options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models import cost, pad_net
from mtl_jax.models.decoders.distillation import Distillation
from mtl_jax.models.decoders.pad_net import PADNetDecoder
from mtl_jax.tasks import depth, edges, normals, parts, saliency, semseg
from tests.models.torch_layers import Layers, to_numpy, to_torch

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NYUD = {"semseg": semseg.build("semseg", 40), "depth": depth.build("depth")}
NYUD |= {"normals": normals.build("normals")}
PASCAL = {"semseg": semseg.build("semseg", 21), "parts": parts.build("parts"), "sal": saliency.build("sal")}
PASCAL |= {"normals": normals.build("normals"), "edge": edges.build("edge")}
CHANNELS = {"semseg": 5, "depth": 1, "normals": 3}
DECODER = PADNetDecoder(CHANNELS, width=8)
MAPS = [
    np.random.default_rng(i).normal(size=(2, height, width, 3 + i)).astype(np.float32)
    for i, (height, width) in enumerate(((9, 7), (5, 4), (3, 2), (2, 1)))
]


@pytest.mark.parametrize("tasks,published", [(NYUD, 12_091_318), (PASCAL, 29_304_992)])
def test_parameters_are_those_of_the_release(tasks, published):
    """With its encoder, the smaller HRNet-W18."""
    model = pad_net.build(tasks, "float32", encoder={"depth": "small_v2"})
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(tasks), train=False))
    assert cost.parameters(shapes["params"]) == published


@pytest.mark.parametrize("train", [False, True])
def test_the_decoder_is_that_of_torch(train, random_variables):
    variables = random_variables(DECODER, MAPS, False)
    apply = quick_jit(lambda v: DECODER.apply(v, MAPS, train, mutable=["batch_stats"]))
    (features, intermediate), moved = apply(variables)

    torch = Layers(variables, train)
    x = torch.fuse([to_torch(x) for x in MAPS], "fuse")
    first = {}
    for task in CHANNELS:
        first[task] = torch.bottleneck(x, f"initial@{task}/blocks/block1")
        first[task] = torch.bottleneck(first[task], f"initial@{task}/blocks/block2")
    expected = torch.distill(first, "distillation")
    (raw,) = intermediate
    assert features.keys() == raw.keys() == CHANNELS.keys()
    for task, channels in CHANNELS.items():
        y = torch.bottleneck(torch.bottleneck(expected[task], f"final@{task}/block1"), f"final@{task}/block2")
        assert features[task].shape == (2, 9, 7, 8) and raw[task].shape == (2, 9, 7, channels)
        np.testing.assert_allclose(features[task], to_numpy(y), rtol=1e-4, atol=1e-4)
        first_raw = torch.conv(first[task], f"initial@{task}/predict")
        np.testing.assert_allclose(raw[task], to_numpy(first_raw), rtol=1e-4, atol=1e-4)

    # torch has updated the running means in place, by a tenth.
    for path in ("fuse/norm", "final@depth/block2/conv3/norm"):
        mean = moved["batch_stats"]
        for name in (*path.split("/"), "BatchNorm_0"):
            mean = mean[name]
        expected = torch.at(f"{path}/BatchNorm_0", "batch_stats")["mean"]
        np.testing.assert_allclose(mean["mean"], expected, rtol=1e-4, atol=1e-4)


def test_what_a_task_takes_of_the_others():
    """One pixel, one channel: the kernels' middles weigh it."""
    features = {"a": 1.0, "b": 2.0, "c": -3.0}
    weights = {("b", "a"): (0.5, 1.0), ("c", "a"): (-1.0, 2.0), ("a", "b"): (0.0, 3.0)}
    weights |= {("c", "b"): (1.0, -1.0), ("a", "c"): (2.0, 0.5), ("b", "c"): (-0.5, -2.0)}

    def kernel(weight):
        values = np.full((3, 3, 1, 1), 7.0, np.float32)  # what lies beside the pixel is 0
        values[1, 1] = weight
        return {"kernel": values}

    params = {}
    for (source, target), (gate, message) in weights.items():
        params[f"attention_{source}@{target}"] = kernel(gate)
        params[f"message_{source}@{target}"] = kernel(message)
    maps = {task: jnp.full((1, 1, 1, 1), value) for task, value in features.items()}
    result = Distillation().apply({"params": params}, maps)
    half, e = 1 / 2, np.exp
    expected = {
        "a": 1 + 2 / (1 + e(-1)) - 6 / (1 + e(-3)),
        "b": 2 + 3 * half + 3 / (1 + e(3)),
        "c": -3 + 0.5 / (1 + e(-2)) - 4 / (1 + e(1)),
    }
    for task, value in expected.items():
        assert result[task].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("width", [0, 6, -4])
def test_widths_without_a_quarter_are_named(width):
    with pytest.raises(UserError, match=f"config.model.width is {width}: give a multiple of 4"):
        names.build("models", "pad_net", {"width": width}, NYUD, "float32")
