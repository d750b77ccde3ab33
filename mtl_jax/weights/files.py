"""Files of published weights: `read` tells their formats apart, and runs nothing that a file brings."""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import safetensors

from mtl_jax.errors import UserError, reading
from mtl_jax.weights import torch_file

FOREIGN = (
    "it is cut off or of no format that is read here: torch.save, safetensors, npz, a pickle of arrays,"
    " HDF5 of Keras, model.json of TensorFlow.js"
)
HDF5 = b"\x89HDF\r\n\x1a\n"
SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": jnp.bfloat16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
TFJS = {"float32": "<f4", "int32": "<i4"}

Named = Iterable[tuple[str, np.ndarray]]


def read(path: Path | str) -> Any:
    """The arrays of a file, by name; of torch.save, the saved object as `torch_file.read` gives it.

    Names are those of the file. Of a pickle they are the keys on the way to the array, "params/conv/kernel",
    and of Keras' HDF5 and TensorFlow.js they are the layer's and the variable's, "conv1/kernel". Numbers of
    16 bits come as float32 with the same values; what holds no numbers is left out.

    Args:
      path: a file; of a model for TensorFlow.js, its model.json, with the shards beside it.

    Raises:
      UserError: no such file, or one that is damaged, of another format, or holds anything but arrays where
        reading that would run code; names the file.
    """
    path = Path(path)
    with reading(path):
        with open(path, "rb") as file:
            start = file.read(32)
        reader = _reader(path, start)
        found = reader(path)
        return found if reader is torch_file.read else _checked(found)


def _reader(path: Path, start: bytes) -> Callable[[Path], Any]:
    """What reads a file that starts like this."""
    if start.startswith(HDF5):
        return _hdf5
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            npz = any(name.endswith(".npy") for name in archive.namelist())
        return _npz if npz else torch_file.read
    header = int.from_bytes(start[:8], "little")
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and header < path.stat().st_size):
        return _safetensors
    if start.lstrip().startswith(b"{"):
        return _tfjs
    if torch_file.MAGIC.to_bytes(10, "little") in start:
        return torch_file.read
    return _pickle


def _checked(named: Named) -> dict[str, np.ndarray]:
    """The arrays of numbers, none of which may have another's name."""
    found = {}
    for name, x in named:
        if name in found:
            raise ValueError(f"two of its arrays are called {name}")
        if x.dtype == "V2":  # npz does not know bfloat16, and takes it for two bytes
            x = x.view(jnp.bfloat16)
        if x.dtype.newbyteorder("=") in (np.float16, jnp.bfloat16):
            x = x.astype(np.float32)
        if x.dtype.kind in "fiub":
            found[name] = x
    return found


def _safetensors(path: Path) -> Named:
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name} is of the type {tensor['dtype']}")
        yield name, np.frombuffer(tensor["data"], SAFETENSORS[tensor["dtype"]]).reshape(tensor["shape"])


def _npz(path: Path) -> Named:
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            yield name, np.asarray(archive[name])


def _tfjs(path: Path) -> Named:
    """Groups of weights, each of which lie one after another in the group's shards."""
    model = json.loads(path.read_bytes())
    if "weightsManifest" not in model:
        raise ValueError(FOREIGN)
    for group in model["weightsManifest"]:
        raw, start = b"".join(_shard(path, name) for name in group["paths"]), 0
        for weight in group["weights"]:
            name, shape = weight["name"], weight["shape"]
            if "quantization" in weight or weight["dtype"] not in TFJS:
                raise ValueError(f"{name} is no array of {' or '.join(TFJS)}")
            dtype = np.dtype(TFJS[weight["dtype"]])
            end = start + math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or end > len(raw):
                raise ValueError(f"its shards end before {name}")
            yield name, np.frombuffer(raw[start:end], dtype).reshape(shape)
            start = end
        if start != len(raw):
            raise ValueError("its shards have more values than it names")


def _shard(path: Path, name: str) -> bytes:
    if Path(name).name != name:
        raise ValueError(f"its shard {name!r} is not beside it")
    with reading(path.with_name(name)):
        return path.with_name(name).read_bytes()


def _hdf5(path: Path) -> Named:
    """All datasets, or those below "model_weights" where a whole model was saved; no link is followed."""
    found = []

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or (item.size and not item.id.get_storage_size()):
            raise ValueError(f"the values of {name} are missing")
        layer, _, rest = name.removesuffix(":0").partition("/")
        # A layer is a group, and the full names of its variables are inside: conv1/conv1/kernel:0.
        found.append((rest if rest.startswith(f"{layer}/") else name.removesuffix(":0"), np.asarray(item)))

    with h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(note)
    return found


class _Dtype:
    """A dtype in a pickle: made of its code, and then given its state, which begins with the byte order."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def made(self) -> np.dtype:
        if self.code == "bfloat16":
            return np.dtype(jnp.bfloat16)
        if not re.fullmatch(r"[fiubSU]\d+", self.code):
            raise ValueError(f"an array in it is of {self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    """An array in a pickle: made empty, and then given its state; or made of bytes at once."""

    def __init__(self, *parts: Any):
        self.parts = parts

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.parts = raw, dtype, shape, "F" if fortran else "C"

    def made(self) -> np.ndarray:
        raw, dtype, shape, order = self.parts
        if isinstance(raw, str):  # as Python 2 calls bytes
            raw = raw.encode("latin-1")
        x = np.ndarray(shape, dtype.made(), raw, order=order)
        if x.nbytes != len(raw):
            raise ValueError(f"an array in it has {len(raw)} bytes instead of {x.nbytes}")
        return x


class _Unpickler(torch_file.LimitedUnpickler):
    """Arrays besides, as _Array: NumPy's own functions trust the state that they are given."""

    def known(self) -> dict[tuple[str, str], Any]:
        known = super().known() | {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): lambda *args: _Dtype(*args),
            ("ml_dtypes", "bfloat16"): "bfloat16",
            ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # how protocol 2 has bytes
        }
        for core in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
            known[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
            known[f"{core}.numeric", "_frombuffer"] = lambda *parts: _Array(*parts)
        return known


def _pickle(path: Path) -> Named:
    with open(path, "rb") as file:
        unpickler = _Unpickler(file, path, encoding="latin-1")
        try:
            saved = unpickler.load()
        except UserError:
            raise
        except Exception as error:  # of any kind: other formats are odd commands to a pickle machine
            raise ValueError(FOREIGN) from error
    return _walk(saved, "", set())


def _walk(item: Any, name: str, seen: set[int]) -> Named:
    """The arrays in containers; `seen` are those met before."""
    if isinstance(item, _Array):
        yield name, item.made()
    if not isinstance(item, dict | list | tuple):
        return
    parts = item.items() if isinstance(item, dict) else enumerate(item)
    parts = [(key, part) for key, part in parts if isinstance(part, _Array | dict | list | tuple)]
    # A few containers that hold one another could have more paths than anyone can walk.
    if parts and id(item) in seen:
        raise ValueError(f"what it has in {name} it has elsewhere too")
    seen.add(id(item))
    for key, part in parts:
        yield from _walk(part, f"{name}/{key}" if name else str(key), seen)
