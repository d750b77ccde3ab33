"""Rendering on all cores, in the order of the index.

Each worker is a fresh interpreter that renders every n-th image and writes it to its standard output.
Unlike multiprocessing, this neither forks a process that runs TensorFlow's or JAX's threads nor imports
the caller's main module again, so it is safe from scripts and notebooks alike.
"""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mtl_jax.data.scenes import labels, render

_COMMAND = "from mtl_jax.data.scenes import workers; workers.main()"
_IMAGES_PER_WORKER = 16  # fewer are not worth the start of another interpreter


def examples(domain: str, split: str, count: int, size: tuple[int, int], annotated: bool) -> Iterator[dict]:
    """Yields examples 0 .. count - 1: see `example`.

    Raises:
      RuntimeError: a worker died (its own message is on standard error).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = max(1, min(cores, count // _IMAGES_PER_WORKER))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    environment["OPENBLAS_NUM_THREADS"] = "1"
    running = []
    try:
        for first in range(number):
            given = [domain, split, *size, int(annotated), first, count, number]
            command = [sys.executable, "-c", _COMMAND, *map(str, given)]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
        for index in range(count):
            try:
                yield pickle.load(running[index % number].stdout)
            except EOFError:
                code = running[index % number].wait()
                raise RuntimeError(
                    f"the worker that renders scenes/{domain} {split} {index} ended: {code}"
                ) from None
    finally:
        for worker in running:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def main():
    """A worker: writes its share of the examples to standard output, pickled."""
    domain, split = sys.argv[1:3]
    height, width, annotated, first, count, step = map(int, sys.argv[3:])
    for index in range(first, count, step):
        pickle.dump(
            example(domain, split, index, (height, width), bool(annotated)), sys.stdout.buffer, protocol=5
        )


def example(domain: str, split: str, index: int, size: tuple[int, int], annotated: bool) -> dict:
    """One example as the builder stores it: byte maps as PNG files; the image alone if not annotated."""
    seen = render.render_example(domain, split, index, *size)
    stored = labels.annotate(seen) if annotated else {"image": seen.image}
    return {key: _png(value) if _is_picture(value) else value for key, value in stored.items()}


def _is_picture(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


def _png(value: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(value).save(file, "png", compress_level=1)
    file.seek(0)
    return file
