"""RoIAlign: a region's features as a small map of fixed size (He et al., "Mask R-CNN", ICCV 2017, section 3).

Interpolation is separable: a region's map is R_y F R_x^T with a row of weights per place, so that two matrix
products do what elsewhere are look-ups, and their gradient is two products again.
"""

import jax
import jax.numpy as jnp

CANONICAL = 224, 4  # a region of 224 x 224 pixels belongs to level 4 (Lin et al., CVPR 2017, eq. 1)


def roi_align(
    features: jax.Array, boxes: jax.Array, size: int = 7, samples: int = 2, aligned: bool = True
) -> jax.Array:
    """Means of samples x samples points in each of size x size bins, bilinear: f[h,w,C] -> f[N,size,size,C].

    Args:
      features: f[h,w,C].
      boxes: f32[N,4], in cells of the map: cell k spans [k, k + 1].
      aligned: take a cell's feature as that of its centre, and 0 around the map. If not, as that of its low
        corner, and the border's features around the map, as older code does.
    """
    height, width = features.shape[:2]
    y = _weights(boxes[:, 0], boxes[:, 2], height, size, samples, aligned).astype(features.dtype)
    x = _weights(boxes[:, 1], boxes[:, 3], width, size, samples, aligned).astype(features.dtype)
    return jnp.einsum("HWc,nhH,nwW->nhwc", features, y, x)


def pyramid_roi_align(
    levels: list[jax.Array],
    boxes: jax.Array,
    first_level: int = 3,
    size: int = 7,
    samples: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """`roi_align` of each box on the level that fits its size.

    Args:
      levels: f[h,w,C] each; a cell of level l has 2^l pixels a side, from `first_level` on.
      boxes: f32[N,4] in pixels.

    Returns:
      f[N,size,size,C].
    """
    mine = levels_of(boxes, first_level, first_level + len(levels) - 1)
    total = 0
    for level, features in enumerate(levels, first_level):
        aligned_here = roi_align(features, boxes / 2**level, size, samples, aligned)
        total += jnp.where((mine == level)[:, None, None, None], aligned_here, 0)
    return total


def levels_of(boxes: jax.Array, first: int = 3, last: int = 7) -> jax.Array:
    """i32[N]: floor(4 + log2(sqrt(area) / 224)) of f32[N,4], or the nearest of the levels there are."""
    # By comparison: a rounded logarithm may miss whole numbers.
    side, level = CANONICAL
    from_here = side * 2.0 ** (jnp.arange(first + 1, last + 1) - level)
    height, width = (jnp.maximum(boxes[:, k + 2] - boxes[:, k], 0) for k in (0, 1))
    return first + jnp.sum(jnp.sqrt(height * width)[:, None] >= from_here, axis=1)


def _weights(low, high, length, size, samples, aligned):
    """f32[N,size,length]: how much each cell along an axis counts for each bin."""
    step = (jnp.arange(size * samples) + 0.5) / (size * samples)
    place = low[:, None] + step * (high - low)[:, None]
    place = place - 0.5 if aligned else jnp.clip(place, 0, length - 1)
    # A linear interpolation gives a cell at distance d the weight 1 - d; beyond the map there are no cells.
    weight = jnp.maximum(1 - jnp.abs(place[:, :, None] - jnp.arange(length)), 0)
    return jnp.mean(weight.reshape(-1, size, samples, length), axis=2)
