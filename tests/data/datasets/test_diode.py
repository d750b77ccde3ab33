"""A miniature of the release: images by PIL, arrays by NumPy."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.datasets import diode
from mtl_jax.errors import UserError

SIZE = (14, 22)
VIEWS = {
    ("train", "outdoor"): [(1, 2, 10), (0, 1, 20), (0, 1, 0)],
    ("val", "outdoor"): [(22, 193, 0)],
    ("val", "indoors"): [(19, 183, 0)],
}


def name(scenes, scene, scan, angle):
    return f"scene_{scene:05d}/scan_{scan:05d}/{scene:05d}_{scan:05d}_{scenes}_{angle:03d}_030"


def stored(angle):
    """(metres, mask, unit vectors): where the mask is 0, depths are garbage."""
    rng = np.random.default_rng(angle)
    depth = rng.uniform(0.6, 300, SIZE).astype(np.float32)
    mask = (rng.random(SIZE) < 0.8).astype(np.float32)
    depth[0, :4], mask[0, :4] = [np.nan, 0, 55, 66], [1, 1, 0, 1]
    vectors = rng.normal(size=(*SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[3:5] = 0
    vectors[5, :3] = np.eye(3)
    return depth, mask, vectors


@pytest.fixture
def root(tmp_path):
    for (split, scenes), views in VIEWS.items():
        for view in views:
            stem = tmp_path / split / scenes / name(scenes, *view)
            stem.parent.mkdir(parents=True, exist_ok=True)
            depth, mask, vectors = stored(view[2])
            Image.new("RGB", SIZE[::-1], (view[2], 100, 50)).save(f"{stem}.png")
            np.save(f"{stem}_depth.npy", depth[..., None] if split == "train" else depth)
            np.save(f"{stem}_depth_mask.npy", mask)
            np.save(f"{stem}_normal.npy", vectors.astype(np.float32) if split == "train" else vectors)
    return tmp_path


@pytest.fixture
def stem(root):
    """The path of the one outdoor image of val, without ending."""
    return str(root / "val/outdoor" / name("outdoor", 22, 193, 0))


def test_splits(root):
    dataset = diode.build(str(root))
    assert dataset.splits == ("train", "val") and dataset.published == {"train": 16884, "val": 446}
    train = dataset.split("train", ["depth"])
    assert train.ids == [name("outdoor", *v) for v in [(0, 1, 0), (0, 1, 20), (1, 2, 10)]]
    assert train.sizes.tolist() == [list(SIZE)] * 3
    indoors = diode.build(str(root), scenes="indoors")
    assert indoors.published == {"train": 8574, "val": 325}
    assert indoors.split("val", []).ids == [name("indoors", 19, 183, 0)]
    assert all(value.startswith("md5:") and len(value) == 36 for value in dataset.archives.values())


def test_values(root):
    for split, angles in (("train", [0, 20, 10]), ("val", [0])):
        part = diode.build(str(root)).split(split, ["depth", "normals"])
        for index, angle in enumerate(angles):
            example = part.load(index)
            depth, mask, vectors = stored(angle)
            labels = example["labels"]
            assert (example["image"] == [angle, 100, 50]).all()
            expected = np.where(np.isnan(depth), 0, depth) * mask
            np.testing.assert_array_equal(labels["depth"][..., 0], expected)
            assert labels["depth"][0, :4, 0].tolist() == [0, 0, 0, 66]
            np.testing.assert_allclose(labels["normals"], vectors, atol=1e-6)  # right, up, to the camera
            assert not labels["normals"][3:5].any() and labels["normals"][3:5].shape == (2, 22, 3)
            assert labels["depth"].dtype == labels["normals"].dtype == np.float32


def test_training(root, train_a_little):
    batch, results = train_a_little(diode.build(str(root)), {"depth": {}, "normals": {}}, "train", "val")
    known = batch["valid"]["normals"][..., 0] > 0
    assert 0 < results["normals/mErr"] < 180 and not known.all()


def test_what_is_missing_is_named(root, stem):
    dataset = diode.build(str(root))
    with pytest.raises(UserError, match="scenes is 'both': choose outdoor or indoors"):
        diode.build(str(root), scenes="both")
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match=r"no image .*train/indoors/scene_\*.*unpack train.tar.gz into"):
        diode.build(str(root), scenes="indoors").split("train", [])
    for path in root.rglob("*_normal.npy"):  # a download of their own
        path.unlink()
    assert set(dataset.split("train", ["depth"]).load(0)["labels"]) == {"depth"}
    with pytest.raises(
        UserError, match="no file .*_outdoor_000_030_normal.npy; .*_normal.npy; .*_normal.npy"
    ):
        dataset.split("train", ["depth", "normals"])
    (root / f"{stem}_depth_mask.npy").unlink()
    with pytest.raises(UserError, match="no file .*00022_00193_outdoor_000_030_depth_mask.npy"):
        dataset.split("val", ["depth"])


DAMAGE = {
    "_depth.npy": (np.ones((14, 21, 1)), "_depth.npy holds 14x21x1 values, but its image asks for 14x22x1"),
    "_depth_mask.npy": (np.full(SIZE, 255, np.uint8), "_depth_mask.npy holds other values than 0 and 1"),
    "_normal.npy": (np.ones((22, 14, 3)), "_normal.npy holds 22x14x3 values, but its image asks for"),
}


@pytest.mark.parametrize("ending", DAMAGE)
def test_damaged_files_are_named(root, stem, ending):
    array, message = DAMAGE[ending]
    np.save(f"{stem}{ending}", array)
    with pytest.raises(UserError, match=message):
        diode.build(str(root)).split("val", ["depth", "normals"]).load(0)


@pytest.mark.parametrize("ending", [".png", *DAMAGE])
def test_truncated_files_are_named(root, stem, ending):
    with open(f"{stem}{ending}", "r+b") as file:
        file.truncate(60)
    with pytest.raises(UserError, match=f"cannot read .*030{ending}"):
        diode.build(str(root)).split("val", ["depth", "normals"]).load(0)


def test_normals_of_one_channel_are_named(root, stem):
    np.save(f"{stem}_normal.npy", np.ones(SIZE))
    with pytest.raises(UserError, match="_normal.npy has 1 channels, but task 'normals' needs 3"):
        diode.build(str(root)).split("val", ["normals"]).load(0)


def test_millimetres_are_named(root, stem):
    np.save(f"{stem}_depth.npy", 1000 * stored(0)[0])
    with pytest.raises(UserError, match="_depth.npy holds .* cannot be metres"):
        diode.build(str(root)).split("val", ["depth"]).load(0)
