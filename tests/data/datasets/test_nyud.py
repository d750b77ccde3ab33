"""Miniatures of the three releases, written with SciPy, NumPy and PIL, read back by value."""

import numpy as np
import pytest
import scipy.io
from ml_collections import ConfigDict
from PIL import Image
from skimage.morphology import thin

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import nyud
from mtl_jax.errors import UserError

TASKS = ["edges", "semseg", "normals", "depth"]
SIZE = (16, 24)


def stored(name):
    """What the files of one image hold: edges 0 or 1, classes, unit vectors as in the release, metres."""
    rng = np.random.default_rng(int(name))
    edges = np.zeros(SIZE, np.uint8)
    edges[:, 9:12] = 1
    classes = rng.integers(0, 41, SIZE).astype(np.uint8)
    classes[0, :2] = 0, 40
    vectors = rng.normal(size=(4, 6, 3)).repeat(4, axis=0).repeat(4, axis=1)  # blocks, for JPEG's sake
    vectors[..., 2] = np.abs(vectors[..., 2])
    depth = rng.uniform(0.7, 9.9, SIZE).astype(np.float32)
    depth[2, 3:6] = 0, np.nan, -1
    return edges, classes, vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), depth


RELEASES = ["Maninis", "Vandenhende", "Bruggemann"]


def write(root, name, release):
    edges, classes, vectors, depth = stored(name)
    for folder in ["images", "edge", "segmentation", "normals", "depth"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    photo = Image.new("RGB", SIZE[::-1], (200, 10, int(name)))
    photo.save(root / f"images/{name}.{'png' if release == 'Bruggemann' else 'jpg'}")
    codes = Image.fromarray(np.rint((vectors + 1) * 127.5).astype(np.uint8))
    if release == "Maninis":
        codes.save(root / f"normals/{name}.jpg", quality=100, subsampling=0)
        scipy.io.savemat(root / f"depth/{name}.mat", {"depth": depth.astype(np.float64)})
        scipy.io.savemat(root / f"segmentation/{name}.mat", {"segmentation": classes.astype(np.float64)})
    else:
        np.save(root / f"depth/{name}.npy", depth)
        Image.fromarray(classes).save(root / f"segmentation/{name}.png")
    if release == "Vandenhende":
        np.save(root / f"edge/{name}.npy", edges.astype(np.float32))
        np.save(root / f"normals/{name}.npy", vectors.astype(np.float32))
    else:
        Image.fromarray(edges * 255).save(root / f"edge/{name}.png")
    if release == "Bruggemann":
        codes.save(root / f"normals/{name}.png")


@pytest.fixture(params=RELEASES)
def root(tmp_path, request):
    for name in ["0003", "0001", "0002"]:
        write(tmp_path, name, request.param)
    (tmp_path / "gt_sets").mkdir()
    (tmp_path / "gt_sets/train.txt").write_text("0003\n0001\n")
    (tmp_path / "gt_sets/val.txt").write_text("0002\n")
    return tmp_path


@pytest.fixture
def release(tmp_path):
    write(tmp_path, "0001", "Maninis")
    (tmp_path / "gt_sets").mkdir()
    (tmp_path / "gt_sets/train.txt").write_text("0001\n")
    return tmp_path


def test_splits_and_classes(root):
    dataset = nyud.build(str(root))
    assert dataset.splits == ("train", "val") and list(dataset.labels) == TASKS
    assert dataset.published == {"train": 795, "val": 654}
    train = dataset.split("train", ["depth"])
    assert train.ids == ["0003", "0001"] and train.sizes.tolist() == [[16, 24]] * 2
    assert set(train.load(0)["labels"]) == {"depth"}
    assert dataset.labels["edges"] == {"max_distance": 0.011}
    semseg = dataset.labels["semseg"]
    assert semseg["num_classes"] == len(semseg["class_names"]) == 41
    assert [semseg["class_names"][k] for k in (0, 1, 5, 40)] == ["unlabelled", "wall", "chair", "otherprop"]
    semseg = nyud.build(str(root), classes=40).labels["semseg"]
    assert semseg["num_classes"] == len(semseg["class_names"]) == 40
    assert [semseg["class_names"][k] for k in (0, 4, 39)] == ["wall", "chair", "otherprop"]


@pytest.mark.parametrize("index", [0, 1])
def test_values(root, index):
    split = nyud.build(str(root)).split("train", TASKS)
    got = split.load(index)
    edges, classes, vectors, depth = stored(split.ids[index])
    labels = got["labels"]
    np.testing.assert_allclose(got["image"].mean((0, 1)), [200, 10, int(split.ids[index])], atol=4)
    np.testing.assert_array_equal(labels["edges"][..., 0], edges)
    np.testing.assert_array_equal(labels["semseg"][..., 0], classes)
    np.testing.assert_array_equal(labels["depth"][..., 0], np.where(depth > 0, depth, 0))
    assert labels["edges"].dtype == labels["semseg"].dtype == np.uint8
    assert labels["depth"].dtype == np.float32 and labels["depth"].shape == (16, 24, 1)
    # Stored: left, up, towards the camera.
    cosine = (labels["normals"] * vectors * [-1, 1, 1]).sum(-1)
    assert np.degrees(np.arccos(np.minimum(cosine.min(), 1))) < 6 and labels["normals"].shape == (16, 24, 3)
    np.testing.assert_allclose(np.linalg.norm(labels["normals"].astype(float), axis=-1), 1, atol=2e-3)


def test_forty_classes(root):
    label = nyud.build(str(root), classes=40).split("train", ["semseg"]).load(0)["labels"]["semseg"]
    classes = stored("0003")[1].astype(int)
    np.testing.assert_array_equal(label[..., 0], np.where(classes == 0, 255, classes - 1))
    assert label.dtype == np.uint8 and label[0, 0, 0] == 255 and label[0, 1, 0] == 39


def test_edges_to_judge_by_are_thin(root):
    label = nyud.build(str(root)).split("val", ["edges"]).load(0)["labels"]["edges"]
    assert label.dtype == np.uint8 and (label[3:-3].sum((1, 2)) == 1).all()
    np.testing.assert_array_equal(label[..., 0], thin(stored("0002")[0]))


def test_no_direction_is_unknown(release):
    codes = np.full((*SIZE, 3), 128, np.uint8)
    codes[:, 8:16] = 0
    codes[:, 16:] = 128, 255, 128
    Image.fromarray(codes).save(release / "normals/0001.jpg", quality=100, subsampling=0)
    label = nyud.build(str(release)).split("train", ["normals"]).load(0)["labels"]["normals"]
    assert not label[:, :16].any()
    np.testing.assert_allclose(label[:, 16:], np.tile([0, 1, 0], (16, 8, 1)), atol=0.02)


def test_wrong_options_splits_and_missing_files_are_named(release):
    dataset = nyud.build(str(release))
    with pytest.raises(UserError, match="classes is 39: choose 41 or"):
        nyud.build(str(release), classes=39)
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match="cannot read .*gt_sets/val.txt"):
        dataset.split("val", [])
    for path in ["edge/0001.png", "normals/0001.jpg"]:
        (release / path).unlink()
    assert set(dataset.split("train", ["semseg", "depth"]).load(0)["labels"]) == {"semseg", "depth"}
    with pytest.raises(UserError, match="no file .*edge/0001.png or .*edge/0001.npy"):
        dataset.split("train", ["depth", "edges"])
    (release / "images/0001.jpg").unlink()
    with pytest.raises(UserError, match="no file .*images/0001.jpg or .*images/0001.png"):
        dataset.split("train", [])


def test_two_releases_in_one_folder_are_refused(release):
    """As when both archives NYUD_MT are unpacked in one place."""
    write(release, "0002", "Vandenhende")
    (release / "gt_sets/train.txt").write_text("0001\n0002\n")
    dataset = nyud.build(str(release))
    with pytest.raises(UserError, match=r"holds normals/\*\.jpg and normals/\*\.npy, of two releases"):
        dataset.split("train", ["normals"])
    with pytest.raises(
        UserError, match=r"holds depth/\*\.mat and depth/\*\.npy, of two releases: unpack one"
    ):
        dataset.split("train", ["depth"])
    (release / "normals/0002.npy").unlink()
    with pytest.raises(UserError, match=r"no file [^ ]*normals/0002\.jpg: unpack"):  # of its kind alone
        dataset.split("train", ["normals"])
    write(release, "0001", "Bruggemann")
    with pytest.raises(UserError, match=r"holds images/\*\.jpg and images/\*\.png, of two releases"):
        dataset.split("train", [])


def test_a_list_names_each_image_once(release):
    (release / "gt_sets/train.txt").write_text("0001\n0001\n")
    with pytest.raises(UserError, match="gt_sets/train.txt lists '0001' 2 times"):
        nyud.build(str(release)).split("train", TASKS)


@pytest.mark.parametrize(
    "kind", ["images/{}.jpg", "edge/{}.png", "segmentation/{}.mat", "normals/{}.jpg", "depth/{}.mat"]
)
def test_truncated_files_are_named(release, kind):
    path = release / kind.format("0001")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        nyud.build(str(release)).split("train", TASKS).load(0)


def save_array(path, array):
    path.parent.joinpath("0001.png").unlink()
    np.save(path, array)


def save_depth(root, depth):
    scipy.io.savemat(root / "depth/0001.mat", {"depth": depth})


DAMAGE = {
    "millimetres": (
        lambda r: save_depth(r, stored("0001")[3] * 1000),
        "depth",
        "0001.mat .* cannot be metres",
    ),
    "size": (lambda r: save_depth(r, np.ones((24, 16))), "depth", "0001.mat holds 24x16x1 .* 16x24x1"),
    "truncated": (
        lambda r: (r / "depth/0001.mat").write_bytes((r / "depth/0001.mat").read_bytes()[:300]),
        "depth",
        "cannot read .*depth/0001.mat",
    ),
    "class": (
        lambda r: scipy.io.savemat(r / "segmentation/0001.mat", {"segmentation": np.full(SIZE, 41)}),
        "semseg",
        "segmentation/0001.mat holds 41",
    ),
    "variable": (
        lambda r: scipy.io.savemat(r / "segmentation/0001.mat", {"labels": np.ones(SIZE)}),
        "semseg",
        "segmentation/0001.mat has no variable 'segmentation'",
    ),
    "colours": (
        lambda r: Image.new("RGB", SIZE[::-1]).save(r / "edge/0001.png"),
        "edges",
        "edge/0001.png holds 16x24x3",
    ),
    "sixteen bits": (
        lambda r: Image.fromarray(stored("0001")[0].astype(np.uint16) * 65535).save(r / "edge/0001.png"),
        "edges",
        "edge/0001.png holds 65535, but edges are 0 or 1",
    ),
    "edges of 0 and 1 in eight bits": (
        lambda r: Image.fromarray(stored("0001")[0]).save(r / "edge/0001.png"),
        "edges",
        "edge/0001.png holds 1, but edges are 0 or 255",
    ),
    "edges of 0 and 255 as an array": (
        lambda r: save_array(r / "edge/0001.npy", stored("0001")[0] * 255),
        "edges",
        "edge/0001.npy holds 255, but edges are 0 or 1",
    ),
    "edges without a number": (
        lambda r: save_array(r / "edge/0001.npy", np.full(SIZE, np.nan)),
        "edges",
        "edge/0001.npy holds nan, but edges are 0 or 1",
    ),
    "no class": (
        lambda r: scipy.io.savemat(r / "segmentation/0001.mat", {"segmentation": np.full(SIZE, np.nan)}),
        "semseg",
        "segmentation/0001.mat holds nan, but classes are 0 to 40",
    ),
    "infinite": (lambda r: save_depth(r, np.full(SIZE, np.inf)), "depth", "depth/0001.mat holds inf"),
    "cells": (
        lambda r: save_depth(r, np.array([["a"]], object)),
        "depth",
        "depth/0001.mat holds no numbers",
    ),
    "grey normals": (
        lambda r: Image.new("L", SIZE[::-1]).save(r / "normals/0001.jpg"),
        "normals",
        "normals/0001.jpg has 1 channels",
    ),
    "another image": (
        lambda r: Image.new("RGB", (24, 15)).save(r / "images/0001.jpg"),
        "normals",
        "normals/0001.jpg holds 16x24x3 values, but its image asks for 15x24x3",
    ),
}


def test_vectors_that_are_no_unit_vectors_are_named(release):
    (release / "normals/0001.jpg").unlink()
    path = release / "normals/0001.npy"
    split = None
    for wrong in (stored("0001")[2] * 127, np.full((*SIZE, 3), np.inf)):
        np.save(path, wrong.astype(np.float32))
        split = split or nyud.build(str(release)).split("train", ["normals"])
        with pytest.raises(UserError, match=r"normals/0001\.npy holds (vectors that are longer|infinite)"):
            split.load(0)
    vectors = stored("0001")[2].astype(np.float32)
    vectors[:5, :, 1] = np.nan
    np.save(path, vectors)
    label = split.load(0)["labels"]["normals"]
    assert not label[:5].any() and label[5:].any(-1).all()


def test_edges_of_one_bit(release):
    edges = stored("0001")[0]
    Image.fromarray(edges.astype(bool)).save(release / "edge/0001.png")
    label = nyud.build(str(release)).split("train", ["edges"]).load(0)["labels"]["edges"]
    np.testing.assert_array_equal(label[..., 0], edges)


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named(release, case):
    spoil, task, message = DAMAGE[case]
    spoil(release)
    with pytest.raises(UserError, match=message):
        nyud.build(str(release)).split("train", [task]).load(0)


def test_through_the_pipeline(root):
    dataset = nyud.build(str(root), classes=40)
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    assert tasks["edges"].max_distance == 0.011
    augment = {
        "flip": True,
        "scale": (0.75, 1.25),
        "rotate": 20.0,
        "zoom": (),
        "color": 0.0,
        "rand_augment": 0,
    }
    data = ConfigDict({"batch_size": 2, "eval_batch_size": 2, "size": None, "eval_size": None})
    data.update({"cache": True, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    for name, task in tasks.items():
        assert batch["labels"][name].shape == (2, *SIZE, task.label_channels)
        assert np.isfinite(batch["labels"][name]).all() and batch["valid"][name].any()

    (whole,) = pipeline.eval_batches(dataset.split("val", TASKS), tasks, data)
    _, classes, _, depth = stored("0002")
    assert whole["id"].tolist() == [0, -1]
    np.testing.assert_array_equal(whole["valid"]["semseg"][0, ..., 0], classes != 0)
    np.testing.assert_array_equal(whole["valid"]["depth"][0, ..., 0], depth > 0)
    assert whole["valid"]["edges"][0].all() and whole["valid"]["normals"][0].all()


@pytest.mark.parametrize("root", ["Bruggemann"], indirect=True)
def test_training(root, train_a_little):
    tasks = {name: {} for name in TASKS}
    batch, results = train_a_little(nyud.build(str(root), classes=40), tasks, "train", "val")
    assert set(batch["labels"]) == set(TASKS) and results["depth/rmse"] > 0
