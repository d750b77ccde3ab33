"""A miniature of VOCdevkit, written by hand as XML, and the same as TFDS's own builder prepares it."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data.datasets import voc_detection
from mtl_jax.errors import UserError

LISTS = {
    "2007": {"train": ["000005", "000012"], "val": ["000007"], "test": ["000001", "000002"]},
    "2012": {"train": ["2008_000008", "2011_000010"], "val": ["2008_000002"]},
}
SIZES = {"000005": (20, 31), "2011_000010": (29, 20), "000001": (19, 26)}  # of the others: 21 x 30
# name, difficult, (xmin, ymin, xmax, ymax) as in the XML: counted from 1, the last pixel included
OBJECTS = {
    "000005": [("chair", 0, (6, 4, 30, 19)), ("chair", 1, (1, 1, 31, 20)), ("tvmonitor", 0, (7, 7, 7, 7))],
    "000012": [("aeroplane", 0, (3, 2, 17, 20))],
    "000007": [("car", 0, (2, 2, 29, 21))],
    "000001": [("dog", 0, (5, 4, 20, 19)), ("person", 0, (8, 2, 25, 18))],
    "000002": [("train", 1, (10, 11, 20, 21))],
    "2008_000008": [("horse", 0, ("12.5", "3.25", "29.75", "20.300000000000001"))],
    "2011_000010": [("person", 0, ("1", "1.7000000000000000", "19.70000076293945", "28"))],
    "2008_000002": [],
}
PART = (
    "<part><name>head</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>4</xmax><ymax>5</ymax></bndbox></part>"
)


def size(name):
    return SIZES.get(name, (21, 30))


def element(name, difficult, box):
    xmin, ymin, xmax, ymax = box
    bndbox = f"<xmax>{xmax}</xmax><xmin>{xmin}</xmin><ymax>{ymax}</ymax><ymin>{ymin}</ymin>"
    start = f"<object>{PART if name == 'person' else ''}<name>{name}</name><pose>Frontal</pose>"
    flags = f"<truncated>0</truncated><difficult>{difficult}</difficult>"
    return f"{start}{flags}<bndbox>{bndbox}</bndbox></object>"


def annotation(name, objects, shape=None):
    height, width = shape or size(name)
    shape = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return (
        f"<annotation><folder>VOC</folder><filename>{name}.jpg</filename>{shape}"
        f"<segmented>0</segmented>{''.join(element(*each) for each in objects)}</annotation>\n"
    )


def write(root):
    for year, lists in LISTS.items():
        folder = root / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        trainval = sorted(lists["train"] + lists["val"])
        for part, names in {**lists, "trainval": trainval}.items():
            (folder / f"ImageSets/Main/{part}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                Image.new("RGB", size(name)[::-1], (int(name[-2:]), 100, 30)).save(
                    folder / f"JPEGImages/{name}.jpg", quality=95
                )
                (folder / f"Annotations/{name}.xml").write_text(annotation(name, OBJECTS[name]))


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "VOCdevkit")
    return tmp_path / "VOCdevkit"


def boxes(name):
    """Rows (ymin, xmin, ymax, xmax, class, hard); classes in the alphabet's order."""
    classes = sorted(
        "train bird cat cow dog horse sheep aeroplane bicycle boat bus car motorbike bottle chair diningtable"
        " pottedplant sofa tvmonitor person".split()
    )
    rows = [
        (float(y0) - 1, float(x0) - 1, float(y1), float(x1), classes.index(kind), hard)
        for kind, hard, (x0, y0, x1, y1) in OBJECTS[name]
    ]
    return np.array(rows, np.float64).reshape(-1, 1, 6)


def test_splits(root):
    dataset = voc_detection.build(str(root))
    names = {split: dataset.split(split, ["detection"]).ids for split in dataset.splits if split}
    assert names == {
        "train": [
            *("2007/000005", "2007/000007", "2007/000012"),
            *("2012/2008_000002", "2012/2008_000008", "2012/2011_000010"),
        ],
        "test": ["2007/000001", "2007/000002"],
        "train2007": ["2007/000005", "2007/000012"],
        "val2007": ["2007/000007"],
        "trainval2007": ["2007/000005", "2007/000007", "2007/000012"],
        "train2012": ["2012/2008_000008", "2012/2011_000010"],
        "val2012": ["2012/2008_000002"],
        "trainval2012": ["2012/2008_000002", "2012/2008_000008", "2012/2011_000010"],
    }
    options = dataset.labels["detection"]
    assert options["num_classes"] == len(options["class_names"]) == 20
    assert [options["class_names"][k] for k in (0, 14, 19)] == ["aeroplane", "person", "tvmonitor"]
    published = dataset.published
    assert set(published) == set(dataset.splits)
    assert published["train"] == published["trainval2007"] + published["trainval2012"] == 16551
    for year in ("2007", "2012"):
        assert published[f"trainval{year}"] == published[f"train{year}"] + published[f"val{year}"]


def check(part):
    for index, long_name in enumerate(part.ids):
        name = long_name[5:]
        got = part.load(index)
        label = got["labels"]["detection"]
        assert label.dtype == np.float32 and label.shape == (len(OBJECTS[name]), 1, 6)
        np.testing.assert_allclose(label, boxes(name), atol=2e-6)
        assert got["image"].shape == (*size(name), 3) and got["image"].dtype == np.uint8
        np.testing.assert_allclose(got["image"].mean((0, 1)), [int(name[-2:]), 100, 30], atol=3)
    np.testing.assert_array_equal(part.sizes, [size(name[5:]) for name in part.ids])


def test_values(root):
    dataset = voc_detection.build(str(root))
    check(dataset.split("train", ["detection"]))
    check(dataset.split("test", ["detection"]))
    chairs = dataset.split("train", ["detection"]).load(0)["labels"]["detection"][:, 0]
    assert chairs.tolist() == [[3, 5, 19, 30, 8, 0], [0, 0, 20, 31, 8, 1], [6, 6, 7, 7, 19, 0]]


def test_boxes_are_cut_at_the_borders(root):
    outside = [("cat", 0, (0, 1, 40, 22)), ("cow", 0, (31, 1, 35, 9)), ("bus", 0, (30, 21, 30, 21))]
    (root / "VOC2007/Annotations/000007.xml").write_text(annotation("000007", outside))
    label = voc_detection.build(str(root)).split("val2007", ["detection"]).load(0)["labels"]["detection"]
    assert label[:, 0].tolist() == [[0, 0, 21, 30, 7, 0], [20, 29, 21, 30, 5, 0]]


def prepare(devkit, data_dir, monkeypatch):
    """Has TFDS's own builder read the devkit where it lies, in place of what it would download."""
    lying = types.SimpleNamespace(download_and_extract=lambda urls: dict.fromkeys(urls, str(devkit.parent)))
    generators = tfds.object_detection.Voc._split_generators
    monkeypatch.setattr(
        tfds.object_detection.Voc, "_split_generators", lambda self, manager: generators(self, lying)
    )
    for year in ("2007", "2012"):
        tfds.builder(f"voc/{year}", data_dir=str(data_dir)).download_and_prepare()


def test_tfds_gives_the_same(root, tmp_path, monkeypatch):
    (root / "VOC2012/ImageSets/Main/test.txt").write_text("2008_000002\n")  # has no annotations
    prepared = tmp_path / "tfds"
    prepare(root, prepared, monkeypatch)
    release, tfds_dataset = voc_detection.build(str(root)), voc_detection.build(str(prepared))
    for name in release.splits:
        there, here = release.split(name, ["detection"]), tfds_dataset.split(name, ["detection"])
        assert here.ids == there.ids
        check(here)
        for index in range(len(here)):
            expected = there.load(index)["labels"]["detection"]
            np.testing.assert_array_equal(here.load(index)["labels"]["detection"], expected)
    assert tfds_dataset.split("test", []).load(1)["labels"] == {}


def test_missing_files_are_named(root, tmp_path):
    dataset = voc_detection.build(str(root))
    with pytest.raises(UserError, match="no split 'test2012': choose one of train, test, train2007"):
        dataset.split("test2012", [])
    (root / "VOC2012/Annotations/2008_000008.xml").unlink()
    assert dataset.split("train", []).load(4)["labels"] == {}
    with pytest.raises(UserError, match=r"no file .*VOC2012/Annotations/2008_000008\.xml"):
        dataset.split("train", ["detection"])
    (root / "VOC2007/JPEGImages/000007.jpg").unlink()
    with pytest.raises(UserError, match=r"no file .*VOC2007/JPEGImages/000007\.jpg"):
        dataset.split("val2007", [])
    with pytest.raises(UserError, match=r"cannot read .*nowhere/VOC2007/ImageSets/Main/test\.txt"):
        voc_detection.build(str(tmp_path / "nowhere")).split("test", [])
    (root / "VOC2007/ImageSets/Main/val.txt").write_text("000012\n000012\n")
    with pytest.raises(UserError, match="val.txt lists '000012' 2 times"):
        dataset.split("val2007", [])


WHOLE = annotation("000007", OBJECTS["000007"])
DAMAGE = {
    "truncated": (WHOLE[:150], "cannot read .*Annotations/000007.xml"),
    "size": (annotation("000007", [], (30, 21)), r"000007.xml is about an image of 30x21 .* it is 21x30"),
    "no size": (WHOLE.replace("<width>30</width>", ""), "000007.xml .it has no size/width"),
    "class": (WHOLE.replace("car", "boot"), "000007.xml .an object's name is 'boot'"),
    "box": (WHOLE.replace("<xmax>29</xmax>", ""), "000007.xml .it has no bndbox/xmax"),
    "number": (WHOLE.replace(">29<", ">29px<"), "cannot read .*000007.xml .*29px"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_annotations_are_named(root, case):
    text, message = DAMAGE[case]
    (root / "VOC2007/Annotations/000007.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        voc_detection.build(str(root)).split("val2007", ["detection"]).load(0)


def test_truncated_photograph_is_named(root):
    photo = root / "VOC2007/JPEGImages/000007.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    with pytest.raises(UserError, match="cannot read .*JPEGImages/000007.jpg"):
        voc_detection.build(str(root)).split("val2007", ["detection"]).load(0)


def test_training_and_evaluation(root, train_a_little):
    dataset = voc_detection.build(str(root))
    batch, results = train_a_little(dataset, {"detection": {}}, "train", "test", canvas=(32, 48))
    label = np.asarray(batch["labels"]["detection"])
    objects = label[label[..., 4] >= 0]
    assert 0 <= results["detection/AP50"] <= 1 and set(objects[:, 4]) <= set(range(20)) and len(objects)
    assert (objects[:, :2] < objects[:, 2:4]).all() and (objects[:, 2:4] <= [32, 48]).all()
