"""The multi-task network: what is shared, what is not, and what it accepts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models import cost, deeplab
from mtl_jax.models.backbones import mobilenet_v2, resnet
from mtl_jax.tasks import classification, depth, edges, normals, parts, saliency, semseg

TASKS = {
    "semseg": semseg.build("semseg", 5),
    "depth": depth.build("depth"),
    "normals": normals.build("normals"),
    "scene": classification.build("scene", 4),
}
ALL = tuple(TASKS)
IMAGE = jax.random.uniform(jax.random.key(7), (2, 37, 50, 3))
SIZE = (37, 50)
STAGES = mobilenet_v2.STAGES


@pytest.fixture(scope="module", autouse=True)
def short_encoder():
    """One block per stage: everything here is quicker to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        patch.setattr(mobilenet_v2, "STAGES", tuple((min(t, 2), c, 1, s) for t, c, _, s in STAGES))
        yield


@pytest.fixture(scope="module")
def make(random_variables):
    """(dtype, options) -> model, variables."""

    def make(dtype="float32", **options):
        model = deeplab.build(TASKS, dtype, **{"width": 0.125, "decoder_width": 16, **options})
        return model, random_variables(model, IMAGE, ALL, False)

    return make


@pytest.fixture(scope="module", params=[("own", "resnet"), ("shared", "mobilenet_v2")], ids="-".join)
def network(request, make):
    decoder, backbone = request.param
    return make(decoder=decoder, backbone=backbone)


def sizes(tasks=TASKS, **options):
    """Model, and the shapes of its variables."""
    model = deeplab.build(tasks, "float32", **options)
    image = jnp.zeros((1, 64, 64, 3))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(tasks), train=False))


def run(model, variables, tasks=ALL):
    return jax.jit(lambda v: model.apply(v, IMAGE, tasks, train=False))(variables)


def train(model, variables, tasks=ALL):
    collections = [key for key in variables if key != "params"]
    return jax.jit(lambda v: model.apply(v, IMAGE, tasks, train=True, mutable=collections))(variables)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


@pytest.mark.parametrize("norm,output_stride", [("batch", 8), ("group", 16), ("batch", 32)])
def test_outputs_have_the_images_size(make, norm, output_stride):
    model, variables = make(norm=norm, output_stride=output_stride)
    assert set(variables) == ({"params", "batch_stats"} if norm == "batch" else {"params"})
    prediction, new = train(model, variables)
    for name, task in TASKS.items():
        size = SIZE if task.dense else (1, 1)
        assert prediction.outputs[name].shape == (2, *size, task.channels)
        assert prediction.outputs[name].dtype == jnp.float32
        assert jnp.isfinite(prediction.outputs[name]).all()
    assert prediction.features["depth"].shape == (2, 10, 13, 16)
    assert set(new) == set(variables) - {"params"}


def test_call_is_the_composition_of_features_and_predict(network):
    model, variables = network
    prediction = run(model, variables)
    for task in ("depth", "scene"):
        features = jax.jit(lambda v, t=task: model.apply(v, IMAGE, t, False, method="features"))(variables)
        np.testing.assert_allclose(features, prediction.features[task], atol=1e-5)
        output = model.apply(variables, features, task, SIZE, method="predict")
        np.testing.assert_allclose(output, prediction.outputs[task], atol=1e-5)


def test_a_tasks_parts_leave_the_other_tasks_bit_identical(network):
    model, variables = network
    apply = jax.jit(lambda v: model.apply(v, IMAGE, ALL, train=False).outputs)
    before = apply(variables)
    params = {
        key: jax.tree.map(lambda x: x + 0.3, value) if key.endswith("@depth") else value
        for key, value in variables["params"].items()
    }
    after = apply({**variables, "params": params})
    assert not same(before["depth"], after["depth"])
    assert all(same(before[task], after[task]) for task in ALL if task != "depth")


def test_only_what_is_asked_runs(network):
    """Without the parameters of the others, a task is still predicted; statistics are all returned."""
    model, variables = network
    expected = run(model, variables).outputs["normals"]
    own = {k: v for k, v in variables["params"].items() if not k.endswith(("@depth", "@semseg", "@scene"))}
    got = run(model, {**variables, "params": own}, ("normals",)).outputs
    assert set(got) == {"normals"}
    np.testing.assert_allclose(got["normals"], expected, atol=1e-5)

    _, new = train(model, variables, ("normals",))
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(dict(variables["batch_stats"]))
    if "decoder@depth" in new["batch_stats"]:
        assert same(new["batch_stats"]["decoder@depth"], variables["batch_stats"]["decoder@depth"])


def test_arithmetic_shows_what_is_shared():
    def flops(tasks, **options):
        model, variables = sizes(width=0.125, decoder_width=64, **options)
        return cost.flops(model, variables, tasks, (64, 64))

    for decoder in ("shared", "own"):
        one, three = (flops(t, decoder=decoder) for t in (("depth",), ("depth", "semseg", "normals")))
        encoder = flops(("scene",), decoder=decoder)
        decoding = one - encoder
        if decoder == "shared":  # two further heads: 1x1 convolutions at stride 4, and their enlargement
            assert three - one < 0.1 * decoding
        else:
            np.testing.assert_allclose(three, encoder + 3 * decoding, rtol=0.02)


def test_one_label_per_image_reads_the_mean_of_the_last_map(network):
    model, variables = network
    params = {k: v for k, v in variables["params"].items() if not k.startswith("decoder")}
    prediction = run(model, {**variables, "params": params}, ("scene",))
    dense = variables["params"]["head@scene"]["dense"]
    expected = (
        np.asarray(prediction.encoded["scene"], np.float64).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    )
    np.testing.assert_allclose(prediction.outputs["scene"][:, 0, 0], expected, atol=1e-4)


def test_images_are_normalised_by_the_model(make):
    model, variables = make()
    encode = jax.jit(lambda image: model.apply(variables, image, "depth", False, method="encode"))
    encoder = jax.jit(lambda image: model.bind(variables).encoder(image, False))
    red, green, blue = (0.485 + 0.229), (0.456 - 0.224), 0.406
    image = jnp.broadcast_to(jnp.array([red, green, blue]), (1, 33, 33, 3))
    standard = jnp.broadcast_to(jnp.array([1.0, -1.0, 0.0]), (1, 33, 33, 3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), encode(image), encoder(standard)
    )


def test_dilations_of_the_decoder_follow_the_output_stride():
    def rates(output_stride):
        return deeplab.build(TASKS, "float32", output_stride=output_stride).bind({}).decoders[None].rates

    assert {s: rates(s) for s in (8, 16, 32)} == {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


def test_bfloat16_is_close_and_keeps_parameters_in_float32(make):
    model, variables = make()
    half, _ = make("bfloat16")
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = run(model, variables)
    rough = run(half, variables)
    assert rough.encoded["depth"].dtype == jnp.bfloat16
    for task in ALL:
        scale = jnp.abs(exact.outputs[task]).max()
        assert rough.outputs[task].dtype == jnp.float32
        assert 0 < jnp.abs(exact.outputs[task] - rough.outputs[task]).max() < 0.05 * scale


def test_training_gradients_reach_every_parameter(network):
    model, variables = network

    def loss(params):
        v = {**variables, "params": params}
        prediction, _ = model.apply(v, IMAGE, ALL, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(y**2) for y in prediction.outputs.values())

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert jnp.isfinite(g).all() and jnp.any(g != 0), name


# Outputs of 1, 21, 7, 3 and 1 channels, as in PASCAL-Context.
FIVE = {
    "edges": edges.build("edges"),
    "semseg": semseg.build("semseg", 21),
    "parts": parts.build("parts"),
    "normals": normals.build("normals"),
    "saliency": saliency.build("saliency"),
}
SE = {"encoder_se": "task", "decoder_se": "task"}


def test_size_of_a_network_of_five_tasks():
    """Derived by hand from the layers of Maninis et al. (CVPR 2019), depth 50, decoder width 64."""
    model, variables = sizes(FIVE, depth=50, decoder_width=64, encoder_se="shared")
    size = {key: cost.parameters(value) for key, value in variables["params"].items()}
    assert size["encoder"] == 26_039_024
    assert size["decoder"] == 3_906_328
    assert sum(size.values()) == 29_947_497


@pytest.mark.parametrize(
    "options,giga", [({"encoder_se": "shared"}, 36.8), ({"decoder_se": "task"}, 57.4), (SE, 183.9)]
)
def test_multiply_adds_of_five_tasks(options, giga):
    """31.6 G for the encoder and 5.15 G for the decoder, for each task that needs a pass of its own."""
    model, variables = sizes(FIVE, depth=50, decoder_width=64, stride_in_1x1=True, **options)
    total = cost.multiply_adds(model, variables, tuple(FIVE), (512, 512))
    assert round(total / 1e9, 1) == giga


def test_size_of_a_mobilenet_of_five_tasks(monkeypatch):
    """8.8 % of the above by the released network's layers; "8 %" in the paper."""
    monkeypatch.setattr(mobilenet_v2, "STAGES", STAGES)
    _, variables = sizes(FIVE, backbone="mobilenet_v2", decoder_width=64, **SE)
    assert round(cost.parameters(variables["params"]) / 29_947_497, 3) == 0.088


def test_size_of_a_network_without_skip_connections(monkeypatch):
    """The partial-label studies' ResNet-50 is torchvision's DeepLabv3 with a decoder and a head per task."""
    monkeypatch.setitem(resnet.BLOCKS, 50, (3, 4, 6, 3))
    options = {"depth": 50, "output_stride": 8, "decoder": "own", "skip": False}
    model, variables = sizes({"semseg": semseg.build("semseg", 21)}, **options)
    assert cost.parameters(variables["params"]) == 42_004_074 - 2_365_205
    assert model.bind({}).decoders["semseg"].rates == (12, 24, 36)
    dense = {task: TASKS[task] for task in ("semseg", "depth", "normals")}
    model, variables = sizes(dense, **options)
    assert set(variables["params"]) == {"encoder", *(f"{p}@{t}" for p in ("decoder", "head") for t in dense)}
    features = jax.eval_shape(lambda v: model.apply(v, IMAGE, "depth", False, method="features"), variables)
    assert features.shape == (2, 5, 7, 256)


@pytest.mark.parametrize("backbone,low,high", [("resnet", 256, 2048), ("mobilenet_v2", 24, 320)])
def test_an_ubernet_shares_nothing_behind_the_encoder(backbone, low, high):
    model, variables = sizes(backbone=backbone, decoder="ubernet")
    assert set(variables["params"]) == {
        "encoder",
        *(f"{part}@{task}" for task in ("semseg", "depth", "normals") for part in ("decoder", "head")),
        "head@scene",
    }
    norms, bias = 2 * 2 * 5, 5
    size = {key: cost.parameters(value) for key, value in variables["params"].items()}
    assert size["decoder@semseg"] + size["head@semseg"] == 5 * (low + high) + norms + 10 * 5 + bias


def test_a_decoder_of_its_own_has_nothing_to_adapt():
    _, plain = sizes(decoder="own")
    _, adapted = sizes(decoder="own", adapters=True, task_norm=True)
    assert plain["params"]["decoder@depth"] == adapted["params"]["decoder@depth"]
    assert plain["params"]["encoder"] != adapted["params"]["encoder"]


@pytest.mark.parametrize("backbone,last", [("resnet", (1, 1, 512, 2048)), ("mobilenet_v2", (1, 1, 320, 320))])
@pytest.mark.parametrize(
    "decoder,skip", [("shared", True), ("shared", False), ("own", True), ("ubernet", True)]
)
def test_path_of_the_last_shared_convolution(backbone, last, decoder, skip):
    dense = {task: TASKS[task] for task in ("semseg", "depth")}
    for tasks in (dense, TASKS):
        model, variables = sizes(tasks, backbone=backbone, decoder=decoder, skip=skip)
        leaf = variables["params"]
        for key in model.last_shared:
            leaf = leaf[key]
        decoder_is_last = decoder == "shared" and tasks is dense
        assert model.last_shared[0] == ("decoder" if decoder_is_last else "encoder")
        assert decoder_is_last or leaf["kernel"].shape == last


@pytest.mark.parametrize(
    "options,words",
    [
        ({"depth": 34}, "config.model.depth is 34: choose one of 26, 50, 101, 152"),
        ({"norm": "layer"}, "config.model.norm is 'layer': choose one of batch, group"),
        ({"output_stride": 4}, "config.model.output_stride is 4: choose one of 8, 16, 32"),
        ({"width": 0}, "config.model.width is 0: give a positive factor"),
        ({"decoder_width": 40}, "config.model.decoder_width is 40: give a multiple of 16"),
        ({"backbone": "vgg"}, "config.model.backbone is 'vgg': choose one of resnet, mobilenet_v2"),
        ({"backbone": "mobilenet_v2", "depth": 50}, "config.model.depth means nothing to the backbone"),
        ({"backbone": "mobilenet_v2", "adapters": True}, "config.model.adapters means nothing"),
        ({"backbone": "mobilenet_v2", "stride_in_1x1": True}, "config.model.stride_in_1x1 means nothing"),
        ({"decoder": "none"}, "config.model.decoder is 'none': choose one of shared, own, ubernet"),
        (
            {"decoder": "own", "decoder_se": "shared"},
            "config.model.decoder_se is 'shared': with the decoder 'own' choose one of none, task",
        ),
        (
            {"decoder": "ubernet", "decoder_se": "task"},
            "config.model.decoder_se is 'task': with the decoder 'ubernet' choose one of none",
        ),
        ({"decoder": "ubernet", "skip": False}, "config.model.skip means nothing to the decoder 'ubernet'"),
        ({"dtype": "float"}, "config.dtype is 'float': choose one of float32, bfloat16"),
        ({"deepness": 50}, "models.deeplab has no option 'deepness'"),
    ],
)
def test_wrong_options_are_named(options, words):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    with pytest.raises(UserError) as error:
        names.build("models", "deeplab", options, TASKS, dtype)
    assert words in str(error.value)
