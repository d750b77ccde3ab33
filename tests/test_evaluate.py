"""The generic evaluation with predictors whose results are known by hand."""

import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from mtl_jax import config as configs
from mtl_jax import evaluate, experiment
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import UserError
from mtl_jax.models.prediction import Prediction
from mtl_jax.sharding import make_mesh

LABELS = {"semseg": {"num_classes": 3}, "depth": {}, "edges": {"benchmark": True, "nms": False}}
TASKS = tasks_lib.build({name: {} for name in LABELS}, LABELS)


def split(count, size=(12, 16)):
    """Classes, depth and borders of random blocks; images hold the classes, so that they can be read off."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (count, size[0] // 4, size[1] // 4, 1)).repeat(4, 1).repeat(4, 2)
    classes = classes.astype(np.uint8)
    depth = rng.uniform(0, 5, classes.shape).astype(np.float32) * (rng.random(classes.shape) > 0.2)
    edges = np.zeros_like(classes)
    edges[:, ::4] = 1

    def load(i):
        image = (np.repeat(classes[i], 3, -1) * 100).astype(np.uint8)
        return {"image": image, "labels": {"semseg": classes[i], "depth": depth[i], "edges": edges[i]}}

    found = Split([str(i) for i in range(count)], lambda: np.tile(np.array(size, np.int32), (count, 1)), load)
    return found, classes, depth


def batches(found, size, tasks=TASKS):
    data = types.SimpleNamespace(eval_batch_size=size, eval_size=None, cache=False)
    return pipeline.eval_batches(found, tasks, data)


def reader(noise):
    """Predicts the class that the image shows, where it is below 2; depth `noise`; and all rows as edges."""

    def predict(variables, image):
        shown = np.float32(255 / 100) * image[..., :1]
        scores = -abs(shown - np.arange(3, dtype=np.float32)) - 10 * (np.arange(3) == 2)
        rows = (np.arange(image.shape[1]) % 4 == 0)[None, :, None, None]
        return {"semseg": scores, "depth": 0 * shown + noise, "edges": 0 * shown + 0.9 * rows}

    return predict


@pytest.mark.parametrize("size", [1, 4, 7])
def test_results_are_those_of_the_whole_split_whatever_the_batches(size):
    found, classes, depth = split(7)
    evaluation = evaluate.Evaluation(reader(2.0), TASKS, make_mesh())
    for _ in range(2):  # a second pass starts from nothing
        results = evaluation({}, batches(found, size))
    guess = np.minimum(classes, 1)
    expected = jaccard_score(classes.ravel(), guess.ravel(), average="macro", zero_division=0)
    assert results["semseg/mIoU"] == pytest.approx(expected, abs=1e-6)
    known = depth > 0
    assert results["depth/rmse"] == pytest.approx(np.sqrt(np.mean((2.0 - depth[known]) ** 2)), rel=1e-6)
    assert results["edges/odsF"] == pytest.approx(1.0)


def boxes_split():
    """Two images, with a cat, and with a cat and a dog."""
    rows = np.float32([[2, 3, 9, 12, 0, 0], [1, 1, 6, 8, 1, 0]])[:, None]

    def load(i):
        return {"image": np.zeros((12, 16, 3), np.uint8), "labels": {"detection": rows[: i + 1]}}

    return Split(["a", "b"], lambda: np.tile(np.array([12, 16], np.int32), (2, 1)), load)


def test_the_best_constant_detector_finds_nothing():
    tasks = tasks_lib.build({"detection": {}}, {"detection": {"num_classes": 2}})
    values = evaluate.mean_labels(batches(boxes_split(), 2, tasks), tasks)
    assert values["detection"].tolist() == [0, 0, 0, 0, -1, 0]
    evaluation = evaluate.Evaluation(evaluate.constant_predictor(tasks), tasks, make_mesh())
    results = evaluation(values, batches(boxes_split(), 2, tasks))
    assert results["detection/AP50"] == results["detection/AP"] == 0


def test_a_network_is_measured_by_its_detections():
    """One that finds the cat everywhere, and a stray dog that is less sure."""
    tasks = tasks_lib.build({"detection": {}}, {"detection": {"num_classes": 2}})

    class Net:
        def apply(self, variables, image, names, train):
            maps = jnp.full((*image.shape[:3], 4), -200.0).at[..., 2:].set(jnp.array([7.0, 9.0]))
            maps = maps.at[:, 5, 7, 0].set(9.0).at[:, 9, 12, 1].set(1.0)
            return types.SimpleNamespace(outputs={"detection": maps})

    evaluation = evaluate.Evaluation(evaluate.predictor(Net(), tasks), tasks, make_mesh())
    results = evaluation({}, batches(boxes_split(), 1, tasks))
    assert results["detection/AP50_0"] == pytest.approx(1) and results["detection/AP50_1"] == 0
    assert results["detection/AP50"] == pytest.approx(0.5)


def test_mean_labels_are_the_best_constants():
    found, classes, depth = split(8)
    tasks = {name: TASKS[name] for name in ("semseg", "depth")}
    values = evaluate.mean_labels(batches(found, 8, tasks), tasks)
    np.testing.assert_allclose(
        values["semseg"], np.bincount(classes.ravel(), minlength=3) / classes.size, rtol=1e-5
    )
    np.testing.assert_allclose(values["depth"], [depth[depth > 0].mean()], rtol=1e-5)
    evaluation = evaluate.Evaluation(evaluate.constant_predictor(tasks), tasks, make_mesh())
    results = evaluation(values, batches(found, 3, tasks))
    assert results["depth/rmse"] == pytest.approx(depth[depth > 0].std(), rel=1e-5)
    assert results["semseg/pixAcc"] == pytest.approx(np.bincount(classes.ravel()).max() / classes.size)


class Shown(nn.Module):
    """Predicts the class that the image shows."""

    def __call__(self, image, tasks, train):
        scores = -abs(np.float32(2.55) * image[..., :1] - np.arange(3, dtype=np.float32))
        return Prediction({"semseg": 50 * scores}, {}, {})


def test_another_dataset_judges_by_its_own_rules(tmp_path, monkeypatch, capsys):
    """The network knows 3 classes; the other dataset's class 2 stands for what it has no name for."""
    found, classes, _ = split(5)
    shown = (classes + (classes == 1)).astype(np.uint8)  # class 1 is called 2 there

    def load(index):
        return {**found.load(index), "labels": {"semseg": shown[index]}}

    judged = Split(found.ids, found.measure, load)
    labels = {"num_classes": 3, "scored": [0, 1]}
    other = Dataset({"semseg": labels}, ("train", "test"), lambda name, tasks: judged)
    config = configs.default()
    config.tasks = {"semseg": {}}
    trained = experiment.Experiment(config, tasks_lib.build({"semseg": {}}, LABELS), Shown(), {}, 7)
    monkeypatch.setattr(experiment, "load", lambda workdir: trained)
    monkeypatch.setattr(experiment, "build_dataset", lambda config: other)
    experiment.write_results(str(tmp_path), {"test/semseg/mIoU": 0.5})
    config = configs.default()
    config.data.update(name="folder", eval="test", eval_batch_size=2)
    evaluate.evaluate_workdir(config, str(tmp_path))
    ious = jaccard_score(shown.ravel(), classes.ravel(), average=None, zero_division=0)
    written = experiment.read_results(str(tmp_path))
    np.testing.assert_allclose(written["folder.test/semseg/mIoU"], ious[:2].mean(), rtol=1e-6)
    assert written["test/semseg/mIoU"] == 0.5 and "folder.test/semseg/mIoU" in capsys.readouterr().out

    labels["num_classes"] = 4
    labels.pop("scored")
    with pytest.raises(
        UserError, match="predicts 3 channels for task 'semseg', but config.data has labels for 4"
    ):
        evaluate.evaluate_workdir(config, str(tmp_path))
