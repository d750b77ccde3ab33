"""Anchors against a loop over cells, and numbers worked out by hand."""

import numpy as np
import pytest

from mtl_jax.models.detection.anchors import anchors


def sizes(side):
    return [(side // 2**level,) * 2 for level in range(3, 8)]


def test_first_cell_by_hand():
    first = anchors([(2, 3)])[0]
    assert first.shape == (18, 4) and first.dtype == np.float32
    np.testing.assert_allclose(first[0], [-8, -8, 16, 16])
    np.testing.assert_allclose(first[1], [-4.4853, -12.9706, 12.4853, 20.9706], atol=1e-4)
    np.testing.assert_allclose(first[2], [-12.9706, -4.4853, 20.9706, 12.4853], atol=1e-4)


@pytest.mark.parametrize("side,cells", [(512, 5456), (640, 8525), (896, 16709)])
def test_as_many_as_published(side, cells):
    assert sum(map(len, anchors(sizes(side)))) == 3 * cells
    assert sum(map(len, anchors(sizes(side), size=4, scales=3))) == 9 * cells


def test_order_is_that_of_a_map():
    maps = [(3, 4), (2, 2)]
    for level, (height, width), ours in zip((4, 5), maps, anchors(maps, 4, 4, 3, (1, 2)), strict=True):
        expected = []
        for y in range(height):
            for x in range(width):
                for k in range(3):
                    for ratio in (1, 2):
                        side = 4 * 2**level * 2 ** (k / 3)
                        w, h = side * ratio**0.5, side / ratio**0.5
                        cy, cx = (y + 0.5) * 2**level, (x + 0.5) * 2**level
                        expected.append([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2])
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)
