"""Derived labels against loops over pixels and cases done by hand."""

import numpy as np
import pytest

from mtl_jax.data.scenes import labels, render
from mtl_jax.data.scenes.scene import CLASSES, THINGS


@pytest.fixture(scope="module", params=render.DOMAINS)
def seen(request):
    return render.render_example(request.param, "train", 3, 48, 64)


def test_boxes_are_tight_and_instances_are_counted_from_one(seen):
    stored = labels.annotate(seen)
    instances, found = stored["instances"], stored["objects"]
    assert set(np.unique(instances)) == set(range(len(found) + 1))
    assert len(found) > 1
    for i, thing in enumerate(found, 1):
        rows, columns = np.nonzero(instances == i)
        box = (rows.min() / 48, columns.min() / 64, (rows.max() + 1) / 48, (columns.max() + 1) / 64)
        assert thing["bbox"] == pytest.approx(box)
        assert np.all(stored["semseg"][rows, columns] == thing["label"])
        assert CLASSES[thing["label"]] in THINGS


def test_specks_are_not_counted_and_the_rest_is_renumbered():
    instances = np.zeros((96, 128), np.uint8)
    instances[0, :3] = 1
    instances[10:20, 10:20] = 5
    instances[30:40, 30:40] = 9
    kept = labels.visible_instances(instances)
    assert kept[0, 0] == 0 and kept[15, 15] == 1 and kept[35, 35] == 2


def test_edges_lie_exactly_on_the_borders_of_classes_and_instances(seen):
    instances = labels.visible_instances(seen.instances)
    expected = np.zeros((48, 64), np.uint8)
    for y in range(48):
        for x in range(64):
            for ny, nx in ((y, x + 1), (y + 1, x)):
                if ny < 48 and nx < 64:
                    same = seen.semseg[y, x] == seen.semseg[ny, nx] and instances[y, x] == instances[ny, nx]
                    expected[y, x] |= not same
    assert np.array_equal(labels.edges(seen.semseg, instances), expected)
    assert 0.01 < expected.mean() < 0.4


def test_edge_between_two_objects_of_one_class():
    semseg = np.full((3, 4), 7, np.uint8)
    instances = np.array([[1, 1, 2, 2]] * 3, np.uint8)
    assert np.array_equal(labels.edges(semseg, instances), [[0, 1, 0, 0]] * 3)


def test_salient_is_the_object_that_counts_most_near_the_centre():
    instances = np.zeros((20, 20), np.uint8)
    assert labels.salient_instance(instances) == 0
    instances[:6, :6] = 1  # 36 pixels in the corner weigh (0.05+0.15+...+0.55)^2 = 3.24
    instances[9:11, 9:11] = 2  # 4 in the middle weigh 4 * 0.95^2 = 3.61
    assert labels.salient_instance(instances) == 2
    instances[9, 9] = 0
    assert labels.salient_instance(instances) == 1


def test_saliency_and_image_class_tell_of_the_same_object(seen):
    stored = labels.annotate(seen)
    shown = np.unique(stored["instances"][stored["saliency"] == 1])
    assert len(shown) == 1 and shown[0] > 0
    assert np.array_equal(stored["saliency"] == 1, stored["instances"] == shown[0])
    assert THINGS[stored["classification"]] == CLASSES[stored["objects"][shown[0] - 1]["label"]]


def test_without_objects_nothing_is_salient_and_the_class_is_unknown(seen):
    empty = render.Rendering(**{**vars(seen), "instances": np.zeros_like(seen.instances)})
    stored = labels.annotate(empty)
    assert stored["classification"] == -1 and not stored["saliency"].any() and stored["objects"] == []


def test_disparity_is_focal_times_baseline_over_depth():
    depth = np.array([[2.0, 0.0, 8.0]])
    assert labels.disparity(depth, 100.0) == pytest.approx(np.array([[10.0, 0.0, 2.5]]))


def test_reshading_of_a_wall_seen_head_on():
    depth = np.full((3, 3), 5.0)
    depth[0, 0] = 0
    normals = np.tile([0.0, 0.0, 1.0], (3, 3, 1))
    shade = labels.reshading(depth, normals, focal=1.0)
    assert np.isnan(shade[0, 0])
    assert shade[1, 1] == pytest.approx(1 / 2)  # 5 m away, straight
    assert shade[1, 2] == pytest.approx((1 / np.sqrt(2)) / (1 + 2))  # 45 degrees aside: distance 5 sqrt(2)


def test_occlusion_edges_are_absent_on_planes_and_mark_steps():
    x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 30))
    slanted = 1 / (0.3 + 0.1 * x - 0.15 * y)  # the depth of a plane
    assert labels.edge_occlusion(slanted).max() == 0
    step = np.where(x > 0, 2.0, 4.0)
    found = labels.edge_occlusion(step)
    assert np.array_equal(np.flatnonzero(found[5]), [19, 20])
    assert found.max() == pytest.approx(0.5 - 0.02)  # inverse depth halves
    sky = np.where(x > 0, 2.0, 0.0)
    assert labels.edge_occlusion(sky)[5, 20] == pytest.approx(1 - 0.02, abs=1e-4)


def test_texture_edges_measure_the_slope_of_the_image():
    ramp = np.tile(np.arange(40) * 5, (30, 1)).astype(np.uint8)
    image = np.repeat(ramp[..., None], 3, -1)
    assert labels.edge_texture(image)[15, 20] == pytest.approx(6 * 5 / 255, rel=1e-4)
    assert labels.edge_texture(np.full((8, 8, 3), 90, np.uint8)).max() == 0


def test_keypoints_answer_to_blobs_and_not_to_straight_edges():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 30:] = 255
    image[10:13, 10:13] = 255
    response = labels.keypoints2d(image)
    assert response[11, 11] == response.max() > 0.3
    assert response[20:, 25:35].max() < 1e-3
    saddle = np.zeros((40, 40, 3), np.uint8)
    saddle[:20, :20] = saddle[20:, 20:] = 255
    assert labels.keypoints2d(saddle)[19:21, 19:21].max() == 0


def test_albedo_is_stored_with_the_srgb_curve(seen):
    stored = labels.annotate(seen)
    value = stored["albedo"] / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    assert np.abs(linear - seen.albedo).max() < 0.006
