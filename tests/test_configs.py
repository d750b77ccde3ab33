"""Every config file is complete, and every row of its sweep can be built."""

import pathlib

import pytest

from mtl_jax import config as configs
from mtl_jax import names, sweep
from mtl_jax import tasks as tasks_lib
from mtl_jax.data.datasets import scenes
from mtl_jax.experiment import build_method, build_model

FILES = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))


def parts(config):
    """Builds the tasks, model and method of a config (the dataset may not be on this machine)."""
    configs.check(config)
    names.resolve("data.datasets", config.data.name)
    known = {"scenes": scenes.LABELS, "bsds500": {"edges": {"annotators": 9}}}
    labels = known.get(config.data.name) or config.data.options.labels
    plain = {
        name: {k: v for k, v in spec.items() if k in ("kind", "num_classes", "annotators")}
        for name, spec in labels.items()
    }
    tasks = tasks_lib.build(config.tasks, plain)
    return build_method(config, build_model(config, tasks), tasks)


@pytest.mark.parametrize(
    "spec", [*FILES, "configs/scenes.py:demo", "configs/nyu.py:mini", "configs/bsds500.py:mini"]
)
def test_config_is_complete(spec):
    parts(configs.load(spec))


def test_rows_of_the_scenes_table_are_complete():
    found = sweep.load_sweep("configs/scenes.py")
    assert found.baseline in found.rows
