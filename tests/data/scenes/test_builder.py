"""The TFDS side: what `tfds.load` returns is what was rendered."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_jax.data.scenes import Scenes, labels, render, workers
from mtl_jax.data.scenes.scene import CLASSES

SIZE = (24, 32)


def test_tfds_load_gives_the_rendered_labels(tmp_path):
    split = tfds.load("scenes/indoor_tiny", split="train", data_dir=tmp_path)
    examples = list(split.as_numpy_iterator())
    assert [e["id"] for e in examples] == [f"indoor-train-{i:06d}".encode() for i in range(8)]
    expected = labels.annotate(render.render_example("indoor", "train", 5, 32, 48))
    stored = examples[5]
    for key in ("image", "depth", "disparity", "normals", "albedo"):
        assert np.array_equal(stored[key], expected[key]), key
    for key in (
        "semseg",
        "instances",
        "parts",
        "edges",
        "saliency",
        "reshading",
        "keypoints2d",
        "edge_texture",
    ):
        assert np.array_equal(stored[key][..., 0], expected[key]), key
    assert stored["classification"] == expected["classification"]
    assert stored["objects"]["label"].tolist() == [thing["label"] for thing in expected["objects"]]
    assert stored["objects"]["bbox"] == pytest.approx(
        np.array([thing["bbox"] for thing in expected["objects"]])
    )


def test_domains_have_the_same_classes_and_features(tmp_path):
    indoor, outdoor = (
        Scenes(config=domain, data_dir=tmp_path).info.features for domain in ("indoor", "outdoor")
    )
    assert indoor["objects"]["label"].names == outdoor["objects"]["label"].names == list(CLASSES)
    assert indoor["classification"].names == outdoor["classification"].names
    assert set(indoor) == set(outdoor)


def test_labelled_configs_do_not_hold_the_unlabelled_images(tmp_path):
    for domain in ("indoor", "outdoor"):
        assert "unlabelled" not in Scenes(config=domain, data_dir=tmp_path).builder_config.examples
        alone = Scenes(config=f"{domain}_unlabelled", data_dir=tmp_path)
        assert set(alone.info.features) == {"id", "image"}
        assert list(alone.builder_config.examples) == ["unlabelled"]


def test_workers_keep_the_order_whatever_their_number(monkeypatch):
    expected = [workers.example("outdoor", "test", i, SIZE, False)["image"].getvalue() for i in range(5)]
    monkeypatch.setattr(workers, "_IMAGES_PER_WORKER", 1)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(3), raising=False)
    found = [e["image"].getvalue() for e in workers.examples("outdoor", "test", 5, SIZE, False)]
    assert found == expected
    assert len(set(found)) == 5


def test_a_dead_worker_is_an_error_and_not_a_short_dataset(monkeypatch):
    monkeypatch.setattr(workers, "_COMMAND", "import sys; sys.exit(3)")
    with pytest.raises(RuntimeError, match="scenes/indoor test 0 ended: 3"):
        list(workers.examples("indoor", "test", 2, SIZE, True))


def test_workers_end_with_the_reader_that_gives_up(monkeypatch):
    started = []
    popen = workers.subprocess.Popen
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    stream = workers.examples("indoor", "test", 1000, SIZE, False)
    next(stream)
    stream.close()
    assert started and all(worker.poll() is not None for worker in started)
