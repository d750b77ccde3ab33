"""Checks a dataset on disk, sums it up, and keeps it decoded where that is faster to read.

    python -m mtl_jax.data.prepare --dataset=nyud --data_dir=DIR

Every file that training would read is read; what is missing or damaged is named, with where to get it. The
dataset's options are set as for a run: --config.data.options.classes=40. With --config.data.on_error=skip
damaged examples are left out.

OUT (default DIR_prepared) gets summary.json and, if that pays, all examples as they are in memory; they take
more room than the release. To train from these:

    --config.data.name=prepared --config.data.options.data_dir=OUT

After an interruption the same command goes on where it stopped.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ml_collections import ConfigDict
from tqdm import tqdm

from mtl_jax import atomic, names
from mtl_jax import config as configs
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import summary
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import prepared
from mtl_jax.data.summary import Summary
from mtl_jax.errors import UserError, exit_on_user_error, reading
from mtl_jax.tasks import Task, pictures

PART = 256  # examples
WORTH = 1.5  # what is decoded must be so many times as fast to read as the release
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
    """How many times as fast as the release it is read when it is decoded, and then its bytes per example."""
    tried = {i: _loaded(split, i) for i in range(0, len(split), max(1, len(split) // TRIED))}
    tried = {i: example for i, example in tried.items() if not isinstance(example, UserError)}
    if not tried:
        return 1.0, 0.0  # nothing is sound
    with tempfile.TemporaryFile() as file:
        for example in tried.values():  # the disk's cache is warm for both from here on
            prepared.append(file, example)
        size = file.tell()
        file.seek(0)
        copied = _seconds(lambda _: file.read(size // len(tried)), tried)
    return _seconds(split.load, tried) / copied, size / len(tried)


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


def read_all(
    name: str, split: Split, tasks: Mapping[str, Task], out: Path, convert: bool, skip: bool
) -> tuple[Summary, list[str]]:
    """Reads a split, part by part, and perhaps converts it; parts that were read before are not read again.

    Args:
      name: of the split.
      split: its examples.
      tasks: those whose labels they have.
      out: folder of the parts.
      convert: whether to keep the examples.
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
    if not path.is_file():
        return None
    part = prepared.read_part(path)
    return part if part["listed"] == _digest(listed) and (part["places"] or not convert) else None


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
    ids, places, found, damaged = [], [], [], []
    with _file(path.with_suffix(".bin"), convert) as file:
        for index, example in zip(indices, _load_all(split, indices, pool), strict=True):
            if isinstance(example, UserError):
                damaged.append(str(example))
                continue
            ids.append(split.ids[index])
            found.append(summary.of_example(example, tasks))
            if convert:
                places.append(prepared.append(file, example))
        size = file.tell()
    part = {
        "listed": _digest([split.ids[i] for i in indices]),
        "ids": ids,
        "places": places,
        "bytes": size,
        "summary": summary.add(found).to_json(),
        "damaged": damaged,
    }
    if skip or not damaged:
        atomic.write(path, json.dumps(part) + "\n")  # last: with it the part is finished
    return part


def _load_all(split: Split, indices: Sequence[int], pool: Executor) -> Iterator[Example | UserError]:
    """In parallel, a few ahead: a part may be larger than the memory."""
    few = 2 * os.cpu_count()
    for start in range(0, len(indices), few):
        yield from pool.map(functools.partial(_loaded, split), indices[start : start + few])


@contextlib.contextmanager
def _file(path: Path, convert: bool) -> Iterator[BinaryIO]:
    if not convert:
        with open(os.devnull, "wb") as file:
            yield file
        return
    with atomic.writing(path) as unfinished, open(unfinished, "wb") as file:
        yield file


def claim(out: Path, config: ConfigDict, dataset: Dataset, found: Found) -> dict[str, Any]:
    """The manifest of `out`: new, or the one that is there, which must be of the same dataset.

    Raises:
      UserError: the folder cannot be written to, or holds another dataset.
    """
    own = {"dataset": config.data.name, "options": config.data.options.to_dict()}
    path = out / prepared.MANIFEST
    manifest = {**own, "labels": dict(dataset.labels), "tasks": {}, "parts": {}, "kept": None}
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
    """Whether to keep the examples decoded, and says why.

    Raises:
      UserError: that was asked for, and there is no room.
    """
    if convert == "never":
        return False
    faster, size = speed_up(split)
    needed, free = size * images / 1e9, shutil.disk_usage(out).free / 1e9
    text = f"decoded: {faster:.1f} times as fast to read as the release, {needed:.2f} GB"
    if needed > free:
        if convert == "always":
            raise UserError(f"{text}, but {out} has room for {free:.2f} GB: choose another --out")
        print(f"{text}; not kept, since {out} has room for {free:.2f} GB")
        return False
    pays = convert == "always" or faster >= WORTH
    print(text if pays else f"{text}; not kept, since that does not pay", flush=True)
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
    names.resolve("data.datasets", config.data.name)
    try:
        dataset = names.build("data.datasets", config.data.name, config.data.options)
    except UserError as error:  # some read a list of classes to begin with
        raise _unsound(config, [str(error)]) from error
    problems = check_archives(Path(config.data.options.get("data_dir", ".")).expanduser(), dataset.archives)
    found, missing = find(dataset, splits or dataset.splits, tasks or tuple(dataset.labels))
    problems += missing
    if not found:
        raise _unsound(config, problems)

    manifest = claim(out, config, dataset, found)
    opened = {name: dataset.split(name, tuple(tasks)) for name, tasks in found.items()}
    if manifest["kept"] is None:
        images = sum(map(len, opened.values()))
        manifest["kept"] = decide(convert, next(iter(opened.values())), images, out)
    manifest["tasks"] |= found
    manifest["parts"] |= {name: -(-len(split) // PART) for name, split in opened.items()}
    atomic.write(out / prepared.MANIFEST, json.dumps(manifest, indent=1) + "\n")

    skip = config.data.on_error == "skip"
    told = {}
    for name, split in opened.items():
        of_split = tasks_lib.build({task: {} for task in found[name]}, dataset.labels) if found[name] else {}
        total, damaged = read_all(name, split, of_split, out, manifest["kept"], skip)
        told[name] = total.to_json()
        print(
            f"{name}: " + "\n".join(summary.lines(total, of_split, dataset.published.get(name))), flush=True
        )
        if show:
            draw(out / f"overlay_{name}.png", split, of_split, show)
        if damaged:
            print(f"{name}: {len(damaged)} damaged" + (" and left out" if skip else ""))
            print(*(f"  {text}" for text in damaged[:LISTED]), sep="\n", flush=True)
            problems += [] if skip else damaged
    atomic.write(out / "summary.json", json.dumps(told, indent=1) + "\n")
    if manifest["kept"]:
        print(f"train from it by --config.data.name=prepared --config.data.options.data_dir={out}")
    if problems:
        raise _unsound(config, problems)


def draw(path: Path, split: Split, tasks: Mapping[str, Task], count: int) -> None:
    """Writes a picture of `count` sound examples from all over the split, with their labels over them."""
    every = range(0, len(split), max(1, len(split) // count))
    loaded = (example for i in every if not isinstance(example := _loaded(split, i), UserError))
    examples = list(itertools.islice(loaded, count))
    if examples:
        labels = {name: [example["labels"][name] for example in examples] for name in tasks}
        pictures.overlays(str(path), [example["image"] for example in examples], labels, tasks)
        print(f"picture {path}", flush=True)


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
    parser.add_argument(
        "--out", metavar="DIR", help="folder for what is written; default DIR_prepared, beside it"
    )
    parser.add_argument("--splits", default="", help="separated by commas; default all")
    parser.add_argument("--tasks", default="", help="separated by commas; default all")
    parser.add_argument(
        "--convert", choices=("auto", "always", "never"), default="auto", help="keep it decoded"
    )
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="draw so many examples of each split"
    )
    flags, rest = parser.parse_known_args()
    config = configs.default()
    configs.override(config, "data.name", flags.dataset)
    configs.override(config, "data.options", {"data_dir": flags.data_dir})
    for key, value in configs.command_line_overrides(rest).items():
        configs.override(config, key, value)
    data_dir = Path(flags.data_dir).expanduser().resolve()
    out = Path(flags.out or data_dir.with_name(f"{data_dir.name}_prepared")).expanduser()
    splits, tasks = (tuple(filter(None, text.split(","))) for text in (flags.splits, flags.tasks))
    prepare(config, out, splits, tasks, flags.convert, flags.show)


if __name__ == "__main__":
    main()
