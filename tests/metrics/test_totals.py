import math

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.totals import Total, ratio, sum_examples


def test_counts_stay_exact_beyond_float32():
    start = Total.of(jnp.int32(2**30 + 1))  # needs 31 bits, float32 has 24
    assert start.numpy() == 2**30 + 1

    @jax.jit
    def count(total):
        return jax.lax.fori_loop(0, 1000, lambda _, t: t.add(jnp.int32(2**30 + 7)).add(jnp.ones(())), total)

    assert count(start).numpy() == 2**30 + 1 + 1000 * (2**30 + 8)


def test_running_sums_keep_their_digits_under_jit():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(50_000) * 10 ** rng.uniform(-6, 3, 50_000)).astype(np.float32)
    total, _ = jax.jit(lambda x: jax.lax.scan(lambda t, v: (t.add(v), None), Total.zeros(), x))(values)
    exact, size = math.fsum(values), math.fsum(abs(values))
    assert abs(total.numpy() - exact) < 1e-12 * size
    assert abs(np.add.accumulate(values)[-1] - exact) > 1e-9 * size  # what float32 alone would do


def test_sums_over_examples_of_any_length():
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 7, 1000, 4097):
        values = rng.standard_normal((3, n, 1)).astype(np.float32)
        total = jax.jit(sum_examples)(values).numpy()
        exact = [math.fsum(row.ravel()) for row in values]
        np.testing.assert_allclose(total, exact, rtol=0, atol=1e-13 * np.abs(values).sum())


def test_totals_add_to_totals():
    a, b = Total.of(jnp.int32([2**29 + 3, -5])), Total.of(jnp.int32([2**28 + 1, 2**25 + 1]))
    np.testing.assert_array_equal(a.add(b).numpy(), [2**29 + 2**28 + 4, 2**25 - 4])


def test_ratio_of_nothing_is_nan():
    np.testing.assert_array_equal(ratio(np.array([1.0, 0.0]), np.array([4.0, 0.0])), [0.25, np.nan])
