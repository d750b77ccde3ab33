"""Where a network starts: from published weights, or from another run of ours (config.weights)."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.models.naming import owned
from mtl_jax.models.preprocessing import Preprocessing
from mtl_jax.weights import files, packages
from mtl_jax.weights.source import NAMED, Source, fill

RUN = "run"  # the source of weights that are ours

Tree = dict[str, Any]


def source(weights: Any, encoder: nn.Module) -> Source:
    """What config.weights names, of this encoder.

    Raises:
      UserError: there are no published weights for the encoder, none of that name, or a package holds those
        of another one.
    """
    family = type(encoder).__module__.rpartition(".")[2]
    try:
        known = importlib.import_module(f"mtl_jax.weights.{family}").SOURCES
    except ModuleNotFoundError as error:
        if error.name != f"mtl_jax.weights.{family}":  # it is there, but something that it imports is not
            raise
        raise UserError(f"there are no published weights for {family}: leave config.weights out") from None
    name = weights.source
    if weights.path.startswith(packages.PREFIX):
        packaged = packages.package(weights.path.removeprefix(packages.PREFIX))
        if packaged.backbone != family:
            raise UserError(
                f"config.weights.path is {weights.path!r}, a {packaged.backbone}, but the network has a"
                f" {family}: set config.model.backbone"
            )
        _check_options(weights.path, packaged, encoder)
        name = packaged.source
    if name not in known:
        raise UserError(
            f"config.weights.source is {name!r}: choose one of {RUN} and, for a {family}, {', '.join(known)}"
        )
    return known[name]


def _check_options(path: str, packaged: packages.Package, encoder: nn.Module) -> None:
    """UserError if the encoder is not as a package's weights need it: shapes alone would not always tell."""
    needed, plain = (
        names.build("models.backbones", packaged.backbone, options, "float32")
        for options in (packaged.encoder, {})
    )
    for key in (field.name for field in dataclasses.fields(needed)):
        wanted, found = getattr(needed, key), getattr(encoder, key)
        if wanted != getattr(plain, key) and wanted != found:
            raise UserError(
                f"config.weights.path is {path!r}, whose network has {key}={wanted!r}, not {found!r}: set"
                " that option of the encoder in config.model"
            )


def preprocessing(weights: Any, model: nn.Module) -> Preprocessing:
    """Of images, as the published weights want it; UserError as of `source`."""
    return source(weights, model.encoder).preprocessing


def start(variables: Tree, model: nn.Module, weights: Any) -> Tree:
    """A network's variables with published values in those that config.weights.parts names.

    Args:
      variables: what `model.init` gives, or shapes.
      model: with an `encoder`.
      weights: config.weights.

    Raises:
      UserError: as of `source`; a file that cannot be read; or one whose tensors are not the encoder's.
    """
    wanted, path = source(weights, model.encoder), weights.path
    if path.startswith(packages.PREFIX):
        path = packages.fetch(path.removeprefix(packages.PREFIX))
    tensors = wanted.tensors(files.read(path), path)
    tree = {name: dict(values["encoder"]) for name, values in variables.items() if "encoder" in values}
    head = _head(model, weights.parts)
    if head:
        tree["params"]["head"] = variables["params"][head]["dense"]
    filled = fill(tree, tensors, wanted, model.encoder, path)
    started = {name: dict(values) for name, values in variables.items()}
    if head:
        started["params"][head] = {"dense": filled["params"].pop("head")}
    for name, values in filled.items():
        started[name]["encoder"] = values
    return started


def _head(model: nn.Module, parts: Sequence[str]) -> str | None:
    """The module that the released classifier fills."""
    for part in parts:
        if part not in ("encoder", "head"):
            raise UserError(f"config.weights.parts has {part!r}: published weights have 'encoder' and 'head'")
    if "encoder" not in parts:
        raise UserError("config.weights.parts lacks 'encoder', which published weights are for: add it")
    if "head" not in parts:
        return None
    classified = [name for name, task in model.tasks.items() if not task.dense]
    if len(classified) != 1:
        raise UserError("config.weights.parts has 'head': give the network one task of kind classification")
    return owned("head", classified[0])


def copy(variables: Tree, other: Mapping[str, Any], parts: Sequence[str], run: str) -> Tree:
    """A network's variables with those of another network in some parts.

    Args:
      variables, other: {collection: {module: ...}}.
      parts: paths below a collection, such as "encoder" or "decoder/aspp"; "" is all.
      run: where the other network is from, for errors.

    Raises:
      UserError: a part that is not there, or a variable that the other network has not, or in another shape.
    """
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (variables, other))
    below = {path: path.partition("/")[2] for path in ours}
    for part in parts:
        if part and not any(_inside(path, part) for path in below.values()):
            modules = sorted({path.partition("/")[0] for path in below.values()})
            raise UserError(
                f"config.weights.parts has {part!r}, but the network has {', '.join(modules)}, and what is in"
                " them"
            )
    wanted = [path for path, inner in below.items() if any(_inside(inner, part) for part in parts)]
    wrong = [p for p in wanted if p not in theirs or np.shape(theirs[p]) != tuple(ours[p].shape)]
    if wrong:
        told = [
            f"{p} {list(ours[p].shape)} ({list(np.shape(theirs[p])) if p in theirs else 'missing'} there)"
            for p in wrong[:NAMED]
        ]
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UserError(
            f"{run} has not the network of this run: {', '.join(told)}{more}; name the parts to take in"
            " config.weights.parts"
        )
    return flax.traverse_util.unflatten_dict(ours | {path: theirs[path] for path in wanted}, sep="/")


def _inside(path: str, part: str) -> bool:
    return not part or path == part or path.startswith(f"{part}/")
