"""Pictures of labels and predictions: panels of many, and labels over their images."""

import math
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mtl_jax.tasks.base import Task
from mtl_jax.tasks.boxes import Boxes, palette

Maps = Mapping[str, np.ndarray]
"""Task -> f32[N,H,W,channels], encoded labels or activated predictions; of boxes their rows f32[N,n,1,6]."""

_TILE = 2.3  # inches, width of one picture in a panel
_LINE = 0.22  # inches, height of a line of text
_WIDE = 6.4  # inches, greatest width of a picture that stands for itself
_SURE = 0.3  # least score of the boxes that are drawn
_VEIL = 0.6  # how much of a label over its image is the label


def encoded_truth(task: Task, label: jax.Array, valid: jax.Array) -> np.ndarray:
    """Labels [B,H,W,C] of a batch as `panels` wants them: encoded, or boxes; NaN where `valid` is 0."""
    shown = label if task.values == "boxes" else task.encode(label)
    return np.where(np.asarray(valid) > 0, np.asarray(shown), np.nan)


def panels(
    path: str,
    images: np.ndarray,
    truths: Maps,
    predictions: Mapping[str, Maps],
    tasks: Mapping[str, Task],
) -> None:
    """Writes a PNG: one row per example, image | truth | predictions of each task; classes' colours below.

    Args:
      path: of the PNG; its folder is made.
      images: f32[N,H,W,3] in [0, 1].
      truths: encoded labels, NaN where unknown (drawn striped); tasks may be missing.
      predictions: activated and decoded predictions, by what they are called; of the same images, so that
        several networks stand side by side.
      tasks: the tasks to draw, in this order.
    """
    columns = [("image", None, images, False)]
    for name, task in tasks.items():
        if name in truths:
            columns.append((f"{name}: truth", task, truths[name], False))
        columns += [(f"{name}: {title}", task, maps[name], True) for title, maps in predictions.items()]
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


def overlays(
    path: str,
    images: Sequence[np.ndarray],
    labels: Mapping[str, Sequence[np.ndarray]],
    tasks: Mapping[str, Task],
) -> None:
    """Writes a PNG: one row per example, its image and its labels over it; below, the classes that occur.

    Args:
      path: of the PNG; its folder must be there.
      images: uint8[h,w,3] each, of any sizes.
      labels: by task, in canonical form [h,w,C]; what is unknown is drawn striped.
      tasks: the tasks to draw, in this order.
    """
    shown = {
        name: [encoded_truth(t, x[None], t.known(x))[0] for x in labels[name]] for name, t in tasks.items()
    }
    legends = [(name, task) for name, task in tasks.items() if task.label_is_map and _class_names(task)]
    occurring = {
        name: np.unique(np.concatenate([x[~np.isnan(x).any(-1)].argmax(-1) for x in shown[name]]))
        for name, _ in legends
    }
    per_line = max(2, round((1 + len(tasks)) * _TILE / 1.3))
    lines = [1.5 + math.ceil(len(occurring[name]) / per_line) for name, _ in legends]
    tall = [_TILE * image.shape[0] / image.shape[1] + _LINE for image in images] + [_LINE * n for n in lines]
    figure = Figure((_TILE * (1 + len(tasks)), sum(tall)), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(tall), 1 + len(tasks), height_ratios=tall)
    for i, image in enumerate(images):
        for j, (name, task) in enumerate([("image", None), *tasks.items()]):
            axes = figure.add_subplot(grid[i, j])
            axes.set_axis_off()
            axes.set_title(name if i == 0 else "", fontsize=11)
            if task is not None and task.label_is_map:
                picture = (1 - _VEIL) * image + _VEIL * task.colorize(shown[name][i])
                axes.imshow(np.round(picture).astype(np.uint8), interpolation="nearest")
                continue
            axes.imshow(image, interpolation="nearest")
            if task is not None and task.values == "boxes":
                _draw_boxes(axes, task, shown[name][i], predicted=False)
            elif task is not None:
                axes.set_title(describe(task, shown[name][i]), fontsize=8)
    for i, (name, task) in enumerate(legends):
        _draw_legend(figure.add_subplot(grid[len(images) + i, :]), name, task, per_line, occurring[name])
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


def _draw_legend(
    axes: Axes, name: str, task: Task, per_line: int, classes: Sequence[int] | None = None
) -> None:
    """Colours and names of these classes, or of all."""
    colors = task.colorize(np.eye(task.channels, dtype=np.float32)[None])[0] / 255
    names = _class_names(task)
    patches = [
        Patch(facecolor=colors[k], edgecolor="0.6", label=names[k])
        for k in (range(len(names)) if classes is None else classes)
    ]
    axes.set_axis_off()
    axes.legend(
        handles=patches, title=name, ncols=per_line, loc="center", fontsize=8, title_fontsize=9, frameon=False
    )
