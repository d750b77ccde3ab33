"""Every format of published weights, written by what writes it, damaged, and hostile."""

import json
import os
import pickle
import struct
from collections import OrderedDict

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mtl_jax.errors import UserError
from mtl_jax.weights import files
from tests.weights.test_torch_file import Evil, legacy, whole, zipped

KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5
BIAS = np.array([0.5, -3, 1e-3, 2.0**-20])  # exact in 16 bits: none but the first two


def same(found, expected):
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_array_equal(found[name], x)


def write_tfjs(folder, weights, shards=3):
    """model.json and its shards, of about equal length: tensors go on from one to the next."""
    raw = b"".join(x.tobytes() for x in weights.values())
    size, paths = -(-len(raw) // shards), [f"group1-shard{n + 1}of{shards}.bin" for n in range(shards)]
    for n, path in enumerate(paths):
        (folder / path).write_bytes(raw[n * size : (n + 1) * size])
    named = [{"name": n, "shape": list(x.shape), "dtype": str(x.dtype)} for n, x in weights.items()]
    model = {"modelTopology": {}, "weightsManifest": [{"paths": paths, "weights": named}]}
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


WRITERS = {
    "a.npz": lambda path, weights: np.savez(path, **weights),
    "packed.npz": lambda path, weights: np.savez_compressed(path, **weights),
    "a.safetensors": lambda path, weights: safetensors.numpy.save_file(weights, path),
    "plainly.named": lambda path, weights: safetensors.numpy.save_file(weights, path),
    "old.pkl": lambda path, weights: path.write_bytes(pickle.dumps(weights, 0)),
    "two.pkl": lambda path, weights: path.write_bytes(pickle.dumps(weights, 2)),
    "a.ckpt": lambda path, weights: path.write_bytes(pickle.dumps(weights, 4)),
    "new.pkl": lambda path, weights: path.write_bytes(pickle.dumps(weights, 5)),
    "model.json": lambda path, weights: write_tfjs(path.parent, weights),
    "a.pth": lambda path, weights: path.write_bytes(
        legacy(OrderedDict((n, whole(x)) for n, x in weights.items()))
    ),
    "a.pt": lambda path, weights: path.write_bytes(zipped({n: whole(x) for n, x in weights.items()})),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """A file of each format, with `weights` in it."""
    weights = {"conv": KERNEL, "count": np.array([3, -4], np.int32)}
    WRITERS[request.param](tmp_path / request.param, weights)
    return tmp_path / request.param, weights


def test_every_format(written):
    path, weights = written
    found = files.read(path)
    same({name: found[name] for name in weights}, weights)
    assert set(found) == set(weights)


def test_what_is_cut_off(written):
    """At any place."""
    path, _ = written
    sound = path.read_bytes()
    for keep in (0, 1, 7, 12, len(sound) // 4, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:keep])
        with pytest.raises(UserError, match=f"cannot read .*{path.name}"):
            files.read(path)


def test_no_file_and_other_formats(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.npz .No such file"):
        files.read(tmp_path / "none.npz")
    with pytest.raises(UserError, match="cannot read"):
        files.read(tmp_path)
    for content in (
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"<html><body>Not Found",
        b"a: 1\n",
        b"PK\5\6" + bytes(18),
    ):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*a.pth .it is (cut off or of no|not a) f"):
            files.read(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "two.pkl", "a.ckpt", "new.pkl"])
def test_halves_keep_their_values(tmp_path, name, kind):
    short = BIAS.astype(kind)
    path = tmp_path / name
    if name.endswith("safetensors"):  # whose writer for NumPy knows no bfloat16
        code = "F16" if kind == np.float16 else "BF16"
        header = json.dumps({"x": {"dtype": code, "shape": [4], "data_offsets": [0, 8]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + short.tobytes())
    else:
        WRITERS[name](path, {"x": short})
    same(files.read(path), {"x": short.astype(np.float32)})


def test_a_type_of_safetensors_that_is_not_read(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="cannot read .*a.safetensors .x is of the type F8_E4M3"):
        files.read(tmp_path / "a.safetensors")


def test_objects_in_npz_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil(os.system, f"touch {tmp_path}/it_ran"), None]))
    with pytest.raises(UserError, match="cannot read .*a.npz .Object arrays"):
        files.read(tmp_path / "a.npz")
    assert not (tmp_path / "it_ran").exists()


# Pickles.


@pytest.fixture
def load(tmp_path):
    def load(content):
        (tmp_path / "a.pkl").write_bytes(content)
        return files.read(tmp_path / "a.pkl")

    return load


@pytest.mark.parametrize("protocol", range(6))
def test_keys_lead_to_arrays(load, protocol):
    turned = np.asfortranarray(KERNEL)
    saved = {
        "model": OrderedDict(conv={"kernel": turned, "bias": BIAS}, list=[KERNEL[::2], (BIAS[1:],)]),
        "step": 3,
        "names": ["a", "b"],
        "shape": (3, 3),
        "again": (3, 3),
        7: KERNEL.astype(">f4"),
    }
    found = load(pickle.dumps(saved, protocol))
    expected = {
        "model/conv/kernel": KERNEL,
        "model/conv/bias": BIAS,
        "model/list/0": KERNEL[::2],
        "model/list/1/0": BIAS[1:],
        "7": KERNEL.astype(">f4"),
    }
    same(found, expected)


def test_arrays_of_numpy_1_and_python_2(load):
    """NumPy 1 has `numpy.core`; Python 2 has strings for bytes."""
    for protocol in (0, 2, 4):
        content = pickle.dumps({"x": KERNEL}, protocol)
        old = content.replace(b"numpy._core", b"numpy.core").replace(
            b"\x8c\x16numpy.core", b"\x8c\x15numpy.core"
        )
        if protocol == 4:  # the frame is a byte shorter
            length = struct.unpack("<Q", old[3:11])[0]
            old = old[:3] + struct.pack("<Q", length - 1) + old[11:]
        assert old != content
        same(load(old), {"x": KERNEL})
    raw = b"\x80\x02}U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    raw += b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
    raw += (
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + np.array([1.5, -2], "<f4").tobytes() + b"tbs."
    )
    same(load(raw), {"x": np.array([1.5, -2], np.float32)})


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, __import__, np.load, np.frombuffer])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_in_a_pickle_is_run(load, tmp_path, call, protocol):
    proof = tmp_path / "it_ran"
    command = f"touch {proof}" if call is os.system else f"open({str(proof)!r}, 'w')"
    with pytest.raises(UserError, match=r"a.pkl holds the Python object [\w.]+, which is not read because"):
        load(pickle.dumps({"x": KERNEL, "y": [Evil(call, command)]}, protocol))
    assert not proof.exists()


def test_a_pickle_cannot_reach_what_belongs_to_an_object(load):
    with pytest.raises(UserError, match="holds the Python object numpy.ndarray.tofile, which"):
        load(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(UserError, match="holds the Python object numpy.matrix, which"):
        load(b"\x80\x02cnumpy\nmatrix\n.")
    poison = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    for content in (poison, poison.replace(b"core.multiarray\n_reconstruct", b"core.numeric\n_frombuffer")):
        try:
            load(content)
        except UserError:
            pass
        same(load(pickle.dumps({"x": KERNEL})), {"x": KERNEL})


def array_of(code, shape=(1,), raw=bytes(8)):
    """A pickle of one array that says so of itself."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, (code, False, True), (3, "<", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            rebuild, arguments, _ = KERNEL.__reduce__()
            return rebuild, arguments, (1, shape, Dtype(), False, raw)

    return pickle.dumps({"x": Array()}, 4)


def test_arrays_that_make_no_sense(load):
    same(load(array_of("f8")), {"x": np.zeros(1)})
    with pytest.raises(UserError, match="cannot read .*a.pkl .an array in it is of O8"):
        load(array_of("O8"))
    for shape in ((2,), (0,), (1 << 40, 1 << 40), (-3,), ("a",)):
        with pytest.raises(UserError, match="cannot read .*a.pkl"):
            load(array_of("f8", shape))
    for code in ("f8,f8", "V8", "f3", "(4000000000,)f8"):
        with pytest.raises(UserError, match="cannot read .*a.pkl"):
            load(array_of(code))
    with pytest.raises(UserError, match="cannot read .*a.pkl .an array in it is of O8"):
        load(pickle.dumps({"x": np.array([1, None])}))


def test_containers_without_end(load):
    knot = [KERNEL]
    knot.append(knot)
    laughs = [KERNEL]
    for _ in range(60):
        laughs = [laughs, laughs]
    deep = KERNEL
    for _ in range(400):
        deep = [deep]
    for saved in (knot, laughs):
        with pytest.raises(UserError, match="cannot read .*a.pkl .what it has in .* it has elsewhere too"):
            load(pickle.dumps(saved))
    assert len(load(pickle.dumps(deep))) == 1
    shared = {"stride": 2}
    same(load(pickle.dumps({"a": shared, "b": shared, "x": KERNEL})), {"x": KERNEL})


@pytest.mark.parametrize("index", [b"r\xff\xff\xff\x7f", b"p9999999999\n", b"p-1\n"])
def test_a_wrong_index_does_not_take_all_memory(load, index):
    sound = pickle.dumps({"x": KERNEL}, 2)
    assert sound.count(b"}q\0") == 1
    with pytest.raises(UserError, match="cannot read .*a.pkl .it is cut off or of no format"):
        load(sound.replace(b"}q\0", b"}" + index))
    with pytest.raises(UserError, match="cannot read .*a.pkl"):
        load(legacy({"x": whole(KERNEL)}).replace(b"}q\0", b"}" + index))


def test_names_that_are_taken(load):
    with pytest.raises(UserError, match="two of its arrays are called a/b"):
        load(pickle.dumps({"a/b": KERNEL, "a": {"b": KERNEL}}))


# TensorFlow.js.


@pytest.mark.parametrize(
    "change,told",
    [
        ({"dtype": "uint8"}, "conv is no array of float32 or int32"),
        ({"quantization": {"dtype": "uint8", "scale": 1, "min": 0}}, "conv is no array of float32"),
        ({"shape": [2, 3, 5]}, "its shards end before conv"),
        ({"shape": [25]}, "its shards end before count"),
        ({"shape": [2, 3, 3]}, "its shards have more values than it names"),
        ({"shape": [-1, -24]}, "its shards end before conv"),
        ({"shape": [1 << 80]}, "its shards end before conv"),
        ({"shape": "many"}, ""),
    ],
)
def test_a_manifest_that_makes_no_sense(tmp_path, change, told):
    path = write_tfjs(tmp_path, {"conv": KERNEL, "count": np.array([3], np.int32)})
    model = json.loads(path.read_text())
    model["weightsManifest"][0]["weights"][0] |= change
    path.write_text(json.dumps(model))
    with pytest.raises(UserError, match=f"cannot read .*model.json .{told}"):
        files.read(path)


def test_shards(tmp_path):
    path = write_tfjs(tmp_path, {"conv": KERNEL})
    (tmp_path / "group1-shard2of3.bin").unlink()
    with pytest.raises(UserError, match="cannot read .*group1-shard2of3.bin .No such file"):
        files.read(path)
    (tmp_path / "group1-shard2of3.bin").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read .*model.json .its shards end before conv"):
        files.read(path)
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "model.json"
    for name in ("../group1-shard2of3.bin", str(tmp_path / "group1-shard2of3.bin")):
        path.write_text(json.dumps({"weightsManifest": [{"paths": [name], "weights": []}]}))
        with pytest.raises(UserError, match="cannot read .*model.json .its shard .* is not beside it"):
            files.read(path)
    path.write_text('{"some": "settings"}')
    with pytest.raises(UserError, match="it is cut off or of no format"):
        files.read(path)


# HDF5 of Keras.


def keras_file(path, root=""):
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{root}/conv1/conv1/kernel:0", data=KERNEL)
        file.create_dataset(f"{root}/conv1/conv1/bias:0", data=BIAS)
        file.create_dataset(f"{root}/block/part/conv2/kernel:0", data=KERNEL, compression="gzip")
        file.create_dataset(f"{root}/old_conv/old_conv_W", data=KERNEL.astype(np.float16))
        file[f"{root}/conv1"].attrs["weight_names"] = [b"conv1/kernel:0", b"conv1/bias:0"]
        file.create_group(f"{root}/activation")
        file["top"] = np.array([b"a word"])
        if root:
            file["optimizer_weights/conv1/kernel:0"] = KERNEL
    return {
        "block/part/conv2/kernel": KERNEL,
        "conv1/bias": BIAS,
        "conv1/kernel": KERNEL,
        "old_conv/old_conv_W": KERNEL,
    }


@pytest.mark.parametrize("root", ["", "model_weights"])
def test_keras(tmp_path, root):
    expected = keras_file(tmp_path / "a.h5", root)
    same(files.read(tmp_path / "a.h5"), expected)


def test_damaged_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    keras_file(path)
    sound = path.read_bytes()
    for keep in (4, 8, 100, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:keep])
        with pytest.raises(UserError, match="cannot read .*a.h5"):
            files.read(path)


def test_hdf5_with_values_elsewhere(tmp_path):
    path = tmp_path / "a.h5"
    (tmp_path / "secret").write_bytes(bytes(96))
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (24,), "f4", external=[(str(tmp_path / "secret"), 0, 96)])
    with pytest.raises(UserError, match="cannot read .*a.h5 .the values of x are missing"):
        files.read(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    with pytest.raises(UserError, match="the values of x are missing"):
        files.read(path)
    keras_file(tmp_path / "other.h5")
    with h5py.File(path, "w") as file:
        file["mine"] = BIAS
        file["theirs"] = h5py.ExternalLink("other.h5", "/conv1")
        file["again"] = h5py.SoftLink("/mine")
    same(files.read(path), {"mine": BIAS})
