"""A miniature of the release, written with PIL, read back by value."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import fsv
from mtl_jax.errors import UserError

TASKS = ["semseg", "albedo", "disparity"]
FRAMES = {"train": ["b/7", "a/10", "a/2", "b/1"], "test": [f"c/{i}" for i in range(7)]}
SIZES = {"a": (8, 12), "b": (10, 6), "c": (8, 8)}


def stored(frame):
    """What the files of one frame hold: image, object ids, albedo, codes of 24 bits."""
    name, number = frame.split("/")
    size, rng = SIZES[name], np.random.default_rng(int(number))
    codes = rng.integers(0, 2**24, size)
    codes[0, :3] = 0, 2**24 - 1, 2**16
    colours = rng.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    return colours[0], rng.integers(0, 8, size).astype(np.uint8), colours[1], codes


def write(images, frame):
    image, ids, albedo, codes = stored(frame)
    base = images / frame
    base.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(f"{base}_final.webp", lossless=True)
    noise = np.random.default_rng(1).integers(0, 256, (2, *ids.shape)).astype(np.uint8)
    Image.fromarray(np.stack([ids, *noise], axis=-1)).save(f"{base}_object_id.png")
    Image.fromarray(albedo).save(f"{base}_albedo.webp", lossless=True)
    save_codes(base, codes)


def save_codes(base, codes):
    """The lowest byte is red."""
    bytes_ = codes.astype("<u4").view(np.uint8).reshape(*codes.shape, 4)
    assert not bytes_[..., 3].any()
    Image.fromarray(np.ascontiguousarray(bytes_[..., :3])).save(f"{base}_disparity.webp", lossless=True)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "gt_sets").mkdir()
    for split, frames in FRAMES.items():
        (tmp_path / f"gt_sets/gta_{split}.txt").write_text("\n".join(frames) + "\n")
        for frame in frames:
            write(tmp_path / f"gta_{split}", frame)
    return tmp_path


def test_splits_and_sizes(root):
    dataset = fsv.build(str(root))
    assert dataset.splits == ("train", "test") and list(dataset.labels) == TASKS
    assert dataset.labels["semseg"]["class_names"] == ("background", "vehicle", "object")
    train = dataset.split("train", ["albedo"])
    assert train.ids == FRAMES["train"] and train.sizes.dtype == np.int32
    assert train.sizes.tolist() == [[10, 6], [8, 12], [8, 12], [10, 6]]
    assert set(train.load(0)["labels"]) == {"albedo"}


@pytest.mark.parametrize(("examples", "step"), [(5000, 1), (7, 1), (4, 1), (3, 2), (2, 3), (1, 7)])
def test_every_so_many_frames_are_tested(root, examples, step):
    dataset = fsv.build(str(root), eval_examples=examples)
    assert dataset.split("test", []).ids == FRAMES["test"][::step]
    assert dataset.split("train", []).ids == FRAMES["train"]


def test_of_the_whole_test_list_5008_frames_are_used():
    """As in the paper's evaluation."""
    assert fsv.build("anywhere").published == {"train": 223197, "test": 5008}
    assert fsv.build("anywhere", eval_examples=10**6).published["test"] == 50080


@pytest.mark.parametrize("index", range(4))
def test_values(root, index):
    split = fsv.build(str(root)).split("train", TASKS)
    got = split.load(index)
    image, ids, albedo, codes = stored(split.ids[index])
    labels = got["labels"]
    np.testing.assert_array_equal(got["image"], image)
    np.testing.assert_array_equal(labels["semseg"][..., 0], (ids == 2) * 1 + (ids == 3) * 2)
    np.testing.assert_allclose(labels["albedo"], albedo / 255, atol=5e-4)
    np.testing.assert_array_equal(labels["disparity"][..., 0].astype(np.float64), codes / 8192)
    assert labels["disparity"][0, :3, 0].tolist() == [0, (2**24 - 1) / 8192, 8]
    assert {task: label.dtype for task, label in labels.items()} == {
        "semseg": np.uint8,
        "albedo": np.float16,
        "disparity": np.float32,
    }
    assert labels["disparity"].shape == (*image.shape[:2], 1) and labels["albedo"].shape == image.shape


def test_one_image_of_each_folder_is_opened_to_measure(root, monkeypatch):
    opened, really = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path.name) or really(path))
    split = fsv.build(str(root)).split("train", TASKS)
    assert not opened and split.measure().shape == (4, 2)
    assert sorted(opened) == ["10_final.webp", "7_final.webp"]


def test_wrong_options_splits_and_missing_files_are_named(root):
    with pytest.raises(UserError, match="eval_examples is 0: give at least 1"):
        fsv.build(str(root), eval_examples=0)
    dataset = fsv.build(str(root))
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        dataset.split("val", [])
    with pytest.raises(UserError, match="cannot read .*elsewhere/gt_sets/gta_train.txt"):
        fsv.build(str(root / "elsewhere")).split("train", [])
    (root / "gta_train/a/2_albedo.webp").unlink()
    assert dataset.split("train", ["disparity"]).load(2)["labels"]["disparity"].any()
    with pytest.raises(UserError, match="cannot read .*gta_train/a/2_albedo.webp"):
        dataset.split("train", ["albedo"]).load(2)
    (root / "gta_train/a/10_final.webp").unlink()
    for ask in (lambda split: split.measure(), lambda split: split.load(2)):
        with pytest.raises(UserError, match="cannot read .*gta_train/a/10_final.webp"):
            ask(dataset.split("train", []))
    (root / "gt_sets/gta_train.txt").write_text("a/2\na/2\n")
    with pytest.raises(UserError, match="gta_train.txt lists 'a/2' 2 times"):
        dataset.split("train", [])


DAMAGE = {
    "size in a folder": (
        lambda base: Image.new("RGB", (9, 9)).save(f"{base}_final.webp"),
        "a/2_final.webp holds 9x9x3 .* 8x12x3",
    ),
    "size of a label": (
        lambda base: save_codes(base, np.ones((3, 4), int)),
        "a/2_disparity.webp holds 3x4x1 .* 8x12x1",
    ),
    "id": (
        lambda base: Image.new("RGB", (12, 8), (8, 0, 0)).save(f"{base}_object_id.png"),
        "a/2_object_id.png holds 8, but classes are 0 to 7",
    ),
    **{
        f"truncated{ending}": (
            lambda base, ending=ending: cut(base.with_name(base.name + ending)),
            f"cannot read .*a/2{ending}",
        )
        for ending in ("_final.webp", "_object_id.png", "_albedo.webp", "_disparity.webp")
    },
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named(root, case):
    spoil, message = DAMAGE[case]
    spoil(root / "gta_train/a/2")
    with pytest.raises(UserError, match=message):
        fsv.build(str(root)).split("train", TASKS).load(2)


def test_through_the_pipeline(root):
    dataset = fsv.build(str(root))
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    augment = {"flip": True, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    data = ConfigDict({"batch_size": 4, "eval_batch_size": 4, "size": (6, 6), "eval_size": None})
    data.update({"cache": False, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    for name, task in tasks.items():
        assert batch["labels"][name].shape == (4, 6, 6, task.label_channels)
        assert np.isfinite(batch["labels"][name]).all() and batch["valid"][name].any()

    batches = list(pipeline.eval_batches(dataset.split("test", TASKS), tasks, data))
    assert [b["id"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    codes = stored("c/5")[3]
    np.testing.assert_array_equal(batches[1]["labels"]["disparity"][1, ..., 0], codes / 8192)
    np.testing.assert_array_equal(batches[1]["valid"]["disparity"][1, ..., 0], codes > 0)
    assert batches[1]["valid"]["albedo"][1].all() and batches[1]["valid"]["semseg"][1].all()


def test_training(root, train_a_little):
    train_a_little(fsv.build(str(root)), {name: {} for name in TASKS}, "train", "test", canvas=(16, 16))
