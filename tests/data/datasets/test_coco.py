"""A miniature of COCO, written with json and PIL, and the same as TFDS's own builder prepares it."""

import json
import shutil
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data.datasets import coco, voc2012
from mtl_jax.errors import UserError

# Ids of the categories: those of 80 things and 53 kinds of stuff; the gaps are the release's.
THINGS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
STUFF = [
    *(
        92,
        93,
        95,
        100,
        107,
        109,
        112,
        118,
        119,
        122,
        125,
        128,
        130,
        133,
        138,
        141,
        144,
        145,
        147,
        148,
        149,
        151,
    ),
    *(154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)),
]
AS_VOC = [
    0,
    5,
    2,
    16,
    9,
    44,
    6,
    3,
    17,
    62,
    21,
    67,
    18,
    19,
    4,
    1,
    64,
    20,
    63,
    7,
    72,
]  # VOC's class -> category
SPLITS = {"train": [522418, 391895, 139], "val": [285]}
SIZES = {391895: (40, 57), 139: (43, 36), 522418: (25, 33), 285: (45, 60)}  # height and width


def rectangle(y0, x0, y1, x1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def block(size, y0, x0, y1, x1):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def run_lengths(mask):
    """Of zeros and ones in turn, down the columns."""
    found, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            value = pixel
            found.append(0)
        found[-1] += 1
    return found


def letters(counts):
    """Differences from the last run but one, five bits to a letter, the sixth says that more follow."""
    text = ""
    for k, count in enumerate(counts):
        number = count - counts[k - 2] if k > 2 else count
        while True:
            bits, number = number & 31, number >> 5
            last = number == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


CROWD = block((40, 57), 10, 20, 40, 50)
SOFA = block((25, 33), 3, 3, 20, 30) & ~block((25, 33), 5, 5, 9, 9)
INSTANCES = {  # image -> (id, category, crowd, bbox, segmentation), in the file's order
    391895: [
        (900, 18, 0, [5.0, 4.0, 30.25, 20.13], [rectangle(4, 5, 24, 35)]),  # a dog
        (20, 1, 1, [20, 10, 30, 30], {"size": [40, 57], "counts": run_lengths(CROWD)}),  # people
        (
            30,
            62,
            0,
            [0, 30, 57, 10],
            [rectangle(30, 0, 40, 10), rectangle(30, 47, 40, 57)],
        ),  # a chair, in two
        (40, 90, 0, [50.5, 0.25, 6.49, 3], [rectangle(0, 50, 3, 57)]),  # a toothbrush, which VOC has not
        (50, 3, 0, [10, 10, 0, 5], [rectangle(10, 10, 15, 11)]),  # a car, whose box has no area
    ],
    139: [],
    522418: [(60, 63, 0, [3, 3, 27, 17], {"size": [25, 33], "counts": letters(run_lengths(SOFA))})],
    285: [
        (7, 72, 0, [4.1, 3, 20, 10], [rectangle(3, 4, 13, 24)]),  # a television
        (8, 23, 0, [0, 10, 60, 10.7], [rectangle(10, 0, 20, 60)]),  # a bear
    ],
}
SEGMENTS = {  # image -> (number, category, crowd, y0, x0, y1, x1); elsewhere the PNG is black
    391895: [
        (70_000, 18, 0, 0, 0, 20, 57),
        (3, 1, 1, 20, 0, 30, 40),
        (16_777_215, 200, 0, 20, 40, 30, 57),
        (65_536, 90, 0, 30, 0, 35, 57),
        (256, 184, 0, 35, 0, 38, 57),
    ],
    139: [(300, 92, 0, 0, 0, 43, 36)],
    522418: [],
    285: [(9, 62, 0, 2, 2, 9, 50)],
}
STRANGE = {285: (12_345, 20, 20, 30, 30)}  # a number in the PNG that the JSON does not know


def categories(ids):
    names = dict(zip([*THINGS, *STUFF], coco.THINGS + coco.STUFF, strict=True))
    return [{"supercategory": "any", "isthing": int(i < 91), "id": i, "name": names[i]} for i in ids]


def listing(split, annotations, ids):
    images = [
        {"license": 3, "file_name": f"{i:012}.jpg", "height": SIZES[i][0], "width": SIZES[i][1], "id": i}
        for i in SPLITS[split]
    ]
    start = {"info": {"year": 2017}, "licenses": [{"url": "http://", "id": 3, "name": "CC"}]}
    return {**start, "images": images, "annotations": annotations, "categories": categories(ids)}


def instances(split):
    """Those of different images stand mixed up, as in the release."""
    entries = [
        {
            "segmentation": mask,
            "area": 9.5,
            "iscrowd": crowd,
            "image_id": i,
            "bbox": box,
            "category_id": c,
            "id": n,
        }
        for place in range(5)
        for i in SPLITS[split]
        for n, c, crowd, box, mask in INSTANCES[i][place : place + 1]
    ]
    return listing(split, entries, THINGS)


def panoptic(split):
    entries = [
        {
            "segments_info": [
                {"id": n, "category_id": c, "iscrowd": crowd, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 7}
                for n, c, crowd, y0, x0, y1, x1 in SEGMENTS[i]
            ],
            "file_name": f"{i:012}.png",
            "image_id": i,
        }
        for i in sorted(SPLITS[split])
    ]
    return listing(split, entries, [*THINGS, *STUFF])


def write_segments(path, i):
    numbers = np.zeros(SIZES[i], int)
    for n, *_, y0, x0, y1, x1 in [*SEGMENTS[i], *([STRANGE[i]] if i in STRANGE else [])]:
        numbers[y0:y1, x0:x1] = n
    Image.fromarray(
        np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    ).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, ids in SPLITS.items():
        for folder in (f"{split}2017", f"annotations/panoptic_{split}2017"):
            (root / folder).mkdir()
        for i in ids:
            Image.new("RGB", SIZES[i][::-1], (i % 200, 50, 90)).save(
                root / f"{split}2017/{i:012}.jpg", quality=95
            )
            write_segments(root / f"annotations/panoptic_{split}2017/{i:012}.png", i)
        for kind, content in (("instances", instances(split)), ("panoptic", panoptic(split))):
            (root / f"annotations/{kind}_{split}2017.json").write_text(json.dumps(content))
    return root


def boxes(i):
    """f32[n,6]: rows (ymin, xmin, ymax, xmax, class, hard) of the boxes that have an area."""
    rows = [
        (y, x, y + h, x + w, THINGS.index(category), crowd)
        for _, category, crowd, (x, y, w, h), _ in INSTANCES[i]
        if w * h
    ]
    return np.array(rows, np.float32).reshape(-1, 6)


def semseg(i):
    label = np.full(SIZES[i], 255)
    for _, category, _, y0, x0, y1, x1 in SEGMENTS[i]:
        label[y0:y1, x0:x1] = [*THINGS, *STUFF].index(category)
    return label


def as_voc(i):
    label = np.zeros(SIZES[i], int)
    if i == 391895:  # the last in the file first
        label[30:40, :10] = label[30:40, 47:] = AS_VOC.index(62)
        label[CROWD] = AS_VOC.index(1)
        label[4:24, 5:35] = AS_VOC.index(18)
    elif i == 522418:
        label[SOFA] = AS_VOC.index(63)
    elif i == 285:
        label[3:13, 4:24] = AS_VOC.index(72)
    return label


def check_image(got, i):
    assert got["image"].dtype == np.uint8 and got["image"].shape == (*SIZES[i], 3)
    np.testing.assert_allclose(got["image"].mean((0, 1)), [i % 200, 50, 90], atol=3)


def test_splits_and_classes(root):
    dataset = coco.build(str(root))
    assert dataset.splits == ("train", "val") and dataset.published == {"train": 118287, "val": 5000}
    train = dataset.split("train", ["detection", "semseg"])
    assert train.ids == ["000000000139", "000000391895", "000000522418"]
    assert train.sizes.tolist() == [[43, 36], [40, 57], [25, 33]] and train.sizes.dtype == np.int32
    for task, count in (("detection", 80), ("semseg", 133)):
        options = dataset.labels[task]
        assert options["num_classes"] == len(options["class_names"]) == count
        assert [options["class_names"][k] for k in (0, 11, 79)] == ["person", "stop sign", "toothbrush"]
    assert options["class_names"][80] == "banner" and options["class_names"][-1] == "rug-merged"
    options = coco.build(str(root), classes="voc").labels["semseg"]
    assert options == {"num_classes": 21, "class_names": voc2012.CLASSES}


@pytest.mark.parametrize("split", SPLITS)
def test_values(root, split):
    part = coco.build(str(root)).split(split, ["detection", "semseg"])
    for index, name in enumerate(part.ids):
        i = int(name)
        got = part.load(index)
        check_image(got, i)
        label = got["labels"]["detection"]
        assert label.dtype == np.float32 and label.shape == (len(boxes(i)), 1, 6)
        np.testing.assert_allclose(label[:, 0], boxes(i), rtol=1e-6)
        label = got["labels"]["semseg"]
        assert label.dtype == np.uint8 and label.shape == (*SIZES[i], 1)
        np.testing.assert_array_equal(label[..., 0], semseg(i))


@pytest.mark.parametrize("split", SPLITS)
def test_classes_of_voc(root, split):
    part = coco.build(str(root), classes="voc", least_labelled=None).split(split, ["semseg", "detection"])
    for index, name in enumerate(part.ids):
        got = part.load(index)
        label = got["labels"]["semseg"]
        assert label.dtype == np.uint8 and label.shape == (*SIZES[int(name)], 1)
        np.testing.assert_array_equal(label[..., 0], as_voc(int(name)))
        np.testing.assert_allclose(got["labels"]["detection"][:, 0], boxes(int(name)), rtol=1e-6)


def test_every_category_that_voc_has(root):
    content = instances("val")
    content["annotations"] = [
        {
            **content["annotations"][0],
            "id": c,
            "category_id": c,
            "segmentation": [rectangle(3, 2 * k, 9, 2 * k + 2)],
        }
        for k, c in enumerate(AS_VOC)
        if c
    ]
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    dataset = coco.build(str(root), classes="voc", least_labelled=0)
    label = dataset.split("val", ["semseg"]).load(0)["labels"]["semseg"]
    assert label[5, ::2, 0].tolist() == [*range(21), *[0] * 9]


@pytest.mark.parametrize(
    ("least", "ids"), [(None, [139, 391895, 522418]), (0, [391895, 522418]), (1000, [391895])]
)
def test_images_with_little_to_find_are_left_out(root, least, ids):
    dataset = coco.build(str(root), classes="voc", least_labelled=least)
    for tasks in (["semseg"], ["detection"], []):
        part = dataset.split("train", tasks)
        assert part.ids == [f"{i:012}" for i in ids]
        check_image(part.load(len(ids) - 1), ids[-1])
    labelled = np.count_nonzero(as_voc(522418))
    kept = [coco.build(str(root), "voc", labelled - k).split("train", []).ids for k in (0, 1)]
    assert [len(names) for names in kept] == [1, 2]
    assert coco.build(str(root), classes="voc").split("train", []).ids == ["000000391895"]


def test_objects_keep_the_order_of_the_file(root):
    content = instances("train")
    classes = np.random.default_rng(0).integers(0, 80, 60)
    content["annotations"] = [
        {"id": k, "image_id": (139, 391895)[k % 2], "category_id": THINGS[c], "bbox": [1, 2, 3, 4]}
        for k, c in enumerate(classes)
    ]
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))
    part = coco.build(str(root)).split("train", ["detection"])
    for index in range(2):
        label = part.load(index)["labels"]["detection"]
        np.testing.assert_array_equal(label[:, 0, 4], classes[index::2])


def test_boxes_are_cut_at_the_borders(root):
    content = instances("val")
    first, second = content["annotations"]
    content["annotations"] = [{**first, "bbox": [-2.5, 40, 80, 10]}, {**second, "bbox": [60, 3, 5, 5]}]
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    label = coco.build(str(root)).split("val", ["detection"]).load(0)["labels"]["detection"]
    assert label[:, 0].tolist() == [[40, 0, 45, 60, 62, 0]]


def test_other_folders(root):
    (root / "images").mkdir()
    for path in (root / "train2017", root / "val2017"):
        path.rename(root / "images" / path.name)
    for path in root.glob("annotations/panoptic_*2017"):
        path.rename(root / path.name)
    got = coco.build(str(root)).split("val", ["semseg"]).load(0)
    check_image(got, 285)
    np.testing.assert_array_equal(got["labels"]["semseg"][..., 0], semseg(285))


def prepare(root, data_dir, monkeypatch):
    """Has TFDS's own builder read the release where it lies, in place of what it would download."""
    lying = types.SimpleNamespace(
        download_and_extract=lambda urls: dict.fromkeys(urls, str(root)),
        extract=lambda archive: str(root / "annotations"),
    )
    generators = tfds.object_detection.Coco._split_generators
    monkeypatch.setattr(
        tfds.object_detection.Coco, "_split_generators", lambda self, manager: generators(self, lying)
    )
    shutil.copytree(root / "val2017", root / "test2017")
    (root / "annotations/image_info_test2017.json").write_text(json.dumps(listing("val", [], THINGS)))
    for config in ("2017", "2017_panoptic"):
        tfds.builder(f"coco/{config}", data_dir=str(data_dir)).download_and_prepare()


def test_tfds_gives_the_same(root, tmp_path, monkeypatch):
    data_dir = tmp_path / "tfds"
    prepare(root, data_dir, monkeypatch)
    dataset = coco.build(str(data_dir))
    for split, ids in SPLITS.items():
        part = dataset.split(split, ["semseg", "detection"])
        assert part.ids == [f"{i:012}" for i in sorted(ids)]
        np.testing.assert_array_equal(part.sizes, [SIZES[i] for i in sorted(ids)])
        there = coco.build(str(root)).split(split, ["detection", "semseg"])
        for index, i in enumerate(sorted(ids)):
            got, expected = part.load(index), there.load(index)["labels"]
            check_image(got, i)
            np.testing.assert_array_equal(got["labels"]["semseg"], expected["semseg"])
            order = np.argsort([n for n, _, _, (_, _, w, h), _ in INSTANCES[i] if w * h])  # TFDS sorts by id
            assert got["labels"]["detection"].dtype == np.float32
            np.testing.assert_array_equal(got["labels"]["detection"], expected["detection"][order])
    shutil.rmtree(data_dir / "coco/2017")
    for tasks in (["semseg"], []):
        check_image(dataset.split("val", tasks).load(0), 285)
    with pytest.raises(UserError, match="no file .*tfds/annotations/instances_val2017.json"):
        dataset.split("val", ["detection"])
    with pytest.raises(UserError, match="no file .*tfds/annotations/instances_val2017.json"):
        coco.build(str(data_dir), classes="voc").split("val", ["semseg"])


def test_wrong_options_splits_and_missing_files_are_named(root):
    dataset = coco.build(str(root))
    with pytest.raises(UserError, match="classes is 'stuff': choose panoptic or voc"):
        coco.build(str(root), classes="stuff")
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    (root / "annotations/panoptic_train2017/000000000139.png").unlink()
    assert len(dataset.split("train", ["detection"])) == len(dataset.split("train", [])) == 3
    with pytest.raises(UserError, match=r"no file .*annotations/panoptic_train2017/000000000139\.png or"):
        dataset.split("train", ["semseg"])
    (root / "annotations/instances_train2017.json").unlink()
    check_image(dataset.split("train", []).load(0), 139)
    (root / "train2017/000000391895.jpg").unlink()
    with pytest.raises(UserError, match=r"no file .*train2017/000000391895\.jpg or .*images/train2017"):
        dataset.split("train", [])
    with pytest.raises(UserError, match="no file .*annotations/instances_train2017.json"):
        dataset.split("train", ["detection"])


def test_files_about_different_images(root):
    content = panoptic("train")
    content["images"], content["annotations"] = content["images"][1:], content["annotations"][:-1]
    (root / "annotations/panoptic_train2017.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="instances_train2017.json and .*panoptic_train2017.json are not about"
    ):
        coco.build(str(root)).split("train", ["detection", "semseg"])


def first(content, **values):
    """The file with these values in its first annotation; those that are None are taken out."""
    entry = {**content["annotations"][0], **values}
    entry = {key: value for key, value in entry.items() if value is not None}
    return json.dumps({**content, "annotations": [entry, *content["annotations"][1:]]})


def without(content, key):
    return json.dumps({name: value for name, value in content.items() if name != key})


INSTANCES_DAMAGE = {
    "truncated": (
        lambda c: json.dumps(c)[:-300] + '"categories": []',
        "cannot read .*instances_val2017.json",
    ),
    "cut": (lambda c: json.dumps(c)[:500], "instances_val2017.json has no categories"),
    "empty": (lambda c: "", "cannot read .*instances_val2017.json"),
    "no annotations": (
        lambda c: without(c, "annotations"),
        "instances_val2017.json has no list 'annotations'",
    ),
    "no categories": (lambda c: without(c, "categories"), "instances_val2017.json has no categories"),
    "other categories": (
        lambda c: json.dumps({**c, "categories": c["categories"][1:]}),
        "instances_val2017.json has other categories than the 80",
    ),
    "no images": (lambda c: json.dumps({**c, "images": []}), "instances_val2017.json lists no image"),
    "size": (
        lambda c: json.dumps({**c, "images": [{"id": 285, "file_name": "000000000285.jpg", "width": 60}]}),
        "entry 285 of images has no 'height'",
    ),
    "twice": (
        lambda c: json.dumps({**c, "images": c["images"] * 2}),
        "instances_val2017.json lists image 285 twice",
    ),
    "image": (
        lambda c: first(c, image_id=77),
        "instances_val2017.json has annotations of image 77, which it",
    ),
    "category": (lambda c: first(c, category_id=12), "instances_val2017.json: annotation 7 .*KeyError: 12"),
    "box": (lambda c: first(c, bbox=[1, 2, 3]), "annotation 7 is damaged .*not enough values"),
    "letters": (lambda c: first(c, bbox=[1, 2, 3, "4"]), "instances_val2017.json: annotation 7 is damaged"),
    "no box": (lambda c: first(c, bbox=None), "entry 7 of annotations has no 'bbox'"),
    "no mask": (lambda c: first(c, segmentation=None), "annotation 7 is damaged .*segmentation"),
    "no polygon": (lambda c: first(c, segmentation=[]), "annotation 7 is damaged"),
    "two points": (lambda c: first(c, segmentation=[[1, 1, 2, 2]]), "annotation 7 is damaged"),
    "mask's size": (
        lambda c: first(c, segmentation={"size": [60, 45], "counts": [2700]}),
        r"annotation 7 is damaged .*size \[60, 45\] instead of \[45, 60\]",
    ),
    "run lengths": (
        lambda c: first(c, segmentation={"size": [45, 60], "counts": [9, 9]}),
        "annotation 7 is damaged .*18 pixels instead of 2700",
    ),
    "letters of mask": (
        lambda c: first(c, segmentation={"size": [45, 60], "counts": "zzzzzz"}),
        "annotation 7 is damaged .*has not 2700 pixels",
    ),
}


@pytest.mark.parametrize("case", INSTANCES_DAMAGE)
def test_damaged_instances_are_named(root, case):
    spoil, message = INSTANCES_DAMAGE[case]
    (root / "annotations/instances_val2017.json").write_text(spoil(instances("val")))
    with pytest.raises(UserError, match=message):
        coco.build(str(root), classes="voc").split("val", ["semseg", "detection"])


PANOPTIC_DAMAGE = {
    "truncated": (lambda c: json.dumps(c)[:-1], "cannot read .*panoptic_val2017.json"),
    "image": (lambda c: first(c, image_id=77), "panoptic_val2017.json has annotations of image 77, which it"),
    "none": (
        lambda c: json.dumps({**c, "annotations": []}),
        "panoptic_val2017.json has no segments of image 285",
    ),
    "no name": (lambda c: first(c, file_name=None), "entry 285 of annotations has no 'file_name'"),
    "category": (
        lambda c: first(c, segments_info=[{"id": 9, "category_id": 12}]),
        "panoptic_val2017.json: segment 9 is damaged .*KeyError: 12",
    ),
    "no category": (
        lambda c: first(c, segments_info=[{"id": 9}]),
        "panoptic_val2017.json: image 285 is damaged",
    ),
    "other categories": (
        lambda c: json.dumps({**c, "categories": categories(THINGS)}),
        "panoptic_val2017.json has other categories than the 133",
    ),
}


@pytest.mark.parametrize("case", PANOPTIC_DAMAGE)
def test_damaged_segments_are_named(root, case):
    spoil, message = PANOPTIC_DAMAGE[case]
    (root / "annotations/panoptic_val2017.json").write_text(spoil(panoptic("val")))
    with pytest.raises(UserError, match=message):
        coco.build(str(root)).split("val", ["semseg"])


def test_damaged_pictures_are_named(root):
    part = coco.build(str(root)).split("val", ["semseg"])
    path = root / "annotations/panoptic_val2017/000000000285.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(UserError, match="cannot read .*panoptic_val2017/000000000285.png"):
        part.load(0)
    Image.new("L", (60, 45)).save(path)
    with pytest.raises(UserError, match="000000000285.png holds 45x60x1 values, .*45x60x3"):
        part.load(0)
    Image.new("RGB", (61, 45)).save(root / "val2017/000000000285.jpg")
    with pytest.raises(
        UserError, match="000000000285.jpg is 45x61 .*panoptic_val2017.json is about one of 45x60"
    ):
        part.load(0)
    (root / "val2017/000000000285.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read .*val2017/000000000285.jpg"):
        part.load(0)


@pytest.mark.parametrize(("classes", "tasks"), [("panoptic", ["semseg", "detection"]), ("voc", ["semseg"])])
def test_training_and_evaluation(root, train_a_little, classes, tasks):
    dataset = coco.build(str(root), classes=classes, least_labelled=None)
    batch, results = train_a_little(dataset, {task: {} for task in tasks}, "train", "val", canvas=(48, 64))
    assert 0 <= results["semseg/mIoU"] <= 1 and 0 <= results.get("detection/AP50", 0) <= 1
    known = np.asarray(batch["labels"]["semseg"])[np.asarray(batch["valid"]["semseg"]) > 0]
    assert set(known) <= set(range(dataset.labels["semseg"]["num_classes"]))
