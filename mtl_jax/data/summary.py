"""What a split holds: images, labels, and what they say, in numbers that add up over its parts."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.dataset import Example
from mtl_jax.tasks import Task

NAMED = 8  # so many classes are named in a line


@dataclasses.dataclass
class Tally:
    """What the labels of one task say.

    Attributes:
      labels: images of which anything is known.
      known, places: pixels (or images, where a task has one label for each) that are known, and all of them.
      counts: of classes or objects, by class; empty for quantities.
      total: sum of each channel of the known numbers; of quantities alone.
      numbers: how many were summed in each channel.
      least, most: of quantities alone.
      away: known vectors that point away from the camera; of directions alone.
    """

    labels: int = 0
    known: int = 0
    places: int = 0
    counts: list[int] = dataclasses.field(default_factory=list)
    total: list[float] = dataclasses.field(default_factory=list)
    numbers: int = 0
    least: float = float("inf")
    most: float = float("-inf")
    away: int = 0


@dataclasses.dataclass
class Summary:
    """What a split, or a part of it, holds.

    Attributes:
      images: how many.
      sizes: "height x width" -> how many images have it.
      tasks: by name.
    """

    images: int = 0
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    tasks: dict[str, Tally] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Summary":
        return cls(**{**content, "tasks": {name: Tally(**t) for name, t in content["tasks"].items()}})


def of_example(example: Example, tasks: Mapping[str, Task]) -> Summary:
    """Of one image and its labels of `tasks`."""
    height, width = example["image"].shape[:2]
    tallies = {name: _of_label(task, example["labels"][name]) for name, task in tasks.items()}
    return Summary(1, {f"{height}x{width}": 1}, tallies)


def _of_label(task: Task, label: np.ndarray) -> Tally:
    known = np.asarray(task.known(label))
    tally = Tally(int(known.any()), int(known.sum()), known.size)
    if task.values == "boxes":
        classes = label[..., 4][np.broadcast_to(known, label.shape)[..., 4]]
        tally.counts = np.bincount(classes.astype(int), minlength=len(task.class_names)).tolist()
        return tally
    values = label[known[..., 0]]  # [n,C]
    if task.values == "classes":
        tally.counts = np.bincount(values[:, 0].astype(int), minlength=task.channels).tolist()
        return tally
    if task.discrete and task.label_channels > 1 and task.label_channels == task.channels:
        tally.counts = (values == 1).sum(0).tolist()  # several classes may hold at once
        return tally
    values = values.astype(np.float64)
    if task.label_channels != task.channels:  # drawn by several people, each perhaps absent
        values = values[values != task.fill][:, None]
    if len(values):
        tally.numbers = len(values)
        tally.total = values.sum(0).tolist()
        tally.least, tally.most = float(values.min()), float(values.max())
        tally.away = int((values[:, 2] < 0).sum()) if task.values == "directions" else 0
    return tally


def add(parts: Sequence[Summary]) -> Summary:
    """Of all that the parts hold."""
    names = list(dict.fromkeys(name for part in parts for name in part.tasks))
    return Summary(
        images=sum(part.images for part in parts),
        sizes=dict(sum((Counter(part.sizes) for part in parts), Counter())),
        tasks={name: _add([part.tasks[name] for part in parts if name in part.tasks]) for name in names},
    )


def _add(tallies: Sequence[Tally]) -> Tally:
    def total(key: str) -> list:
        return np.sum([v for tally in tallies if (v := getattr(tally, key))], axis=0).tolist() or []

    return Tally(
        labels=sum(t.labels for t in tallies),
        known=sum(t.known for t in tallies),
        numbers=sum(t.numbers for t in tallies),
        places=sum(t.places for t in tallies),
        counts=total("counts"),
        total=total("total"),
        least=min(t.least for t in tallies),
        most=max(t.most for t in tallies),
        away=sum(t.away for t in tallies),
    )


def lines(summary: Summary, tasks: Mapping[str, Task], published: int | None) -> list[str]:
    """The summary in words; `published`: how many images the release has."""
    count = f"{summary.images} images"
    if published is not None:
        count += " (as published)" if summary.images == published else f" ({published} were published)"
    found = [f"{count} of {_describe_sizes(summary.sizes)}"]
    width = max(map(len, tasks), default=0)
    return found + [
        f"  {name:<{width}}  {_describe(summary.tasks[name], task)}" for name, task in tasks.items()
    ]


def _describe_sizes(sizes: Mapping[str, int]) -> str:
    ordered = sorted(sizes, key=lambda size: (-sizes[size], size))
    rest = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def _describe(tally: Tally, task: Task) -> str:
    text = f"{tally.labels} labels"
    if not tally.known:
        return text
    if task.dense:
        text += f", {tally.known / tally.places:.1%} known"
    if tally.counts:
        return f"{text} · {_describe_classes(tally.counts, task)}"
    mean = np.array(tally.total) / tally.numbers
    if task.values == "directions":
        x, y, z = mean
        return f"{text} · mean ({x:.2f}, {y:.2f}, {z:.2f}), {tally.away / tally.numbers:.1%} point away"
    if task.values == "unit" and len(mean) == 1:
        return f"{text} · {mean[0]:.1%} positive"
    return f"{text} · {tally.least:.4g} to {tally.most:.4g}, mean {mean.mean():.4g} {task.unit}".rstrip()


def _describe_classes(counts: Sequence[int], task: Task) -> str:
    names = task.class_names
    order = sorted(range(len(counts)), key=lambda k: -counts[k])
    largest = [f"{names[k]} {counts[k] / sum(counts):.1%}" for k in order[:NAMED] if counts[k]]
    never = [names[k] for k in range(len(counts)) if not counts[k]]
    text = ", ".join(largest) + (", ..." if np.count_nonzero(counts) > NAMED else "")
    if never:
        few = ", ".join(never[:NAMED]) + (f" and {len(never) - NAMED} more" if len(never) > NAMED else "")
        text += f" · never {few}"
    return text
