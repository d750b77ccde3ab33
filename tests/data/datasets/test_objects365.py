"""Miniatures of both releases, written with json and PIL."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.datasets import objects365
from mtl_jax.errors import UserError

SIZES = {7: (21, 30), 3: (25, 33), 12: (20, 31), 5: (40, 30), 320532: (9, 9), 1118660: (9, 9)}
SPLITS = {1: {"train": [7, 3], "val": [12]}, 2: {"train": [320532, 12, 5, 1118660], "val": [3]}}
OBJECTS = {  # image -> (category, crowd, bbox)
    7: [(301, 0, [4.933288592, 3.874389632, 12.778381344000024, 10.832275392000042]), (301, 0, [1, 1, 5, 5])],
    3: [(1, 1, [0, 0, 33, 25]), (365, 0, [32.5, 2, 0.0001, 3]), (8, 0, [10, 20, 40, 40])],
    12: [(12, 0, [-3, -4, 10, 10]), (12, 0, [-3, -4, 10, 10]), (4, 0, [31, 2, 5, 5]), (9, 0, [3, 3, 0, 0])],
    5: [],
    320532: [(5, 0, [1, 1, 2, 2])],
    1118660: [(5, 0, [1, 1, 2, 2])],
}
EXPECTED = {  # (ymin, xmin, ymax, xmax, category, hard)
    7: [(3.874, 4.933, 14.707, 17.712, 301, 0), (1, 1, 6, 6, 301, 0)],
    3: [(0, 0, 25, 33, 1, 1), (20, 10, 25, 33, 8, 0)],
    12: [(0, 0, 6, 7, 12, 0), (0, 0, 6, 7, 12, 0)],
    5: [],
}


def file_name(release, split, i):
    if release == 1:
        return f"obj365_{split}_{i:012}.jpg"
    version, patch = ("v2", 21) if i == 1118660 else ("v1", 6 if i == 320532 else i)
    return f"images/{version}/patch{patch}/objects365_{version}_{i:08}.jpg"


def listing(release, split):
    """The lists of train and val are not in the same order."""
    categories = [{"id": k, "name": f"Thing {release}.{k} "} for k in range(1, 366)]
    random.Random(split).shuffle(categories)
    images = [
        {"height": SIZES[i][0], "id": i, "license": 5, "width": SIZES[i][1], "file_name": name, "url": ""}
        for i in SPLITS[release][split]
        for name in [file_name(release, split, i)]
    ]
    annotations = [
        {"id": k, "iscrowd": crowd, "isfake": 0, "area": 5.5, "isreflected": 0, "bbox": box}
        | {"image_id": i, "category_id": category}
        for i in SPLITS[release][split]
        for k, (category, crowd, box) in enumerate(OBJECTS[i], start=100 * i)
    ]
    return {"images": images, "annotations": annotations, "licenses": [{}], "categories": categories}


def place(release, split, i, layout):
    name = file_name(release, split, i)
    if layout == "patches":
        return f"{split}/{'/'.join(name.split('/')[-2:])}"
    return name if layout == "below" else f"{split}/{name}"


def write(root, release, layout="stated", beside="annotations"):
    name = {1: "objects365_{}.json", 2: "zhiyuan_objv2_{}.json"}[release]
    for split, ids in SPLITS[release].items():
        path = root / beside.format(split) / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(listing(release, split)))
        for i in ids:
            if i < 100:
                photo = root / place(release, split, i, layout)
                photo.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", SIZES[i][::-1], (i, 90, 200)).save(photo, quality=95)


@pytest.mark.parametrize(
    ("release", "layout", "beside"),
    [
        (1, "stated", "annotations"),
        (1, "stated", "."),
        (2, "stated", "{}"),
        (2, "patches", "annotations"),
        (2, "below", "annotations"),
    ],
)
def test_values(tmp_path, release, layout, beside):
    write(tmp_path, release, layout, beside)
    dataset = objects365.build(str(tmp_path))
    assert dataset.splits == ("train", "val")
    options = dataset.labels["detection"]
    assert options["num_classes"] == 365
    assert options["class_names"] == tuple(f"Thing {release}.{k}" for k in range(1, 366))
    for split, ids in SPLITS[release].items():
        part = dataset.split(split, ["detection"])
        ids = sorted(i for i in ids if i < 100)  # the others are left out
        assert part.ids == [file_name(release, split, i).split("/")[-1][:-4] for i in ids]
        assert part.sizes.tolist() == [list(SIZES[i]) for i in ids]
        for index, i in enumerate(ids):
            got = part.load(index)
            assert got["image"].shape == (*SIZES[i], 3)
            np.testing.assert_allclose(got["image"].mean((0, 1)), [i, 90, 200], atol=3)
            rows = np.array(EXPECTED[i], np.float32).reshape(-1, 1, 6) - np.float32([0, 0, 0, 0, 1, 0])
            label = got["labels"]["detection"]
            assert label.dtype == np.float32 and label.shape == rows.shape
            np.testing.assert_allclose(label, rows, rtol=1e-6)
        assert dataset.split(split, []).load(0)["labels"] == {}
    assert dataset.published["val"] == {1: 30_000, 2: 80_000}[release]


def test_releases_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="holds neither objects365_val.json and zhiyuan_objv2_val.json"):
        objects365.build(str(tmp_path))
    write(tmp_path, 1)
    write(tmp_path, 2)
    with pytest.raises(UserError, match="of both releases: give each a folder of its own"):
        objects365.build(str(tmp_path))


def test_wrong_splits_and_missing_files_are_named(tmp_path):
    write(tmp_path, 2, "patches")
    dataset = objects365.build(str(tmp_path))
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    part = dataset.split("train", ["detection"])
    (tmp_path / "train/patch12/objects365_v1_00000012.jpg").unlink()
    with pytest.raises(
        UserError, match="no file .*train/images/v1/patch12/.*00000012.jpg or .*train/patch12/"
    ):
        part.load(1)
    assert objects365.build(str(tmp_path), skip=[]).split("train", []).ids[-1] == "objects365_v2_01118660"
    with pytest.raises(UserError, match="no file .*00320532.jpg"):
        objects365.build(str(tmp_path), skip=[]).split("train", []).load(2)
    (tmp_path / "train/patch5/objects365_v1_00000005.jpg").unlink()
    with pytest.raises(UserError, match="no file .*patch5/objects365_v1_00000005.jpg"):
        dataset.split("train", [])
    (tmp_path / "annotations/zhiyuan_objv2_val.json").unlink()
    with pytest.raises(UserError, match="no file .*annotations/zhiyuan_objv2_val.json or"):
        objects365.build(str(tmp_path)).split("val", ["detection"])


def test_wrong_content_is_named(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "annotations/objects365_val.json"
    Image.new("RGB", (31, 21)).save(tmp_path / "val/obj365_val_000000000012.jpg")
    with pytest.raises(
        UserError, match="000000000012.jpg is 21x31 .*objects365_val.json is about one of 20x31"
    ):
        objects365.build(str(tmp_path)).split("val", ["detection"]).load(0)
    content = listing(1, "val")
    content["annotations"][1]["category_id"] = 366
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="objects365_val.json: annotation 1201 is damaged .*366"):
        objects365.build(str(tmp_path)).split("val", ["detection"])
    content["categories"][0]["name"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="objects365_train.json has other categories than the 365"):
        objects365.build(str(tmp_path)).split("train", ["detection"])
    content["categories"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="objects365_val.json has 364 categories instead of 365"):
        objects365.build(str(tmp_path))


def test_training_and_evaluation(tmp_path, train_a_little):
    write(tmp_path, 1)
    dataset = objects365.build(str(tmp_path))
    batch, results = train_a_little(dataset, {"detection": {}}, "train", "val", canvas=(32, 48))
    label = np.asarray(batch["labels"]["detection"])
    classes = set(label[label[..., 4] >= 0][:, 4])
    assert 0 <= results["detection/AP50"] <= 1 and classes and classes <= {0, 7, 300}
