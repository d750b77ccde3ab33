"""A miniature of the release, written with SciPy and PIL, read back by value."""

import numpy as np
import pytest
import scipy.io
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage
from skimage.morphology import thin

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import pascal_context
from mtl_jax.errors import UserError

TASKS = ["edges", "semseg", "parts", "normals", "saliency"]
SIZES = {"2008_000002": (12, 16), "2008_000003": (10, 14), "2009_000010": (9, 11)}
SKY, WALL, DOG = 360, 440, 113


def stored(name):
    """What the files of one image hold."""
    size = SIZES[name]
    rng = np.random.default_rng(int(name[-2:]))
    classes = rng.choice([0, 12, 15, 20, 255], size).astype(np.uint8)
    context = rng.choice([SKY, WALL, DOG], (3, 4)).astype(np.uint16)
    context = context.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]
    vectors = rng.normal(size=(*size, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return {
        "context": context,
        "semseg": classes,
        "normals": np.rint((vectors + 1) * 127.5).astype(np.uint8),
        "saliency": rng.choice([0, 127, 128, 255], size).astype(np.uint8),
    }


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def struct(**fields):
    """A 1x1 MATLAB struct."""
    value = np.empty((1, 1), [(name, object) for name in fields])
    value[0, 0] = tuple(fields.values())
    return value


def structs(rows):
    """A 1xN MATLAB struct array, or an empty matrix."""
    return np.concatenate([struct(**row) for row in rows], axis=1) if rows else np.zeros((0, 0))


def anno(things):
    """`things`: (class_ind, mask, [(part name, mask)])."""
    objects = [
        {
            "class": "thing",
            "class_ind": np.uint8(index),
            "mask": mask,
            "parts": structs([{"part_name": part, "mask": where} for part, where in parts]),
        }
        for index, mask, parts in things
    ]
    return {"anno": struct(imname="x", objects=structs(objects))}


def things(name):
    size = SIZES[name]
    whole = np.ones(size, np.uint8)
    if name == "2008_000002":  # two people, of whom the second covers some of the first
        one = [("torso", rectangle(size, 2, 2, 10, 10)), ("lhand", rectangle(size, 4, 8, 8, 14))]
        two = [("reye", rectangle(size, 3, 3, 6, 9)), ("llleg", rectangle(size, 7, 0, 9, 5))]
        return [(15, whole, one), (12, whole, [("tail", whole)]), (15, whole, two)]
    return [(12, whole, [("tail", whole)])] if name == "2008_000003" else [(15, whole, [])]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if path.parent.parent.name == "semseg":
        image = Image.fromarray(array, mode="P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def save_mat(path, variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


@pytest.fixture
def release(tmp_path):
    for name, size in SIZES.items():
        files = stored(name)
        gradient = np.add.outer(np.arange(size[0]), np.arange(size[1])).astype(np.uint8)
        save(tmp_path / f"JPEGImages/{name}.jpg", np.stack([gradient] * 3, axis=-1))
        save_mat(tmp_path / f"pascal-context/trainval/{name}.mat", {"LabelMap": files["context"]})
        place = "VOC12" if name == "2008_000002" else "pascal-context"
        save(tmp_path / f"semseg/{place}/{name}.png", files["semseg"])
        save_mat(tmp_path / f"human_parts/{name}.mat", anno(things(name)))
        save(tmp_path / f"normals_distill/{name}.png", files["normals"])
        save(tmp_path / f"sal_distill/{name}.png", files["saliency"])
    lists = tmp_path / "ImageSets/Context"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_000003\n2008_000002\n")
    (lists / "val.txt").write_text("2009_000010\n")
    return tmp_path


def example(release, name, tasks=TASKS):
    dataset = pascal_context.build(str(release))
    split = dataset.split("val" if name == "2009_000010" else "train", tasks)
    return split.load(split.ids.index(name))


def test_splits_and_classes(release):
    dataset = pascal_context.build(str(release))
    assert dataset.splits == ("train", "val") and list(dataset.labels) == TASKS
    train = dataset.split("train", ["semseg"])
    assert train.ids == ["2008_000003", "2008_000002"]
    assert train.sizes.tolist() == [[10, 14], [12, 16]] and train.sizes.dtype == np.int32
    assert set(train.load(0)["labels"]) == {"semseg"}
    assert dataset.split("val", TASKS).ids == ["2009_000010"]
    names = dataset.labels["semseg"]["class_names"]
    assert (
        len(names) == 21 and names[0] == "background" and names[15] == "person" and names[20] == "tvmonitor"
    )


@pytest.mark.parametrize("name", SIZES)
def test_classes_saliency_and_normals(release, name):
    got, files = example(release, name), stored(name)
    labels = got["labels"]
    assert got["image"].shape == (*SIZES[name], 3) and got["image"].dtype == np.uint8
    for label in labels.values():
        assert label.shape[:2] == SIZES[name]
    np.testing.assert_array_equal(labels["semseg"][..., 0], files["semseg"])
    np.testing.assert_array_equal(labels["saliency"][..., 0], files["saliency"] > 127)
    assert labels["semseg"].dtype == labels["saliency"].dtype == np.uint8

    red, green, blue = np.moveaxis(files["normals"] * (2 / 255) - 1, 2, 0)
    expected = np.stack([-red, green, blue], axis=-1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    expected[files["context"] == SKY] = 0
    np.testing.assert_allclose(labels["normals"], expected, atol=1e-3)
    assert (expected != 0).any() and (expected == 0).any()


def test_normals_are_known_where_rooms_have_the_class():
    assert len(set(pascal_context.INDOOR.tolist())) == 170
    # wall, floor, person, tvmonitor; sky, grass, tree, water, road, ground, mountain, building, unknown
    assert np.isin([440, 158, 284, 427], pascal_context.INDOOR).all()
    assert not np.isin([360, 187, 420, 445, 324, 189, 259, 44, 431], pascal_context.INDOOR).any()


def test_parts_are_painted_in_order(release):
    label = example(release, "2008_000002")["labels"]["parts"]
    expected = np.zeros((12, 16), int)
    expected[2:10, 2:10] = 2  # torso
    expected[4:8, 8:14] = 4  # hand
    expected[3:6, 3:9] = 1  # eye
    expected[7:9, 0:5] = 6  # lower leg
    np.testing.assert_array_equal(label[..., 0], expected)
    assert label.dtype == np.uint8


@pytest.mark.parametrize("name", ["2008_000003", "2009_000010"])  # a dog, a person without parts
def test_an_image_without_parts_is_unknown(release, name):
    label = example(release, name)["labels"]["parts"]
    assert label.shape == (*SIZES[name], 1) and label.dtype == np.uint8 and not label.any()
    assert not task_modules.build({"parts": {}}, {"parts": {}})["parts"].known(label).any()


def test_every_part_of_a_person_has_its_group():
    groups = {}
    for part, number in pascal_context.PART_IDS.items():
        groups.setdefault(number, []).append(part)
    assert {number: len(parts) for number, parts in groups.items()} == {1: 10, 2: 2, 3: 2, 4: 4, 5: 2, 6: 4}
    mirrored = {p for p in pascal_context.PART_IDS if p[0] == "l" and "r" + p[1:] in pascal_context.PART_IDS}
    assert len(mirrored) == 9
    for part in mirrored:
        assert pascal_context.PART_IDS["r" + part[1:]] == pascal_context.PART_IDS[part]


def laplacian(ids):
    """4 neighbours, mirrored about the outermost pixels, by the definition."""
    padded = np.pad(ids.astype(int), 1, "reflect")
    result = np.zeros(ids.shape, int)
    for y, x in np.ndindex(ids.shape):
        here = padded[y : y + 3, x : x + 3]
        result[y, x] = here[0, 1] + here[2, 1] + here[1, 0] + here[1, 2] - 4 * here[1, 1]
    return result


def borders(ids):
    """Regions are numbered; a pixel differs from its right, lower or lower right neighbour."""
    regions, count = np.zeros(ids.shape, int), 0
    for value in np.unique(ids):
        numbered, found = ndimage.label(ids == value)
        regions[numbered > 0] = numbered[numbered > 0] + count
        count += found
    padded = np.pad(regions, ((0, 1), (0, 1)), "edge")
    windows = {yx: set(padded[yx[0] : yx[0] + 2, yx[1] : yx[1] + 2].ravel()) for yx in np.ndindex(ids.shape)}
    return np.array([len(window) > 1 for window in windows.values()]).reshape(ids.shape)


@pytest.mark.parametrize("seed", range(4))
def test_edges_by_definition(seed):
    ids = np.random.default_rng(seed).choice([1, 2, 3], (7, 8)).astype(np.uint16)
    ids = ids.repeat(3, axis=0).repeat(2, axis=1) if seed % 2 else ids
    got = pascal_context.laplacian_edges(ids)
    np.testing.assert_array_equal(got[..., 0], thin(laplacian(ids) != 0))
    np.testing.assert_array_equal(pascal_context.region_borders(ids.astype(int))[..., 0], thin(borders(ids)))
    assert got.shape == (*ids.shape, 1) and got.dtype == np.uint8


def test_edges_by_hand():
    ids = np.tile(np.array([7, 7, 7, 7, 9, 9, 9, 9]), (20, 1))
    # The Laplacian marks both sides of the border, and thinning leaves one; the benchmark marks the left.
    assert (pascal_context.laplacian_edges(ids)[2:-2, :, 0].sum(1) == 1).all()
    assert np.flatnonzero(pascal_context.region_borders(ids)[10]).tolist() == [3]
    ramp = np.tile(np.arange(1, 9), (5, 1))  # curved at the mirrored ends alone
    assert (laplacian(ramp)[:, 1:-1] == 0).all()
    assert not pascal_context.laplacian_edges(ramp)[:, 1:-1].any()
    assert pascal_context.region_borders(ramp)[:, 1:-1].any()


def test_the_splits_have_their_edges(release):
    for name, rule in [("2008_000002", laplacian), ("2009_000010", borders)]:
        label = example(release, name, ["edges"])["labels"]["edges"]
        np.testing.assert_array_equal(label[..., 0], thin(rule(stored(name)["context"]) != 0))


def test_labels_of_another_size_are_resized(release):
    name, size = "2008_000002", SIZES["2008_000002"]
    small = np.arange(1, 1 + 5 * 7).reshape(5, 7) % 21  # 12 x 16, shrunk and rounded
    save(release / f"semseg/VOC12/{name}.png", small.astype(np.uint8))
    save(release / f"sal_distill/{name}.png", np.full((24, 32), 200, np.uint8))
    ramp = np.linspace(-0.4, 0.4, 8)
    vectors = np.stack([np.tile(ramp, (6, 1)), np.zeros((6, 8)), np.tile(np.sqrt(1 - ramp**2), (6, 1))], -1)
    save(release / f"normals_distill/{name}.png", np.rint((vectors + 1) * 127.5).astype(np.uint8))
    context = np.full(size, WALL, np.uint16)
    context[:4] = SKY
    save_mat(release / f"pascal-context/trainval/{name}.mat", {"LabelMap": context})

    labels = example(release, name, ["semseg", "saliency", "normals"])["labels"]
    expected = [[small[y * 5 // 12, x * 7 // 16] for x in range(16)] for y in range(12)]
    np.testing.assert_array_equal(labels["semseg"][..., 0], expected)
    assert labels["saliency"].shape == (12, 16, 1) and labels["saliency"].all()

    normals = labels["normals"].astype(np.float64)
    assert normals.shape == (12, 16, 3) and labels["normals"].dtype == np.float16
    assert not normals[:4].any()
    np.testing.assert_allclose(np.linalg.norm(normals[4:], axis=-1), 1, atol=1e-3)
    # A cubic follows the ramp; pixel i of 16 lies at (i + 0.5) / 2 - 0.5 of 8, and red points to the left.
    at = np.interp((np.arange(16) + 0.5) / 2 - 0.5, np.arange(8), ramp)
    np.testing.assert_allclose(normals[8, 4:-4, 0], -at[4:-4], atol=0.01)


def test_only_what_is_asked_for_must_be_there(release):
    for folder in ["human_parts", "normals_distill", "sal_distill", "semseg"]:
        for path in (release / folder).rglob("*.*"):
            path.unlink()
    dataset = pascal_context.build(str(release))
    assert dataset.split("train", ["edges"]).load(0)["labels"]["edges"].any()
    for task, message in {
        "parts": "no file .*human_parts/2008_000003.mat",
        "normals": "no file .*normals_distill/2008_000003.png",
        "saliency": "no file .*sal_distill/2008_000003.png",
        "semseg": "no file .*VOC12/2008_000003.png or .*pascal-context/2008_000003.png",
    }.items():
        with pytest.raises(UserError, match=message):
            dataset.split("train", [task])
    (release / "pascal-context/trainval/2008_000002.mat").unlink()
    with pytest.raises(UserError, match="no file .*trainval/2008_000002.mat"):
        dataset.split("train", ["edges"])


def test_wrong_splits_folders_and_images_are_named(release):
    dataset = pascal_context.build(str(release))
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        dataset.split("test", [])
    with pytest.raises(UserError, match="cannot read .*elsewhere/ImageSets/Context/train.txt"):
        pascal_context.build(str(release / "elsewhere")).split("train", [])
    (release / "JPEGImages/2009_000010.jpg").unlink()
    with pytest.raises(UserError, match="no file .*JPEGImages/2009_000010.jpg"):
        dataset.split("val", [])


def test_labels_of_other_proportions_are_named(release):
    name = "2008_000002"
    for path, task in ((f"semseg/VOC12/{name}.png", "semseg"), (f"sal_distill/{name}.png", "saliency")):
        save(release / path, np.zeros((16, 12), np.uint8))
        with pytest.raises(UserError, match=rf"{path} holds 16x12x1 values, but its image asks for 12x16x1"):
            example(release, name, [task])
    save(release / f"normals_distill/{name}.png", np.zeros((12, 12, 3), np.uint8))
    with pytest.raises(UserError, match=r"trainval/.*\.mat holds 12x16 values, but its image asks for 12x12"):
        example(release, name, ["normals"])
    whole = np.ones((9, 16), np.uint8)
    save_mat(release / f"human_parts/{name}.mat", anno([(15, whole, [("torso", whole)])]))
    with pytest.raises(UserError, match=r"human_parts/.*\.mat holds 9x16x1 values, .* 12x16x1"):
        example(release, name, ["parts"])


DAMAGE = {
    "map without a class": (
        lambda r, n: save_mat(r / f"pascal-context/trainval/{n}.mat", {"LabelMap": np.full(SIZES[n], 460)}),
        "trainval/2008_000002.mat holds 460, but classes are 0 to 459",
    ),
    "map of no numbers": (
        lambda r, n: save_mat(
            r / f"pascal-context/trainval/{n}.mat", {"LabelMap": np.full(SIZES[n], np.nan)}
        ),
        "trainval/2008_000002.mat holds nan, but classes are 0 to 459",
    ),
    "colours for classes": (
        lambda r, n: Image.new("RGB", SIZES[n][::-1]).save(r / f"semseg/VOC12/{n}.png"),
        "VOC12/2008_000002.png has 3 channels",
    ),
    "deep saliency": (
        lambda r, n: save(r / f"sal_distill/{n}.png", np.full(SIZES[n], 65535, np.uint16)),
        "sal_distill/2008_000002.png holds 257, but task 'saliency' has values 0 to 1",
    ),
    "masks of several sizes": (
        lambda r, n: save_mat(
            r / f"human_parts/{n}.mat",
            anno([(15, np.ones((2, 2)), [("torso", np.ones((2, 2))), ("neck", np.ones((2, 3)))])]),
        ),
        "human_parts/2008_000002.mat has masks of several sizes",
    ),
    **{
        f"truncated {place}": (
            lambda r, n, place=place: (r / place.format(n)).write_bytes(
                (r / place.format(n)).read_bytes()[: (r / place.format(n)).stat().st_size * 2 // 3]
            ),
            f"cannot read .*{place.format('2008_000002')}",
        )
        for place in (
            *("JPEGImages/{}.jpg", "pascal-context/trainval/{}.mat", "semseg/VOC12/{}.png"),
            *("human_parts/{}.mat", "normals_distill/{}.png", "sal_distill/{}.png"),
        )
    },
    "damaged map": (
        lambda r, n: (r / f"pascal-context/trainval/{n}.mat").write_bytes(b"no map"),
        "cannot read .*trainval/2008_000002.mat",
    ),
    "other variable": (
        lambda r, n: save_mat(r / f"pascal-context/trainval/{n}.mat", {"Map": np.ones((3, 3))}),
        "trainval/2008_000002.mat has no variable 'LabelMap'",
    ),
    "strange class": (
        lambda r, n: save(r / f"semseg/VOC12/{n}.png", np.full(SIZES[n], 21, np.uint8)),
        "VOC12/2008_000002.png holds 21",
    ),
    "strange part": (
        lambda r, n: save_mat(
            r / f"human_parts/{n}.mat", anno([(15, np.ones((2, 2)), [("tail", np.ones((2, 2)))])])
        ),
        "human_parts/2008_000002.mat has a part 'tail'",
    ),
    "no struct": (
        lambda r, n: save_mat(r / f"human_parts/{n}.mat", {"anno": np.ones((2, 2))}),
        "cannot read .*human_parts/2008_000002.mat",
    ),
    "damaged normals": (
        lambda r, n: (r / f"normals_distill/{n}.png").write_bytes(b"no picture"),
        "cannot read .*normals_distill/2008_000002.png",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named(release, case):
    spoil, message = DAMAGE[case]
    spoil(release, "2008_000002")
    with pytest.raises(UserError, match=message):
        example(release, "2008_000002")


def test_through_the_pipeline(release):
    dataset = pascal_context.build(str(release))
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    augment = {
        "flip": True,
        "scale": (0.75, 1.25),
        "rotate": 20.0,
        "zoom": (),
        "color": 0.0,
        "rand_augment": 0,
    }
    data = ConfigDict({"batch_size": 2, "eval_batch_size": 2, "size": (8, 8), "eval_size": (16, 16)})
    data.update({"cache": False, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    for name, task in tasks.items():
        assert batch["labels"][name].shape == (2, 8, 8, task.label_channels)
        assert np.isfinite(batch["labels"][name]).all()

    (whole,) = pipeline.eval_batches(dataset.split("train", TASKS), tasks, data)
    assert whole["id"].tolist() == [0, 1]
    assert whole["valid"]["parts"].sum((1, 2, 3)).tolist() == [0, 12 * 16]
    context = stored("2008_000002")["context"]
    assert whole["valid"]["normals"][1].sum() == (context != SKY).sum()
    np.testing.assert_array_equal(
        whole["valid"]["semseg"][1, :12, :16, 0], stored("2008_000002")["semseg"] != 255
    )


def test_a_list_names_each_image_once(release):
    (release / "ImageSets/Context/val.txt").write_text("2009_000010\n2009_000010\n")
    with pytest.raises(UserError, match="Context/val.txt lists '2009_000010' 2 times"):
        pascal_context.build(str(release)).split("val", TASKS)


def test_training(release, train_a_little):
    """Of the split val no part is known, so the training images are judged too."""
    data = pascal_context.build(str(release))
    assert data.published == {"train": 4998, "val": 5105}
    train_a_little(data, {name: {} for name in TASKS}, "train", "train")
