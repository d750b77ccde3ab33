"""Pictures are checked where they say something: that the right thing stands at the right place."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax import tasks
from mtl_jax.tasks import pictures

SPECS = {
    "semseg": {"num_classes": 3, "class_names": ["sky", "road", "car"]},
    "depth": {},
    "scene": {"kind": "classification", "num_classes": 2, "class_names": ["street", "kitchen"]},
}
TASKS = tasks.build(dict.fromkeys(SPECS, {}), SPECS)


def maps(seed):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3), (2, 6, 8)).astype(np.float32)
    depth = rng.uniform(1, 9, (2, 6, 8, 1)).astype(np.float32)
    return {"semseg": shares, "depth": depth, "scene": np.float32([[[[0.2, 0.8]]], [[[0.9, 0.1]]]])}


def test_truth_is_nan_where_it_is_unknown():
    label = np.int32([[[[2], [255]], [[0], [1]]]])
    valid = np.float32([[[[1], [0]], [[0], [1]]]])
    truth = pictures.encoded_truth(TASKS["semseg"], label, valid)
    np.testing.assert_array_equal(truth[0], [[[0, 0, 1], [np.nan] * 3], [[np.nan] * 3, [0, 1, 0]]])


def test_panels_show_each_map_in_its_place(drawn, tmp_path):
    images = np.random.default_rng(0).random((2, 6, 8, 3))
    truths, predictions = maps(1), maps(2)
    truths["semseg"][0, 2, 3] = np.nan
    truths["scene"][0] = np.nan
    pictures.panels(str(tmp_path / "new" / "panels.png"), images, truths, {"prediction": predictions}, TASKS)
    axes = drawn["panels.png"].axes
    columns = [axes[i : i + 2] for i in range(0, 14, 2)]  # two examples each
    titles = [column[0].get_title() for column in columns]
    assert titles == ["image", "semseg: truth", "semseg: prediction", "depth: truth", "depth: prediction",
                      "scene: truth", "scene: prediction"]  # fmt: skip
    for i in range(2):
        drawings = [column[i].get_images()[0].get_array() for column in columns[:5]]
        np.testing.assert_array_equal(drawings[0], images[i])
        for name, (truth, prediction) in {"semseg": drawings[1:3], "depth": drawings[3:5]}.items():
            np.testing.assert_array_equal(truth, TASKS[name].colorize(truths[name][i]))
            np.testing.assert_array_equal(prediction, TASKS[name].colorize(predictions[name][i]))
    assert columns[1][0].get_images()[0].get_array()[2, 3].std() == 0  # grey, unlike any class
    texts = [axes.texts[0].get_text() for column in columns[5:] for axes in column]
    assert texts == ["unknown", "street (90%)", "kitchen (80%)", "street (90%)"]
    (legend,) = [a.get_legend() for a in axes if a.get_legend()]
    assert [t.get_text() for t in legend.get_texts()] == ["sky", "road", "car"]
    colors = [np.round(255 * np.array(p.get_facecolor()[:3])) for p in legend.get_patches()]
    np.testing.assert_array_equal(colors, TASKS["semseg"].colorize(np.eye(3)[None])[0])


def test_boxes_are_drawn_over_the_image(drawn, tmp_path):
    named = {"num_classes": 2, "class_names": ["cat", "dog"]}
    found = tasks.build({"detection": {}}, {"detection": named})
    nothing = [0, 0, 0, 0, -1, 0]
    rows = [[1, 2, 4, 7.5, 1, 0], [0, 0, 6, 3, 0, 1], nothing]
    label, valid = (
        np.float32([rows, 3 * [nothing], rows])[:, :, None],
        np.float32([1, 1, 0])[:, None, None, None],
    )
    truths = {"detection": pictures.encoded_truth(found["detection"], label, valid)}
    scored = [[1, 2, 4, 7.5, 1, 0.87], [0, 0, 6, 3, 0, 0.2], nothing]  # the second is not sure
    images = np.random.default_rng(0).random((3, 6, 8, 3))
    predictions = {"detection": np.float32([scored, 3 * [nothing], scored])[:, :, None]}
    pictures.panels(str(tmp_path / "panels.png"), images, truths, {"prediction": predictions}, found)
    axes = drawn["panels.png"].axes
    assert len(axes) == 9
    truth, prediction = axes[3:6], axes[6:9]
    for i, (one, two) in enumerate(zip(truth, prediction, strict=True)):
        for shown in (one, two):
            np.testing.assert_array_equal(shown.get_images()[0].get_array(), images[i])
    assert [[t.get_text() for t in a.texts] for a in truth] == [["dog", "cat"], [], ["unknown"]]
    assert [[t.get_text() for t in a.texts] for a in prediction] == [["dog 87%"], [], ["dog 87%"]]
    dog, cat = truth[0].patches
    assert (dog.get_xy(), dog.get_width(), dog.get_height()) == ((1.5, 0.5), 5.5, 3)
    assert (dog.get_linestyle(), cat.get_linestyle()) == ("-", "--") and dog.get_ec() != cat.get_ec()
    assert prediction[0].patches[0].get_ec() == dog.get_ec() and not truth[2].patches


@pytest.mark.parametrize("size", [(30, 40), (57, 29), (333, 500)])
def test_a_picture_of_boxes_has_the_images_size(tmp_path, size):
    (task,) = tasks.build({"detection": {}}, {"detection": {"num_classes": 1}}).values()
    image = np.full((*size, 3), 255, np.uint8)
    box = np.float32([[[size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2, 0, 0.9]]])
    pictures.boxes_over(str(tmp_path / "boxes.png"), image, task, box)
    with Image.open(tmp_path / "boxes.png") as picture:
        assert picture.size == size[::-1]
        changed = (np.asarray(picture.convert("RGB")) < 200).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert abs(rows[-1] + 1 - size[0] // 2) <= 2 and abs(columns[0] - size[1] // 4) <= 2


def test_a_panel_without_truths_is_a_picture_file(tmp_path):
    path = tmp_path / "panel.png"
    one = {name: values[:1] for name, values in maps(0).items()}
    pictures.panels(str(path), np.ones((1, 6, 8, 3)), {}, {"prediction": one}, TASKS)
    with Image.open(path) as picture:
        assert picture.width > 1000 and np.asarray(picture).std() > 10


def test_labels_lie_over_their_images(drawn, tmp_path):
    """Two images of different sizes; below them only the classes that occur."""
    images = [np.full((6, 8, 3), 200, np.uint8), np.full((9, 5, 3), 100, np.uint8)]
    classes = [np.full((6, 8, 1), 2, np.uint8), np.full((9, 5, 1), 255, np.uint8)]
    classes[0][:, :3] = 255
    labels = {
        "semseg": classes,
        "depth": [np.full((6, 8, 1), 3.0, np.float16), np.zeros((9, 5, 1), np.float16)],
        "scene": [np.int32([[[1]]]), np.int32([[[-1]]])],
        "detection": [np.float32([[[1, 2, 5, 7, 0, 0]]]), np.zeros((0, 1, 6), np.float32)],
    }
    found = {
        **TASKS,
        **tasks.build({"detection": {}}, {"detection": {"num_classes": 1, "class_names": ["pot"]}}),
    }
    pictures.overlays(str(tmp_path / "overlay.png"), images, labels, found)
    *axes, legend = drawn["overlay.png"].axes
    assert len(axes) == 2 * 5 and [a.get_title() for a in axes[:4]] == [
        "image",
        "semseg",
        "depth",
        "kitchen (100%)",
    ]
    assert axes[8].get_title() == "unknown"
    shown = axes[1].get_images()[0].get_array()
    colour = found["semseg"].colorize(np.float32([[[0, 0, 1]]]))[0, 0]
    np.testing.assert_allclose(shown[:, 3:], np.broadcast_to(0.4 * 200 + 0.6 * colour, (6, 5, 3)), atol=0.51)
    assert len(np.unique(shown[:, :3].reshape(-1, 3), axis=0)) == 2  # stripes
    (box,) = axes[4].patches
    assert box.get_bbox().bounds == (1.5, 0.5, 5, 4) and not axes[9].patches
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["car"]
