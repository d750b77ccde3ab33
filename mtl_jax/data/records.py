"""Record files read at random: TFRecord and ArrayRecord, told apart by how they begin.

TFRecord (https://www.tensorflow.org/tutorials/load_data/tfrecord) is a stream without an index: of each
record the length in 8 bytes, little-endian, its masked CRC32C in 4, the data, and their masked CRC32C. One
pass over the lengths, when a file is first needed, finds where its records begin; 8 bytes each are kept.
ArrayRecord (https://github.com/google/array_record) has an index of its own.
"""

import functools
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from mtl_jax.errors import UserError, reading

RIEGELI = bytes.fromhex("83af70d10d884a3f")  # how the format beneath ArrayRecord begins
HEADER = struct.Struct("<QI")  # length and its checksum
CHECKSUM = struct.Struct("<I")  # of the data, behind them
OPEN = 64  # ArrayRecord files at a time; a process may have some 1000 files open
COUNTERS = 16  # threads that count records


class Shards(Sequence[bytes]):
    """The records of several files, one file after the other; may be read by many threads.

    Attributes:
      paths: the files.
      counts: i64[files], number of records of each; counted when first asked for, unless they were given.
    """

    def __init__(self, paths: Sequence[Path | str], counts: Sequence[int] | None = None):
        """Opens nothing.

        Args:
          paths: the files.
          counts: how many records each of them holds, if it is known.
        """
        self.paths = [Path(path) for path in paths]
        self._given = counts
        self._is_array_record = functools.cache(_is_array_record)
        self._places = functools.cache(_places)
        self._reader = functools.lru_cache(OPEN)(_reader)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        if self._given is not None:
            return np.asarray(self._given, np.int64)
        with ThreadPoolExecutor(COUNTERS) as pool:
            return np.fromiter(pool.map(self._count, self.paths), np.int64, len(self.paths))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        """Raises UserError if a file cannot be read."""
        return int(self._ends[-1]) if len(self.paths) else 0

    def place(self, index: int) -> tuple[int, int]:
        """(number of the file, number of the record in it) of the record at `index`."""
        index = range(len(self))[index]  # raises IndexError, and takes negative ones
        file = int(np.searchsorted(self._ends, index, "right"))
        return file, index - int(self._ends[file] - self.counts[file])

    def __getitem__(self, index: int) -> bytes:
        """One record; raises UserError that names the file and the record if it cannot be read."""
        file, number = self.place(index)
        path = self.paths[file]
        found = self._count(path)
        if found != self.counts[file]:
            raise UserError(
                f"{path} holds {found} records instead of {self.counts[file]}: copy the file again"
            )
        if self._is_array_record(path):
            with reading(f"record {number} of {path}"):
                return self._reader(path).read([number])[0]
        return _read_at(path, number, int(self._places(path)[number]))

    def _count(self, path: Path) -> int:
        if self._is_array_record(path):
            return self._reader(path).num_records()
        return len(self._places(path))


class Names(Sequence[str]):
    """A name for every record, made when it is asked for: there may be 10^8.

    It is the file's name and the record's number in it: train-00003-of-01024:17.
    """

    def __init__(self, shards: Shards, root: Path | None = None):
        """`root`: names then begin with the file's path in this folder, not with its name alone."""
        self._shards = shards
        self._files = [(path.relative_to(root).as_posix() if root else path.name) for path in shards.paths]

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> str:
        file, number = self._shards.place(index)
        return f"{self._files[file]}:{number}"


def _is_array_record(path: Path) -> bool:
    with reading(path), path.open("rb") as file:
        return file.read(len(RIEGELI)) == RIEGELI


def _reader(path: Path) -> ArrayRecordReader:
    with reading(path):
        reader = ArrayRecordReader(
            str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
    if not reader.ok():
        raise UserError(f"{path} is no whole ArrayRecord file: copy it again")
    return reader


def masked_crc(data: bytes) -> int:
    """CRC32C rotated right by 15 bits plus a constant, so that a checksum of checksums is none of itself."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _places(path: Path) -> np.ndarray:
    """i64[N]: where the records of a TFRecord file begin."""
    places = []
    with reading(path), path.open("rb", buffering=0) as file:
        place, size = 0, os.fstat(file.fileno()).st_size
        while place < size:
            file.seek(place)
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise _cut(path, len(places))
            length, crc = HEADER.unpack(header)
            if crc != masked_crc(header[:8]):
                raise UserError(
                    f"record {len(places)} of {path} is damaged, or the file is compressed or no TFRecord or"
                    " ArrayRecord: copy it again, or write it anew without compression"
                )
            places.append(place)
            place += HEADER.size + length + CHECKSUM.size
        if place > size:
            raise _cut(path, len(places) - 1)
    return np.array(places, np.int64)


def _read_at(path: Path, number: int, place: int) -> bytes:
    """A record of a TFRecord file. The file is opened each time: 10 us, and no limit on how many shards."""
    with reading(f"record {number} of {path}"), path.open("rb", buffering=0) as file:
        file.seek(place)
        length, _ = HEADER.unpack(file.read(HEADER.size))
        data = file.read(length)
        (crc,) = CHECKSUM.unpack(file.read(CHECKSUM.size))
    if crc != masked_crc(data):
        raise UserError(f"record {number} of {path} is damaged: copy the file again")
    return data


def _cut(path: Path, number: int) -> UserError:
    return UserError(f"{path} ends within record {number}: copy the file again")
