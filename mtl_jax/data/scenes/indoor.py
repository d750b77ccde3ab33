"""The indoor domain: a furnished room with warm point lights."""

import math

import numpy as np

from mtl_jax.data.scenes import objects, placement
from mtl_jax.data.scenes.figure import person
from mtl_jax.data.scenes.scene import Camera, Light, Scene, rotation
from mtl_jax.data.scenes.texture import Material, Pattern

FURNITURE = ("table", "seat", "box", "ball", "plant", "lamp", "vehicle", "person")
CHANCE = (0.16, 0.17, 0.12, 0.14, 0.08, 0.1, 0.1, 0.13)


def compose(rng: np.random.Generator) -> Scene:
    """A random room, 3 to 9 m wide, seen from near one of its walls at eye level."""
    wide, deep, high = rng.uniform(1.8, 4.2), rng.uniform(2.0, 4.5), rng.uniform(2.3, 3.3)
    scene = Scene(_camera(rng, wide, deep), *_ambient(rng))
    _shell(scene, wide, deep, high, rng)
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(4, 11))):
        kind = str(rng.choice(FURNITURE, p=CHANCE))
        radius = {"table": 0.8, "seat": 0.55, "box": 0.5, "vehicle": 0.5}.get(kind, 0.35)
        spot = placement.free_spot(scene.camera, rng, taken, radius, (1.4, 7.0), (wide - 0.4, deep - 0.4))
        if spot is not None:
            _furnish(scene, kind, spot, rng)
    for _ in range(int(rng.integers(1, 4))):
        _light(scene, rng, wide, deep, high)
    return scene


def _camera(rng: np.random.Generator, wide: float, deep: float) -> Camera:
    x, z = rng.uniform(-0.85, 0.85) * wide, rng.uniform(0.55, 0.92) * deep
    if rng.random() < 0.5:
        z = -z
    target = rng.uniform(-0.45, 0.45, 2)
    yaw = math.atan2(x - target[0] * wide, z - target[1] * deep)
    turn = rotation(yaw, -rng.uniform(0.02, 0.42), rng.uniform(-0.05, 0.05))
    return Camera((x, rng.uniform(1.1, 1.9), z), turn, rng.uniform(0.55, 1.0))


def _ambient(rng: np.random.Generator):
    level = rng.uniform(0.12, 0.4)
    tint = np.array([1.0, 0.95, 0.88]) * level
    below, above = tuple(0.6 * tint), tuple(tint)
    return (below, above), (above, above)


def _light(scene: Scene, rng: np.random.Generator, wide: float, deep: float, high: float):
    place = (rng.uniform(-0.8, 0.8) * wide, high - rng.uniform(0.1, 0.7), rng.uniform(-0.8, 0.8) * deep)
    warm = rng.uniform(0.55, 1.0)
    power = rng.uniform(0.4, 1.2)
    scene.lights.append(Light(place, (power, power * (0.5 + 0.5 * warm), power * warm), 2.0))


def _shell(scene: Scene, wide: float, deep: float, high: float, rng: np.random.Generator):
    """Floor, ceiling, four walls with doors and windows, and sometimes a pillar and a carpet."""
    scene.stuff("ground").plane((0, 0, 0), np.eye(3), floor_covering(rng))
    walls = scene.stuff("wall")
    walls.plane((0, high, 0), rotation(roll=math.pi), _pale(rng, Pattern.PLAIN))
    paper = wallpaper(rng)
    for yaw, away, along in (
        (0, deep, wide),
        (math.pi, deep, wide),
        (math.pi / 2, wide, deep),
        (-math.pi / 2, wide, deep),
    ):
        side = scene.stuff("wall", placement.behind(yaw, away), yaw)
        side.plane((0, 0, 0), rotation(pitch=math.pi / 2) @ rotation(yaw=math.pi), paper)
        _openings(scene, side.origin, yaw, along, high, rng)
    if rng.random() < 0.35:
        half = rng.uniform(0.15, 0.6, 2)
        corner = (
            rng.choice([-1, 1]) * (wide - half[0]),
            high / 2,
            -math.copysign(deep - half[1], scene.camera.position[2]),
        )
        scene.stuff("wall", corner).box((0, 0, 0), (half[0], high / 2, half[1]), wallpaper(rng))
    if rng.random() < 0.5:
        size = rng.uniform(0.6, 1.6, 2)
        carpet = scene.stuff(
            "ground", (rng.uniform(-0.3, 0.3), 0.0, rng.uniform(-0.3, 0.3)), rng.uniform(-0.6, 0.6)
        )
        carpet.box((0, 0.005, 0), (size[0], 0.005, size[1]), furniture_paint(rng))


def _openings(scene: Scene, origin, yaw: float, along: float, high: float, rng: np.random.Generator):
    """Up to two doors or windows on a wall whose inner side faces the local +z."""
    frame = furniture_paint(rng)
    for slot in (-0.5, 0.5):
        draw = rng.random()
        x = (slot + rng.uniform(-0.15, 0.15)) * along
        if draw < 0.45:
            glass = _glass(rng)
            half = (rng.uniform(0.35, 0.8), rng.uniform(0.35, 0.6))
            middle = min(1.5, high - half[1] - 0.15)
            body = scene.stuff("window", origin, yaw)
            body.box((x, middle, 0.01), (*half, 0.01), glass)
            for offset in (-half[0], 0.0, half[0]):
                body.box((x + offset, middle, 0.02), (0.025, half[1] + 0.025, 0.025), frame)
            for offset in (-half[1], half[1]):
                body.box((x, middle + offset, 0.02), (half[0], 0.025, 0.025), frame)
        elif draw < 0.7:
            wood = furniture_paint(rng)
            body = scene.stuff("door", origin, yaw)
            body.box((x, 1.0, 0.015), (0.45, 1.0, 0.02), wood)
            for panel in (0.55, 1.45):
                body.box((x, panel, 0.03), (0.3, 0.32, 0.02), wood)
            body.ellipsoid((x + 0.36, 1.0, 0.07), (0.035, 0.035, 0.035), frame)


def _furnish(scene: Scene, kind: str, spot: tuple[float, float], rng: np.random.Generator):
    origin, yaw = (spot[0], 0.0, spot[1]), rng.uniform(-math.pi, math.pi)
    if kind == "person":
        sitting = rng.random() < 0.35
        person(scene, origin, yaw, rng, clothes, sitting)
        if sitting:
            objects.seat(scene, (origin[0], 0.0, origin[2]), yaw, rng, furniture_paint, wide=0.26)
        return
    options = {"vehicle": {"scale": rng.uniform(0.16, 0.34)}, "plant": {"scale": rng.uniform(0.8, 1.5)}}
    getattr(objects, kind)(scene, origin, yaw, rng, furniture_paint, **options.get(kind, {}))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _pale(rng: np.random.Generator, pattern: Pattern, scale: float = 2.0) -> Material:
    colour = rng.uniform(0.45, 0.9) * (1 - rng.uniform(0, 0.3) * rng.random(3))
    return Material(pattern, tuple(colour), tuple(colour * rng.uniform(0.6, 0.9)), scale, _seed(rng))


def _glass(rng: np.random.Generator) -> Material:
    blue = rng.uniform(0.3, 0.9)
    return Material(
        Pattern.NOISE, (0.7 * blue, 0.85 * blue, blue), (0.4 * blue, 0.5 * blue, 0.6 * blue), 1.5, _seed(rng)
    )


def wallpaper(rng: np.random.Generator) -> Material:
    pattern = rng.choice([Pattern.PLAIN, Pattern.PLAIN, Pattern.STRIPES, Pattern.NOISE, Pattern.BRICK])
    return _pale(rng, Pattern(pattern), rng.uniform(2.0, 7.0))


def floor_covering(rng: np.random.Generator) -> Material:
    pattern = Pattern(rng.choice([Pattern.WOOD, Pattern.WOOD, Pattern.CHECKER, Pattern.NOISE, Pattern.BRICK]))
    if pattern == Pattern.WOOD:
        return wood(rng)
    return _pale(rng, pattern, rng.uniform(1.5, 5.0))


def wood(rng: np.random.Generator) -> Material:
    red = rng.uniform(0.12, 0.6)
    colour = (red, red * rng.uniform(0.5, 0.7), red * rng.uniform(0.2, 0.42))
    return Material(Pattern.WOOD, colour, tuple(0.65 * c for c in colour), rng.uniform(4, 12), _seed(rng))


def clothes(rng: np.random.Generator) -> Material:
    """Any colour; plain, striped or checked."""
    pattern = Pattern(
        rng.choice([Pattern.PLAIN, Pattern.PLAIN, Pattern.NOISE, Pattern.STRIPES, Pattern.CHECKER])
    )
    first, second = (rng.uniform(0.03, 0.8) * rng.random(3) ** rng.uniform(0.3, 1.2) for _ in range(2))
    return Material(pattern, tuple(first), tuple(second), rng.uniform(6, 14), _seed(rng))


def furniture_paint(rng: np.random.Generator) -> Material:
    """Wood, paint or cloth: a material tells little of the class."""
    draw = rng.random()
    return wood(rng) if draw < 0.4 else _pale(rng, Pattern.PLAIN) if draw < 0.55 else clothes(rng)
