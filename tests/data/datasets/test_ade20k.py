"""A miniature of the release by PIL, with a list of classes as it has."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.datasets import ade20k
from mtl_jax.errors import UserError

IMAGES = {  # by folder: names and sizes
    "training": {"ADE_train_00000002": (11, 17), "ADE_train_00000001": (14, 9)},
    "validation": {"ADE_val_00000001": (12, 15)},
}


def stored(name, size):
    classes = np.random.default_rng(int(name[-1])).integers(0, 151, size).astype(np.uint8)
    classes[0, :3] = 0, 1, 150
    return classes


@pytest.fixture
def root(tmp_path):
    for folder, sizes in IMAGES.items():
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "annotations" / folder).mkdir(parents=True)
        for name, size in sizes.items():
            mode, colour = ("L", 77) if name.endswith("train_00000002") else ("RGB", (20, 140, 60))
            Image.new(mode, size[::-1], colour).save(tmp_path / "images" / folder / f"{name}.jpg")
            mask = Image.fromarray(stored(name, size))
            mask.save(tmp_path / "annotations" / folder / f"{name}.png")
    write_names(tmp_path, [f"class{k}, alias, also" for k in range(1, 150)] + ["flag "])
    return tmp_path


def write_names(root, names):
    rows = [f"{k} \t0.01\t10\t1\t{name}" for k, name in enumerate(names, 1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")


def test_splits_and_names(root):
    dataset = ade20k.build(str(root))
    assert dataset.splits == ("train", "val") and dataset.published == {"train": 20210, "val": 2000}
    train = dataset.split("train", ["semseg"])
    assert train.ids == ["ADE_train_00000001", "ADE_train_00000002"]
    assert train.sizes.tolist() == [[14, 9], [11, 17]]
    names = dataset.labels["semseg"]["class_names"]
    assert len(names) == 150 and names[:2] == ("class1", "class2") and names[149] == "flag"


def test_values(root):
    for split, folder in (("train", "training"), ("val", "validation")):
        part = ade20k.build(str(root)).split(split, ["semseg"])
        for index, name in enumerate(part.ids):
            size = IMAGES[folder][name]
            example = part.load(index)
            label = example["labels"]["semseg"]
            classes = stored(name, size).astype(int)
            np.testing.assert_array_equal(label[..., 0], np.where(classes == 0, 255, classes - 1))
            assert label.dtype == np.uint8 and label[0, :3, 0].tolist() == [255, 0, 149]
            colour = [77] * 3 if name.endswith("train_00000002") else [20, 140, 60]
            np.testing.assert_allclose(example["image"].mean((0, 1)), colour, atol=3)


def test_training(root, train_a_little):
    _, results = train_a_little(ade20k.build(str(root)), {"semseg": {}}, "train", "val")
    assert "semseg/IoU_flag" in results


def test_list_of_classes(root):
    write_names(root, ["wall"] * 150)
    with pytest.raises(UserError, match="objectInfo150.txt does not name 150 classes in a column Name"):
        ade20k.build(str(root))
    (root / "objectInfo150.txt").write_text("1 0.15 11664 1172 wall\n" * 150)
    with pytest.raises(UserError, match="objectInfo150.txt does not name 150 classes in a column Name"):
        ade20k.build(str(root))
    (root / "objectInfo150.txt").unlink()
    options = ade20k.build(str(root)).labels["semseg"]
    assert options == {"num_classes": 150, "class_names": None}


def test_what_is_missing_is_named(root):
    dataset = ade20k.build(str(root))
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match=r"no image .*nowhere/images/validation/\*\.jpg: set data_dir"):
        ade20k.build(str(root / "nowhere")).split("val", [])
    (root / "annotations/training/ADE_train_00000001.png").unlink()
    assert dataset.split("train", []).load(0)["labels"] == {}
    with pytest.raises(UserError, match="no file .*annotations/training/ADE_train_00000001.png"):
        dataset.split("train", ["semseg"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((12, 15, 3), np.uint8), "is of the instance challenge .* ADEChallengeData2016.zip"),
        (np.full((12, 15), 151, np.uint8), "holds 151, but classes are 0 to 150"),
        (np.full((12, 15), 300, np.uint16), "holds 300, but classes are 0 to 150"),
        (np.zeros((12, 14), np.uint8), "holds 12x14x1 values, but its image asks for 12x15x1"),
    ],
)
def test_damaged_masks_are_named(root, mask, message):
    Image.fromarray(mask).save(root / "annotations/validation/ADE_val_00000001.png")
    with pytest.raises(UserError, match=f"ADE_val_00000001.png {message}"):
        ade20k.build(str(root)).split("val", ["semseg"]).load(0)


@pytest.mark.parametrize(
    "place", ["images/validation/ADE_val_00000001.jpg", "annotations/validation/ADE_val_00000001.png"]
)
def test_truncated_files_are_named(root, place):
    (root / place).write_bytes((root / place).read_bytes()[:100])
    with pytest.raises(UserError, match=f"cannot read .*{place}"):
        ade20k.build(str(root)).split("val", ["semseg"]).load(0)
