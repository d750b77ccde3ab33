"""How far apart pixels lie in a network's features that labels call alike, and that they call different:

    python -m mtl_jax.feature_distances --workdirs A B ... --out=DIR [--pairs=depth:normals,semseg:depth]
        [--triplets=100000] [--images=N] [--k=K] [--squared] [--seed=0] [--example=I]

Figures 1, 3 and 5 of Yang et al., Contrastive Multi-Task Dense Prediction, AAAI 2023. Of each pair target:source
(default: all with two tasks; a task may be its own source) about this many triplets are drawn, uniformly, at
most one for each anchor: an anchor, a positive and a negative pixel by the labels of the source (see `alike` in
methods/ccr.py), from the first N images (default: all) of the split that run A is evaluated on. They are the
same for all runs, which have the same tasks. Distances are those between unit vectors: the features that the
head of the target reads, at the newest checkpoint, and of a run trained with ccr their projections as well.

DIR gets
    distances.png   histograms of the distances from anchors to positives and to negatives.
    table.md, table.csv, table.tex (also printed)   their means, the gap between these, how much of the area of
                    the histograms is common, and the share of triplets whose negative is farther away.
    triplets.png    with --example=I: in image I (from 0) an anchor, its positives and negatives, and what ccr
                    mines among them by the features of each run.
"""

import argparse
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from ml_collections import ConfigDict

from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Split
from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.experiment import Experiment
from mtl_jax.methods import ccr
from mtl_jax.methods.base import Method
from mtl_jax.methods.maps import encoded
from mtl_jax.metrics.angular import unit
from mtl_jax.table import Column, Table, Value
from mtl_jax.tasks import Task

Pair = tuple[str, str]
"""Target, whose features are compared, and source, whose labels tell what is alike."""

Space = tuple[str, str]
"""Target, and the projector of its features; "" for none."""

K_SHARE = ccr.CCR.k / (120 * 160)  # of the pixels: the paper's k over those of its maps of NYU-v2
BINS = 100  # of the histograms, from 0 to the greatest distance
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"  # blue and vermilion, which colour-blind eyes tell apart
_BLOCK = 64  # anchors whose partners are drawn at once
_TILE = 2.4  # inches, width of a panel


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network, and the method that trained it with its own variables {"params", "state"}."""

    name: str
    trained: Experiment
    method: Method
    own: Any

    def projector(self, target: str, source: str) -> str | None:
        """Which of the method's projectors has learned to read the target's features for this source."""
        if not isinstance(self.method, ccr.CCR):
            return None
        shared = ccr.SHARING[self.method.sharing]
        others = {shared(target, other) for other in self.method.tasks if other != target}
        return shared(target, source) if shared(target, source) in others else None

    def embed(self, image: jax.Array, pairs: Sequence[Pair]) -> dict[Space, jax.Array]:
        """f32[1,H,W,3] -> maps f32[h,w,D] of unit vectors, for all these pairs."""
        return self._embed(self.trained.variables, self.own, image, tuple(pairs))

    @functools.cached_property
    def _embed(self) -> Callable:
        names, model = tuple(self.trained.tasks), self.trained.model

        def embed(variables, own, image, pairs):
            features = model.apply(variables, image, names, train=False).features
            maps = {(target, ""): unit(features[target].astype(jnp.float32))[0] for target, _ in pairs}
            for target, source in pairs:
                if name := self.projector(target, source):
                    learned = {part: tree["projectors"][name] for part, tree in own.items()}
                    projector = ccr.Projector(self.method.width, model.dtype)
                    projected = projector.apply(
                        {"params": learned["params"], **learned["state"]}, features[target], train=False
                    )
                    maps[target, name] = projected[0]
            return maps

        return jax.jit(embed, static_argnums=3)


@dataclasses.dataclass(frozen=True)
class View:
    """The features of a run that the heads read, or their projections."""

    run: Run
    projected: bool = False

    @property
    def name(self) -> str:
        return f"{self.run.name}, {'projected' if self.projected else 'features'}"

    def space(self, pair: Pair) -> Space | None:
        """Where pixels are compared for a pair; None if the run has no projector for it."""
        name = self.run.projector(*pair) if self.projected else ""
        return None if name is None else (pair[0], name)


class Distances(NamedTuple):
    """From the anchors of n triplets to their positives and negatives, f32[n] each."""

    near: np.ndarray
    far: np.ndarray


Found = Mapping[str, Mapping[Pair, Distances]]
"""By the name of the view, and by the pair; those without a projector are missing."""


class Statistics(NamedTuple):
    """Of the distances of a pair.

    Attributes:
      near, far: mean distance of positives and of negatives.
      gap: far - near.
      overlap: area, in [0, 1], that the two histograms have in common.
      ordered: share of the triplets whose negative is farther away than the positive.
    """

    near: float
    far: float
    gap: float
    overlap: float
    ordered: float


def read_runs(workdirs: Sequence[str]) -> list[Run]:
    """The runs, by the last part of their paths where that tells them apart.

    Raises:
      UserError: no run, no checkpoint, or other tasks than the first run has.
    """
    workdirs = list(dict.fromkeys(map(os.path.normpath, workdirs)))
    first = _outputs(workdirs[0])
    for workdir in workdirs[1:]:
        if different := sorted(first.items() ^ _outputs(workdir).items(), key=str):
            raise UserError(
                f"task {different[0][0]!r} of {workdirs[0]} and of {workdir} differ: compare runs of the same tasks"
            )
    names = [os.path.basename(workdir) for workdir in workdirs]
    runs = []
    for workdir, name in zip(workdirs, names if len(set(names)) == len(names) else workdirs, strict=True):
        trained = experiment.load(workdir)
        runs.append(Run(name, trained, *experiment.load_method(workdir, trained)))
    return runs


def _outputs(workdir: str) -> dict[str, tuple[type, int]]:
    return {name: (type(task), task.channels) for name, task in experiment.read_tasks(workdir).items()}


def parse_pairs(text: str | None, tasks: Mapping[str, Task]) -> list[Pair]:
    """`target:source,...` of tasks whose labels are maps; None: all of two tasks.

    Raises:
      UserError: no such task, fewer than two, or no pairs.
    """
    dense = [name for name, task in tasks.items() if task.label_is_map]
    if len(dense) < 2:
        known = ", ".join(dense) or "none"
        raise UserError(f"two tasks with a label per pixel are needed, and the runs have {known}: train with more")
    if text is None:
        return list(itertools.permutations(dense, 2))
    pairs = []
    for item in text.split(","):
        target, colon, source = item.strip().partition(":")
        if not colon:
            raise UserError(f"--pairs has {item!r}: give TARGET:SOURCE, as in depth:normals,semseg:depth")
        for name in (target, source):
            if name not in dense:
                raise UserError(f"--pairs has {name!r}: the tasks with a label per pixel are {', '.join(dense)}")
        pairs.append((target, source))
    return list(dict.fromkeys(pairs))


def choose_k(runs: Sequence[Run], k: int | None, pixels: int) -> int:
    """How many pixels are alike, and how many are not, where labels are quantities.

    `k` itself, or that with which runs were trained, or, if none was by ccr, K_SHARE of the pixels.

    Raises:
      UserError: the runs were trained with different ones.
    """
    if k is not None:
        return k
    theirs = {run.name: run.method.k for run in runs if isinstance(run.method, ccr.CCR)}
    if len(set(theirs.values())) > 1:
        told = ", ".join(f"{value} in {name}" for name, value in theirs.items())
        raise UserError(f"config.method.k is {told}: choose one for all by --k")
    return next(iter(theirs.values()), max(1, round(K_SHARE * pixels)))


def views(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[View]:
    """Of each run its features and, if there is a projector for any of the pairs, their projections."""
    both = (View(run, projected) for run in runs for projected in (False, True))
    return [view for view in both if any(view.space(pair) for pair in pairs)]


def batches(split: Split, tasks: Mapping[str, Task], config: ConfigDict) -> Iterator[pipeline.Batch]:
    """The split's images one by one, with the labels of the tasks."""
    one_by_one = ConfigDict({"eval_batch_size": 1, "eval_size": config.data.eval_size})
    return pipeline.eval_batches(split, tasks, one_by_one)


def labels_at(
    task: Task, label: jax.Array, valid: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """f32[P,channels], encoded, and where it is known, bool[P], of a label [1,H,W,C] at P = h w pixels."""
    label, valid = ccr.downsampled(label, size), ccr.downsampled(valid, size)
    values = encoded(task, label, valid)
    return values.reshape(-1, values.shape[-1]), valid.reshape(-1) > 0


@functools.partial(jax.jit, static_argnames=("task", "count", "k"))
def draw_triplets(
    task: Task, label: jax.Array, known: jax.Array, rng: jax.Array, count: int, k: int
) -> tuple[ccr.Triplets, jax.Array]:
    """At most `count` triplets of one image, with one negative each, and which of them are some, bool[count].

    Args:
      task: the source.
      label, known: as from `labels_at`.
      count: at most P.
    """
    first, rng = jax.random.split(rng)
    anchors, exist = ccr.draw_anchors(first, known, count)

    def partners(anchor_and_key):
        anchor, key = anchor_and_key
        return ccr.draw(key, *ccr.alike(task, label, known, anchor, k))

    keys = jax.random.split(rng, count)
    drawn = ccr.Triplets(
        anchors, exist, *jax.lax.map(partners, (anchors, keys), batch_size=min(_BLOCK, count))
    )
    return drawn, drawn.known & drawn.usable[:, 0]


@functools.partial(jax.jit, static_argnames="squared")
def distances(
    features: jax.Array, triplets: ccr.Triplets, squared: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Of positives and of negatives, f32[n] each, in a map f32[h,w,D] of unit vectors."""
    flat = features.reshape(-1, features.shape[-1])
    partners = triplets.positive, triplets.negative[:, 0]
    near, far = (ccr.length(flat[triplets.anchor] - flat[partner]) for partner in partners)
    return (near**2, far**2) if squared else (near, far)


def embed_all(
    runs: Sequence[Run], image: np.ndarray, pairs: Sequence[Pair]
) -> tuple[dict[str, dict[Space, jax.Array]], dict[str, tuple[int, int]]]:
    """Maps by the run's name, and their size (h, w) by target; UserError if runs differ in that."""
    maps = {run.name: run.embed(image, pairs) for run in runs}
    sizes: dict[str, tuple[int, int]] = {}
    for name, some in maps.items():
        for (target, _), found in some.items():
            if sizes.setdefault(target, found.shape[:2]) != found.shape[:2]:
                one, other = ("x".join(map(str, size)) for size in (sizes[target], found.shape[:2]))
                raise UserError(
                    f"the features of task {target!r} are {one} pixels in {runs[0].name}, but {other} in"
                    f" {name}: compare runs whose maps have the same size"
                )
    return maps, sizes


def measure(
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    split: Split,
    triplets: int,
    k: int | None = None,
    squared: bool = False,
    seed: int = 0,
) -> Found:
    """The distances of about as many `triplets` of each pair, from all images of the split.

    What is drawn depends on the seed, the image, the source, and the maps' size: neither on run nor target.

    Raises:
      UserError: the labels of a source allow none, or the runs do not fit together.
    """
    config, tasks = runs[0].trained.config, runs[0].trained.tasks
    sources = {source: tasks[source] for _, source in pairs}
    shown, each = views(runs, pairs), -(-triplets // len(split))
    parts: dict[str, dict[Pair, list[Distances]]] = {v.name: {p: [] for p in pairs if v.space(p)} for v in shown}
    for batch in batches(split, sources, config):
        index = int(batch["id"][0])
        if index < 0:  # it was left out
            continue
        maps, sizes = embed_all(runs, batch["image"], pairs)
        k = choose_k(runs, k, max(h * w for h, w in sizes.values()))
        rng = jax.random.fold_in(jax.random.key(seed), index)
        drawn = {}
        for number, (source, task) in enumerate(sorted(sources.items())):
            for size in {sizes[target] for target, other in pairs if other == source}:
                seen = labels_at(task, batch["labels"][source], batch["valid"][source], size)
                count, key = min(each, size[0] * size[1]), jax.random.fold_in(rng, number)
                drawn[source, size] = draw_triplets(task, *seen, key, count, k)
        for view, pair in itertools.product(shown, pairs):
            if space := view.space(pair):
                chosen, real = drawn[pair[1], sizes[pair[0]]]
                found = distances(maps[view.run.name][space], chosen, squared)
                parts[view.name][pair].append(Distances(*(np.asarray(x)[np.asarray(real)] for x in found)))
    for _, source in pairs:
        if not sum(len(part.near) for (_, other), some in parts[shown[0].name].items() if other == source for part in some):
            raise UserError(
                f"no pixel of {len(split)} images has a positive and a negative by the labels of task"
                f" {source!r}: use more --images, or leave it out by --pairs"
            )
    return {
        name: {pair: Distances(*map(np.concatenate, zip(*some, strict=True))) for pair, some in by_pair.items()}
        for name, by_pair in parts.items()
    }


def edges(squared: bool) -> np.ndarray:
    """f64[BINS + 1], the borders of the bins: two unit vectors are at most 2 apart."""
    return np.linspace(0, 4 if squared else 2, BINS + 1)


def shares(values: np.ndarray, squared: bool) -> np.ndarray:
    """f64[BINS], the part of the values in each bin."""
    borders = edges(squared)
    return np.histogram(np.clip(values, 0, borders[-1]), borders)[0] / len(values)


def statistics(found: Distances, squared: bool) -> Statistics:
    near, far = (x.mean(dtype=np.float64) for x in found)
    common = np.minimum(*(shares(x, squared) for x in found)).sum()
    return Statistics(near, far, far - near, common, np.mean(found.far > found.near))


def tabulate(found: Found, squared: bool) -> Table:
    """A row per view and pair, and the means over the pairs of each view."""
    distance = "d²" if squared else "d"
    columns = [
        Column(f"mean {distance}_pos", decimals=3),
        Column(f"mean {distance}_neg", decimals=3),
        Column("gap", decimals=3),
        Column("overlap", decimals=3),
        Column("P(d_neg > d_pos)", decimals=3),
        Column("triplets", decimals=0),
    ]
    rows: dict[str, list[Value | None]] = {}
    for view, by_pair in found.items():
        each = {pair: statistics(some, squared) for pair, some in by_pair.items()}
        for pair, values in each.items():
            rows[f"{view}, {title(pair)}"] = [*map(Value, values), Value(len(by_pair[pair].near))]
        if len(each) > 1:
            means = np.mean(list(each.values()), axis=0)
            rows[f"{view}, mean of {len(each)} pairs"] = [*map(Value, means.tolist()), None]
    return Table("run, features, pair", columns, rows)


def title(pair: Pair) -> str:
    return f"{pair[0]} by {pair[1]}"


def histograms(found: Found, pairs: Sequence[Pair], squared: bool) -> Figure:
    """A row per pair, a column per view; the axis of distances is the same all over."""
    figure = Figure((_TILE * len(found) + 0.7, 1.6 * len(pairs) + 0.9), dpi=130, layout="constrained")
    panels = figure.subplots(len(pairs), len(found), sharex=True, sharey="row", squeeze=False)
    borders = edges(squared)
    largest = max(np.quantile(x, 0.999) for by_pair in found.values() for some in by_pair.values() for x in some)
    for column, (view, by_pair) in zip(panels.T, found.items(), strict=True):
        column[0].set_title(view, fontsize=10)
        for axes, pair in zip(column, pairs, strict=True):
            axes.set(xlim=(0, min(borders[-1], 1.05 * largest)), yticks=[])
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right", "left"]].set_visible(False)
            if pair not in by_pair:
                axes.text(0.5, 0.5, "no projector", transform=axes.transAxes, ha="center", color="0.4", fontsize=9)
                continue
            _draw_histograms(axes, by_pair[pair], squared)
    for axes, pair in zip(panels[:, 0], pairs, strict=True):
        axes.set_ylabel(title(pair), fontsize=9)
    figure.supxlabel(f"{'squared ' if squared else ''}L2 distance from the anchor, between unit vectors", fontsize=10)
    kinds = (("positives", POSITIVE), ("negatives", NEGATIVE))
    handles = [Patch(facecolor=color, alpha=0.5, edgecolor=color, label=kind) for kind, color in kinds]
    handles.append(Line2D([], [], color="0.3", linestyle="--", linewidth=1.2, label="mean"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_histograms(axes: Axes, found: Distances, squared: bool) -> None:
    borders, values = edges(squared), statistics(found, squared)
    for distance, mean, color in zip(found, values[:2], (POSITIVE, NEGATIVE), strict=True):
        density = shares(distance, squared) / np.diff(borders)
        axes.stairs(density, borders, fill=True, alpha=0.4, color=color)
        axes.stairs(density, borders, color=color, linewidth=1)
        axes.axvline(mean, color=color, linestyle="--", linewidth=1.2)
    axes.text(
        0.98, 0.95, f"gap {values.gap:.2f}\nP {values.ordered:.2f}", transform=axes.transAxes, ha="right", va="top",
        fontsize=8, color="0.25",
    )  # fmt: skip
    axes.set_ylim(bottom=0)


class Sets(NamedTuple):
    """An anchor i32[] of an image, its positives and its negatives bool[P], all by the labels of a source."""

    anchor: jax.Array
    positive: jax.Array
    negative: jax.Array


def draw_sets(task: Task, label: jax.Array, known: jax.Array, rng: jax.Array, k: int) -> Sets:
    """Of an anchor that has both, if there is one among some that are drawn."""
    triplets, real = draw_triplets(task, label, known, rng, min(_BLOCK, len(known)), k)
    anchor = triplets.anchor[jnp.argmax(real)]
    return Sets(anchor, *ccr.alike(task, label, known, anchor, k))


def mined(features: jax.Array, sets: Sets, count: int) -> tuple[int | None, np.ndarray]:
    """The hardest positive, if any, and the chosen negatives i32[<= count], in a map f32[h,w,D]."""
    flat = features.reshape(-1, features.shape[-1])
    cosine = jnp.matmul(flat, flat[sets.anchor], precision="highest")
    hardest, chosen, exist = ccr.mine(jnp.maximum(2 - 2 * cosine, 0), sets.positive, sets.negative, count)
    return int(hardest) if jnp.any(sets.positive) else None, np.asarray(chosen)[np.asarray(exist)]


def example(
    runs: Sequence[Run], pairs: Sequence[Pair], split: Split, index: int, k: int | None, seed: int
) -> Figure:
    """Image `index` of the split: a row per pair with its sets, and a column per view with what is mined.

    Raises:
      UserError: the split has no such image, or it was left out.
    """
    if not 0 <= index < len(split):
        raise UserError(f"--example is {index}: the split has the images 0 to {len(split) - 1}")
    config, tasks = runs[0].trained.config, runs[0].trained.tasks
    sources = {source: tasks[source] for _, source in pairs}
    batch = next(batches(split.subset([index]), sources, config))
    maps, sizes = embed_all(runs, batch["image"], pairs)
    k = choose_k(runs, k, max(h * w for h, w in sizes.values()))
    rng = jax.random.fold_in(jax.random.key(seed), index)
    shown = views(runs, pairs)
    image = batch["image"][0]
    whole, real = image.shape[:2], split.sizes[index]
    height = _TILE * real[0] / real[1]
    figure = Figure(
        (_TILE * (1 + len(shown)) + 0.3, (height + 0.1) * len(pairs) + 0.8), dpi=130, layout="constrained"
    )
    panels = figure.subplots(len(pairs), 1 + len(shown), squeeze=False)
    for axes, name in zip(panels[0], ["sets", *(view.name for view in shown)], strict=True):
        axes.set_title(name, fontsize=10)
    for row, pair in zip(panels, pairs, strict=True):
        source, size = pair[1], sizes[pair[0]]
        seen = labels_at(tasks[source], batch["labels"][source], batch["valid"][source], size)
        sets = draw_sets(tasks[source], *seen, jax.random.fold_in(rng, sorted(sources).index(source)), k)
        for axes in row:
            # Pixel (i, j) of the maps lies at (j, i) of the axes, wherever that is in the image.
            axes.imshow(image, extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
            limits = (n * r / w - 0.5 for n, r, w in zip(size, real, whole, strict=True))
            bottom, right = limits
            axes.set(xlim=(-0.5, right), ylim=(bottom, -0.5), xticks=[], yticks=[])
        row[0].set_ylabel(title(pair), fontsize=9)
        row[0].imshow(_tint(sets, size), interpolation="nearest")
        _mark(row[0], "anchor", [sets.anchor], size)
        for axes, view in zip(row[1:], shown, strict=True):
            if not (space := view.space(pair)):
                axes.text(0.5, 0.5, "no projector", transform=axes.transAxes, ha="center")
                continue
            method = view.run.method
            count = method.negatives if isinstance(method, ccr.CCR) else ccr.CCR.negatives
            hardest, chosen = mined(maps[view.run.name][space], sets, count)
            _mark(axes, "semi-hard negatives", chosen, size)
            _mark(axes, "hardest positive", [] if hardest is None else [hardest], size)
            _mark(axes, "anchor", [sets.anchor], size)
    handles = [Patch(facecolor=color, alpha=0.6, label=name) for name, color in (("positives", POSITIVE), ("negatives", NEGATIVE))]
    handles += [Line2D([], [], linestyle="none", label=name, **style) for name, style in MARKS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


MARKS = {
    "anchor": {"marker": "s", "color": "gold", "markeredgecolor": "black", "markersize": 7},
    "hardest positive": {"marker": "o", "color": POSITIVE, "markeredgecolor": "white", "markersize": 8},
    "semi-hard negatives": {"marker": "X", "color": NEGATIVE, "markeredgecolor": "white", "markersize": 7},
}  # as the paper's Figure 1 has them: a square, a circle, crosses


def _mark(axes: Axes, kind: str, pixels: Sequence[int], size: tuple[int, int]) -> None:
    rows, columns = np.divmod(np.asarray(pixels, int), size[1])
    axes.plot(columns, rows, linestyle="none", label=kind, **MARKS[kind])


def _tint(sets: Sets, size: tuple[int, int]) -> np.ndarray:
    """f32[h,w,4], to be laid over the image."""
    from matplotlib.colors import to_rgba
    picture = np.zeros((sets.positive.size, 4))
    picture[np.asarray(sets.positive)] = to_rgba(POSITIVE, 0.6)
    picture[np.asarray(sets.negative)] = to_rgba(NEGATIVE, 0.6)
    return picture.reshape(*size, 4)
