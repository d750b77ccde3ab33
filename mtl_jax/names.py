"""A name in a config is a module: `method.name = "jtr"` is `mtl_jax/methods/jtr.py`."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mtl_jax.errors import UserError


def available(package: str) -> list[str]:
    """Names of the modules in `mtl_jax.<package>` that can be named in a config."""
    parent = importlib.import_module(f"mtl_jax.{package}")
    found = (m.name for m in pkgutil.iter_modules(parent.__path__))
    return sorted(n for n in found if hasattr(importlib.import_module(f"{parent.__name__}.{n}"), "build"))


def resolve(package: str, name: str) -> ModuleType:
    """The module `mtl_jax.<package>.<name>`; raises UserError that lists the known names."""
    full = f"mtl_jax.{package}.{name}"
    if name.isidentifier():
        try:
            module = importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:  # the module is there, but something that it imports is not
                raise
        else:
            if hasattr(module, "build"):
                return module
    kind = package.replace(".", "/")
    raise UserError(f"unknown name {name!r} in {kind}: choose one of {', '.join(available(package))}")


def build(package: str, name: str, options: Mapping[str, Any], *args: Any) -> Any:
    """Calls `build(*args, **options)` of the named module.

    Raises:
      UserError: the name is unknown, or an option is not one that its `build` takes, or lacks.
    """
    function = resolve(package, name).build
    parameters = list(inspect.signature(function).parameters.values())[len(args) :]
    known = [p.name for p in parameters]
    for key in options:
        if key not in known:
            raise UserError(f"{package}.{name} has no option {key!r}: it takes {', '.join(known) or 'none'}")
    for p in parameters:
        if p.default is p.empty and p.name not in options:
            raise UserError(f"{package}.{name} needs the option {p.name!r}")
    return function(*args, **options)
