import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.checkpoint import Checkpoints, abstract
from mtl_jax.errors import UserError
from mtl_jax.sharding import make_mesh, replicated

WHOLE = replicated(make_mesh())


def trees(value):
    model = {"params": {"w": jnp.full((64, 64), value), "b": jnp.full(3, value)}, "state": {}}
    train = {"step": jnp.asarray(int(value), jnp.int32), "opt_state": ({}, jnp.full(5, -value)), "method": {}}
    return jax.device_put((model, train), WHOLE)


def save(folder, *steps, keep=3):
    checkpoints = Checkpoints(str(folder), keep)
    for step in steps:
        checkpoints.save(step, *trees(float(step)))
    checkpoints.wait()
    return checkpoints


def test_round_trip_and_keep(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.latest_step() == 4
    assert sorted(p.name for p in (tmp_path / "checkpoints/latest").iterdir()) == ["3", "4"]
    model, train = checkpoints.restore(4, *abstract(trees(0.0), WHOLE))
    jax.tree.map(np.testing.assert_array_equal, (model, train), trees(4.0))
    checkpoints.close()


def test_the_best_outlives_newer_ones_and_carries_its_results(tmp_path):
    checkpoints = save(tmp_path, 1)
    assert checkpoints.best_results() is None
    checkpoints.save_best(1, trees(1.0)[0], {"depth/rmse": 0.5})
    checkpoints.save_best(1, trees(1.0)[0], {"depth/rmse": 0.5})  # met again after a resumption
    checkpoints.save(2, *trees(2.0))
    checkpoints.wait()
    assert checkpoints.best_results() == (1, {"depth/rmse": 0.5})
    step, model = checkpoints.restore_model("best", abstract(trees(0.0)[0], WHOLE))
    assert step == 1 and float(model["params"]["b"][0]) == 1.0
    checkpoints.close()


@pytest.mark.parametrize("item", ["model", "train"])
def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(tmp_path, item):
    save(tmp_path, 1, 2).close()
    newest = tmp_path / "checkpoints/latest/2"
    largest = max((p for p in (newest / item).rglob("*") if p.is_file()), key=os.path.getsize)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    before = sorted(str(p) for p in pathlib.Path(tmp_path).rglob("*"))
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=r"latest/2 is damaged.*resumes from step 1"):
        checkpoints.restore(2, *abstract(trees(0.0), WHOLE))
    checkpoints.close()
    assert sorted(str(p) for p in pathlib.Path(tmp_path).rglob("*")) == before


def test_a_leftover_of_a_killed_write_is_no_checkpoint(tmp_path):
    save(tmp_path, 1).close()
    half = tmp_path / "checkpoints/latest/2.orbax-checkpoint-tmp-0"
    half.mkdir()
    (half / "model").mkdir()
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.latest_step() == 1
    checkpoints.close()


def test_no_checkpoint_says_train_first(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(UserError, match="no best checkpoint .* train first"):
        checkpoints.restore_model("best", abstract(trees(0.0)[0], WHOLE))
    checkpoints.close()
