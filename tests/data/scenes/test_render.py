"""Rendered images against the pinhole model, photometry by hand, and themselves in another process."""

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.data.scenes import render
from mtl_jax.data.scenes.figure import person
from mtl_jax.data.scenes.geometry import Shapes
from mtl_jax.data.scenes.scene import CLASSES, Camera, Light, Scene, rotation
from mtl_jax.data.scenes.texture import Material, Pattern, noise, reflectance

GREY = Material(Pattern.PLAIN, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
H, W = 60, 80


def stage(position=(0.0, 1.5, 0.0), pitch=0.0, focal=1.0, **options):
    """A grey floor under even light, seen from `position` along -z."""
    camera = Camera(position, rotation(0.0, pitch), focal)
    scene = Scene(camera, ambient=((1, 1, 1), (1, 1, 1)), sky=((1, 1, 1), (1, 1, 1)), **options)
    scene.stuff("ground").plane((0, 0, 0), np.eye(3), GREY)
    return scene


def normals_from_depth(depth, focal):
    """f32[H-2,W-2,3]: unit cross product of the differences of neighbouring points (camera frame)."""
    height, width = depth.shape
    x = (np.arange(width) - (width - 1) / 2) / focal * depth
    y = ((height - 1) / 2 - np.arange(height))[:, None] / focal * depth
    point = np.stack([x, y, -depth], -1).astype(np.float64)
    right = point[1:-1, 2:] - point[1:-1, :-2]
    up = point[:-2, 1:-1] - point[2:, 1:-1]
    normal = np.cross(right, up)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)


def test_depth_of_a_floor_is_height_times_focal_over_row():
    seen = render.render(stage(), H, W)
    below = np.arange(H) + 0.5 - H / 2  # pixels under the horizon
    expected = np.where(below > 0, 1.5 * W / np.maximum(below, 1e-9), 0)
    expected[expected > render.MAX_DEPTH] = 0
    assert np.allclose(seen.depth, expected[:, None], rtol=1e-6)
    assert np.all(seen.semseg[below < 0] == CLASSES.index("sky"))
    assert np.all(seen.normals[below < 0] == 0)
    assert np.allclose(seen.normals[below > 0], [0, 1, 0])


def test_front_of_a_box_has_one_depth_and_the_pinhole_width():
    scene = stage(focal=0.8)
    scene.thing("box", (0.25, 1.5, -5.0)).box((0, 0, 0), (1.0, 0.5, 1.0), GREY)
    seen = render.render(scene, H, W)
    mask = seen.instances == 1
    assert np.allclose(seen.depth[mask], 4.0)  # along the axis, not along the ray
    assert np.allclose(seen.normals[mask], [0, 0, 1])
    columns = np.flatnonzero(mask.any(0))
    pixels_per_metre = 0.8 * W / 4
    assert columns[0] == pytest.approx(W / 2 - 0.75 * pixels_per_metre, abs=1)
    assert columns[-1] + 1 == pytest.approx(W / 2 + 1.25 * pixels_per_metre, abs=1)
    assert mask.any(1).sum() == pytest.approx(pixels_per_metre, abs=1)


@pytest.mark.parametrize("domain", render.DOMAINS)
def test_normals_agree_with_the_gradient_of_depth_and_so_do_flipped_ones(domain):
    task = tasks.build({"normals": {}}, {"normals": {}})["normals"]
    for index in range(3):
        seen = render.render_example(domain, "train", index, 96, 128)
        smooth = flat_places(seen)
        assert smooth.mean() > 0.2
        for depth, normals, where in (
            (seen.depth, seen.normals, smooth),
            (seen.depth[:, ::-1], task.flip(seen.normals[:, ::-1]), smooth[:, ::-1]),
        ):
            cosine = (normals_from_depth(depth, seen.focal) * np.asarray(normals)[1:-1, 1:-1]).sum(-1)[where]
            assert np.mean(cosine > math.cos(math.radians(1.0))) > 0.99


def flat_places(seen):
    """bool[H-2,W-2]: normal constant over 3 x 3 pixels and depth known and without a step there.

    Inverse depth is affine across the image of a plane, so its second differences betray steps.
    """
    inverse = np.where(seen.depth > 0, 1.0 / np.maximum(seen.depth, 1e-3), np.nan).astype(np.float64)
    middle = inverse[1:-1, 1:-1]
    across = np.abs(inverse[1:-1, 2:] + inverse[1:-1, :-2] - 2 * middle) / middle
    along = np.abs(inverse[2:, 1:-1] + inverse[:-2, 1:-1] - 2 * middle) / middle
    flat = (across < 1e-5) & (along < 1e-5)
    for dy in range(3):
        for dx in range(3):
            window = np.s_[dy : dy + flat.shape[0], dx : dx + flat.shape[1]]
            flat &= np.abs(seen.normals[window] - seen.normals[1:-1, 1:-1]).max(-1) < 1e-6
    return flat


@pytest.mark.parametrize("domain", render.DOMAINS)
def test_image_is_albedo_times_irradiance(domain):
    seen = render.render_example(domain, "test", 1, 48, 64)
    value = seen.image / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    lit = seen.semseg != CLASSES.index("sky")
    shaded = np.clip(seen.exposure * seen.albedo * seen.irradiance, 0, 1)
    error = np.abs(linear - shaded)[lit]
    assert error.max() < 0.006  # half a step of 8 bits where the curve is steepest
    assert shaded[lit].std() > 0.05


def test_light_falls_off_with_cosine_and_square_and_casts_a_shadow():
    light = Light((0.0, 3.0, 0.0), (2.0, 1.0, 0.5), reach=1.5)
    scene = stage()
    up = np.array([[0.0], [1.0], [0.0]])
    place = np.array([[4.0], [0.0], [0.0]])
    gain = render.direct_light(light, Shapes(scene.shapes), place, up)
    assert gain == pytest.approx(3 / 5 * (1.5 / 5) ** 2)  # 3-4-5 triangle
    scene.thing("ball", (2.0, 1.5, 0.0)).ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), GREY)
    assert render.direct_light(light, Shapes(scene.shapes), place, up) == 0  # the ball is half way
    assert render.direct_light(light, Shapes(scene.shapes), place + 0.8, up)[0] > 0
    facing_away = render.direct_light(light, Shapes(scene.shapes), -place, -up)
    assert facing_away == 0


def test_rendered_shadow_keeps_the_ambient_light_alone():
    light = Light((0.0, 4.0, -4.0), (1.0, 1.0, 1.0), reach=4.0)
    scene = stage((0.0, 1.5, 0.0), lights=[light])
    scene.thing("box", (0.0, 1.0, -4.0)).box((0, 0, 0), (0.5, 0.05, 0.5), GREY)
    seen = render.render(scene, H, W)
    x = (np.arange(W) + 0.5 - W / 2) / W * seen.depth
    floor = (seen.instances == 0) & (seen.depth > 0)
    reach = 0.5 * 4 / (4 - 1.05)  # half width of the shadow of the plate's top face on the floor
    deep = floor & (np.abs(x) < 0.9 * reach) & (np.abs(seen.depth - 4) < 0.9 * reach)
    outside = floor & (np.abs(x) > 1.2 * reach) & (seen.depth < 8)
    assert deep.sum() > 20 and np.allclose(seen.irradiance[deep], 1.0)
    assert np.all(seen.irradiance[outside] > 1.02)


def test_same_image_in_another_process_in_another_order_at_another_time():
    def digest(i):
        seen = render.render_example("outdoor", "train", i, 24, 32)
        return hashlib.sha256(
            b"".join(np.ascontiguousarray(v).tobytes() for v in vars(seen).values() if np.ndim(v))
        )

    code = (
        "import hashlib, numpy as np; from mtl_jax.data.scenes import render\n"
        "for i in (5, 2):\n"
        "  s = render.render_example('outdoor', 'train', i, 24, 32)\n"
        "  b = b''.join(np.ascontiguousarray(v).tobytes() for v in vars(s).values() if np.ndim(v))\n"
        "  print(hashlib.sha256(b).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [digest(i).hexdigest() for i in (2, 5)] == there[::-1]
    assert there[0] != there[1]


def test_domains_splits_and_indices_have_scenes_of_their_own_at_any_size():
    small = render.render_example("indoor", "train", 0, 24, 32)
    large = render.render_example("indoor", "train", 0, 72, 96)
    # The centre of a pixel at 24x32 is the centre of the middle one of 3x3 at 72x96.
    assert np.allclose(small.depth, large.depth[1::3, 1::3], rtol=1e-6)
    others = [("outdoor", "train", 0), ("indoor", "test", 0), ("indoor", "train", 1)]
    for domain, split, index in others:
        other = render.render_example(domain, split, index, 24, 32)
        assert not np.array_equal(other.image, small.image)


@pytest.mark.parametrize("domain", render.DOMAINS)
def test_scenes_show_many_classes_and_people_with_parts(domain):
    counts = np.zeros(len(CLASSES))
    for index in range(25):
        seen = render.render_example(domain, "train", index, 24, 32)
        counts += np.bincount(seen.semseg.ravel(), minlength=len(CLASSES)) > 0
        assert np.array_equal(seen.parts > 0, seen.semseg == CLASSES.index("person"))
        assert np.array_equal(seen.instances > 0, seen.semseg >= CLASSES.index("table"))
        known = seen.normals[seen.semseg != CLASSES.index("sky")]
        assert np.allclose(np.linalg.norm(known, axis=-1), 1, atol=1e-5)
    common = [c for c in range(len(CLASSES)) if CLASSES[c] != "sky"]
    assert np.all(counts[common] >= 3)


def test_person_has_all_parts_in_anatomical_order():
    scene = stage((0.0, 1.0, 0.0), focal=1.2)
    person(scene, (0, 0, -3.0), 0.0, np.random.default_rng(4), lambda rng: GREY)
    seen = render.render(scene, 96, 128)
    middle = {part: np.mean(np.nonzero(seen.parts == part)[0]) for part in range(1, 7)}
    assert middle[1] < middle[2] < middle[5] < middle[6]  # head, torso, upper and lower legs from the top
    feet = np.nonzero(seen.parts == 6)[0].max()
    ground = 48 + 1.0 * seen.focal / 3.0  # row where the floor is 3 m away
    assert feet == pytest.approx(ground, abs=5)


def test_textures_vary_within_their_two_colours():
    rng = np.random.default_rng(0)
    place = rng.uniform(-3, 3, (3, 4000))
    normal = np.tile([[0.0], [1.0], [0.0]], 4000)
    for pattern in Pattern:
        material = Material(pattern, (0.1, 0.2, 0.3), (0.7, 0.6, 0.5), 2.0, 7)
        colour = reflectance([material], np.zeros(4000, int), place, normal)
        assert colour.min() >= 0.1 - 1e-6 and colour.max() <= 0.7 + 1e-6
        assert colour[:, 0].std() > 0.01


def test_noise_is_continuous_and_interpolates_its_lattice():
    place = np.random.default_rng(1).uniform(-50, 50, (3, 5000))
    value = noise(place, 3)
    assert value.min() >= 0 and value.max() <= 1 and 0.1 < value.std() < 0.25
    assert np.abs(noise(place + 1e-4, 3) - value).max() < 2e-3
    across = np.array([[2.0, 2.0], [5.0 - 1e-9, 5.0], [-1.0, -1.0]])  # over a cell's border
    assert np.diff(noise(across, 3)) == pytest.approx(0, abs=1e-5)
    assert not np.allclose(noise(place, 4), value)
