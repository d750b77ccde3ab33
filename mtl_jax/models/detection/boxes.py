"""Boxes as arrays f32[...,4], rows (ymin, xmin, ymax, xmax) in pixels, as edges: a length is a difference.

Sources: Ren et al., "Faster R-CNN" (NeurIPS 2015), eq. 2, for the coder; Girshick, "Fast R-CNN" (ICCV 2015)
and its code for the weights and the largest size.
"""

import math

import jax
import jax.numpy as jnp

MAX_LOG = math.log(1000 / 16)  # a decoded side is at most 62.5 times that of the reference
REGION_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the deltas of Fast R-CNN


def area(boxes: jax.Array) -> jax.Array:
    """f32[...,4] -> f32[...]; 0 where an end lies before its start."""
    height, width = (jnp.maximum(boxes[..., k + 2] - boxes[..., k], 0) for k in (0, 1))
    return height * width


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union f32[N,M] of f32[N,4] and f32[M,4]; 0 where neither has an area."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    common = _common(a, b)
    return _ratio(common, area(a)[:, None] + area(b) - common)


def within(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[N,M]: the share of each of the boxes f32[N,4] that lies within each of f32[M,4]."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return _ratio(_common(a, b), area(a)[:, None])


def encode(boxes: jax.Array, references: jax.Array, weights: tuple[float, ...] = (1.0,) * 4) -> jax.Array:
    """Deltas f32[...,4], (dy, dx, dh, dw), that lead from `references` to `boxes`, both f32[...,4].

    The centre moves by dy heights and dx widths of the reference, whose sides grow by exp(dh) and exp(dw);
    each delta is multiplied by its weight. Both boxes need an area.
    """
    centre, size = _centre_and_size(boxes)
    origin, unit = _centre_and_size(references)
    deltas = jnp.concatenate([(centre - origin) / unit, jnp.log(size / unit)], axis=-1)
    return deltas * jnp.array(weights, jnp.float32)


def decode(deltas: jax.Array, references: jax.Array, weights: tuple[float, ...] = (1.0,) * 4) -> jax.Array:
    """The inverse of `encode`, f32[...,4], for sides of up to 62.5 times those of the references."""
    shift, growth = jnp.split(deltas.astype(jnp.float32) / jnp.array(weights, jnp.float32), 2, axis=-1)
    origin, unit = _centre_and_size(references)
    centre = origin + shift * unit
    half = jnp.exp(jnp.minimum(growth, MAX_LOG)) * unit / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: jax.Array, size: jax.Array | tuple[float, float]) -> jax.Array:
    """f32[...,4]: the parts within an image of `size` (height, width)."""
    height, width = size
    end = jnp.stack([jnp.asarray(n, jnp.float32) for n in (height, width, height, width)])
    return jnp.clip(boxes, 0, end)


def _common(a, b):
    """f32[N,M]: area of the intersections."""
    height, width = (
        jnp.maximum(
            jnp.minimum(a[:, None, k + 2], b[:, k + 2]) - jnp.maximum(a[:, None, k], b[:, k]),
            0,
        )
        for k in (0, 1)
    )
    return height * width


def _ratio(part, whole):
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _centre_and_size(boxes):
    low, high = jnp.split(boxes.astype(jnp.float32), 2, axis=-1)
    return (low + high) / 2, high - low
