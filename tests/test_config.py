"""Configs: what is accepted, what is refused and how, and that they survive being written."""

import re

import pytest

from mtl_jax import config as configs
from mtl_jax.errors import UserError


@pytest.fixture
def config():
    c = configs.default()
    c.tasks = {"depth": {}}
    return c


def test_the_default_needs_no_more_than_a_task(config):
    configs.check(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", 0, "config.train.steps must be a positive integer, not 0"),
        ("train.steps", True, "config.train.steps must be of type int, not True"),
        ("train.steps", None, "config.train.steps must be of type int, not None"),
        (
            "data.augment.scale",
            (True, 2.0),
            "config.data.augment.scale must be like (1.0, 1.0), not (True, 2.0)",
        ),
        ("data.batch_size", -4, "config.data.batch_size must be a positive integer, not -4"),
        ("dtype", "float16", "config.dtype must be float32 or bfloat16, not 'float16'"),
        ("data.size", (96,), "config.data.size must be like (96, 128), not (96,)"),
        ("data.size", ("a", "b"), "config.data.size must be like (96, 128), not ('a', 'b')"),
        ("data.size", (96, 0), "config.data.size must be (height, width), both positive, not (96, 0)"),
        ("data.eval_size", 96, "config.data.eval_size must be None or (height, width), not 96"),
        ("data.augment.scale", (2.0, 1.0), "config.data.augment.scale must be (low, high)"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate must be positive, not 0.0"),
        ("optimizer.clip_norm", 0, "config.optimizer.clip_norm must be None or positive, not 0"),
        ("ema_decay", 1, "config.ema_decay must be None or between 0 and 1, not 1"),
        ("train.profile_step", 2.5, "config.train.profile_step must be None or a positive integer, not 2.5"),
        ("tasks", {}, "config.tasks must be at least one task"),
        ("tasks.depth", 3, "config.tasks.depth must be options of a task, perhaps none: {}, not 3"),
        ("optimizer.lr_scale", None, "config.optimizer.lr_scale must be a dict, not None"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(config, key, value, message):
    with config.ignore_type():
        configs.override(config, key, value)
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.augment.scale", (1, 2)), ("data.eval_size", (96, 128)), ("ema_decay", 0.99),
     ("optimizer.clip_norm", 10), ("optimizer.learning_rate", 1), ("train.profile_step", 7)],
)  # fmt: skip
def test_values_that_make_sense_pass(config, key, value):
    configs.override(config, key, value)
    configs.check(config)


def test_keys_that_a_config_file_added_or_lost_are_named(config):
    config.train.setps = 10
    with pytest.raises(
        UserError, match=r"unknown config key config.train.setps: did you mean config.train.steps\?"
    ):
        configs.check(config)
    config.train = {"steps": 10}
    with pytest.raises(UserError, match="config.train.checkpoint_every is missing"):
        configs.check(config)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.setps", "unknown config key config.train.setps: did you mean config.train.steps?"),
        (
            "learning_rate",
            "unknown config key config.learning_rate: did you mean config.optimizer.learning_rate?",
        ),
        ("train.steps.more", "unknown config key config.train.steps.more: did you mean config.train.steps?"),
        ("xyz", "unknown config key config.xyz"),
    ],
)
def test_an_unknown_key_is_named_beside_the_closest_known_one(config, key, message):
    with pytest.raises(UserError) as caught:
        configs.override(config, key, 1)
    assert str(caught.value) == message


def test_an_override_of_another_type_is_named(config):
    with pytest.raises(UserError, match="config.train.steps must be of type int, not 'many'"):
        configs.override(config, "train.steps", "many")
    with pytest.raises(UserError, match="config.data.size must be of type tuple, not 96"):
        configs.override(config, "data.size", 96)


def test_overrides_set_what_they_name_and_nothing_else(config):
    before = configs.flat(config)
    for key, value in {"optimizer.learning_rate": 1, "data.size": [4, 6], "train": {"steps": 5}}.items():
        configs.override(config, key, value)
    after = configs.flat(config)
    assert {k for k in after if after[k] != before[k]} == {
        "optimizer.learning_rate",
        "data.size",
        "train.steps",
    }
    assert set(after) == set(before)
    assert config.data.size == (4, 6) and config.train.steps == 5


def test_sub_dicts_of_modules_take_new_keys_and_are_replaced_as_a_whole(config):
    config.lock()
    configs.override(config, "model.depth", 50)
    configs.override(config, "tasks.depth.smoothness", 1.0)
    configs.override(config, "optimizer.lr_scale.shared", 0.1)
    assert config.model.to_dict() == {"name": "deeplab", "depth": 50}
    configs.override(config, "model", {"name": "segnet"})
    assert config.model.to_dict() == {"name": "segnet"}
    configs.check(config)


def test_command_line():
    arguments = ["--config.data.size=(32,48)", "--config.data.size=8,9", "--config.dtype=bfloat16",
                 "--config.data.cache=false", "--config.ema_decay=None", "--config.train.steps=7",
                 "--config.tasks={'semseg': {}}", "--config.optimizer.learning_rate=1e-3"]  # fmt: skip
    assert configs.command_line_overrides(arguments) == {
        "data.size": (8, 9), "dtype": "bfloat16", "data.cache": False, "ema_decay": None, "train.steps": 7,
        "tasks": {"semseg": {}}, "optimizer.learning_rate": 1e-3,
    }  # fmt: skip
    for wrong in ("--confg.seed=1", "--config.seed", "seed=1"):
        with pytest.raises(UserError, match=f"unknown argument '{wrong}'"):
            configs.command_line_overrides([wrong])


def test_arguments_of_a_config_file():
    defaults = {"depth": 26, "rate": 0.1, "tasks": ("depth",), "demo": False, "domain": "indoor"}
    args = configs.parse_arg("depth=50,tasks=semseg+depth,demo,rate=1", **defaults)
    assert args.to_dict() == {
        "depth": 50, "rate": 1.0, "tasks": ("semseg", "depth"), "demo": True, "domain": "indoor",
    }  # fmt: skip
    assert configs.parse_arg("demo=false", **defaults).demo is False
    assert configs.parse_arg(None, **defaults).to_dict() == defaults
    with pytest.raises(UserError, match="no argument 'dept': it takes depth, rate"):
        configs.parse_arg("dept=50", **defaults)
    with pytest.raises(UserError, match="depth='many' is not of type int"):
        configs.parse_arg("depth=many", **defaults)


FILE = """
from mtl_jax import config as configs

def get_config(arg=None):
    config = configs.default()
    config.tasks = {configs.parse_arg(arg, task="depth").task: {}}
    return config
"""


def test_loading_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    config = configs.load(f"{path}:task=normals", {"train.steps": 3})
    assert list(config.tasks) == ["normals"] and config.train.steps == 3 and config.is_locked
    assert list(configs.load(str(path)).tasks) == ["depth"]
    with pytest.raises(UserError, match="there is no config file .*yours.py"):
        configs.load(str(tmp_path / "yours.py:x=1"))
    path.write_text("")
    with pytest.raises(UserError, match="mine.py defines no get_config"):
        configs.load(str(path))


def test_json_keeps_every_value_and_type(config):
    config.data.options = {"list": [1, 2], "nested": {"tuple": (1, (2.5, None))}, "tuple": {"tuple": [3]}}
    again = configs.from_json(configs.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert again.is_locked
