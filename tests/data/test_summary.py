"""Sums over labels of every kind, against what was put into them; parts add up to the whole."""

import numpy as np
import pytest

from mtl_jax import tasks as task_modules
from mtl_jax.data import summary

LABELS = {
    "detection": {"num_classes": 3, "class_names": ["cat", "dog", "cow"]},
    "objects": {"kind": "multilabel", "num_classes": 3, "class_names": ["cat", "dog", "cow"]},
    "edges": {"annotators": 2},
    "normals": {},
    "depth": {},
    "semseg": {"num_classes": 2, "class_names": ["sky", "road"]},
}
TASKS = task_modules.build(dict.fromkeys(LABELS, {}), LABELS)


def example(seed):
    """Of 2x3 pixels; the label of each task by its rules, some of it unknown."""
    rng = np.random.default_rng(seed)
    rows = [[0, 0, 1, 1, 2, 0], [0, 0, 2, 2, 0, 1], [0, 1, 1, 3, 2, 0]]
    boxes = [np.float32(rows), np.zeros((0, 6), np.float32), np.full((1, 6), np.nan, np.float32)][seed]
    edges = np.uint8([[[1, 0], [0, 0], [1, 1]], [[0, 0], [0, 0], [0, 0]]])
    edges[..., 1] = 255 if seed == 1 else edges[..., 1]
    normals = np.tile(np.float32([0, 0.6, 0.8]), (2, 3, 1))
    normals[0, 0], normals[1, 2] = [0, 0, -1], 0
    depth = rng.uniform(1, 9, (2, 3, 1)).astype(np.float16)
    depth[0, 1] = 0
    return {
        "image": np.zeros((2, 3, 3), np.uint8),
        "labels": {
            "detection": boxes[:, None],
            "objects": np.uint8([[[[1, 0, 1]]], [[[0, 255, 1]]], [[[255, 255, 255]]]])[seed],
            "edges": edges,
            "normals": normals,
            "depth": depth,
            "semseg": np.uint8([[[0], [1], [1]], [[1], [255], [0]]]),
        },
    }


@pytest.fixture(scope="module")
def parts():
    return [summary.of_example(example(seed), TASKS) for seed in range(3)]


def test_totals_are_those_of_the_labels(parts):
    total = summary.add(parts)
    assert total.images == 3 and total.sizes == {"2x3": 3}
    found = total.tasks
    assert found["detection"].labels == 2 and found["detection"].counts == [1, 0, 2]
    assert found["objects"].labels == 2 and found["objects"].counts == [1, 0, 2]
    assert found["edges"].total == [3 + 2 + 3] and found["edges"].numbers == 12 + 6 + 12
    normals = found["normals"]
    assert (normals.known, normals.places, normals.away) == (15, 18, 3)
    np.testing.assert_allclose(normals.total, [0, 3 * 4 * 0.6, 3 * (4 * 0.8 - 1)], atol=1e-5)
    known = np.concatenate([x[x > 0] for x in (example(s)["labels"]["depth"] for s in range(3))])
    depth = found["depth"]
    assert (depth.least, depth.most, depth.numbers) == (known.min(), known.max(), 15)
    np.testing.assert_allclose(depth.total, known.sum(dtype=float))
    assert found["semseg"].counts == [6, 9] and found["semseg"].known == 15


def test_sums_of_sums_and_of_json_are_the_same(parts):
    whole = summary.add(parts)
    assert summary.add([summary.add(parts[:1]), summary.add(parts[1:])]) == whole
    assert summary.Summary.from_json(whole.to_json()) == whole
    assert summary.add([*parts, summary.Summary()]) == whole


def test_words(parts):
    first, *lines = summary.lines(summary.add(parts), TASKS, published=4)
    said = dict(line.split(maxsplit=1) for line in lines)
    assert first == "3 images (4 were published) of 2x3"
    assert said["detection"].endswith("cow 66.7%, cat 33.3% · never dog")
    assert said["objects"] == "2 labels · cow 66.7%, cat 33.3% · never dog"
    assert said["edges"].endswith("26.7% positive")
    assert said["normals"] == "3 labels, 83.3% known · mean (0.00, 0.48, 0.44), 20.0% point away"
    assert said["semseg"] == "3 labels, 83.3% known · road 60.0%, sky 40.0%"
