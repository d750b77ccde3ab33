"""InvPT: its decoder against a formulation in torch, its size, and the network around it."""

import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.methods.supervised import task_losses
from mtl_jax.models import cost, invpt
from mtl_jax.models.backbones.vit import ViT
from mtl_jax.models.decoders.invpt import HEADS, Stage
from mtl_jax.tasks import classification, depth, semseg

TASKS = {"semseg": semseg.build("semseg", 5), "depth": depth.build("depth")}  # in no alphabetical order
ENCODER = {"width": 12, "depth": 3, "taps": (1, 2, 3), "heads": 2, "patch": 8, "grid": (2, 2)}
TINY = {"width": 8, "encoder": {**ENCODER, "drop_path": 0.0}}
SIZE = (37, 24)  # of the images
GRID = (5, 3)  # of their patches: neither side divides into the pools of the stages
IMAGE = np.random.default_rng(1).uniform(size=(2, *SIZE, 3)).astype(np.float32)
EVERY = tuple(TASKS)

# A decoder is a large program, which is compiled three times here: do it in a hurry.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(model, image=IMAGE):
    """Of its variables."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(model.tasks), train=False))


@pytest.fixture(scope="module")
def network():
    """A tiny one, and variables with all of its parts in play."""
    model = invpt.build(TASKS, "float32", **TINY)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.6, 1.4, leaf.shape).astype(np.float32)
        if name in ("bias", "mean"):
            return rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32)
        return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(fill, shapes_of(model))


@pytest.fixture(scope="module")
def predicted(network):
    """The encoder's maps, and the prediction of all tasks and of one."""
    model, variables = network

    @quick_jit
    def run(variables, image):
        maps = model.apply(variables, image, None, False, method="encode")
        return maps, *(model.apply(variables, image, tasks, train=False) for tasks in (EVERY, ("depth",)))

    return run(variables, IMAGE)


LABELS = {
    "semseg": np.random.default_rng(2).integers(0, 5, (2, *SIZE, 1)).astype(np.int32),
    "depth": np.random.default_rng(3).uniform(1, 9, (2, *SIZE, 1)).astype(np.float32),
}


def valid(*tasks):
    """Masks of a batch that has labels of these alone."""
    return {name: np.full((2, *SIZE, 1), name in tasks, np.float32) for name in TASKS}


@pytest.fixture(scope="module")
def trained(network):
    """Masks -> losses, gradient of their sum by the model's parameters, new statistics, prediction."""
    model, variables = network
    method = names.build("methods", "supervised", {}, model, TASKS)

    @quick_jit
    def step(variables, valid):
        state = {"model": {"batch_stats": variables["batch_stats"]}, "method": {}}
        batch = {"image": IMAGE, "labels": LABELS, "valid": valid}

        def loss(params):
            params = {"model": params, "method": {}}
            prediction, new = method.forward(params, state, IMAGE, jax.random.key(0))
            losses = method.supervised(prediction, batch)
            return sum(losses.values()), (losses, new["model"]["batch_stats"], prediction)

        grads, (losses, stats, prediction) = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, grads, stats, prediction

    return lambda valid: jax.device_get(step(variables, valid))


class Formulas:
    """The decoder in torch, float64, NCHW: tokens of all tasks in one sequence, heads before tokens."""

    def __init__(self, torch, variables, train):
        self.torch, self.F, self.train = torch, torch.nn.functional, train
        self.params, self.stats = variables["params"]["decoder"], variables["batch_stats"]["decoder"]
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
        first, second, last = (self.torch.tensor(np.float64(x)).permute(0, 3, 1, 2) for x in maps)
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


def check(formulas, maps, prediction):
    features, early = formulas(maps)
    for task in TASKS:
        close(prediction.features[task], features[task].permute(0, 2, 3, 1).numpy())
        early_outputs = formulas.resize(early[task], SIZE).permute(0, 2, 3, 1)
        close(prediction.intermediate[0][task], early_outputs.numpy())


def test_decoder_is_that_of_the_formulas(network, predicted):
    torch = pytest.importorskip("torch")
    maps, prediction, _ = predicted
    check(Formulas(torch, network[1], False), maps, prediction)
    assert prediction.features["depth"].shape == (2, 4 * GRID[0], 4 * GRID[1], 72)


def test_decoder_is_that_of_the_formulas_in_training(network, predicted, trained):
    """With the statistics of the batch, of which the running ones take a tenth."""
    torch = pytest.importorskip("torch")
    _, _, stats, prediction = trained(valid(*TASKS))
    formulas = Formulas(torch, network[1], True)
    check(formulas, predicted[0], prediction)  # the encoder makes no difference
    old, new = network[1]["batch_stats"]["decoder"], stats["decoder"]
    assert len(jax.tree.leaves(stats)) == 2 * len(formulas.seen)
    for path, seen in formulas.seen.items():
        before, after = (functools.reduce(operator.getitem, path, s) for s in (old, new))
        for key, value in zip(("mean", "var"), seen, strict=True):
            np.testing.assert_allclose(after[key], 0.9 * before[key] + 0.1 * value.numpy(), atol=1e-4)
            assert np.any(np.abs(after[key] - before[key]) > 1e-3), path


def test_scores_are_scaled_by_the_width_of_all_heads():
    """1/24 in the first stage of the published size; they are those before the softmax."""
    stage = Stage(("a",), 576, 2)
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 576))
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0), x, None, None, False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes)

    @quick_jit
    def run(variables):
        return stage.apply(variables, x, None, None, False, capture_intermediates=True)

    (_, scores), inner = run(variables)
    assert scores.shape == (1, 1, 1, 1, 1, HEADS)  # one query of one mean
    seen = inner["intermediates"]["attention"]
    query, key = (np.float64(seen[name]["__call__"][0]).reshape(HEADS, -1) for name in ("query", "key"))
    assert np.all(np.isfinite(scores)) and np.all(scores != 0)
    np.testing.assert_allclose(scores.ravel(), (query * key).sum(1) / 24, rtol=1e-4)


def test_each_tasks_loss_reaches_the_others_preliminary_decoders(trained):
    """Its early loss does not: it is the last one that does."""
    for task, other in (EVERY, EVERY[::-1]):
        _, grads, *_ = trained(valid(task))
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            name = jax.tree_util.keystr(path)
            assert np.isfinite(g).all(), name
            if name.startswith(f"['decoder']['preliminary@{other}']"):
                assert np.any(g != 0), name
            if name.startswith((f"['decoder']['project@{other}']", f"['head@{other}']")):
                assert np.all(g == 0), name


def test_preliminary_predictions_are_trained_like_the_last_ones(trained):
    losses, grads, _, prediction = trained(valid(*TASKS))
    final, early = (
        task_losses(TASKS, outputs, LABELS, valid(*TASKS), "task")
        for outputs in (prediction.outputs, *prediction.intermediate)
    )
    for name in TASKS:
        assert abs(final[name] - early[name]) > 1e-3
        np.testing.assert_allclose(losses[name], final[name] + early[name], rtol=1e-5)
    # But for biases that a softmax or a batch normalisation takes out again.
    removed = re.compile(r"\['(key|fuse)'\]\['bias'\]|\['project@\w+'\]\['conv'\]\['bias'\]")
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.any(g != 0) or removed.search(name), name


def test_predictions_of_some_tasks_are_those_of_all(predicted):
    maps, every, some = predicted
    np.testing.assert_array_equal(every.encoded["depth"], maps[-1])
    assert len(every.intermediate) == len(some.intermediate) == 1
    for outputs in (every.outputs, *every.intermediate):
        for name, task in TASKS.items():
            assert outputs[name].shape == (2, *SIZE, task.channels) and outputs[name].dtype == jnp.float32
    for part in (some.outputs, some.features, some.encoded, *some.intermediate):
        assert set(part) == {"depth"}
    close(some.outputs["depth"], every.outputs["depth"], 1e-5)
    close(some.intermediate[0]["depth"], every.intermediate[0]["depth"], 1e-5)


def test_bfloat16_is_close(network, predicted):
    model, variables = network
    maps, exact, _ = predicted
    decoder = model.decoder.clone(dtype=jnp.bfloat16)
    part = {collection: variables[collection]["decoder"] for collection in variables}
    features, (raw,) = quick_jit(lambda v, maps: decoder.apply(v, maps, False))(part, maps)
    for task in TASKS:
        assert features[task].dtype == raw[task].dtype == jnp.bfloat16
        error = jnp.abs(features[task] - exact.features[task]).max()
        assert 0 < error < 0.05 * jnp.abs(exact.features[task]).max()


def traced(network, **options):
    """The decoder's program in training, as text."""
    model, variables = network
    decoder, maps = model.decoder.clone(**options), [jnp.zeros((1, *GRID, 12))] * 3
    part = {collection: variables[collection]["decoder"] for collection in variables}
    keys = {"dropout": jax.random.key(0)}
    return str(
        jax.make_jaxpr(lambda v: decoder.apply(v, maps, True, rngs=keys, mutable=["batch_stats"]))(part)
    )


def test_nothing_in_the_decoder_is_random_and_remat_is_of_the_stages(network):
    plain, saving = traced(network), traced(network, remat=True)
    assert "random_bits" not in plain
    assert (plain.count("prevent_cse"), saving.count("prevent_cse")) == (0, 3)


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (8, 6)])
def test_any_grid_has_its_maps(network, grid):
    model, variables = network
    image = jax.ShapeDtypeStruct((1, 8 * grid[0], 8 * grid[1] - 3, 3), jnp.float32)
    prediction = jax.eval_shape(lambda v, x: model.apply(v, x, EVERY, False), variables, image)
    assert prediction.features["semseg"].shape == (1, 4 * grid[0], 4 * grid[1], 72)
    assert prediction.intermediate[0]["semseg"].shape == (1, 8 * grid[0], 8 * grid[1] - 3, 5)


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
    encoder = {"grid": (32, 32)} if len(channels) == 5 else {"depth": 4}  # the rest of L makes no difference
    model = invpt.build(tasks, "float32", encoder=encoder)
    params = dict(shapes_of(model, jnp.zeros((1, 32, 32, 3)))["params"])
    encoder = cost.parameters(params.pop("encoder"))
    assert cost.parameters(params) + idle_parameters(len(channels)) == published
    if len(channels) == 5:  # with the encoder, for images of 512x512
        assert model.encoder == ViT(1024, 24, 16, 16, (32, 32), drop_path=0.15, dtype=jnp.dtype("float32"))
        assert round((encoder + published) / 1e6, 2) == 422.93


def test_path_of_the_last_shared_layer(network):
    model, variables = network
    assert model.last_shared == ("encoder", "block3", "mlp2")
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
