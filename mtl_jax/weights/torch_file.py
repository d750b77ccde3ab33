"""What torch.save wrote, read without torch and without running anything that the file brings.

A pickle can name any Python function and have it called. Of what a pickle may name, this reader knows the
few words that tensors and state dicts consist of, and refuses all others.

There are two formats. The older one is a run of pickles (magic number, protocol, facts on the machine, the
object, the keys of its storages) and then, per key, an int64 count and that many values. The newer one is a
zip archive of the object's pickle, `<name>/data.pkl`, and its storages, `<name>/data/<key>`. In both of them
the object refers to a storage by (type, key, count), and a tensor is an offset, sizes and strides in it.
Values are little-endian.
"""

import collections
import os
import pickle
import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from mtl_jax.errors import UserError, reading

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
FOREIGN = "it is not a file of torch.save"
STORED = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read(path: Path | str) -> Any:
    """The saved object: arrays for tensors and parameters, in dicts, lists, tuples and plain values.

    Tensors of bfloat16 come as float32. Arrays share memory where the tensors did.

    Raises:
      UserError: no such file, one that torch.save did not write, a damaged one, or one that holds an object
        of any other kind; names the file and that object.
    """
    with reading(path), open(path, "rb") as file:
        start = file.read(2)
        file.seek(0)
        return _read_zip(file, path) if start == b"PK" else _read_legacy(file, path)


def _read_zip(file: BinaryIO, path: Path | str) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickled = next((name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if pickled is None:
            raise ValueError(FOREIGN)
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its values are big-endian")
        with archive.open(pickled) as stream:
            unpickler = _Unpickler(stream, path)
            saved = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(archive.read(f"{root}data/{key}"))
    return saved


def _read_legacy(file: BinaryIO, path: Path | str) -> Any:
    try:
        known = (_Unpickler(file, path).load(), _Unpickler(file, path).load()) == (MAGIC, PROTOCOL)
    except UserError:
        raise
    except Exception:  # of any kind: the bytes of another format are odd commands to a pickle machine
        known = False
    if not known:
        raise ValueError(FOREIGN)
    _Unpickler(file, path).load()  # facts on the machine that wrote it
    unpickler = _Unpickler(file, path)
    saved, keys = unpickler.load(), _Unpickler(file, path).load()
    if set(keys) != set(unpickler.storages):
        raise ValueError("the values of a tensor are missing")
    for key in keys:
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != len(storage.values):
            raise ValueError(f"storage {key} has {count} values instead of {len(storage.values)}")
        storage.fill(file.read(count * storage.stored.itemsize))
    return saved


class _Storage:
    """Values that tensors look into; they are filled in once the object has been read."""

    def __init__(self, kind: str, count: int):
        self.stored = STORED[kind]
        self.values = np.empty(count, np.float32 if kind == "BFloat16Storage" else self.stored)

    def fill(self, raw: bytes) -> None:
        if len(raw) != len(self.values) * self.stored.itemsize:
            raise ValueError("it is cut off")
        self.values[:] = np.frombuffer(raw, self.stored)


class LimitedUnpickler(pickle.Unpickler):
    """Builds plain containers and what `known` has besides, and nothing else.

    Args:
      encoding: of strings that Python 2 wrote.
    """

    def __init__(self, stream: BinaryIO, path: Path | str, encoding: str = "utf-8"):
        super().__init__(stream, encoding=encoding)
        self._stream = stream
        self._path = path

    def load(self) -> Any:
        """The next object of the stream.

        Python keeps what a pickle puts away for later in an array, as long as the largest index in use: a
        single wrong index would ask for all memory there is. Whatever is put away takes a byte before it.
        """
        start = self._stream.tell()
        for op, argument, place in pickletools.genops(self._stream):
            if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= place:
                raise ValueError("it is damaged")
        self._stream.seek(start)
        return super().load()

    def known(self) -> dict[tuple[str, str], Any]:
        """What a pickle may name, by module and name: made anew for each name that it uses, since it may
        set attributes of what it named. A mere word has nothing to call or to change.
        """
        return {("collections", "OrderedDict"): collections.OrderedDict}

    def find_class(self, module: str, name: str) -> Any:
        """The known object of that name; raises UserError for any other."""
        known = self.known()
        if (module, name) not in known:
            raise UserError(
                f"{self._path} holds the Python object {module}.{name}, which is not read because loading it"
                " runs code: save tensors or arrays in plain dicts and lists"
            )
        return known[module, name]


class _Unpickler(LimitedUnpickler):
    """Tensors besides; `storages` are those that it met, by key."""

    def __init__(self, stream: BinaryIO, path: Path | str):
        super().__init__(stream, path)
        self.storages: dict[str, _Storage] = {}
        self._size = os.path.getsize(path)

    def known(self) -> dict[tuple[str, str], Any]:
        return super().known() | {
            **{("torch", name): name for name in STORED},
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): lambda *args: _tensor(*args[:4]),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(*args[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }

    def persistent_load(self, reference: Any) -> np.ndarray:
        """The values of a storage, [count]: room for them as yet."""
        word, kind, key, _, count, *view = reference
        if word != "storage" or any(view):
            raise ValueError(f"it refers to a {word} in an unknown way")
        if not 0 <= count * STORED[kind].itemsize <= self._size:
            raise ValueError("it is cut off")
        return self.storages.setdefault(key, _Storage(kind, count)).values


def _tensor(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """The view of a storage that a tensor is; strides count values."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor's shape makes no sense")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise ValueError("a tensor reaches beyond its values")
    return as_strided(storage[offset:], size, [step * storage.itemsize for step in stride])
