"""Labels that follow from a rendering by rule. Maps are [H,W] unless said otherwise."""

import numpy as np
from scipy import ndimage

from mtl_jax.data.scenes.render import Rendering, to_srgb
from mtl_jax.data.scenes.scene import CLASSES, THINGS

BASELINE = 0.2  # metres between the two cameras of the disparity label
MIN_PIXELS = 12  # an object with fewer visible pixels at 96x128 (or that share of the image) is not counted


def visible_instances(instances: np.ndarray) -> np.ndarray:
    """u8[H,W]: ids 1..n of the objects that show enough of themselves, in the scene's order; else 0."""
    counts = np.bincount(instances.ravel(), minlength=256)
    counts[0] = 0
    seen = counts >= max(4, MIN_PIXELS * instances.size / (96 * 128))
    return np.where(seen, np.cumsum(seen), 0).astype(np.uint8)[instances]


def objects(instances: np.ndarray, semseg: np.ndarray) -> list[dict]:
    """Box (ymin, xmin, ymax, xmax as fractions of the image) and class id of instance 1, 2, ..."""
    height, width = instances.shape
    found = []
    for i, (rows, columns) in enumerate(ndimage.find_objects(instances), 1):
        label = int(semseg[rows, columns][instances[rows, columns] == i][0])
        box = (rows.start / height, columns.start / width, rows.stop / height, columns.stop / width)
        found.append({"bbox": box, "label": label})
    return found


def edges(semseg: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """u8: 1 where the right or lower neighbour has another class or instance (a one-pixel line)."""
    region = semseg.astype(np.int32) * 256 + instances
    border = np.zeros(region.shape, bool)
    border[:, :-1] |= region[:, :-1] != region[:, 1:]
    border[:-1] |= region[:-1] != region[1:]
    return border.astype(np.uint8)


def salient_instance(instances: np.ndarray) -> int:
    """The object that is largest when each pixel counts by its nearness to the image's centre; 0 if none.

    A pixel weighs (1 - |u|) (1 - |v|), with u and v from -1 to 1 across the image.
    """
    height, width = instances.shape
    v = 1 - np.abs((2 * np.arange(height) + 1) / height - 1)
    u = 1 - np.abs((2 * np.arange(width) + 1) / width - 1)
    weight = np.bincount(instances.ravel(), np.outer(v, u).ravel(), minlength=1)
    weight[0] = 0
    return int(np.argmax(weight))


def disparity(depth: np.ndarray, focal: float) -> np.ndarray:
    """f32, pixels: focal * BASELINE / depth; 0 = unknown."""
    return np.where(depth > 0, focal * BASELINE / np.where(depth > 0, depth, 1), 0).astype(np.float32)


def reshading(depth: np.ndarray, normals: np.ndarray, focal: float) -> np.ndarray:
    """f32 in [0, 1]: shading of a white scene by one lamp at the camera.

    Lambert's cosine over 1 + (distance / 5 m)^2.
    Unknown (NaN) where the depth is.
    """
    height, width = depth.shape
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = ((height / 2 - np.arange(height) - 0.5) / focal)[:, None]
    length = np.sqrt(x**2 + y**2 + 1)
    cosine = np.maximum(normals[..., 2] - normals[..., 0] * x - normals[..., 1] * y, 0) / length
    shade = cosine / (1 + (depth * length / 5) ** 2)
    return np.where(depth > 0, shade, np.nan).astype(np.float32)


def edge_occlusion(depth: np.ndarray) -> np.ndarray:
    """f32 in [0, 1]: relative jump of inverse depth where it is not the continuation of a plane.

    Inverse depth is affine in the pixel's place on any plane, so its second differences vanish there
    and only occlusions (and, faintly, creases) remain. Unknown depth counts as infinitely far.
    """
    inverse = np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), 0)
    bend = np.zeros_like(inverse)
    for axis in (0, 1):
        a = np.moveaxis(inverse, axis, 0)
        middle, jump = a[1:-1], np.moveaxis(bend, axis, 0)[1:-1]
        np.maximum(
            jump,
            np.abs(a[:-2] + a[2:] - 2 * middle) / np.maximum(np.maximum(a[:-2], a[2:]), middle + 1e-6),
            jump,
        )
    return np.clip(bend - 0.02, 0, 1).astype(np.float32)


def grey(image: np.ndarray) -> np.ndarray:
    """f32 in [0, 1]: mean of the channels."""
    return image.sum(-1, dtype=np.float32) / np.float32(765)


def edge_texture(image: np.ndarray) -> np.ndarray:
    """f32 in [0, 1]: magnitude of the smoothed image's gradient (Canny's first stage, sigma 1 px)."""
    g = ndimage.gaussian_filter(grey(image), 1.0)
    return np.clip(3 * np.hypot(ndimage.sobel(g, 0), ndimage.sobel(g, 1)) / 4, 0, 1)


def keypoints2d(image: np.ndarray) -> np.ndarray:
    """f32 in [0, 1]: root of the determinant of the smoothed image's Hessian.

    This is the response that SURF approximates, at sigma 1.2 px; saddles give 0.
    """
    g = ndimage.gaussian_filter(grey(image), 1.2)
    dy, dx = np.gradient(g)
    dyy, dyx = np.gradient(dy)
    dxx = np.gradient(dx, axis=1)
    return np.clip(12 * np.sqrt(np.maximum(dxx * dyy - dyx * dyx, 0)), 0, 1)


def annotate(seen: Rendering) -> dict:
    """All labels of a rendering, in the compact form in which the dataset stores them."""
    instances = visible_instances(seen.instances)
    found = objects(instances, seen.semseg)
    salient = salient_instance(instances)
    shade = reshading(seen.depth, seen.normals, seen.focal)
    return {
        "image": seen.image,
        "semseg": seen.semseg,
        "instances": instances,
        "objects": found,
        "parts": seen.parts,
        "depth": seen.depth.astype(np.float16),
        "disparity": disparity(seen.depth, seen.focal).astype(np.float16),
        "normals": np.round(seen.normals * 32767).astype(np.int16),
        "albedo": to_srgb(seen.albedo),
        "edges": edges(seen.semseg, instances),
        "saliency": ((instances == salient) & (salient > 0)).astype(np.uint8),
        "classification": THINGS.index(CLASSES[found[salient - 1]["label"]]) if salient else -1,
        "reshading": _byte(np.nan_to_num(shade)),
        "keypoints2d": _byte(keypoints2d(seen.image)),
        "edge_texture": _byte(edge_texture(seen.image)),
        "edge_occlusion": _byte(edge_occlusion(seen.depth)),
    }


def _byte(value: np.ndarray) -> np.ndarray:
    return np.round(255 * value).astype(np.uint8)
