"""Variables for networks under test."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_variables():
    """(module, *arguments of its init) -> variables with all of their parts in play.

    A new network is a poor test: its residual branches are zero and its running means too. And its
    random numbers take seconds to compile.
    """

    def fill(path, leaf):
        name = path[-1].key.rstrip("12")
        rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(scale=np.sqrt(2 / fan_in), size=leaf.shape).astype(leaf.dtype)
        middle = {"scale": 0.8, "var": 1.0, "bias": 0.0, "mean": 0.0}[name]
        return rng.uniform(middle - 0.2, middle + 0.2, leaf.shape).astype(leaf.dtype)

    def make(module, *args):
        shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))
        return jax.tree_util.tree_map_with_path(fill, shapes)

    return make
