"""What a scene is made of: shapes, lights and a camera; and `Body`, which places shapes in a local frame."""

import dataclasses
import math

import numpy as np

from mtl_jax.data.scenes.geometry import Kind, Shape, Vector
from mtl_jax.data.scenes.texture import Colour, Material

CLASSES = (
    "ground",
    "wall",
    "sky",
    "window",
    "door",
    "table",
    "seat",
    "box",
    "ball",
    "plant",
    "lamp",
    "vehicle",
    "person",
)
"""Classes of both domains, by id. Ceilings and facades are walls; carpets, streets and lawns are ground."""

THINGS = CLASSES[5:]
"""Classes whose members are counted as objects: they have instances and boxes, and can be salient."""

PARTS = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")


@dataclasses.dataclass(frozen=True)
class Light:
    """A point light.

    Attributes:
      power: irradiance on a surface that faces the light at the distance `reach`, per colour channel.
      reach: metres; the irradiance falls with the square of the distance over `reach`.
    """

    position: Vector
    power: Colour
    reach: float


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
      rotation: f64[3,3]; columns are the camera's x (right), y (up) and z (backwards) axes in the world.
      focal: focal length over the width of the image.
    """

    position: Vector
    rotation: np.ndarray
    focal: float

    def rays(self, height: int, width: int) -> np.ndarray:
        """f64[3,H*W]: directions through the pixel centres in the camera's frame, with z = -1."""
        x = (np.arange(width) + 0.5 - width / 2) / (self.focal * width)
        y = (height / 2 - np.arange(height) - 0.5) / (self.focal * width)
        return np.stack([np.tile(x, height), np.repeat(y, width), np.full(height * width, -1.0)])


@dataclasses.dataclass
class Scene:
    """A scene under construction, and when finished.

    Attributes:
      ambient: irradiance from below and from above, linear RGB.
      sky: colours at the horizon and the zenith, linear RGB.
      objects: number of objects so far; instance ids count from 1.
    """

    camera: Camera
    ambient: tuple[Colour, Colour]
    sky: tuple[Colour, Colour]
    shapes: list[Shape] = dataclasses.field(default_factory=list)
    lights: list[Light] = dataclasses.field(default_factory=list)
    objects: int = 0

    def stuff(self, label: str, origin: Vector = (0, 0, 0), yaw: float = 0.0) -> "Body":
        """A frame for shapes of a class that is not counted."""
        return Body(self, CLASSES.index(label), 0, origin, yaw)

    def thing(self, label: str, origin: Vector = (0, 0, 0), yaw: float = 0.0) -> "Body":
        """A frame for the shapes of one new object."""
        self.objects += 1
        return Body(self, CLASSES.index(label), self.objects, origin, yaw)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """f64[3,3]: turn by `roll` about z, then `pitch` about x, then `yaw` about y (radians)."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (yaw, pitch, roll))
    return np.array(
        [
            [cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp],
            [cp * sr, cp * cr, -sp],
            [cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp],
        ]
    )


@dataclasses.dataclass(frozen=True)
class Body:
    """A local frame (y up, turned by `yaw` about it) whose shapes share class and instance."""

    scene: Scene
    label: int
    instance: int
    origin: Vector
    yaw: float

    def world(self, place: Vector) -> Vector:
        x, y, z = place
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        ox, oy, oz = self.origin
        return (ox + c * x + s * z, oy + y, oz - s * x + c * z)

    def _add(
        self, kind: Kind, place: Vector, turn: np.ndarray, size: Vector, material: Material, part: int = 0
    ):
        axes = rotation(self.yaw) @ turn
        shape = Shape(kind, self.world(place), axes, size, self.label, self.instance, part, material)
        self.scene.shapes.append(shape)

    def plane(self, place: Vector, turn: np.ndarray, material: Material):
        self._add(Kind.PLANE, place, turn, (1, 1, 1), material)

    def box(self, place: Vector, half: Vector, material: Material, yaw: float = 0.0, pitch: float = 0.0):
        self._add(Kind.BOX, place, rotation(yaw, pitch), half, material)

    def ellipsoid(self, place: Vector, half: Vector, material: Material, part: int = 0):
        self._add(Kind.ELLIPSOID, place, np.eye(3), half, material, part)

    def cylinder(self, place: Vector, half: Vector, material: Material, turn: np.ndarray | None = None):
        self._add(Kind.CYLINDER, place, np.eye(3) if turn is None else turn, half, material)

    def capsule(self, start: Vector, end: Vector, radius: float, material: Material, part: int = 0):
        """A rod with round ends around the segment from `start` to `end`."""
        (x0, y0, z0), (x1, y1, z1) = start, end
        x, y, z = x1 - x0, y1 - y0, z1 - z0
        length = math.sqrt(x * x + y * y + z * z)
        # Local y runs along the rod: turn the world's y first away from the vertical, then to its bearing.
        turn = rotation(math.atan2(x, z), math.acos(max(-1.0, min(1.0, y / length))))
        middle = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        self._add(Kind.CAPSULE, middle, turn, (radius, length / 2, radius), material, part)
