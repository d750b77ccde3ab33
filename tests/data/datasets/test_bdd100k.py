"""Miniatures of both releases, by PIL; the score over shared classes worked out with scikit-learn."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from mtl_jax import tasks as task_modules
from mtl_jax.data.datasets import bdd100k
from mtl_jax.errors import UserError

SIZE = (18, 30)
IDS = {"train": ["7d06fefd-f7be05a6", "0004a4c0-d4dff0ad"], "val": ["7dc08598-f42e2015"]}
TO_VOC = {11: 15, 13: 7, 15: 6, 16: 19, 17: 14, 18: 2}  # person, car, bus, train, motorbike, bicycle


def stored(name):
    rng = np.random.default_rng(int(name[:4], 16))
    classes = rng.integers(0, 19, SIZE).astype(np.uint8)
    classes.flat[:20] = [*range(19), 255]
    classes[5:7] = 255
    return classes


def write(root, split, name, old):
    photo = f"seg/images/{split}/{name}.jpg" if old else f"images/10k/{split}/{name}.jpg"
    mask = f"seg/labels/{split}/{name}_train_id.png" if old else f"labels/sem_seg/masks/{split}/{name}.png"
    for place, picture in (
        (photo, Image.new("RGB", SIZE[::-1], (30, 200, 90))),
        (mask, Image.fromarray(stored(name))),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / place)
    return root / photo, root / mask


@pytest.fixture(params=[False, True], ids=["release", "first"])
def root(tmp_path, request):
    for split, names in IDS.items():
        for name in names:
            write(tmp_path, split, name, request.param)
    return tmp_path


@pytest.fixture
def files(tmp_path):
    """(data_dir, photograph, mask) of one image of val."""
    return tmp_path, *write(tmp_path, "val", IDS["val"][0], old=False)


def test_values(root):
    dataset = bdd100k.build(str(root))
    assert dataset.splits == ("train", "val") and dataset.published == {"train": 7000, "val": 1000}
    train = dataset.split("train", ["semseg"])
    assert train.ids == sorted(IDS["train"]) and train.sizes.tolist() == [list(SIZE)] * 2
    for index, name in enumerate(train.ids):
        example = train.load(index)
        label = example["labels"]["semseg"]
        np.testing.assert_array_equal(label[..., 0], stored(name))
        assert label.dtype == np.uint8 and label.shape == (*SIZE, 1)
        np.testing.assert_allclose(example["image"].mean((0, 1)), [30, 200, 90], atol=3)
    names = dataset.labels["semseg"]["class_names"]
    assert [names[k] for k in (0, 5, 12, 17, 18)] == ["road", "pole", "rider", "motorcycle", "bicycle"]
    assert "scored" not in dataset.labels["semseg"]


@pytest.mark.parametrize("classes", ["voc", "voc_riders"])
def test_classes_shared_with_voc(root, classes):
    dataset = bdd100k.build(str(root), classes=classes)
    label = dataset.split("val", ["semseg"]).load(0)["labels"]["semseg"][..., 0]
    table = TO_VOC | ({12: 15} if classes == "voc_riders" else {}) | {255: 255}
    np.testing.assert_array_equal(label, np.vectorize(lambda c: table.get(c, 0))(stored(IDS["val"][0])))
    options = dataset.labels["semseg"]
    names = options["class_names"]
    assert options["num_classes"] == len(names) == 21
    assert sorted(names.index(name) for name in options["scored"]) == [2, 6, 7, 14, 15, 19]


def test_zero_shot_score(files):
    """A mean over six classes, which lose for what they claim of the others' pixels."""
    dataset = bdd100k.build(str(files[0]), classes="voc")
    task = task_modules.build({"semseg": {}}, dataset.labels)["semseg"]
    label = dataset.split("val", ["semseg"]).load(0)["labels"]["semseg"].astype(np.int32)[None]
    rng = np.random.default_rng(0)
    guess = rng.integers(0, 21, label.shape[:3])
    guess = np.where(rng.random(guess.shape) < 0.6, np.minimum(label[..., 0], 20), guess)
    metric = task.metric().update(jax.nn.one_hot(guess, 21), label, task.known(label).astype(np.float32))
    known = label[0, ..., 0] != 255
    iou = jaccard_score(label[0, ..., 0][known], guess[0][known], labels=[2, 6, 7, 14, 15, 19], average=None)
    assert metric.compute()["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)


def test_training(root, train_a_little):
    _, results = train_a_little(bdd100k.build(str(root), classes="voc"), {"semseg": {}}, "train", "val")
    six = [results[f"semseg/IoU_{n}"] for n in ("bicycle", "bus", "car", "motorbike", "person", "train")]
    assert results["semseg/mIoU"] == pytest.approx(np.nanmean(six))


def test_names_with_both_endings(files):
    root, _, mask = files
    mask.rename(mask.with_name(f"{mask.stem}_train_id.png"))
    label = bdd100k.build(str(root)).split("val", ["semseg"]).load(0)["labels"]["semseg"]
    np.testing.assert_array_equal(label[..., 0], stored(IDS["val"][0]))


def test_what_is_missing_is_named(files):
    root, photo, mask = files
    dataset = bdd100k.build(str(root))
    with pytest.raises(UserError, match="classes is 'coco': choose one of bdd, voc, voc_riders"):
        bdd100k.build(str(root), classes="coco")
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match="no image in .*images/10k/train or .*seg/images/train"):
        dataset.split("train", [])
    mask.unlink()
    assert dataset.split("val", []).load(0)["labels"] == {}
    with pytest.raises(UserError, match=r"no file .*/7dc08598-f42e2015\.png or .*_train_id\.png"):
        dataset.split("val", ["semseg"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full(SIZE, 19, np.uint8), "holds 19, but classes are 0 to 18 and 255"),
        (np.zeros((18, 29), np.uint8), "holds 18x29x1 values, but its image asks for 18x30x1"),
        (np.zeros((*SIZE, 3), np.uint8), "holds 18x30x3"),  # a colour map
    ],
)
def test_damaged_masks_are_named(files, mask, message):
    Image.fromarray(mask).save(files[2])
    with pytest.raises(UserError, match=rf"7dc08598-f42e2015\.png {message}"):
        bdd100k.build(str(files[0])).split("val", ["semseg"]).load(0)


def test_truncated_image_is_named(files):
    files[1].write_bytes(files[1].read_bytes()[:300])
    with pytest.raises(UserError, match=r"cannot read .*7dc08598-f42e2015\.jpg"):
        bdd100k.build(str(files[0])).split("val", []).load(0)
