"""Compares finished runs: python -m mtl_jax.report --workdirs A B C --baseline A [--out DIR] [--examples=N]

Prints a Markdown table of each task's headline metric after the last step, Delta_m, parameters and
GFLOPs (for one image of the training size), and writes it to DIR as table.md, .csv and .tex. Fractions
are shown in percent. Without --baseline, Delta_m compares to the best constant prediction, which is
then the first row. The baseline may be several runs with one task each: their tasks are put together.

With --examples, DIR/panels.png shows the first N images that the first run is evaluated on: the truth of each
task, and what each run predicts. The runs then have the same tasks.
"""

import argparse
import dataclasses
import glob
import os
import statistics
from collections.abc import Mapping, Sequence

from mtl_jax import experiment
from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.metrics.delta import delta_m
from mtl_jax.table import Column, Table, Value
from mtl_jax.tasks import Task

Results = Mapping[str, float | None]  # "task/metric" -> value; None where it was not finite


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run reached, or several runs whose networks do different tasks.

    Attributes:
      results: of its network after the last step.
      constant: of the best constant prediction.
      params: how many numbers the network holds.
      gflops: for one image of the training size.
    """

    tasks: Mapping[str, Task]
    results: Results
    constant: Results = dataclasses.field(default_factory=dict)
    params: float | None = None
    gflops: float | None = None


def read_run(workdir: str) -> Run:
    """The finished run in `workdir`; UserError if there is none."""
    tasks, config = experiment.read_tasks(workdir), experiment.read_config(workdir)
    if not os.path.exists(os.path.join(workdir, "eval.json")):
        raise UserError(f"the run in {workdir} is not finished (it has no eval.json): run its command again")
    results = experiment.read_results(workdir)

    def part(name: str) -> Results:
        return {k.removeprefix(f"{name}/"): v for k, v in results.items() if k.startswith(f"{name}/")}

    cost = part("model/cost")
    return Run(tasks, part(config.data.eval), part("constant"), cost.get("params"), cost.get("gflops"))


def merge(runs: Sequence[Run]) -> Run:
    """One run of all the tasks of `runs`, at the sum of their costs; UserError if two do the same task."""
    tasks: dict[str, Task] = {}
    results: dict[str, float | None] = {}
    constant: dict[str, float | None] = {}
    for run in runs:
        if twice := sorted(set(tasks) & set(run.tasks)):
            raise UserError(f"cannot put runs together: task {twice[0]!r} is in two of them")
        tasks |= run.tasks
        for into, values in ((results, run.results), (constant, run.constant)):
            into |= {k: v for k, v in values.items() if k.split("/")[0] in run.tasks}
    costs = [[run.params for run in runs], [run.gflops for run in runs]]
    return Run(tasks, results, constant, *(None if None in c else sum(c) for c in costs))


def compare(
    rows: Mapping[str, Sequence[Run]], reference: Sequence[Run], paper: Mapping[str, Results] | None = None
) -> Table:
    """A table of runs.

    Args:
      rows: row name -> its finished runs, which differ in the seed; a row may have none.
      reference: the runs, averaged, that Delta_m compares to, over their tasks. Where one of them is
        unknown, or none is given, Delta_m is missing.
      paper: row name -> published numbers like eval.json's ("task/metric" without the split;
        "all/delta_m" in percent), which get columns beside ours.
    """
    paper = paper or {}
    tasks = {name: task for runs in rows.values() for run in runs for name, task in run.tasks.items()}
    keys = [f"{name}/{task.headline}" for name, task in tasks.items()]
    published = dict.fromkeys(key for results in paper.values() for key in results)
    keys += [k for k in published if k not in keys and k.split("/")[0] in tasks]

    columns: list[tuple[Column, list[Value | None]]] = []
    for key in keys:
        task, metric = tasks[key.split("/")[0]], key.split("/")[1]
        headline = metric == task.headline
        unit = task.unit if headline else ""
        scale = 100 if unit == "%" else 1
        title = f"{task.name} {metric}" + (f" [{unit}]" if unit else "")
        ours = [_estimate([run.results.get(key) for run in runs], scale) for runs in rows.values()]
        columns.append((Column(title, task.better if headline else 0), ours))
        if key in published:
            theirs = [_estimate([paper.get(row, {}).get(key)], scale) for row in rows]
            columns.append((Column(f"paper: {title}"), theirs))
    gains = [_estimate(_deltas(runs, reference)) for runs in rows.values()]
    columns.append((Column("Δm [%]", 1, decimals=2), gains))
    if "all/delta_m" in published:
        theirs = [_estimate([paper.get(row, {}).get("all/delta_m")]) for row in rows]
        columns.append((Column("paper: Δm [%]", decimals=2), theirs))
    some = [runs[0] if runs else None for runs in rows.values()]  # costs do not depend on the seed
    columns.append((Column("params [M]"), [_estimate([run and run.params], 1e-6) for run in some]))
    columns.append((Column("GFLOPs"), [_estimate([run and run.gflops]) for run in some]))
    if any(len(runs) > 1 for runs in rows.values()):
        columns.append(
            (Column("seeds", decimals=0), [Value(len(runs)) if runs else None for runs in rows.values()])
        )
    lines = zip(*(cells for _, cells in columns), strict=True)
    return Table("run", [column for column, _ in columns], dict(zip(rows, lines, strict=True)))


def _deltas(runs: Sequence[Run], reference: Sequence[Run]) -> list[float | None]:
    """Delta_m of each run over the mean of `reference`, in percent; None where it is undefined."""
    if not reference:
        return []
    tasks = reference[0].tasks
    base = {name: _estimate([_headline(run, name) for run in reference]) for name in tasks}
    if any(value is None or value.mean == 0 for value in base.values()):
        return []
    means = {name: value.mean for name, value in base.items()}
    ours = [{name: _headline(run, name) for name in tasks} for run in runs]
    return [None if None in one.values() else delta_m(one, means, tasks) for one in ours]


def _headline(run: Run, name: str) -> float | None:
    return run.results.get(f"{name}/{run.tasks[name].headline}") if name in run.tasks else None


def _estimate(values: Sequence[float | None], scale: float = 1.0) -> Value | None:
    """Mean and, from two values on, sample standard deviation."""
    known = [scale * v for v in values if v is not None]
    if not known:
        return None
    return Value(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def draw_examples(path: str, workdirs: Sequence[str], count: int) -> None:
    """Pictures of `count` images and of what each run predicts for them.

    Raises:
      UserError: the runs have different tasks, or one has no checkpoint.
    """
    from mtl_jax import evaluate  # with the input pipeline, slow to import

    runs = {workdir: experiment.load(workdir) for workdir in workdirs}
    first = next(iter(runs.values()))
    for workdir, run in runs.items():
        if set(run.tasks) != set(first.tasks):
            raise UserError(
                f"--examples wants runs of the same tasks: {workdirs[0]} has"
                f" {', '.join(sorted(first.tasks))}, {workdir} {', '.join(sorted(run.tasks))}"
            )
    dataset = experiment.build_dataset(first.config)
    split = dataset.split(first.config.data.eval, tuple(first.tasks)).subset(range(count))
    last = [os.path.basename(os.path.normpath(workdir)) for workdir in runs]  # unless that tells none apart
    titles = last if len(set(last)) == len(last) else list(runs)
    networks = {title: (run.model, run.variables) for title, run in zip(titles, runs.values(), strict=True)}
    evaluate.draw_examples(path, first.config, split, first.tasks, networks)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdirs", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--baseline", nargs="+", metavar="DIR", help="the run, or runs, of Delta_m = 0")
    parser.add_argument("--out", metavar="DIR", help="folder for table.md, table.csv and table.tex")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="images to draw, into --out")
    flags = parser.parse_args()
    if flags.examples and not flags.out:
        raise UserError("--examples draws into a folder: give --out=DIR")

    rows = {workdir: [read_run(workdir)] for workdir in flags.workdirs}
    if flags.baseline:
        reference = merge([read_run(workdir) for workdir in flags.baseline])
        if len(flags.baseline) > 1 or os.path.normpath(flags.baseline[0]) not in map(os.path.normpath, rows):
            rows = {" + ".join(flags.baseline): [reference], **rows}
    else:
        first = next(iter(rows.values()))[0]
        reference = Run(first.tasks, first.constant)
        rows = {"best constant": [reference], **rows}
    table = compare(rows, [reference])
    print(table.markdown(), end="")
    if flags.out:
        table.write(flags.out)
    if flags.examples:
        draw_examples(os.path.join(flags.out, "panels.png"), flags.workdirs, flags.examples)
    for workdir in flags.workdirs:
        for picture in sorted(glob.glob(os.path.join(workdir, "figures", "*.png"))):
            print(picture)


if __name__ == "__main__":
    main()
