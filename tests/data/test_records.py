"""Records written by TensorFlow and by ArrayRecord's own writer, and one file byte by byte."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from mtl_jax.data import records
from mtl_jax.data.records import Names, Shards
from mtl_jax.errors import UserError


def contents(count, seed):
    """Random records, the first of which is empty; with line ends and zeros, as images have."""
    rng = np.random.default_rng(seed)
    return [b"", *(rng.bytes(rng.integers(1, 300)) for _ in range(count - 1))][:count]


def write_tfrecord(path, values):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in values:
            writer.write(value)


def write_array_record(path, values):
    writer = ArrayRecordWriter(str(path), "group_size:2")
    for value in values:
        writer.write(value)
    writer.close()


WRITERS = {"tfrecord": write_tfrecord, "array_record": write_array_record}
both_formats = pytest.mark.parametrize("kind", WRITERS)
COUNTS = (3, 0, 1, 20)


@pytest.fixture
def written(tmp_path, kind):
    values = [contents(count, seed) for seed, count in enumerate(COUNTS)]
    paths = [tmp_path / f"a.{kind}-{i:05d}-of-00004" for i in range(4)]
    for path, some in zip(paths, values, strict=True):
        WRITERS[kind](path, some)
    return paths, sum(values, [])


def test_a_file_byte_by_byte(tmp_path):
    path = tmp_path / "digits"
    path.write_bytes(bytes.fromhex("0900000000000000 37f97139 313233343536373839 e5b08ac7"))
    shards = Shards([path])
    assert len(shards) == 1 and shards[0] == b"123456789"
    assert list(Names(shards)) == ["digits:0"]
    assert list(Names(shards, tmp_path.parent)) == [f"{tmp_path.name}/digits:0"]
    assert records.masked_crc(b"123456789") == 0xC78AB0E5


@both_formats
@pytest.mark.parametrize("counts", [None, COUNTS])
def test_records_come_in_order_from_any_place(written, counts):
    paths, values = written
    shards = Shards(paths, counts)
    assert len(shards) == 24 and shards.counts.tolist() == list(COUNTS)
    order = np.random.default_rng(0).permutation(24)
    assert [shards[int(i)] for i in order] == [values[i] for i in order]
    assert list(shards) == values
    assert shards[-1] == values[-1]
    with pytest.raises(IndexError):
        shards[24]
    names = Names(shards)
    assert len(names) == 24 and len(set(names)) == 24
    assert names[3] == f"{paths[2].name}:0" and names[23] == f"{paths[3].name}:19"


@both_formats
def test_many_threads_read_more_files_than_are_kept_open(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(records, "OPEN", 2)
    paths = [tmp_path / str(i) for i in range(6)]
    for seed, path in enumerate(paths):
        WRITERS[kind](path, contents(5, seed))
    shards = Shards(paths)
    indices = np.random.default_rng(1).integers(0, 30, 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(shards.__getitem__, indices))
    assert found == [contents(5, i // 5)[i % 5] for i in indices]


@both_formats
def test_with_counts_a_file_is_opened_when_a_record_of_it_is_read(written, kind):
    paths, values = written
    shards = Shards(paths, COUNTS)
    for path in paths[:-1]:
        path.unlink()
    assert len(shards) == 24 and shards[10] == values[10]
    with pytest.raises(UserError, match=f"cannot read .*a.{kind}-00000-of-00004"):
        shards[0]


@both_formats
def test_another_number_of_records_than_said(written, kind):
    paths, _ = written
    with pytest.raises(UserError, match=f"a.{kind}-00003-of-00004 holds 20 records instead of 21"):
        Shards(paths, [3, 0, 1, 21])[4]


@both_formats
def test_no_file_at_all(tmp_path, kind):
    assert len(Shards([])) == 0
    with pytest.raises(UserError, match="cannot read .*nowhere"):
        len(Shards([tmp_path / "nowhere"]))


def spoilt(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


@pytest.fixture
def three(tmp_path):
    """Three records of 10 bytes, 26 each with their lengths and checksums."""
    path = tmp_path / "three.tfrecord"
    write_tfrecord(path, [bytes([i]) * 10 for i in range(3)])
    assert path.stat().st_size == 78
    return path


@pytest.mark.parametrize("kept, record", [(77, 2), (70, 2), (60, 2), (53, 2), (51, 1), (5, 0)])
def test_a_tfrecord_file_that_was_cut(three, kept, record):
    spoilt(three, lambda data: data[:kept])
    with pytest.raises(UserError, match=f"three.tfrecord ends within record {record}: copy"):
        len(Shards([three]))


def test_a_tfrecord_file_with_wrong_bits(three, tmp_path):
    def flip(place):
        return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]

    spoilt(three, flip(26 + 15))
    shards = Shards([three])
    assert shards[0] == bytes(10) and shards[2] == bytes([2]) * 10
    with pytest.raises(UserError, match="record 1 of .*three.tfrecord is damaged"):
        shards[1]
    spoilt(three, flip(2 * 26 + 1))  # of a length
    with pytest.raises(UserError, match="record 2 of .*three.tfrecord is damaged, or"):
        len(Shards([three]))
    with tf.io.TFRecordWriter(str(three), "GZIP") as writer:
        writer.write(b"x" * 100)
    with pytest.raises(UserError, match="record 0 of .*three.tfrecord .* compressed"):
        len(Shards([three]))


def test_a_file_that_shrinks_meanwhile(three):
    shards = Shards([three])
    assert len(shards) == 3
    spoilt(three, lambda data: data[:30])
    with pytest.raises(UserError, match="cannot read record 2 of .*three.tfrecord"):
        shards[2]


def test_damaged_array_records(tmp_path):
    path = tmp_path / "some.array_record"
    values = [np.random.default_rng(i).bytes(40_000) for i in range(6)]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for value in values:
        writer.write(value)
    writer.close()
    whole = path.read_bytes()
    spoilt(path, lambda data: data.replace(values[2][100:120], bytes(20)))
    shards = Shards([path])
    assert shards[1] == values[1]
    with pytest.raises(UserError, match="cannot read record 2 of .*some.array_record .*hash"):
        shards[2]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="some.array_record is no whole ArrayRecord file: copy"):
        len(Shards([path]))


def test_lengths_beyond_32_bits_are_read_as_such(tmp_path):
    path = tmp_path / "huge"
    length = struct.pack("<Q", 2**40)
    path.write_bytes(length + struct.pack("<I", records.masked_crc(length)) + b"x")
    with pytest.raises(UserError, match="huge ends within record 0"):
        len(Shards([path]))
