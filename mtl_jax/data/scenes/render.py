"""From a scene to what a camera and an all-knowing annotator see of it, pixel by pixel."""

import dataclasses

import numpy as np

from mtl_jax.data.scenes import indoor, outdoor, texture
from mtl_jax.data.scenes.geometry import Shapes, apply, first_hit, surface
from mtl_jax.data.scenes.scene import CLASSES, Light, Scene

DOMAINS = {"indoor": indoor.compose, "outdoor": outdoor.compose}
MAX_DEPTH = 80.0  # metres; depth is unknown beyond, as with a real sensor
SKY = CLASSES.index("sky")


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What is seen, as maps of the image's size.

    Attributes:
      image: u8[H,W,3], sRGB.
      albedo: f32[H,W,3], linear reflectance; 0 in the sky.
      irradiance: f32[H,W,3]; image = srgb(exposure * albedo * irradiance) outside the sky.
      exposure: camera gain.
      depth: f32[H,W], metres along the optical axis; 0 = unknown (sky, or beyond MAX_DEPTH).
      normals: f32[H,W,3], unit, camera frame (x right, y up, z to the camera); 0 in the sky.
      semseg, parts: u8[H,W].
      instances: u8[H,W], 1.. = object of the scene, 0 = none.
      focal: focal length in pixels.
    """

    image: np.ndarray
    albedo: np.ndarray
    irradiance: np.ndarray
    exposure: float
    depth: np.ndarray
    normals: np.ndarray
    semseg: np.ndarray
    parts: np.ndarray
    instances: np.ndarray
    focal: float


def render(scene: Scene, height: int, width: int) -> Rendering:
    """Casts one ray through each pixel centre and one from each light to what it sees."""
    solids = sorted(scene.shapes, key=lambda s: s.kind)
    shapes = Shapes(solids)
    rays = scene.camera.rays(height, width)
    length = np.sqrt(np.sum(rays**2, 0))
    turn = scene.camera.rotation
    world_rays = apply(turn[:, :, None], rays / length)
    origin = np.array(scene.camera.position)
    distance, shape = first_hit(shapes, origin, world_rays)
    hit = shape >= 0
    found, point = shape[hit], origin[:, None] + world_rays[:, hit] * distance[hit]
    normal, local_normal, local = surface(shapes, found, point)

    albedo = np.zeros((height * width, 3), np.float32)
    albedo[hit] = texture.reflectance([s.material for s in solids], found, local, local_normal)
    irradiance = np.zeros_like(albedo)
    irradiance[hit] = _irradiance(scene, shapes, point, normal)
    radiance = albedo * irradiance
    exposure = _exposure(radiance[hit])
    radiance = radiance * np.float32(exposure)
    radiance[~hit] = _sky(scene, world_rays[:, ~hit])

    depth = np.zeros(height * width, np.float32)
    depth[hit] = distance[hit] / length[hit]
    depth[depth > MAX_DEPTH] = 0
    normals = np.zeros((height * width, 3), np.float32)
    normals[hit] = apply(turn.T[:, :, None], normal).T

    def painted(values: list[int], missing: int) -> np.ndarray:
        flat = np.full(height * width, missing, np.uint8)
        flat[hit] = np.array(values, np.uint8)[found]
        return flat.reshape(height, width)

    return Rendering(
        image=to_srgb(radiance).reshape(height, width, 3),
        albedo=albedo.reshape(height, width, 3),
        irradiance=irradiance.reshape(height, width, 3),
        exposure=exposure,
        depth=depth.reshape(height, width),
        normals=normals.reshape(height, width, 3),
        semseg=painted([s.label for s in solids], SKY),
        parts=painted([s.part for s in solids], 0),
        instances=painted([s.instance for s in solids], 0),
        focal=scene.camera.focal * width,
    )


def _irradiance(scene: Scene, shapes: Shapes, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """f32[N,3]: light from below and above, plus each lamp that sees the point."""
    below, above = (np.array(c) for c in scene.ambient)
    total = below + (above - below) * (0.5 + 0.5 * normal[1])[:, None]
    for light in scene.lights:
        total = total + direct_light(light, shapes, point, normal)[:, None] * np.array(light.power)
    return total.astype(np.float32)


def direct_light(light: Light, shapes: Shapes, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """f64[N]: Lambert's cosine times the falloff, where the light's ray to the point hits nothing before."""
    place = np.array(light.position)
    ray = point - place[:, None]
    distance = np.sqrt(ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2)
    ray = ray / distance
    cosine = -(ray[0] * normal[0] + ray[1] * normal[1] + ray[2] * normal[2])
    facing = np.flatnonzero(cosine > 0)
    reached, _ = first_hit(shapes, place, ray[:, facing])
    lit = facing[reached >= distance[facing] * (1 - 1e-9) - 2e-3]
    power = np.zeros_like(distance)
    power[lit] = cosine[lit] * (light.reach / distance[lit]) ** 2
    return np.minimum(power, 4.0)


def _exposure(radiance: np.ndarray) -> float:
    """Gain that brings the mean to a third of white, in steps that absorb rounding."""
    mean = float(np.mean(radiance, dtype=np.float64)) if radiance.size else 1.0
    return round(np.clip(0.3 / max(mean, 1e-3), 0.25, 8.0) * 64) / 64


def _sky(scene: Scene, rays: np.ndarray) -> np.ndarray:
    """f32[N,3]: from the horizon's colour to the zenith's, with clouds."""
    horizon, zenith = (np.array(c, np.float32) for c in scene.sky)
    up = np.clip(rays[1], 0, 1).astype(np.float32)[:, None]
    blue = horizon + (zenith - horizon) * np.minimum(2 * up, 1)
    seed = int(scene.lights[0].power[0] * 1e6) if scene.lights else 0
    place = rays / (rays[1] + 0.35) * 2
    cloud = 0.65 * texture.noise(place, seed) + 0.35 * texture.noise(3 * place, seed + 1)
    return blue + (0.95 - blue) * np.clip(2.5 * cloud - 1.2, 0, 1)[:, None]


def _srgb_table() -> np.ndarray:
    linear = np.arange(4096) / 4095
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curve).astype(np.uint8)


_SRGB = _srgb_table()


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear [0, 1] (clipped) -> u8 with the sRGB curve (IEC 61966-2-1)."""
    return _SRGB[np.round(np.clip(linear, 0, 1) * 4095).astype(np.int32)]


def seed_of(domain: str, split: str, index: int) -> np.random.Generator:
    """The random numbers of one image: they depend on its name alone."""
    name = [*f"{domain}/{split}".encode(), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(name)))


def render_example(domain: str, split: str, index: int, height: int, width: int) -> Rendering:
    """The image with this name, the same whenever and wherever it is rendered."""
    return render(DOMAINS[domain](seed_of(domain, split, index)), height, width)
