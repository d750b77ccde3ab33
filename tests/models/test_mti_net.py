"""MTI-Net: its size, its decoder against torch, what its propagation weighs, its own options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models import cost, mti_net
from mtl_jax.models.decoders.mti_net import SOFTMAX, MTINetDecoder, task_weights
from mtl_jax.tasks import depth, edges, normals, parts, saliency, semseg
from tests.models.torch_layers import Layers, enlarge, to_numpy, to_torch

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NYUD = {"semseg": semseg.build("semseg", 40), "depth": depth.build("depth")}
NYUD |= {"normals": normals.build("normals")}
PASCAL = {"semseg": semseg.build("semseg", 21), "parts": parts.build("parts"), "sal": saliency.build("sal")}
PASCAL |= {"normals": normals.build("normals"), "edge": edges.build("edge")}
CHANNELS = {"semseg": 5, "depth": 1}
TASKS = tuple(CHANNELS)
MAPS = [
    np.random.default_rng(i).normal(size=(2, *size, channels)).astype(np.float32)
    for i, (size, channels) in enumerate((((9, 7), 3), ((5, 4), 4), ((3, 2), 36)))
]


@pytest.mark.parametrize("tasks,published", [(NYUD, 12_653_616), (PASCAL, 24_494_171)])
def test_parameters_are_those_of_the_release(tasks, published):
    """With its encoder, the smaller HRNet-W18."""
    model = mti_net.build(tasks, "float32", encoder={"depth": "small_v2"})
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(tasks), train=False))
    assert cost.parameters(shapes["params"]) == published


def propagated(layers, features, scale, softmax):
    """Each task's features on the way to the next finer map."""
    path = f"propagation{scale}"
    every = torch.cat([features[task] for task in TASKS], 1)
    scores = layers.basic(layers.basic(every, f"{path}/blocks/block1"), f"{path}/blocks/block2")
    scores = layers.conv(scores, f"{path}/scores")
    if softmax == "released":
        runs = scores.unflatten(1, (-1, len(TASKS)))
        weights = torch.exp(runs) / torch.exp(runs).sum(2, keepdim=True)
        weighed = every * weights.flatten(1, 2)
    else:
        weights = torch.stack([torch.exp(x) for x in scores.chunk(len(TASKS), 1)])
        weights = weights / weights.sum(0)
        weighed = torch.cat([features[task] * weight for task, weight in zip(TASKS, weights, strict=True)], 1)
    shared = layers.basic(weighed, f"{path}/reduce")
    result = {}
    for task in TASKS:
        hidden = functional.relu(layers.dense(shared.mean((2, 3)), f"{path}/gate@{task}/squeeze"))
        gate = torch.sigmoid(layers.dense(hidden, f"{path}/gate@{task}/excite"))
        result[task] = features[task] + shared * gate[:, :, None, None]
    return result


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_the_decoder_is_that_of_torch(softmax, random_variables):
    decoder = MTINetDecoder(CHANNELS, softmax)
    variables = random_variables(decoder, MAPS, False)
    features, intermediate = quick_jit(lambda v: decoder.apply(v, MAPS, False))(variables)

    layers, carried, distilled = Layers(variables), None, {}
    assert len(intermediate) == len(MAPS)
    for scale in (2, 1, 0):
        x, first = to_torch(MAPS[scale]), {}
        for task in TASKS:
            path = f"initial{scale}@{task}"
            y = x if carried is None else torch.cat([x, enlarge(carried[task], x.shape[2:])], 1)
            y = layers.basic(layers.basic(y, f"{path}/blocks/block1"), f"{path}/blocks/block2")
            first[task] = y
            expected = to_numpy(layers.conv(y, f"{path}/predict"))
            assert expected.shape == (*MAPS[scale].shape[:3], CHANNELS[task])
            np.testing.assert_allclose(intermediate[scale][task], expected, rtol=1e-3, atol=1e-3)
        distilled[scale] = layers.distill(first, f"distillation{scale}")
        carried = propagated(layers, first, scale, softmax) if scale else None
    for task in TASKS:
        expected = to_numpy(layers.fuse([distilled[scale][task] for scale in (0, 1, 2)], f"fuse@{task}"))
        assert expected.shape == (2, 9, 7, 43)
        np.testing.assert_allclose(features[task], expected, rtol=1e-3, atol=1e-3)
    hidden = variables["params"]["propagation2"]["gate@depth"]["squeeze"]["kernel"]
    assert hidden.shape == (36, 2)


@pytest.mark.parametrize(
    "softmax,expected",
    [
        ("released", (0.268941, 0.731059, 0.268941, 0.731059)),
        ("across_tasks", (0.119203, 0.119203, 0.880797, 0.880797)),
    ],
)
def test_weights_of_two_tasks(softmax, expected):
    scores = jnp.array([1.0, 2.0, 3.0, 4.0]) * jnp.ones((1, 2, 1, 1))
    weights = task_weights(scores, 2, softmax)
    np.testing.assert_allclose(weights, np.broadcast_to(expected, (1, 2, 1, 4)), atol=1e-6)


def test_a_softmax_that_is_none_is_named():
    with pytest.raises(UserError, match="fpm_softmax is 'paper': choose one of released, across_tasks"):
        names.build("models", "mti_net", {"fpm_softmax": "paper"}, NYUD, "float32")
