"""FastDepth's frames, written with h5py, and the same as TFDS itself prepares them."""

import unittest.mock

import h5py
import numpy as np
import pytest
from tensorflow_datasets.datasets.nyu_depth_v2 import nyu_depth_v2_dataset_builder as source

from mtl_jax.data.datasets import nyu_depth
from mtl_jax.errors import UserError

FRAMES = {
    "train": ["cafe_0001a/00007", "bathroom_0001/00201", "bathroom_0001/00001"],
    "val": ["official/00002"],
}
SIZE = (480, 640)


def stored(name):
    """(colours, metres): coarse blocks, so that files are small."""
    rng = np.random.default_rng(int(name[-5:]))
    colours = rng.integers(0, 256, (3, 12, 16)).astype(np.uint8).repeat(40, 1).repeat(40, 2)
    depth = rng.uniform(0.8, 9.9, (12, 16)).astype(np.float32).repeat(40, 0).repeat(40, 1)
    depth[100:110] = 0
    depth[110, :9], depth[111, :9] = -1, np.nan
    depth[200, 100:104] = 0.0005, 0.002, 9.99, 10.5
    return colours, depth


@pytest.fixture(scope="module")
def fastdepth(tmp_path_factory):
    root = tmp_path_factory.mktemp("fastdepth") / "nyudepthv2"
    for split, names in FRAMES.items():
        for name in names:
            write(root / split / f"{name}.h5", *stored(name))
    return root


def write(path, colours, depth):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["rgb"], file["depth"] = colours, depth


@pytest.fixture(scope="module")
def prepared(fastdepth, tmp_path_factory):
    """What `tfds build` makes of these frames."""

    def split_generators(builder, dl_manager):
        return {
            "train": builder._generate_examples(str(fastdepth / "train")),
            "validation": builder._generate_examples(str(fastdepth / "val")),
        }

    root = tmp_path_factory.mktemp("tfds")
    with unittest.mock.patch.object(source.Builder, "_split_generators", split_generators):  # no download
        source.Builder(data_dir=root).download_and_prepare()
    return root


def known(depth):
    return np.where(depth > 0, depth, 0)


def test_frames(fastdepth):
    dataset = nyu_depth.build(str(fastdepth))
    assert dataset.splits == ("train", "val") and dataset.published == {"train": 47584, "val": 654}
    for split in dataset.splits:
        part = dataset.split(split, ["depth"])
        assert list(part.ids) == sorted(FRAMES[split])
        assert part.sizes.tolist() == [list(SIZE)] * len(part.ids)
        for index, name in enumerate(part.ids):
            colours, depth = stored(name)
            example = part.load(index)
            np.testing.assert_array_equal(example["image"], colours.transpose(1, 2, 0))
            np.testing.assert_array_equal(example["labels"]["depth"][..., 0], known(depth))
            assert example["labels"]["depth"].dtype == np.float32
    assert dataset.split("val", []).load(0)["labels"] == {}


def test_the_same_frames_by_tfds(prepared):
    dataset = nyu_depth.build(str(prepared))
    for split in dataset.splits:
        part = dataset.split(split, ["depth"])
        assert part.sizes.tolist() == [list(SIZE)] * len(FRAMES[split]) and len(set(part.ids)) == len(part)
        frames = {stored(name)[0].tobytes(): stored(name) for name in FRAMES[split]}
        for index in range(len(part)):
            example = part.load(index)
            _, depth = frames.pop(example["image"].transpose(2, 0, 1).tobytes())
            half = known(depth.astype(np.float16)).astype(np.float32)
            np.testing.assert_array_equal(example["labels"]["depth"][..., 0], half)
            assert example["labels"]["depth"].dtype == np.float32
        assert not frames


def test_eigen_crop(fastdepth):
    """Of val alone: rows 45 to 470, columns 41 to 600, between 1 mm and 10 m."""
    dataset = nyu_depth.build(str(fastdepth), eigen_crop=True)
    label = dataset.split("val", ["depth"]).load(0)["labels"]["depth"][..., 0]
    depth = known(stored("official/00002")[1])
    rows, columns = np.nonzero(label)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    inside = np.zeros(SIZE, bool)
    inside[45:471, 41:601] = True
    np.testing.assert_array_equal(label, np.where(inside & (depth > 1e-3) & (depth < 10), depth, 0))
    np.testing.assert_array_equal(label[200, 100:104] > 0, [False, True, True, False])
    whole = dataset.split("train", ["depth"]).load(0)["labels"]["depth"][..., 0]
    np.testing.assert_array_equal(whole, known(stored("bathroom_0001/00001")[1]))


def test_training(fastdepth, train_a_little):
    dataset = nyu_depth.build(str(fastdepth), eigen_crop=True)
    batch, results = train_a_little(dataset, {"depth": {}}, "train", "val", canvas=SIZE, steps=1)
    assert results["depth/rmse"] > 0 and 0 < batch["valid"]["depth"].mean() < 1


def test_what_is_missing_is_named(fastdepth, tmp_path):
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        nyu_depth.build(str(fastdepth)).split("test", [])
    with pytest.raises(UserError, match=r"no frame .*/val/\*/\*\.h5, nor a prepared TFDS dataset"):
        nyu_depth.build(str(tmp_path)).split("val", [])


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "cannot read .*official/00002.h5"),
        (lambda p: write(p, np.zeros((3, 48, 64), np.uint8), np.ones((48, 64))), "00002.h5 holds 48x64x3"),
        (lambda p: write(p, np.zeros((3, *SIZE), np.uint8), np.ones((480, 639))), "00002.h5 holds 480x639 "),
        (
            lambda p: write(p, np.zeros((3, *SIZE), np.uint8), np.full(SIZE, 900)),
            "900, which cannot be metres",
        ),
    ],
)
def test_damaged_frames_are_named(tmp_path, spoil, message):
    path = tmp_path / "val/official/00002.h5"
    write(path, *stored("official/00002"))
    spoil(path)
    with pytest.raises(UserError, match=message):
        nyu_depth.build(str(tmp_path)).split("val", ["depth"]).load(0)


def test_a_frame_without_depth_is_named(tmp_path):
    path = tmp_path / "val/official/00002.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["rgb"] = np.zeros((3, *SIZE), np.uint8)
    with pytest.raises(UserError, match="cannot read .*official/00002.h5 .*depth"):
        nyu_depth.build(str(tmp_path)).split("val", []).load(0)
