"""Distances between features of pixels that labels call alike or not, against NumPy, pixel by pixel."""

import dataclasses
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from mtl_jax import config as configs
from mtl_jax import experiment, train
from mtl_jax import feature_distances as fd
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.data.dataset import Split
from mtl_jax.errors import UserError
from mtl_jax.methods import ccr, supervised
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction

TASKS = {"semseg": {"num_classes": 3}, "depth": {}, "normals": {}}
SIZE = (12, 16)
K = 5
CCR = {"name": "ccr", "k": K, "width": 4, "negatives": 3}


class Toy(nn.Module):
    """Features of every `stride`-th pixel, for each task its own, and a linear head."""

    tasks: dict
    stride: int = 2
    dtype = jnp.float32

    @nn.compact
    def __call__(self, image, tasks, train):
        small = image[:, :: self.stride, :: self.stride]
        features = {t: nn.tanh(nn.Dense(6, name=owned("decoder", t))(small)) for t in tasks}
        outputs = {}
        for t in tasks:
            raw = nn.Dense(self.tasks[t].channels, name=owned("head", t))(features[t])
            outputs[t] = jax.image.resize(raw, (*image.shape[:3], raw.shape[-1]), "nearest")
        return Prediction(outputs, features, features)


@pytest.fixture(scope="module", autouse=True)
def toy():
    """A config can name the network."""
    module = types.ModuleType("mtl_jax.models.toy")
    module.build = lambda tasks, dtype, stride=2: Toy(tasks, stride)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


def make_config(data_dir="", tasks=TASKS, method=None, **model):
    config = configs.default()
    config.data.options = {"size": (32, 48), "train_examples": 1, "test_examples": 3, "data_dir": data_dir}
    config.data.size = SIZE
    config.data.batch_size = 2
    config.data.eval_size = (32, 48) if data_dir else SIZE
    config.tasks = {name: {} for name in tasks}
    config.model = {"name": "toy", **model}
    config.method = method or {"name": "supervised"}
    return config


def randomised(path, leaf):
    rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
    values = np.float32(rng.normal(size=leaf.shape))
    return np.abs(values) + 0.5 if path[-1].key in ("scale", "var") else values


def make_state(config, tasks):
    """(method, a training state whose every number is random)."""
    model = experiment.build_model(config, tasks)
    method = experiment.build_method(config, model, tasks)
    batch = experiment.example_batch(config, tasks)
    state = train.init_state(method, config, jax.random.key(0), batch)
    average = (
        {} if not state.average else jax.tree_util.tree_map_with_path(randomised, {"a": state.average})["a"]
    )
    return method, state.replace(
        params=jax.tree_util.tree_map_with_path(randomised, state.params),
        state=jax.tree_util.tree_map_with_path(randomised, state.state),
        average=average,
    )


def write_run(folder, config, step=3):
    """A working directory as training leaves it; returns the state in it."""
    folder = str(folder)
    experiment.claim_workdir(config, folder)
    experiment.write_tasks(folder, config, experiment.build_dataset(config))
    _, state = make_state(config, experiment.read_tasks(folder))
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, *state.split())
    checkpoints.wait()
    checkpoints.close()
    return state


def make_run(name="run", tasks=None, seed=0, **options):
    """A run in memory; of another seed, its network is another."""
    config = make_config(**options)
    tasks = tasks or build_tasks()
    method, state = make_state(config, tasks)
    params = jax.tree.map(lambda x: x * (1 + seed), state.params["model"])
    trained = experiment.Experiment(config, tasks, method.model, {"params": params}, 1)
    own = {"params": state.params["method"], "state": state.state["method"]}
    return fd.Run(name, trained, method, own)


def build_tasks(names=TASKS):
    from mtl_jax import tasks as tasks_lib

    return tasks_lib.build({name: {} for name in names}, TASKS | {"classification": {"num_classes": 4}})


@pytest.fixture(scope="module")
def split():
    """Three images, one narrower, some of whose labels are unknown; of the last, all of the classes."""
    rng = np.random.default_rng(0)
    sizes = [SIZE, (12, 14), SIZE]
    examples = []
    for number, size in enumerate(sizes):
        known = rng.uniform(size=(*size, 1)) < 0.8
        normals = rng.normal(size=(*size, 3)).astype(np.float32)
        labels = {
            "semseg": np.where(known & (number < 2), rng.integers(0, 3, (*size, 1)), 255).astype(np.uint8),
            "depth": np.where(known, rng.integers(2, 9, (*size, 1)) / 2, 0).astype(np.float32),
            "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        }
        examples.append({"image": rng.integers(0, 256, (*size, 3), np.uint8), "labels": labels})

    def opened(tasks=TASKS):
        def load(index):
            labels = {name: examples[index]["labels"][name] for name in tasks}
            return {"image": examples[index]["image"], "labels": labels}

        return Split(["a", "b", "c"], lambda: np.int32(sizes), load)

    return opened


# By value.


def random_units(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_distances_and_their_statistics():
    features = random_units((4, 5, 3))
    rng = np.random.default_rng(1)
    anchor, positive, negative = rng.integers(0, 20, (3, 60))
    triplets = ccr.Triplets(anchor, np.ones(60, bool), positive, negative[:, None], np.ones((60, 1), bool))
    flat = features.reshape(20, 3)
    near = np.array([np.linalg.norm(flat[a] - flat[p]) for a, p in zip(anchor, positive, strict=True)])
    far = np.array([np.linalg.norm(flat[a] - flat[n]) for a, n in zip(anchor, negative, strict=True)])
    for squared, power, width in ((False, 1, 0.02), (True, 2, 0.04)):
        found = fd.distances(jnp.float32(features), triplets, squared)
        np.testing.assert_allclose(found[0], near**power, atol=1e-6)
        np.testing.assert_allclose(found[1], far**power, atol=1e-6)
        values = fd.statistics(fd.Distances(near**power, far**power), squared)
        counts = [np.bincount(np.int64(x**power // width), minlength=101) for x in (near, far)]
        expected = {
            "near": np.mean(near**power),
            "far": np.mean(far**power),
            "gap": np.mean(far**power) - np.mean(near**power),
            "overlap": np.minimum(*counts).sum() / 60,
            "ordered": sum(a < b for a, b in zip(near, far, strict=True)) / 60,
        }
        assert values._asdict() == pytest.approx(expected)


def test_overlap_of_the_same_and_of_other_distances():
    near, far = np.linspace(0, 0.9, 50), np.linspace(1.1, 2.0000002, 50)
    assert fd.statistics(fd.Distances(near, near), False).overlap == pytest.approx(1)
    assert fd.statistics(fd.Distances(near, near), False).ordered == 0
    assert fd.statistics(fd.Distances(near, far), False)[3:] == (0, 1)
    assert fd.shares(far, False).sum() == pytest.approx(1)  # rounding leads beyond 2


def label_distance(name, a, b):
    if name == "semseg":
        return float(a[0] != b[0])
    if name == "depth":
        return float(abs(a[0] - b[0]))
    return float(np.arccos(np.clip(a @ b, -1, 1)))


def is_a_triplet(name, label, known, anchor, positive, negative, k):
    """Whether the labels say so, pixel by pixel."""
    if not (known[anchor] and known[positive] and known[negative]) or anchor in (positive, negative):
        return False
    far = [label_distance(name, label[anchor], x) for x in label]
    if name == "semseg":
        return far[positive] == 0 < far[negative]
    others = [far[p] for p in np.flatnonzero(known) if p != anchor]
    count = min(k, len(others) // 2)
    return (
        far[positive] <= sorted(others)[count - 1] + 1e-6 and far[negative] >= sorted(others)[-count] - 1e-6
    )


def test_triplets_respect_the_sets_of_their_source(split, monkeypatch):
    """Through all of `measure`, which here reports the triplets themselves instead of distances."""

    def numbers(features, triplets, squared):
        count = features.shape[0] * features.shape[1]
        return triplets.anchor * count + triplets.positive, triplets.anchor * count + triplets.negative[:, 0]

    monkeypatch.setattr(fd, "distances", numbers)
    runs = [make_run("plain"), make_run("other", method=CCR, seed=1)]
    pairs = fd.parse_pairs(
        "depth:normals,semseg:depth,normals:depth,depth:semseg,semseg:semseg", runs[0].trained.tasks
    )
    found = fd.measure(runs, pairs, split(), triplets=60)
    assert list(found) == ["plain, features", "other, features", "other, projected"]
    examples = [split().load(i) for i in range(3)]
    for pair in pairs:
        first = found["plain, features"][pair]
        for view in found:  # the same for all runs, features ...
            for a, b in zip(first, found[view][pair], strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(
        found["plain, features"]["semseg", "depth"], found["plain, features"]["normals", "depth"], strict=True
    ):
        np.testing.assert_array_equal(a, b)  # ... and targets
    for source in TASKS:
        target = next(t for t, s in pairs if s == source)
        near, far = found["plain, features"][target, source]
        assert near.size == (40 if source == "semseg" else 60)
        for index in range(2 if source == "semseg" else 3):
            label = examples[index]["labels"][source]
            missing = ((0, 0), (0, SIZE[1] - label.shape[1]), (0, 0))
            label = np.pad(label, missing, constant_values=255 if source == "semseg" else 0)
            label = label[::2, ::2].reshape(-1, label.shape[-1])
            known = {"semseg": label != 255, "depth": label > 0, "normals": label != 0}[source].any(-1)
            some = slice(20 * index, 20 * index + 20)
            anchor, positive = np.divmod(near[some], len(label))
            again, negative = np.divmod(far[some], len(label))
            np.testing.assert_array_equal(anchor, again)
            assert len(set(anchor.tolist())) == 20
            for triplet in zip(anchor, positive, negative, strict=True):
                assert is_a_triplet(source, label, known, *triplet, K), (source, index, triplet)


def test_each_positive_and_each_negative_is_as_likely():
    """Six pixels are near, the others far: of equally far ones the first K are taken."""
    depth = np.where(np.arange(48) < 6, 1.0, 9.0)[:, None]
    counts = np.zeros((2, 48), int)
    for seed in range(5):
        drawn, real = fd.draw_triplets(
            build_tasks()["depth"], jnp.float32(depth), jnp.ones(48, bool), jax.random.key(seed), 48, K
        )
        assert real.all() and sorted(drawn.anchor.tolist()) == list(range(48))
        beyond = drawn.anchor > 10  # their positives are 6 to 10, and their negatives 0 to 4
        for count, chosen in zip(counts, (drawn.positive, drawn.negative[:, 0]), strict=True):
            count += np.bincount(chosen[beyond], minlength=48)
    assert counts.sum(1).tolist() == [185, 185]
    assert counts[0, 6:11].sum() == counts[1, :5].sum() == 185
    assert min(*counts[0, 6:11], *counts[1, :5]) >= 22  # of 37 that are expected: less than 3 deviations


def test_what_is_drawn_depends_on_the_seed_alone(split):
    run, other = make_run("a"), make_run("b", seed=2)
    pairs = [("depth", "semseg"), ("semseg", "depth")]
    alone = fd.measure([run], pairs, split(), 60, k=K)["a, features"]
    beside = fd.measure([other, run], pairs[1:], split(), 60, k=K)
    np.testing.assert_array_equal(alone[pairs[1]], beside["a, features"][pairs[1]])
    assert np.abs(beside["a, features"][pairs[1]].near - beside["b, features"][pairs[1]].near).max() > 0.01
    reseeded = fd.measure([run], pairs, split(), 60, k=K, seed=1)["a, features"]
    assert reseeded[pairs[1]].near.tolist() != alone[pairs[1]].near.tolist()
    # Whatever is asked for, one for each of the 2 x 48 + 42 pixels of the maps that have a label.
    many = fd.measure([run], pairs[1:], split(), 10_000, k=K)["a, features"]
    known = [np.sum(split().load(i)["labels"]["depth"][::2, ::2] > 0) for i in range(3)]
    assert many[pairs[1]].near.size == sum(known) < 138


@pytest.mark.parametrize("sharing", list(ccr.SHARING))
def test_projections_are_those_of_the_pairs_own_projector(sharing):
    run = make_run(method={**CCR, "sharing": sharing})
    pairs = [("depth", "normals"), ("depth", "semseg"), ("normals", "depth"), ("depth", "depth")]
    image = np.random.default_rng(0).uniform(size=(1, *SIZE, 3)).astype(np.float32)
    maps = run.embed(image, pairs)
    params = jax.tree.map(np.float64, run.trained.variables["params"])
    for pair in pairs:
        dense = params[f"decoder@{pair[0]}"]
        features = np.tanh(image[0, ::2, ::2] @ dense["kernel"] + dense["bias"])
        own = maps[fd.View(run).space(pair)]
        np.testing.assert_allclose(
            own, features / np.linalg.norm(features, axis=-1, keepdims=True), atol=1e-5
        )
        space = fd.View(run, projected=True).space(pair)
        names = {"none": "_by_".join(pair), "t_shared": pair[1], "s_shared": pair[0], "both": "all"}
        name = names.get(sharing)
        if pair[0] == pair[1] and sharing in ("none", "t_shared"):  # it has never read these features
            name = None
        assert space == (name and (pair[0], name))
        if name:
            learned = jax.tree.map(np.float64, run.own["params"]["projectors"][name])
            x = features
            for conv in ("conv1", "conv2"):
                x = np.maximum(x, 0) if conv == "conv2" else x
                x = x @ learned[conv]["kernel"][0, 0] + learned[conv]["bias"]
            running = run.own["state"]["projectors"][name]["batch_stats"]["norm"]["BatchNorm_0"]
            affine = learned["norm"]["BatchNorm_0"]
            x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * affine["scale"] + affine["bias"]
            np.testing.assert_allclose(maps[space], x / np.linalg.norm(x, axis=-1, keepdims=True), atol=1e-5)
    assert len(fd.views([run], pairs)) == (1 if sharing == "identity" else 2)
    assert len(fd.views([run], [("depth", "depth")])) == (2 if sharing in ("s_shared", "both") else 1)


def test_what_is_mined_in_an_image():
    features = random_units((3, 4, 5), seed=7)
    flat = features.reshape(12, 5)
    far = [np.linalg.norm(x - flat[7]) for x in flat]
    positive, negative = np.isin(np.arange(12), [1, 4, 6]), np.isin(np.arange(12), [0, 2, 5, 8, 9, 10])
    hardest = max([1, 4, 6], key=lambda p: far[p])
    beyond = sorted((n for n in [0, 2, 5, 8, 9, 10] if far[n] > far[hardest]), key=lambda n: far[n])
    assert len(beyond) > 2
    sets = fd.Sets(jnp.int32(7), jnp.asarray(positive), jnp.asarray(negative))
    assert fd.mine(jnp.float32(features), sets, 2) == ([hardest], beyond[:2])
    assert fd.mine(jnp.float32(features), sets, 12) == ([hardest], beyond)
    alone = sets._replace(positive=jnp.zeros(12, bool))
    assert fd.mine(jnp.float32(features), alone, 2) == ([], [])


def test_an_example_shows_an_anchor_with_both_sets():
    """Of 40 pixels, all but three are the only ones of their class."""
    task = dataclasses.replace(build_tasks()["semseg"], channels=40)
    classes = np.arange(40)
    classes[[3, 11, 30]] = 3
    label = jax.nn.one_hot(classes, 40)
    for seed in range(3):
        sets = fd.draw_sets(task, label, jnp.ones(40, bool), jax.random.key(seed), 5)
        assert int(sets.anchor) in (3, 11, 30)
        assert np.flatnonzero(sets.positive).tolist() == [p for p in (3, 11, 30) if p != sets.anchor]
        assert np.flatnonzero(~sets.negative).tolist() == [3, 11, 30]


def test_k_is_the_runs_own_or_the_papers_share():
    plain, trained, other = make_run("a"), make_run("b", method=CCR), make_run("c", method={**CCR, "k": 7})
    assert fd.choose_k([plain], None, 19_200) == 128 and fd.choose_k([plain], None, 300) == 2
    assert fd.choose_k([plain], None, 10) == 1
    assert fd.choose_k([plain, trained], None, 19_200) == 5 and fd.choose_k([trained, other], 9, 300) == 9
    assert fd.choose_k([make_run(method={"name": "ccr"})], None, 300) == 128
    with pytest.raises(UserError, match="k is 5 in b, 7 in c: choose one for all by --k"):
        fd.choose_k([plain, trained, other], None, 300)


# From the disk.


@pytest.mark.parametrize("ema", [None, 0.9])
def test_projectors_of_a_checkpoint_are_those_of_the_training_state(tmp_path, data_dir, ema):
    config = make_config(data_dir, method={**CCR, "sharing": "none"})
    config.ema_decay = ema
    state = write_run(tmp_path, config)
    trained = experiment.load(str(tmp_path))
    method, own = experiment.load_method(str(tmp_path), trained)
    assert isinstance(method, ccr.CCR) and method.k == K and trained.step == 3
    assert len(own["params"]["projectors"]) == 6
    for part, tree in (("params", state.params), ("state", state.state)):
        assert jax.tree.structure(own[part]) == jax.tree.structure(dict(tree["method"]))
        jax.tree.map(np.testing.assert_array_equal, own[part], tree["method"])
    assert {leaf.shape for leaf in jax.tree.leaves(own["state"])} == {(4,)}  # means and variances


@pytest.mark.parametrize("method", [{"name": "supervised"}, {**CCR, "sharing": "identity"}])
def test_a_method_without_variables_has_none(tmp_path, data_dir, method):
    write_run(tmp_path, make_config(data_dir, method=method))
    found, own = experiment.load_method(str(tmp_path), experiment.load(str(tmp_path)))
    assert isinstance(found, supervised.Supervised)
    assert not jax.tree.leaves(own) and set(own) == {"params", "state"}


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["feature_distances", *map(str, arguments)])
    fd.main()


def test_command(tmp_path, monkeypatch, data_dir, capsys):
    write_run(tmp_path / "mt", make_config(data_dir, stride=4))
    write_run(tmp_path / "ccr", make_config(data_dir, method=CCR, stride=4))
    where = ["--workdirs", tmp_path / "mt", tmp_path / "ccr", f"--out={tmp_path}/out", "--example=1"]
    run_command(monkeypatch, *where, "--pairs=depth:normals,semseg:semseg", "--triplets=90", "--squared")
    *lines, histograms, example = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("|")]
    assert [histograms, example] == [f"{tmp_path}/out/distances.png", f"{tmp_path}/out/triplets.png"]
    rows = [line.split("|")[1].strip() for line in lines[2:]]
    kinds = ("mt, features", "ccr, features", "ccr, projected")
    titles = ("depth by normals", "semseg by semseg", "mean of 2 pairs")
    assert rows == [f"{kind}, {title}" for kind in kinds for title in titles]
    assert (tmp_path / "out/table.md").read_text() == "\n".join(lines) + "\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "table.md", "table.csv", "table.tex", "distances.png", "triplets.png",
    }  # fmt: skip
    for path in (histograms, example):
        with Image.open(path) as picture:
            assert picture.width > 800 and np.asarray(picture).std() > 5
    first = lines[2].split("|")[2:-1]
    found = fd.measure(
        fd.read_runs([str(tmp_path / "mt")]), [("depth", "normals")],
        experiment.build_dataset(make_config(data_dir)).split("test", ("normals",)), 90, K, True,
    )["mt, features"]["depth", "normals"]  # fmt: skip
    assert float(first[0]) == pytest.approx(np.mean(found.near), abs=6e-4)
    assert float(first[4]) == pytest.approx(np.mean(found.far > found.near), abs=6e-4)
    assert int(first[5]) == 90


def test_mistakes_are_one_sentence(tmp_path, monkeypatch, data_dir, capsys):
    write_run(tmp_path / "mt", make_config(data_dir))
    write_run(tmp_path / "coarse", make_config(data_dir, stride=4))
    write_run(tmp_path / "two", make_config(data_dir, ("semseg", "depth")))
    write_run(tmp_path / "one", make_config(data_dir, ("depth", "classification")))
    fresh = make_config(data_dir)
    experiment.claim_workdir(fresh, str(tmp_path / "fresh"))
    experiment.write_tasks(str(tmp_path / "fresh"), fresh, experiment.build_dataset(fresh))
    unlabelled = make_config(data_dir)
    unlabelled.data.options.unlabelled_examples = 1
    unlabelled.data.eval = "unlabelled"
    write_run(tmp_path / "unlabelled", unlabelled)
    for runs, flags, message in (
        (["mt", "two"], [], "differ in task 'normals': compare runs of the same tasks"),
        (["mt", "fresh"], [], "there is no latest checkpoint in"),
        (["nothing"], [], "nothing is no working directory of a run"),
        (["one"], [], "two tasks with a label per pixel are needed, and the runs have depth"),
        (["mt"], ["--pairs=depth:edges"], "--pairs has 'edges': the tasks with a label per pixel are depth,"),
        (["mt"], ["--pairs=depth"], "--pairs has 'depth': give TARGET:SOURCE"),
        (["mt", "coarse"], [], "are 16x24 pixels in mt, but 8x12 in coarse: compare runs whose maps have"),
        (["mt"], ["--example=3", "--triplets=9"], "--example is 3: the split has the images 0 to 2"),
        (["mt"], ["--triplets=0"], "--triplets must be at least 1, not 0"),
        (["mt"], ["--images=-1"], "--images must be at least 1, not -1"),
        (["mt"], ["--k=0"], "--k must be at least 1, not 0"),
        (["unlabelled"], [], "the split 'unlabelled' of scenes has no labels"),
    ):
        with pytest.raises(SystemExit) as stop:
            where = [tmp_path / run for run in runs]
            run_command(monkeypatch, "--workdirs", *where, f"--out={tmp_path}/out", *flags)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_images_without_labels_are_refused(split):
    with pytest.raises(UserError, match="no pixel of 1 images has a positive .* of task 'semseg': use more"):
        fd.measure([make_run()], [("depth", "semseg")], split().subset([2]), 10)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path, data_dir):
    for part in "ab":
        write_run(tmp_path / part / "run", make_config(data_dir))
    names = [run.name for run in fd.read_runs([f"{tmp_path}/{part}/run/" for part in "aba"])]
    assert names == [f"{tmp_path}/{part}/run" for part in "ab"]


# Pictures.


def test_histograms_have_a_panel_for_each_pair_and_view():
    rng = np.random.default_rng(0)
    pairs = [("depth", "depth"), ("depth", "normals")]

    def some():
        return fd.Distances(rng.uniform(0, 1.2, 80), rng.uniform(0.4, 1.5, 80))

    found = {"a, features": {pair: some() for pair in pairs}, "a, projected": {pairs[1]: some()}}
    figure = fd.histograms(found, pairs, squared=False)
    assert [axes.get_title() for axes in figure.axes] == [*found, "", ""]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["depth by depth", "depth by normals"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["positives", "negatives", "mean"]
    shown = {0: ("a, features", 0), 2: ("a, features", 1), 3: ("a, projected", 1)}
    for number, axes in enumerate(figure.axes):
        assert axes.get_xlim() == figure.axes[0].get_xlim() and axes.get_xlim()[1] < 1.6
        if number not in shown:
            assert [t.get_text() for t in axes.texts] == ["no projector"] and not axes.lines
            continue
        view, pair = shown[number]
        values = found[view][pairs[pair]]
        for line, distance, color in zip(axes.lines, values, fd.COLORS.values(), strict=True):
            assert line.get_xdata()[0] == pytest.approx(distance.mean()) and line.get_color() == color
        for stairs, distance in zip(axes.patches[::2], values, strict=True):
            heights, borders, _ = stairs.get_data()
            assert np.sum(heights * np.diff(borders)) == pytest.approx(1)
            assert np.average(borders[:-1] + 0.01, weights=heights) == pytest.approx(
                distance.mean(), abs=0.01
            )
            assert heights.max() < axes.get_ylim()[1]
        assert axes.texts[0].get_text() == (
            f"gap {values.far.mean() - values.near.mean():.2f}   P {np.mean(values.far > values.near):.2f}"
        )


def test_an_example_has_its_sets_and_marks_where_they_are_in_the_image():
    """A canvas whose right third is no part of the image."""
    image = np.random.default_rng(0).uniform(size=(8, 12, 3)).astype(np.float32)
    positive, negative = (np.isin(np.arange(24), x) for x in ([1, 2], [12, 19]))
    mined = fd.Mined(fd.Sets(np.int32(7), positive, negative), (4, 6), {"a, features": ([2], [12, 19])})
    figure = fd.example_figure(
        image,
        (8, 8),
        {("depth", "normals"): mined, ("depth", "depth"): mined},
        ["a, features", "a, projected"],
    )
    assert [axes.get_title() for axes in figure.axes[:3]] == ["sets", "a, features", "a, projected"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["depth by normals", "depth by depth"]
    for sets, marked, missing in (figure.axes[:3], figure.axes[3:]):
        for axes in (sets, marked, missing):
            assert axes.get_xlim() == (-0.5, 3.5) and axes.get_ylim() == (3.5, -0.5)
        np.testing.assert_allclose(marked.get_images()[0].get_array(), image)
        tint = sets.get_images()[1].get_array()
        for pixels, color in (([1, 2], "#0072B2"), ([12, 19], "#D55E00")):
            np.testing.assert_allclose(tint.reshape(24, 4)[pixels], [to_rgba(color, 0.6)] * 2)
        assert np.count_nonzero(tint[..., 3]) == 4
        marks = {line.get_label(): np.stack(line.get_data(), 1).tolist() for line in marked.lines}
        assert marks == {
            "semi-hard negatives": [[0, 2], [1, 3]], "hardest positive": [[2, 0]], "anchor": [[1, 1]],
        }  # fmt: skip
        assert [line.get_label() for line in sets.lines] == ["anchor"]
        assert [t.get_text() for t in missing.texts] == ["no projector"]


def test_an_example_is_what_the_runs_mine_in_that_image(split):
    runs = [make_run("a", seed=1), make_run("b", method=CCR)]
    pairs = [("depth", "semseg"), ("semseg", "depth")]
    figure = fd.example(runs, pairs, split(), 0)
    assert [axes.get_title() for axes in figure.axes[:4]] == [
        "sets",
        "a, features",
        "b, features",
        "b, projected",
    ]
    example = split().load(0)
    label = example["labels"]["semseg"][::2, ::2, 0]
    for axes in figure.axes[1:4]:
        marks = {line.get_label(): np.stack(line.get_data(), 1) for line in axes.lines}
        ((x, y),) = marks["anchor"]
        ((u, v),) = marks["hardest positive"]
        assert label[v, u] == label[y, x] != 255 and (u, v) != (x, y)
        assert all(label[q, p] not in (255, label[y, x]) for p, q in marks["semi-hard negatives"])
        assert len(marks["semi-hard negatives"]) <= (16 if axes is figure.axes[1] else 3)
