"""The outdoor domain: a street or park under the sun, with facades, trees and vehicles."""

import math

import numpy as np

from mtl_jax.data.scenes import objects, placement
from mtl_jax.data.scenes.figure import person
from mtl_jax.data.scenes.scene import Camera, Light, Scene, rotation
from mtl_jax.data.scenes.texture import Material, Pattern

SIGHTS = ("vehicle", "person", "plant", "lamp", "seat", "table", "box", "ball")
CHANCE = (0.11, 0.18, 0.13, 0.1, 0.13, 0.12, 0.11, 0.12)
SUN_DISTANCE = 400.0  # metres: far enough for nearly parallel light


def compose(rng: np.random.Generator) -> Scene:
    """A random street scene, seen from a person's or a vehicle's height."""
    turn = rotation(rng.uniform(-math.pi, math.pi), -rng.uniform(0.0, 0.22), rng.uniform(-0.04, 0.04))
    camera = Camera((0.0, rng.uniform(1.2, 3.2), 0.0), turn, rng.uniform(0.6, 1.3))
    light, ambient, sky = _daylight(rng, camera)
    scene = Scene(camera, ambient, sky, lights=[light])
    taken: list[tuple[float, float, float]] = []
    _terrain(scene, rng)
    for _ in range(int(rng.integers(1, 5))):
        _building(scene, rng, taken)
    for _ in range(int(rng.integers(5, 13))):
        kind = str(rng.choice(SIGHTS, p=CHANCE))
        radius = {"vehicle": 2.2, "plant": 0.9}.get(kind, 0.6)
        farthest = 22.0 if kind in ("vehicle", "plant", "lamp") else 12.0
        spot = placement.free_spot(camera, rng, taken, radius, (2.0 + 1.5 * radius, farthest))
        if spot is not None:
            _put(scene, kind, spot, rng)
    return scene


def _daylight(rng: np.random.Generator, camera: Camera):
    """Sun and sky: from a low red sun to an overcast noon."""
    height, bearing = rng.uniform(0.25, 1.3), rng.uniform(-math.pi, math.pi)
    level = math.cos(height)
    place = tuple(
        SUN_DISTANCE * c for c in (level * math.cos(bearing), math.sin(height), level * math.sin(bearing))
    )
    red = max(0.0, 0.7 - height)
    power = rng.uniform(0.3, 2.2)
    sun = Light(place, (power, power * (1 - 0.4 * red), power * (1 - 0.9 * red)), SUN_DISTANCE)
    haze, blue = rng.uniform(0.5, 1.0), rng.uniform(0.2, 0.8)
    zenith = (haze * (1 - blue) * 0.7, haze * (1 - 0.6 * blue) * 0.8, haze)
    horizon = (haze * (0.8 + red / 2), 0.85 * haze, haze * (0.95 - red / 2))
    gain, mean = rng.uniform(0.3, 0.7), sum(zenith) / 3
    above = tuple(gain * (0.5 * c + 0.5 * mean) for c in zenith)
    return sun, (tuple(0.35 * c for c in above), above), (horizon, zenith)


def _terrain(scene: Scene, rng: np.random.Generator):
    """A lawn or pavement, most often crossed by a road."""
    scene.stuff("ground").plane((0, 0, 0), np.eye(3), _grass(rng) if rng.random() < 0.5 else _paving(rng))
    if rng.random() < 0.75:
        yaw = rng.uniform(-math.pi, math.pi)
        aside = placement.behind(yaw, rng.uniform(-6, 6))
        grey = rng.uniform(0.05, 0.25)
        tar = Material(
            Pattern.NOISE, (grey, grey, grey), (0.7 * grey, 0.7 * grey, 0.75 * grey), 3.0, _seed(rng)
        )
        road = scene.stuff("ground", aside, yaw)
        wide = rng.uniform(1.8, 4.0)
        road.box((0, 0.005, 0), (60, 0.005, wide), tar)
        paint = Material(Pattern.PLAIN, (0.8, 0.8, 0.75), (0.6, 0.6, 0.55))
        for dash in range(-5, 6):
            road.box((3.0 * dash, 0.01, 0), (0.9, 0.005, 0.08), paint)


def _building(scene: Scene, rng: np.random.Generator, taken: list):
    """A house with a gable of boxes: facade, doors and rows of windows towards the camera."""
    half = (rng.uniform(2.5, 6.0), rng.uniform(1.6, 5.0), rng.uniform(2.0, 4.0))
    spot = placement.free_spot(scene.camera, rng, taken, 0.75 * half[0] + 1, (9.0 + half[0], 38.0))
    if spot is None:
        return
    x, _, z = scene.camera.position
    yaw = math.atan2(x - spot[0], z - spot[1]) + rng.uniform(-0.6, 0.6)
    origin = (spot[0], 0.0, spot[1])
    body = scene.stuff("wall", origin, yaw)
    body.box((0, half[1], 0), half, facade(rng))
    body.box((0, 2 * half[1] + 0.15, 0), (half[0] + 0.3, 0.15, half[2] + 0.3), facade(rng))
    if rng.random() < 0.5:
        body.box(
            (0, 2 * half[1] + 0.2, 0),
            (half[0], half[2] * 0.75, half[2] * 0.75),
            facade(rng),
            pitch=math.pi / 4,
        )
    glass, frame, wood = _glass(rng), street_paint(rng), street_paint(rng)
    columns, floors = max(2, int(half[0] / 1.2)), max(1, int(half[1] / 1.5))
    entrance = int(rng.integers(columns))
    windows, door = scene.stuff("window", origin, yaw), scene.stuff("door", origin, yaw)
    for column in range(columns):
        across = half[0] * (2 * (column + 0.5) / columns - 1)
        for floor in range(floors):
            up = 2 * half[1] * (floor + 0.55) / floors
            if floor == 0 and column == entrance:
                door.box((across, 1.05, half[2]), (0.55, 1.05, 0.06), wood)
                continue
            windows.box((across, up, half[2]), (0.5, 0.65, 0.04), glass)
            windows.box((across, up - 0.68, half[2] + 0.03), (0.58, 0.05, 0.1), frame)


def _put(scene: Scene, kind: str, spot: tuple[float, float], rng: np.random.Generator):
    origin, yaw = (spot[0], 0.0, spot[1]), rng.uniform(-math.pi, math.pi)
    if kind == "person":
        person(scene, origin, yaw, rng, street_paint)
    elif kind == "plant" and rng.random() < 0.75:
        objects.plant(scene, origin, yaw, rng, bark, scale=rng.uniform(3.0, 5.0))
    elif kind == "lamp":
        objects.lamp(scene, origin, yaw, rng, bark, high=rng.uniform(2.8, 4.5))
    elif kind == "seat":
        objects.seat(scene, origin, yaw, rng, street_paint, wide=0.8)
    elif kind in ("box", "ball"):
        getattr(objects, kind)(scene, origin, yaw, rng, street_paint, scale=rng.uniform(1.1, 2.0))
    else:
        getattr(objects, kind)(scene, origin, yaw, rng, street_paint)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _grass(rng: np.random.Generator) -> Material:
    green = rng.uniform(0.12, 0.35)
    colour = (green * rng.uniform(0.4, 0.95), green, green * rng.uniform(0.15, 0.4))
    return Material(Pattern.NOISE, colour, tuple(0.5 * c for c in colour), rng.uniform(1.5, 5), _seed(rng))


def _paving(rng: np.random.Generator) -> Material:
    grey = rng.uniform(0.15, 0.5) * (1 - 0.2 * rng.random(3))
    pattern = Pattern(rng.choice([Pattern.BRICK, Pattern.CHECKER, Pattern.NOISE]))
    return Material(pattern, tuple(grey), tuple(0.7 * grey), rng.uniform(0.6, 2.5), _seed(rng))


def _glass(rng: np.random.Generator) -> Material:
    blue = rng.uniform(0.05, 0.45)
    return Material(
        Pattern.NOISE, (0.7 * blue, 0.85 * blue, blue), (0.3 * blue, 0.4 * blue, 0.5 * blue), 1.0, _seed(rng)
    )


def facade(rng: np.random.Generator) -> Material:
    """Brick or plaster."""
    base = rng.uniform(0.15, 0.7)
    green = base * rng.uniform(0.5, 1.0)
    colour = np.array([base, green, green * rng.uniform(0.5, 1.1)])
    pattern = Pattern(rng.choice([Pattern.BRICK, Pattern.BRICK, Pattern.NOISE, Pattern.STRIPES]))
    return Material(
        pattern, tuple(colour), tuple(colour * rng.uniform(0.5, 0.9)), rng.uniform(1.5, 4.5), _seed(rng)
    )


def bark(rng: np.random.Generator) -> Material:
    """Dull browns and greys: trunks, poles."""
    base = rng.uniform(0.04, 0.3)
    return Material(Pattern.NOISE, (base, 0.85 * base, 0.7 * base), (0.5 * base,) * 3, 8.0, _seed(rng))


def street_paint(rng: np.random.Generator) -> Material:
    """Lacquer and cloth of any colour, often grey."""
    colour = rng.uniform(0.04, 0.8) * (
        rng.random(3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.3, 1))
    )
    pattern = Pattern(rng.choice([Pattern.PLAIN, Pattern.PLAIN, Pattern.NOISE, Pattern.STRIPES]))
    return Material(pattern, tuple(colour), tuple(0.6 * colour), rng.uniform(3, 10), _seed(rng))
