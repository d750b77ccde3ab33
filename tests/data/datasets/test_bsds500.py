import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from mtl_jax.data.datasets import bsds500
from mtl_jax.errors import UserError

COUNTS = {"train": 3, "val": 1, "test": 2}


def drawings(name, annotators, size):
    seed = int(name)
    return np.random.default_rng(seed).integers(0, 2, (annotators, *size)).astype(np.uint8)


def write(root, folder, name, annotators, size):
    """An example as in the release: a 1xK cell of structs."""
    images, truths = root / "data/images" / folder, root / "data/groundTruth" / folder
    images.mkdir(parents=True, exist_ok=True)
    truths.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (10 * annotators, 200, 0)).save(images / f"{name}.jpg")
    cell = np.empty((1, annotators), object)
    for k, boundaries in enumerate(drawings(name, annotators, size)):
        cell[0, k] = {"Segmentation": np.ones(size, np.uint16), "Boundaries": boundaries}
    scipy.io.savemat(truths / f"{name}.mat", {"groundTruth": cell})


@pytest.fixture
def release(tmp_path):
    number = 100
    for folder, count in COUNTS.items():
        for i in range(count):
            write(tmp_path, folder, str(number), 4 + i, (12, 9) if i % 2 else (9, 12))
            number += 1
        (tmp_path / "data/images" / folder / "Thumbs.db").write_bytes(b"\0")
    return tmp_path


def test_splits(release):
    data = bsds500.build(release)
    sizes = {name: len(data.split(name, ["edges"])) for name in data.splits}
    assert sizes == {"train": 3, "val": 1, "trainval": 4, "test": 2}
    both = data.split("trainval", ["edges"])
    assert list(both.ids) == ["100", "101", "102", "103"]
    np.testing.assert_array_equal(both.sizes, [[9, 12], [12, 9], [9, 12], [9, 12]])
    assert data.labels == {"edges": {"kind": "edges", "annotators": 9}}


def test_examples(release):
    example = bsds500.build(release).split("test", ["edges"]).load(1)
    assert example["image"].shape == (12, 9, 3) and example["image"].dtype == np.uint8
    np.testing.assert_allclose(example["image"].mean((0, 1)), [50, 200, 0], atol=3)
    label = example["labels"]["edges"]
    assert label.shape == (12, 9, 9) and label.dtype == np.uint8
    np.testing.assert_array_equal(label[..., :5].transpose(2, 0, 1), drawings("105", 5, (12, 9)))
    assert (label[..., 5:] == 255).all()


def test_images_alone_need_no_drawings(release):
    for path in release.rglob("*.mat"):
        path.unlink()
    assert bsds500.build(release).split("train", []).load(0)["labels"] == {}
    with pytest.raises(UserError, match=r"no file .*groundTruth/train/100\.mat"):
        bsds500.build(release).split("train", ["edges"])


def test_unknown_split(release):
    with pytest.raises(UserError, match="no split 'dev'.*train, val, trainval, test"):
        bsds500.build(release).split("dev", ["edges"])


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="no photograph in .*images/test.*data_dir"):
        bsds500.build(tmp_path).split("test", ["edges"])


def test_damaged_files(release):
    split = bsds500.build(release).split("test", ["edges"])
    drawing = release / "data/groundTruth/test/104.mat"
    drawing.write_bytes(drawing.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read .*test/104\.mat"):
        split.load(0)
    for content in (np.eye(3), np.empty((1, 0), object)):  # no cell; nobody's drawing
        scipy.io.savemat(drawing, {"groundTruth": content})
        with pytest.raises(UserError, match=r"cannot read .*test/104\.mat"):
            split.load(0)
    uneven = np.empty((1, 2), object)
    uneven[0, :] = [{"Boundaries": np.ones(size, np.uint8)} for size in ((9, 12), (9, 11))]
    scipy.io.savemat(drawing, {"groundTruth": uneven})
    with pytest.raises(UserError, match=r"cannot read .*test/104\.mat"):
        split.load(0)
    write(release, "test", "104", 10, (9, 12))
    with pytest.raises(UserError, match=r"test/104\.mat holds 10 maps .* at most 9 annotators"):
        split.load(0)
    write(release, "test", "105", 5, (12, 9))
    Image.new("RGB", (9, 11)).save(release / "data/images/test/105.jpg")
    with pytest.raises(UserError, match=r"test/105\.mat.*12x9.*11x9"):
        split.load(1)
    photo = release / "data/images/val/103.jpg"
    both = bsds500.build(release).split("trainval", ["edges"])
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"cannot read .*val/103\.jpg"):
        both.load(3)
    photo.write_bytes(b"no jpeg")
    with pytest.raises(UserError, match=r"cannot read .*val/103\.jpg"):
        both.measure()


def test_training(release, train_a_little):
    train_a_little(bsds500.build(release), {"edges": {}}, "trainval", "test")


REAL = Path(os.environ.get("MTL_JAX_DATA", "")) / "BSDS500"


@pytest.mark.skipif("MTL_JAX_DATA" not in os.environ or not REAL.is_dir(), reason="needs BSDS500")
def test_the_release():
    data = bsds500.build(REAL)
    assert {name: len(data.split(name, ["edges"])) for name in data.splits} == data.published
    assert {tuple(size) for size in data.split("trainval", []).sizes.tolist()} == {(321, 481), (481, 321)}
    labels = [data.split("test", ["edges"]).load(i)["labels"]["edges"] for i in range(0, 200, 25)]
    present = [(label[0, 0] != 255).sum() for label in labels]
    assert 4 <= min(present) <= max(present) <= 9
    drawn = np.mean([label[..., :4].mean() for label in labels])
    assert 0.01 < drawn < 0.03  # 1.86 % over the whole split
