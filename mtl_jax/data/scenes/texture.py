"""Procedural, solid textures: the reflectance of a surface as a function of the place on it."""

import enum
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]


class Pattern(enum.IntEnum):
    PLAIN = 0
    NOISE = 1
    CHECKER = 2
    STRIPES = 3
    WOOD = 4
    BRICK = 5


class Material(NamedTuple):
    """Two linear-RGB reflectances in [0, 1], mixed by a pattern.

    Attributes:
      scale: periods per metre.
      seed: makes the noise of two materials differ.
    """

    pattern: Pattern
    first: Colour
    second: Colour
    scale: float = 1.0
    seed: int = 0


def noise(place: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Smooth value noise in [0, 1] with lattice spacing 1.

    Args:
      place: f64[3,N].
      seed: integers [N] or scalar.
    """
    cell = np.floor(place)
    f = (place - cell).astype(np.float32)
    f = f * f * (3 - 2 * f)
    corner = cell.astype(np.int64).astype(np.uint32)
    primes = np.array([0x8DA6B343, 0xD8163841, 0xCB1AB31F], np.uint32)
    low = corner * primes[:, None]  # wraps modulo 2**32, as a hash should
    high = low + primes[:, None]
    z = [
        _hash_mix(low, high, f, z + np.asarray(seed, np.uint32) * np.uint32(0x9E3779B1))
        for z in (low[2], high[2])
    ]
    return z[0] + (z[1] - z[0]) * f[2]


def _hash_mix(low: np.ndarray, high: np.ndarray, f: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Bilinear mix, in x and y, of the random values at four lattice corners."""
    rows = []
    for y in (low[1], high[1]):
        a, b = (_scramble(x ^ y ^ z) for x in (low[0], high[0]))
        rows.append(a + (b - a) * f[0])
    return rows[0] + (rows[1] - rows[0]) * f[1]


def _scramble(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def triangle(x: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs(2 * (x - np.floor(x)) - 1)


def reflectance(
    materials: list[Material], index: np.ndarray, place: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """f32[N,3] linear reflectance.

    Args:
      index: [N], material of each point.
      place: f64[3,N], position in the shape's frame, metres.
      normal: f64[3,N], in the same frame; the patterns lie on the face that it belongs to.
    """
    pattern = np.array([m.pattern for m in materials])[index]
    scale = np.array([m.scale for m in materials])[index]
    seed = np.array([m.seed for m in materials])[index]
    place = place * scale
    rough = noise(place, seed)
    fine = noise(4 * place, seed + 1)
    axis = np.argmax(np.abs(normal), 0)
    u, v = np.where(axis == 0, place[2], place[0]), np.where(axis == 1, place[2], place[1])
    mix = 0.15 * fine
    mix = np.where(pattern == Pattern.NOISE, 0.6 * rough + 0.4 * fine, mix)
    mix = np.where(pattern == Pattern.CHECKER, (np.floor(u) + np.floor(v)) % 2 * 0.9 + 0.1 * fine, mix)
    mix = np.where(pattern == Pattern.STRIPES, np.clip(4 * triangle(u) - 1.5, 0, 1), mix)
    mix = np.where(
        pattern == Pattern.WOOD, triangle(u + 0.8 * noise(place * [[2], [2], [0.4]], seed + 2)), mix
    )
    mix = np.where(pattern == Pattern.BRICK, _brick(u, v, rough, fine), mix)
    first = np.array([m.first for m in materials], np.float32)[index]
    second = np.array([m.second for m in materials], np.float32)[index]
    return first + (second - first) * mix[:, None].astype(np.float32)


def _brick(u: np.ndarray, v: np.ndarray, rough: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Courses one unit high, bricks two units long, every other course shifted by half a brick."""
    row = np.floor(v)
    along = 0.5 * u + 0.5 * (row % 2)
    mortar = (v - row < 0.15) | (along - np.floor(along) < 0.08)
    return np.where(mortar, 1.0, 0.3 * rough + 0.2 * fine)
