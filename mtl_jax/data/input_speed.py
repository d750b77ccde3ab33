"""How fast a config's training examples come, against bare decoding of the same files on the same cores.

    python -m mtl_jax.data.input_speed --config=configs/nyu.py --config.data.options.data_dir=DIR

Bare decoding is tf.data reading and decoding the image files (JPEG, PNG, ...) that an example opens, in
batches where the images are of one size, and nothing else. Against it stand the input pipeline of the config
(cut, enlarge, mirror, ..., batch) reading the files anew each time, from the cache, and with --prepared=OUT
from what mtl_jax.data.prepare kept.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import config as configs
from mtl_jax import names
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Split
from mtl_jax.errors import UserError, exit_on_user_error

DECODED = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
IMAGES = 400  # of the split, which are read over and over
ROUNDS = 5


def opened_images(split: Split, indices: Sequence[int]) -> list[list[str]]:
    """The image files that each of these examples opens when it is loaded."""
    opened: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple) -> None:
        if listening and event == "open" and str(arguments[0]).lower().endswith(DECODED):
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)  # it cannot be removed, but it can be silenced
    found = []
    for index in indices:
        opened.clear()
        split.load(index)
        found.append(list(dict.fromkeys(opened)))
    listening = False
    return found


def bare(paths: Sequence[Sequence[str]], rows: int | None) -> Iterator[Any]:
    """Endlessly decodes the files of each example: batches of `rows`, or one by one."""
    dtypes = [tf.uint16 if _is_deep(path) else tf.uint8 for path in paths[0]]

    def decode(files: tf.Tensor) -> list[tf.Tensor]:
        contents = [tf.io.read_file(files[k]) for k in range(len(dtypes))]
        pairs = zip(contents, dtypes, strict=True)
        return [tf.io.decode_image(content, dtype=dtype) for content, dtype in pairs]

    decoded = pipeline.parallel(tf.data.Dataset.from_tensor_slices(paths).repeat(), decode)
    return iter((decoded.batch(rows) if rows else decoded).prefetch(2))


def _is_deep(path: str) -> bool:
    with Image.open(path) as image:
        return image.mode.startswith("I")


def compare(config: ConfigDict, prepared: str | None) -> dict[str, float]:
    """Images per second of each way: medians of rounds in which they take turns.

    Raises:
      UserError: the examples open no image files, or not equally many.
    """
    tasks, data = None, config.data
    ways = {}
    for way, name, options in (
        ("files", data.name, data.options),
        ("prepared", "prepared", {"data_dir": prepared}),
    ):
        if way == "prepared" and not prepared:
            continue
        dataset = names.build("data.datasets", name, options)
        tasks = tasks or tasks_lib.build(config.tasks, dataset.labels)
        split = dataset.split(data.train, tuple(tasks))
        split = split.subset(range(min(len(split), IMAGES)))
        for cache in (False, True) if way == "files" else (False,):
            data.cache = cache
            batches = pipeline.train_batches(split, tasks, data, config.seed)
            ways["cache" if cache else way] = (batches.compact, data.batch_size)
        if way == "files":
            paths = opened_images(split, range(len(split)))
            if not paths[0] or len({len(one) for one in paths}) > 1:
                raise UserError(f"the examples of {name} do not open equally many image files each")
            rows = data.batch_size if len(np.unique(split.sizes, axis=0)) == 1 else None
            ways = {"bare": (bare(paths, rows), rows or 1), **ways}
    for stream, rows in ways.values():
        _rate(stream, rows, 2 * len(split))  # fills the caches
    rounds = [{way: _rate(*stream, len(split)) for way, stream in ways.items()} for _ in range(ROUNDS)]
    return {way: statistics.median(one[way] for one in rounds) for way in ways}


def _rate(stream: Iterator[Any], rows: int, images: int) -> float:
    began = time.perf_counter()
    for _ in range(-(-images // rows)):
        next(stream)
    return -(-images // rows) * rows / (time.perf_counter() - began)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE or FILE:ARG")
    parser.add_argument("--prepared", metavar="OUT", help="folder that mtl_jax.data.prepare wrote")
    flags, rest = parser.parse_known_args()
    config = configs.load(flags.config, configs.command_line_overrides(rest)).unlock()
    rates = compare(config, flags.prepared)
    for way, rate in rates.items():
        print(f"{way:>8}: {rate:7.0f} images/s, {rate / rates['bare']:.2f} of bare decoding", flush=True)


if __name__ == "__main__":
    main()
