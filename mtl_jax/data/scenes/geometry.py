"""Shapes in space and what a bundle of rays from one point hits first.

Every solid is a canonical shape (unit cube, unit ball, ...) under an affine map, so one change of
coordinates serves all of them, and the normal follows from the transposed map. World frame: metres, y up.

Per-ray arithmetic is float64 and made of + - * / and sqrt alone, which IEEE 754 fixes bit for bit; matrix
products (whose rounding depends on the machine's BLAS) only decide which shapes are worth a look.
"""

import dataclasses
import enum

import numpy as np

Vector = tuple[float, float, float]


class Kind(enum.IntEnum):
    PLANE = 0  # through the centre, normal = local y, seen from its front only, infinite
    BOX = 1
    ELLIPSOID = 2
    CYLINDER = 3  # axis = local y, closed by flat caps
    CAPSULE = 4  # axis = local y, half length size[1] without the round ends, radius size[0]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One primitive.

    Attributes:
      centre: world position of the local origin, metres.
      rotation: f64[3,3], columns are the local axes in world coordinates.
      size: half extents along the local axes, metres.
      label, instance, part: what a pixel of it is (class id; 0 = no object; 0 = no body part).
      material: see texture.Material.
    """

    kind: Kind
    centre: Vector
    rotation: np.ndarray
    size: Vector
    label: int
    instance: int
    part: int
    material: object


class Shapes:
    """K shapes as arrays, in the order given; the shapes must come sorted by kind."""

    def __init__(self, shapes: list[Shape]):
        self.kind = np.array([s.kind for s in shapes])
        self.centre = np.array([s.centre for s in shapes], np.float64)
        self.rotation = np.array([s.rotation for s in shapes], np.float64)
        size = np.array([s.size for s in shapes], np.float64)
        capsule = self.kind == Kind.CAPSULE
        # A capsule is not an affine image of a fixed shape: it keeps its length, in units of its radius.
        self.length = np.where(capsule, size[:, 1] / size[:, 0], 0.0)
        self.size = np.where(capsule[:, None], size[:, :1], size)
        self.size[self.kind == Kind.PLANE] = 1.0
        # World offset -> canonical coordinates: rows are the local axes over the half extents.
        self.inverse = (self.rotation / self.size[:, None, :]).transpose(2, 1, 0).copy()  # [3,3,K]
        self.bound = np.max(size, 1)  # radius of a sphere around the shape
        box, cylinder = self.kind == Kind.BOX, self.kind == Kind.CYLINDER
        self.bound[box] = np.sqrt(np.sum(size[box] ** 2, 1))
        self.bound[cylinder] = np.hypot(np.maximum(size[cylinder, 0], size[cylinder, 2]), size[cylinder, 1])
        self.bound[capsule] = size[capsule, 0] + size[capsule, 1]


def apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """f64[3,N]: f64[3,3,N] (or [3,3,1]) times f64[3,N], without BLAS."""
    return np.stack([r[0] * vector[0] + r[1] * vector[1] + r[2] * vector[2] for r in matrix])


def first_hit(shapes: Shapes, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each ray meets first.

    Args:
      origin: f64[3], in front of every plane and outside every solid.
      rays: f64[3,N] unit directions.

    Returns:
      distance f64[N] in metres (inf: nothing) and shape i64[N] (-1: nothing).
    """
    distance = np.full(rays.shape[1], np.inf)
    shape = np.full(rays.shape[1], -1)
    for k in np.flatnonzero(shapes.kind == Kind.PLANE):
        t = _plane(shapes.centre[k] - origin, shapes.rotation[k][:, 1], rays)
        closer = t < distance
        distance[closer], shape[closer] = t[closer], k
    k, ray = np.divmod(np.flatnonzero(_may_hit(shapes, origin, rays)), rays.shape[1])  # pairs, in order of k
    local = apply(shapes.inverse, (origin - shapes.centre).T)
    for kind, intersect in _INTERSECT.items():
        these = slice(*np.searchsorted(k, np.searchsorted(shapes.kind, (kind, kind + 1))))
        kk, rr = k[these], ray[these]
        direction = apply(np.take(shapes.inverse, kk, axis=2), np.take(rays, rr, axis=1))
        t = intersect(np.take(local, kk, axis=1), direction, shapes.length[kk])
        closer = np.flatnonzero(t < distance[rr])
        t, kk, rr = t[closer], kk[closer], rr[closer]
        np.minimum.at(distance, rr, t)
        first = t == distance[rr]
        shape[rr[first]] = kk[first]
    return distance, shape


def _may_hit(shapes: Shapes, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """bool[K,N]: rays that enter a shape's bounding sphere (a little enlarged)."""
    offset = shapes.centre - origin
    tangent = np.sum(offset**2, 1) - (1.001 * shapes.bound + 1e-3) ** 2
    cosine = np.where(tangent > 0, np.sqrt(np.maximum(tangent, 0)), -np.inf)
    cosine[shapes.kind == Kind.PLANE] = np.inf
    return (offset.astype(np.float32) @ rays.astype(np.float32)) >= cosine[:, None].astype(np.float32)


def _plane(offset: np.ndarray, normal: np.ndarray, rays: np.ndarray) -> np.ndarray:
    facing = normal[0] * rays[0] + normal[1] * rays[1] + normal[2] * rays[2]
    height = normal[0] * offset[0] + normal[1] * offset[1] + normal[2] * offset[2]
    return np.where(facing < -1e-9, height / np.minimum(facing, -1e-9), np.inf)


def _box(o: np.ndarray, d: np.ndarray, length: np.ndarray) -> np.ndarray:
    inverse = 1.0 / np.where(np.abs(d) < 1e-12, 1e-12, d)
    middle, half = -o * inverse, np.abs(inverse)
    enter, leave = np.max(middle - half, 0), np.min(middle + half, 0)
    return np.where((enter <= leave) & (enter > 0), enter, np.inf)


def _ball(o: np.ndarray, d: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Unit ball at (0, height, 0)."""
    y = o[1] - height
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + y * d[1] + o[2] * d[2]
    h = b * b - a * (o[0] * o[0] + y * y + o[2] * o[2] - 1.0)
    t = (-b - np.sqrt(np.maximum(h, 0))) / a
    return np.where((h >= 0) & (t > 0), t, np.inf)


def _tube(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Endless unit tube around the y axis; NaN where the ray misses it."""
    a = np.maximum(d[0] * d[0] + d[2] * d[2], 1e-12)
    b = o[0] * d[0] + o[2] * d[2]
    h = b * b - a * (o[0] * o[0] + o[2] * o[2] - 1.0)
    return np.where(h >= 0, (-b - np.sqrt(np.maximum(h, 0))) / a, np.nan)


def _cylinder(o: np.ndarray, d: np.ndarray, length: np.ndarray) -> np.ndarray:
    side = _tube(o, d)
    on_side = (np.abs(o[1] + side * d[1]) <= 1.0) & (side > 0)
    rise = np.where(np.abs(d[1]) < 1e-12, 1e-12, d[1])
    cap = (-np.sign(rise) - o[1]) / rise
    on_cap = ((o[0] + cap * d[0]) ** 2 + (o[2] + cap * d[2]) ** 2 <= 1.0) & (cap > 0)
    return np.where(on_side, side, np.where(on_cap, cap, np.inf))


def _capsule(o: np.ndarray, d: np.ndarray, length: np.ndarray) -> np.ndarray:
    side = _tube(o, d)
    y = o[1] + side * d[1]
    on_side = (np.abs(y) <= length) & (side > 0)
    end = _ball(o, d, np.where(y > 0, length, -length))
    return np.where(on_side, side, np.where(np.isnan(side), np.inf, end))


_INTERSECT = {
    Kind.BOX: _box,
    Kind.ELLIPSOID: lambda o, d, length: _ball(o, d, np.zeros_like(length)),
    Kind.CYLINDER: _cylinder,
    Kind.CAPSULE: _capsule,
}


def surface(
    shapes: Shapes, shape: np.ndarray, point: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outward normals and local coordinates of points on the given shapes.

    Args:
      shape: i64[N], which shape each point lies on.
      point: f64[3,N], world.

    Returns:
      normal f64[3,N] in the world, the same in the shape's frame, and local position f64[3,N] in metres.
    """
    inverse = np.take(shapes.inverse, shape, axis=2)
    unit = apply(inverse, point - shapes.centre[shape].T)
    outward = _outward(shapes.kind[shape], shapes.length[shape], unit)
    size = shapes.size[shape].T
    normal = apply(inverse.swapaxes(0, 1), outward)
    length = np.sqrt(np.sum(normal**2, 0))
    return normal / length, outward / size / length, unit * size


def _outward(kind: np.ndarray, length: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Normals (of any length) in canonical coordinates."""
    axis = np.argmax(np.abs(unit), 0)
    box = np.where(np.arange(3)[:, None] == axis, np.sign(unit), 0.0)
    radial = unit * np.array([[1.0], [0.0], [1.0]])
    up = np.stack([0 * unit[1], np.sign(unit[1]), 0 * unit[1]])
    cylinder = np.where(radial[0] ** 2 + radial[2] ** 2 > unit[1] ** 2, radial, up)
    capsule = unit.copy()
    capsule[1] -= np.clip(unit[1], -length, length)
    plane = np.zeros_like(unit)
    plane[1] = 1.0
    return np.choose(kind, [plane, box, unit, cylinder, capsule])
