"""Anchors: the boxes of fixed sizes that every cell of a pyramid's maps predicts objects relative to.

Source: Ren et al., "Faster R-CNN" (NeurIPS 2015), section 3.1; Lin et al., "Feature pyramid networks" (CVPR
2017), section 4.1: one size per level. The defaults are those that the authors of MuST use for levels 3 to 7.
"""

import itertools
from collections.abc import Sequence

import numpy as np

RATIOS = (1.0, 2.0, 0.5)


def anchors(
    sizes: Sequence[tuple[int, int]],
    first_level: int = 3,
    size: float = 3.0,
    scales: int = 1,
    ratios: Sequence[float] = RATIOS,
) -> list[np.ndarray]:
    """Anchors f32[h*w*A,4] of each level, in the order of a map f[h,w,A], A = scales * len(ratios).

    Args:
      sizes: (h, w) of the maps; a cell of level l has 2^l pixels a side, from `first_level` on.
      size: side of the smallest square anchor, in cells.
      scales: anchors per octave and ratio.
      ratios: of width to height.
    """
    return [
        _of_map(h, w, 2**level, size, scales, ratios) for level, (h, w) in enumerate(sizes, start=first_level)
    ]


def _of_map(height, width, stride, size, scales, ratios):
    shapes = [
        (size * stride * 2 ** (k / scales) / ratio**0.5, size * stride * 2 ** (k / scales) * ratio**0.5)
        for k, ratio in itertools.product(range(scales), ratios)
    ]
    y, x = (stride * (np.arange(n) + 0.5) for n in (height, width))
    centre = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    half = np.array(shapes) / 2
    return np.concatenate([centre - half, centre + half], axis=-1).reshape(-1, 4).astype(np.float32)
