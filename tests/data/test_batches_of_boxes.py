"""Boxes from a dataset through training to results, and the batches that stand for real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import experiment
from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.views import View

OPTIONS = {"num_classes": 2, "class_names": ("square", "bar"), "max_boxes": 4}
LABELS = {"detection": OPTIONS, "scene": {"kind": "classification", "num_classes": 3}}


def square(index):
    """A bright square and, in every other image, a hard bar; image 3 has none, the label of 4 is unknown."""
    image = np.full((20 + index, 30, 3), 40, np.uint8)
    image[4:11, 5 + index : 12 + index] = 220
    rows = [[4, 5 + index, 11, 12 + index, 0, 0], [15, 2, 18, 28, 1, 1]][: 1 + index % 2]
    rows = {3: np.zeros((0, 6)), 4: np.full((1, 6), np.nan)}.get(index, np.array(rows))
    labels = {"detection": rows[:, None].astype(np.float32), "scene": np.full((1, 1, 1), index % 3)}
    return {"image": image, "labels": labels}


def split(name, tasks):
    def load(index):
        example = square(index)
        return {**example, "labels": {task: example["labels"][task] for task in tasks}}

    return Split([str(i) for i in range(6)], lambda: np.array([(20 + i, 30) for i in range(6)]), load)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.5, 2.0)},
        {"flip": True, "scale": (0.6, 1.8)},
        {"flip": True, "scale": (0.5, 1.6), "rotate": 60.0},
    ],
    ids="-".join,
)
def test_the_middle_of_a_box_stays_that_of_its_object(options):
    """To a tenth of a pixel on average: a mistake of half a pixel in where pixels lie would show."""
    tasks = task_modules.build({"detection": {}, "semseg": {}}, {**LABELS, "semseg": {"num_classes": 2}})
    image, classes = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80, 1), np.uint8)
    classes[11:41, 22:47] = 1
    labels = {"detection": np.float32([[[11, 22, 41, 47, 0, 0]]]), "semseg": classes}
    config = configs.default()
    config.data.update(size=(70, 70), batch_size=60)
    config.data.augment.update({"flip": False, **options})
    one = Split(["0"], lambda: np.array([(60, 80)]), lambda index: {"image": image, "labels": labels})
    got = next(pipeline.train_batches(one, tasks, config.data, seed=0))["labels"]
    off = []
    for mask, row in zip(got["semseg"][..., 0] == 1, got["detection"][:, 0, 0], strict=True):
        if row[4] == 0 and (row[:2] > 0.5).all() and (row[2:4] < 69.5).all():  # it is whole
            off.append(np.argwhere(mask).mean(0) + 0.5 - (row[:2] + row[2:4]) / 2)
    assert len(off) > 15
    assert np.abs(off).max() < 0.6 and np.abs(np.mean(off, axis=0)).max() < 0.1


@pytest.mark.parametrize("names", [("detection",), ("detection", "scene")], ids=len)
def test_training_and_evaluation_take_boxes(train_a_little, names):
    batch, results = train_a_little(
        Dataset(LABELS, ("train",), split), dict.fromkeys(names, {}), "train", "train", (26, 32)
    )
    assert batch["labels"]["detection"].shape == (4, 4, 1, 6) and batch["valid"]["detection"].shape == (
        4,
        1,
        1,
        1,
    )
    assert 0 <= results["detection/AP50"] <= 1 and np.isnan(results["detection/AP50_bar"])


def test_example_batches_are_like_those_of_the_input():
    tasks = task_modules.build({"detection": {}, "scene": {}}, LABELS)
    views = {"near": View(), "recoloured": View(zoom=False)}
    config = configs.default()
    config.data.update(size=(16, 24), batch_size=4)
    config.data.augment.zoom = (1.0, 1.2)
    real = next(pipeline.train_batches(split("train", tuple(tasks)), tasks, config.data, seed=0, views=views))
    example = experiment.example_batch(config, tasks, views)
    shapes = [jax.tree.map(lambda x: (np.shape(x), jnp.asarray(x).dtype), batch) for batch in (real, example)]
    assert shapes[0] == shapes[1]
