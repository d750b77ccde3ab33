"""Runs that start from published weights or from another run, on a few tiny scenes."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax import experiment, main, train
from mtl_jax import tasks as tasks_lib
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.errors import UserError
from mtl_jax.models import classifier, deeplab
from mtl_jax.models.backbones import resnet
from mtl_jax.models.preprocessing import CAFFE, IMAGENET, PLAIN
from mtl_jax.tasks import classification, depth
from mtl_jax.weights import packages, pretrained
from mtl_jax.weights import resnet as published
from tests.weights import conftest

torch = conftest.torch
IMAGE = np.random.default_rng(5).uniform(size=(1, 32, 48, 3)).astype(np.float32)
CHANNELS = 8  # of the stem


@pytest.fixture(scope="module", autouse=True)
def short_encoder():
    """One block per stage; and a form of publication whose images are not the default's."""
    caffe = dataclasses.replace(published.SOURCES["torchvision"], preprocessing=CAFFE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        patch.setitem(published.SOURCES, "bgr", caffe)
        yield


def torchvision_tensors(gates=False, channels=CHANNELS):
    """Numbers under torchvision's names, as a ResNet with one block per stage has them; timm's gates."""
    rng = np.random.default_rng(1)
    tensors = {}

    def add(name, *shape):
        scale = np.prod(shape[1:]) ** -0.5  # of a kernel
        x = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(scale=scale, size=shape)
        tensors[name] = x.astype(np.float32)

    def norm(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.{leaf}", width)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    add("conv1.weight", channels, 3, 7, 7)
    norm("bn1", channels)
    before = channels
    for stage in range(4):
        width = channels * 2**stage
        at = f"layer{stage + 1}.0"
        for unit, shape in {
            "1": (width, before, 1, 1),
            "2": (width, width, 3, 3),
            "3": (4 * width, width, 1, 1),
        }.items():
            add(f"{at}.conv{unit}.weight", *shape)
            norm(f"{at}.bn{unit}", shape[0])
        add(f"{at}.downsample.0.weight", 4 * width, before, 1, 1)
        norm(f"{at}.downsample.1", 4 * width)
        before = 4 * width
        if gates:
            hidden = before // 16
            for name, shape in {"fc1": (hidden, before, 1, 1), "fc2": (before, hidden, 1, 1)}.items():
                add(f"{at}.se.{name}.weight", *shape)
                add(f"{at}.se.{name}.bias", shape[0])
    add("fc.weight", 1000, before)
    add("fc.bias", 1000)
    return tensors


LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def ours_of(name):
    """Collection and path below it of one of torchvision's tensors; None of what does not belong there."""
    *at, unit, leaf = name.replace("downsample.", "downsample").split(".")
    if leaf == "num_batches_tracked" or unit == "fc":
        return None
    block = [f"stage{at[0][-1]}_block1"] if at else []
    if unit in ("conv1", "bn1") and not at:
        ours = "stem"
    else:
        ours = "shortcut" if unit.startswith("downsample") else f"conv{unit[-1]}"
    if unit.startswith("conv") or unit == "downsample0":
        return "params", (*block, ours, "conv", "kernel")
    collection = "batch_stats" if leaf.startswith("running") else "params"
    return collection, (*block, ours, "norm", "BatchNorm_0", LEAVES[leaf])


def assert_published(variables, tensors):
    """The encoder has every number of the file, and nothing else."""
    encoder = {c: jax.tree.map(np.asarray, variables[c]["encoder"]) for c in ("params", "batch_stats")}
    places = {name: place for name in tensors if (place := ours_of(name))}
    for name, (collection, path) in places.items():
        leaf = encoder[collection]
        for key in path:
            leaf = leaf[key]
        x = tensors[name]
        np.testing.assert_array_equal(leaf, x.transpose(2, 3, 1, 0) if x.ndim == 4 else x, err_msg=name)
    assert len(jax.tree.leaves(encoder)) == len(places)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def differ(a, b):
    return not any(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """(path, tensors)."""
    path, tensors = tmp_path_factory.mktemp("weights") / "resnet.npz", torchvision_tensors()
    np.savez(path, **tensors)
    return path, tensors


TINY = {"name": "deeplab", "depth": 26, "width": 0.125, "decoder": "ubernet", "output_stride": 32}


@pytest.fixture(scope="module")
def tiny(data_dir):
    """(weights, changes) -> the config of a run of seconds. Its rate is too low to move a parameter."""

    def tiny(weights=None, **changes):
        c = configs.default()
        c.data.options = {"size": (32, 48), "train_examples": 4, "test_examples": 2, "data_dir": data_dir}
        c.data.size = (32, 48)
        c.data.batch_size = c.data.eval_batch_size = 2
        c.tasks = {"depth": {}}
        c.model = dict(TINY)
        c.train.update(steps=2, log_every=1, eval_every=2, checkpoint_every=1)
        c.optimizer.learning_rate = 1e-30
        c.figures.examples = 0
        c.weights.update(weights or {})
        c.lock()
        for key, value in changes.items():
            configs.override(c, key.replace("__", "."), value)
        configs.check(c)
        return c

    return tiny


def of_file(file, **weights):
    return {"source": "bgr", "path": str(file[0]), **weights}


def of_run(workdir, *parts):
    return {"source": "run", "path": str(workdir), "parts": parts or ("encoder",)}


def built(c):
    tasks = tasks_lib.build(c.tasks, experiment.build_dataset(c).labels)
    model = experiment.build_model(c, tasks)
    return tasks, model, experiment.build_method(c, model, tasks)


def begun(c):
    """A run's model, and its states before the first step: new, and with the weights of its config.

    The new one has other numbers than a real one, whose random numbers take seconds to compile.
    """
    tasks, model, method = built(c)
    batch = experiment.example_batch(c, tasks, method.views)
    shapes = jax.eval_shape(lambda: train.init_state(method, c, jax.random.key(0), batch))
    rng = np.random.default_rng(c.seed)
    fresh = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes)
    return model, fresh, train.start_from(fresh, model, c) if c.weights.path else fresh


def variables_of(state):
    return experiment.variables(state.current())


def saved(c, workdir):
    """The variables of a run that ended before it learnt anything."""
    model, _, state = begun(c)
    experiment.claim_workdir(c, str(workdir))
    experiment.write_tasks(str(workdir), c, experiment.build_dataset(c))
    experiment.write_preprocessing(str(workdir), model)
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(1, *state.split())
    checkpoints.wait()
    checkpoints.close()
    return variables_of(state)


class Run(NamedTuple):
    """A whole run: its config and folder, its states before the first step, and what it ended with.

    Attributes:
      fresh, begin: at random, and with the weights of its config.
    """

    config: ConfigDict
    workdir: Path
    fresh: train.TrainState
    begin: train.TrainState
    variables: Any


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny, file):
    """A run that starts from published weights, whose file is gone by now."""
    folder = tmp_path_factory.mktemp("first")
    path, workdir, states = folder / "moved.npz", folder / "run", []
    shutil.copy(file[0], path)
    start_from = train.start_from

    def spy(state, model, config):
        states.extend([jax.device_get(state), start_from(state, model, config)])
        return states[-1]

    c = tiny(of_file((path,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "start_from", spy)
        main.run(c, str(workdir))
    path.unlink()
    return Run(c, workdir, *states, experiment.load(str(workdir)).variables)


def test_a_run_starts_from_published_weights(file, first):
    """At its rate nothing moves but what is 0, by nothing, and running statistics, by a tenth of the way."""
    assert_published(variables_of(first.begin), file[1])
    encoder = first.variables["params"]["encoder"]
    assert_same_bits(encoder, first.begin.params["model"]["encoder"])
    for name in ("decoder@depth", "head@depth"):
        new, end = first.fresh.params["model"][name], first.variables["params"][name]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-20), end, new)
    moved, before = (
        v["batch_stats"]["encoder"]["stage2_block1"]["conv1"]["norm"]["BatchNorm_0"]
        for v in (first.variables, variables_of(first.begin))
    )
    assert differ(moved, before)
    assert np.isfinite(experiment.read_results(str(first.workdir))["test/depth/rmse"])


def test_a_run_treats_images_as_its_weights_want_it(first, monkeypatch):
    """Read back, although neither the file nor that form of publication exists any more."""
    monkeypatch.delitem(published.SOURCES, "bgr")
    trained = experiment.load(str(first.workdir))
    assert trained.model.preprocessing == CAFFE
    ready = (255 * IMAGE - [123.68, 116.779, 103.939])[..., ::-1].astype(np.float32)

    def encode(model, *images):
        encode = jax.jit(lambda x: model.apply(trained.variables, x, "depth", False, method="encode")[-1])
        return [np.asarray(encode(image)) for image in images]

    (got,) = encode(trained.model, IMAGE)
    expected, other = encode(trained.model.clone(preprocessing=PLAIN), ready, np.asarray(IMAGENET(IMAGE)))
    largest = np.abs(expected).max()
    assert np.abs(got - expected).max() < 1e-4 * largest < np.abs(other - expected).max()


def test_a_file_of_torch(torch, tmp_path, tiny, file):
    tensors = {name: torch.from_numpy(x) for name, x in file[1].items()}
    torch.save(tensors, tmp_path / "resnet.pth")
    c = tiny({"source": "torchvision", "path": str(tmp_path / "resnet.pth")})
    model, _, begin = begun(c)
    assert_published(variables_of(begin), file[1])
    assert model.preprocessing == IMAGENET


def test_the_average_starts_from_the_weights_too(tiny, file):
    _, fresh, begin = begun(tiny(of_file(file), ema_decay=0.9))
    assert_same_bits(begin.average, begin.current())
    assert not np.array_equal(*(jax.tree.leaves(s.average["params"]["encoder"])[-1] for s in (fresh, begin)))
    leaves = (jax.tree.leaves(t) for t in (begin.average, begin.current()))
    for mean, now in zip(*leaves, strict=True):  # they are donated together
        assert not isinstance(mean, jax.Array) or mean is not now


def test_what_tasks_have_for_themselves_starts_alike(tiny, tmp_path):
    """Norms and gates as copies of what was published; adapters, which no one publishes, as they were."""
    tensors = torchvision_tensors(gates=True)
    np.savez(tmp_path / "a.npz", **tensors)
    weights = {"source": "timm", "path": str(tmp_path / "a.npz")}
    changes = {"model": {**TINY, "encoder_se": "task", "adapters": True}}
    _, fresh, begin = begun(tiny(weights, tasks={"depth": {}, "normals": {}}, **changes))
    variables, new = variables_of(begin), fresh.params["model"]["encoder"]["stage3_block1"]["conv2"]
    block = {c: variables[c]["encoder"]["stage3_block1"] for c in ("params", "batch_stats")}
    for task in ("depth", "normals"):
        norm = {c: block[c]["conv3"][f"norm@{task}"]["BatchNorm_0"] for c in block}
        np.testing.assert_array_equal(norm["params"]["bias"], tensors["layer3.0.bn3.bias"])
        np.testing.assert_array_equal(norm["batch_stats"]["var"], tensors["layer3.0.bn3.running_var"])
        gate = block["params"]["conv3"][f"se@{task}"]["squeeze"]
        np.testing.assert_array_equal(gate["kernel"], tensors["layer3.0.se.fc1.weight"][:, :, 0, 0].T)
        np.testing.assert_array_equal(gate["bias"], tensors["layer3.0.se.fc1.bias"])
        adapter = f"adapter@{task}"
        assert_same_bits(block["params"]["conv2"][adapter], new[adapter])


def test_a_run_from_weights_resumes_bit_for_bit(first, file, tmp_path, capsys):
    """Stopped before its first checkpoint it reads the file again; after it, it does not need it."""
    workdir, path = tmp_path / "run", Path(first.config.weights.path)
    shutil.copytree(first.workdir, workdir)
    for lost, words in (("checkpoints", "| Name"), ("checkpoints/latest/2", "at step 1 of 2")):
        (workdir / "eval.json").unlink()
        shutil.rmtree(workdir / lost)
        if lost == "checkpoints":
            shutil.copy(file[0], path)
        capsys.readouterr()
        try:
            main.run(first.config, str(workdir))
        finally:
            path.unlink(missing_ok=True)
        assert words in capsys.readouterr().out
        assert_same_bits(experiment.load(str(workdir)).variables, first.variables)


@pytest.fixture(scope="module")
def second(tmp_path_factory, tiny, file):
    """A run of other numbers and of one task more: (workdir, variables)."""
    workdir = tmp_path_factory.mktemp("second")
    return workdir, saved(tiny(of_file(file), seed=1, tasks={"depth": {}, "normals": {}}), workdir)


def test_from_another_run_the_parts_that_are_named(tiny, second):
    """Parameters and statistics of these, and of nothing else."""
    workdir, theirs = second
    for parts in (("encoder",), ("decoder@depth", "head@depth"), ("encoder/stage2_block1/conv1",), ("",)):
        _, fresh, begin = begun(tiny(of_run(workdir, *parts)))
        ours, fresh = variables_of(begin), variables_of(fresh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
            collection, *inner = (key.key for key in path)
            name = "/".join(inner)
            taken = any(name.startswith(part) for part in parts)
            source = theirs if taken else fresh
            expected = source[collection]
            for key in inner:
                expected = expected[key]
            np.testing.assert_array_equal(leaf, expected, err_msg=name)


def test_the_treatment_of_images_is_inherited(tiny, file, tmp_path):
    """By a run from a run from published weights; and each is whole without those before it."""
    chain = [tiny(of_file(file)), tiny(of_run(tmp_path / "0")), tiny(of_run(tmp_path / "1", ""))]
    for index, c in enumerate(chain):
        saved(c, tmp_path / str(index))
    before = experiment.load(str(tmp_path / "2"))
    shutil.rmtree(tmp_path / "0")
    shutil.rmtree(tmp_path / "1")
    after = experiment.load(str(tmp_path / "2"))
    assert after.model.preprocessing == CAFFE
    assert_same_bits(after.variables, before.variables)
    assert_published(after.variables, file[1])


class Reached(Exception):
    pass


def test_a_run_goes_on_without_the_run_that_it_started_from(tiny, file, tmp_path, monkeypatch):
    saved(tiny(of_file(file)), tmp_path / "teacher")
    c = tiny(of_run(tmp_path / "teacher"))
    saved(c, tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")

    def reach(config, model, tasks):
        raise Reached(model.preprocessing)

    monkeypatch.setattr(experiment, "build_method", reach)
    with pytest.raises(Reached) as reached:
        main.run(c, str(tmp_path / "run"))
    assert reached.value.args == (CAFFE,)


PYRAMID = {"name": "semantic_fpn", "backbone": "resnet", "pyramid_width": 16, "decoder_width": 16}
PYRAMID["encoder"] = {"depth": 26, "width": 0.125}


def test_encoder_and_neck_of_another_run(tiny, tmp_path):
    theirs = saved(tiny(model=PYRAMID, seed=3), tmp_path)
    c = tiny(of_run(tmp_path, "encoder", "neck"), model={**PYRAMID, "decoder_width": 8})
    _, fresh, begin = begun(c)
    ours, fresh = variables_of(begin), variables_of(fresh)
    for part in ("encoder", "neck"):
        assert_same_bits(ours["params"][part], theirs["params"][part])
    for part in ("decoder@depth", "head@depth"):
        assert_same_bits(ours["params"][part], fresh["params"][part])


@pytest.mark.parametrize(
    "parts,changes,words",
    [
        (
            ("nek",),
            {},
            "config.weights.parts has 'nek', but the network has decoder@depth, encoder, head@depth",
        ),
        (("encoder/stage9",), {}, "config.weights.parts has 'encoder/stage9', but the network has"),
        (("encod",), {}, "config.weights.parts has 'encod', but"),
        (
            ("encoder",),
            {"model": {**TINY, "width": 0.25}},
            r"batch_stats/encoder/\S* \[16\] \(\[8\] there\).* and \d+ more; name the parts to take in",
        ),
        (
            ("",),
            {"tasks": {"edges": {}}},
            r"second\d+ has not the network of this run: \S*decoder@edges\S* \[\S+\] \(missing there\)",
        ),
        (("encoder", "neck"), {"model": PYRAMID}, r"params/neck/\S+ \[.*\] \(missing there\)"),
    ],
    ids=["part", "inner", "prefix", "width", "all", "neck"],
)
def test_parts_that_another_run_has_not_are_named(tiny, second, parts, changes, words):
    c = tiny(of_run(second[0], *parts), **changes)
    tasks = tasks_lib.build(c.tasks, experiment.build_dataset(c).labels)
    model = experiment.build_model(c, tasks)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, tuple(tasks), train=False))
    with pytest.raises(UserError, match=words):
        experiment.start_from(dict(shapes), model, c)


def test_a_folder_that_is_no_run(tiny, tmp_path):
    c = tiny(of_run(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} is no working directory of a run: it has no config"):
        experiment.build_model(c, {"depth": depth.build("depth")})


def test_weights_that_cannot_be_had_leave_nothing(tiny, file, tmp_path):
    np.savez(tmp_path / "half.npz", **{n: x for n, x in file[1].items() if not n.startswith("layer4")})
    for path, words in {
        "none.npz": "cannot read .*none.npz",
        "half.npz": "half.npz does not fit this network: it lacks layer4.0.bn1.running_mean for batch_s",
    }.items():
        with pytest.raises(UserError, match=words):
            main.run(tiny(of_file((tmp_path / path,))), str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "weights,words",
    [
        ({"source": "torchvision"}, "config.weights.path must be the place of the weights"),
        ({"path": "a.pth"}, "config.weights.path must be the place of the weights that `source` names, and"),
        ({"source": 3, "path": "a.pth"}, "config.weights.source must be None or a name, not 3"),
        (
            {"source": "run", "path": "package:resnet50"},
            "config.weights.source must be None with the path of",
        ),
        (
            {"source": "run", "path": "a", "parts": ()},
            r"config.weights.parts must be like \('encoder',\), not",
        ),
        ({"source": "run", "path": "a", "parts": (1,)}, "config.weights.parts must be like"),
        (
            {"source": "run", "path": "a", "part": ("",)},
            "config.weights.part: did you mean config.weights.parts",
        ),
    ],
)
def test_keys_that_make_no_sense_are_named(tiny, weights, words):
    with pytest.raises(UserError, match=words):
        tiny(weights)


@pytest.mark.parametrize("parts", [("",), ("encoder", "neck"), ("encoder", "decoder@depth", "head@depth")])
def test_any_number_of_parts_is_accepted(tiny, parts):
    c = tiny(of_run("a", *parts))
    assert configs.from_json(configs.to_json(c)).weights.parts == parts


@pytest.mark.parametrize(
    "text,parts", [("encoder", ("encoder",)), ("('encoder', 'head')", ("encoder", "head"))]
)
def test_parts_on_the_command_line(tiny, text, parts):
    c = tiny(of_run("a"))
    configs.override(c, "weights.parts", configs.literal(text))
    assert c.weights.parts == parts


def weights(source=None, path="a.npz", parts=("encoder",)):
    return ConfigDict({"source": source, "path": path, "parts": parts})


DEPTH = {"depth": depth.build("depth")}


@pytest.mark.parametrize(
    "model,chosen,words",
    [
        (
            {},
            {"source": "torchvison"},
            "config.weights.source is 'torchvison': choose one of run and, for a resnet, torchvision, .*gn",
        ),
        (
            {"backbone": "mobilenet_v2"},
            {"path": "package:resnet50"},
            "config.weights.path is 'package:resnet50', a resnet, but the network has a mobilenet_v2: set"
            " config.model.backbone",
        ),
        (
            {},
            {"path": "package:resnet"},
            "there are no packaged weights 'resnet': choose one of resnet50, eff",
        ),
        (
            {"depth": 50},
            {"path": "package:resnet50"},
            "config.weights.path is 'package:resnet50', whose network has stride_in_1x1=True, not False: set",
        ),
        (
            {"backbone": "efficientnet", "encoder": {"variant": "lite0", "epsilon": 1e-3}},
            {"path": "package:efficientnet_lite0"},
            "whose network has padding='same', not 'symmetric'",
        ),
    ],
)
def test_sources_that_do_not_belong_to_the_encoder(model, chosen, words):
    """Before anything is read or fetched."""
    network = deeplab.build(DEPTH, "float32", **model)
    with pytest.raises(UserError, match=words):
        pretrained.preprocessing(weights(**chosen), network)


def test_an_encoder_that_nobody_publishes():
    class Own:
        pass

    with pytest.raises(UserError, match="there are no published weights for test_pretrained: leave config.w"):
        pretrained.source(weights("torchvision"), Own())


@pytest.mark.parametrize(
    "tasks,parts,words",
    [
        (DEPTH, ("encoder", "neck"), "config.weights.parts has 'neck': published weights have 'encoder' and"),
        (DEPTH, ("head",), "config.weights.parts lacks 'encoder', which published weights are for"),
        (DEPTH, ("encoder", "head"), "has 'head': give the network one task of kind classification"),
        (
            {n: classification.build(n, 1000) for n in ("one", "two")},
            ("encoder", "head"),
            "has 'head': give the network one task",
        ),
    ],
)
def test_parts_that_published_weights_have_not(file, tasks, parts, words):
    model = deeplab.build(tasks, "float32", **{k: v for k, v in TINY.items() if k != "name"})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, tuple(tasks), train=False))
    with pytest.raises(UserError, match=words):
        pretrained.start(dict(shapes), model, weights("torchvision", str(file[0]), parts))


def test_a_network_of_other_widths_is_refused(tiny, file):
    c = tiny(of_file(file), model={**TINY, "width": 0.25})
    model = experiment.build_model(c, DEPTH)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, ("depth",), train=False))
    words = r"resnet.npz does not fit this network: it has the wrong shape in layer1.0.bn1.running_mean \[8\]"
    with pytest.raises(UserError, match=words):
        experiment.start_from(dict(shapes), model, c)


def test_the_released_classifier(file):
    model = classifier.build(
        {"kind": classification.build("kind", 1000)}, "float32", encoder={"depth": 26, "width": 0.125}
    )
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, ("kind",), train=False))
    got = pretrained.start(dict(shapes), model, weights("torchvision", str(file[0]), ("encoder", "head")))
    assert_published(got, file[1])
    dense = got["params"]["head@kind"]["dense"]
    np.testing.assert_array_equal(dense["kernel"], file[1]["fc.weight"].T)
    np.testing.assert_array_equal(dense["bias"], file[1]["fc.bias"])
    assert set(got["params"]) == {"encoder", "head@kind"}


def test_a_packaged_network(monkeypatch, file, tiny):
    """As `package:NAME` without a source: its file is read as the package says."""
    package = packages.Package("file:///", "a", "0" * 64, "b", "resnet", "bgr", {"depth": 26})
    monkeypatch.setattr(packages, "PACKAGES", {"small": package})
    monkeypatch.setattr(packages, "fetch", lambda name: {"small": file[0]}[name])
    model, _, begin = begun(tiny({"path": "package:small"}))
    assert_published(variables_of(begin), file[1])
    assert model.preprocessing == CAFFE


def test_starting_changes_nothing_that_was_given(file):
    """The caller's trees stay as they were: only a new one is returned."""
    model = deeplab.build(DEPTH, "float32", **{k: v for k, v in TINY.items() if k != "name"})
    shapes = dict(jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, ("depth",), train=False)))
    leaves = jax.tree.leaves(shapes)
    pretrained.start(shapes, model, weights("torchvision", str(file[0])))
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(shapes), strict=True))
