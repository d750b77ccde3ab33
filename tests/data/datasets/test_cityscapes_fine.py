"""A miniature of the release: PNGs of 8 and 16 bits by PIL, cameras by json."""

import json

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.datasets import cityscapes_fine
from mtl_jax.errors import UserError

SIZE = (14, 26)
PLACES = {
    "train": ["bochum/bochum_000000_000313", "aachen/aachen_000001_000019"],
    "val": ["frankfurt/frankfurt_000000_000294"],
    "test": ["berlin/berlin_000000_000019"],
}
BASELINE, FX = 0.209313, 2262.52  # metres, pixels
NINETEEN = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # ids, by class
SEVEN = [range(7, 11), range(11, 17), range(17, 21), (21, 22), (23,), (24, 25), range(26, 34)]


def stored(place):
    """(image, ids, codes of disparity) of an image."""
    rng = np.random.default_rng(len(place))
    ids = rng.integers(0, 34, SIZE).astype(np.uint8)
    ids.flat[:34] = range(34)
    codes = rng.integers(2, 32257, SIZE).astype(np.uint16)
    codes[0, :3] = 0, 1, 32257
    return rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8), ids, codes


def save(root, kind, split, place, ending, array):
    path = root / kind / split / f"{place}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for split, places in PLACES.items():
        for place in places:
            image, ids, codes = stored(place)
            save(tmp_path, "leftImg8bit", split, place, "_leftImg8bit.png", image)
            save(tmp_path, "gtFine", split, place, "_gtFine_labelIds.png", ids)
            save(tmp_path, "gtFine", split, place, "_gtFine_color.png", image)
            save(tmp_path, "disparity", split, place, "_disparity.png", codes)
            path = tmp_path / "camera" / split / f"{place}_camera.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            extrinsic = {"baseline": BASELINE, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.02}
            intrinsic = {"fx": FX, "fy": 2265.30, "u0": 1096.98, "v0": 513.137}
            path.write_text(json.dumps({"extrinsic": extrinsic, "intrinsic": intrinsic}, indent=4))
    return tmp_path


def classes(ids, groups):
    """By a list of the ids of each class."""
    expected = np.full(ids.shape, 255)
    for index, group in enumerate(groups):
        expected[np.isin(ids, group)] = index
    return expected


def test_splits(root):
    dataset = cityscapes_fine.build(str(root))
    assert dataset.splits == ("train", "val", "test")
    assert dataset.published == {"train": 2975, "val": 500, "test": 1525}
    train = dataset.split("train", ["semseg"])
    assert train.ids == ["aachen_000001_000019", "bochum_000000_000313"]
    assert train.sizes.tolist() == [list(SIZE)] * 2
    names = dataset.labels["semseg"]["class_names"]
    assert [names[k] for k in (0, 8, 11, 18)] == ["road", "vegetation", "person", "bicycle"]


@pytest.mark.parametrize("num_classes", [19, 7])
def test_values(root, num_classes):
    dataset = cityscapes_fine.build(str(root), num_classes=num_classes)
    example = dataset.split("val", ["semseg", "disparity", "depth"]).load(0)
    image, ids, codes = stored(PLACES["val"][0])
    labels = example["labels"]
    np.testing.assert_array_equal(example["image"], image)
    groups = SEVEN if num_classes == 7 else [[i] for i in NINETEEN]
    np.testing.assert_array_equal(labels["semseg"][..., 0], classes(ids, groups))
    assert dataset.labels["semseg"]["num_classes"] == len(groups)
    pixels = np.where(codes > 0, (codes - 1.0) / 256, 0)
    assert pixels.max() == 126
    np.testing.assert_allclose(labels["disparity"][..., 0], pixels, rtol=1e-6)
    depth = [0 if p == 0 else BASELINE * FX / p for p in pixels.ravel()]
    np.testing.assert_allclose(labels["depth"].ravel(), depth, rtol=1e-6)
    assert labels["depth"][0, :2].tolist() == [[0], [0]]  # no match, and infinitely far
    assert {task: label.dtype for task, label in labels.items()} == {
        "semseg": np.uint8,
        "disparity": np.float32,
        "depth": np.float32,
    }


def test_smaller(root):
    """Half as large, disparities are half as many pixels and metres stay."""
    dataset = cityscapes_fine.build(str(root), size=(7, 13))
    split = dataset.split("train", ["semseg", "disparity", "depth"])
    assert split.sizes.tolist() == [[7, 13]] * 2
    example = split.load(1)
    image, ids, codes = (array[1::2, 1::2] for array in stored(PLACES["train"][0]))
    labels = example["labels"]
    assert example["image"].shape == (7, 13, 3)
    np.testing.assert_allclose(example["image"].mean(), stored(PLACES["train"][0])[0].mean(), atol=3)
    np.testing.assert_array_equal(labels["semseg"][..., 0], classes(ids, [[i] for i in NINETEEN]))
    np.testing.assert_allclose(labels["disparity"][..., 0], (codes - 1.0) / 512, rtol=1e-6)
    np.testing.assert_allclose(labels["depth"][..., 0], BASELINE * FX / ((codes - 1.0) / 256), rtol=1e-6)


def test_training(root, train_a_little):
    _, results = train_a_little(
        cityscapes_fine.build(str(root)), {"semseg": {}, "disparity": {}, "depth": {}}, "train", "val"
    )
    assert 0 <= results["semseg/mIoU"] <= 1 and "semseg/IoU_traffic light" in results


def test_test_has_no_classes(root):
    dataset = cityscapes_fine.build(str(root))
    assert set(dataset.split("test", ["depth"]).load(0)["labels"]) == {"depth"}
    with pytest.raises(UserError, match="classes of test are secret"):
        dataset.split("test", ["depth", "semseg"])


def test_what_is_missing_is_named(root):
    dataset = cityscapes_fine.build(str(root))
    with pytest.raises(UserError, match="no split 'extra': choose one of train, val, test"):
        dataset.split("extra", [])
    with pytest.raises(UserError, match="num_classes is 34: choose 19 or 7"):
        cityscapes_fine.build(str(root), num_classes=34)
    for path in [*root.glob("disparity/train/*/*"), *root.glob("camera/val/*/*")]:
        path.unlink()
    assert dataset.split("train", ["semseg"]).load(0)["labels"]["semseg"].any()
    with pytest.raises(
        UserError, match="aachen_000001_000019_disparity.png; .*bochum_000000_000313_disparity.png"
    ):
        dataset.split("train", ["disparity"])
    assert len(dataset.split("val", ["disparity"])) == 1
    with pytest.raises(UserError, match="no file .*frankfurt_000000_000294_camera.json"):
        dataset.split("val", ["depth"])
    with pytest.raises(UserError, match="no .*nowhere/leftImg8bit/val/.*unpack leftImg8bit_trainvaltest.zip"):
        cityscapes_fine.build(str(root / "nowhere")).split("val", [])


def damage(change):
    """What writes `change` of an image's stored arrays over the miniature's."""

    def write(root):
        place = PLACES["val"][0]
        for ending, array in change(*stored(place)).items():
            save(root, "gtFine" if "gtFine" in ending else "disparity", "val", place, ending, array)

    return write


def rewrite(root, text):
    next(root.glob("camera/val/*/*")).write_text(text)


DAMAGE = {
    "id": (
        damage(lambda image, ids, codes: {"_gtFine_labelIds.png": np.where(ids == 5, np.uint8(34), ids)}),
        "semseg",
        "_gtFine_labelIds.png holds 34, but classes are 0 to 33",
    ),
    "colours": (
        damage(lambda image, ids, codes: {"_gtFine_labelIds.png": image}),
        "semseg",
        "labelIds.png holds 14x26x3 values",
    ),
    "bits": (
        damage(lambda image, ids, codes: {"_disparity.png": (codes >> 8).astype(np.uint8)}),
        "depth",
        "_disparity.png has not the 16 bits",
    ),
    "size": (
        damage(lambda image, ids, codes: {"_disparity.png": codes[:-1]}),
        "disparity",
        "_disparity.png holds 13x26x1 values",
    ),
    "camera": (lambda root: rewrite(root, '{"extrinsic": {}}'), "depth", "cannot read .*_camera.json"),
    "baseline": (
        lambda root: rewrite(root, '{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 2000}}'),
        "depth",
        "cannot read .*_camera.json .*is 0",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named(root, case):
    spoil, task, message = DAMAGE[case]
    spoil(root)
    with pytest.raises(UserError, match=message):
        cityscapes_fine.build(str(root)).split("val", [task]).load(0)


def test_truncated_image_is_named(root):
    path = next(root.glob("leftImg8bit/val/*/*"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read .*frankfurt_000000_000294_leftImg8bit.png"):
        cityscapes_fine.build(str(root)).split("val", []).load(0)
