"""Checks a dataset on disk, sums it up, and converts it into records where these are faster to read.

    python -m mtl_jax.data.prepare --dataset=nyud --data_dir=DIR

Every file that training would read is read; what is missing or damaged is named, with where to get it. The
dataset's options are set as for a run: --config.data.options.classes=40. With --config.data.on_error=skip
damaged examples are left out.

OUT (default DIR/prepared) gets summary.json and, if they pay, records. To train from these:

    --config.data.name=prepared --config.data.options.data_dir=OUT

After an interruption the same command goes on where it stopped.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from ml_collections import ConfigDict
from tqdm import tqdm

from mtl_jax import atomic, names
from mtl_jax import config as configs
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import records, summary
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import prepared
from mtl_jax.data.summary import Summary
from mtl_jax.errors import UserError, exit_on_user_error, reading
from mtl_jax.tasks import Task

PART = 256  # examples
WORTH = 1.5  # records must be so many times as fast to read as the release
TRIED = 16  # examples, to measure that
LISTED = 20  # damaged examples that are printed

Found = dict[str, list[str]]
"""Split -> tasks whose labels it has."""


def find(dataset: Dataset, splits: Sequence[str], tasks: Sequence[str]) -> tuple[Found, list[str]]:
    """What there is; and what is missing, in words."""
    found: Found = {}
    missing = []
    for name in splits:
        for task in (None, *tasks):
            try:
                dataset.split(name, (task,) if task else ())
            except UserError as error:
                missing.append(f"split {name}, {task or 'images'}: {error}")
                if not task:
                    break
            else:
                found.setdefault(name, []).extend([task] if task else [])
    return found, missing


def check_archives(root: Path, archives: Mapping[str, str]) -> list[str]:
    """What is wrong with those of the release's archives that lie in `root` or in two folders above it."""
    damaged = []
    for name, digest in archives.items():
        kind, expected = digest.split(":")
        for path in (folder / name for folder in (root, *root.resolve().parents[:2])):
            if path.is_file():
                print(f"checking {path}", flush=True)
                with reading(path), open(path, "rb") as file:
                    if hashlib.file_digest(file, kind).hexdigest() != expected:
                        damaged.append(f"{path} is damaged (its {kind} is not {expected}): download it again")
    return damaged


def speed_up(split: Split) -> tuple[float, float]:
    """How many times as fast as the release its records can be read, and their bytes per example."""
    tried = {i: _loaded(split, i) for i in range(0, len(split), max(1, len(split) // TRIED))}
    tried = {i: example for i, example in tried.items() if not isinstance(example, UserError)}
    if not tried:
        return 1.0, 0.0  # nothing is sound
    examples = list(tried.values())  # the disk's cache is warm for both from here on
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.array_record"
        _write_records(path, examples)
        shards = records.Shards([path])
        from_records = _seconds(lambda i: prepared.unpack(shards[i]), range(len(examples)))
        return _seconds(split.load, tried) / from_records, path.stat().st_size / len(examples)


def _loaded(split: Split, index: int) -> Example | UserError:
    try:
        return split.load(index)
    except UserError as error:
        return error


def _seconds(read: Callable[[int], Any], indices: Iterable[int]) -> float:
    began = time.perf_counter()
    for index in indices:
        read(index)
    return time.perf_counter() - began


def _write_records(path: Path, examples: Iterable[Example]) -> None:
    with atomic.writing(path) as unfinished:
        writer = array_record_module.ArrayRecordWriter(str(unfinished), "group_size:1,zstd:1")
        for example in examples:
            writer.write(prepared.pack(example))
        writer.close()


def read_all(
    name: str, split: Split, tasks: Mapping[str, Task], out: Path, convert: bool, skip: bool
) -> tuple[Summary, list[str]]:
    """Reads a split, part by part, and perhaps converts it; parts that were read before are not read again.

    Args:
      name: of the split.
      split: its examples.
      tasks: those whose labels they have.
      out: folder of the descriptions of parts, and of their records.
      convert: whether to write records.
      skip: whether damaged examples are left out; else a part with such is not finished.

    Returns:
      What it holds, and what is damaged, in words.
    """
    parts, found, damaged = prepared.part_paths(out, name, -(-len(split) // PART)), [], []
    with tqdm(total=len(split), desc=name, unit=" images") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, path in enumerate(parts):
            indices = range(number * PART, min((number + 1) * PART, len(split)))
            part = _finished(path, [split.ids[i] for i in indices], convert)
            part = part or _read_part(split, tasks, indices, path, convert, skip, pool)
            found.append(Summary.from_json(part["summary"]))
            damaged += part["damaged"]
            bar.update(len(indices))
    return summary.add(found), damaged


def _finished(path: Path, listed: Sequence[str], convert: bool) -> dict[str, Any] | None:
    """The description of a part that is complete and of these examples."""
    if not path.is_file() or (convert and not path.with_suffix(".array_record").is_file()):
        return None
    part = prepared.read_part(path)
    return part if part["listed"] == _digest(listed) else None


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _read_part(
    split: Split,
    tasks: Mapping[str, Task],
    indices: Sequence[int],
    path: Path,
    convert: bool,
    skip: bool,
    pool: Executor,
) -> dict[str, Any]:
    loaded = dict(zip(indices, pool.map(functools.partial(_loaded, split), indices), strict=True))
    damaged = [str(example) for example in loaded.values() if isinstance(example, UserError)]
    sound = {index: example for index, example in loaded.items() if not isinstance(example, UserError)}
    part = {
        "listed": _digest([split.ids[i] for i in indices]),
        "ids": [split.ids[i] for i in sound],
        "sizes": [example["image"].shape[:2] for example in sound.values()],
        "summary": summary.add([summary.of_example(e, tasks) for e in sound.values()]).to_json(),
        "damaged": damaged,
    }
    if skip or not damaged:
        if convert:
            _write_records(path.with_suffix(".array_record"), sound.values())
        atomic.write(path, json.dumps(part) + "\n")  # last: with it the part is finished
    return part


def claim(out: Path, config: ConfigDict, dataset: Dataset, found: Found) -> dict[str, Any]:
    """The manifest of `out`: new, or the one that is there, which must be of the same dataset.

    Raises:
      UserError: the folder cannot be written to, or holds another dataset.
    """
    own = {"dataset": config.data.name, "options": config.data.options.to_dict()}
    path = out / prepared.MANIFEST
    manifest = {**own, "labels": dict(dataset.labels), "tasks": {}, "parts": {}, "records": None}
    if path.is_file():
        with reading(path):
            manifest = json.loads(path.read_text())
            same = {key: manifest[key] for key in own} == json.loads(json.dumps(own))
            same &= all(manifest["tasks"].get(name, tasks) == tasks for name, tasks in found.items())
        if not same:
            raise UserError(f"{out} holds another dataset, or other tasks or options: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another --out") from error
    return manifest


def decide(convert: str, split: Split, images: int, out: Path) -> bool:
    """Whether to write records, and says why.

    Raises:
      UserError: they were asked for, and there is no room for them.
    """
    if convert == "never":
        return False
    faster, size = speed_up(split)
    needed, free = size * images / 1e9, shutil.disk_usage(out).free / 1e9
    text = f"records: {faster:.1f} times as fast to read as the release, {needed:.2f} GB"
    if needed > free:
        if convert == "always":
            raise UserError(f"{text}, but {out} has room for {free:.2f} GB: choose another --out")
        print(f"{text}; not written, since {out} has room for {free:.2f} GB")
        return False
    pays = convert == "always" or faster >= WORTH
    print(text if pays else f"{text}; not written, since they do not pay", flush=True)
    return pays


def prepare(
    config: ConfigDict, out: Path, splits: Sequence[str], tasks: Sequence[str], convert: str, show: int
) -> None:
    """See the head of this file.

    Args:
      config: data.name, data.options and data.on_error count.
      out: folder for what is written.
      splits, tasks: which; none means all.
      convert: "auto", "always" or "never".
      show: how many examples of each split are drawn, in overlay_<split>.png.

    Raises:
      UserError: anything is missing or damaged; the rest has been dealt with then.
    """
    dataset = names.build("data.datasets", config.data.name, config.data.options)
    problems = check_archives(Path(config.data.options.get("data_dir", ".")).expanduser(), dataset.archives)
    found, missing = find(dataset, splits or dataset.splits, tasks or tuple(dataset.labels))
    problems += missing
    if not found:
        raise _unsound(config, problems)

    manifest = claim(out, config, dataset, found)
    opened = {name: dataset.split(name, tuple(tasks)) for name, tasks in found.items()}
    if manifest["records"] is None:
        images = sum(map(len, opened.values()))
        manifest["records"] = decide(convert, next(iter(opened.values())), images, out)
    manifest["tasks"] |= found
    manifest["parts"] |= {name: -(-len(split) // PART) for name, split in opened.items()}
    atomic.write(out / prepared.MANIFEST, json.dumps(manifest, indent=1) + "\n")

    skip = config.data.on_error == "skip"
    told = {}
    for name, split in opened.items():
        of_split = tasks_lib.build({task: {} for task in found[name]}, dataset.labels) if found[name] else {}
        total, damaged = read_all(name, split, of_split, out, manifest["records"], skip)
        told[name] = total.to_json()
        print(
            f"{name}: " + "\n".join(summary.lines(total, of_split, dataset.published.get(name))), flush=True
        )
        if damaged:
            print(f"{name}: {len(damaged)} damaged" + (" and left out" if skip else ""))
            print(*(f"  {text}" for text in damaged[:LISTED]), sep="\n", flush=True)
            problems += [] if skip else damaged
    atomic.write(out / "summary.json", json.dumps(told, indent=1) + "\n")
    if manifest["records"]:
        print(f"records: train by --config.data.name=prepared --config.data.options.data_dir={out}")
    if problems:
        raise _unsound(config, problems)


def _unsound(config: ConfigDict, problems: Sequence[str]) -> UserError:
    layout = names.resolve("data.datasets", config.data.name).__doc__
    listed = "\n".join(f"  {text}" for text in problems[:LISTED])
    more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return UserError(
        f"{config.data.name} is not complete and sound:\n{listed}{more}\n\nIt should be:\n\n{layout}"
    )


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a module in data/datasets")
    parser.add_argument(
        "--data_dir", required=True, metavar="DIR", help="the folder that its header describes"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for what is written; default DIR/prepared")
    parser.add_argument("--splits", default="", help="separated by commas; default all")
    parser.add_argument("--tasks", default="", help="separated by commas; default all")
    parser.add_argument("--convert", choices=("auto", "always", "never"), default="auto", help="into records")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="draw so many examples of each split"
    )
    flags, rest = parser.parse_known_args()
    config = configs.default()
    configs.override(config, "data.name", flags.dataset)
    configs.override(config, "data.options", {"data_dir": flags.data_dir})
    for key, value in configs.command_line_overrides(rest).items():
        configs.override(config, key, value)
    out = Path(flags.out or Path(flags.data_dir) / "prepared").expanduser()
    splits, tasks = (tuple(filter(None, text.split(","))) for text in (flags.splits, flags.tasks))
    prepare(config, out, splits, tasks, flags.convert, flags.show)


if __name__ == "__main__":
    main()
