"""Trees of images and shards of records, written by PIL, TensorFlow and ArrayRecord's own writer."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from mtl_jax.data.datasets import corpus
from mtl_jax.errors import UserError

CLASSES = ["cat", "dog", "7", "eel"]  # the third is named like a number
IMAGES = {  # path: (height, width), colour, classes
    "a/x.jpg": ((9, 7), (200, 30, 40), [0, 3]),
    "a/y.PNG": ((6, 8), (10, 220, 40), []),
    "b/c/x.jpeg": ((7, 7), (90, 90, 200), None),
    "z.webp": ((8, 9), (30, 40, 50), [2]),
}
FORMATS = {".jpg": "JPEG", ".PNG": "PNG", ".jpeg": "JPEG", ".webp": "WEBP"}


def encoded(path):
    size, colour, _ = IMAGES[path]
    file = io.BytesIO()
    Image.new("RGB", size[::-1], colour).save(file, FORMATS["." + path.split(".")[1]])
    return file.getvalue()


def check(split, index, path, label):
    size, colour, _ = IMAGES[path]
    got = split.load(index)
    assert got["image"].dtype == np.uint8 and got["image"].shape == (*size, 3)
    np.testing.assert_allclose(got["image"].mean((0, 1)), colour, atol=4)
    assert split.sizes[index].tolist() == list(size)
    assert got["labels"]["objects"].dtype == np.uint8
    assert got["labels"]["objects"].tolist() == [[label]]


def label(classes):
    return [255] * 4 if classes is None else [int(i in classes) for i in range(4)]


@pytest.fixture
def tree(tmp_path):
    for path in IMAGES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded(path))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    known = {path: classes for path, (_, _, classes) in IMAGES.items() if classes is not None}
    lines = [f"{path},{' '.join(CLASSES[i] for i in ids)}" for path, ids in known.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["path,ids", *lines, "elsewhere.jpg,99"]) + "\n")
    rows = [json.dumps({"path": path, "ids": ids}) for path, ids in reversed(known.items())]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_images_alone(tree):
    dataset = corpus.build(str(tree))
    assert dataset.labels == {} and dataset.splits == ("train",)
    split = dataset.split("train", [])
    assert list(split.ids) == sorted(IMAGES)
    assert split.load(0)["labels"] == {} and split.load(0)["image"].shape == (9, 7, 3)


@pytest.mark.parametrize("options", [{"labels": "labels.csv"}, {"labels": "labels.jsonl", "num_classes": 4}])
def test_a_tree_with_labels(tree, options):
    # In the CSV file classes are names, in the other one numbers, of which "7" is no name there.
    dataset = corpus.build(str(tree), class_names="classes.txt", **options)
    assert dataset.labels["objects"] == {"kind": "multilabel", "num_classes": 4, "class_names": CLASSES}
    split = dataset.split("train", ["objects"])
    for index, path in enumerate(split.ids):
        check(split, index, path, label(IMAGES[path][2]))


def test_splits_by_pattern(tree):
    dataset = corpus.build(str(tree), splits={"train": "a/*", "test": "**/x.*"})
    assert list(dataset.split("train", []).ids) == ["a/x.jpg", "a/y.PNG"]
    assert list(dataset.split("test", []).ids) == ["a/x.jpg", "b/c/x.jpeg"]
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        dataset.split("val", [])


def bytes_feature(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def ints_feature(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def example(path, names, key=None):
    """The classes by name or by number; "a/y.PNG" has an empty list, "b/c/x.jpeg" no feature."""
    features = {"image/encoded": bytes_feature(encoded(path))}
    classes = IMAGES[path][2]
    if classes is not None:
        features["image/class/label"] = (
            bytes_feature(*(CLASSES[i].encode() for i in classes)) if names else ints_feature(*classes)
        )
    if key is not None:
        features["key"] = bytes_feature(key.encode())
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_tfrecord(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITERS = {"tfrecord": write_tfrecord, "array_record": write_array_record}


@pytest.fixture(params=WRITERS)
def shards(request, tmp_path):
    """Two files of the same name, of three images and of one."""
    paths = list(IMAGES)
    for folder, some, names in (("one", paths[:3], True), ("two", paths[3:], False)):
        (tmp_path / folder).mkdir()
        records = [example(path, names, f"key of {path}") for path in some]
        WRITERS[request.param](tmp_path / folder / f"a.{request.param}-00000-of-00001", records)
        (tmp_path / folder / "index.json").write_text("{}")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def test_shards(shards):
    dataset = corpus.build(str(shards), class_names="classes.txt")
    split = dataset.split("train", ["objects"])
    assert len(split) == 4
    for index, path in enumerate(IMAGES):
        check(split, index, path, label(IMAGES[path][2]))
    ids = list(split.ids)
    assert len(set(ids)) == 4 and ids[0].startswith("one/a.") and ids[0].endswith("-00000-of-00001:0")
    alone = corpus.build(str(shards), splits={"train": "two/*"}).split("train", [])
    assert list(alone.ids) == ids[3:]
    assert corpus.build(str(shards)).split("train", []).load(0)["labels"] == {}


def test_shards_with_keys(shards):
    split = corpus.build(str(shards), features={"id": "key"}).split("train", [])
    assert list(split.ids) == [f"key of {path}" for path in IMAGES]
    assert split.ids[-1] == "key of z.webp"
    with pytest.raises(
        UserError, match=r"record one/a.*:0 in .* has not one 'image/id' of bytes, but image/cl"
    ):
        corpus.build(str(shards), features={"id": "image/id"}).split("train", []).ids[0]
    with pytest.raises(UserError, match="features has 'picture': name image, labels or id"):
        corpus.build(str(shards), features={"picture": "jpg"})


def test_damaged_shards(tmp_path):
    good = example("a/x.jpg", False)
    cut = tf.train.Example.FromString(good)
    cut.features.feature["image/encoded"].bytes_list.value[0] = encoded("a/x.jpg")[:-20]
    none = tf.train.Example()
    none.features.feature["jpg"].bytes_list.value.append(b"")
    wrong = tf.train.Example.FromString(good)
    wrong.features.feature["image/class/label"].int64_list.value.append(4)
    records = [
        good,
        cut.SerializeToString(),
        b"no example",
        none.SerializeToString(),
        wrong.SerializeToString(),
    ]
    write_tfrecord(tmp_path / "s.tfrecord", records)
    dataset = corpus.build(str(tmp_path), num_classes=4)
    split = dataset.split("train", ["objects"])
    split.load(0)
    where = f"in {tmp_path}"
    for index, message in (
        (1, rf"cannot read image of record s.tfrecord:1 {where} .*(?i:truncated)"),
        (2, f"cannot read record s.tfrecord:2 {where}"),
        (3, f"record s.tfrecord:3 {where} has not one 'image/encoded' of bytes, but jpg: name the feature"),
        (4, f"record s.tfrecord:4 {where} has class '4', but there are 4 from 0 on"),
    ):
        with pytest.raises(UserError, match=message):
            split.load(index)
    assert dataset.split("train", []).load(4)["labels"] == {}
    with pytest.raises(UserError, match="cannot read image of record s.tfrecord:1"):
        split.sizes  # noqa: B018


def test_wrong_folders(tree, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=rf"no image and no record file {empty}/\*\*/\*: give another"):
        corpus.build(str(empty)).split("train", [])
    with pytest.raises(UserError, match="cannot read .*/classes.txt"):
        corpus.build(str(empty), class_names="classes.txt")
    write_tfrecord(tree / "more.tfrecord", [])
    with pytest.raises(UserError, match="has images .* and record files .more.tfrecord.: name one kind"):
        corpus.build(str(tree)).split("train", [])
    (tree / "a/x.jpg").write_bytes(encoded("a/x.jpg")[:-20])
    with pytest.raises(UserError, match=rf"cannot read {tree}/a/x.jpg"):
        corpus.build(str(tree), splits={"train": "a/*"}).split("train", []).load(0)


@pytest.mark.parametrize(
    "name, lines, message",
    [
        ("l.csv", "a/x.jpg,1\na/x.jpg,2\n", "line 2 of .*l.csv lists a/x.jpg again"),
        ("l.csv", "a/x.jpg 1\n", "line 1 of .*l.csv is not of the form a/b.jpg,3 17: mend"),
        ("l.csv", "a/x.jpg,4\n", "line 1 of .*l.csv has class '4', but there are 4"),
        ("l.csv", "a/x.jpg,fox\n", "line 1 of .*l.csv has class 'fox'"),
        ("l.csv", "x.jpg,1\n", "l.csv lists none of the split's 4 images: give paths like a/x.jpg"),
        ("l.jsonl", '{"path": "a/x.jpg"}\n', "line 1 of .*l.jsonl is not of the form .*ids"),
        ("l.jsonl", "{\n", "line 1 of .*l.jsonl is not of the form"),
    ],
)
def test_wrong_labels(tree, name, lines, message):
    (tree / name).write_text(lines)
    dataset = corpus.build(str(tree), labels=name, num_classes=4)
    with pytest.raises(UserError, match=message):
        dataset.split("train", ["objects"])
    assert len(dataset.split("train", [])) == 4


def test_training(shards, train_a_little):
    dataset = corpus.build(str(shards), class_names="classes.txt")
    batch, results = train_a_little(dataset, {"objects": {}}, "train", "train", (9, 9), steps=2)
    assert set(results) == {"objects/mAP"}
    known = [path for path, (_, _, classes) in IMAGES.items() if classes is not None]
    assert batch["valid"]["objects"].sum() == len(known)
    for row, index in enumerate(batch["id"]):
        classes = IMAGES[list(IMAGES)[index]][2]
        expected = [0] * 4 if classes is None else label(classes)  # what is unknown is 0, and not valid
        assert batch["labels"]["objects"][row].tolist() == [[expected]]
