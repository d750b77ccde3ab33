"""Miniatures of the release and of the frames with depth alone, read back by value."""

import h5py
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import nyuv2
from mtl_jax.errors import UserError

TASKS = ["semseg", "depth", "normals"]
SIZE = (32, 64)
COUNT = {"train": 12, "val": 2}


def stored(number):
    """What the files of one image hold: colours, classes, metres, unit vectors (right, ahead, up)."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (*SIZE, 3)) / 255
    classes = rng.integers(0, 13, SIZE).astype(np.float32)
    classes[:4, :8] = -1
    depth = rng.uniform(0.7, 9.9, (*SIZE, 1))
    depth[5] = 0
    if number == 1:
        depth[:] = 0
    vectors = rng.normal(size=(*SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[8:12, 8:12] = 0
    vectors[0, 0] = np.array([1, -1, 0]) / np.sqrt(2)  # known, though its sum is zero
    return image, classes, depth, vectors


@pytest.fixture(params=["release", "mirror"])
def root(tmp_path, request):
    """The mirror has channels first, single precision and whole classes."""
    for split, count in COUNT.items():
        for i in range(count):
            arrays = dict(zip(("image", "label", "depth", "normal"), stored(i), strict=True))
            if request.param == "mirror":
                arrays = {k: np.moveaxis(a, -1, 0) if a.ndim == 3 else a for k, a in arrays.items()}
                arrays = {k: a.astype(np.int64 if k == "label" else np.float32) for k, a in arrays.items()}
            for kind, array in arrays.items():
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / split / kind / f"{i}.npy", array)
    return tmp_path


FRAMES = ["bathroom_0001/00001", "bathroom_0001/00201", "cafe_0001a/00007"]
FRAME_SIZE = (40, 80)


def frame(name):
    rng = np.random.default_rng(FRAMES.index(name) + 100)
    depth = rng.uniform(0.7, 9.9, FRAME_SIZE).astype(np.float32)
    depth[:, :10] = 0
    depth[:, 10:20] = -1
    return rng.integers(0, 256, (3, *FRAME_SIZE)).astype(np.uint8), depth


@pytest.fixture
def extension(tmp_path):
    for name in FRAMES:
        path = tmp_path / "nyudepthv2/train" / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["rgb"], file["depth"] = frame(name)
    return tmp_path / "nyudepthv2"


def test_splits_and_classes(root):
    dataset = nyuv2.build(str(root))
    assert dataset.splits == ("train", "val") and list(dataset.labels) == TASKS
    semseg = dataset.labels["semseg"]
    assert semseg["num_classes"] == len(semseg["class_names"]) == 13
    assert [semseg["class_names"][k] for k in (0, 4, 6, 12)] == ["bed", "floor", "objects", "window"]
    train = dataset.split("train", ["depth"])
    assert train.ids == [str(i) for i in range(12)] and train.sizes.tolist() == [[32, 64]] * 12
    assert set(train.load(0)["labels"]) == {"depth"} and len(dataset.split("val", [])) == 2


@pytest.mark.parametrize("index", [0, 1, 2, 10])
def test_values(root, index):
    got = nyuv2.build(str(root)).split("train", TASKS).load(index)
    image, classes, depth, vectors = stored(index)
    labels = got["labels"]
    np.testing.assert_array_equal(got["image"], np.rint(image * 255))
    np.testing.assert_array_equal(labels["semseg"][..., 0], np.where(classes < 0, 255, classes))
    np.testing.assert_array_equal(labels["depth"], depth.astype(np.float32))
    assert labels["depth"].any() == (index != 1)
    np.testing.assert_allclose(labels["normals"], vectors @ [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-7)
    assert {task: label.dtype for task, label in labels.items()} == {
        "semseg": np.uint8,
        "depth": np.float32,
        "normals": np.float32,
    }


def test_axes(root):
    """A floor is up, a wall ahead looks back, a wall on the left looks to the right."""
    vectors = np.zeros((*SIZE, 3))
    vectors[0], vectors[1], vectors[2] = (0, 0, 1), (0, -1, 0), (1, 0, 0)
    np.save(root / "val/normal/0.npy", vectors)
    label = nyuv2.build(str(root)).split("val", ["normals"]).load(0)["labels"]["normals"]
    assert [label[k, 0].tolist() for k in range(4)] == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_frames_with_depth_alone_follow(root, extension):
    dataset = nyuv2.build(str(root), extension_dir=str(extension))
    assert len(dataset.split("val", TASKS)) == 2
    train = dataset.split("train", TASKS)
    assert train.ids == [*map(str, range(12)), *FRAMES]
    assert train.sizes.shape == (15, 2) and train.sizes.dtype == np.int32 and (train.sizes == SIZE).all()
    np.testing.assert_array_equal(train.load(3)["labels"]["depth"], stored(3)[2].astype(np.float32))
    for index, name in enumerate(FRAMES, 12):
        image, depth = frame(name)
        example = train.load(index)
        labels = example["labels"]
        assert example["image"].dtype == np.uint8 and example["image"].shape == (*SIZE, 3)
        np.testing.assert_allclose(example["image"].mean((0, 1)), image.mean((1, 2)), atol=4)
        rows, columns = (np.arange(32) * 5 + 2) // 4, (np.arange(64) * 5 + 2) // 4  # 4/5 as large
        np.testing.assert_array_equal(labels["depth"][..., 0], np.maximum(depth[rows][:, columns], 0))
        assert labels["depth"].dtype == np.float32 and not labels["depth"][:, :16].any()
        assert (labels["semseg"] == 255).all() and labels["semseg"].dtype == np.uint8
        assert not labels["normals"].any() and labels["normals"].shape == (*SIZE, 3)
        assert labels["normals"].dtype == np.float32
    assert set(dataset.split("train", ["normals"]).load(14)["labels"]) == {"normals"}


def test_colours_of_frames_are_not_mixed_up(root, extension):
    with h5py.File(extension / f"train/{FRAMES[1]}.h5", "w") as file:
        file["rgb"] = np.broadcast_to(np.uint8([10, 90, 200])[:, None, None], (3, 4, 8))
        file["depth"] = np.ones((4, 8), np.float32)
    image = nyuv2.build(str(root), str(extension)).split("train", []).load(13)["image"]
    assert (image == [10, 90, 200]).all()


def test_mistakes_are_named(root, extension):
    dataset = nyuv2.build(str(root), str(extension))
    with pytest.raises(UserError, match="nyuv2 has no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match="no frame in .*val/train"):
        nyuv2.build(str(root), str(extension / "val")).split("train", [])
    np.save(root / "val/normal/0.npy", stored(0)[3] * 127)
    with pytest.raises(UserError, match="val/normal/0.npy holds a vector that is longer than 1"):
        dataset.split("val", ["normals"]).load(0)
    np.save(root / "val/depth/1.npy", stored(0)[2] * 1000)
    with pytest.raises(UserError, match=r"val/depth/1.npy holds 98\d\d.*, which cannot be metres"):
        dataset.split("val", ["depth"]).load(1)
    np.save(root / "val/label/1.npy", stored(0)[1] + 1)
    with pytest.raises(UserError, match="val/label/1.npy holds 13, but classes are -1 to 12"):
        dataset.split("val", ["semseg"]).load(1)
    np.save(root / "val/depth/0.npy", np.full((*SIZE, 1), np.inf))
    with pytest.raises(UserError, match=r"val/depth/0.npy holds inf, which cannot be metres"):
        dataset.split("val", ["depth"]).load(0)
    np.save(root / "val/depth/0.npy", np.full((SIZE[1], SIZE[0], 1), 1.0))
    with pytest.raises(UserError, match=r"val/depth/0.npy holds 64x32x1 values, .* 32x64x1"):
        dataset.split("val", ["depth"]).load(0)
    path = root / "train/normal/0.npy"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        dataset.split("train", TASKS).load(0)
    (root / "train/depth/5.npy").unlink()
    with pytest.raises(UserError, match="no file .*train/depth/5.npy"):
        dataset.split("train", TASKS)
    (extension / f"train/{FRAMES[0]}.h5").write_bytes(b"no file of this kind")
    with pytest.raises(UserError, match="cannot read .*bathroom_0001/00001.h5"):
        dataset.split("train", []).load(12)


def test_through_the_pipeline(root, extension):
    dataset = nyuv2.build(str(root), str(extension))
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    augment = {"flip": True, "scale": (1.0, 1.5), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    data = ConfigDict({"batch_size": 15, "eval_batch_size": 2, "size": (32, 64), "eval_size": None})
    data.update({"cache": False, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    assert sorted(batch["id"].tolist()) == list(range(15))
    for name, task in tasks.items():
        assert batch["labels"][name].shape == (15, 32, 64, task.label_channels)
        known = {int(i) for i, valid in zip(batch["id"], batch["valid"][name], strict=True) if valid.any()}
        assert known == (set(range(15)) - {1} if name == "depth" else set(range(12)))

    (batch,) = pipeline.eval_batches(dataset.split("val", TASKS), tasks, data)
    image, classes, depth, vectors = stored(0)
    np.testing.assert_allclose(batch["image"][0], image, atol=1e-6)
    np.testing.assert_array_equal(batch["valid"]["semseg"][0, ..., 0], classes >= 0)
    np.testing.assert_array_equal(batch["valid"]["depth"][0], depth > 0)
    np.testing.assert_array_equal(batch["valid"]["normals"][0], vectors.any(-1, keepdims=True))
    assert batch["valid"]["normals"][0, 0, 0] == 1 and not batch["valid"]["depth"][1].any()


def test_what_is_no_number_is_unknown(root):
    _, _, depth, vectors = stored(0)
    depth[3, 5], vectors[4, 6, 1] = np.nan, np.nan
    np.save(root / "val/depth/0.npy", depth)
    np.save(root / "val/normal/0.npy", vectors)
    labels = nyuv2.build(str(root)).split("val", TASKS).load(0)["labels"]
    assert labels["depth"][3, 5] == 0 and not labels["normals"][4, 6].any()
    assert np.isfinite(labels["depth"]).all() and np.isfinite(labels["normals"]).all()


@pytest.mark.parametrize("root", ["mirror"], indirect=True)
def test_training(root, extension, train_a_little):
    dataset = nyuv2.build(str(root), str(extension))
    assert dataset.published == {"train": 795 + 47584, "val": 654}
    assert nyuv2.build(str(root)).published == {"train": 795, "val": 654}
    train_a_little(dataset, {name: {} for name in TASKS}, "train", "val", canvas=(32, 64))
