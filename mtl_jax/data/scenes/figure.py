"""Articulated people made of capsules, with the six body parts of the person-part labels."""

import math

import numpy as np

from mtl_jax.data.scenes.geometry import Vector
from mtl_jax.data.scenes.scene import PARTS, Scene
from mtl_jax.data.scenes.texture import Material, Pattern

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, len(PARTS))


def person(scene: Scene, origin: Vector, yaw: float, rng: np.random.Generator, cloth, sitting: bool = False):
    """Adds a person who stands, walks or gestures at `origin` on the ground, or sits there.

    Lengths are the usual fractions of the body's height (shank and thigh about a quarter each, the
    head an eighth).

    Args:
      cloth: rng -> Material, how clothes are drawn.
      sitting: the hips are 0.55 m above the ground, the thighs level.
    """
    tall = rng.uniform(1.45, 1.9)
    bulk = rng.uniform(0.85, 1.25)
    body = scene.thing("person", origin, yaw)
    skin, hair = _skin(rng), _hair(rng)
    shirt, trousers, shoes = cloth(rng), cloth(rng), cloth(rng)
    sleeve = shirt if rng.random() < 0.5 else skin
    leg = trousers if rng.random() < 0.75 else skin

    stride = rng.uniform(-0.6, 0.6)
    legs = [_limb(side, *_leg_pose(side, stride, sitting, rng)) for side in (-1, 1)]
    thigh, shank = 0.245 * tall, 0.25 * tall
    hip = 0.55 if sitting else -min(thigh * upper[1] + shank * lower[1] for upper, lower in legs) + 0.04
    for side, (upper, lower) in zip((-1, 1), legs, strict=True):
        root = np.array([side * 0.055 * tall, hip, 0.0])
        knee = root + thigh * upper
        ankle = knee + shank * lower
        body.capsule(root, knee, 0.05 * tall * bulk, trousers, UPPER_LEG)
        body.capsule(knee, ankle, 0.034 * tall * bulk, leg, LOWER_LEG)
        toe = ankle + np.array([0, -0.3 * 0.035 * tall, 0.09 * tall])
        body.capsule(ankle, toe, 0.026 * tall, shoes, LOWER_LEG)

    lean = rng.uniform(-0.1, 0.25)
    spine = np.array([0.0, math.cos(lean), math.sin(lean)])
    pelvis = np.array([0.0, hip, 0.0])
    neck = pelvis + 0.29 * tall * spine
    for side in (-1, 1):
        across = np.array([side * 0.05 * tall * bulk, 0, 0])
        body.capsule(
            pelvis + 0.7 * across, neck - 0.02 * tall * spine + across, 0.062 * tall * bulk, shirt, TORSO
        )
        shoulder = neck + np.array([side * 0.115 * tall * bulk, -0.01 * tall, 0])
        upper, lower = _limb(side, *_arm_pose(rng))
        elbow = shoulder + 0.17 * tall * upper
        wrist = elbow + 0.16 * tall * lower
        body.capsule(shoulder, elbow, 0.031 * tall * bulk, shirt, UPPER_ARM)
        body.capsule(elbow, wrist, 0.025 * tall * bulk, sleeve, LOWER_ARM)
        body.ellipsoid(
            tuple(wrist + 0.03 * tall * lower), (0.025 * tall, 0.032 * tall, 0.025 * tall), skin, LOWER_ARM
        )

    head = neck + 0.115 * tall * spine
    body.capsule(neck, head, 0.03 * tall, skin, HEAD)
    body.ellipsoid(tuple(head), (0.046 * tall, 0.065 * tall, 0.055 * tall), skin, HEAD)
    crown = tuple(head + tall * np.array([0, 0.018, -0.014]))
    body.ellipsoid(crown, (0.05 * tall, 0.058 * tall, 0.055 * tall), hair, HEAD)


def _limb(side: int, swing: float, spread: float, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions of the upper and lower half of a limb; angles in radians, forward is +z."""

    def direction(forward: float) -> np.ndarray:
        level = math.cos(spread)
        return np.array([side * math.sin(spread), -math.cos(forward) * level, math.sin(forward) * level])

    return direction(swing), direction(swing + bend)


def _leg_pose(
    side: int, stride: float, sitting: bool, rng: np.random.Generator
) -> tuple[float, float, float]:
    if sitting:
        return rng.uniform(1.3, 1.5), rng.uniform(0.0, 0.15), -rng.uniform(1.2, 1.6)
    return side * stride, rng.uniform(0.0, 0.15), -rng.uniform(0.0, 0.3) - 0.8 * max(0.0, -side * stride)


def _arm_pose(rng: np.random.Generator) -> tuple[float, float, float]:
    if rng.random() < 0.25:  # raised
        return rng.uniform(1.5, 2.9), rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.8)
    return rng.uniform(-0.6, 0.8), rng.uniform(0.05, 0.5), rng.uniform(0.1, 1.6)


def _skin(rng: np.random.Generator) -> Material:
    tone = rng.uniform(0.15, 1.0)
    colour = (0.75 * tone, 0.5 * tone**1.25, 0.36 * tone**1.4)
    return Material(Pattern.PLAIN, colour, tuple(0.8 * c for c in colour), 20.0)


def _hair(rng: np.random.Generator) -> Material:
    dark = rng.uniform(0.02, 0.4) ** 1.5
    return Material(Pattern.NOISE, (dark, 0.7 * dark, 0.45 * dark), (dark / 2, dark / 3, dark / 4), 40.0)
