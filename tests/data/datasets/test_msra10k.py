"""Miniatures of MSRA10K and PASCAL-S, written by PIL."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.datasets import msra10k
from mtl_jax.errors import UserError

CLICKS = np.arange(13)  # of twelve viewers, how many chose the object


def write(root, images, masks, listed, examples):
    for folder in (images, masks, "gt_sets"):
        (root / folder).mkdir(parents=True)
    for name, mask in examples.items():
        Image.new("RGB", mask.shape[::-1], (10, 200, 90)).save(root / images / f"{name}.jpg")
        Image.fromarray(mask).save(root / masks / f"{name}.png")
    (root / "gt_sets" / listed).write_text("\n".join(examples) + "\n")


@pytest.fixture
def roots(tmp_path):
    msra, pascal = tmp_path / "MSRA10K", tmp_path / "PASCAL-S"
    soft = np.array([[0, 127, 128, 255]], np.uint8).repeat(3, axis=0)
    write(msra, "Imgs", "gt", "trainval.txt", {"98265": soft, "100024": soft.T})
    (msra / "Imgs/98265.png").write_bytes(b"the authors' archive keeps the masks beside the images")
    grey = np.round(CLICKS / 12 * 255).astype(np.uint8)[None].repeat(2, axis=0)
    write(pascal, "images", "masks", "all.txt", {"1": grey, "2": grey[:, ::-1], "850": np.zeros_like(grey)})
    return msra, pascal


def test_half_grey_is_salient_to_learn_from(roots):
    data = msra10k.build(str(roots[0]))
    assert data.splits == ("trainval", "pascal_s") and data.labels == {"saliency": {}}
    split = data.split("trainval", ["saliency"])
    assert list(split.ids) == ["98265", "100024"] and split.sizes.tolist() == [[3, 4], [4, 3]]
    one, two = (split.load(i) for i in range(2))
    label = one["labels"]["saliency"]
    assert label.dtype == np.uint8 and label.shape == (3, 4, 1)
    np.testing.assert_array_equal(label[..., 0], [[0, 0, 1, 1]] * 3)
    np.testing.assert_array_equal(two["labels"]["saliency"], label.transpose(1, 0, 2))
    np.testing.assert_allclose(one["image"].mean((0, 1)), [10, 200, 90], atol=3)


def test_three_of_twelve_viewers_make_it_salient_to_judge_by(roots):
    split = msra10k.build(*map(str, roots)).split("pascal_s", ["saliency"])
    assert list(split.ids) == ["1", "2", "850"]
    labels = [split.load(i)["labels"]["saliency"][..., 0] for i in range(3)]
    np.testing.assert_array_equal(labels[0], np.tile(CLICKS >= 3, (2, 1)))
    np.testing.assert_array_equal(labels[1], labels[0][:, ::-1])
    assert not labels[2].any()


def test_masks_of_one_bit(roots):
    mask = np.array([[True, False, True, False]] * 3)
    Image.fromarray(mask).save(roots[0] / "gt/98265.png")
    label = msra10k.build(str(roots[0])).split("trainval", ["saliency"]).load(0)["labels"]["saliency"]
    np.testing.assert_array_equal(label[..., 0], mask)


def test_through_the_pipeline(roots):
    data = msra10k.build(*map(str, roots))
    tasks = task_modules.build({"saliency": {}}, data.labels)
    augment = {"flip": False, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    options = ConfigDict({"batch_size": 2, "size": (5, 5), "cache": True, "augment": augment})
    batch = next(pipeline.train_batches(data.split("trainval", ["saliency"]), tasks, options, seed=0))
    label, valid = batch["labels"]["saliency"], batch["valid"]["saliency"]
    assert label.shape == valid.shape == (2, 5, 5, 1)
    assert valid.sum() == 24 and label.sum() == 12
    options = ConfigDict({"eval_batch_size": 3, "eval_size": None})
    (judged,) = pipeline.eval_batches(data.split("pascal_s", ["saliency"]), tasks, options)
    assert judged["valid"]["saliency"].all()
    assert judged["labels"]["saliency"].sum((1, 2, 3)).tolist() == [20, 20, 0]


def test_missing_parts_are_named(roots, tmp_path):
    msra, pascal = roots
    data = msra10k.build(str(msra))
    with pytest.raises(UserError, match="pascal_s needs the option pascal_s_dir"):
        data.split("pascal_s", ["saliency"])
    with pytest.raises(UserError, match="no split 'train': choose one of trainval, pascal_s"):
        data.split("train", ["saliency"])
    with pytest.raises(UserError, match=r"cannot read .*nowhere/gt_sets/trainval\.txt"):
        msra10k.build(str(tmp_path / "nowhere")).split("trainval", [])
    (pascal / "masks/2.png").unlink()
    data = msra10k.build(str(msra), str(pascal))
    assert data.split("pascal_s", []).load(1)["labels"] == {}
    with pytest.raises(UserError, match=r"no file .*PASCAL-S/masks/2\.png"):
        data.split("pascal_s", ["saliency"])
    (pascal / "images/850.jpg").unlink()
    with pytest.raises(UserError, match=r"no file .*images/850\.jpg"):
        data.split("pascal_s", [])


def test_damaged_masks_are_named(roots):
    split = msra10k.build(str(roots[0])).split("trainval", ["saliency"])
    mask = roots[0] / "gt/98265.png"
    Image.new("L", (5, 3)).save(mask)
    with pytest.raises(UserError, match=r"98265\.png holds 3x5x3 values, but its image asks for 3x4x3"):
        split.load(0)
    Image.new("RGB", (4, 3), (255, 255, 0)).save(mask)
    with pytest.raises(UserError, match=r"98265\.png holds colours, but a mask is grey"):
        split.load(0)
    for path in (mask, roots[0] / "Imgs/98265.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=f"cannot read {path}"):
            split.load(0)
    (roots[0] / "gt_sets/trainval.txt").write_text("98265\n98265\n")
    with pytest.raises(UserError, match="trainval.txt lists '98265' 2 times"):
        msra10k.build(str(roots[0])).split("trainval", [])


def test_masks_of_sixteen_bits_and_of_three_equal_channels(roots):
    data = msra10k.build(str(roots[0]))
    expected = data.split("trainval", ["saliency"]).load(0)["labels"]["saliency"]
    grey = np.asarray(Image.open(roots[0] / "gt/98265.png"))
    for same in (grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 3, axis=-1)):
        Image.fromarray(same).save(roots[0] / "gt/98265.png")
        label = data.split("trainval", ["saliency"]).load(0)["labels"]["saliency"]
        np.testing.assert_array_equal(label, expected)


def test_training(roots, train_a_little):
    data = msra10k.build(*map(str, roots))
    assert data.published == {"trainval": 10000, "pascal_s": 850}
    train_a_little(data, {"saliency": {}}, "trainval", "pascal_s", canvas=(8, 16))
