"""What the contrast costs: its memory is bounded as stated; table and picture hold what was measured."""

import itertools
import sys

import matplotlib.image
import pytest

from mtl_jax import contrast_cost
from mtl_jax.contrast_cost import Case


@pytest.mark.parametrize("source", contrast_cost.SOURCES)
def test_memory_stays_below_the_bound(source):
    """At the size of NYU-v2's maps; an array of anchors x pixels x channels would be 30 times as much."""
    for block in (16, None):
        case = Case(source, (120, 160), 0.002)
        cost = contrast_cost.measure(case, block, 128, repeats=1)
        bound = contrast_cost.memory_bound(case.pixels, case.gamma, block, 128)
        assert 0 < cost.bytes < bound < 4 * 38 * case.pixels * 128 / 3, block
        assert cost.seconds > 0


def test_the_bound_by_value():
    assert contrast_cost.memory_bound(19200, 0.01, 64, 128) == 40 * 64 * 19200 + 16 * 19200 * 128
    assert contrast_cost.memory_bound(19200, 0.01, None, 128) == 40 * 192 * 19200 + 16 * 19200 * 128
    assert contrast_cost.memory_bound(100, 0.001, 64, 8) == 40 * 100 + 16 * 100 * 8  # one anchor at least


def test_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contrast_cost, "SIZES", ((4, 6), (8, 6)))
    monkeypatch.setattr(contrast_cost, "GAMMAS", (0.1, 0.2))
    monkeypatch.setattr(contrast_cost, "SIZE", (8, 6))
    monkeypatch.setattr(contrast_cost, "GAMMA", 0.1)
    monkeypatch.setattr(sys, "argv", f"_ --out={tmp_path} --width=8 --repeats=1".split())
    contrast_cost.main()
    printed = capsys.readouterr().out
    for source, place in itertools.product(
        contrast_cost.SOURCES, ("4x6, gamma 0.1", "8x6, gamma 0.1", "8x6, gamma 0.2")
    ):
        assert f"| {source}, {place} " in printed
    assert len(printed.splitlines()) == 2 + 9
    assert (tmp_path / "table.md").read_text() == printed
    assert matplotlib.image.imread(tmp_path / "contrast_cost.png").shape[0] > 500


def test_wrong_flags_end_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", f"_ --out={tmp_path} --repeats=0".split())
    with pytest.raises(SystemExit, match="2"):
        contrast_cost.main()
    assert "--repeats and --width must be at least 1" in capsys.readouterr().err
