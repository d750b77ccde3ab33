"""Both formats of torch.save, written here without torch: plain pickles, raw values, zip."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.weights import torch_file

KINDS = {
    "f8": "DoubleStorage",
    "f4": "FloatStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
    "bf16": "BFloat16Storage",
}


def named(module, name):
    """A stand-in that pickles as `module.name`."""
    return type(name, (), {"__module__": module, "__qualname__": name})


class Storage:
    """Raw values; `count` of them."""

    def __init__(self, kind, raw, count):
        self.kind, self.raw, self.count = kind, raw, count


class Tensor:
    """What torch pickles for a tensor: a call of a rebuilding function."""

    def __init__(self, storage, offset, size, stride, rebuild="_rebuild_tensor_v2"):
        self.args = (storage, offset, size, stride)
        if rebuild == "_rebuild_tensor_v2":
            self.args += (False, OrderedDict())
        self.rebuild = rebuild

    def __reduce__(self):
        return FAKES["torch._utils", self.rebuild], self.args


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return FAKES["torch._utils", "_rebuild_parameter"], (self.tensor, True, OrderedDict())


class Size(tuple):
    def __reduce__(self):
        return FAKES["torch", "Size"], (tuple(self),)


FAKES = {("torch", kind): named("torch", kind) for kind in KINDS.values()}
FAKES |= {
    ("torch._utils", name): named("torch._utils", name)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_qtensor")
}
FAKES["torch", "Size"] = named("torch", "Size")


def modules():
    """Where pickle looks the stand-ins up, in writing; in reading there is no torch."""
    found = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for (module, name), fake in FAKES.items():
        setattr(found[module], name, fake)
    found["torch"]._utils = found["torch._utils"]
    return found


class Pickler(pickle.Pickler):
    def __init__(self, stream, storages, legacy):
        super().__init__(stream, protocol=2)
        self.storages, self.legacy = storages, legacy

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = str(140009 - len(self.storages) if self.legacy else len(self.storages))
        key = self.storages.setdefault(obj, key)
        view = (None,) if self.legacy else ()
        return ("storage", FAKES["torch", obj.kind], key, "cpu", obj.count, *view)


def pickled(obj, legacy):
    stream, storages = io.BytesIO(), {}
    with mock.patch.dict(sys.modules, modules()):
        Pickler(stream, storages, legacy).dump(obj)
    return stream.getvalue(), storages


def legacy(obj):
    body, storages = pickled(obj, True)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    # torch sorts the keys: not the order in which the object names them.
    ordered = sorted(storages.items(), key=lambda item: item[1])
    keys = pickle.dumps([key for _, key in ordered], protocol=2)
    tail = b"".join(struct.pack("<q", s.count) + s.raw for s, _ in ordered)
    return b"".join([*head, body, keys, tail])


def zipped(obj, byteorder=b"little"):
    body, storages = pickled(obj, False)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("table/data.pkl", body)
        archive.writestr("table/byteorder", byteorder)
        for storage, key in storages.items():
            archive.writestr(f"table/data/{key}", storage.raw)
        archive.writestr("table/version", "3\n")
    return stream.getvalue()


FORMATS = {"legacy": legacy, "zip": zipped}


@pytest.fixture(params=FORMATS)
def encode(request):
    return FORMATS[request.param]


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / "table.pth"
        path.write_bytes(content)
        return torch_file.read(path)

    return load


def whole(array):
    """A contiguous tensor of these values."""
    stride = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
    storage = Storage(KINDS[array.dtype.str[1:]], array.tobytes(), array.size)
    return Tensor(storage, 0, array.shape, tuple(stride))


@pytest.mark.parametrize("code", [code for code in KINDS if code != "bf16"])
def test_every_type(encode, load, code):
    values = np.array([[0, 1, 100], [-128, 7, -1]])
    values = np.abs(values) % 128 if code == "u1" else values
    values = (values / 8 if code[0] == "f" else values).astype(code)
    got = load(encode({"x": whole(values)}))["x"]
    assert got.dtype == values.dtype and got.shape == (2, 3)
    np.testing.assert_array_equal(got, values)


def test_bfloat16_comes_as_float32(encode, load):
    bits = np.array([0x3F80, 0xC040, 0x7F80, 0x0001], "<u2")  # 1, -3, inf, the smallest subnormal
    got = load(encode(Tensor(Storage("BFloat16Storage", bits.tobytes(), 4), 0, (4,), (1,))))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1, -3, np.inf, 2.0**-133])


def test_containers_and_plain_values(encode, load):
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, two = whole(weights), whole(-weights.astype(np.float64))
    saved = OrderedDict(
        b=Parameter(two), a=[one, (1, 2.5, None, True, "käse")], size=Size((2, 3)), step=2**40, none={}
    )
    got = load(encode(saved))
    assert list(got) == ["b", "a", "size", "step", "none"]
    np.testing.assert_array_equal(got["b"], -weights)
    np.testing.assert_array_equal(got["a"][0], weights)
    assert got["a"][1] == (1, 2.5, None, True, "käse")
    assert got["size"] == (2, 3) and got["step"] == 2**40 and got["none"] == {}


def test_views_into_one_storage(encode, load):
    grid = np.arange(24, dtype=np.int32).reshape(4, 6)
    storage = Storage("IntStorage", grid.tobytes(), 24)
    saved = {
        "turned": Tensor(storage, 0, (6, 4), (1, 6)),
        "part": Tensor(storage, 7, (2, 2), (6, 2)),
        "first": Tensor(storage, 23, (), ()),
        "wide": Tensor(storage, 5, (3, 2), (0, 6), rebuild="_rebuild_tensor"),
        "none": Tensor(storage, 24, (0, 5), (5, 1)),
    }
    got = load(encode(saved))
    np.testing.assert_array_equal(got["turned"], grid.T)
    np.testing.assert_array_equal(got["part"], grid[1:3, 1:5:2])
    assert got["first"].shape == () and got["first"] == 23
    np.testing.assert_array_equal(got["wide"], [[5, 11]] * 3)
    assert got["none"].shape == (0, 5)
    assert np.shares_memory(got["turned"], got["part"])


def test_without_values(encode, load):
    assert load(encode([])) == []
    assert load(encode(Tensor(Storage("FloatStorage", b"", 0), 0, (0,), (1,)))).shape == (0,)


class Evil:
    """Pickles as a call, of the kind that runs when a pickle is loaded."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, __import__])
def test_nothing_in_the_file_is_run(encode, load, tmp_path, call):
    proof = tmp_path / "it_ran"
    with pytest.raises(UserError, match=r"table.pth holds the Python object \w+.\w+, which is not read"):
        load(
            encode(
                {"x": Evil(call, f"open({str(proof)!r}, 'w')" if call is not os.system else f"touch {proof}")}
            )
        )
    assert not proof.exists()


def test_a_bare_pickle_is_not_run_either(load, tmp_path):
    proof = tmp_path / "it_ran"
    with pytest.raises(UserError, match="holds the Python object posix.system"):
        load(pickle.dumps(Evil(os.system, f"touch {proof}")))
    assert not proof.exists()


def test_other_objects_are_named(encode, load):
    storage = Storage("FloatStorage", bytes(4), 1)
    with pytest.raises(UserError, match="object torch._utils._rebuild_qtensor, which"):
        load(encode(Tensor(storage, 0, (1,), (1,), rebuild="_rebuild_qtensor")))
    with pytest.raises(UserError, match="object __builtin__.set, which"):
        load(encode({1, 2}))


def test_a_pickle_cannot_change_the_reader(load):
    # GLOBAL torch._utils _rebuild_tensor, then BUILD with (None, {"__defaults__": (1,)}).
    poison = b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    sound = legacy(whole(np.ones(3, np.float32)))
    start = sound.index(b"\x80\x02ctorch._utils")
    with pytest.raises(UserError):
        load(sound[:start] + poison)
    np.testing.assert_array_equal(load(sound), np.ones(3))
    assert torch_file._tensor.__defaults__ is None
    poison = poison.replace(b"torch._utils\n_rebuild_tensor", b"torch\nFloatStorage")
    with pytest.raises(UserError, match="cannot read"):
        load(sound[:start] + poison)
    assert torch_file.STORED["FloatStorage"] == np.float32


@pytest.mark.parametrize(
    "offset, size, stride",
    [(0, (5,), (1,)), (3, (2,), (1,)), (-1, (1,), (1,)), (3, (2,), (-1,)), (0, (2,), ())],
)
def test_tensors_that_reach_beyond_their_values(encode, load, offset, size, stride):
    storage = Storage("FloatStorage", bytes(16), 4)
    with pytest.raises(UserError, match="cannot read .*table.pth .a tensor"):
        load(encode(Tensor(storage, offset, size, stride)))


def test_damaged_files(encode, load, tmp_path):
    values = np.arange(100, dtype=np.float64)
    sound = encode({"x": whole(values)})
    for keep in (0, 1, 2, 20, len(sound) // 4, len(sound) // 2, len(sound) - 1):
        with pytest.raises(UserError, match="cannot read .*table.pth"):
            load(sound[:keep])
    with pytest.raises(UserError, match="cannot read .*cut off"):
        load(encode(Tensor(Storage("DoubleStorage", bytes(8), 10**15), 0, (1,), (1,))))
    with pytest.raises(UserError, match="cannot read .*none.pth .No such file"):
        torch_file.read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="not a file of torch.save"):
        load(b"\x89PNG\r\n\x1a\n" + bytes(100))


def test_values_that_do_not_fit(load):
    right = legacy(whole(np.ones(3, np.float32)))
    with pytest.raises(UserError, match="has 2 values instead of 3"):
        load(right.replace(struct.pack("<q", 3), struct.pack("<q", 2)))
    with pytest.raises(UserError, match="not a file of torch.save"):
        load(legacy([]).replace(pickle.dumps(1001, protocol=2), pickle.dumps(1002, protocol=2)))
    with pytest.raises(UserError, match="big-endian"):
        load(zipped([], byteorder=b"big"))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    with pytest.raises(UserError, match="not a file of torch.save"):
        load(stream.getvalue())
