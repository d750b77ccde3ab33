"""The SegNet against its layers in NumPy and against published sizes; what its tasks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models import cost, segnet
from mtl_jax.models.backbones import segnet as backbone
from mtl_jax.tasks import classification, depth, normals, semseg

DENSE = {
    "semseg": semseg.build("semseg", 5),
    "depth": depth.build("depth"),
    "normals": normals.build("normals"),
}
TASKS = DENSE | {"scene": classification.build("scene", 4)}
SIZE = (40, 64)
IMAGE = jax.random.uniform(jax.random.key(7), (2, *SIZE, 3))


STAGES = backbone.STAGES


@pytest.fixture(scope="module", autouse=True)
def short_stages():
    """One convolution per stage but the first: everything here is quicker to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "STAGES", ((64, 2), (128, 1), (256, 1), (512, 1), (512, 1)))
        yield


@pytest.fixture(scope="module")
def make(random_variables):
    """(tasks, dtype) -> model of few channels, variables."""

    def make(tasks=TASKS, dtype="float32"):
        model = segnet.build(tasks, dtype, width=0.05)
        return model, random_variables(model, IMAGE, tuple(tasks), False)

    return make


def run(model, variables, tasks):
    return jax.jit(lambda v: model.apply(v, IMAGE, tasks, train=False))(variables)


def convolve(x, kernel, bias):
    """3x3 with zeros around, in float64."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(taps) + bias


def layers(variables, image):
    """Latent, decoded map and head@depth's output, layer by layer in float64."""
    params, stats = (jax.tree.map(np.float64, variables[key]) for key in ("params", "batch_stats"))

    def units(x, part, stage, count):
        for number in range(1, count + 1):
            name = f"stage{stage}_conv{number}"
            p, s = params[part][name], stats[part][name]["norm"]["BatchNorm_0"]
            affine = p["norm"]["BatchNorm_0"]
            x = (convolve(x, **p["conv"]) - s["mean"]) / np.sqrt(s["var"] + 1e-5)
            x = np.maximum(x * affine["scale"] + affine["bias"], 0)
        return x

    x = np.pad(np.float64(image), ((0, 0), (0, 24), (0, 0), (0, 0)), "edge")
    masks = []
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        x = units(x, "encoder", stage, count)
        b, h, w, c = x.shape
        windows = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
        first = np.eye(4)[windows.argmax(-1)].reshape(b, h // 2, w // 2, c, 2, 2)
        masks.append(first.transpose(0, 1, 4, 2, 5, 3).reshape(x.shape))
        x = windows.max(-1).reshape(b, h // 2, w // 2, c)
    latent = x
    for stage, count in reversed(list(enumerate((2, 2, 3, 3, 3), 1))):
        x = units(x.repeat(2, 1).repeat(2, 2) * masks[stage - 1], "decoder", stage, count)
    head = params["head@depth"]
    y = convolve(x, head["kernel1"], head["bias1"]) @ head["kernel2"] + head["bias2"]
    return latent, x, y[:, :40]


def test_layer_by_layer(make, monkeypatch):
    monkeypatch.setattr(backbone, "STAGES", STAGES)
    model, variables = make(DENSE)
    prediction = run(model, variables, ("depth",))
    latent, features, output = layers(variables, IMAGE)
    assert latent.shape == (2, 2, 2, 26) and features.shape == (2, 64, 64, 4) and np.std(output) > 0.02
    np.testing.assert_allclose(prediction.encoded["depth"], latent, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(prediction.features["depth"], features, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(prediction.outputs["depth"], output, rtol=1e-3, atol=2e-5)


@pytest.fixture
def nyu(monkeypatch):
    """Model of the published size and shapes of its variables: 13 classes, depth and normals."""
    monkeypatch.setattr(backbone, "STAGES", STAGES)
    model = segnet.build(DENSE | {"semseg": semseg.build("semseg", 13)}, "float32")
    image = jnp.zeros((1, 64, 64, 3))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(DENSE), train=False))


def test_parameters_of_three_tasks(nyu):
    """Of the network of Liu et al. (CVPR 2019) for NYU-v2, counted by hand from its layers."""
    _, variables = nyu
    size = {key: cost.parameters(value) for key, value in variables["params"].items()}
    heads = sum(value for key, value in size.items() if key.startswith("head@"))
    assert (size["encoder"], size["decoder"], heads) == (14_723_136, 10_220_160, 111_889)
    assert sum(size.values()) == 25_055_185


def test_multiply_adds_of_three_tasks(nyu):
    """Each 3x3 convolution of channels a -> b is 9ab at its resolution; a head is 9 * 64 * 64 + 64 O."""
    model, variables = nyu
    stages = [((3, 64), (64, 64)), ((64, 128), (128, 128)), ((128, 256), *2 * [(256, 256)])]
    stages += [((256, 512), *2 * [(512, 512)]), 3 * ((512, 512),)]
    mirror = [[(b, a), *(len(rest) * [(a, a)])] for (a, b), *rest in stages]
    mirror[0] = 2 * [(64, 64)]
    pixels = 288 * 384
    backbone = sum(
        9 * a * b * pixels // 4**level
        for level, units in [*enumerate(stages), *enumerate(mirror)]
        for a, b in units
    )
    heads = pixels * (3 * 9 * 64 * 64 + 64 * (13 + 1 + 3))
    assert cost.multiply_adds(model, variables, tuple(DENSE), (288, 384)) == backbone + heads
    assert (round(backbone / 1e9, 2), round(heads / 1e9, 2)) == (56.25, 12.35)


def test_call_is_the_composition_of_its_parts(make):
    model, variables = make()
    prediction = run(model, variables, tuple(TASKS))
    for name in ("depth", "scene"):
        features = jax.jit(lambda v, t=name: model.apply(v, IMAGE, t, False, method="features"))(variables)
        np.testing.assert_allclose(features, prediction.features[name], atol=1e-4)
        output = model.apply(variables, features, name, SIZE, method="predict")
        np.testing.assert_allclose(output, prediction.outputs[name], atol=1e-4)
    for name, task in TASKS.items():
        assert prediction.outputs[name].shape == (2, *(SIZE if task.dense else (1, 1)), task.channels)
        assert prediction.outputs[name].dtype == jnp.float32
    dense = variables["params"]["head@scene"]["dense"]
    expected = np.float64(prediction.encoded["scene"]).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(prediction.outputs["scene"][:, 0, 0], expected, atol=1e-4)


def test_only_what_is_asked_runs(make):
    model, variables = make()
    expected = run(model, variables, tuple(TASKS)).outputs
    for name, parts in {
        "depth": ("encoder", "decoder", "head@depth"),
        "scene": ("encoder", "head@scene"),
    }.items():
        own = {key: variables["params"][key] for key in parts}
        got = run(model, {**variables, "params": own}, (name,)).outputs
        assert set(got) == {name}
        np.testing.assert_allclose(got[name], expected[name], atol=1e-4)


@pytest.mark.parametrize("tasks,mark", [(DENSE, "features"), (TASKS, "latent")], ids=["dense", "all"])
def test_the_last_shared_tensor_is_marked(make, tasks, mark):
    """The gradient by the mark is that by the tensor which the heads, or the decoder, read."""
    model, variables = make(tasks)
    shared = run(model, variables, tuple(tasks))
    shared = shared.features["depth"] if mark == "features" else shared.encoded["depth"]

    def loss(zeros):
        marked = {**variables, "perturbations": {mark: zeros}}
        return jnp.sum(jnp.sin(model.apply(marked, IMAGE, tuple(tasks), train=False).outputs["depth"]))

    def rest(shared):
        if mark == "latent":
            maps = model.apply(variables, IMAGE, "depth", False, method="encode")
            shared = model.apply(variables, [*maps[:-1], shared], "depth", False, method="decode")
        return jnp.sum(jnp.sin(model.apply(variables, shared, "depth", SIZE, method="predict")))

    ours, expected = jax.jit(jax.grad(loss))(jnp.zeros_like(shared)), jax.jit(jax.grad(rest))(shared)
    assert jnp.any(expected != 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
    leaf = variables["params"]
    for key in model.last_shared:
        leaf = leaf[key]
    assert leaf["kernel"].shape == ((3, 3, 4, 4) if mark == "features" else (3, 3, 26, 26))


def test_training_gradients_reach_every_parameter(make):
    model, variables = make()

    def loss(params):
        v = {**variables, "params": params}
        prediction, _ = model.apply(v, IMAGE, tuple(TASKS), train=True, mutable=["batch_stats"])
        return sum(jnp.sum(y**2) for y in prediction.outputs.values())

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert jnp.isfinite(g).all() and jnp.any(g != 0), name


def test_bfloat16_is_close(make):
    model, variables = make(DENSE)
    half, _ = make(DENSE, "bfloat16")
    exact, rough = (run(m, variables, ("depth",)) for m in (model, half))
    assert rough.encoded["depth"].dtype == jnp.bfloat16 and rough.outputs["depth"].dtype == jnp.float32
    difference = jnp.abs(exact.encoded["depth"] - rough.encoded["depth"])
    assert 0 < difference.mean() < 0.05 * jnp.abs(exact.encoded["depth"]).max()


@pytest.mark.parametrize(
    "options,words",
    [
        ({"width": 0}, "config.model.width is 0: give a positive factor"),
        ({"dtype": "float"}, "config.dtype is 'float': choose one of float32, bfloat16"),
        ({"depth": 50}, "models.segnet has no option 'depth'"),
        ({"encoder": {"width": 2}}, "config.model.encoder.width is that of the decoder too"),
        ({"encoder": {"norm": "layer"}}, "config.model.encoder.norm is 'layer'"),
    ],
)
def test_wrong_options_are_named(options, words):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    with pytest.raises(UserError) as error:
        names.build("models", "segnet", options, DENSE, dtype)
    assert words in str(error.value)


def test_the_encoder_takes_options_of_its_own():
    encoder = {"norm": "group", "remat": True}
    model = names.build("models", "segnet", {"width": 0.125, "encoder": encoder}, DENSE, "float32")
    assert (model.encoder.width, model.encoder.norm, model.encoder.remat) == (0.125, "group", True)
    assert model.width == 0.125
