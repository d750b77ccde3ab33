"""A data set with every kind of feature, prepared by TFDS itself in both file formats."""

import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data import tfds_split
from mtl_jax.errors import UserError

FORMATS = ("tfrecord", "array_record")
NUMBER = {"train": 7, "test": 2}


def picture(split, i):
    """Ramps, which JPEG keeps, of another height and colour for each example."""
    y, x = np.mgrid[: 5 + i, :9]
    return np.stack([25 * x, 20 * y + 5 * i, 30 * len(split) + 0 * x], -1).astype(np.uint8)


def jpeg(array, mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(array, "RGB").convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def example(split, i):
    """Example 0 has no objects; example 1 is stored as a CMYK JPEG, the others as RGB ones."""
    rng = np.random.default_rng([9, len(split), i])
    boxes = np.sort(rng.random((i, 2, 2)), axis=1).reshape(i, 4).astype(np.float32)
    return {
        "image": io.BytesIO(jpeg(picture(split, i), "CMYK" if i == 1 else "RGB")),
        "label": i % 3,
        "file_name": f"{split}_{i}.JPEG",
        "objects": [
            {
                "bbox": tfds.features.BBox(*map(float, box)),
                "label": k % 3,
                "is_crowd": k == 1,
                "name": f"o{k}",
            }
            for k, box in enumerate(boxes)
        ],
        "depth": rng.random((4, 5)).astype(np.float16),
        "far": rng.random((3, 4, 1)).astype(np.float32),
        "millimetres": rng.integers(0, 2**16, (3, 4, 1)).astype(np.uint16),
        "mask": rng.integers(0, 256, (3, 4, 1)).astype(np.uint8),
        "words": [f"w{k}" for k in range(i)],
    }


class Miniature(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.10.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("1.9.0")]
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        f = tfds.features
        objects = {
            "bbox": f.BBoxFeature(),
            "label": f.ClassLabel(num_classes=3),
            "is_crowd": np.bool_,
            "name": f.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=f.FeaturesDict(
                {
                    "image": f.Image(encoding_format="jpeg"),
                    "label": f.ClassLabel(names=["cat", "dog", "eel"]),
                    "file_name": f.Text(),
                    "objects": f.Sequence(objects),
                    "depth": f.Tensor(shape=(4, 5), dtype=np.float16),
                    "far": f.Image(shape=(None, None, 1), dtype=np.float32),
                    "millimetres": f.Image(shape=(None, None, 1), dtype=np.uint16),
                    "mask": f.Image(shape=(3, 4, 1), encoding_format="png"),
                    "words": f.Sequence(f.Text()),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUMBER}

    def _generate_examples(self, split):
        for i in range(NUMBER[split]):
            yield i, example(split, i)


def prepare(data_dir, file_format, version="1.10.0"):
    builder = Miniature(data_dir=data_dir, file_format=file_format, version=version)
    shards = tfds.download.DownloadConfig(num_shards=2)
    builder.download_and_prepare(download_config=shards)
    return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """By file format, where the data set lies."""
    roots = {name: tmp_path_factory.mktemp(name) for name in FORMATS}
    for name, root in roots.items():
        prepare(root, name)
    return roots


@pytest.fixture
def root(roots, tmp_path):
    """One that may be spoilt."""
    shutil.copytree(roots["tfrecord"], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_values(roots, name):
    builder = tfds_split.builder(roots[name], "miniature")
    assert builder.info.features["label"].names == ["cat", "dog", "eel"]
    for split, number in NUMBER.items():
        examples = tfds_split.Examples(builder, split)
        assert len(examples) == len(examples.ids) == number
        if split == "train":
            assert len(examples.shards.paths) == 2
        for i in reversed(range(number)):
            got, expected = examples[i], example(split, i)
            assert got["image"].dtype == np.uint8 and got["image"].shape == (5 + i, 9, 3)
            np.testing.assert_allclose(got["image"].mean((0, 1)), picture(split, i).mean((0, 1)), atol=3)
            np.testing.assert_allclose(got["image"], picture(split, i), atol=30)
            assert got["label"] == expected["label"] and got["file_name"] == f"{split}_{i}.JPEG".encode()
            for key in ("depth", "far", "millimetres", "mask"):
                assert got[key].dtype == expected[key].dtype
                np.testing.assert_array_equal(got[key], expected[key])
            boxes = np.array([list(thing["bbox"]) for thing in expected["objects"]], np.float32)
            assert got["objects"]["bbox"].dtype == np.float32
            np.testing.assert_array_equal(got["objects"]["bbox"], boxes.reshape(i, 4))
            assert got["objects"]["label"].dtype == np.int64 and got["objects"]["is_crowd"].dtype == bool
            assert got["objects"]["label"].tolist() == [k % 3 for k in range(i)]
            assert got["objects"]["is_crowd"].tolist() == [k == 1 for k in range(i)]
            assert list(got["objects"]["name"]) == [f"o{k}".encode() for k in range(i)]
            assert got["words"] == [f"w{k}".encode() for k in range(i)]


@pytest.mark.parametrize("name", FORMATS)
def test_some_features_alone(roots, name):
    builder = tfds_split.builder(roots[name], "miniature")
    some = {"label": True, "objects": {"bbox", "label"}, "mask": True}
    examples = tfds_split.Examples(builder, "train", some)
    got = examples[5]
    assert set(got) == set(some) and set(got["objects"]) == {"bbox", "label"}
    assert got["objects"]["bbox"].shape == (5, 4) and got["label"] == 2
    with pytest.raises(UserError, match="cannot read features .* Missing expected feature 'colour'"):
        tfds_split.Examples(builder, "train", ["colour"])


def test_sizes_and_ids(roots):
    examples = tfds_split.Examples(tfds_split.builder(roots["tfrecord"], "miniature"), "train")
    sizes = examples.sizes()()
    assert sizes.dtype == np.int32 and sizes.tolist() == [[5 + i, 9] for i in range(7)]
    assert examples.sizes("mask")().tolist() == [[3, 4]] * 7
    ids = list(examples.ids)
    assert len(set(ids)) == 7 and ids[0] == "miniature-train.tfrecord-00000-of-00002:0"


def test_the_newest_version_counts(root):
    newest = root / "miniature/1.10.0"
    shutil.copytree(newest, root / "miniature/1.9.0")
    (root / "miniature/1.11.0.incompleteABC").mkdir()
    (root / "miniature/2.0.0").mkdir()  # without a description: not finished
    assert tfds_split.builder(root, "miniature").data_path.name == "1.10.0"
    assert tfds_split.is_prepared(root, "miniature") and not tfds_split.is_prepared(root, "other")
    shutil.move(newest, root / "miniature/small/1.10.0")
    assert tfds_split.is_prepared(root, "miniature", "small")
    assert tfds_split.builder(root, "miniature").data_path.name == "1.9.0"


def test_what_is_not_there(root):
    message = (
        rf"no prepared TFDS dataset {root}/coco/2017_panoptic/VERSION: run `tfds build coco/2017_panoptic "
    )
    with pytest.raises(UserError, match=message + f"--data_dir={root}`"):
        tfds_split.builder(root, "coco", "2017_panoptic")
    builder = tfds_split.builder(root, "miniature")
    with pytest.raises(UserError, match="no split 'validation': choose one of train, test"):
        tfds_split.Examples(builder, "validation")
    for path in (root / "miniature/1.10.0").glob("*train*-*"):
        path.unlink()
    with pytest.raises(UserError, match="no file .*-00000-of-00002; .*-00001-of-00002: unpack"):
        tfds_split.Examples(builder, "train")
    (root / "miniature/1.10.0/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*miniature/1.10.0"):
        tfds_split.builder(root, "miniature")


def test_damaged_records_are_named(root):
    builder = tfds_split.builder(root, "miniature")
    examples = tfds_split.Examples(builder, "test")
    first, second = examples.shards.paths
    cut = example("test", 0) | {"image": io.BytesIO(jpeg(picture("test", 0))[:-60])}
    for path, record in ((first, builder.info.features.serialize_example(cut)), (second, b"no example")):
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(record)
    with pytest.raises(UserError, match=rf"cannot read image of record 0 of {first} .*(?i:truncated)"):
        examples[0]
    assert tfds_split.Examples(builder, "test", ["label"])[0] == {"label": 0}  # its image is not decoded
    with pytest.raises(UserError, match=f"cannot read record 0 of {second}"):
        examples[1]


def test_the_lengths_of_shards_are_not_counted_again(root):
    builder = tfds_split.builder(root, "miniature")
    examples = tfds_split.Examples(builder, "test")
    first, second = examples.shards.paths
    shutil.copy(first, second)
    with tf.io.TFRecordWriter(str(first)) as writer:
        writer.write(b"one")
        writer.write(b"more")
    assert len(examples) == 2 and examples[1]["label"] == 0
    with pytest.raises(UserError, match=f"{first} holds 2 records instead of 1"):
        examples[0]


def test_a_split_of_classes(roots):
    builder = tfds_split.builder(roots["array_record"], "miniature")
    split = tfds_split.classified(builder, "train", ["classification"])
    for i in range(len(split)):
        got = split.load(i)
        label = got["labels"]["classification"]
        assert label.dtype == np.int32 and label.tolist() == [[[i % 3]]]
        assert got["image"].shape == (*split.sizes[i], 3)
    assert tfds_split.classified(builder, "train", []).load(2)["labels"] == {}
