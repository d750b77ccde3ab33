"""What the pictures of representations show, against the network run by hand, NumPy and scikit-learn."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image
from sklearn.manifold import TSNE

from mtl_jax import config as configs
from mtl_jax import experiment, representations
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.errors import UserError
from mtl_jax.models.backbones import resnet
from mtl_jax.models.modulation import SqueezeExcite
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.representations import Seen

TASKS = ("semseg", "depth", "classification")
DENSE = ("depth", "semseg")  # as the config sorts them


@pytest.fixture(scope="module", autouse=True)
def short_encoder():
    """One block per stage: everything here is quicker to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        yield


def fill(path, leaf):
    rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
    values = rng.normal(size=leaf.shape)
    if path[-1].key == "kernel":
        return np.float32(values * np.sqrt(2 / np.prod(leaf.shape[:-1])))
    return np.float32(0.1 * values + (path[-1].key in ("scale", "var")))


def write_run(folder, data_dir, **model):
    """A working directory as training leaves it, with random variables."""
    config = configs.default()
    config.data.options = {"size": (32, 48), "train_examples": 1, "test_examples": 5, "data_dir": data_dir}
    config.data.size = (32, 48)
    config.tasks = {name: {} for name in TASKS}
    config.model = {"name": "deeplab", "depth": 26, "width": 0.125, "decoder_width": 16, **model}
    experiment.claim_workdir(config, str(folder))
    experiment.write_tasks(str(folder), config, experiment.build_dataset(config))
    tasks = experiment.read_tasks(str(folder))
    network = experiment.build_model(config, tasks)
    image = jnp.zeros((1, 32, 48, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, tuple(tasks), train=False))
    params, state = shapes["params"], {k: v for k, v in shapes.items() if k != "params"}
    deployed = jax.tree_util.tree_map_with_path(fill, {"params": params, "state": state})
    checkpoints = Checkpoints(str(folder))
    checkpoints.save(1, deployed, {"step": np.int32(1)})
    checkpoints.wait()
    checkpoints.close()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("run"), data_dir, encoder_se="task", decoder_se="task")


@pytest.fixture(scope="module")
def trained(workdir):
    return experiment.load(workdir)


@pytest.fixture(scope="module")
def images(trained):
    """f32[5,32,48,3] of the evaluation split."""
    split = experiment.build_dataset(trained.config).split("test", ())
    return np.stack([split.load(i)["image"] for i in range(5)]).astype(np.float32) / 255


@pytest.fixture(scope="module")
def gates(trained):
    return representations.collect_gates(trained, 3)


@pytest.fixture(scope="module")
def prediction(trained, images):
    """Of the first three images, dense tasks alone."""
    apply = jax.jit(lambda v, x: trained.model.apply(v, x, DENSE, train=False))
    return apply(trained.variables, images[:3])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["representations", *arguments])
    representations.main()


def principal_colors(maps):
    """By the singular values of all vectors of all maps; a component's sign is arbitrary."""
    vectors = np.concatenate([np.float64(m).reshape(-1, m.shape[-1]) for m in maps])
    vectors = vectors - vectors.mean(0)
    u, s, _ = np.linalg.svd(vectors, full_matrices=False)
    values = (u * s)[:, :3]
    return (values - values.min(0)) / (values.max(0) - values.min(0))


def assert_same_colors(found, expected, atol):
    found = np.concatenate([f.reshape(-1, 3) for f in found])
    for a, b in zip(found.T, expected.T, strict=True):
        flipped = 1 - b if abs(a - b).max() > abs(a - (1 - b)).max() else b
        np.testing.assert_allclose(a, flipped, atol=atol)


def test_colors_are_principal_components_of_all_tasks_together():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * [5, 3, 2, 1, 0.5, 0.1]
    maps = [rng.normal(k, 1 + k, (3 + k, 4, 6)) @ mixing.T for k in range(3)]
    maps[2][1, 2] = maps[0][0, 3]
    colors = representations.joint_colors(maps)
    assert [c.shape for c in colors] == [(3, 4, 3), (4, 4, 3), (5, 4, 3)]
    assert_same_colors(colors, principal_colors(maps), 1e-9)
    np.testing.assert_allclose(colors[2][1, 2], colors[0][0, 3], atol=1e-12)
    together = np.concatenate([c.reshape(-1, 3) for c in colors])
    np.testing.assert_allclose([together.min(0), together.max(0)], [[0] * 3, [1] * 3], atol=1e-12)


def test_colors_where_components_are_missing_or_constant():
    line = np.linspace(-1, 3, 8).reshape(2, 4, 1)
    first, second = representations.joint_colors([line, 2 * line])
    values = np.stack([line, 2 * line])[..., 0]
    share = (values - values.min()) / (values.max() - values.min())
    found = np.stack([first, second])
    np.testing.assert_allclose(found[..., 0], share if found[1, 1, 3, 0] == 1 else 1 - share, atol=1e-12)
    np.testing.assert_array_equal(found[..., 1:], 0)
    flat = representations.joint_colors([np.ones((1, 1, 7)), np.ones((1, 1, 7))])
    np.testing.assert_array_equal(flat, np.zeros((2, 1, 1, 3)))


def test_pca_shows_every_layer_of_every_task_of_the_first_images(trained, prediction, images, drawn):
    representations.draw_pca(trained, "figures", 2)
    assert sorted(drawn) == ["pca_0.png", "pca_1.png"]
    image, *axes = drawn["pca_1.png"].axes
    np.testing.assert_allclose(image.get_images()[0].get_array(), images[1], atol=1e-6)
    assert [a.get_title() for a in axes[:2]] == list(DENSE)
    assert [a.get_ylabel() for a in axes[::2]] == ["stage 1", "stage 2", "stage 3", "stage 4", "features"]
    for pictures, maps in ((axes[6:8], prediction.encoded), (axes[8:10], prediction.features)):
        shown = [a.get_images()[0].get_array() for a in pictures]
        assert_same_colors(shown, principal_colors([maps[t][1] for t in DENSE]), 1e-3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_gates_are_those_of_each_task_and_image_in_the_order_of_the_layers(trained, gates, prediction):
    layers = list(gates)
    stages = [f"encoder/stage{k}_block1/conv3" for k in (1, 2, 3, 4)]
    assert layers[:4] == stages and layers[-2:] == ["decoder/refine1", "decoder/refine2"]
    assert all(set(gates[layer]) == set(TASKS) for layer in stages)
    assert all(set(gates[layer]) == set(DENSE) for layer in layers[4:])
    assert all(g.shape[0] == 3 for tasks in gates.values() for g in tasks.values())
    # What a gate let through tells what it was computed from: features = x * gate(mean of x).
    for task in DENSE:
        gate = np.float64(gates["decoder/refine2"][task])
        se = trained.variables["params"]["decoder"]["refine2"][f"se@{task}"]
        mean = np.float64(prediction.features[task]).mean((1, 2)) / gate
        hidden = mean @ se["squeeze"]["kernel"] + se["squeeze"]["bias"]
        expected = sigmoid(np.maximum(hidden, 0) @ se["excite"]["kernel"] + se["excite"]["bias"])
        np.testing.assert_allclose(gate, expected, atol=1e-4)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x, task=None):
        return SqueezeExcite(2, name=owned("se", task))(x)


class Toy(nn.Module):
    """Gates of all kinds, in an order that is not the alphabet's."""

    @nn.compact
    def __call__(self, image, tasks, train):
        x = SqueezeExcite(2, name="se")(image)
        gated, outputs = Nested(name="gated"), {}
        for task in tasks:
            outputs[task] = Nested(name=f"decoder@{task}")(gated(x, task))
        return Prediction(outputs, {}, {})

    def features(self, image, task, train):
        return 2 * image


def test_gates_below_a_tasks_module_are_its_own_and_shared_ones_are_left_out():
    image = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    toy = Toy()
    variables = toy.init(jax.random.key(1), image, ("b", "a"), train=False)
    gates = jax.jit(lambda v: representations.own_gates(toy, v, image, ("b", "a")))(
        {"params": variables["params"]}
    )
    assert list(gates) == [("gated", "b"), ("gated", "a"), ("decoder", "b"), ("decoder", "a")]


def test_a_model_without_stages_shows_its_features():
    image = jnp.ones((1, 2, 2, 3))
    maps = Toy().apply({}, image, "a", method=representations.layer_maps)
    assert list(maps) == ["features"]
    np.testing.assert_array_equal(maps["features"], 2 * image)


def test_only_the_images_part_of_a_padded_canvas_is_shown():
    seen = Seen(0, np.arange(8 * 12.0).reshape(1, 8, 12, 1), (5, 7))
    np.testing.assert_array_equal(seen.crop(seen.canvas), seen.canvas[0, :5, :7])
    assert seen.crop(np.zeros((1, 2, 3, 4))).shape == (2, 2, 4)  # 5/8 of 2 and 7/12 of 3, rounded up
    assert Seen(0, np.zeros((1, 48, 48, 3)), (33, 48)).crop(np.zeros((1, 48, 48, 3))).shape == (33, 48, 3)


def test_images_are_those_of_the_padded_evaluation(trained, images):
    config = trained.config.copy_and_resolve_references()
    configs.override(config, "data.eval_size", (40, 48))
    for k, seen in enumerate(representations.first_images(config, 2)):
        assert (seen.index, seen.size, seen.canvas.shape) == (k, (32, 48), (1, 40, 48, 3))
        np.testing.assert_allclose(seen.crop(seen.canvas), images[k], atol=1e-6)


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (10, [0, 3, 6, 9])]
)
def test_depths_are_equally_spaced(count, chosen):
    gates = {f"layer {k}": {"a": np.full((2, 3), k)} for k in range(count)}
    assert representations.at_depths(gates) == {f"layer {k}": gates[f"layer {k}"] for k in chosen}


@pytest.mark.parametrize(("points", "perplexity"), [(5, 3.0), (60, 30.0)])
def test_tsne_is_scikit_learns_over_all_tasks(points, perplexity):
    rng = np.random.default_rng(0)
    vectors = {name: np.float32(rng.normal(3 * k, 0.3, (points, 6))) for k, name in enumerate("ab")}
    places = representations.embed(vectors)
    tsne = TSNE(perplexity=perplexity, method="exact", random_state=0)
    expected = tsne.fit_transform(np.concatenate([vectors["a"], vectors["b"]]))
    np.testing.assert_array_equal(np.concatenate([places["a"], places["b"]]), expected)
    if points == 60:  # two clouds, far apart
        between = np.linalg.norm(places["a"].mean(0) - places["b"].mean(0))
        assert between > 2 * max(p.std(0).max() for p in places.values())


def test_tsne_of_too_few_points_is_refused():
    with pytest.raises(UserError, match="wants 4 points.* not 3"):
        representations.embed({"a": np.eye(3)})


def test_figures_have_each_task_in_its_colour(drawn):
    rng = np.random.default_rng(0)
    tasks = ("a", "b", "c")
    places = {
        "early": {t: rng.normal(size=(5, 2)) for t in tasks},
        "late": {t: rng.normal(size=(5, 2)) for t in "ac"},
    }
    figure = representations.tsne_figure(places, tasks)
    for axes, (layer, points) in zip(figure.axes, places.items(), strict=True):
        assert axes.get_title() == layer
        for dots, (task, xy) in zip(axes.collections, points.items(), strict=True):
            np.testing.assert_array_equal(dots.get_offsets(), xy)
            assert tuple(dots.get_facecolor()[0]) == to_rgba(f"C{tasks.index(task)}")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(tasks)

    means = {"early": {t: rng.random(4) for t in tasks}, "late": {t: rng.random(7) for t in "ac"}}
    figure = representations.gates_figure(means, tasks)
    for axes, (layer, gates) in zip(figure.axes, means.items(), strict=True):
        assert axes.get_title() == layer
        for line, (task, values) in zip(axes.lines, gates.items(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), values)
            assert line.get_color() == f"C{tasks.index(task)}"


def test_commands(tmp_path, monkeypatch, workdir, gates, capsys):
    def collected(trained, count):
        assert trained.step == 1
        return {layer: {task: g[:count] for task, g in tasks.items()} for layer, tasks in gates.items()}

    monkeypatch.setattr(representations, "collect_gates", collected)
    run(monkeypatch, f"--workdir={workdir}", "--figure=tsne", "--images=3")
    run(monkeypatch, f"--workdir={workdir}", "--figure=gates", "--images=2", f"--out={tmp_path}/out")
    paths = capsys.readouterr().out.split()
    assert paths == [f"{workdir}/figures/tsne.png", f"{tmp_path}/out/gates.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 800 and np.asarray(picture).std() > 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--figure=tsne"], "no task of this run has gates of its own: train a network that has"),
        (["--figure=pca", "--images=0"], "--images must be at least 1, not 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, data_dir, capsys, flags, message):
    folder = write_run(tmp_path, data_dir, encoder_se="shared")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"--workdir={folder}", *flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err
