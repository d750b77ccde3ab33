"""The things that stand about in both domains. All lengths in metres; each is one object of its class."""

import math
from collections.abc import Callable

import numpy as np

from mtl_jax.data.scenes.geometry import Vector
from mtl_jax.data.scenes.scene import Scene, rotation
from mtl_jax.data.scenes.texture import Material, Pattern

Paint = Callable[[np.random.Generator], Material]
"""Draws a material: the two domains differ in how."""

SIDEWAYS = rotation(roll=math.pi / 2)  # turns the y axis of a cylinder into the x direction


def table(scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, paint: Paint):
    """A top (square or round) on four legs or one column, sometimes with a small object on it."""
    body = scene.thing("table", origin, yaw)
    top, leg = paint(rng), paint(rng)
    high = rng.uniform(0.4, 0.9)
    x, z = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.5)
    if rng.random() < 0.35:
        body.cylinder((0, high, 0), (x, 0.025, x), top)
        body.cylinder((0, high / 2, 0), (0.06, high / 2, 0.06), leg)
        body.cylinder((0, 0.02, 0), (0.3, 0.02, 0.3), leg)
    else:
        body.box((0, high, 0), (x, 0.03, z), top)
        thick = rng.uniform(0.025, 0.05)
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            body.box((sx * (x - 0.06), high / 2, sz * (z - 0.06)), (thick, high / 2, thick), leg)
    if rng.random() < 0.6:
        small = (box, ball, plant)[int(rng.integers(3))]
        small(
            scene, body.world((rng.uniform(-0.2, 0.2), high + 0.03, 0)), rng.uniform(0, 6), rng, paint, 0.35
        )


def seat(
    scene: Scene,
    origin: Vector,
    yaw: float,
    rng: np.random.Generator,
    paint: Paint,
    wide: float | None = None,
):
    """A chair, sofa or bench that faces +z; `wide` is half its width."""
    body = scene.thing("seat", origin, yaw)
    cushion, frame = paint(rng), paint(rng)
    wide = rng.choice([0.24, 0.26, 0.7, 0.9]) if wide is None else wide
    high, deep = rng.uniform(0.4, 0.48), rng.uniform(0.22, 0.3)
    back = rng.uniform(0.2, 0.35)
    thick = 0.03 if wide < 0.5 else 0.08
    body.box((0, high, 0), (wide, thick, deep), cushion)
    body.box((0, high + back, -deep + 0.02), (wide, back, thick), cushion, pitch=-rng.uniform(0.05, 0.25))
    if wide < 0.5 or rng.random() < 0.5:
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            body.cylinder((sx * (wide - 0.03), high / 2, sz * (deep - 0.03)), (0.022, high / 2, 0.022), frame)
    else:
        body.box((0, high / 2, 0), (wide, high / 2 - 0.06, deep - 0.02), frame)
        for sx in (-1, 1):
            body.box((sx * (wide + 0.08), 0.32, 0), (0.08, 0.32, deep), cushion)


def box(scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, paint: Paint, scale: float = 1.0):
    """A crate, or a tall cabinet with a second box on it or doors drawn by its texture."""
    body = scene.thing("box", origin, yaw)
    material = paint(rng)
    if scale == 1.0 and rng.random() < 0.4:
        half = (rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.0), rng.uniform(0.2, 0.35))
        trim = paint(rng)
        body.box((0, 2 * half[1] + 0.02, 0), (half[0] + 0.03, 0.02, half[2] + 0.03), trim)
        for level in (0.3, 0.65):
            body.box((0, 2 * half[1] * level, half[2]), (half[0] - 0.06, half[1] * 0.3, 0.015), trim)
    else:
        half = tuple(scale * rng.uniform(0.15, 0.45, 3))
    body.box((0, half[1], 0), half, material)


def ball(
    scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, paint: Paint, scale: float = 1.0
):
    radius = scale * rng.uniform(0.14, 0.4)
    body = scene.thing("ball", origin, yaw)
    body.ellipsoid((0, radius, 0), (radius, radius, radius), paint(rng))


def plant(
    scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, paint: Paint, scale: float = 1.0
):
    """A potted plant or, at scale 3 and more, a tree: a trunk with leafy ellipsoids."""
    body = scene.thing("plant", origin, yaw)
    leaf, trunk = leaves(rng), paint(rng)
    high = scale * rng.uniform(0.35, 0.8)
    if scale < 3:
        pot = scale * rng.uniform(0.12, 0.2)
        body.cylinder((0, pot, 0), (pot, pot, pot), paint(rng))
    body.cylinder((0, high / 2, 0), (0.035 * scale, high / 2, 0.035 * scale), trunk)
    for _ in range(int(rng.integers(3, 7))):
        half = scale * rng.uniform(0.12, 0.32)
        place = scale * rng.uniform(-0.22, 0.22, 3)
        body.ellipsoid(
            (place[0], high + 1.2 * place[1], place[2]), (half, half * rng.uniform(0.7, 1.4), half), leaf
        )


def leaves(rng: np.random.Generator) -> Material:
    """Mottled greens, now and then autumnal."""
    green = rng.uniform(0.12, 0.4)
    red = green * (rng.uniform(0.2, 0.7) if rng.random() < 0.8 else rng.uniform(1.0, 1.8))
    colour = (red, green, green * rng.uniform(0.1, 0.4))
    return Material(
        Pattern.NOISE, colour, tuple(0.25 * c for c in colour), rng.uniform(6, 14), int(rng.integers(2**31))
    )


def lamp(
    scene: Scene,
    origin: Vector,
    yaw: float,
    rng: np.random.Generator,
    paint: Paint,
    high: float | None = None,
):
    """A floor lamp with a shade or globe; with `high`, a street lamp with an arm."""
    body = scene.thing("lamp", origin, yaw)
    pole, shade = paint(rng), paint(rng)
    if high is None:
        high = rng.uniform(1.1, 1.8)
        body.cylinder((0, 0.015, 0), (0.16, 0.015, 0.16), pole)
        wide = rng.uniform(0.16, 0.3)
        if rng.random() < 0.5:
            body.cylinder((0, high, 0), (wide, rng.uniform(0.1, 0.2), wide), shade)
        else:
            body.ellipsoid((0, high, 0), (wide, wide, wide), shade)
        body.cylinder((0, high / 2, 0), (0.02, high / 2, 0.02), pole)
        return
    reach = rng.uniform(0.4, 1.2)
    body.cylinder((0, high / 2, 0), (0.07, high / 2, 0.07), pole)
    body.capsule((0, high, 0), (0, high + 0.2, reach), 0.04, pole)
    body.ellipsoid((0, high + 0.15, reach), (0.16, 0.1, 0.25), shade)


def vehicle(
    scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, paint: Paint, scale: float = 1.0
):
    """A car or van along x; at a scale of about 0.15 a toy."""
    body = scene.thing("vehicle", origin, yaw)
    hull, glass, tyre = paint(rng), _dark(rng, 0.12), _dark(rng, 0.04)
    long, wide, low = rng.uniform(1.7, 2.4), rng.uniform(0.75, 0.95), rng.uniform(0.28, 0.4)
    wheel = rng.uniform(0.28, 0.36)
    van = rng.random() < 0.35
    cabin = rng.uniform(0.3, 0.4) if not van else rng.uniform(0.5, 0.75)
    reach, shift = (0.55 * long, -0.1 * long) if not van else (0.8 * long, -0.15 * long)

    def scaled(*values: float) -> Vector:
        return tuple(scale * v for v in values)

    floor = wheel + low
    body.box(scaled(0, floor, 0), scaled(long, low, wide), hull)
    body.box(scaled(shift, floor + low + cabin, 0), scaled(reach, cabin, 0.88 * wide), glass)
    body.box(scaled(shift, floor + low + 2 * cabin, 0), scaled(0.95 * reach, 0.06, 0.9 * wide), hull)
    for sx in (-0.62, 0.62):
        for sz in (-1, 1):
            place = scaled(sx * long, wheel, sz * (wide - 0.06))
            body.cylinder(place, scaled(wheel, 0.12, wheel), tyre, turn=rotation(pitch=math.pi / 2))


def _dark(rng: np.random.Generator, level: float) -> Material:
    grey = level * rng.uniform(0.4, 1.6)
    return Material(Pattern.PLAIN, (grey, grey, 1.1 * grey), (grey / 2, grey / 2, grey / 2), 3.0)
