"""The reader of the rendered scenes: canonical labels, preparation on first use, clear errors."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mtl_jax import names, tasks
from mtl_jax.data.datasets import scenes
from mtl_jax.data.scenes import labels, render
from mtl_jax.errors import UserError

OPTIONS = {"size": (24, 32), "train_examples": 6, "test_examples": 3, "unlabelled_examples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def dataset(folder):
    return names.build("data.datasets", "scenes", {"domain": "outdoor", "data_dir": folder, **OPTIONS})


def test_labels_are_canonical_and_exact(dataset):
    split = dataset.split("train", list(dataset.labels))
    assert len(split) == 6 and len(set(split.ids)) == 6
    assert split.sizes.tolist() == [[24, 32]] * 6
    seen = render.render_example("outdoor", "train", 4, 24, 32)
    example = split.load(4)
    label = example["labels"]
    assert np.array_equal(example["image"], seen.image)
    assert np.array_equal(label["semseg"][..., 0], seen.semseg)
    assert label["depth"][..., 0] == pytest.approx(seen.depth, rel=1e-3)
    assert label["disparity"][..., 0] == pytest.approx(labels.disparity(seen.depth, seen.focal), rel=1e-3)
    sky = seen.semseg == render.SKY
    assert sky.any() and np.all(label["normals"][sky] == 0)
    assert np.abs(label["normals"] - seen.normals).max() < 1e-4
    assert np.array_equal(np.isnan(label["albedo"]).all(-1), sky)
    assert np.array_equal(np.isnan(label["reshading"][..., 0]), seen.depth == 0)
    assert label["classification"].shape == (1, 1, 1)


def test_every_label_suits_its_task(dataset):
    example = dataset.split("test", list(dataset.labels)).load(0)
    built = tasks.build({name: {} for name in dataset.labels}, dataset.labels)
    for name, task in built.items():
        label = example["labels"][name].astype(task.label_dtype)
        height, width = (24, 32) if task.dense else (1, 1)
        assert label.shape == (height, width, task.label_channels), name
        known = np.asarray(task.known(label))
        assert known.shape == (height, width, 1) and known.any(), name
        assert np.isfinite(np.asarray(task.encode(np.where(known, label, 0))))[known[..., 0]].all(), name


def test_only_the_asked_tasks_are_loaded(dataset):
    example = dataset.split("train", ["albedo", "depth"]).load(0)
    assert set(example["labels"]) == {"albedo", "depth"}


def test_unlabelled_split_is_apart_and_has_images_alone(dataset, folder):
    split = dataset.split("unlabelled", [])
    example = split.load(1)
    assert len(split) == 2 and example["labels"] == {}
    assert np.array_equal(example["image"], render.render_example("outdoor", "unlabelled", 1, 24, 32).image)
    with pytest.raises(UserError, match="no labels"):
        dataset.split("unlabelled", ["depth"])


def test_second_use_renders_nothing(dataset, folder, monkeypatch):
    dataset.split("train", [])
    monkeypatch.setattr(scenes, "_render", lambda *args: pytest.fail("rendered again"))
    again = scenes.build(domain="outdoor", data_dir=folder, **OPTIONS)
    assert len(again.split("test", ["depth"])) == 3
    longer = scenes.build(domain="outdoor", data_dir=folder, **{**OPTIONS, "train_examples": 7})
    with pytest.raises(pytest.fail.Exception):
        longer.split("train", [])


PREPARE = (
    "import sys; from mtl_jax.data.datasets import scenes\n"
    "folder, count = sys.argv[1:]\n"
    "d = scenes.build(size=(16, 16), train_examples=int(count), test_examples=1, data_dir=folder)\n"
    "print('image', d.split('train', ['depth']).load(0)['image'].sum())"
)


def start(folder, count, **options):
    command = [sys.executable, "-c", PREPARE, str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_two_processes_at_once_render_once(tmp_path):
    outputs = [process.communicate(timeout=120)[0] for process in [start(tmp_path, 4), start(tmp_path, 4)]]
    assert sum("Rendering" in output for output in outputs) == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1] != ""


def test_a_killed_preparation_leaves_nothing_that_looks_ready(tmp_path):
    process = start(tmp_path, 5000, start_new_session=True)
    parent = tmp_path / "scenes" / "indoor_16x16_train5000_test1"
    deadline = time.time() + 60
    while not list(parent.glob("incomplete*")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(parent.glob("incomplete*")) and not (parent / "1.0.0").exists()
    config = scenes._config("indoor", (16, 16), {"train": 5000, "test": 1})
    config.examples = {"train": 2, "test": 1}  # the same folder, but quick
    scenes._prepared(config, str(tmp_path))
    assert [p.name for p in parent.iterdir() if p.is_dir()] == ["1.0.0"]


@pytest.mark.parametrize(
    "options, culprit",
    [
        ({"domain": "moon"}, "unknown domain 'moon'"),
        ({"size": (96, 4)}, r"size is \(96, 4\)"),
        ({"size": (96,)}, "size"),
        ({"test_examples": 0}, "test_examples is 0"),
    ],
)
def test_bad_options_are_named(options, culprit):
    with pytest.raises(UserError, match=culprit):
        scenes.build(**options)


def test_unknown_split_is_named(dataset):
    with pytest.raises(UserError, match="'val'"):
        dataset.split("val", [])


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set data_dir"):
        scenes.build(data_dir=str(tmp_path / "file"), **OPTIONS).split("train", [])


def test_damaged_records_are_named(tmp_path):
    options = {"size": (16, 16), "train_examples": 2, "test_examples": 1, "data_dir": str(tmp_path)}
    scenes.build(**options).split("train", [])
    (record,) = tmp_path.rglob("*train.array_record*")
    record.write_bytes(bytes(b ^ 255 if 200 < i < 4000 else b for i, b in enumerate(record.read_bytes())))
    with pytest.raises(UserError, match="delete that folder"):
        split = scenes.build(**options).split("train", ["depth"])
        [split.load(i) for i in range(2)]
