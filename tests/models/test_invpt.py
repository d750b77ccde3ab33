"""InvPT: its decoder against a formulation in torch, its size, and the network around it."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.methods.supervised import task_losses
from mtl_jax.models import cost, invpt
from mtl_jax.models.backbones.vit import ViT
from mtl_jax.models.decoders.invpt import EXPANSION, HEADS, InvPTDecoder, Stage
from mtl_jax.tasks import classification, depth, semseg

TASKS = {"semseg": semseg.build("semseg", 5), "depth": depth.build("depth")}  # in no alphabetical order
DECODER = InvPTDecoder({name: task.channels for name, task in TASKS.items()}, 8)
GRID = (5, 3)  # neither side divides into the pools of the stages
TINY = {
    "width": 8,
    "encoder": {"width": 12, "depth": 4, "heads": 2, "patch": 8, "grid": (2, 2), "drop_path": 0.0},
}
SIZE = (37, 24)  # of images with patches in GRID


def random_maps(count=4):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, *GRID, 6)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(DECODER, random_maps(), False)


def decode(variables, train, decoder=DECODER):
    """Features, intermediate predictions, and the new statistics."""

    @jax.jit
    def run(variables, maps):
        return decoder.apply(variables, maps, train, mutable=["batch_stats"])

    (features, intermediate), new = run(variables, random_maps())
    return features, intermediate, new["batch_stats"]


@pytest.fixture(scope="module")
def decoded(variables):
    return decode(variables, False)


class Formulas:
    """The decoder in torch, float64, NCHW: tokens of all tasks in one sequence, heads before tokens."""

    def __init__(self, torch, variables, train):
        self.torch, self.F, self.train = torch, torch.nn.functional, train
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.seen = {}  # path of a batch normalisation -> mean and variance of what it saw

    def leaf(self, *path):
        return self.torch.tensor(
            np.asarray(functools.reduce(operator.getitem, path, self.params), np.float64)
        )

    def conv(self, x, *path, bias=True, **options):
        kernel = self.leaf(*path, "kernel").permute(3, 2, 0, 1)
        padding = options.get("dilation", 1) * (kernel.shape[-1] // 2)
        return self.F.conv2d(
            x, kernel, self.leaf(*path, "bias") if bias else None, padding=padding, **options
        )

    def unit(self, x, *path, bias=False, relu=True, **options):
        x = self.conv(x, *path, "conv", bias=bias, **options)
        path = (*path, "norm", "BatchNorm_0")
        if self.train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            self.seen[path] = mean, var
        else:
            stats = functools.reduce(operator.getitem, path, self.stats)
            mean, var = (self.torch.tensor(np.float64(stats[key])) for key in ("mean", "var"))
        scale, bias = self.leaf(*path, "scale"), self.leaf(*path, "bias")
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * scale[:, None, None] + bias[:, None, None]
        return x.relu() if relu else x

    def linear(self, x, *path):
        return self.F.linear(x, self.leaf(*path, "kernel").T, self.leaf(*path, "bias"))

    def layer_norm(self, x, *path):
        scale, bias = (self.leaf(*path, key).flatten() for key in ("scale", "bias"))
        return self.F.layer_norm(x, scale.shape, scale, bias)

    def resize(self, x, size):
        return self.F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)

    def tokens(self, maps):
        return self.torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)

    def maps(self, tokens, size):
        return [x.transpose(1, 2).unflatten(2, size) for x in tokens.chunk(len(TASKS), 1)]

    def stage(self, number, maps, skip, message):
        name = f"stage{number}"
        if skip is not None:
            maps = [self.resize(x, skip.shape[2:]) for x in maps]
            for unit in ("conv1", "conv2"):
                maps = [
                    self.unit(x, name, f"enlarge@{t}", unit, dilation=2)
                    for x, t in zip(maps, TASKS, strict=True)
                ]
            maps = [x + skip for x in maps]
        size, width = maps[0].shape[2:], maps[0].shape[1]
        x = self.tokens(maps)
        y = self.maps(self.layer_norm(x, name, "norm1"), size)

        path, side = (name, "attention"), 2 * 2**number
        small = [
            self.unit(m, *path, f"query_conv@{t}", relu=False, stride=2, groups=width)
            for m, t in zip(y, TASKS, strict=True)
        ]
        means = self.tokens([self.F.avg_pool2d(m, side, side, ceil_mode=True) for m in y])
        query, key, value = (
            self.linear(z, *path, part).unflatten(2, (2, width // 2)).transpose(1, 2)
            for part, z in (("query", self.tokens(small)), ("key", means), ("value", means))
        )
        score = query @ key.transpose(2, 3) / width**0.5
        grid = small[0].shape[2:]
        if message is not None:
            scores, before = message
            parts = []
            for part in scores.chunk(len(TASKS), 2):  # of each task's queries
                part = part.permute(0, 1, 3, 2).flatten(0, 1).unflatten(2, before)
                part = self.resize(part, grid).flatten(2).unflatten(0, (-1, 2))
                parts.append(part.permute(0, 1, 3, 2))
            both = self.torch.cat([score, self.torch.cat(parts, 2)], 1)
            kernel = self.leaf(*path, "fuse", "kernel").T[:, :, None, None]
            score = self.F.conv2d(both, kernel, self.leaf(*path, "fuse", "bias"))
        y = (score.softmax(3) @ value).transpose(1, 2).flatten(2)
        y = self.maps(self.linear(y, *path, "out"), grid)
        x = x + self.tokens([self.resize(m, size) for m in y])
        y = self.F.gelu(self.linear(self.layer_norm(x, name, "norm2"), name, "mlp1"))
        return self.maps(x + self.linear(y, name, "mlp2"), size), (score, grid)

    def __call__(self, maps):
        first, second, _, last = (self.torch.tensor(np.float64(x)).permute(0, 3, 1, 2) for x in maps)
        h, w = last.shape[2:]
        start = self.resize(last, ((h + 1) // 2, (w + 1) // 2))
        x, predictions = [], {}
        for task in TASKS:
            name = f"preliminary@{task}"
            features = self.unit(self.unit(start, name, "conv1"), name, "conv2")
            predictions[task] = self.conv(features, name, "predict")
            x.append(self.conv(self.torch.cat([features, predictions[task]], 1), name, "mix"))
        kernel = self.leaf("skip2", "kernel").permute(2, 3, 0, 1)
        fine = self.F.conv_transpose2d(
            first, kernel, self.leaf("skip2", "bias"), stride=2, padding=1, output_padding=1
        )
        total, message = [0] * len(TASKS), None
        for number, skip in enumerate((None, self.conv(second, "skip1"), fine)):
            x, message = self.stage(number, x, skip, message)
            joint = self.torch.cat(x, 1).permute(0, 2, 3, 1)
            joint = self.layer_norm(joint, f"result{number}", "norm").permute(0, 3, 1, 2)
            for i, (task, y) in enumerate(zip(TASKS, joint.chunk(len(TASKS), 1), strict=True)):
                if number:
                    y = self.conv(y, f"result{number}", f"conv@{task}")
                total[i] = total[i] + self.resize(y, (4 * h, 4 * w))
        features = {
            task: self.unit(y, f"project@{task}", bias=True) for task, y in zip(TASKS, total, strict=True)
        }
        return features, predictions


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("train", [False, True])
def test_decoder_is_that_of_the_formulas(variables, train, request):
    torch = pytest.importorskip("torch")
    features, intermediate, stats = decode(variables, True) if train else request.getfixturevalue("decoded")
    formulas = Formulas(torch, variables, train)
    expected = formulas(random_maps())
    (raw,) = intermediate
    for ours, theirs in zip((features, raw), expected, strict=True):
        assert list(ours) == list(TASKS)
        for task in TASKS:
            close(ours[task], theirs[task].permute(0, 2, 3, 1).numpy())
    assert features["depth"].shape == (2, 20, 12, 72) and raw["semseg"].shape == (2, 3, 2, 5)

    if not train:
        jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
        return
    assert len(jax.tree.leaves(stats)) == 2 * len(formulas.seen)
    for path, seen in formulas.seen.items():
        old, new = (functools.reduce(operator.getitem, path, s) for s in (variables["batch_stats"], stats))
        for key, value in zip(("mean", "var"), seen, strict=True):
            moved = 0.9 * old[key] + 0.1 * value.numpy()
            np.testing.assert_allclose(new[key], moved, rtol=1e-4, atol=1e-4)
            assert np.any(np.abs(new[key] - old[key]) > 1e-2), path


def test_scores_are_scaled_by_the_width_of_all_heads():
    """1/24 in the first stage of the published size, and the message is the scores before the softmax."""
    stage = Stage(("a",), 576, 2)
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 576))
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0), x, None, None, False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0.5, 0.3, s.shape).astype(np.float32), shapes)
    (_, scores), inner = stage.apply(variables, x, None, None, False, capture_intermediates=True)
    assert scores.shape == (1, 1, 1, 1, 1, HEADS)  # one query of one mean
    seen = inner["intermediates"]["attention"]
    query, key = (np.float64(seen[name]["__call__"][0]).reshape(HEADS, -1) for name in ("query", "key"))
    np.testing.assert_allclose(scores.ravel(), (query * key).sum(1) / 24, rtol=1e-4)


def test_nothing_in_the_decoder_is_random(variables):
    program = jax.make_jaxpr(
        lambda v, x: DECODER.apply(v, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    )(variables, random_maps())
    assert "random_bits" not in str(program) and "threefry" not in str(program)


@pytest.fixture(scope="module")
def gradient(variables):
    """remat -> function of a weight of each task's features -> gradients by the decoder's parameters."""

    @functools.cache
    def of(remat):
        decoder = DECODER.clone(remat=remat)

        @jax.jit
        @jax.grad
        def grad(params, weights):
            v = {**variables, "params": params}
            (features, _), _ = decoder.apply(v, random_maps(), True, mutable=["batch_stats"])
            return sum(weights[t] * jnp.mean(jnp.sin(features[t])) for t in TASKS)

        return functools.partial(grad, variables["params"])

    return of


def test_every_task_learns_from_the_others(gradient):
    for task in TASKS:
        grads = gradient(False)({other: float(other == task) for other in TASKS})
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            name = jax.tree_util.keystr(path)
            assert jnp.isfinite(g).all(), name
            assert jnp.any(g != 0) == all(f"project@{other}" not in name for other in TASKS if other != task)


def test_remat_changes_no_gradient(gradient):
    weights = dict.fromkeys(TASKS, 1.0)
    ours, theirs = gradient(True)(weights), gradient(False)(weights)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_bfloat16_is_close(variables, decoded):
    rough, (raw,), _ = decode(variables, False, DECODER.clone(dtype=jnp.bfloat16))
    exact, (exact_raw,), _ = decoded
    for task in TASKS:
        for ours, theirs in ((rough[task], exact[task]), (raw[task], exact_raw[task])):
            assert ours.dtype == jnp.bfloat16
            assert 0 < jnp.abs(ours - theirs).max() < 0.05 * jnp.abs(theirs).max()


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (8, 6)])
def test_any_grid_has_its_maps(variables, grid):
    maps = [jnp.zeros((1, *grid, 6))] * 4
    features, (raw,) = jax.eval_shape(lambda v: DECODER.apply(v, maps, False), variables)
    half = tuple(-(-n // 2) for n in grid)
    for task in TASKS:
        assert features[task].shape == (1, 4 * grid[0], 4 * grid[1], 72)
        assert raw[task].shape == (1, *half, TASKS[task].channels)


# The network.


def sizes(tasks, **options):
    """Model, and the shapes of its variables."""
    model = invpt.build(tasks, "float32", **options)
    return model, jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), tuple(tasks), train=False)
    )


def idle_parameters(count):
    """Of the release's layers that nothing reads, for so many tasks."""
    skip = 9 * 1024 * 576 + 576
    fuse = 4 * 2 + 2
    reductions = count * (576 * 576 + 576)
    norm = 2 * count * 144
    return skip + fuse + reductions + norm


@pytest.mark.parametrize(
    "channels,published",
    [((40, 1, 3), 77_119_238), ((40, 1, 3, 1), 97_959_768), ((21, 7, 2, 3, 1), 118_780_306)],
)
def test_parameters_are_those_published(channels, published):
    """Of the release's decoder and heads for NYUD-v2 without and with boundaries, and PASCAL-Context."""
    tasks = {f"task{i}": depth.Depth(f"task{i}", c) for i, c in enumerate(channels)}
    model, variables = sizes(tasks, encoder={"grid": (32, 32)})
    params = dict(variables["params"])
    encoder = cost.parameters(params.pop("encoder"))
    assert cost.parameters(params) + idle_parameters(len(channels)) == published
    if len(channels) == 5:  # with the encoder of images of 512x512
        assert round((encoder + published) / 1e6, 2) == 422.93
    encoder = model.encoder
    assert (encoder.width, encoder.depth, encoder.heads, encoder.patch) == (1024, 24, 16, 16)
    assert encoder.drop_path == 0.15
    assert params["stage2"]["mlp1"]["kernel"].shape == (144, EXPANSION * 144)


@pytest.fixture(scope="module")
def network():
    """A tiny one, and variables with all of its parts in play."""
    model, shapes = sizes(TASKS, **TINY)
    rng = np.random.default_rng(0)

    def fill(leaf):
        spread = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(float(len(leaf.shape) == 1), spread, leaf.shape).astype(np.float32)

    return model, jax.tree.map(fill, shapes)


IMAGE = np.random.default_rng(1).uniform(size=(2, *SIZE, 3)).astype(np.float32)


def predict(model, variables, tasks):
    return jax.jit(lambda v, x: model.apply(v, x, tasks, train=False))(variables, IMAGE)


def test_predictions_of_some_tasks_are_those_of_all(network):
    every, some = predict(*network, tuple(TASKS)), predict(*network, ("depth",))
    assert every.features["depth"].shape == (2, 4 * GRID[0], 4 * GRID[1], 72)
    assert every.encoded["depth"].shape == (2, *GRID, 12)
    assert len(every.intermediate) == 1
    for outputs in (every.outputs, *every.intermediate):
        for name, task in TASKS.items():
            assert outputs[name].shape == (2, *SIZE, task.channels) and outputs[name].dtype == jnp.float32
    for part in (some.outputs, some.features, some.encoded, *some.intermediate):
        assert set(part) == {"depth"}
    close(some.outputs["depth"], every.outputs["depth"], 1e-5)
    close(some.intermediate[0]["depth"], every.intermediate[0]["depth"], 1e-5)


def test_the_network_is_encoder_decoder_and_heads(network):
    """Each run by itself, the encoder on what the weights want to see."""
    model, variables = network

    def part(name):
        return {c: variables[c][name] for c in variables if name in variables[c]}

    @jax.jit
    def whole(image):
        mean, std = jnp.array((0.485, 0.456, 0.406)), jnp.array((0.229, 0.224, 0.225))
        maps = ViT(12, 4, 2, 8, (2, 2)).apply(part("encoder"), (image - mean) / std, False)
        features, (raw,) = DECODER.apply(part("decoder"), maps, False)
        return maps[-1], features["depth"], raw["depth"]

    last, features, raw = whole(IMAGE)
    predicted = predict(model, variables, ("depth",))
    close(predicted.encoded["depth"], last)
    close(predicted.features["depth"], features)
    head = variables["params"]["head@depth"]["conv"]
    for ours, small in (
        (predicted.outputs["depth"], features @ head["kernel"][0, 0] + head["bias"]),
        (predicted.intermediate[0]["depth"], raw),
    ):
        close(ours, jax.image.resize(small, (2, *SIZE, 1), "bilinear", antialias=False))


def test_preliminary_predictions_are_trained_like_the_last_ones(network):
    model, variables = network
    method = names.build("methods", "supervised", {"weights": {"depth": 0.5}}, model, TASKS)
    rng = np.random.default_rng(2)
    labels = {
        "semseg": rng.integers(0, 5, (2, *SIZE, 1)).astype(np.int32),
        "depth": rng.uniform(1, 9, (2, *SIZE, 1)).astype(np.float32),
    }
    valid = {name: np.ones((2, *SIZE, 1), np.float32) for name in TASKS}
    batch = {"image": IMAGE, "labels": labels, "valid": valid}

    @jax.jit
    def step(variables):
        params = {"model": variables["params"], "method": {}}
        state = {"model": {"batch_stats": variables["batch_stats"]}, "method": {}}
        loss, (_, state) = method.loss(params, state, batch, jax.random.key(0), 0)
        prediction, _ = model.apply(variables, IMAGE, tuple(TASKS), train=True, mutable=["batch_stats"])
        return loss, prediction, state["model"]["batch_stats"]

    loss, prediction, moved = step(variables)  # without drop path, training is the same each time
    final, early = (
        task_losses(TASKS, outputs, labels, valid, "task")
        for outputs in (prediction.outputs, prediction.intermediate[0])
    )
    assert all(abs(final[name] - early[name]) > 1e-3 for name in TASKS)
    expected = final["semseg"] + early["semseg"] + 0.5 * (final["depth"] + early["depth"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    before, after = (jax.tree.leaves(x) for x in (variables["batch_stats"], moved))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_path_of_the_last_shared_layer(network):
    model, variables = network
    assert model.last_shared == ("encoder", "block4", "mlp2")
    layer = functools.reduce(operator.getitem, model.last_shared, variables["params"])
    assert layer["kernel"].shape == (48, 12)


def test_what_belongs_to_a_task(network):
    """Preliminary decoders, and of each stage the layers before the attention and behind the norm."""
    model, variables = network
    method = names.build("methods", "supervised", {}, model, TASKS)
    groups = method.groups({"model": variables["params"]})["model"]["decoder"]
    assert set(jax.tree.leaves(groups["preliminary@depth"])) == {"task:depth"}
    for name in ("enlarge@semseg", "attention"):
        assert "task:semseg" in jax.tree.leaves(groups["stage1"][name])
    assert groups["result2"]["conv@depth"]["bias"] == groups["project@depth"]["conv"]["bias"] == "task:depth"
    for layer in (groups["skip1"], groups["stage1"]["attention"]["key"], groups["stage1"]["mlp1"]):
        assert set(jax.tree.leaves(layer)) == {"shared"}


@pytest.mark.parametrize(
    "options,words",
    [
        ({"dtype": "half"}, "config.dtype is 'half': choose one of float32, bfloat16"),
        ({"width": 0}, "config.model.width is 0: give a multiple of 8"),
        ({"width": 12}, "config.model.width is 12: give a multiple of 8"),
        ({"encoder": {"top": True}}, "config.model.encoder.top is true: leave it out"),
        ({"encoder": {"taps": [12, 24]}}, "config.model.encoder.taps is (12, 24): name three blocks"),
        ({"encoder": {"variant": "h14"}}, "config.model.encoder.variant is 'h14': choose one of ti16"),
        ({"encoder": {"deepness": 3}}, "models.backbones.vit has no option 'deepness'"),
        ({"backbone": "swin"}, "models.invpt has no option 'backbone'"),
        (
            {"tasks": {"scene": classification.build("scene", 4)}},
            "config.model.name 'invpt' is a network of dense tasks: task 'scene' is not dense",
        ),
    ],
)
def test_wrong_options_are_named(options, words):
    options = {"tasks": TASKS, "dtype": "float32", **options}
    tasks, dtype = options.pop("tasks"), options.pop("dtype")
    with pytest.raises(UserError) as error:
        names.build("models", "invpt", options, tasks, dtype)
    assert words in str(error.value)
