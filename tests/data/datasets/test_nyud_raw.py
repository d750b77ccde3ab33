"""A miniature of the folder, written by PIL and SciPy from known surfaces."""

import numpy as np
import pytest
import scipy.io
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import nyud_raw
from mtl_jax.errors import UserError

SIZE = (16, 24)
NAMES = {"train": ["bathroom_0001/0003", "0101"], "val": ["0001"]}
# Surfaces in the canonical frame (x right, y up, z towards the camera), and their colours in the release.
SURFACES = {
    "floor": ((0, 1, 0), (128, 255, 128)),
    "ceiling": ((0, -1, 0), (128, 0, 128)),
    "wall on the left": ((1, 0, 0), (0, 128, 128)),
    "wall opposite": ((0, 0, 1), (128, 128, 255)),
}
BLOCK = 8  # pixels; JPEG's, so that lossy files keep flat surfaces


def normals(name):
    """Canonical vectors and the release's colours: blocks of one surface each."""
    rng = np.random.default_rng(len(name))
    kinds = rng.integers(0, len(SURFACES), (SIZE[0] // BLOCK, SIZE[1] // BLOCK))
    kinds = kinds.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    vectors, colours = (np.array(values) for values in zip(*SURFACES.values(), strict=True))
    return vectors[kinds], colours[kinds].astype(np.uint8)


def depth(name):
    metres = np.random.default_rng(len(name)).uniform(0.7, 9.9, SIZE).astype(np.float32)
    metres[0, :3] = 0
    return metres


def seen(name):
    mask = np.full(SIZE, 255, np.uint8)
    mask[4:9, 2:6] = 0
    return mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def root(tmp_path):
    for split, names in NAMES.items():
        for name in names:
            save(tmp_path / split / f"images/{name}.jpg", np.full((*SIZE, 3), 77, np.uint8))
            ending = "png" if split == "train" else "jpg"
            save(tmp_path / split / f"normals/{name}.{ending}", normals(name)[1])
            if split == "train":
                save(tmp_path / split / f"masks/{name}.png", seen(name))
            path = tmp_path / split / f"depth/{name}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(path, {"depth": depth(name).astype(float)})
        (tmp_path / "gt_sets").mkdir(exist_ok=True)
        (tmp_path / f"gt_sets/{split}.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_splits(root):
    data = nyud_raw.build(str(root))
    assert data.splits == ("train", "val") and data.labels == {"normals": {}, "depth": {}}
    train = data.split("train", ["normals"])
    assert list(train.ids) == NAMES["train"] and train.sizes.tolist() == [list(SIZE)] * 2
    assert set(train.load(0)["labels"]) == {"normals"}


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("train", 1), ("val", 0)])
def test_values(root, split, index):
    name = NAMES[split][index]
    got = nyud_raw.build(str(root)).split(split, ["normals", "depth"]).load(index)
    known = (seen(name) > 0)[..., None] if split == "train" else np.ones((*SIZE, 1), bool)
    assert abs(got["image"].astype(int) - 77).max() <= 2

    label = got["labels"]["normals"].astype(float)
    expected = normals(name)[0]
    np.testing.assert_array_equal(label[~known[..., 0]], 0)
    cosine = (label * expected).sum(-1)[known[..., 0]]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < (0.5 if split == "train" else 4)  # JPEG
    np.testing.assert_allclose(np.linalg.norm(label, axis=-1)[known[..., 0]], 1, atol=1e-3)

    metres = got["labels"]["depth"]
    assert metres.dtype == np.float32 and metres.shape == (*SIZE, 1)
    np.testing.assert_allclose(metres[..., 0], depth(name) * known[..., 0], rtol=1e-6)


def test_depth_without_a_number_is_unknown(root):
    metres = depth("0001")
    metres[2, :2] = [np.nan, -1]
    scipy.io.savemat(root / "val/depth/0001.mat", {"depth": metres})
    label = nyud_raw.build(str(root)).split("val", ["depth"]).load(0)["labels"]["depth"]
    assert (label[2, :2] == 0).all() and (label[2, 2:] > 0).all()


def test_through_the_pipeline(root):
    data = nyud_raw.build(str(root))
    tasks = task_modules.build({"normals": {}, "depth": {}}, data.labels)
    augment = {"flip": True, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    options = ConfigDict({"batch_size": 4, "size": SIZE, "cache": True, "augment": augment})
    split = data.split("train", list(tasks))
    batch = next(pipeline.train_batches(split, tasks, options, seed=0))
    unseen = (seen("") == 0).sum()
    assert (batch["valid"]["normals"].sum((1, 2, 3)) == SIZE[0] * SIZE[1] - unseen).all()
    assert (batch["valid"]["depth"].sum((1, 2, 3)) == SIZE[0] * SIZE[1] - unseen - 3).all()
    mirrored = 0
    for row, index in enumerate(batch["id"]):
        here = batch["labels"]["normals"][row]
        straight = split.load(index)["labels"]["normals"].astype(np.float32)
        options = [straight, straight[:, ::-1] * [-1, 1, 1]]
        errors = [abs(here - option).max() for option in options]
        assert min(errors) < 1e-3
        mirrored += errors[1] < errors[0]
    assert 0 < mirrored < 4


def test_validation_has_no_masks_and_images_alone_need_nothing(root):
    data = nyud_raw.build(str(root))
    (root / "train/masks/0101.png").unlink()
    (root / "val/depth/0001.mat").unlink()
    assert data.split("train", []).load(1)["labels"] == {}
    assert len(data.split("val", ["normals"])) == 1
    with pytest.raises(UserError, match=r"no file .*train/masks/0101\.png"):
        data.split("train", ["depth"])
    with pytest.raises(UserError, match=r"no file .*val/depth/0001\.mat"):
        data.split("val", ["normals", "depth"])
    (root / "val/normals/0001.jpg").rename(root / "val/normals/0001.png")
    with pytest.raises(UserError, match=r"no file .*val/normals/0001\.jpg"):
        data.split("val", ["normals"])


def test_wrong_folders_and_splits(root, tmp_path):
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        nyud_raw.build(str(root)).split("test", [])
    with pytest.raises(UserError, match="no list in .*nowhere/gt_sets.*data_dir"):
        nyud_raw.build(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("path", "damage", "message"),
    [
        ("val/normals/0001.jpg", lambda p: save(p, np.zeros((16, 23, 3), np.uint8)), "16x23x3 values"),
        ("val/normals/0001.jpg", lambda p: save(p, np.zeros(SIZE, np.uint8)), "has 1 channels"),
        ("val/images/0001.jpg", lambda p: p.write_bytes(p.read_bytes()[:300]), "cannot read"),
        ("val/normals/0001.jpg", lambda p: p.write_bytes(p.read_bytes()[:300]), "cannot read"),
        ("val/depth/0001.mat", lambda p: p.write_bytes(p.read_bytes()[:300]), "cannot read"),
        (
            "val/depth/0001.mat",
            lambda p: scipy.io.savemat(p, {"depth": depth("0001") * 1000}),
            "cannot be metres",
        ),
        ("val/depth/0001.mat", lambda p: scipy.io.savemat(p, {"depth": np.full(SIZE, np.inf)}), "holds inf"),
        ("val/depth/0001.mat", lambda p: scipy.io.savemat(p, {"depth": np.ones((16, 23))}), "16x23x1 values"),
        (
            "val/depth/0001.mat",
            lambda p: scipy.io.savemat(p, {"z": np.ones(SIZE)}),
            "no variable 'depth'",
        ),
    ],
)
def test_damaged_labels_are_named(root, path, damage, message):
    split = nyud_raw.build(str(root)).split("val", ["normals", "depth"])
    damage(root / path)
    with pytest.raises(UserError, match=message) as error:
        split.load(0)
    assert path in str(error.value)


def test_damaged_masks_are_named(root):
    split = nyud_raw.build(str(root)).split("train", ["normals", "depth"])
    path = root / "train/masks/0101.png"
    save(path, np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match=r"train/masks/0101\.png holds 16x24x3 values"):
        split.load(1)
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(UserError, match=r"cannot read .*train/masks/0101\.png"):
        split.load(1)
    (root / "gt_sets/train.txt").write_text("0101\n0101\n")
    with pytest.raises(UserError, match="gt_sets/train.txt lists '0101' 2 times"):
        nyud_raw.build(str(root)).split("train", [])


def test_masks_of_one_bit(root):
    save(root / "train/masks/0101.png", seen("0101") > 0)
    label = nyud_raw.build(str(root)).split("train", ["normals"]).load(1)["labels"]["normals"]
    np.testing.assert_array_equal(label.any(-1), seen("0101") > 0)


def test_training(root, train_a_little):
    train_a_little(nyud_raw.build(str(root)), {"normals": {}, "depth": {}}, "train", "val")
