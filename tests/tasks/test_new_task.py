"""The README's example of a new task: one file and one config line."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

import mtl_jax.tasks
from mtl_jax import names
from mtl_jax import tasks as tasks_lib

README = pathlib.Path("README.md").read_text()


def test_the_readmes_task_is_found_by_its_name_and_learns_in_logarithms(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "log_depth.py").write_text(code)
    monkeypatch.setattr(mtl_jax.tasks, "__path__", [*mtl_jax.tasks.__path__, str(tmp_path)])
    task = tasks_lib.build({"depth": {"kind": "log_depth"}}, {"depth": {}})["depth"]
    assert "log_depth" in names.available("tasks")

    rng = np.random.default_rng(0)
    label = rng.uniform(1, 9, (2, 4, 5, 1)).astype(np.float32)
    label[0, :2] = 0
    raw = rng.normal(1, 0.5, label.shape).astype(np.float32)
    loss = task.loss(jnp.asarray(raw), jnp.asarray(label), jnp.asarray(label > 0, jnp.float32))
    for n in range(2):
        known = label[n] > 0
        np.testing.assert_allclose(loss[n], np.abs(np.exp(raw[n]) - label[n])[known].mean(), rtol=1e-5)
    exact = task.metric().update(
        task.activate(jnp.log(label + 1e-9)), label, jnp.asarray(label > 0, jnp.float32)
    )
    assert exact.compute()[task.headline] < 1e-5
