"""A miniature of both releases: palette PNGs by PIL, structs by SciPy."""

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import voc2012
from mtl_jax.errors import UserError

VOC = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
SBD = {"train": ["2008_000002", "2007_000033", "2007_000032"], "val": ["2008_000007"]}
SIZES = {"2007_000032": (6, 9), "2008_000002": (9, 6)}  # of the others: 7 x 8


def size(name):
    return SIZES.get(name, (7, 8))


def photo(root, name, red):
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size(name)[::-1], (red, 60, 200)).save(root / f"{name}.jpg")


def classes(name, release):
    """Random classes; VOC's have void pixels."""
    rng = np.random.default_rng([int(name[:4]), int(name[5:]), release == "voc"])
    found = rng.integers(0, 21, size(name)).astype(np.uint8)
    if release == "voc":
        found[0], found[1, :3] = 255, [20, 0, 15]
    return found


def write_voc(root, name):
    photo(root / "JPEGImages", name, 50)
    save_palette(root / "SegmentationClass" / f"{name}.png", classes(name, "voc"))


def save_palette(path, label):
    path.parent.mkdir(exist_ok=True)
    picture = Image.fromarray(label, mode="P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    picture.putpalette(colours.tobytes())
    picture.save(path)


def write_sbd(root, name):
    photo(root / "img", name, 150)
    (root / "cls").mkdir(exist_ok=True)
    edges = np.empty((20, 1), object)
    edges[:, 0] = [scipy.sparse.csc_matrix(size(name), dtype=float)] * 20
    truth = {
        "Boundaries": edges,
        "Segmentation": classes(name, "sbd"),
        "CategoriesPresent": np.array([[1], [15]], np.uint8),
    }
    scipy.io.savemat(root / "cls" / f"{name}.mat", {"GTcls": truth}, do_compression=True)


@pytest.fixture
def roots(tmp_path):
    voc, sbd = tmp_path / "VOCdevkit/VOC2012", tmp_path / "benchmark_RELEASE/dataset"
    for root, lists, lists_in, write in (
        (voc, VOC, "ImageSets/Segmentation", write_voc),
        (sbd, SBD, ".", write_sbd),
    ):
        (root / lists_in).mkdir(parents=True, exist_ok=True)
        for split, names in lists.items():
            (root / lists_in / f"{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                write(root, name)
    return voc, sbd


def test_splits(roots):
    data = voc2012.build(*map(str, roots))
    assert data.splits == ("train", "val", "trainaug")
    assert data.published == {"train": 1464, "val": 1449, "trainaug": 10582}
    assert list(data.split("train", ["semseg"]).ids) == VOC["train"]
    assert list(data.split("val", ["semseg"]).ids) == VOC["val"]
    both = data.split("trainaug", ["semseg"])
    assert sorted(both.ids) == ["2007_000032", "2007_000039", "2008_000002", "2008_000007"]
    assert both.sizes.tolist() == [list(size(name)) for name in both.ids]
    options = data.labels["semseg"]
    assert options["num_classes"] == len(options["class_names"]) == 21
    assert [options["class_names"][i] for i in (0, 1, 15, 20)] == [
        "background",
        "aeroplane",
        "person",
        "tvmonitor",
    ]


def test_values(roots):
    data = voc2012.build(*map(str, roots))
    for split in data.splits:
        part = data.split(split, ["semseg"])
        for index, name in enumerate(part.ids):
            got = part.load(index)
            release = "voc" if name in VOC["train"] + VOC["val"] else "sbd"  # VOC's label wins
            label = got["labels"]["semseg"]
            assert label.dtype == np.uint8 and label.shape == (*size(name), 1)
            np.testing.assert_array_equal(label[..., 0], classes(name, release))
            colour = (50 if release == "voc" else 150, 60, 200)
            np.testing.assert_allclose(got["image"].mean((0, 1)), colour, atol=3)


@pytest.mark.parametrize("listed", voc2012.TRAINAUG_LISTS)
@pytest.mark.parametrize("own", [True, False], ids=["with SegmentationClass", "alone"])
def test_labels_of_sbd_as_pngs(roots, listed, own):
    """Names as in SBD and VOC together; one label has a palette, the others none."""
    voc, _ = roots
    names = [*VOC["train"], "2008_000002", "2008_000007"]
    for name in names:
        photo(voc / "JPEGImages", name, 50)
    aug = voc / "SegmentationClassAug"
    save_palette(aug / "2008_000007.png", classes("2008_000007", "voc"))
    for name in names[:3]:
        Image.fromarray(classes(name, "sbd")).save(aug / f"{name}.png")
    (voc / "ImageSets" / listed).parent.mkdir(exist_ok=True)
    (voc / "ImageSets" / listed).write_text("\n".join(names) + "\n")
    if not own:
        for path in voc.glob("SegmentationClass/*.png"):
            path.unlink()
    split = voc2012.build(str(voc)).split("trainaug", ["semseg"])
    assert split.ids == names
    for index, name in enumerate(names):
        release = "voc" if name == "2008_000007" or (own and name in VOC["train"]) else "sbd"
        label = split.load(index)["labels"]["semseg"]
        np.testing.assert_array_equal(label[..., 0], classes(name, release))
    (aug / "2008_000002.png").unlink()
    with pytest.raises(UserError, match=r"no file .*Class/2008_000002\.png or .*ClassAug/2008_000002\.png"):
        voc2012.build(str(voc)).split("trainaug", ["semseg"])


def test_sbd_wins_over_a_list(roots):
    voc, sbd = roots
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("2007_000032\n")
    assert len(voc2012.build(str(voc), str(sbd)).split("trainaug", [])) == 4
    assert len(voc2012.build(str(voc)).split("trainaug", [])) == 1


def test_void_is_unknown_through_the_pipeline(roots):
    data = voc2012.build(*map(str, roots))
    tasks = task_modules.build({"semseg": {}}, data.labels)
    options = ConfigDict({"eval_batch_size": 2, "eval_size": (9, 9)})
    batches = list(pipeline.eval_batches(data.split("trainaug", ["semseg"]), tasks, options))
    ids = np.concatenate([batch["id"] for batch in batches])
    assert sorted(ids) == [0, 1, 2, 3]
    names = data.split("trainaug", []).ids
    known = np.concatenate([batch["valid"]["semseg"] for batch in batches]).sum((1, 2, 3))
    expected = [np.prod(size(n)) - (size(n)[1] if n in VOC["train"] else 0) for n in names]
    np.testing.assert_array_equal(known, expected)


def test_voc_needs_no_sbd(roots):
    voc, sbd = roots
    data = voc2012.build(str(voc))
    assert len(data.split("train", ["semseg"])) == 2
    with pytest.raises(UserError, match="trainaug needs the option sbd_dir"):
        data.split("trainaug", ["semseg"])


def test_images_alone_need_no_labels(roots):
    voc, sbd = roots
    for path in [*voc.rglob("*.png"), *sbd.rglob("*.mat")]:
        path.unlink()
    data = voc2012.build(str(voc), str(sbd))
    assert data.split("trainaug", []).load(0)["labels"] == {}
    with pytest.raises(UserError, match=r"no file .*SegmentationClass/2007_000033\.png"):
        data.split("val", ["semseg"])
    with pytest.raises(UserError, match=r"no file .*cls/2008_000002\.mat"):
        data.split("trainaug", ["semseg"])


def test_wrong_folders_and_splits(roots, tmp_path):
    with pytest.raises(UserError, match="no split 'test': choose one of train, val, trainaug"):
        voc2012.build(str(roots[0])).split("test", [])
    with pytest.raises(UserError, match=r"cannot read .*nowhere/ImageSets/Segmentation/train\.txt"):
        voc2012.build(str(tmp_path / "nowhere")).split("train", [])
    (roots[0] / "JPEGImages/2007_000033.jpg").unlink()
    with pytest.raises(UserError, match=r"no file .*JPEGImages/2007_000033\.jpg"):
        voc2012.build(str(roots[0])).split("val", [])


def test_damaged_labels(roots):
    voc, sbd = roots
    split = voc2012.build(str(voc), str(sbd)).split("trainaug", ["semseg"])
    mat = sbd / "cls/2008_000007.mat"
    mat.write_bytes(mat.read_bytes()[:150])
    index = list(split.ids).index("2008_000007")
    with pytest.raises(UserError, match=r"cannot read .*2008_000007\.mat"):
        split.load(index)
    scipy.io.savemat(mat, {"GTcls": np.ones((7, 8))})  # no struct
    with pytest.raises(UserError, match=r"cannot read .*2008_000007\.mat"):
        split.load(index)

    val = voc2012.build(str(voc)).split("val", ["semseg"])
    png = voc / "SegmentationClass/2007_000033.png"
    for wrong, message in (
        (np.zeros((7, 9), np.uint8), "holds 7x9x1 values, but its image asks for 7x8x1"),
        (np.zeros((7, 8, 3), np.uint8), "holds 7x8x3"),  # colours where indices should be
        (np.full((7, 8), 21, np.uint8), "holds 21, but classes are 0 to 20 and 255"),
        (np.full((7, 8), 300, np.uint16), "holds 300, but classes are 0 to 20 and 255"),
    ):
        Image.fromarray(wrong).save(png)
        with pytest.raises(UserError, match=rf"2007_000033\.png {message}"):
            val.load(0)
    for path in (png, voc / "JPEGImages/2007_000033.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(UserError, match=f"cannot read {path}"):
            val.load(0)
    (voc / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000033\n")
    with pytest.raises(UserError, match="Segmentation/val.txt lists '2007_000033' 2 times"):
        voc2012.build(str(voc)).split("val", [])


def test_training(roots, train_a_little):
    data = voc2012.build(*map(str, roots))
    _, results = train_a_little(data, {"semseg": {}}, "trainaug", "val", canvas=(16, 16))
    assert 0 <= results["semseg/mIoU"] <= 1
