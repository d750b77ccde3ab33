"""Pictures of a run: panels of labels and predictions, and curves of losses and metrics."""

import json
import math
import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from mtl_jax import experiment
from mtl_jax.errors import UserError
from mtl_jax.tasks import Task
from mtl_jax.tasks.boxes import Boxes, palette

Maps = Mapping[str, np.ndarray]
"""Task -> f32[N,H,W,channels], encoded labels or activated predictions; of boxes their rows f32[N,n,1,6]."""

_TILE = 2.3  # inches, width of one picture in a panel
_LINE = 0.22  # inches, height of a line of text
_WIDE = 6.4  # inches, greatest width of a picture that stands for itself
_SURE = 0.3  # least score of the boxes that are drawn


def encoded_truth(task: Task, label: jax.Array, valid: jax.Array) -> np.ndarray:
    """Labels [B,H,W,C] of a batch as `panels` wants them: encoded, or boxes; NaN where `valid` is 0."""
    shown = label if task.values == "boxes" else task.encode(label)
    return np.where(np.asarray(valid) > 0, np.asarray(shown), np.nan)


def panels(path: str, images: np.ndarray, truths: Maps, predictions: Maps, tasks: Mapping[str, Task]) -> None:
    """Writes a PNG: one row per example, image | truth | prediction of each task; classes' colours below.

    Args:
      path: of the PNG; its folder is made.
      images: f32[N,H,W,3] in [0, 1].
      truths: encoded labels, NaN where unknown (drawn striped); tasks may be missing.
      predictions: activated and decoded predictions.
      tasks: the tasks to draw, in this order.
    """
    columns = [("image", None, images, False)]
    for name, task in tasks.items():
        if name in truths:
            columns.append((f"{name}: truth", task, truths[name], False))
        columns.append((f"{name}: prediction", task, predictions[name], True))
    legends = [(name, task) for name, task in tasks.items() if task.label_is_map and _class_names(task)]

    count, height, width = images.shape[:3]
    per_line = max(1, round(len(columns) * _TILE / 1.3))
    lines = [1.5 + math.ceil(len(_class_names(task)) / per_line) for _, task in legends]
    heights = [_TILE * height / width + _LINE] * count + [_LINE * n for n in lines]
    figure = Figure((_TILE * len(columns), sum(heights)), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(heights), len(columns), height_ratios=heights)
    for j, (title, task, maps, predicted) in enumerate(columns):
        for i, values in enumerate(maps):
            axes = figure.add_subplot(grid[i, j])
            axes.set_axis_off()
            if i == 0:
                axes.set_title(title, fontsize=11)
            if task is None:
                axes.imshow(np.clip(values, 0, 1), interpolation="nearest")
            elif task.values == "boxes":
                axes.imshow(np.clip(images[i], 0, 1), interpolation="nearest")
                _draw_boxes(axes, task, values, predicted)
            elif task.dense:
                axes.imshow(task.colorize(values), interpolation="nearest")
            else:
                axes.text(0.5, 0.5, describe(task, values), ha="center", va="center", wrap=True)
    for i, (name, task) in enumerate(legends):
        _draw_legend(figure.add_subplot(grid[count + i, :]), name, task, per_line)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def describe(task: Task, encoded: np.ndarray) -> str:
    """Text for what has no picture: one label or prediction f32[1,1,channels] of the whole image."""
    value = encoded.reshape(-1)
    if np.isnan(value).any():
        return "unknown"
    names = _class_names(task)
    if not names:
        return " ".join(f"{v:.3g}" for v in value)
    return f"{names[value.argmax()]} ({value.max():.0%})"


def boxes_over(path: str, image: np.ndarray, task: Boxes, detections: np.ndarray) -> None:
    """Writes a PNG of the size of uint8[H,W,3] `image`, with detections f32[n,1,6] drawn over it."""
    height, width = image.shape[:2]
    dpi = max(100.0, width / _WIDE)
    figure = Figure(((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi)  # matplotlib rounds down
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image, interpolation="nearest", aspect="auto")
    _draw_boxes(axes, task, detections, predicted=True)
    figure.savefig(path)


def _draw_boxes(axes: Axes, task: Boxes, rows: np.ndarray, predicted: bool) -> None:
    """Draws the rows f32[n,1,6] of a label, hard ones dashed, or of detections, those that are sure."""
    if np.isnan(rows).any():
        axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center", va="center")
    colors = palette(len(task.class_names)) / 255
    for ymin, xmin, ymax, xmax, class_id, last in rows[:, 0]:
        if not class_id >= 0 or predicted and last < _SURE:
            continue
        color, name = colors[int(class_id)], task.class_names[int(class_id)]
        style = "--" if last and not predicted else "-"
        place = xmin - 0.5, ymin - 0.5  # pictures have the pixels' centres at whole numbers
        axes.add_patch(
            Rectangle(place, xmax - xmin, ymax - ymin, fill=False, edgecolor=color, linestyle=style)
        )
        axes.text(
            *place,
            f"{name} {last:.0%}" if predicted else name,
            fontsize=6,
            color="white" if color.mean() < 0.5 else "black",
            va="bottom",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.5},
            clip_on=True,
        )


def _class_names(task: Task) -> tuple[str, ...]:
    return getattr(task, "class_names", ())


def _draw_legend(axes: Axes, name: str, task: Task, per_line: int) -> None:
    colors = task.colorize(np.eye(task.channels, dtype=np.float32)[None])[0] / 255
    patches = [
        Patch(facecolor=color, edgecolor="0.6", label=label)
        for color, label in zip(colors, _class_names(task), strict=True)
    ]
    axes.set_axis_off()
    axes.legend(
        handles=patches, title=name, ncols=per_line, loc="center", fontsize=8, title_fontsize=9, frameon=False
    )


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
