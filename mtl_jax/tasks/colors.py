"""Colours of labels in pictures."""

import numpy as np


def class_palette(num_classes: int) -> np.ndarray:
    """uint8[num_classes,3]: PASCAL VOC's colours, to which the field's eyes are used; class 0 is black.

    Bit k of each channel, from the highest down, is bit 3k + channel of the class id.
    """
    ids = np.arange(num_classes)[:, None]
    channel = np.arange(3)
    return sum(((ids >> (3 * k + channel)) & 1) << (7 - k) for k in range(8)).astype(np.uint8)


def paint(rgb: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """f32[H,W,3] in [0, 1] -> uint8[H,W,3], with grey diagonal stripes where bool[H,W] `unknown`."""
    rows, columns = np.indices(unknown.shape)
    stripes = np.where((rows + columns) // 3 % 2, 0.35, 0.65)[..., None]
    rgb = np.where(unknown[..., None], stripes, rgb)
    return np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def heat(value: np.ndarray, unknown: np.ndarray, colormap: str) -> np.ndarray:
    """f32[H,W] in [0, 1] -> uint8[H,W,3] in the colours of a matplotlib colormap."""
    from matplotlib import colormaps  # slow to import, and only pictures need it

    rgba = colormaps[colormap](np.where(unknown, 0.0, value))
    return paint(rgba[..., :3], unknown)
