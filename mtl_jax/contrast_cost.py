"""Time and memory of the contrast across tasks (methods/ccr.py), over the map's size and the anchors' share.

    python -m mtl_jax.contrast_cost --out=DIR [--block=64] [--width=128] [--repeats=5]

One pair of tasks, one image, random features and labels: the triplets are mined, and the loss and its
gradient by the projected features are computed, on this machine. The source has classes, quantities (depth)
or directions (normals). Prints a table, writes it to DIR as table.md, .csv and .tex, and draws it as
contrast_cost.png: over the number of pixels P with one anchor for 100 of them, and over the share of anchors
gamma on maps of 120x160, a quarter of NYU-v2's images. The dashed line is what `memory_bound` promises.

The time is the median over the repetitions, the memory what the compiled program holds beside its inputs
and outputs.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.methods import ccr
from mtl_jax.metrics.angular import unit
from mtl_jax.table import Column, Table, Value
from mtl_jax.tasks import Task, depth, normals, semseg

SOURCES = {
    "classes": semseg.build("classes", 40),
    "quantities": depth.build("quantities"),
    "directions": normals.build("directions"),
}
SIZES = ((30, 40), (60, 80), (120, 160), (240, 320))
GAMMAS = (0.0025, 0.005, 0.01, 0.02, 0.04)
SIZE, GAMMA = SIZES[2], GAMMAS[2]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a source's kind, rows and columns of the map, anchors per pixel."""

    source: str
    size: tuple[int, int]
    gamma: float

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one image and pair of tasks.

    Attributes:
      seconds: median time.
      bytes: largest memory in between.
    """

    seconds: float
    bytes: int


def encoded_labels(task: Task, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """f32[P,channels] as `task.encode` gives them, at random."""
    if task.discrete:
        return np.eye(task.channels, dtype=np.float32)[rng.integers(0, task.channels, pixels)]
    values = rng.normal(size=(pixels, task.channels)).astype(np.float32)
    return np.abs(values) if task.channels == 1 else values / np.linalg.norm(values, axis=1, keepdims=True)


def measure(case: Case, block: int | None, width: int, repeats: int) -> Cost:
    """The cost of a case on this machine, with features of `width` channels."""
    rng = np.random.default_rng(0)
    task = SOURCES[case.source]
    method = ccr.build(None, SOURCES, gamma=case.gamma, block=block)

    def loss(features, label, known, key):
        projected = unit(features)
        triplets = method.select(task, jax.lax.stop_gradient(projected), label, known, key)
        return ccr.triplet_loss(projected, triplets, method.margin)["contrast"]

    arguments = (
        jnp.asarray(rng.normal(size=(case.pixels, width)), jnp.float32),
        jnp.asarray(encoded_labels(task, case.pixels, rng)),
        jnp.asarray(rng.uniform(size=case.pixels) < 0.9),
        jax.random.key(0),
    )
    program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - began)
    return Cost(statistics.median(seconds), program.memory_analysis().temp_size_in_bytes)


def memory_bound(pixels: int, gamma: float, block: int | None, width: int) -> int:
    """Bytes for one image: 40 block P for what is known of anchors and pixels, 16 P D for the features."""
    anchors = max(1, int(gamma * pixels))
    return 40 * min(block or anchors, anchors) * pixels + 16 * pixels * width


def tabulate(costs: dict[Case, Cost], block: int | None, width: int) -> Table:
    """A row per case."""
    columns = (Column("ms", decimals=1), Column("MB", decimals=1), Column("MB at most", decimals=1))
    rows = {}
    for case, cost in costs.items():
        bound = memory_bound(case.pixels, case.gamma, block, width)
        values = (1e3 * cost.seconds, cost.bytes / 1e6, bound / 1e6)
        name = f"{case.source}, {case.size[0]}x{case.size[1]}, gamma {case.gamma}"
        rows[name] = tuple(map(Value, values))
    return Table("case", columns, rows)


def draw(path: str, costs: dict[Case, Cost], block: int | None, width: int) -> None:
    """Time and memory over P and over gamma."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    columns = (
        ("pixels of the map, P", lambda c: c.gamma == GAMMA, lambda c: c.pixels),
        ("anchors per pixel, gamma", lambda c: c.size == SIZE, lambda c: c.gamma),
    )
    for column, (label, chosen, place) in enumerate(columns):
        for source in SOURCES:
            cases = sorted((c for c in costs if c.source == source and chosen(c)), key=place)
            places = [place(c) for c in cases]
            panels[0, column].plot(places, [1e3 * costs[c].seconds for c in cases], "o-", label=source)
            panels[1, column].plot(places, [costs[c].bytes / 1e6 for c in cases], "o-", label=source)
        bounds = [memory_bound(c.pixels, c.gamma, block, width) / 1e6 for c in cases]
        panels[1, column].plot(places, bounds, "k--", linewidth=1, label="at most")
        for row, title in enumerate(("milliseconds", "megabytes")):
            axes = panels[row, column]
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(places, map(str, places))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            if not column:
                axes.set_ylabel(title)
        panels[1, column].set_xlabel(label)
    panels[1, 0].legend(frameon=False)
    figure.suptitle(f"contrast of one image and one pair of tasks; {block or 'all'} anchors at a time")
    figure.savefig(path, dpi=120)


def cases() -> Sequence[Case]:
    """All that the picture shows."""
    places = [(size, GAMMA) for size in SIZES] + [(SIZE, gamma) for gamma in GAMMAS if gamma != GAMMA]
    return [Case(source, *place) for source in SOURCES for place in places]


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table and picture")
    parser.add_argument("--block", type=int, default=64, help="anchors at a time; 0 for all")
    parser.add_argument("--width", type=int, default=128, help="channels of the projected features")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    flags = parser.parse_args()
    if flags.repeats < 1 or flags.width < 1 or flags.block < 0:
        raise UserError("--repeats and --width must be at least 1, --block at least 0")
    block = flags.block or None
    costs = {case: measure(case, block, flags.width, flags.repeats) for case in cases()}
    table = tabulate(costs, block, flags.width)
    print(table.markdown(), end="")
    table.write(flags.out)
    draw(os.path.join(flags.out, "contrast_cost.png"), costs, block, flags.width)


if __name__ == "__main__":
    main()
