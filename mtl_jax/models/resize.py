"""Resampling of feature maps."""

import jax


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear interpolation f[B,h,w,C] -> f[B,H,W,C] between pixel centres; borders are repeated."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
