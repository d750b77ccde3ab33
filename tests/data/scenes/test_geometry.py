"""Ray casting against marching through the shapes' inside, which knows none of its algebra."""

import numpy as np
import pytest

from mtl_jax.data.scenes.geometry import Kind, Shape, Shapes, first_hit, surface
from mtl_jax.data.scenes.scene import rotation

SIZE = {
    Kind.BOX: (0.5, 0.3, 0.8),
    Kind.ELLIPSOID: (0.5, 0.9, 0.3),
    Kind.CYLINDER: (0.4, 0.7, 0.6),
    Kind.CAPSULE: (0.3, 0.5, 0.3),
}


def make(kind, centre=(0.2, -0.1, 0.3), size=None, turn=None):
    turn = rotation(0.7, 0.4, -1.1) if turn is None else turn
    return Shape(kind, centre, turn, size or SIZE[kind], 0, 0, 0, None)


def inside(shape, point):
    """bool[N]: membership by definition, for points f64[3,N]."""
    p = shape.rotation.T @ (point - np.array(shape.centre)[:, None])
    a, b, c = shape.size
    if shape.kind == Kind.BOX:
        return (abs(p[0]) <= a) & (abs(p[1]) <= b) & (abs(p[2]) <= c)
    if shape.kind == Kind.ELLIPSOID:
        return (p[0] / a) ** 2 + (p[1] / b) ** 2 + (p[2] / c) ** 2 <= 1
    if shape.kind == Kind.CYLINDER:
        return (abs(p[1]) <= b) & ((p[0] / a) ** 2 + (p[2] / c) ** 2 <= 1)
    axis = np.clip(p[1], -b, b)
    return p[0] ** 2 + (p[1] - axis) ** 2 + p[2] ** 2 <= a**2


def march(shape, origin, rays, far=6.0, steps=3000):
    """First entry along each ray by small steps and bisection; inf if there is none."""
    t = np.linspace(0, far, steps)
    points = origin[:, None, None] + rays[:, :, None] * t
    within = inside(shape, points.reshape(3, -1)).reshape(rays.shape[1], steps)
    first = np.argmax(within, 1)
    low, high = t[np.maximum(first - 1, 0)], t[first]
    for _ in range(40):
        middle = (low + high) / 2
        there = inside(shape, origin[:, None] + rays * middle)
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return np.where(within.any(1), high, np.inf)


def some_rays(count=250, seed=0, origin=(2.5, 1.0, -1.5)):
    rng = np.random.default_rng(seed)
    rays = -np.array(origin)[:, None] + rng.normal(0, 0.4, (3, count))
    return np.array(origin), rays / np.linalg.norm(rays, axis=0)


@pytest.mark.parametrize("kind", SIZE)
def test_distance_agrees_with_marching(kind):
    shape = make(kind)
    origin, rays = some_rays()
    distance, which = first_hit(Shapes([shape]), origin, rays)
    expected = march(shape, origin, rays)
    # A ray that grazes the surface for less than a step is not seen by marching.
    agree = np.isclose(distance, expected, atol=1e-6) | (np.isinf(distance) & np.isinf(expected))
    assert 50 < np.isfinite(expected).sum() < 240
    assert agree.mean() > 0.99
    assert np.array_equal(which >= 0, np.isfinite(distance))


@pytest.mark.parametrize("kind", SIZE)
def test_normal_is_perpendicular_to_the_surface_and_points_to_the_viewer(kind):
    shapes = Shapes([make(kind)])
    origin, rays = some_rays()
    distance, which = first_hit(shapes, origin, rays)
    hit = np.isfinite(distance)
    rays, point = rays[:, hit], origin[:, None] + rays[:, hit] * distance[hit]
    normal, _, _ = surface(shapes, which[hit], point)
    near = []
    for step in ((1e-5, 0, 0), (0, 1e-5, 0), (0, 0, 1e-5)):
        moved = rays + np.array(step)[:, None]
        moved /= np.linalg.norm(moved, axis=0)
        near.append(origin[:, None] + moved * first_hit(shapes, origin, moved)[0] - point)
    for tangent in near:
        length = np.linalg.norm(tangent, axis=0)
        slope = np.abs((tangent * normal).sum(0)) / length
        assert np.mean(slope < 1e-2) > 0.97  # all but those next to an edge or the outline
    assert np.allclose(np.linalg.norm(normal, axis=0), 1)
    assert np.all((normal * rays).sum(0) < 1e-6)


@pytest.mark.parametrize("kind", SIZE)
def test_bounding_sphere_holds_the_shape_and_little_more(kind):
    shape = make(kind)
    offset = np.random.default_rng(0).uniform(-1, 1, (3, 200_000))
    within = inside(shape, offset + np.array(shape.centre)[:, None])
    reach = np.linalg.norm(offset[:, within], axis=0).max()
    assert reach <= Shapes([shape]).bound[0] < 1.1 * reach


def test_nearest_of_many_shapes_wins_whatever_its_kind():
    rng = np.random.default_rng(3)
    kinds = sorted(int(k) for k in rng.integers(1, 5, 12))
    shapes = [
        make(
            Kind(k),
            tuple(rng.uniform(-1, 1, 3)),
            tuple(rng.uniform(0.1, 0.5, 3)),
            rotation(*rng.uniform(-3, 3, 3)),
        )
        for k in kinds
    ]
    floor = make(Kind.PLANE, (0, -1.2, 0), (1, 1, 1), np.eye(3))
    origin, rays = some_rays(600)
    every = [floor, *shapes]
    distance, which = first_hit(Shapes(every), origin, rays)
    alone = np.array([first_hit(Shapes([s]), origin, rays)[0] for s in every])
    assert np.array_equal(distance, alone.min(0))
    hit = np.isfinite(distance)
    assert np.array_equal(alone[which[hit], np.flatnonzero(hit)], distance[hit])
    assert len(set(which)) > 6


def test_plane_is_seen_from_its_front_only():
    floor = Shapes([make(Kind.PLANE, (0, 0, 0), (1, 1, 1), np.eye(3))])
    down = np.array([[0.0], [-0.6], [0.8]])
    assert first_hit(floor, np.array([0, 3.0, 0]), down)[0] == pytest.approx(5.0)
    assert np.isinf(first_hit(floor, np.array([0, 3.0, 0]), -down)[0])
    assert np.isinf(first_hit(floor, np.array([0, -3.0, 0]), -down)[0])


def test_far_light_keeps_thin_shapes_sharp():
    """The sun is 400 m away: a rod of 2 cm must still cast its own width of shadow."""
    rod = Shapes([make(Kind.CAPSULE, (0, 0, 0), (0.02, 1.0, 0.02), np.eye(3))])
    sun = np.array([400.0, 0.0, 0.0])
    across = np.array([0.0199, 0.0201])
    target = np.stack([np.zeros(2), np.zeros(2), across])
    rays = target - sun[:, None]
    rays /= np.linalg.norm(rays, axis=0)
    assert np.isfinite(first_hit(rod, sun, rays)[0]).tolist() == [True, False]
