"""How published weights become ours: which of their tensors fills which of our parameters.

A backbone models/backbones/NAME.py has weights/NAME.py beside it, whose SOURCES says of each form in which
its weights are published (`torchvision`, `timm`, ...) where in them our parameters are.

Our parameters are named by their path, below the encoder: "stage1_block1/conv1/conv/kernel". Running
statistics are named alike: "stage1_block1/conv1/norm/mean". What belongs to one task (`norm@depth`) is named
as if all tasks shared it, so that each starts as a copy of what was published.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models.naming import SEPARATOR
from mtl_jax.models.preprocessing import Preprocessing

NAMED = 8  # so many tensors are named in an error; the others are counted

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Taken:
    """What fills one of our parameters.

    Attributes:
      names: of their tensors.
      make: those tensors, and the shape of ours -> the array.
    """

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]


def plain(name: str) -> Taken:
    """As it is."""
    return Taken((name,), lambda x, shape: x)


def torch_conv(name: str) -> Taken:
    """[out, in / groups, k, k] of torch -> [k, k, in / groups, out]."""
    return Taken((name,), lambda x, shape: x.transpose(2, 3, 1, 0) if x.ndim == 4 else x)


def torch_dense(name: str) -> Taken:
    """[out, in] of torch, perhaps of a 1x1 convolution -> [in, out]."""
    return Taken((name,), lambda x, shape: x.reshape(x.shape[:2]).T if x.shape[2:] in ((), (1, 1)) else x)


TORCH_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTERS = r".*\.num_batches_tracked"  # of torch's batch norm


@dataclasses.dataclass(frozen=True)
class Source:
    """One form in which the weights of a backbone are published.

    Attributes:
      take: (our path, encoder) -> Taken; None for what no publication holds, which starts anew. It may name
        tensors of "head/kernel" and "head/bias" too: the released classifier behind the encoder.
      preprocessing: of the images.
      prefixes: that stand before all of their names, in some releases; the first that fits is taken off, and
        tensors without it are left.
      unused: regular expressions of whole names; such tensors are left.
      inside: keys to go down in the file, where it has them: ("state_dict",).
    """

    take: Callable[[str, nn.Module], Taken | None]
    preprocessing: Preprocessing
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def tensors(self, saved: Mapping[str, Any], file: Path | str) -> dict[str, np.ndarray]:
        """Their tensors by name, of what a file holds; raises UserError if it holds something else."""
        for key in self.inside:
            if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
                saved = saved[key]
        if not isinstance(saved, Mapping):
            raise UserError(f"{file} holds no named tensors: give the file of a state dict")
        found = {name: x for name, x in saved.items() if isinstance(x, np.ndarray)}
        for prefix in self.prefixes:
            if any(name.startswith(prefix) for name in found):
                return {n.removeprefix(prefix): x for n, x in found.items() if n.startswith(prefix)}
        return found


def fill(
    tree: Tree, tensors: Mapping[str, np.ndarray], source: Source, encoder: nn.Module, file: Path | str
) -> dict[str, Any]:
    """The tree with published values in it.

    Args:
      tree: {collection: parameters below the encoder}; arrays, or anything with `shape` and `dtype`. A
        collection may also have "head", what reads the encoder's pooled features.
      tensors: theirs, by name.
      source: what they are.
      encoder: whose parameters these are.
      file: where the tensors are from, for errors.

    Raises:
      UserError: tensors that are missing, have another shape, or that nothing of ours takes; names them.
    """
    ours = flax.traverse_util.flatten_dict(tree, sep="/")
    filled, missing, wrong, used = {}, [], [], set()
    for full, leaf in ours.items():
        taken = source.take(_shared(full), encoder)
        if taken is None:
            filled[full] = leaf
            continue
        used.update(taken.names)
        absent = [name for name in taken.names if name not in tensors]
        if absent:
            missing += [f"{name} for {full}" for name in absent]
            continue
        value = np.asarray(taken.make(*(tensors[name] for name in taken.names), tuple(leaf.shape)))
        if value.shape != tuple(leaf.shape):
            theirs = ", ".join(f"{name} {list(tensors[name].shape)}" for name in taken.names)
            wrong.append(f"{theirs} for {full} {list(leaf.shape)}")
            continue
        filled[full] = value.astype(leaf.dtype)
    left = [n for n in tensors if n not in used and not any(re.fullmatch(p, n) for p in source.unused)]
    faults = {"lacks": missing, "has the wrong shape in": wrong, "has besides": left}
    if any(faults.values()):
        told = "; ".join(f"{fault} {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(f"{file} does not fit this network: it {told}")
    return flax.traverse_util.unflatten_dict(filled, sep="/")


def _shared(path: str) -> str:
    """Our name of a parameter below its collection: "params/stem/norm@depth/BatchNorm_0/scale" has none of
    the collection, the task and Flax's own module.
    """
    parts = [part.partition(SEPARATOR)[0] for part in path.split("/")[1:]]
    return "/".join(part for part in parts if not re.fullmatch(r"\w+Norm_\d+", part))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
