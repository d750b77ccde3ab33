"""A miniature of the release, written with NumPy, read back by value."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import cityscapes
from mtl_jax.errors import UserError

TASKS = ["semseg", "disparity"]
SIZE = (16, 32)


def stored(number):
    """Codes of 16 bits, and classes from -1 on for 2, 7 and 19 of them."""
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 32258, SIZE)
    codes[:3], codes[4, 0] = 0, 32257
    return codes, {n: rng.integers(-1, n, SIZE).astype(np.float64) for n in (2, 7, 19)}


@pytest.fixture
def root(tmp_path):
    for split, count in {"train": 3, "val": 2}.items():
        for i in range(count):
            codes, classes = stored(i)
            arrays = {"image": np.full((*SIZE, 3), (i + 1) / 255), "depth": codes[..., None] / 65535}
            arrays |= {f"label_{n}": label for n, label in classes.items()}
            for kind, array in arrays.items():
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / split / kind / f"{i}.npy", array)
    return tmp_path


@pytest.mark.parametrize(("count", "last"), [(2, "foreground"), (7, "vehicle"), (19, "bicycle")])
def test_values(root, count, last):
    dataset = cityscapes.build(str(root), num_classes=count)
    assert dataset.splits == ("train", "val") and list(dataset.labels) == TASKS
    semseg = dataset.labels["semseg"]
    assert semseg["num_classes"] == len(semseg["class_names"]) == count
    assert semseg["class_names"][-1] == last
    train = dataset.split("train", TASKS)
    assert train.ids == ["0", "1", "2"] and train.sizes.tolist() == [[16, 32]] * 3
    example = train.load(2)
    codes, classes = stored(2)
    assert (example["image"] == 3).all() and example["image"].dtype == np.uint8
    expected = np.where(classes[count] < 0, 255, classes[count])
    np.testing.assert_array_equal(example["labels"]["semseg"][..., 0], expected)
    disparity = example["labels"]["disparity"]
    np.testing.assert_array_equal(disparity[..., 0], (codes / 65535).astype(np.float32))
    assert disparity.dtype == np.float32 and disparity.max() == pytest.approx(0.4922, abs=5e-5)


def test_the_task_is_in_the_units_of_the_files(root):
    dataset = cityscapes.build(str(root))
    task = task_modules.build({"disparity": {}}, dataset.labels)["disparity"]
    assert task.unit == "code / 65535"
    picture = task.colorize(np.float32([0.01, 0.1, 0.2])[None, :, None]).astype(int).sum(-1)[0]
    assert (np.diff(picture) > 50).all()


def test_mistakes_are_named(root):
    with pytest.raises(UserError, match="num_classes is 8: choose one of 2, 7, 19"):
        cityscapes.build(str(root), num_classes=8)
    dataset = cityscapes.build(str(root))
    with pytest.raises(UserError, match="cityscapes has no split 'test': choose one of train, val"):
        dataset.split("test", [])
    np.save(root / "val/depth/0.npy", stored(0)[0][..., None])
    with pytest.raises(UserError, match="val/depth/0.npy holds 32257, which cannot be a disparity code"):
        dataset.split("val", ["disparity"]).load(0)
    np.save(root / "val/label_7/0.npy", stored(0)[1][7][:8])
    with pytest.raises(UserError, match="val/label_7/0.npy holds 8x32x1 .* 16x32x1"):
        dataset.split("val", ["semseg"]).load(0)
    np.save(root / "val/label_7/0.npy", np.full(SIZE, 7))
    with pytest.raises(UserError, match="val/label_7/0.npy holds 7, but classes are -1 to 6"):
        dataset.split("val", ["semseg"]).load(0)
    np.save(root / "val/depth/1.npy", np.full((*SIZE, 1), np.inf))
    with pytest.raises(UserError, match="val/depth/1.npy holds inf, which cannot be a disparity code"):
        dataset.split("val", ["disparity"]).load(1)
    np.save(root / "val/image/1.npy", np.full((*SIZE, 3), np.nan))
    with pytest.raises(UserError, match="val/image/1.npy holds an image beyond 0 to 1"):
        dataset.split("val", []).load(1)
    for kind in ("depth", "label_7", "image"):
        path = root / f"train/{kind}/0.npy"
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(UserError, match=f"cannot read {path}"):
            dataset.split("train", TASKS).load(0)
    (root / "train/image/1.npy").unlink()
    with pytest.raises(UserError, match="there is no .*train/image/1.npy"):
        dataset.split("train", [])


def test_through_the_pipeline(root):
    dataset = cityscapes.build(str(root))
    tasks = task_modules.build({name: {} for name in TASKS}, dataset.labels)
    augment = {"flip": True, "scale": (1.5, 1.5), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    data = ConfigDict({"batch_size": 3, "eval_batch_size": 2, "size": SIZE, "eval_size": None})
    data.update({"cache": False, "augment": augment})
    batch = next(pipeline.train_batches(dataset.split("train", TASKS), tasks, data, seed=0))
    for name in TASKS:
        assert batch["labels"][name].shape == (3, *SIZE, 1) and batch["valid"][name].any()
    # Nearer by 3/2: each number is some code times 1.5 / 65535.
    codes = batch["labels"]["disparity"][0] * 65535 / 1.5
    np.testing.assert_allclose(codes, np.rint(codes), atol=0.01)
    assert np.isin(np.rint(codes), [stored(int(batch["id"][0]))[0]]).all()

    (batch,) = pipeline.eval_batches(dataset.split("val", TASKS), tasks, data)
    codes, classes = stored(1)
    np.testing.assert_array_equal(batch["valid"]["disparity"][1, ..., 0], codes > 0)
    np.testing.assert_array_equal(batch["valid"]["semseg"][1, ..., 0], classes[7] >= 0)


def test_training(root, train_a_little):
    dataset = cityscapes.build(str(root), num_classes=19)
    assert dataset.published == {"train": 2975, "val": 500}
    train_a_little(dataset, {name: {} for name in TASKS}, "train", "val")
