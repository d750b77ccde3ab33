"""Pictures of a run: curves of losses and metrics."""

import json
import math
import os
from collections.abc import Iterator, Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from mtl_jax import experiment
from mtl_jax.errors import UserError


def curves(workdir: str) -> None:
    """Draws metrics.jsonl of a run into figures/losses.png and figures/metrics.png.

    The metrics are the tasks' headlines and Delta_m; a dashed line is the best constant prediction.

    Raises:
      UserError: there is no run, or it has logged nothing.
    """
    tasks = experiment.read_tasks(workdir)
    series: dict[str, list[tuple[int, float]]] = {}
    for step, key, value in _logged(workdir):
        series.setdefault(key, []).append((step, value))
    losses = {k: v for k, v in series.items() if k.startswith("train/") and k.endswith("/loss")}
    split = experiment.read_config(workdir).data.eval
    shown = {f"{name}/{task.headline}": task for name, task in tasks.items()}
    metrics = {f"{split}/{k}": series[f"{split}/{k}"] for k in shown if f"{split}/{k}" in series}
    delta = f"{split}/all/delta_m"
    if delta in series:
        metrics[delta] = series[delta]
    constants = _constants(workdir, split)

    folder = os.path.join(workdir, "figures")
    os.makedirs(folder, exist_ok=True)
    _draw_curves(os.path.join(folder, "losses.png"), losses, {}, log=True)
    _draw_curves(os.path.join(folder, "metrics.png"), metrics, constants, log=False)


def _logged(workdir: str) -> Iterator[tuple[int, str, float]]:
    """(step, key, value) of metrics.jsonl; values that were not finite are left out."""
    try:
        with open(os.path.join(workdir, "metrics.jsonl")) as file:
            records = [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        raise UserError(f"{workdir} has no metrics.jsonl: its run has logged nothing yet") from None
    for record in records:
        step = record.pop("step")
        yield from ((step, key, value) for key, value in record.items() if value is not None)


def _constants(workdir: str, split: str) -> dict[str, float]:
    """Metric key of the evaluation -> value of the best constant prediction, if the run is finished."""
    if not os.path.exists(os.path.join(workdir, "eval.json")):
        return {}
    results = experiment.read_results(workdir)
    prefix = "constant/"
    return {f"{split}/{k.removeprefix(prefix)}": v for k, v in results.items() if k.startswith(prefix)}


def _draw_curves(
    path: str, series: Mapping[str, list[tuple[int, float]]], constants: Mapping[str, float | None], log: bool
) -> None:
    columns = min(3, max(1, len(series)))
    rows = max(1, math.ceil(len(series) / columns))
    figure = Figure((4.2 * columns, 3.0 * rows), dpi=100, layout="constrained")
    for i, (key, points) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="." if len(points) < 30 else None)
        if log and min(values) > 0:
            axes.set_yscale("log")
            for set_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                set_format(StrMethodFormatter("{x:g}"))
        if constants.get(key) is not None:
            axes.axhline(constants[key], color="0.4", linestyle="--", label="best constant")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(key.replace("all/delta_m", "Delta_m over a constant, %"), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path)
