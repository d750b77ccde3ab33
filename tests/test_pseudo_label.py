"""Labels of teachers that read them off the colours of an image, and of one real network."""

import dataclasses
import json
import os
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import atomic, experiment, pseudo_label
from mtl_jax import config as configs
from mtl_jax import tasks as tasks_lib
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import UserError
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import detection

SPECS = {
    "semseg": {"num_classes": 3, "class_names": ["road", "car", "sky"]},
    "depth": {},
    "normals": {},
    "albedo": {},
    "scene": {"kind": "classification", "num_classes": 2},
}
DTYPES = {"semseg": np.uint8, "depth": np.float32, "normals": np.float16, "albedo": np.float16,
          "scene": np.int64}  # fmt: skip


def build(specs):
    return tasks_lib.build(dict.fromkeys(specs, {}), specs)


TASKS = build(SPECS)


class Colours:
    """Scores, normals and albedo are functions of the colours, and depth is negative where red is dark."""

    def apply(self, variables, image, names, train):
        assert not train
        outputs = {
            "semseg": image * variables["sign"],
            "depth": 10 * image[..., :1] - 2,
            "normals": 5 * image - 1,
            "albedo": 2 * image - 0.5,
            "scene": jnp.sum(image, (1, 2), keepdims=True)[..., :2],
        }
        return Prediction({name: outputs[name] for name in names}, {}, None)


def expected(image):
    """What the teacher says of uint8[H,W,3], in float64."""
    x = image / 255
    n = 5 * x - 1
    return {
        "semseg": x.argmax(-1)[..., None],
        "depth": np.maximum(10 * x[..., :1] - 2, 1e-3),
        "normals": n / np.linalg.norm(n, axis=-1, keepdims=True),
        "albedo": np.clip(2 * x - 0.5, 0, 1),
        "scene": x.sum((0, 1))[:2].argmax().reshape(1, 1, 1),
    }


SIZES = [(4, 6), (5, 3), (4, 6), (4, 6), (7, 2), (5, 3), (4, 6)]
GIVEN = np.array([True, False, False, True, False, True, False])


def make_split(sizes=SIZES, given=GIVEN):
    """Images of noise; the stored labels are a constant that no teacher predicts."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]

    def load(i):
        def stored(task):
            size = sizes[i] if task.dense else (1, 1)
            return np.full((*size, task.label_channels), 77, DTYPES[task.name])

        return {"image": images[i], "labels": {name: stored(task) for name, task in TASKS.items()}}

    marks = None if given is None else {name: given if name != "albedo" else ~given for name in TASKS}
    ids = [f"image{i}" for i in range(len(sizes))]
    measured = np.array(sizes, np.int32)
    return Split(ids, lambda: measured, load, marks), images


@pytest.fixture
def loaded(monkeypatch):
    """Replaces networks on disk by one of `Colours`; holds the folders that were asked for."""
    asked = types.SimpleNamespace(workdirs=[], step=9, tasks=TASKS, sign=1.0, steps=9)

    def load(workdir):
        asked.workdirs.append(workdir)
        config = configs.default()
        config.data.eval_batch_size = 2
        config.train.steps = asked.steps
        return experiment.Experiment(config, asked.tasks, Colours(), {"sign": asked.sign}, asked.step)

    monkeypatch.setattr(experiment, "load", load)
    return asked


@pytest.fixture
def runs(monkeypatch):
    """Counts the passes of a teacher over images."""
    passes, predict = [], pseudo_label.predict
    monkeypatch.setattr(pseudo_label, "predict", lambda *a: passes.append(a[1]) or predict(*a))
    return passes


def assert_filled(filled, split, images, name, given):
    for i, image in enumerate(images):
        before, after = split.load(i)["labels"][name], filled.load(i)["labels"][name]
        assert after.dtype == before.dtype == DTYPES[name] and after.shape == before.shape
        if given[i]:
            np.testing.assert_array_equal(after, before)
        else:
            np.testing.assert_allclose(after, expected(image)[name], rtol=1e-3, atol=1e-3)
    assert filled.given[name].all() and filled.given[name].dtype == bool


@pytest.mark.parametrize("many", [False, True], ids=["few sizes", "many sizes"])
def test_what_is_not_given_is_predicted(tmp_path, loaded, monkeypatch, capsys, many):
    monkeypatch.setattr(pipeline, "MANY_SIZES", 2 if many else 8)
    split, images = make_split()
    filled = pseudo_label.fill(split, TASKS, {name: f"runs/{name}" for name in TASKS}, str(tmp_path))
    assert loaded.workdirs == [f"runs/{name}" for name in TASKS]
    for name in TASKS:
        if many and name == "scene":  # of the padded image
            continue
        assert_filled(filled, split, images, name, split.given[name])
    assert filled.ids == split.ids and filled.sizes is split.sizes
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs/semseg labels 4 images with semseg"
    assert lines[1].startswith("4/4 images, ") and lines[7].startswith("3/3 images, ")
    assert np.load(tmp_path / "semseg.npy").dtype == np.uint8
    assert np.load(tmp_path / "normals.npy").dtype == np.float16
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


def test_labels_of_tasks_without_a_teacher_stay(tmp_path, loaded):
    split, images = make_split()
    filled = pseudo_label.fill(split, TASKS, {"depth": "d"}, str(tmp_path))
    assert_filled(filled, split, images, "depth", split.given["depth"])
    for name in ("semseg", "normals"):
        np.testing.assert_array_equal(filled.given[name], GIVEN)
        assert (filled.load(1)["labels"][name] == 77).all()
    assert split.given["depth"] is GIVEN and (split.load(1)["labels"]["depth"] == 77).all()


def test_predicted_labels_reach_training_as_others_do(tmp_path, loaded):
    split, images = make_split(sizes=[(4, 6)] * 7)
    tasks = {name: TASKS[name] for name in ("semseg", "depth")}
    data = configs.default().data
    data.update(batch_size=7, eval_batch_size=7, size=(4, 6))
    data.augment.flip = False
    before = next(pipeline.train_batches(split, tasks, data, 0))
    filled = pseudo_label.fill(split, tasks, {"semseg": "s", "depth": "d"}, str(tmp_path))
    batch = next(pipeline.train_batches(filled, tasks, data, 0))
    np.testing.assert_array_equal(batch["id"], before["id"])
    for row, i in enumerate(batch["id"]):
        for name in tasks:
            truth = np.full((4, 6, 1), 77) if GIVEN[i] else expected(images[i])[name]
            np.testing.assert_allclose(batch["labels"][name][row], truth, rtol=1e-3, atol=1e-3)
            if GIVEN[i]:
                assert (before["valid"][name][row] == batch["valid"][name][row]).all()
            else:
                assert batch["valid"][name][row].all() and not before["valid"][name][row].any()


def test_nothing_to_do(tmp_path, loaded):
    for given in (None, np.ones(7, bool)):
        split, _ = make_split(given=given)
        names = [name for name in TASKS if name != "albedo"]
        assert pseudo_label.fill(split, TASKS, dict.fromkeys(names, "x"), str(tmp_path)) is split
    assert pseudo_label.fill(make_split()[0], TASKS, {}, str(tmp_path)).given["depth"] is GIVEN
    assert not loaded.workdirs and not os.listdir(tmp_path)


def test_complete_labels_are_used_again(tmp_path, loaded, runs):
    split, images = make_split()

    def again(split=split, images=images, given=GIVEN):
        filled = pseudo_label.fill(split, TASKS, {"semseg": "s"}, str(tmp_path))
        if loaded.sign > 0:
            assert_filled(filled, split, images, "semseg", given)
        return len(runs), filled

    assert [again()[0] for _ in range(3)] == [1, 1, 1]
    loaded.step = loaded.steps = 18  # another checkpoint
    assert again()[0] == again()[0] == 2
    loaded.sign = -1.0  # other weights at the same step
    count, filled = again()
    assert count == 3
    np.testing.assert_array_equal(filled.load(1)["labels"]["semseg"][..., 0], images[1].argmin(-1))
    loaded.sign = 1.0
    assert again()[0] == 4
    other = np.array([True, False, True, True, False, True, False])  # other images
    fewer, _ = make_split(given=other)
    assert again(fewer, given=other)[0] == 5
    renamed = dataclasses.replace(fewer, ids=[f"other{i}" for i in range(7)])
    assert again(renamed, given=other)[0] == 6
    (tmp_path / "semseg.npy").unlink()
    assert again(renamed, given=other)[0] == 7


@pytest.mark.parametrize("at", ["in the middle", "before the record"])
def test_a_killed_run_leaves_nothing_that_is_taken_for_complete(tmp_path, loaded, runs, monkeypatch, at):
    split, images = make_split()
    pseudo_label.fill(split, TASKS, {"depth": "other teacher"}, str(tmp_path))
    if at == "in the middle":

        def stopped(*arguments):
            yield np.array([0, 1]), np.zeros((2, 7, 7, 1), np.float32)
            raise KeyboardInterrupt

        monkeypatch.setattr(pseudo_label, "predict", stopped)
    else:
        monkeypatch.setattr(atomic, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pseudo_label.fill(split, TASKS, {"depth": "d"}, str(tmp_path))
    assert not (tmp_path / "depth.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(experiment, "load", lambda _: loaded_again(loaded))
    filled = pseudo_label.fill(split, TASKS, {"depth": "d"}, str(tmp_path))
    assert_filled(filled, split, images, "depth", split.given["depth"])
    assert sorted(os.listdir(tmp_path)) == ["depth.json", "depth.npy"]
    record = json.loads((tmp_path / "depth.json").read_text())
    assert record["teacher"] == os.path.abspath("d") and (record["step"], record["images"]) == (9, 4)


def loaded_again(loaded):
    config = configs.default()
    config.train.steps = loaded.steps
    return experiment.Experiment(config, loaded.tasks, Colours(), {"sign": loaded.sign}, loaded.step)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"semseg": {**SPECS["semseg"], "num_classes": 2, "class_names": ["road", "car"]}},
         "predicts other labels: its channels is 2, not 3"),
        ({"semseg": {**SPECS["semseg"], "class_names": ["road", "sky", "car"]}},
         r"its class_names is \('road', 'sky', 'car'\), not \('road', 'car', 'sky'\)"),
        ({"semseg": {"kind": "depth"}}, "its kind is 'Depth', not 'Semseg'"),
        ({"depth": {}, "normals": {}}, "does not predict that: it predicts depth, normals"),
    ],
)  # fmt: skip
def test_teachers_of_other_labels(tmp_path, loaded, specs, message):
    loaded.tasks = build(specs)
    with pytest.raises(UserError, match="the teacher of 'semseg' in w .*" + message):
        pseudo_label.fill(make_split()[0], TASKS, {"semseg": "w"}, str(tmp_path))
    assert not os.listdir(tmp_path)


def test_teachers_that_are_none(tmp_path, loaded, monkeypatch):
    split, _ = make_split()
    with pytest.raises(UserError, match="names task 'edges': the tasks are semseg, depth"):
        pseudo_label.fill(split, TASKS, {"edges": "w"}, str(tmp_path))
    with pytest.raises(UserError, match="names task 'detection', but teachers fill in no boxes"):
        boxes = {"detection": detection.build("detection", 2)}
        pseudo_label.fill(split, boxes, {"detection": "w"}, str(tmp_path))
    loaded.steps = 100
    with pytest.raises(UserError, match="the teacher of 'depth' in w is not finished: step 9 of 100"):
        pseudo_label.fill(split, TASKS, {"depth": "w"}, str(tmp_path))
    monkeypatch.undo()
    with pytest.raises(UserError, match="the teacher of 'depth': .*none is no working directory of a run"):
        pseudo_label.fill(split, TASKS, {"depth": str(tmp_path / "none")}, str(tmp_path))


class Small(nn.Module):
    """A real network, if a small one."""

    tasks: dict

    @nn.compact
    def __call__(self, image, names, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(image))
        return Prediction(
            {n: 3 * nn.Conv(self.tasks[n].channels, (3, 3), name=n)(x) for n in names}, {}, None
        )


def test_a_network_from_its_working_directory(tmp_path, monkeypatch):
    """One that was saved as a run saves it, against its own outputs for one image at a time."""
    monkeypatch.setattr(experiment, "build_model", lambda config, tasks, workdir="": Small(tasks))
    c = configs.default()
    names = ("depth", "semseg")
    c.tasks = {name: {} for name in names}
    c.data.size, c.train.steps, c.data.eval_batch_size = (32, 48), 3, 2
    workdir, folder = str(tmp_path / "teacher"), str(tmp_path / "labels")
    experiment.claim_workdir(c, workdir)
    experiment.write_tasks(workdir, c, Dataset(SPECS, (), None))
    with pytest.raises(UserError, match="the teacher of 'depth': there is no latest checkpoint in"):
        pseudo_label.fill(make_split()[0], TASKS, {"depth": workdir}, folder)
    model = experiment.build_model(c, experiment.read_tasks(workdir))
    split, images = make_split(sizes=[(32, 48)] * 7)
    x = np.zeros((1, 32, 48, 3), np.float32)
    weights = dict(jax.jit(lambda key: model.init(key, x, names, train=False))(jax.random.key(0)))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, {"params": weights.pop("params"), "state": weights}, {"step": np.int32(3)})
    checkpoints.wait()
    checkpoints.close()
    filled = pseudo_label.fill(split, TASKS, {"depth": workdir, "semseg": workdir}, folder)
    teacher = experiment.load(workdir)
    outputs = jax.jit(lambda image: teacher.model.apply(teacher.variables, image, names, train=False).outputs)
    for i in np.flatnonzero(~GIVEN):
        raw = {name: np.float64(x[0]) for name, x in outputs(np.float32(images[i][None]) / 255).items()}
        labels = filled.load(i)["labels"]
        np.testing.assert_allclose(labels["depth"], np.maximum(raw["depth"], 1e-3), rtol=2e-3, atol=1e-4)
        *_, second, first = np.moveaxis(np.sort(raw["semseg"]), -1, 0)
        sure = first - second > 1e-4
        assert sure.mean() > 0.5
        np.testing.assert_array_equal(labels["semseg"][sure, 0], raw["semseg"].argmax(-1)[sure])
