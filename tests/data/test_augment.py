"""The network must see image and labels moved together, and values that fit the moved picture."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from ml_collections import ConfigDict

from mtl_jax import tasks as task_modules
from mtl_jax.data import augment as augmentation
from mtl_jax.data.augment import as_float, jitter, zoom_crop
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.boxes import LEAST_SHARE, Boxes
from mtl_jax.views import View

TASKS = task_modules.build(
    {"semseg": {}, "depth": {}, "normals": {}, "shading": {}},
    {"semseg": {"num_classes": 9}, "depth": {}, "normals": {}, "shading": {"kind": "regression"}},
)


@dataclasses.dataclass(frozen=True)
class Place(Task):
    """Where the pixel was in the image: (x to the right, y up), in pixels."""

    label_channels = 2
    interpolation = "bilinear"

    def known(self, label):
        return label[..., :1] == label[..., :1]


class NearestPlace(Place):
    interpolation = "nearest"


class Verdict(Place):
    """One label per image."""

    dense = False


NOTHING = {"flip": False, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}


def augment(image, labels, tasks, size, options, seed, views):
    """Cut and changed, as the pipeline does it."""
    tasks = {name: tasks[name] for name in labels}
    example = {"image": np.asarray(image), "labels": {name: np.asarray(x) for name, x in labels.items()}}
    vector, image, *cut = augmentation.cut(example, augmentation.draw(*seed.numpy()), tasks, size, options)
    cut = {name: tf.constant(x) for name, x in zip(tasks, cut, strict=True)}
    return augmentation.augment(vector, tf.constant(image), cut, tasks, size, options, seed, views)


def arrays(image, labels, colours=None):
    image = as_float(image).numpy()
    image = image if colours is None else jitter(image, np.asarray(colours))
    return image, {name: label.numpy() for name, label in labels.items()}


def run_views(image, labels, tasks, size, seed, views, **options):
    labels = {name: tf.constant(label) for name, label in labels.items()}
    options = ConfigDict({**NOTHING, **options})
    own, others = augment(image, labels, tasks, size, options, tf.constant([3, seed]), views)
    return arrays(*own), {name: arrays(*other) for name, other in others.items()}


def run(image, labels, tasks, size, seed, **options):
    return run_views(image, labels, tasks, size, seed, {}, **options)[0]


def zooms(image, labels, tasks, factors, count):
    """(image, labels) for so many seeds."""
    labels = {name: tf.constant(label) for name, label in labels.items()}
    return (
        tf.data.Dataset.range(count)
        .map(lambda seed: zoom_crop(tf.constant(image), labels, tasks, factors, tf.stack([seed, 5])))
        .as_numpy_iterator()
    )


def places(height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x, -y], axis=-1)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def movement(place):
    """(M, s): the 2x2 matrix that takes directions (right, up) in the image to the canvas, and its scale."""
    known = ~np.isnan(place).any(-1)
    canvas = places(*place.shape[:2])[known].astype(np.float64)
    design = np.concatenate([canvas, np.ones((len(canvas), 1))], axis=1)
    fit, *_ = np.linalg.lstsq(design, place[known].astype(np.float64), rcond=None)
    inverse = fit[:2].T
    return np.linalg.inv(inverse), 1 / np.sqrt(abs(np.linalg.det(inverse)))


MIXED = [
    {"flip": True, "scale": (0.6, 1.8)},
    {"flip": True, "scale": (0.6, 1.8), "rotate": 40.0},
]


@pytest.mark.parametrize("options", MIXED)
def test_image_and_labels_stay_registered(options):
    """The image shows its own coordinates, so every pixel tells whether the labels moved along."""
    height, width = 45, 60
    at = places(height, width)
    image = np.stack([4 * at[..., 0], -5 * at[..., 1], 0 * at[..., 0]], axis=-1).astype(np.uint8)
    tasks = {"mixed": Place("mixed"), "nearest": NearestPlace("nearest")}
    for seed in range(150):
        seen, labels = run(image, {"mixed": at, "nearest": at}, tasks, (40, 50), seed, **options)
        shown = np.stack([seen[..., 0] * 255 / 4, -seen[..., 1] * 255 / 5], axis=-1)
        inside = ((labels["nearest"] * [1, -1] > 1) & (labels["nearest"] * [1, -1] < [58, 43])).all(-1)
        assert inside.sum() > 200
        rounding = 0.76 / 4  # bytes are mixed in bytes
        np.testing.assert_allclose(shown[inside], labels["mixed"][inside], atol=rounding + 0.02)
        np.testing.assert_allclose(shown[inside], labels["nearest"][inside], atol=rounding + 0.5)


@pytest.mark.parametrize("options", MIXED)
def test_values_follow_the_pixels(options):
    """Normals turn like directions in the picture, and depth shrinks as the picture is enlarged."""
    height, width = 60, 80
    normal = np.array([0.48, 0.6, 0.64], np.float32)
    labels = {
        "place": places(height, width),
        "normals": np.tile(normal, (height, width, 1)),
        "depth": np.full((height, width, 1), 3.0, np.float32),
    }
    tasks = {**TASKS, "place": Place("place")}
    mirrored, scales, angles = [], [], []
    for seed in range(60):
        _, got = run(noise(height, width), labels, tasks, (50, 50), seed, **options)
        move, scale = movement(got["place"])
        known = ~np.isnan(got["place"]).any(-1)
        expected = np.append(move @ normal[:2] / scale, normal[2])
        np.testing.assert_allclose(got["normals"][known], np.tile(expected, (known.sum(), 1)), atol=0.02)
        np.testing.assert_allclose(got["depth"][known], 3.0 / scale, rtol=0.02)
        mirrored.append(np.linalg.det(move) < 0)
        scales.append(scale)
        angles.append(np.degrees(np.arctan2(move[1, 1], move[0, 1])) - 90)
    assert 15 < sum(mirrored) < 45
    assert 0.6 <= min(scales) * 1.02 and max(scales) <= 1.8 * 1.02 and np.ptp(scales) > 0.9
    assert np.abs(angles).max() < 40.5 and np.ptp(angles) > (60 if "rotate" in options else -1)


def test_normals_of_a_turned_plane_are_those_of_its_turned_depth():
    """A pinhole camera sees the plane n . P = d, so 1/z = (n_x u + n_y v - n_z f) / (f d)."""
    size, focal, normal = 41, 50.0, np.array([0.3, -0.5, 0.8]) / np.sqrt(0.98)
    u, v = np.moveaxis(places(size, size), -1, 0).astype(np.float64) + np.array([-20, 20]).reshape(2, 1, 1)
    depth = 1 / ((normal[0] * u + normal[1] * v - normal[2] * focal) / (focal * -4.0))
    labels = {"depth": depth[..., None].astype(np.float32), "normals": np.tile(normal, (size, size, 1))}
    for seed in range(12):
        _, got = run(noise(size, size), labels, TASKS, (size, size), seed, flip=True, rotate=50.0)
        known = (got["depth"][..., 0] > 0) & (got["normals"] != 0).any(-1)
        design = np.stack([u[known], v[known], np.ones(known.sum())], axis=1)
        slope, *_ = np.linalg.lstsq(design, 1 / got["depth"][known][:, 0], rcond=None)
        seen = np.array([focal * slope[0], focal * slope[1], -slope[2]])
        seen *= np.sign(seen[2]) / np.linalg.norm(seen)
        np.testing.assert_allclose(got["normals"][known].mean(0), seen, atol=0.01)


def test_nothing_asked_changes_nothing():
    image, classes = noise(7, 9), noise(7, 9, 1, seed=1) % 9
    seen, got = run(image, {"semseg": classes}, TASKS, (7, 9), 0)
    np.testing.assert_array_equal(seen, image.astype(np.float32) * np.float32(1 / 255))
    np.testing.assert_array_equal(got["semseg"], classes)
    assert got["semseg"].dtype == classes.dtype


def test_enlarging_twice_repeats_each_label_and_mixes_the_image_between_pixel_centres():
    image, classes = noise(6, 8), noise(6, 8, 1, seed=1) % 9
    seen, got = run(image, {"semseg": classes}, TASKS, (12, 16), 0, scale=(2.0, 2.0))
    np.testing.assert_array_equal(got["semseg"], classes.repeat(2, axis=0).repeat(2, axis=1))
    at = [np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1) for n in (6, 8)]
    rows = np.stack([np.interp(at[0], range(6), image[:, x, c]) for x in range(8) for c in range(3)], axis=-1)
    rows = rows.reshape(12, 8, 3)
    both = np.stack([np.interp(at[1], range(8), rows[y, :, c]) for y in range(12) for c in range(3)])
    np.testing.assert_allclose(
        seen, both.reshape(12, 3, 16).transpose(0, 2, 1) / 255, atol=0.76 / 255
    )  # bytes are mixed in bytes


def test_without_a_turn_both_ways_of_resampling_agree():
    image, classes = noise(30, 40), noise(30, 40, 1, seed=1) % 9
    for seed in range(10):
        options = {"flip": True, "scale": (0.7, 1.6)}
        seen, got = run(image, {"semseg": classes}, TASKS, (28, 36), seed, **options)
        same, also = run(image, {"semseg": classes}, TASKS, (28, 36), seed, rotate=1e-6, **options)
        agree = (got["semseg"] == also["semseg"])[..., 0]
        assert agree.mean() > 0.93  # all but the image's border and ties between two pixels
        assert np.median(np.abs(seen - same)) < 0.501 / 255
        assert np.mean(np.abs(seen - same) > 0.01) < 0.12


def test_mirroring_twice_restores():
    image, normals = noise(5, 7), np.random.default_rng(1).normal(size=(5, 7, 3)).astype(np.float32)
    outcomes = set()
    for seed in range(8):
        once, got = run(image, {"normals": normals}, TASKS, (5, 7), seed, flip=True)
        if np.array_equal(got["normals"], normals):
            outcomes.add("kept")
            continue
        outcomes.add("mirrored")
        np.testing.assert_array_equal(got["normals"][:, ::-1] * [-1, 1, 1], normals)
        back = np.rint(once * 255).astype(np.uint8)
        twice, again = run(back, {"normals": got["normals"]}, TASKS, (5, 7), seed, flip=True)
        np.testing.assert_array_equal(np.rint(twice * 255), image)
        np.testing.assert_array_equal(again["normals"], normals)
    assert outcomes == {"kept", "mirrored"}


@pytest.mark.parametrize("options", MIXED)
def test_no_class_is_invented(options):
    classes = np.random.default_rng(0).choice([1, 3, 8, 255], (20, 20, 1)).astype(np.uint8)
    for seed in range(20):
        _, got = run(noise(20, 20), {"semseg": classes}, TASKS, (24, 16), seed, **options)
        assert set(np.unique(got["semseg"])) <= {1, 3, 8, 255}
        assert len(np.unique(got["semseg"])) > 2


@pytest.mark.parametrize("options", MIXED)
def test_unknown_places_do_not_bleed_into_known_ones(options):
    """Labels that are mixed: a constant stays that constant beside holes and padding."""
    normal = np.array([0.6, 0.0, 0.8], np.float32)
    hole = np.random.default_rng(0).random((30, 30, 1)) < 0.05
    labels = {
        "shading": np.where(hole, np.nan, 0.7).astype(np.float16),
        "normals": np.where(hole, 0, normal).astype(np.float16),
    }
    for seed in range(20):
        _, got = run(noise(30, 30), labels, TASKS, (40, 40), seed, **options)
        shading, length = got["shading"], np.linalg.norm(got["normals"], axis=-1)
        known = ~np.isnan(shading[..., 0])
        assert 0.05 < known.mean() < 1
        np.testing.assert_allclose(shading[known], 0.7, atol=1e-3)
        np.testing.assert_array_equal(length > 0, known)
        np.testing.assert_allclose(length[known], 1, atol=2e-3)


def test_small_images_are_padded_with_grey_and_unknown_labels():
    depth = np.full((4, 6, 1), 2.0, np.float32)
    corners = set()
    for seed in range(10):
        seen, got = run(np.zeros((4, 6, 3), np.uint8), {"depth": depth}, TASKS, (9, 10), seed)
        known = got["depth"][..., 0] == 2
        assert known.sum() == 24
        np.testing.assert_allclose(seen[known], 0)
        np.testing.assert_allclose(seen[~known], 128 / 255, atol=2e-3)
        assert (got["depth"][~known] == 0).all()
        corners.add(tuple(np.argwhere(known)[0]))
    assert len(corners) > 4


def test_crops_reach_every_place_evenly():
    at = places(6, 5)
    starts = [run(noise(6, 5), {"p": at}, {"p": Place("p")}, (4, 5), s)[1]["p"][0, 0] for s in range(90)]
    _, counts = np.unique(np.array(starts), axis=0, return_counts=True)
    assert len(counts) == 3 and counts.min() > 15


def test_colours_are_those_of_the_formula_and_labels_are_left_alone():
    image = np.random.default_rng(0).random((8, 9, 3)) * 0.5 + 0.25
    brightness, contrast, saturation = 1.1, 0.8, 1.3
    grey = image @ [[0.299], [0.587], [0.114]]
    expected = grey + saturation * (image - grey)
    expected = (image.mean() + contrast * (expected - image.mean())) * brightness
    for array in (np.asarray, jnp.asarray, tf.constant):
        factors = np.float32([brightness, contrast, saturation])
        got = jitter(array(image.astype(np.float32)), array(factors))
        np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-5)

    photo, classes = noise(8, 9), noise(8, 9, 1) % 9
    one, labels = run(photo, {"semseg": classes}, TASKS, (8, 9), 0, color=0.5)
    two, _ = run(photo, {"semseg": classes}, TASKS, (8, 9), 1, color=0.5)
    assert np.abs(one - two).mean() > 0.01 and one.min() >= 0 and one.max() <= 1
    np.testing.assert_array_equal(labels["semseg"], classes)


def test_a_label_of_the_whole_image_is_not_moved():
    verdict = np.full((1, 1, 2), 4.0, np.float32)
    _, got = run(noise(8, 8), {"v": verdict}, {"v": Verdict("v")}, (5, 6), 0, **MIXED[1])
    np.testing.assert_array_equal(got["v"], verdict)


def test_equal_seeds_give_equal_results():
    one, _ = run(noise(20, 20), {}, {}, (16, 16), 5, color=0.3, **MIXED[1])
    two, _ = run(noise(20, 20), {}, {}, (16, 16), 5, color=0.3, **MIXED[1])
    other, _ = run(noise(20, 20), {}, {}, (16, 16), 6, color=0.3, **MIXED[1])
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).mean() > 0.01


def test_a_zoom_crop_by_value():
    """Rows 1 to 4 and columns 2 to 5 of a 6x6 image that shows 10 row + column, enlarged by 1.5."""
    y, x = np.mgrid[:6, :6].astype(np.float32)
    value = (10 * y + x)[..., None]
    labels = {"semseg": value.astype(np.int32), "depth": value, "shading": value}
    crops = zooms(np.tile(value, (1, 1, 3)), labels, TASKS, (1.5,), 99)
    image, got = next(crop for crop in crops if crop[1]["semseg"][0, 0] == 12)
    np.testing.assert_array_equal(got["semseg"][0, :, 0], [12, 12, 13, 14, 14, 15])
    np.testing.assert_array_equal(got["semseg"][:, 0, 0], [12, 12, 22, 32, 32, 42])
    np.testing.assert_allclose(got["depth"][0, :, 0], [8, 8, 8.6667, 9.3333, 9.3333, 10], atol=1e-4)
    for mixed in (image[..., 1], got["shading"][..., 0]):
        np.testing.assert_allclose(mixed[0], [12, 12.6, 13.2, 13.8, 14.4, 15], atol=1e-5)
        np.testing.assert_allclose(mixed[:, 0], [12, 18, 24, 30, 36, 42], atol=1e-5)


def test_zoom_crops_are_those_of_the_formula_at_every_place_and_factor():
    """Against NumPy in float64, for sizes that the factors do not divide."""
    height, width, factors = 7, 9, (1.0, 1.2, 1.5)
    image = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)
    at = places(height, width)
    classes = (np.arange(63).reshape(height, width, 1) + 300).astype(np.int32)
    labels = {"semseg": classes, "depth": classes.astype(np.float32), "place": at}
    seen = []
    for got, moved in zooms(image, labels, {**TASKS, "place": Place("place")}, factors, 700):
        left, top = moved["place"][0, 0] * [1, -1]
        right, bottom = moved["place"][-1, -1] * [1, -1]
        h, w = int(bottom - top) + 1, int(right - left) + 1
        seen.append((h, w, int(top), int(left)))
        rows, columns = np.linspace(top, top + h - 1, height), np.linspace(left, left + w - 1, width)
        both = np.stack([[np.interp(columns, range(9), row) for row in image[..., c]] for c in range(3)], -1)
        both = np.stack([np.interp(rows, range(7), both[:, x, c]) for x in range(9) for c in range(3)], -1)
        np.testing.assert_allclose(got, both.reshape(7, 9, 3), atol=1e-5)
        source = classes[int(top) + np.arange(7) * h // 7][:, int(left) + np.arange(9) * w // 9]
        np.testing.assert_array_equal(moved["semseg"], source)
        factor = {(7, 9): 1.0, (5, 7): 1.2, (4, 6): 1.5}[h, w]
        np.testing.assert_allclose(moved["depth"], source / factor, rtol=1e-6)
    kinds, counts = np.unique([s[0] for s in seen], return_counts=True)
    assert kinds.tolist() == [4, 5, 7] and scipy.stats.chisquare(counts).pvalue > 1e-3
    for h, w in ((5, 7), (4, 6)):  # both ends are reached, and all places evenly
        _, counts = np.unique([s for s in seen if s[0] == h], axis=0, return_counts=True)
        assert len(counts) == (8 - h) * (10 - w) and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_zoom_by_one_changes_no_bit():
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(8, 9, 3)).astype(np.float32)
    normals[2] = 0
    shading = np.where(rng.random((8, 9, 1)) < 0.3, np.nan, rng.random((8, 9, 1))).astype(np.float32)
    labels = {
        "semseg": rng.integers(0, 255, (8, 9, 1), np.int32),
        "depth": rng.random((8, 9, 1), np.float32),
        "normals": normals,
        "shading": shading,
    }
    image = rng.random((8, 9, 3), np.float32)
    for seen, got in zooms(image, labels, TASKS, (1.0,), 5):
        np.testing.assert_array_equal(seen, image)
        for name, label in labels.items():
            np.testing.assert_array_equal(got[name], label)


def test_a_zoom_leaves_directions_and_verdicts_and_mirroring_turns_normals():
    normal = np.array([0.6, 0.0, 0.8], np.float32)
    labels = {"normals": np.tile(normal, (12, 16, 1)), "verdict": np.full((1, 1, 2), 4.0, np.float32)}
    tasks = {**TASKS, "verdict": Verdict("verdict")}
    signs = set()
    for seed in range(12):
        _, got = run(noise(12, 16), labels, tasks, (12, 16), seed, flip=True, zoom=(1.2, 1.5))
        sign = np.sign(got["normals"][0, 0, 0])
        np.testing.assert_allclose(got["normals"], labels["normals"] * [sign, 1, 1], atol=1e-6)
        np.testing.assert_array_equal(got["verdict"], labels["verdict"])
        signs.add(sign)
    assert signs == {-1, 1}


def test_a_zoom_mixes_nothing_unknown_into_what_is_known():
    hole = np.random.default_rng(0).random((24, 24, 1)) < 0.1
    normal = np.array([0.6, 0.0, 0.8], np.float32)
    labels = {
        "normals": np.where(hole, 0, normal).astype(np.float32),
        "shading": np.where(hole, np.nan, 0.7).astype(np.float32),
    }
    for _, got in zooms(np.zeros((24, 24, 3), np.float32), labels, TASKS, (1.2, 1.5), 10):
        known = ~np.isnan(got["shading"][..., 0])
        assert 0.3 < known.mean() < 1
        np.testing.assert_allclose(got["shading"][known], 0.7, atol=1e-3)
        np.testing.assert_allclose(got["normals"][known], np.tile(normal, (known.sum(), 1)), atol=1e-3)
        np.testing.assert_array_equal(got["normals"][~known], 0)


VIEWS = {
    "near": View(),
    "nearer": View(of="near"),
    "other": View(),
    "recoloured": View(of="near", zoom=False),
}
LIVELY = {"flip": True, "scale": (0.8, 1.2), "zoom": (1.2, 1.5), "color": 0.3, "rand_augment": 2}


def view_of_places(seed, views, **options):
    at = places(30, 40)
    image = np.stack([4 * at[..., 0], -5 * at[..., 1], 60 + 0 * at[..., 0]], axis=-1).astype(np.uint8)
    return run_views(image, {"p": at}, {"p": Place("p")}, (24, 32), seed, views, **options)


def test_a_view_is_a_zoom_crop_of_the_one_it_is_made_from():
    lively = {**LIVELY, "scale": (1.0, 1.0), "color": 0.0, "rand_augment": 0}
    corners = set()
    for seed in range(12):
        own, others = view_of_places(seed, VIEWS, **lively)
        boxes = {
            name: (*labels["p"].min((0, 1)), *labels["p"].max((0, 1)))
            for name, (_, labels) in {None: own, **others}.items()
        }
        for name, view in VIEWS.items():
            inner, outer = np.array(boxes[name]), np.array(boxes[view.of])
            assert (inner[:2] >= outer[:2]).all() and (inner[2:] <= outer[2:]).all()
            assert (inner[2:] - inner[:2] < 0.9 * (outer[2:] - outer[:2])).all() == view.zoom
            image, labels = others[name]  # and shows what its labels tell
            shown = np.stack([image[..., 0] * 255 / 4, -image[..., 1] * 255 / 5], axis=-1)
            np.testing.assert_allclose(shown, labels["p"], atol=0.01)
        assert boxes["near"] != boxes["other"]
        corners.add(boxes["near"])
    assert len(corners) == 12


def test_without_a_zoom_a_view_shows_the_same_place_in_other_colours():
    for seed in range(4):
        own, others = view_of_places(seed, {"recoloured": View(zoom=False)}, color=0.4)
        np.testing.assert_array_equal(others["recoloured"][1]["p"], own[1]["p"])
        assert np.abs(others["recoloured"][0] - own[0]).mean() > 0.003
    _, others = view_of_places(0, VIEWS, zoom=(1.5,))
    np.testing.assert_array_equal(others["recoloured"][0], others["near"][0])


def test_a_view_changes_nothing_in_the_others():
    every = view_of_places(7, VIEWS, **LIVELY)
    some = {name: VIEWS[name] for name in ("other", "near")}
    fewer = view_of_places(7, some, **LIVELY)
    none = view_of_places(7, {}, **LIVELY)
    for one, two in [(every[0], fewer[0]), (every[0], none[0]), *((every[1][n], fewer[1][n]) for n in some)]:
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1]["p"], two[1]["p"])


def test_labels_do_not_feel_the_colours():
    plain = view_of_places(3, VIEWS, **{**LIVELY, "color": 0.0, "rand_augment": 0})
    lively = view_of_places(3, VIEWS, **LIVELY)
    for one, two in [(plain[0], lively[0]), *((plain[1][name], lively[1][name]) for name in VIEWS)]:
        np.testing.assert_array_equal(one[1]["p"], two[1]["p"])
        assert np.abs(one[0] - two[0]).max() > 0.01 and two[0].min() >= 0 and two[0].max() <= 1


BOXES = Boxes("boxes", max_boxes=8)


def drawn(boxes, height, width):
    """uint8[height,width,n]: each box (ymin, xmin, ymax, xmax of whole numbers) as a mask."""
    y, x = np.mgrid[:height, :width][..., None]
    return ((y >= boxes[:, 0]) & (x >= boxes[:, 1]) & (y < boxes[:, 2]) & (x < boxes[:, 3])).astype(np.uint8)


def outline(mask):
    """(ymin, xmin, ymax, xmax) of a mask's pixels, as edges; None if there are none."""
    y, x = np.nonzero(mask)
    return np.array([y.min(), x.min(), y.max() + 1, x.max() + 1]) if len(y) else None


@dataclasses.dataclass(frozen=True)
class Masks(Task):
    """A channel per object: 1 where it is."""

    label_channels = 6
    fill = 0

    def known(self, label):
        return label[..., :1] == label[..., :1]


RECTANGLES = np.array([[3, 4, 14, 20], [20, 30, 41, 39], [0, 0, 44, 57], [25, 2, 29, 12], [8, 40, 20, 57],
                       [30, 15, 36, 18]])  # fmt: skip


def matching_boxes(label, masks, scale=(1.0,), zoom=(1.0,), rotate=0, flip=False):
    """Checks that the rows of a label outline what is left of the masks of RECTANGLES; yields which.

    A turned box that the canvas cuts is wider than what is left of it: there, such boxes are passed over.
    """
    rows = {int(row[4]): row for row in label[:, 0] if row[4] >= 0}
    height, width = masks.shape[:2]
    for k in range(len(RECTANGLES)):
        seen = outline(masks[..., k])
        if k not in rows:
            area = np.prod(RECTANGLES[k, 2:] - RECTANGLES[k, :2]) * (scale[-1] * zoom[-1]) ** 2
            assert masks[..., k].sum() < max(1.2 * LEAST_SHARE * area, 10)
            continue
        box = rows[k][:4]
        assert (box >= 0).all() and (box[2:] <= [height, width]).all() and rows[k][5] == k % 2
        inside = (box[:2] > 1).all() and (box[2:] < [height - 1, width - 1]).all()
        if seen is not None and (inside or not rotate):
            # A zoom enlarges what is rounded, and rounds again.
            np.testing.assert_allclose(box, seen, atol=1.01 * zoom[-1] + (zoom[-1] > 1))
            yield k


GEOMETRIES = [
    {"flip": True},
    {"scale": (0.5, 2.0)},
    {"flip": True, "scale": (0.6, 1.8)},
    {"flip": True, "scale": (0.6, 1.8), "zoom": (1.0, 1.3, 1.6)},
    {"rotate": 35.0},
    {"flip": True, "scale": (0.5, 1.6), "rotate": 60.0},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=lambda o: "-".join(o))
def test_boxes_move_with_what_they_surround(options):
    size, canvas = (44, 57), (38, 50)
    k = np.arange(len(RECTANGLES))[:, None]
    boxes = np.concatenate([RECTANGLES, k, k % 2], axis=1)[:, None].astype(np.float32)
    labels = {"boxes": boxes, "masks": drawn(RECTANGLES, *size)}
    tasks = {"boxes": BOXES, "masks": Masks("masks")}
    compared = []
    for seed in range(40):
        _, got = run(noise(*size), labels, tasks, canvas, seed, **options)
        assert got["boxes"].shape == (8, 1, 6)
        compared += matching_boxes(got["boxes"], got["masks"], **options)
    assert len(compared) > 40 and len(set(compared)) >= 4


def test_mirroring_boxes_twice_restores():
    boxes = np.float32([[3, 4, 14, 20, 0, 0], [20, 30.5, 41, 39.25, 1, 1], [7, 0, 9, 57, 2, 0]])[:, None]
    outcomes = set()
    for seed in range(8):
        image = noise(44, 57)
        once, got = run(image, {"boxes": boxes}, {"boxes": BOXES}, (44, 57), seed, flip=True)
        flipped = not np.array_equal(np.rint(once * 255), image)
        outcomes.add(flipped)
        _, again = run(image, got, {"boxes": BOXES}, (44, 57), seed, flip=True)
        first, second = (x["boxes"][np.argsort(x["boxes"][:, 0, 4])][-3:] for x in (got, again))
        np.testing.assert_array_equal(second, boxes)
        expected = boxes[:, 0].copy()
        expected[:, [1, 3]] = 57 - expected[:, [3, 1]]
        np.testing.assert_array_equal(first[:, 0], expected if flipped else boxes[:, 0])
    assert outcomes == {False, True}


def test_images_without_boxes_and_unknown_boxes_stay_so():
    for rows, expected in ((np.zeros((0, 1, 6)), -1), (np.full((1, 1, 6), np.nan), np.nan)):
        _, got = run(noise(9, 9), {"b": rows.astype(np.float32)}, {"b": BOXES}, (5, 6), 0, **LIVELY)
        np.testing.assert_array_equal(got["b"][:, 0, 4], np.full(8, expected))
        assert BOXES.known(got["b"]).tolist() == [[[expected == -1]]]
