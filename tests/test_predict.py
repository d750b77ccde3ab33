"""Prediction on photographs, with a network that returns the photograph's own colours."""

import json
import math
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mtl_jax import config as configs
from mtl_jax import experiment, predict, tasks
from mtl_jax.errors import UserError
from mtl_jax.models.prediction import Prediction

SPECS = {
    "semseg": {"num_classes": 3},
    "depth": {},
    "normals": {},
    "scene": {"kind": "classification", "num_classes": 2},
}
TASKS = tasks.build(dict.fromkeys(SPECS, {}), SPECS)
IDS = np.random.default_rng(0).integers(0, 3, (3, 4))  # blocks of colour: class = largest of R, G, B


class Colours:
    """Class scores and normals are the colours, depth is 10 times the red."""

    shapes: list

    def __init__(self):
        self.shapes = []

    def apply(self, variables, image, names, train):
        assert names == tuple(TASKS) and not train
        self.shapes.append(image.shape[1:3])
        scene = variables["scale"] * jnp.mean(image, (1, 2), keepdims=True)[..., :2]
        outputs = {"semseg": image, "depth": 10 * image[..., :1], "normals": 5 * image - 1, "scene": scene}
        return Prediction(outputs, {}, None)


@pytest.fixture
def trained():
    config = configs.default()
    config.data.size = (24, 32)
    return experiment.Experiment(config, TASKS, Colours(), {"scale": 3.0}, 7)


def blocks(height, width):
    """uint8[height,width,3] of the blocks IDS, and the class of each pixel."""
    rows = np.arange(height) * 3 // height
    columns = np.arange(width) * 4 // width
    ids = IDS[rows[:, None], columns]
    return (np.eye(3)[ids] * 200 + 20).astype(np.uint8), ids


def inside(ids, margin):
    """bool[H,W]: all pixels within `margin` are of the same class."""
    around = {"size": 2 * margin + 1, "mode": "nearest"}
    return ndimage.minimum_filter(ids, **around) == ndimage.maximum_filter(ids, **around)


@pytest.mark.parametrize("size", [(90, 120), (120, 90), (61, 200), (24, 32), (9, 12), (64, 64), (20, 400)])
def test_predictions_lie_on_the_photograph(tmp_path, trained, size):
    photograph, ids = blocks(*size)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    predict.predict(trained, [str(tmp_path / "photo.png")], str(tmp_path / "out"))
    folder = tmp_path / "out" / "photo"
    found = np.asarray(Image.open(folder / "semseg_ids.png"))
    depth, normals = np.load(folder / "depth.npy"), np.load(folder / "normals.npy")
    assert found.shape == size and depth.shape == (*size, 1) and normals.shape == (*size, 3)
    # Borders are blurred by a pixel of the network on the way there and another on the way back.
    pixel = max(size) / max(predict.network_size(*size, 24)[0])
    core = inside(ids, math.ceil(2 * pixel))
    assert core.mean() > 0.05
    np.testing.assert_array_equal(found[core], ids[core])
    np.testing.assert_allclose(depth[core][:, 0], photograph[core][:, 0] / 25.5, rtol=2e-3)
    expected = photograph[core] / 51 - 1
    np.testing.assert_allclose(
        normals[core], expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=2e-3
    )
    np.testing.assert_allclose(np.linalg.norm(normals.astype(np.float32), axis=-1), 1, atol=2e-3)
    np.testing.assert_allclose(np.load(folder / "scene.npy").sum(), 1, atol=1e-3)


def test_pictures_have_the_tasks_colours_and_the_photographs_size(tmp_path, trained):
    photograph, _ = blocks(50, 70)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    predict.predict(trained, [str(tmp_path / "photo.png")], str(tmp_path))
    folder = tmp_path / "photo"
    ids = np.asarray(Image.open(folder / "semseg_ids.png"))
    colours = TASKS["semseg"].colorize(np.eye(3, dtype=np.float32)[ids])
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "semseg.png")), colours)
    depth = np.load(folder / "depth.npy").astype(np.float32)
    picture = np.asarray(Image.open(folder / "depth.png"), int)
    assert np.abs(picture - TASKS["depth"].colorize(depth)).max() <= 4  # float16 on disk
    assert sorted(os.listdir(folder)) == ["depth.npy", "depth.png", "normals.npy", "normals.png", "panel.png",
                                          "scene.npy", "semseg.png", "semseg_ids.png"]  # fmt: skip


def test_boxes_are_those_of_the_photograph(tmp_path):
    """The network, which sees 24x32 of 60x80 pixels, finds a dog at row 8 and column 20, and a cat."""

    class Finder:
        def apply(self, variables, image, names, train):
            maps = jnp.full((*image.shape[:3], 4), -9.0).at[..., 2:].set(jnp.array([6.0, 10.0]))
            peaks = maps.at[0, 8, 20, 1].set(9.0).at[0, 3, 2, 0].set(2.19)
            return Prediction({"boxes": peaks}, {}, None)

    options = {"kind": "detection", "num_classes": 2, "class_names": ["cat", "dog"]}
    config = configs.default()
    config.data.size = (24, 32)
    found = tasks.build({"boxes": {}}, {"boxes": options})
    photograph, _ = blocks(60, 80)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    trained = experiment.Experiment(config, found, Finder(), {}, 7)
    predict.predict(trained, [str(tmp_path / "photo.png")], str(tmp_path))
    folder = tmp_path / "photo"
    assert sorted(os.listdir(folder)) == ["boxes.json", "boxes.png", "panel.png"]
    dog, cat, *_ = json.loads((folder / "boxes.json").read_text())
    assert dog == {
        "box": [13.75, 38.75, 28.75, 63.75],
        "class": "dog",
        "score": pytest.approx(0.9989, abs=1e-4),
    }
    assert cat == {"box": [1.25, 0, 16.25, 18.75], "class": "cat", "score": 0.5}  # cut at the border
    with Image.open(folder / "boxes.png") as picture:
        changed = (np.abs(np.asarray(picture.convert("RGB"), int) - photograph) > 40).any(-1)
    assert picture.size == (80, 60) and changed[20, 38:40].any() and not changed[40:].any()


def test_class_ids_are_those_of_whole_resized_scores():
    raw = np.random.default_rng(0).standard_normal((6, 7, 9)).astype(np.float32)
    ids = predict.class_ids(raw, (33, 20))
    np.testing.assert_array_equal(ids, predict.resize(raw, (33, 20)).argmax(-1))
    assert not predict.class_ids(np.zeros((2, 2, 3), np.float32), (3, 3)).any()  # the first of equals
    assert predict.class_ids(np.float32(np.eye(300)[None, [299, 1]]), (1, 2)).tolist() == [[299, 1]]


def test_the_network_is_compiled_for_few_shapes(trained):
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 900, (300, 2))]
    sizes.append((50, 50))
    shapes = set()
    for height, width in sizes:
        small, padded = predict.network_size(height, width, 96)
        shapes.add(padded)
        assert small[0] <= padded[0] and small[1] <= padded[1]
        if max(height, width) <= 3 * min(height, width):
            assert min(small) == 96
            assert max(small) == pytest.approx(96 * max(height, width) / min(height, width), abs=0.5)
            assert padded[0] * padded[1] <= 2.2 * small[0] * small[1]
    assert len(shapes) == 7
    predictor = predict.Predictor(trained)
    for height, width in ((30, 40), (60, 80), (40, 30), (32, 40)):
        predictor(np.zeros((height, width, 3), np.uint8))
    assert trained.model.shapes == [(24, 32), (32, 24)]  # traced once each


def test_padding_continues_the_photograph_as_its_mirror_image(trained):
    photograph = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    mirrored = np.concatenate([photograph, photograph[:, :-9:-1]], axis=1) / 255
    scene = predict.Predictor(trained)(photograph)["scene"]
    np.testing.assert_allclose(scene[0, 0], 3 * mirrored.mean((0, 1))[:2], rtol=1e-5)


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return predict.read_image(str(tmp_path / name))


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def test_modes_of_images(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    alpha = np.where(np.arange(16) < 8, 255, 0).astype(np.uint8) * np.ones((16, 1), np.uint8)
    on_white = np.where(alpha[..., None] == 255, rgb, 255)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(rgb)), rgb)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(GREY)), as_rgb(GREY))
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(np.dstack([rgb, alpha]))), on_white)
    grey_on_white = as_rgb(np.where(alpha == 255, GREY, 255))
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(np.dstack([GREY, alpha]))), grey_on_white)
    np.testing.assert_array_equal(
        saved(tmp_path, Image.fromarray(GREY > 99)), as_rgb(np.uint8(255 * (GREY > 99)))
    )
    palette = Image.fromarray(GREY // 128 * 3)
    palette.putpalette([10, 20, 30, 0, 0, 0, 0, 0, 0, 200, 100, 50])
    expected = np.where(as_rgb(GREY) < 128, [10, 20, 30], [200, 100, 50])
    np.testing.assert_array_equal(saved(tmp_path, palette), expected)
    expected = np.where(as_rgb(GREY) < 128, 255, [200, 100, 50])
    np.testing.assert_array_equal(saved(tmp_path, palette, transparency=0), expected)
    sixteen = Image.fromarray(GREY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(saved(tmp_path, sixteen), as_rgb(GREY))
    floats = Image.fromarray(GREY.astype(np.float32) / 255)
    np.testing.assert_array_equal(saved(tmp_path, floats, "a.tif"), as_rgb(GREY))
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(saved(tmp_path, cmyk, "b.tif"), rgb)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)),
     (8, np.rot90)],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_rotation_that_a_camera_noted_is_applied(tmp_path, orientation, upright, ending):
    stored = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = saved(tmp_path, Image.fromarray(stored), f"a.{ending}", exif=exif)
    np.testing.assert_array_equal(got, upright(stored))


def test_what_cannot_be_read_is_named(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(whole)
    half = tmp_path / "half.jpg"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty.png").touch()
    for path in (text, half, tmp_path / "empty.png"):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            predict.read_image(str(path))


def test_what_is_too_large_for_a_photograph_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/a.png .*decompression bomb"):
        saved(tmp_path, Image.fromarray(GREY))


def test_images_of_a_folder(tmp_path):
    with pytest.raises(UserError, match=f"the folder {tmp_path} has no images"):
        predict.find_images(str(tmp_path))
    with pytest.raises(UserError, match="there is no image or folder"):
        predict.find_images(str(tmp_path / "none"))
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert predict.find_images(str(tmp_path)) == [str(tmp_path / "a.png"), str(tmp_path / "b.JPG")]
    assert predict.find_images(str(tmp_path / "notes.txt")) == [str(tmp_path / "notes.txt")]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    predict.main()


def test_command(tmp_path, monkeypatch, capsys, trained):
    asked = []
    monkeypatch.setattr(experiment, "load", lambda *arguments: asked.append(arguments) or trained)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in ("cat.png", "cat.bmp", "dog.png"):
        Image.fromarray(blocks(30, 40)[0]).save(photographs / name)
    arguments = ["--workdir=w", f"--images={photographs}", f"--out={tmp_path}/out"]
    run(monkeypatch, *arguments)
    assert asked == [("w", "best")]
    assert sorted(os.listdir(tmp_path / "out")) == ["cat.bmp", "cat.png", "dog"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"3/3 {photographs}/dog.png (30x40) -> {tmp_path}/out/dog in ")

    (photographs / "d.png").write_text("no picture")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments, "--which=latest")
    assert stop.value.code == 2 and asked[1] == ("w", "latest")
    assert capsys.readouterr().err.startswith(f"error: cannot read {photographs}/d.png")


def test_a_folder_that_is_no_run_is_named(tmp_path, monkeypatch, capsys):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"--workdir={tmp_path}", f"--images={tmp_path}", f"--out={tmp_path}/out")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no working directory of a run")
