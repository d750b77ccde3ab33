"""The config of a run: every key with its default, checks, command-line overrides, and JSON.

A config file has `get_config(arg) -> ConfigDict` and may have `sweep(arg)`; `--config=FILE:ARG` passes it
ARG, such as `depth=50,domain=outdoor`.
"""

import ast
import difflib
import functools
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.errors import UserError

# Sub-dicts whose keys belong to the named module; names.build checks them against its `build`.
OPEN = (
    "data.options",
    "data.labels.unlabelled",
    "data.teachers",
    "tasks",
    "model",
    "method",
    "optimizer.lr_scale",
    "optimizer.own",
)


def default() -> ConfigDict:
    """Every key of a run."""
    return ConfigDict(
        {
            "job": "train",  # train | evaluate
            "seed": 0,  # of initialisation, data order and augmentation
            "dtype": "float32",  # of the network's computation: float32 | bfloat16
            "data": {
                "name": "scenes",  # a module in data/datasets
                "options": {},  # of its `build`
                "train": "train",  # split to train on
                "eval": "test",  # split to evaluate on
                "batch_size": 16,  # over all devices and hosts
                "eval_batch_size": 16,
                "size": (96, 128),  # (height, width) of a training crop
                "eval_size": None,  # None: native sizes; (height, width): pad to that canvas
                "cache": True,  # keep decoded examples in memory
                "on_error": "raise",  # at a damaged example: raise | skip, which leaves its row empty
                "max_skipped": 0.01,  # largest share of a split that may be skipped
                "labels": {  # which of them training is given; see data/availability.py
                    "scheme": "fully",  # fully | onelabel | randomlabels | halflabels
                    "seed": 0,  # of the draw
                    "tasks": (),  # columns of the table; (): the run's tasks
                    "file": None,  # a table to read instead
                    "unlabelled": {},  # task, or `all` -> share of the images that lose the label
                    "base": None,  # rows from this one on ...
                    "extension": None,  # ... have the label of this task alone
                },
                "teachers": {},  # task -> workdir of a run that labels the images without that label
                "augment": {
                    "flip": True,  # left to right, for every second example
                    "scale": (1.0, 1.0),  # range of the random enlargement
                    "rotate": 0.0,  # largest angle, degrees
                    "zoom": (),  # factors of random crops that are enlarged to the full size
                    "color": 0.0,  # strength of brightness, contrast and saturation changes
                    "rand_augment": 0,  # number of RandAugment's changes of the colours
                },
            },
            "tasks": {},  # name -> options of the task; `kind` if the module in tasks/ has another name
            "model": {"name": "deeplab"},  # a module in models/, and options of its `build`
            "weights": {  # from which the network starts
                "source": None,  # a key of SOURCES in weights/, or "run"; None: at random
                "path": "",  # the file; "package:NAME" (weights/packages.py); of a run, its working directory
                "parts": ("encoder",),  # what it fills; "head": the classifier; of a run, any, and "": all
            },
            "method": {"name": "supervised"},  # a module in methods/, and options of its `build`
            "optimizer": {
                "name": "sgd",  # sgd | adam | adamw
                "learning_rate": 0.01,
                "momentum": 0.9,  # of sgd
                "weight_decay": 1e-4,
                "decay": "kernels",  # kernels: all but norms and biases | all
                "clip_norm": None,  # largest norm of the whole gradient
                "schedule": "poly",  # poly (power 0.9) | cosine | constant | halve
                "warmup_steps": 0,
                "halve_every": 0.5,  # of the steps; for the schedule `halve`
                "lr_scale": {},  # group (shared, task, task:<name>, auxiliary) -> factor
                "own": {},  # group -> learning_rate, schedule, ... of its own
            },
            "ema_decay": None,  # of averaged weights, which are then evaluated and deployed
            "train": {
                "steps": 1000,
                "log_every": 50,
                "eval_every": 500,
                "checkpoint_every": 500,
                "keep": 2,  # newest checkpoints to keep; the best is kept besides
                "profile_step": None,  # step at which a profile of a few steps is taken
            },
            "figures": {"examples": 4},  # evaluation examples in figures/panels.png
        },
        convert_dict=True,
    )


def check(config: ConfigDict) -> None:
    """Raises UserError that names a key which is unknown, missing, or whose value makes no sense."""
    _check_keys(config)

    def need(ok: bool, key: str, what: str) -> None:
        if not ok:
            raise UserError(f"config.{key} must be {what}, not {_get(config, key)!r}")

    for key in OPEN:
        need(isinstance(_get(config, key), ConfigDict), key, "a dict")
    for key in ("train.steps", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep",
                "data.batch_size", "data.eval_batch_size"):  # fmt: skip
        need(_get(config, key) > 0, key, "a positive integer")
    need(config.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")
    optimizer, augment = config.optimizer, config.data.augment
    need(optimizer.decay in ("kernels", "all"), "optimizer.decay", "'kernels' or 'all'")
    need(optimizer.learning_rate > 0, "optimizer.learning_rate", "positive")
    need(optimizer.warmup_steps >= 0, "optimizer.warmup_steps", "0 or a positive integer")
    clip, ema = optimizer.clip_norm, config.ema_decay
    need(clip is None or (_is_a(clip, 1.0) and clip > 0), "optimizer.clip_norm", "None or positive")
    need(ema is None or (_is_a(ema, 1.0) and 0 < ema < 1), "ema_decay", "None or between 0 and 1")
    need(min(config.data.size) > 0, "data.size", "(height, width), both positive")
    canvas = config.data.eval_size
    need(
        canvas is None or (_is_a(canvas, (1, 1)) and min(canvas) > 0),
        "data.eval_size",
        "None or (height, width)",
    )
    need(0 < optimizer.halve_every <= 1, "optimizer.halve_every", "above 0 and at most 1")
    need(all(z >= 1 for z in augment.zoom), "data.augment.zoom", "factors of at least 1")
    need(augment.rand_augment >= 0, "data.augment.rand_augment", "0 or a positive integer")
    need(config.data.on_error in ("raise", "skip"), "data.on_error", "'raise' or 'skip'")
    need(0 <= config.data.max_skipped <= 1, "data.max_skipped", "a share, from 0 to 1")
    weights = config.weights
    need(weights.source is None or _is_a(weights.source, ""), "weights.source", "None or a name")
    packaged = weights.path.startswith("package:")
    need(not (packaged and weights.source), "weights.source", "None with the path of a package")
    need(
        (packaged or bool(weights.source)) == bool(weights.path),
        "weights.path",
        "the place of the weights that `source` names, and only then",
    )
    labels = config.data.labels
    need(labels.file is None or _is_a(labels.file, ""), "data.labels.file", "None or a path")
    need(labels.base is None or _is_a(labels.base, 1), "data.labels.base", "None or a number of rows")
    need((labels.base is None) == (labels.extension is None), "data.labels.extension", "set with `base`")
    need(0 < augment.scale[0] <= augment.scale[1], "data.augment.scale", "(low, high) with 0 < low <= high")
    profile = config.train.profile_step
    need(
        profile is None or (_is_a(profile, 1) and profile > 0),
        "train.profile_step",
        "None or a positive integer",
    )
    need(config.figures.examples >= 0, "figures.examples", "0 or a positive integer")
    need(len(config.tasks) > 0, "tasks", "at least one task")
    for name, options in config.tasks.items():
        need(isinstance(options, ConfigDict), f"tasks.{name}", "options of a task, perhaps none: {}")


def _check_keys(config: ConfigDict) -> None:
    """All keys of `default` are there with values of the same types, and no others."""
    known = {key: value for key, value in _leaves(default()) if key not in OPEN}
    found = dict(_leaves(config))
    for key in found:
        if key not in known and not _is_open(key):
            raise _unknown(key, known)
    for key, like in known.items():
        if key not in found:
            raise UserError(f"config.{key} is missing: start from mtl_jax.config.default()")
        if like is not None and not _is_a(found[key], like):
            kind = f"like {like}" if isinstance(like, tuple) else f"of type {type(like).__name__}"
            raise UserError(f"config.{key} must be {kind}, not {found[key]!r}")


def _is_a(value: Any, like: Any) -> bool:
    """Whether a value can stand where `like` stands."""
    if like == ():  # of any length
        return isinstance(value, tuple)
    if isinstance(like, tuple) and isinstance(like[0], str):  # names, at least one
        return isinstance(value, tuple) and bool(value) and all(_is_a(name, "") for name in value)
    if isinstance(like, tuple):
        same_length = isinstance(value, tuple) and len(value) == len(like)
        return same_length and all(map(_is_a, value, like))
    if isinstance(like, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(like)


def _is_open(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in OPEN)


def _unknown(key: str, known: Iterable[str]) -> UserError:
    close = difflib.get_close_matches(key, known, n=1)
    return UserError(
        f"unknown config key config.{key}" + (f": did you mean config.{close[0]}?" if close else "")
    )


def _get(config: ConfigDict, key: str) -> Any:
    return functools.reduce(lambda node, part: node[part], key.split("."), config)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The values of a config argument such as `depth=50,tasks=semseg+depth`, typed like their defaults.

    A default that is a tuple takes `a+b`; a bare name stands for `name=True`.

    Raises:
      UserError: an unknown name, or a value of another type; names it.
    """
    values = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"the config takes no argument {key!r}: it takes {', '.join(defaults) or 'none'}")
        values[key] = _typed(key, text if "=" in item else "True", defaults[key])
    return values


def _typed(key: str, text: str, like: Any) -> Any:
    if isinstance(like, tuple):
        return tuple(text.split("+"))
    if isinstance(like, bool):
        known = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() in known:
            return known[text.lower()]
    elif isinstance(like, str) or like is None:
        return text
    else:
        try:
            return type(like)(text)
        except ValueError:
            pass
    raise UserError(f"{key}={text!r} is not of type {type(like).__name__}")


def load_file(spec: str) -> tuple[ModuleType, str | None]:
    """(module, argument) of `FILE.py:ARG`; UserError if there is no such file."""
    path, _, arg = spec.partition(".py:")
    path = path if path.endswith(".py") else path + ".py"
    if not os.path.isfile(path):
        raise UserError(f"there is no config file {path}")
    found = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module, arg or None


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key in place.

    A dict replaces a whole sub-dict whose keys belong to a module, such as config.model; elsewhere it
    sets the keys that it has.

    Raises:
      UserError: an unknown key (naming the closest known one), or a value of another type.
    """
    *parents, last = key.split(".")
    node = config
    for part in parents:
        node = node.get(part) if isinstance(node, ConfigDict) else None
    known = isinstance(node, ConfigDict) and last in node
    if not known and not (isinstance(node, ConfigDict) and _is_open(key)):
        raise _unknown(key, [k for k, _ in _leaves(config)])
    if isinstance(value, Mapping) and not _is_open(key) and isinstance(node[last], ConfigDict):
        for part, new in value.items():
            override(config, f"{key}.{part}", new)
        return
    try:
        with node.unlocked():
            if isinstance(value, Mapping):
                value = ConfigDict(value, convert_dict=True)
            elif known and isinstance(node[last], tuple):
                value = (value,) if isinstance(value, str) else tuple(value)
            node[last] = value
    except TypeError:
        kind = type(node[last]).__name__
        raise UserError(f"config.{key} must be of type {kind}, not {value!r}") from None


def literal(text: str) -> Any:
    """A value from the command line: a Python literal, `true`/`false`/`none`, or else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The locked config of `FILE.py:ARG` with dotted `overrides` applied.

    Raises:
      UserError: no such file, no `get_config` in it, or a wrong override.
    """
    module, arg = load_file(spec)
    if not hasattr(module, "get_config"):
        raise UserError(f"{spec} defines no get_config(arg)")
    config = module.get_config(arg).lock()
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return config


def command_line_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--config.a.b=value` arguments -> {"a.b": value}; UserError for any other argument."""
    overrides = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name.startswith("--config.") or not equals:
            raise UserError(f"unknown argument {argument!r}: keys are set as in --config.train.steps=100")
        overrides[name.removeprefix("--config.")] = literal(text)
    return overrides


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def flat(config: ConfigDict) -> dict[str, Any]:
    """{dotted key: value}; tuples become lists, as they do in JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _leaves(config)}


def to_json(config: ConfigDict) -> str:
    """Text of config.json; `from_json` undoes it, tuples included."""
    return json.dumps(_encode(config.to_dict()), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    return ConfigDict(_decode(json.loads(text)), convert_dict=True).lock()


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _encode(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(v) for v in value]}
    return [_encode(v) for v in value] if isinstance(value, list) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__tuple__"}:
            return tuple(_decode(v) for v in value["__tuple__"])
        return {key: _decode(v) for key, v in value.items()}
    return [_decode(v) for v in value] if isinstance(value, list) else value
