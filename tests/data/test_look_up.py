import numpy as np
import pytest

from mtl_jax.data.look_up import look_up, to_float32


@pytest.mark.parametrize("codes", [np.uint8, np.uint16])
@pytest.mark.parametrize("values", [np.uint8, np.int32, np.float16, np.float32])
def test_codes_are_looked_up(codes, values):
    generator = np.random.default_rng(0)
    count = np.iinfo(codes).max + 1
    table = generator.integers(0, 200, count).astype(values)
    stored = generator.integers(0, count, (7, 5, 1), codes)
    found = look_up(stored, table)
    assert found.dtype == values
    np.testing.assert_array_equal(found, table[stored])


@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 3, 3)])
def test_halves_become_floats_exactly(shape):
    label = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    label[0, 0], label[1, 1], label[2, 2] = np.nan, np.inf, 6e-8  # the last is subnormal
    for seen in (label, label[:, ::-1], label[1:, :2]):
        found = to_float32(seen)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, seen.astype(np.float32))
    assert to_float32(np.ones(shape, np.uint8)).dtype == np.float32
