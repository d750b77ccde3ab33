"""PAD-Net and MTI-Net as networks: sizes, parts, what reads what, how they are trained, their options."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm
from mtl_jax.tasks import classification, depth, semseg

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

TASKS = {"depth": depth.build("depth"), "semseg": semseg.build("semseg", 5)}
SIZE = (65, 50)
IMAGE = jax.random.uniform(jax.random.key(7), (2, *SIZE, 3))
SMALL = {"pad_net": {"width": 16}, "mti_net": {}}
PREDICTIONS = {"pad_net": 1, "mti_net": 2}  # of a task over Pools, before the last one


class Pools(nn.Module):
    """An encoder that is quick to compile: means of 4x4 and 8x8 pixels, and a layer with a norm each."""

    modulation = Modulation()

    @nn.compact
    def __call__(self, x, train, task=None):
        del task
        maps = []
        for stride, width in ((4, 4), (8, 32)):  # of 32 channels, a gate has two hidden units
            pooled = nn.avg_pool(x, (stride, stride), (stride, stride), "SAME")
            maps.append(ConvNorm(width, 1, activation=nn.tanh, name=f"stride{stride}")(pooled, train))
        return maps


@pytest.fixture(scope="module", params=SMALL)
def name(request):
    return request.param


def build(name, dtype="float32", tasks=TASKS, **options):
    return names.build("models", name, SMALL[name] | options, tasks, dtype)


def over_pools(name, dtype="float32"):
    return build(name, dtype).clone(encoder=Pools())


def test_every_prediction_has_the_images_size(name, random_variables):
    """Whatever it is; of a task alone it is that of all, and that of encoder, decoder and head in turn."""
    model = over_pools(name)
    variables = random_variables(model, IMAGE, tuple(TASKS), False)

    @quick_jit
    def run(v):
        features = model.apply(v, IMAGE, "depth", False, method="features")
        output = model.apply(v, features, "depth", SIZE, method="predict")
        alone = model.apply(v, IMAGE, ("depth",), False)
        return model.apply(v, IMAGE, tuple(TASKS), False), alone, features, output

    whole, alone, features, output = run(variables)
    for prediction, tasks in ((whole, TASKS), (alone, ("depth",))):
        assert len(prediction.intermediate) == PREDICTIONS[name]
        for outputs in (prediction.outputs, *prediction.intermediate):
            assert outputs.keys() == set(tasks)
            for task, y in outputs.items():
                assert y.shape == (2, *SIZE, TASKS[task].channels) and y.dtype == jnp.float32
                assert jnp.isfinite(y).all() and jnp.any(y != 0)
    np.testing.assert_array_equal(alone.outputs["depth"], whole.outputs["depth"])
    for one, every in zip(alone.intermediate, whole.intermediate, strict=True):
        np.testing.assert_array_equal(one["depth"], every["depth"])
    np.testing.assert_array_equal(features, whole.features["depth"])
    np.testing.assert_array_equal(output, whole.outputs["depth"])


@pytest.mark.parametrize(
    "backbone,encoder",
    [
        ("hrnet", {"depth": "small_v1", "width": 4}),
        ("mobilenet_v2", {}),
        ("efficientnet", {"variant": "lite0"}),
        ("resnet", {"depth": 26, "width": 0.125}),
    ],
)
def test_every_backbone_gives_four_maps(name, backbone, encoder):
    """Of strides 4 to 32, of an image of any size."""
    model = build(name, backbone=backbone, encoder=encoder)
    prediction, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), IMAGE, tuple(TASKS), False)
    )
    features, last = prediction.features["depth"], prediction.encoded["depth"]
    assert features.shape[:3] == (2, 17, 13) and last.shape[:3] == (2, 3, 2)
    assert prediction.outputs["depth"].shape == (2, *SIZE, 1)
    if backbone == "hrnet":
        assert features.shape[3] == {"pad_net": 16, "mti_net": 4 + 8 + 16 + 32}[name]
        assert len(prediction.intermediate) == {"pad_net": 1, "mti_net": 4}[name]
    leaf = variables["params"]
    for key in model.last_shared:
        leaf = leaf[key]
    assert leaf["kernel"].shape[-1] == last.shape[3]


def reached(grads):
    """{path of a parameter: has it a gradient}"""
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert all(jnp.isfinite(g).all() for _, g in leaves)
    return {"/".join(entry.key for entry in path): bool(jnp.any(g != 0)) for path, g in leaves}


def inside(gradients, part):
    """Those of the parameters of a part of the network."""
    found = [value for path, value in gradients.items() if path.startswith(part + "/")]
    assert found, part
    return found


def test_training_and_what_a_task_reads(name, random_variables):
    """Supervised training reaches everything, semseg's last prediction what is depth's up to its features."""
    model = over_pools(name)
    method = names.build("methods", "supervised", {}, model, TASKS)
    variables = random_variables(model, IMAGE, tuple(TASKS), False)
    rng = np.random.default_rng(0)
    labels = {"depth": rng.uniform(1, 5, (2, *SIZE, 1)).astype(np.float32)}
    labels["semseg"] = rng.integers(0, 5, (2, *SIZE, 1)).astype(np.int32)
    valid = {task: np.ones((2, *SIZE, 1), np.float32) for task in TASKS}
    batch = {"image": IMAGE, "labels": labels, "valid": valid}
    state = {"model": {"batch_stats": variables["batch_stats"]}, "method": {}}

    def losses(params):
        prediction, new = method.forward({"model": params}, state, IMAGE, jax.random.key(0))
        whole = sum(method.supervised(prediction, batch).values())
        return jnp.stack([whole, jnp.sum(jnp.sin(prediction.outputs["semseg"]))]), new["model"]["batch_stats"]

    gradients, statistics = quick_jit(jax.jacrev(losses, has_aux=True))(variables["params"])
    whole, one = (reached(jax.tree.map(lambda g, row=row: g[row], gradients)) for row in range(2))
    assert [path for path, value in whole.items() if not value] == []
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(statistics)
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))

    number, last = ("", "final") if name == "pad_net" else ("1", "fuse")
    first, distillation = f"decoder/initial{number}@depth", f"decoder/distillation{number}"
    for part in (f"{first}/blocks", f"{distillation}/message_depth@semseg", "head@semseg", "encoder"):
        assert all(inside(one, part)), part
    to_depth = (f"{distillation}/attention_semseg@depth", f"{distillation}/message_semseg@depth")
    for part in (f"{first}/predict", *to_depth, f"decoder/{last}@depth", "head@depth"):
        assert not any(inside(one, part)), part


def test_bfloat16_is_close(name, random_variables):
    exact, half = (over_pools(name, dtype) for dtype in ("float32", "bfloat16"))
    variables = random_variables(half, IMAGE, tuple(TASKS), False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    fine, rough = quick_jit(lambda v: [m.apply(v, IMAGE, tuple(TASKS), False) for m in (exact, half)])(
        variables
    )
    assert rough.features["depth"].dtype == jnp.bfloat16
    for a, b in zip((fine.outputs, *fine.intermediate), (rough.outputs, *rough.intermediate), strict=True):
        for task in TASKS:
            assert b[task].dtype == jnp.float32
            assert 0 < jnp.abs(a[task] - b[task]).max() < 0.1 * jnp.abs(a[task]).max()


SCENE = {"scene": classification.build("scene", 4)}


@pytest.mark.parametrize(
    "options,tasks,words",
    [
        ({"dtype": "float"}, TASKS, "config.dtype is 'float': choose one of float32, bfloat16"),
        ({"backbone": "vit"}, TASKS, "config.model.backbone is 'vit': choose one of hrnet, resnet"),
        ({"encoder": {"deepness": 3}}, TASKS, "models.backbones.hrnet has no option 'deepness'"),
        ({"encoder": {"top": True}}, TASKS, "config.model.encoder.top is true: leave it out"),
        ({"skip": True}, TASKS, "has no option 'skip'"),
        ({}, TASKS | SCENE, "network of dense tasks: task 'scene' is not dense"),
        ({}, {"depth": TASKS["depth"]}, "give it a second task beside depth"),
    ],
)
def test_wrong_options_are_named(name, options, tasks, words):
    with pytest.raises(UserError) as error:
        build(name, **{"tasks": tasks, **options})
    assert words in str(error.value)
