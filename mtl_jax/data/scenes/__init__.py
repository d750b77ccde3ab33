"""The embedded dataset: random scenes, rendered on first use, with exact labels of every kind.

Importing this package makes it known to TFDS. Promise: an image is a function of (domain, split, index,
size), whoever renders it, in whatever order. Between machines, layouts and geometry are computed in
float64 from operations that IEEE 754 fixes, and what is stored is rounded, so that files are equal
except where the C library's sine or NumPy's summation differ in the last bit at a rounding boundary.
"""

from mtl_jax.data.scenes.builder import Scenes, ScenesConfig

__all__ = ["Scenes", "ScenesConfig"]
