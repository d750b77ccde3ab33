"""Arrays [h,w,C] of an image at another size (H,W), while they are read."""

import numpy as np
from PIL import Image


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W,C]: each new pixel takes the value of the one that covers its centre; nothing is mixed."""
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size, array.shape, strict=False))
    return array[rows[:, None], columns]


def smooth(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, over all that a new pixel covers when the image shrinks; uint8[h,w,3] or f32[h,w,C]."""
    shape = size[::-1]
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(array).resize(shape, Image.Resampling.BILINEAR))
    channels = [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(array, -1, 0)]
    return np.stack([np.asarray(c.resize(shape, Image.Resampling.BILINEAR)) for c in channels], axis=-1)


def covering(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,3] -> uint8[*size,3]: resized by one factor until it covers the size, then its middle.

    What is cut off are whole pixels of the image.
    """
    scale = max(new / old for new, old in zip(size, image.shape, strict=False))
    kept = [min(old, max(1, round(new / scale))) for new, old in zip(size, image.shape, strict=False)]
    top, left = ((old - part) // 2 for old, part in zip(image.shape, kept, strict=False))
    return smooth(image[top : top + kept[0], left : left + kept[1]], size)


def smooth_known(array: np.ndarray, known: np.ndarray, size: tuple[int, int], fill: float) -> np.ndarray:
    """`smooth` of the known values alone; `fill` where `nearest` meets an unknown one.

    Args:
      array: f32[h,w,C].
      known: bool[h,w,1].
      size: (H, W).
      fill: what stands for "unknown" in the result.
    """
    weight = smooth(known.astype(np.float32), size)
    total = smooth(np.where(known, array, np.float32(0)), size)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return np.where(nearest(known, size), mean, np.float32(fill))
