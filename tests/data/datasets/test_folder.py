"""Miniature folders written with NumPy and PIL, read back by value."""

import os
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import folder
from mtl_jax.errors import UserError

SIZES = {"a": (6, 8), "b": (5, 7), "sub/c.d": (4, 9)}
ROOMS = {"b": "1", "a": "office", "sub/c.d": "none"}
LABELS = {
    "semseg": {"folder": "seg", "num_classes": 3, "class_names": "classes.txt", "invalid": [3, 200]},
    "depth": {"folder": "depth", "scale": 0.001},
    "normals": {"folder": "normals", "axes": ["r", "-g", "b"], "invalid": 0},
    "shading": {"folder": "shading", "kind": "regression"},
    "saliency": {"folder": "mask", "scale": 1 / 255},
    "edges": {"kind": "saliency", "borders_of": "semseg"},
    "rooms": {
        "kind": "classification",
        "table": "rooms.csv",
        "class_names": ["kitchen", "hall", "office"],
        "invalid": "none",
    },
}


def stored(name):
    """What the files of one example hold."""
    rng = np.random.default_rng(len(name))
    size = SIZES[name]
    shading = rng.random(size).astype(np.float32)
    shading[0, 0] = np.nan
    return {
        "images": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        "seg": rng.choice([0, 1, 2, 3, 200], size).astype(np.uint8),
        "depth": rng.integers(0, 9000, size).astype(np.uint16),
        "normals": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        "shading": shading,
        "mask": rng.choice([0, 255], size).astype(np.uint8),
    }


def write(root, name, kind, array):
    path = root / kind / f"{name}{'.npy' if kind == 'shading' else '.png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for name in SIZES:
        for kind, array in stored(name).items():
            write(tmp_path, name, kind, array)
    (tmp_path / "train.txt").write_text("b\na\n\n")
    (tmp_path / "test.txt").write_text("sub/c.d\n")
    (tmp_path / "classes.txt").write_text("0 wall\n1 3d printer\n2 floor\n3 ignored\n")
    lines = ["name,class", *(f"{name}, {room}" for name, room in ROOMS.items()), "elsewhere,garden"]
    (tmp_path / "rooms.csv").write_text("\n".join(lines))
    return tmp_path


def test_splits_names_and_sizes(root):
    dataset = folder.build(str(root), LABELS)
    assert dataset.splits == ("train", "test")
    assert dataset.labels["semseg"] == {"num_classes": 3, "class_names": ["wall", "3d printer", "floor"]}
    assert dataset.labels["shading"] == {"kind": "regression"}
    train = dataset.split("train", ["depth"])
    assert list(train.ids) == ["b", "a"] and train.sizes.tolist() == [[5, 7], [6, 8]]
    assert set(train.load(0)["labels"]) == {"depth"}
    assert folder.build(str(root), LABELS, splits={"all": "test.txt"}).split("all", []).ids == ["sub/c.d"]


@pytest.mark.parametrize(
    ("split", "index", "name"), [("train", 0, "b"), ("train", 1, "a"), ("test", 0, "sub/c.d")]
)
def test_values(root, split, index, name):
    got = folder.build(str(root), LABELS).split(split, list(LABELS)).load(index)
    files, labels = stored(name), got["labels"]
    np.testing.assert_array_equal(got["image"], files["images"])

    classes = np.where(np.isin(files["seg"], [3, 200]), 255, files["seg"])
    np.testing.assert_array_equal(labels["semseg"][..., 0], classes)
    assert labels["semseg"].dtype == np.uint8
    np.testing.assert_allclose(labels["depth"][..., 0], files["depth"] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(labels["shading"][..., 0], files["shading"])
    np.testing.assert_array_equal(labels["saliency"][..., 0], files["mask"] == 255)

    vector = files["normals"] * (2 / 255) - 1
    vector = vector * [1, -1, 1] / np.linalg.norm(vector, axis=-1, keepdims=True)
    short = np.linalg.norm(files["normals"] * (2 / 255) - 1, axis=-1) < 0.5
    np.testing.assert_allclose(labels["normals"], np.where(short[..., None], 0, vector), atol=1e-3)

    np.testing.assert_array_equal(labels["edges"], folder.borders(labels["semseg"], 255))
    assert labels["rooms"].shape == (1, 1, 1) and labels["rooms"].dtype == np.int32
    assert labels["rooms"].item() == {"b": 1, "a": 2, "sub/c.d": -1}[name]  # -1 is unknown


def test_borders_of_classes():
    """Against the rule, pixel by pixel."""
    classes = np.random.default_rng(0).integers(0, 3, (9, 11)).repeat(2, axis=0).repeat(2, axis=1)
    padded = np.pad(classes, ((0, 1), (0, 1)), "edge")
    expected = np.zeros_like(classes)
    for y, x in np.ndindex(classes.shape):
        expected[y, x] = len(set(padded[y : y + 2, x : x + 2].ravel())) > 1
    np.testing.assert_array_equal(folder.borders(classes[..., None], 255)[..., 0], expected)


def test_borders_run_along_narrow_seams_and_are_unknown_at_wide_gaps():
    row = np.array([0] * 10 + [255] * 2 + [1] * 10 + [255] * 20 + [2] * 10)
    got = folder.borders(np.tile(row, (6, 1))[..., None], 255)[..., 0]
    assert (got == got[0]).all()
    assert np.flatnonzero(got[0] == 1).tolist() == [10]  # between the two pixels of the seam
    assert np.flatnonzero(got[0] == 255).tolist() == list(range(24, 39))


def test_eight_and_sixteen_bits_palettes_masks_and_black_normals(root):
    eight = np.array([[0, 51, 255]], np.uint8)
    write(root, "x", "depth", eight)
    write(root, "x", "images", np.zeros((1, 3, 3), np.uint8))
    write(root, "x", "normals", np.array([[[0, 0, 0], [127, 127, 127], [255, 128, 128]]], np.uint8))
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(root / "seg" / "x.png")
    Image.fromarray(np.array([[True, False, True]])).save(root / "mask" / "x.png")
    (root / "train.txt").write_text("x")
    labels = {**LABELS, "depth": {"folder": "depth", "scale": 10 / 255}, "saliency": {"folder": "mask"}}
    got = folder.build(str(root), labels).split("train", ["semseg", "depth", "normals", "saliency"]).load(0)
    got = got["labels"]
    np.testing.assert_allclose(got["depth"].ravel(), [0, 2, 10], rtol=1e-3)
    assert got["depth"].dtype == np.float16
    np.testing.assert_array_equal(got["semseg"].ravel(), [0, 1, 2])
    np.testing.assert_array_equal(got["saliency"].ravel(), [1, 0, 1])
    np.testing.assert_allclose(got["normals"][0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]], atol=0.01)


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [(np.uint8(77), 77), (np.uint16(77 * 257), 77), (np.uint8([1, 2, 3, 0]), 255), (np.uint8([9, 0]), 255)],
)
def test_an_image_may_be_grey_deep_or_transparent(root, pixel, expected):
    Image.fromarray(np.broadcast_to(pixel, (6, 8, *pixel.shape)).copy()).save(root / "images" / "a.png")
    image = folder.build(str(root), LABELS).split("train", []).load(1)["image"]
    np.testing.assert_array_equal(image, np.full((6, 8, 3), expected))


def test_two_files_of_a_name_in_use_are_named(root):
    Image.fromarray(stored("a")["images"]).save(root / "images" / "a.JPG")
    np.save(root / "depth" / "sub" / "c.d.npy", stored("sub/c.d")["depth"])
    dataset = folder.build(str(root), LABELS)
    with pytest.raises(UserError, match=r"images/a\.JPG and .*images/a\.png share a name"):
        dataset.split("train", [])
    assert dataset.split("test", ["semseg"]).ids == ["sub/c.d"]
    with pytest.raises(UserError, match=r"depth/sub/c\.d\.npy and .*depth/sub/c\.d\.png share a name"):
        dataset.split("test", ["depth"])


def damage(root, what):
    if what == "label":
        path = root / "depth" / "a.png"
    else:
        path = root / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:60])


CONTENT = {
    "truncated label": (lambda r: damage(r, "label"), "depth", "cannot read .*depth/a.png"),
    "truncated image": (lambda r: damage(r, "image"), "depth", "cannot read .*images/a.png"),
    "other size": (
        lambda r: write(r, "a", "depth", np.ones((8, 6), np.uint16)),
        "depth",
        r"depth/a.png is 8x6 .*images/a.png is 6x8",
    ),
    "class": (
        lambda r: write(r, "a", "seg", np.full((6, 8), 7, np.uint8)),
        "strict",
        "seg/a.png holds 7, but task 'strict' has values 0 to 6",
    ),
    "largest code of 8 bits": (
        lambda r: write(r, "a", "seg", np.full((6, 8), 255, np.uint8)),
        "strict",
        "seg/a.png holds 255, but task 'strict' has values 0 to 6",
    ),
    "largest code of 16 bits": (
        lambda r: write(r, "a", "seg", np.full((6, 8), 65535, np.uint16)),
        "strict",
        "seg/a.png holds 65535, but task 'strict' has values 0 to 6",
    ),
    "channels": (
        lambda r: write(r, "a", "seg", np.zeros((6, 8, 3), np.uint8)),
        "semseg",
        "seg/a.png has 3 channels",
    ),
    "bit depth": (
        lambda r: write(r, "a", "depth", np.ones((6, 8), np.uint8)),
        "depth",
        "depth/a.png has not the bit depth of .*depth/b.png",
    ),
    "transparency": (
        lambda r: write(r, "a", "seg", np.zeros((6, 8, 4), np.uint8)),
        "semseg",
        "seg/a.png has 4 channels, but task 'semseg' needs 1: .* transparency is one more",
    ),
    "grey normals": (
        lambda r: write(r, "a", "normals", np.zeros((6, 8), np.uint8)),
        "normals",
        "normals/a.png has 1 channels, but task 'normals' needs 3",
    ),
    "infinite": (
        lambda r: write(r, "a", "shading", np.full((6, 8), np.inf)),
        "shading",
        "shading/a.npy holds infinite numbers: store NaN",
    ),
    "long vectors": (
        lambda r: (
            [(r / f"normals/{n}.png").unlink() for n in "ab"]
            + [np.save(r / f"normals/{n}.npy", np.full((*SIZES[n], 3), 2.0)) for n in "ab"]
        ),
        "normals",
        "normals/b.npy holds vectors that are longer than 1",
    ),
    "no scale": (
        lambda r: write(r, "a", "depth", np.full((6, 8), 5000, np.uint16)),
        "bare",
        "depth/b.png holds whole numbers: give `scale`, the worth of 1 for task 'bare'",
    ),
    "mask of 0 and 255": (
        lambda r: write(r, "a", "mask", np.full((6, 8), 254, np.uint8)),
        "unscaled",
        "mask/.*.png holds 25[45], but task 'unscaled' has values 0 to 1.*`scale`",
    ),
}


@pytest.mark.parametrize("case", CONTENT)
def test_bad_contents_are_named(root, case):
    spoil, task, message = CONTENT[case]
    spoil(root)
    strict = {"folder": "seg", "kind": "semseg", "num_classes": 7, "invalid": 200}
    bare = {"folder": "depth", "kind": "depth"}
    labels = {**LABELS, "strict": strict, "bare": bare, "unscaled": {"folder": "mask", "kind": "saliency"}}
    with pytest.raises(UserError, match=message):
        folder.build(str(root), labels).split("train", [task]).load(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train.txt").unlink(), "there is no .*train.txt: write the split's images into it"),
        (lambda r: (r / "train.txt").write_text("a.png\nb.png\n"), "the name a.png: write .* without ending"),
        (lambda r: (r / "train.txt").write_text("\n"), "train.txt is empty"),
        (lambda r: (r / "train.txt").write_text("a\nb\na\n"), "train.txt lists 'a' 2 times"),
        (lambda r: (r / "train.txt").write_text("a\nz\ny\n"), r"no .*images/z with ending .jpg.*\(2 files"),
        (lambda r: (r / "depth" / "a.png").unlink(), "no .*depth/a with ending .png, .npy"),
        (
            lambda r: (r / "images").rename(r / "photos"),
            "no folder .*images: put the files there, or name it",
        ),
        (lambda r: (r / "images/a.png").rename(r / "images/a.tga"), "no .*images/a with ending .*: add"),
    ],
)
def test_missing_and_unreadable_files_are_named_at_once(root, spoil, message):
    spoil(root)
    with pytest.raises(UserError, match=message):
        folder.build(str(root), LABELS).split("train", ["depth"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"depth": {"scale": 1.0}}, "'depth' must give one of `folder`, `borders_of` and `table`"),
        ({"depth": {"folder": "depth", "table": "rooms.csv"}}, "'depth' must give one of `folder`"),
        ({"depth": {"table": "rooms.csv"}}, "'depth': only a task with one label per image"),
        (
            {"rooms": {"kind": "classification", "folder": "seg", "num_classes": 3}},
            "'rooms': only a task with one label per image, and any such, has a `table`",
        ),
        ({"edges": {"kind": "saliency", "borders_of": "semseg"}}, "borders of 'semseg', which has no folder"),
        ({"normals": {"folder": "normals", "axes": "rgg"}}, "axes must be r, g and b"),
        ({"depth": {"folder": "depth", "sclae": 1}}, "tasks.depth has no option 'sclae'"),
        ({"semseg": {"folder": "seg", "class_names": "names.txt"}}, "cannot read .*names.txt"),
    ],
)
def test_wrong_descriptions_are_named(root, labels, message):
    with pytest.raises(UserError, match=message):
        folder.build(str(root), labels)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a,office\n", "rooms.csv gives 'b' 0 classes: write one line `name,class`"),
        ("b,hall\na,office\nb,hall\n", "rooms.csv gives 'b' 2 classes"),
        ("b,hall,2\na,office\n", "rooms.csv gives 'b' 2 classes"),
        (
            "b,garden\na,office\n",
            "has class 'garden' for 'b', but task 'rooms' has the classes kitchen, hall,",
        ),
        ("b,3\na,office\n", "rooms.csv has class '3' for 'b'"),
        ("b,-1\na,office\n", "rooms.csv has class '-1' for 'b'.* name what is unknown in `invalid`"),
    ],
)
def test_wrong_tables_are_named(root, lines, message):
    (root / "rooms.csv").write_text(lines)
    with pytest.raises(UserError, match=message):
        folder.build(str(root), LABELS).split("train", ["rooms"])
    (root / "rooms.csv").unlink()
    with pytest.raises(UserError, match="cannot read .*rooms.csv"):
        folder.build(str(root), LABELS).split("train", ["rooms"])


def test_wrong_folders_are_named(root):
    with pytest.raises(UserError, match="no folder .*nowhere: set data_dir to the one with images and the"):
        folder.build(str(root / "nowhere"), LABELS)


def test_millimetres_in_sixteen_bits_and_endings_in_capitals(root):
    for kind in ("images", "depth"):
        (root / kind / "a.png").rename(root / kind / "a.PNG")
    example = folder.build(str(root), LABELS).split("train", ["depth"]).load(1)
    np.testing.assert_array_equal(example["image"], stored("a")["images"])
    label = example["labels"]["depth"]
    np.testing.assert_allclose(label[..., 0], stored("a")["depth"] / 1000, rtol=1e-6)


def test_a_mask_of_one_bit_needs_no_scale(root):
    bits = stored("a")["mask"] > 0
    write(root, "a", "mask", bits)
    label = folder.build(str(root), LABELS).split("train", ["saliency"]).load(1)["labels"]["saliency"]
    np.testing.assert_array_equal(label[..., 0], bits)  # whatever scale the other files have


def test_labels_that_one_split_lacks_are_named_there_alone(root):
    (root / "depth/sub/c.d.png").unlink()
    dataset = folder.build(str(root), LABELS)
    assert len(dataset.split("train", ["depth"])) == 2 and len(dataset.split("test", ["semseg"])) == 1
    with pytest.raises(UserError, match="no .*depth/sub/c.d with ending .*: add the files or take"):
        dataset.split("test", ["depth"])


def test_an_unknown_split_is_named(root):
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        folder.build(str(root), LABELS).split("val", [])


def test_through_the_pipeline(root):
    dataset = folder.build(str(root), LABELS)
    tasks = task_modules.build({name: {} for name in LABELS}, dataset.labels)
    augment = {"flip": True, "scale": (0.7, 1.4), "rotate": 10.0, "zoom": (), "color": 0.2, "rand_augment": 0}
    data = ConfigDict({"batch_size": 2, "size": (6, 6), "cache": True, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", list(tasks)), tasks, data, seed=0))
    for name, task in tasks.items():
        size = (6, 6) if task.dense else (1, 1)
        assert batch["labels"][name].shape == (2, *size, task.label_channels)
        assert np.isfinite(batch["labels"][name]).all() and batch["valid"][name].any()


def test_training(root, train_a_little):
    tasks = {name: {} for name in ("semseg", "depth", "normals", "rooms")}
    batch, results = train_a_little(folder.build(str(root), LABELS), tasks, "train", "train")
    assert batch["labels"]["rooms"].shape == (4, 1, 1, 1) and 0 <= results["rooms/top1"] <= 1


@pytest.mark.skipif("MTL_JAX_DATA" not in os.environ, reason="MTL_JAX_DATA names no folder of real data")
def test_real_nyu():
    root = Path(os.environ["MTL_JAX_DATA"]) / "NYUv2_320x240"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    labels = {
        "semseg": {"folder": "labels40", "num_classes": 39, "class_names": "classes.txt", "invalid": 39},
        "depth": {"folder": "depth", "scale": 10 / 255},
        "edges": {"kind": "saliency", "borders_of": "semseg"},
    }
    dataset = folder.build(str(root), labels)
    counts = {name: len(dataset.split(name, list(labels))) for name in dataset.splits}
    assert counts == {"train": 795, "test": 654}
    assert dataset.labels["semseg"]["class_names"][-1] == "otherfurniture"
    test = dataset.split("test", list(labels))
    some = [test.load(i)["labels"] for i in range(0, 654, 50)]
    assert 2 < np.median([np.median(x["depth"]) for x in some]) < 3.2
    assert 0.1 < np.mean([(x["semseg"] == 255).mean() for x in some]) < 0.3
    assert 0.01 < np.mean([(x["edges"] == 1).mean() for x in some]) < 0.1
