"""Miniatures in every form: trees of JPEGs with the release's oddities, and one that TFDS prepares."""

import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data.datasets import imagenet
from mtl_jax.errors import UserError

FIRST, LAST, SNAKE = "n01440764", "n15075141", "n01751748"  # classes 0, 999 and 65
TRAIN = {  # path: (class, colour, how it is stored)
    f"{FIRST}/{FIRST}_10026.JPEG": (0, (200, 40, 90), "RGB"),
    f"{FIRST}/{FIRST}_2.JPEG": (0, (90, 90, 90), "L"),
    f"{SNAKE}/{SNAKE}_7.JPEG": (65, (30, 180, 60), "CMYK"),
    f"{LAST}/{LAST}_54.JPEG": (999, (10, 20, 250), "PNG"),
    f"{LAST}/{LAST}_9.JPEG": (999, (240, 230, 20), "RGB"),
}
VAL = {  # number: (class, colour); the list of the release begins so
    1: (SNAKE, 65, (10, 100, 200)),
    2: ("n09193705", 970, (120, 20, 20)),
    3: ("n02105855", 230, (5, 200, 50)),
    50_000: ("n02437616", 355, (70, 80, 90)),
}


def size(path):
    """Height and width."""
    return (5 + len(path) % 4, 9)


def encoded(path, colour, kind="RGB"):
    image = Image.new("RGB", size(path)[::-1], colour)
    file = io.BytesIO()
    image.convert("RGB" if kind == "PNG" else kind).save(file, "PNG" if kind == "PNG" else "JPEG", quality=95)
    return file.getvalue()


def write_train(folder):
    for path, (_, colour, kind) in TRAIN.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded(path, colour, kind))
    (folder / FIRST / "._x.JPEG").write_bytes(b"of a file system")


def val_path(number, sort):
    name = f"ILSVRC2012_val_{number:08d}.JPEG"
    return f"{VAL[number][0]}/{name}" if sort else name


def write_val(folder, sort):
    for number, (_, _, colour) in VAL.items():
        path = folder / val_path(number, sort)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(val_path(number, sort), colour))


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("5.1.0")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names_file=labels),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        train = [(path, path[:9], colour) for path, (_, colour, _) in TRAIN.items()]
        val = [(val_path(n, True), wnid, colour) for n, (wnid, _, colour) in VAL.items()]
        return {"train": self._generate_examples(train), "validation": self._generate_examples(val)}

    def _generate_examples(self, images):
        for i, (path, wnid, colour) in enumerate(images):
            yield (
                i,
                {"image": io.BytesIO(encoded(path, colour)), "label": wnid, "file_name": path.split("/")[1]},
            )


FORMS = {"sorted": ".", "loose": ".", "Kaggle": "ILSVRC/Data/CLS-LOC", "inside": "Data/CLS-LOC", "TFDS": None}


@pytest.fixture
def root(form, tmp_path):
    if form == "TFDS":
        Imagenet2012(data_dir=tmp_path).download_and_prepare()
    else:
        write_train(tmp_path / FORMS[form] / "train")
        write_val(tmp_path / FORMS[form] / "val", sort=form == "sorted")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_values(root, form):
    dataset = imagenet.build(str(root))
    assert dataset.splits == ("train", "val")
    train = dataset.split("train", ["classification"])
    val = dataset.split("val", ["classification"])
    if form != "TFDS":
        assert list(train.ids) == list(TRAIN)
        assert sorted(val.ids) == sorted(val_path(n, form == "sorted") for n in VAL)
    expected = {
        "train": [(path, *TRAIN[path][:2]) for path in TRAIN],
        "val": [(val_path(n, form in ("sorted", "TFDS")), *VAL[n][1:]) for n in VAL],
    }
    if form != "TFDS":
        expected["val"] = sorted(expected["val"], key=lambda e: (e[1], e[0]))
    for name, split in (("train", train), ("val", val)):
        assert len(split) == len(set(split.ids)) == len(expected[name])
        for i, (path, number, colour) in enumerate(expected[name]):
            got = split.load(i)
            label = got["labels"]["classification"]
            assert label.dtype == np.int32 and label.tolist() == [[[number]]]
            assert got["image"].dtype == np.uint8 and got["image"].shape == (*size(path), 3)
            np.testing.assert_allclose(got["image"].mean((0, 1)), colour, atol=4)
            assert split.sizes[i].tolist() == list(size(path))


def test_classes_are_in_the_order_of_their_ids():
    names = imagenet.build("anywhere").labels["classification"]["class_names"]
    assert len(names) == 1000 and list(names) == sorted(set(names))
    assert [names[i] for i in (0, 65, 970, 999)] == [FIRST, SNAKE, "n09193705", LAST]
    builder_labels = tfds.features.ClassLabel(
        names_file=tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    )
    assert tuple(builder_labels.names) == names


def test_no_image_is_opened_before_it_is_loaded(tmp_path):
    write_train(tmp_path / "train")
    for path in (tmp_path / "train").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    split = imagenet.build(str(tmp_path)).split("train", ["classification"])
    assert len(split) == len(TRAIN)
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}/train/{FIRST}/{FIRST}_10026.JPEG"):
        split.load(0)
    with pytest.raises(UserError, match="cannot read .*10026.JPEG"):
        split.sizes  # noqa: B018


def test_a_truncated_image(tmp_path):
    write_train(tmp_path / "train")
    path = tmp_path / "train" / FIRST / f"{FIRST}_2.JPEG"
    path.write_bytes(path.read_bytes()[:-20])
    split = imagenet.build(str(tmp_path)).split("train", [])
    split.load(0)
    with pytest.raises(UserError, match=rf"cannot read {path} .*(?i:truncated)"):
        split.load(1)


def test_what_is_wrong_in_the_folders(tmp_path):
    dataset = imagenet.build(str(tmp_path))
    with pytest.raises(
        UserError, match=f"neither .* dataset {tmp_path}/imagenet2012 nor a folder {tmp_path}/val"
    ):
        dataset.split("val", [])
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    (tmp_path / "train" / FIRST).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{tmp_path}/train has no image"):
        dataset.split("train", [])
    (tmp_path / "train/cat").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/train/cat is none of the 1000 classes"):
        dataset.split("train", [])
    write_val(tmp_path / "val", sort=False)
    shutil.copy(tmp_path / "val/ILSVRC2012_val_00000001.JPEG", tmp_path / "val/ILSVRC2012_val_00050001.JPEG")
    with pytest.raises(UserError, match="the class of .*val_00050001.JPEG is not known: put it"):
        dataset.split("val", [])


@pytest.mark.parametrize("form", ["loose"])
def test_training(root, form, train_a_little):
    _, results = train_a_little(
        imagenet.build(str(root)), {"classification": {}}, "train", "val", (8, 9), steps=2
    )
    assert set(results) == {"classification/top1", "classification/top5"}
