"""What a training step costs, and how that grows with the tasks (Nishi et al., CVPR 2024, Tables 6 and 7).

    python -m mtl_jax.training_cost --config=FILE:ARG --out=DIR [--rows=a,b] [--scale=mini]
                                    [--config.key=value ...]

Of each row of a sweep: parameters of its networks and of those that its method has beside them; arithmetic
of a training step (forward and backward pass, update) for one image; and memory for what the step holds in
between, for the whole batch. Prints a table with the published hours and GiB beside it, and all as multiples
of the baseline's, and writes it to DIR as table.md, .csv and .tex.

    python -m mtl_jax.training_cost --tasks=2,4,6,8,10 --config=FILE:ARG --out=DIR [--config.key=value ...]

The step with these numbers of tasks, each a map of one channel, in the network and with the sizes of a config
whose method is jtr or mtpsl: of supervised training, of JTR, and of MTPSL for images with one label and with
half of them. Prints a table, and writes it to DIR with growth.png and growth.json.

JTR's cost is a line in the number of tasks K, which are channels of its stacks. MTPSL pays for each pair of a
task without and a task with a label: floor(K/2) ceil(K/2) with half of the labels, but with one K - 1, a line
too. Its scales and shifts belong to K (K - 1) pairs in any case: 8448 numbers each in a SegNet of full width.

Nothing is trained, and no data is read. The arithmetic is XLA's count before its optimisation, where a
multiply-add is 2. The memory is that of the program compiled for this machine: on a CPU it tells which step
needs more, and by what law, not how much a GPU would need. Where images differ in their pairs, MTPSL's step
is compiled for the largest number, and so is its memory here; its arithmetic is that of the mean number.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict

from mtl_jax import atomic, experiment, sweep
from mtl_jax import config as configs
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import availability
from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.methods.base import Method
from mtl_jax.methods.mtpsl import MTPSL
from mtl_jax.models import cost
from mtl_jax.sweep import Sweep
from mtl_jax.table import Column, Table, Value
from mtl_jax.train import TrainState, init_state, make_step

DRAWN = 100_000  # images of which the mean number of pairs is taken
# Code of the first kind at hand: the memory is planned before it is made.
COMPILER = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one training step.

    Attributes:
      network, own: parameters of the network, and of what its method has beside it.
      flops: floating-point operations for each image of the batch.
      memory: see `temporary_memory`.
    """

    network: int
    own: int
    flops: float
    memory: int


SIZES: Mapping[str, Callable[[StepCost], float]] = {
    "params [M]": lambda c: c.network / 1e6,
    "of the method [M]": lambda c: c.own / 1e6,
}
MEASURES: Mapping[str, Callable[[StepCost], float]] = {
    "FLOPs [G]": lambda c: c.flops / 1e9,
    "memory [GiB]": lambda c: c.memory / 2**30,
}
PUBLISHED = {"paper: time [h]": "all/hours", "paper: memory [GiB]": "all/gib"}  # keys of the rows' `paper`


def describe(found: StepCost) -> str:
    return ", ".join(f"{title} {measure(found):.4g}" for title, measure in MEASURES.items())


def lower(config: ConfigDict, method: Method) -> tuple[jax.stages.Lowered, TrainState]:
    """The program of a training step, and the shapes of its state; nothing is computed."""
    key = jax.random.key(config.seed)
    batch = jax.eval_shape(
        lambda: experiment.example_batch(config, method.tasks, method.views, method.streams)
    )
    state = jax.eval_shape(lambda batch: init_state(method, config, key, batch), batch)
    return jax.jit(make_step(method, config), donate_argnums=0).lower(state, batch), state


def step_cost(config: ConfigDict, method: Method) -> StepCost:
    """Of the step as it trains; MTPSL's is compiled for `max_pairs` pairs of every image."""
    lowered, state = lower(config, method)
    return StepCost(
        cost.parameters(state.params["model"]),
        cost.parameters(state.params["method"]),
        lowered.cost_analysis()["flops"] / config.data.batch_size,
        temporary_memory(lowered),
    )


def temporary_memory(lowered: jax.stages.Lowered) -> int:
    """Bytes that the compiled program holds beside its arguments and results, at most."""
    return lowered.compile(compiler_options=COMPILER).memory_analysis().temp_size_in_bytes


def flops_for(pairs: float, config: ConfigDict, method: MTPSL) -> float:
    """FLOPs for an image of a step with so many pairs, between those with the next whole numbers."""

    def whole(pairs: int) -> float:
        lowered, _ = lower(config, dataclasses.replace(method, max_pairs=pairs))
        return lowered.cost_analysis()["flops"] / config.data.batch_size

    few = max(1, math.floor(pairs))
    least = whole(few)
    return least if pairs == few else least + (pairs - few) * (whole(few + 1) - least)


def mean_pairs(config: ConfigDict, tasks: Sequence[str]) -> float:
    """Pairs of a task without and a task with a label, in the mean over images by config.data.labels."""
    options = config.data.labels
    columns = list(options.tasks or tasks)
    given = availability.table(options, tasks, DRAWN)[:, [columns.index(name) for name in tasks]]
    known = given.sum(1, dtype=int)
    return float(np.mean(known * (len(tasks) - known)))


def make_method(config: ConfigDict, labels: Mapping[str, Mapping]) -> Method:
    """The method of a config over the network of its tasks; `labels` as of a dataset."""
    tasks = tasks_lib.build(config.tasks, labels)
    return experiment.build_method(config, experiment.build_model(config, tasks), tasks)


def row_cost(row: str, row_configs: Sequence[ConfigDict]) -> StepCost:
    """Of all runs of a row: the sums, but the largest memory; FLOPs are those of the mean number of pairs.

    Raises:
      UserError: it names the row whose network or method cannot be built.
    """
    costs = []
    for config in row_configs:
        try:
            method = make_method(config, experiment.build_dataset(config).labels)
            found = step_cost(config, method)
            if isinstance(method, MTPSL):
                pairs = mean_pairs(config, tuple(method.tasks))
                if pairs != method.max_pairs:
                    found = dataclasses.replace(found, flops=flops_for(pairs, config, method))
        except UserError as error:
            raise UserError(f"row {row!r}: {error}") from error
        costs.append(found)
    sums = (sum(getattr(c, key) for c in costs) for key in ("network", "own", "flops"))
    return StepCost(*sums, max(c.memory for c in costs))


def tabulate(found: Sweep, costs: Mapping[str, StepCost]) -> Table:
    """One line per row of `costs`: ours and, if there are any, the published costs; and both as multiples."""
    columns = {title: {r: measure(c) for r, c in costs.items()} for title, measure in SIZES.items()}
    measured = {title: {r: measure(c) for r, c in costs.items()} for title, measure in MEASURES.items()}
    for title, key in PUBLISHED.items():
        known = {row: found.rows[row].paper[key] for row in costs if key in found.rows[row].paper}
        measured |= {title: known} if known else {}
    columns |= measured
    for title, cells in measured.items():
        if base := cells.get(found.baseline):
            multiples = {row: value / base for row, value in cells.items()}
            columns[f"{title.partition(' [')[0]} / {found.baseline}"] = multiples
    rows = {row: [Value(c[row]) if row in c else None for c in columns.values()] for row in costs}
    return Table("row", [Column(title) for title in columns], rows)


CURVES: Mapping[str, tuple[str, Callable[[int], int] | None]] = {  # method, pairs of an image with K tasks
    "Supervised": ("supervised", None),
    "JTR": ("jtr", None),
    "MTPSL with one label": ("mtpsl", lambda tasks: tasks - 1),
    "MTPSL with half of the labels": ("mtpsl", lambda tasks: tasks // 2 * (tasks - tasks // 2)),
}


def synthetic(config: ConfigDict, curve: str, tasks: int) -> tuple[ConfigDict, Method]:
    """The config with `tasks` maps of one channel for its tasks, trained as one of CURVES.

    Raises:
      UserError: its method is neither jtr nor mtpsl, whose options say how large the helping networks are.
    """
    if config.method.name not in ("jtr", "mtpsl"):
        raise UserError(
            f"config.method is {config.method.name!r}: give a config whose method is jtr or mtpsl"
        )
    network = {key: config.method[key] for key in ("architecture", "width") if key in config.method}
    name, pairs = CURVES[curve]
    options = {} if name == "supervised" else network
    if pairs:
        options = {**options, "max_pairs": pairs(tasks)}
    config = config.copy_and_resolve_references()
    maps = [f"map{k}" for k in range(tasks)]
    configs.override(config, "tasks", {task: {} for task in maps})
    configs.override(config, "method", {"name": name, "average": "image", **options})
    return config, make_method(config, {task: {"kind": "regression"} for task in maps})


def growth(config: ConfigDict, numbers: Sequence[int]) -> dict[str, list[StepCost]]:
    """{curve: the cost with each of these numbers of tasks}; prints them one by one."""
    costs: dict[str, list[StepCost]] = {}
    for curve, tasks in itertools.product(CURVES, numbers):
        found = step_cost(*synthetic(config, curve, tasks))
        costs.setdefault(curve, []).append(found)
        print(f"{curve}, {tasks} tasks: {describe(found)}", flush=True)
    return costs


def fit(terms: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[np.ndarray, float]:
    """Least squares: what multiplies each of the terms, and the largest residual as a share of its value."""
    terms, values = np.transpose(terms).astype(float), np.asarray(values, float)
    size = np.linalg.norm(terms, axis=0)
    factors = np.linalg.lstsq(terms / size, values)[0] / size
    return factors, float(np.max(np.abs(terms @ factors - values) / values))


def powers(numbers: Sequence[float], degree: int) -> np.ndarray:
    """f[degree+1,N]: 1, K, K^2, ... of numbers K: terms of `fit`."""
    return np.vander(np.asarray(numbers, float), degree + 1, increasing=True).T


def laws(numbers: Sequence[int], costs: Mapping[str, Sequence[StepCost]]) -> dict[str, dict[str, float]]:
    """How the curves of `growth` go, in FLOPs for an image and bytes for a batch.

    Returns:
      curve -> for both: `.../per_task`, slope of the line through it; `.../off_line`, its largest distance
      from the line, as a share; `.../quadratic`, what multiplies K^2 in the parabola through it.
      "MTPSL" -> `flops/per_task` and `flops/per_pair`, of which, and a constant, its FLOPs are the sum with
      one label and with half of them alike; and `flops/off`, the largest distance from this, as a share.
    """
    result: dict[str, dict[str, float]] = {}
    for curve, found in costs.items():
        mine = result.setdefault(curve, {})
        for key in ("flops", "memory"):
            values = [getattr(c, key) for c in found]
            (_, mine[f"{key}/per_task"]), mine[f"{key}/off_line"] = fit(powers(numbers, 1), values)
            mine[f"{key}/quadratic"] = fit(powers(numbers, 2), values)[0][2]
    points = [
        (k, pairs(k), found.flops)
        for curve, (_, pairs) in CURVES.items()
        if pairs
        for k, found in zip(numbers, costs[curve], strict=True)
    ]
    tasks, pairs, flops = zip(*points, strict=True)
    (_, per_task, per_pair), off = fit([*powers(tasks, 1), pairs], flops)
    result["MTPSL"] = {"flops/per_task": per_task, "flops/per_pair": per_pair, "flops/off": off}
    return result


def tabulate_growth(numbers: Sequence[int], costs: Mapping[str, Sequence[StepCost]]) -> Table:
    """One line per number of tasks, with FLOPs and memory of each curve."""
    columns = [Column(f"{curve}: {title}") for title in MEASURES for curve in costs]
    rows = {
        str(k): [Value(measure(some[i])) for measure in MEASURES.values() for some in costs.values()]
        for i, k in enumerate(numbers)
    }
    return Table("tasks", columns, rows)


def draw(path: str, numbers: Sequence[int], costs: Mapping[str, Sequence[StepCost]], batch: int) -> None:
    """Writes a PNG: FLOPs and memory over the number of tasks, a panel each, with parabolas through them."""
    figure = Figure((11, 4.8), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    places = np.linspace(min(numbers), max(numbers), 100)
    titles = ("FLOPs of one image [G]", f"memory of a batch of {batch} [GiB]")
    for axes, title, measure in zip(panels, titles, MEASURES.values(), strict=True):
        for (curve, found), marker in zip(costs.items(), "sovD", strict=True):
            values = [measure(c) for c in found]
            (dots,) = axes.plot(numbers, values, marker, label=curve)
            factors, _ = fit(powers(numbers, 2), values)
            axes.plot(places, factors @ powers(places, 2), color=dots.get_color(), linewidth=1)
        axes.set(xlabel="tasks", ylabel=title)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def parse_numbers(text: str) -> list[int]:
    """`2,4,6` -> [2, 4, 6]; UserError unless they are three different numbers from 2 on, or more."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if len(numbers) < 3 or numbers[0] < 2:
        raise UserError(f"--tasks is {text!r}: give three or more numbers of at least 2, such as 2,4,6,8")
    return numbers


def report_growth(spec: str, numbers: Sequence[int], last: sweep.Overrides, out: str) -> None:
    """Prints and writes what --tasks asks for."""
    config = configs.load(spec, last)
    configs.check(config)
    costs = growth(config, numbers)
    table, found = tabulate_growth(numbers, costs), laws(numbers, costs)
    print(table.markdown(), end="")
    for curve, law in found.items():
        print(f"{curve}: " + ", ".join(f"{key} {value:.4g}" for key, value in law.items()))
    table.write(out)
    content = {
        "tasks": numbers,
        "batch_size": config.data.batch_size,
        "costs": {curve: [dataclasses.asdict(c) for c in some] for curve, some in costs.items()},
        "laws": found,
    }
    atomic.write(os.path.join(out, "growth.json"), json.dumps(content, indent=1) + "\n")
    draw(os.path.join(out, "growth.png"), numbers, costs, config.data.batch_size)


def report_rows(spec: str, rows: Sequence[str] | None, scale: str, last: sweep.Overrides, out: str) -> None:
    """Prints and writes the table of a sweep's rows; default all that have runs."""
    found = sweep.load_sweep(spec)
    rows = rows or [name for name, row in found.rows.items() if row.parts()]
    row_configs: dict[str, list[ConfigDict]] = {}
    for job in sweep.jobs(found, spec, "", rows, 1, scale, last):
        row_configs.setdefault(job.row, []).append(job.config())
    costs = {}
    for row, its_configs in row_configs.items():
        costs[row] = row_cost(row, its_configs)
        print(f"{row}: {describe(costs[row])}", flush=True)
    table = tabulate(found, costs)
    print(table.markdown(), end="")
    table.write(out)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE:ARG of a sweep, or of a config with --tasks")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for tables and picture")
    parser.add_argument("--tasks", help="numbers of tasks, separated by commas")
    parser.add_argument("--rows", help="names of rows, separated by commas; default all that have runs")
    parser.add_argument("--scale", choices=("full", "mini"), default="full")
    flags, rest = parser.parse_known_args()
    last = configs.command_line_overrides(rest)
    if flags.tasks:
        report_growth(flags.config, parse_numbers(flags.tasks), last, flags.out)
    else:
        report_rows(flags.config, flags.rows and flags.rows.split(","), flags.scale, last, flags.out)


if __name__ == "__main__":
    main()
