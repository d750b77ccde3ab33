"""A miniature in both layouts, written with TensorFlow's encoder of PNG, read back by value."""

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import taskonomy
from mtl_jax.errors import UserError

TASKS = ["semseg", "depth", "normals", "edge_occlusion", "reshading", "keypoints2d", "edge_texture"]
KINDS = ["rgb", "segment_semantic", "depth_zbuffer", "normal", "edge_occlusion", "reshading", "keypoints2d"]
KINDS += ["edge_texture"]
VIEWS = [(2, 10), (10, 9), (2, 9)]
BUILDINGS = ["hanson", "darden"]
SIZE = 64


def stored(building, point, view):
    """What the files of one view hold, by kind."""
    rng = np.random.default_rng(BUILDINGS.index(building) * 1000 + point * 20 + view)
    kinds = {kind: rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8) for kind in ("rgb", "normal")}
    kinds["normal"][:8, :8] = 127  # no direction
    grey = rng.integers(0, 256, (SIZE, SIZE, 1)).astype(np.uint8)
    kinds["reshading"] = grey.repeat(3, axis=-1)
    kinds["segment_semantic"] = rng.integers(0, 18, (SIZE, SIZE, 1)).astype(np.uint8)
    kinds["segment_semantic"][:16, :16], kinds["segment_semantic"][16:32, :16] = 0, 1
    kinds["depth_zbuffer"] = rng.integers(1, 2**13 + 9, (SIZE, SIZE, 1)).astype(np.uint16)
    kinds["depth_zbuffer"][20:40, 20:40] = 65535
    kinds["depth_zbuffer"][0, :2, 0] = 2**13 - 1, 2**13
    for kind in ("edge_occlusion", "keypoints2d", "edge_texture"):
        kinds[kind] = rng.integers(0, 3000, (SIZE, SIZE, 1)).astype(np.uint16)
    return kinds


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(array).numpy())


@pytest.fixture(params=["", "taskonomy"], ids=["flat", "downloaded"])
def root(tmp_path, request):
    for building in BUILDINGS:
        for view in VIEWS:
            for kind, array in stored(building, *view).items():
                domain = {"segment_semantic": "segmentsemantic"}.get(kind, kind)
                name = "point_{}_view_{}_domain_{}.png".format(*view, domain)
                write(tmp_path / kind / request.param / building / name, array)
    write(
        tmp_path / "rgb" / request.param / "hanson/point_1_view_0_domain_rgb.png", np.zeros((64, 64, 3), "u1")
    )
    (tmp_path / "splits.csv").write_bytes(b"id,train,val,test\rhanson,1,0,0\rdarden,0,0,1\r")
    return tmp_path


def build(root, **options):
    return taskonomy.build(
        str(root), **({"splits_file": str(root / "splits.csv"), "size": (64, 64)} | options)
    )


def find(root, kind, view):
    (path,) = (root / kind).rglob(f"{view}_domain_*.png")
    return path


def test_splits_and_views(root):
    dataset = build(root)
    assert dataset.splits == ("train", "val", "test") and list(dataset.labels) == TASKS
    train = dataset.split("train", ["keypoints2d"])
    assert train.ids == [f"hanson/point_{p}_view_{v}" for p, v in [(2, 9), (2, 10), (10, 9)]]
    assert train.sizes.dtype == np.int32 and train.sizes.tolist() == [[64, 64]] * 3
    assert set(train.load(0)["labels"]) == {"keypoints2d"}
    assert len(dataset.split("test", [])) == 3 and len(dataset.split("val", [])) == 0
    semseg = dataset.labels["semseg"]
    assert semseg["num_classes"] == len(semseg["class_names"]) == 17
    assert [semseg["class_names"][k] for k in (0, 1, 16)] == ["background", "bottle", "vase"]


def test_the_tiny_split():
    counts = {name: len(set(buildings)) for name, buildings in taskonomy.TINY.items()}
    assert counts == {"train": 25, "val": 5, "test": 5}
    assert len({b for buildings in taskonomy.TINY.values() for b in buildings}) == 35


def test_the_images_are_the_same_whatever_the_tasks(root):
    find(root, "reshading", "hanson/point_2_view_10").unlink()
    for tasks in ([], ["depth"], TASKS):
        assert build(root).split("train", tasks).ids == ["hanson/point_2_view_9", "hanson/point_10_view_9"]
    skip = ("hanson/point_2_view_9",)
    assert build(root, skip=skip).split("train", []).ids == ["hanson/point_10_view_9"]
    assert build(root, skip=("hanson",)).split("train", []).ids == []


@pytest.mark.parametrize("index", range(3))
def test_values(root, index):
    split = build(root).split("test", TASKS)
    got = split.load(index)
    raw = stored("darden", *sorted(VIEWS)[index])
    codes = {kind: array[..., 0].astype(np.float64) for kind, array in raw.items()}
    labels = {task: label[..., 0] for task, label in got["labels"].items()}
    np.testing.assert_array_equal(got["image"], raw["rgb"])
    classes = codes["segment_semantic"]
    np.testing.assert_array_equal(labels["semseg"], np.where(classes == 0, 255, classes - 1))
    assert labels["semseg"].dtype == np.uint8 and (labels["semseg"][16:32, :16] == 0).all()
    seen = codes["depth_zbuffer"] < 8192
    assert not seen[20:40, 20:40].any() and seen[0, 0] and not seen[0, 1]
    np.testing.assert_array_equal(labels["depth"], np.where(seen, codes["depth_zbuffer"] / 512, 0))
    expected = {
        "edge_occlusion": np.where(seen, (codes["edge_occlusion"] - 56.0248) / 239.1265, np.nan),
        "reshading": np.where(seen, (codes["reshading"] / 255 - 0.4962) / 0.2846, np.nan),
        "keypoints2d": (codes["keypoints2d"] - 50) / 100,
        "edge_texture": (codes["edge_texture"] - 718) / 1070,
    }
    for task, value in expected.items():
        np.testing.assert_allclose(labels[task], value, rtol=1e-5, atol=1e-5)
        assert labels[task].dtype == np.float32 and got["labels"][task].shape == (64, 64, 1)

    right, down, ahead = np.moveaxis(raw["normal"] / 127.5 - 1, -1, 0)
    vectors = np.stack([right, -down, -ahead], axis=-1)
    length = np.linalg.norm(vectors, axis=-1)
    known = got["labels"]["normals"].any(-1)
    np.testing.assert_array_equal(known, seen & (length > 0.5))
    cosine = (got["labels"]["normals"] * vectors).sum(-1)[known] / length[known]
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got["labels"]["normals"], axis=-1), known, atol=1e-5)


def test_axes(root):
    """A floor is up, a wall ahead looks back, a wall on the left looks to the right."""
    path = find(root, "normal", "darden/point_2_view_9")
    colours = np.full((64, 64, 3), 127, np.uint8)
    colours[:16], colours[16:20], colours[50:] = (127, 0, 127), (127, 127, 0), (255, 127, 127)
    write(path, colours)
    depth = find(root, "depth_zbuffer", "darden/point_2_view_9")
    write(depth, np.full((64, 64, 1), 999, np.uint16))
    label = build(root).split("test", ["normals"]).load(0)["labels"]["normals"]
    for row, vector in {0: (0, 1, 0), 17: (0, 0, 1), 60: (1, 0, 0), 30: (0, 0, 0)}.items():
        np.testing.assert_allclose(label[row], np.tile(vector, (64, 1)), atol=0.01)


def test_half_the_size(root):
    name = "darden/point_2_view_9"
    grid = np.arange(64)[:, None, None] // 32 + np.arange(64)[:, None] // 32  # 0 to 2, in quarters
    hole = np.zeros((64, 64, 1), bool)
    hole[13:27, 3:11] = True
    write(find(root, "depth_zbuffer", name), np.where(hole, 65535, 512 * (1 + grid)).astype(np.uint16))
    write(find(root, "edge_occlusion", name), np.where(hole, 65535, 100).astype(np.uint16))
    write(find(root, "segment_semantic", name), (5 + 7 * (grid % 2)).astype(np.uint8))
    write(find(root, "rgb", name), np.full((64, 64, 3), (9, 99, 199), np.uint8))
    example = build(root, size=(32, 32)).split("test", TASKS).load(0)
    labels = example["labels"]
    assert (example["image"] == [9, 99, 199]).all() and example["image"].shape == (32, 32, 3)
    assert {label.shape[:2] for label in labels.values()} == {(32, 32)}
    assert set(np.unique(labels["semseg"])) == {4, 11}
    assert set(np.unique(labels["depth"])) == {0, 1, 2, 3}
    np.testing.assert_array_equal(labels["depth"] == 0, hole[1::2, 1::2])
    expected = np.where(hole[1::2, 1::2], np.nan, (100 - 56.0248) / 239.1265)  # and nothing of the 65535
    np.testing.assert_allclose(labels["edge_occlusion"], expected, rtol=1e-5)
    assert np.isfinite(labels["keypoints2d"]).all()
    np.testing.assert_array_equal(np.isnan(labels["reshading"]), hole[1::2, 1::2])
    known = labels["normals"].any(-1)
    assert not known[hole[1::2, 1::2, 0]].any() and not known[:4, :4].any()  # there without a direction
    np.testing.assert_allclose(np.linalg.norm(labels["normals"][known], axis=-1), 1, rtol=1e-5)


def test_mistakes_are_named(root):
    dataset = build(root)
    with pytest.raises(UserError, match="taskonomy has no split 'tiny': choose one of train, val, test"):
        dataset.split("tiny", [])
    with pytest.raises(UserError, match="there is no folder .*rgb.*/allensville: download the building"):
        taskonomy.build(str(root)).split("train", [])
    (root / "splits.csv").write_text("id,train,val,test\nhanson,1,0,\n")
    with pytest.raises(UserError, match="splits.csv says of 'hanson' neither 0 nor 1 for each split"):
        build(root)
    (root / "splits.csv").write_text("id,train,val\nhanson,1,0\n")
    with pytest.raises(UserError, match="splits.csv has no column 'test'"):
        build(root)
    for path in (root / "edge_texture").rglob("hanson/*"):
        path.rename(path.with_name(path.name.replace("edge_texture", "edge")))
    with pytest.raises(
        UserError, match="no view of hanson is in each of .*rgb.*: download it, or name it in"
    ):
        dataset.split("train", [])
    for path in (root / "edge_texture").rglob("hanson/*"):
        path.rename(path.with_name(path.name.replace("domain_edge", "domain_edge_texture")))
    (root / "keypoints2d").rename(root / "keypoints3d")
    with pytest.raises(UserError, match="there is no folder .*keypoints2d: download that kind"):
        dataset.split("train", ["keypoints2d"])
    (root / "depth_zbuffer").rename(root / "elsewhere")
    assert len(dataset.split("train", ["edge_texture"])) == 3
    with pytest.raises(UserError, match="there is no folder .*depth_zbuffer"):
        dataset.split("train", ["normals"])


DAMAGE = {
    "rgb": (None, "cannot read .*point_2_view_9_domain_rgb.png"),
    "segment_semantic": (
        np.full((64, 64, 1), 18, np.uint8),
        "semantic.png holds 18, but classes are 0 to 17",
    ),
    "depth_zbuffer": (np.ones((64, 64, 1), np.uint8), "zbuffer.png has not the bit depth"),
    "reshading": (np.ones((64, 64, 1), np.uint16), "reshading.png has not the bit depth"),
    "reshading ": (np.ones((64, 64, 4), np.uint8), "reshading.png holds 64x64x4 values"),
    "segment_semantic ": (np.ones((64, 64, 3), np.uint8), "semantic.png holds 64x64x3 values"),
    "keypoints2d": (np.ones((64, 64, 3), np.uint8), "keypoints2d.png has not the bit depth"),
    "normal": (np.ones((64, 64, 1), np.uint8), "normal.png has 1 channels"),
    "edge_texture": (np.ones((64, 32, 1), np.uint16), "texture.png holds 64x32x1 .* 64x64x1"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(root, kind):
    array, message = DAMAGE[kind]
    path = find(root, kind.strip(), "darden/point_2_view_9")
    if array is None:
        path.write_bytes(path.read_bytes()[:500])
    else:
        write(path, array)
    with pytest.raises(UserError, match=message):
        build(root).split("test", TASKS).load(0)


def test_through_the_pipeline(root):
    dataset = build(root, size=(32, 32))
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    augment = {"flip": True, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    data = ConfigDict({"batch_size": 3, "eval_batch_size": 3, "size": (32, 32), "eval_size": None})
    data.update({"cache": False, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    for name, task in tasks.items():
        assert batch["labels"][name].shape == (3, 32, 32, task.label_channels)
        assert np.isfinite(batch["labels"][name]).all() and batch["valid"][name].any((1, 2, 3)).all()

    (batch,) = pipeline.eval_batches(dataset.split("test", TASKS), tasks, data)
    assert batch["valid"]["keypoints2d"].all() and batch["valid"]["edge_texture"].all()
    seen = batch["valid"]["depth"]
    np.testing.assert_array_equal(batch["valid"]["edge_occlusion"], seen)
    np.testing.assert_array_equal(batch["valid"]["reshading"], seen)
    assert not (batch["valid"]["normals"] > seen).any() and 0 < seen.mean() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_named(root, kind):
    path = find(root, kind, "darden/point_2_view_9")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        build(root).split("test", TASKS).load(0)


@pytest.mark.parametrize("root", ["taskonomy"], indirect=True)
def test_training(root, train_a_little):
    train_a_little(build(root, size=(24, 32)), {name: {} for name in TASKS}, "train", "test")
