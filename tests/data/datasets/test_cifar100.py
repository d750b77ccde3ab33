"""Miniatures in both forms: the binary version byte by byte, and one that TFDS prepares."""

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_jax.data.datasets import cifar100
from mtl_jax.errors import UserError

NUMBER = {"train": 9, "test": 5}


def image(split, i):
    return np.random.default_rng([len(split), i]).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def number(split, i):
    return [99, 0, 41, 7, 58, 12, 77, 30, 5][i]


class Cifar100(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("3.0.2")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=sorted(cifar100.CLASSES)),
            "coarse_label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUMBER}

    def _generate_examples(self, split):
        for i in range(NUMBER[split]):
            stored = {"id": f"{split}_{i}", "image": image(split, i), "label": number(split, i)}
            yield i, stored | {"coarse_label": i % 20}


def write_binary(root):
    folder = root / "cifar-100-binary"
    folder.mkdir()
    for split, count in NUMBER.items():
        rows = b""
        for i in range(count):
            planes = b"".join(image(split, i)[..., c].tobytes() for c in range(3))
            rows += bytes([i % 20, number(split, i)]) + planes
        (folder / f"{split}.bin").write_bytes(rows)


def prepare(root):
    Cifar100(data_dir=root).download_and_prepare()


@pytest.fixture(params=[write_binary, prepare], ids=["binary", "TFDS"])
def root(request, tmp_path):
    request.param(tmp_path)
    return tmp_path


def test_values(root):
    dataset = cifar100.build(str(root))
    assert dataset.splits == ("train", "test") and dataset.published == {"train": 50_000, "test": 10_000}
    for name, count in NUMBER.items():
        split = dataset.split(name, ["classification"])
        assert len(split) == len(set(split.ids)) == count
        assert split.sizes.tolist() == [[32, 32]] * count
        for i in range(count):
            got = split.load(i)
            np.testing.assert_array_equal(got["image"], image(name, i))
            assert got["labels"]["classification"].tolist() == [[[number(name, i)]]]
    assert dataset.split("test", []).load(1)["labels"] == {}


def test_classes():
    options = cifar100.build("anywhere").labels["classification"]
    assert options["num_classes"] == len(set(options["class_names"])) == 100
    assert [options["class_names"][i] for i in (0, 1, 49, 53, 99)] == [
        "apple",
        "aquarium_fish",
        "mountain",
        "orange",
        "worm",
    ]


def test_training(root, train_a_little):
    _, results = train_a_little(
        cifar100.build(str(root)), {"classification": {}}, "train", "test", (32, 32), steps=2
    )
    assert set(results) == {"classification/top1", "classification/top5"}


def test_errors(tmp_path):
    with pytest.raises(UserError, match=f"no prepared TFDS dataset {tmp_path}/cifar100/VERSION"):
        cifar100.build(str(tmp_path)).split("train", [])
    write_binary(tmp_path)
    dataset = cifar100.build(str(tmp_path))
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        dataset.split("val", [])
    path = tmp_path / "cifar-100-binary/train.bin"
    data = path.read_bytes()
    path.write_bytes(data[:3075] + bytes([100]) + data[3076:])
    split = dataset.split("train", ["classification"])
    assert split.load(0)["labels"]["classification"] == 99
    with pytest.raises(UserError, match=f"image 1 of {path} has class 100, beyond 99"):
        split.load(1)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{path} has {len(data) - 1} bytes, no multiple of 3074"):
        dataset.split("train", [])
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path}"):
        dataset.split("train", [])
