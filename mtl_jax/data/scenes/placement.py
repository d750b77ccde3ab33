"""Where things stand: free spots on the ground within the camera's view."""

import math

import numpy as np

from mtl_jax.data.scenes.geometry import Vector
from mtl_jax.data.scenes.scene import Camera


def behind(yaw: float, distance: float) -> Vector:
    """The ground point at `distance` behind the origin, for something that looks along `yaw`."""
    return (-distance * math.sin(yaw), 0.0, -distance * math.cos(yaw))


def free_spot(
    camera: Camera,
    rng: np.random.Generator,
    taken: list[tuple[float, float, float]],
    radius: float,
    distance: tuple[float, float],
    within: tuple[float, float] | None = None,
) -> tuple[float, float] | None:
    """Ground point (x, z) for a thing of the given radius; adds it to `taken`.

    Args:
      taken: x, z and radius of what stands already.
      distance: least and greatest horizontal distance from the camera, metres.
      within: half extents in x and z of the floor, if it has an end.

    Returns:
      None if there is no room after a few tries.
    """
    x0, _, z0 = camera.position
    forward = -camera.rotation[:, 2]
    heading = math.atan2(forward[2], forward[0])
    half_view = math.atan(0.5 / camera.focal)
    for _ in range(12):
        away = math.exp(rng.uniform(math.log(distance[0]), math.log(distance[1])))
        angle = heading + rng.uniform(-1.0, 1.0) * half_view
        x, z = x0 + away * math.cos(angle), z0 + away * math.sin(angle)
        if within and (abs(x) > within[0] or abs(z) > within[1]):
            continue
        if all(math.hypot(x - a, z - b) > radius + c for a, b, c in taken):
            taken.append((x, z, radius))
            return x, z
    return None
