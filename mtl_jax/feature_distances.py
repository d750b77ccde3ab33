"""How far apart pixels that labels call alike, and others, lie in the features of networks:

    python -m mtl_jax.feature_distances --workdirs A B ... --out=DIR [--pairs=depth:normals,semseg:depth]
        [--triplets=100000] [--images=N] [--k=K] [--squared] [--seed=0] [--example=I]

Figures 1, 3 and 5 of Yang et al., Contrastive Multi-Task Dense Prediction, AAAI 2023. For each pair
target:source (default: all of two tasks; a task may be its own source) about so many triplets are drawn from
the first N images (default: all) of the split that run A is evaluated on: an anchor, one of its positives and
one of its negatives by the labels of the source (`alike` in methods/ccr.py). All are drawn uniformly, no
pixel as an anchor twice, and are the same for all runs, which have the same tasks.

Distances are those between unit vectors: of the features that the target's head reads, at the newest
checkpoint, and in a run that was trained by ccr of their projections as well. DIR gets

    distances.png  histograms of the distances from anchors to positives and to negatives.
    table.md, table.csv, table.tex (also printed)  the means, the gap between them, the area that the two
                   histograms have in common, and the share of triplets whose negative is farther away.
    triplets.png   with --example=I: in image I (from 0) an anchor, its positives and negatives, and which of
                   them ccr would mine by the features of each run.
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
from matplotlib.colors import to_rgba
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
COLORS = {"positives": "#0072B2", "negatives": "#D55E00"}  # which colour-blind eyes tell apart
MARKS = {  # square, circle and crosses, as in the paper's Figure 1
    "anchor": {"marker": "s", "color": "gold", "markeredgecolor": "black", "markersize": 7},
    "hardest positive": {
        "marker": "o",
        "color": COLORS["positives"],
        "markeredgecolor": "white",
        "markersize": 8,
    },
    "semi-hard negatives": {
        "marker": "X",
        "color": COLORS["negatives"],
        "markeredgecolor": "white",
        "markersize": 7,
    },
}
_BLOCK = 64  # anchors whose partners are drawn at once
_TILE = 2.4  # inches, width of a panel
_VEIL = 0.6  # opacity of sets over their image


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

    @property
    def negatives(self) -> int:
        """How many are mined for an anchor."""
        return self.method.negatives if isinstance(self.method, ccr.CCR) else ccr.CCR.negatives

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
                f"{workdirs[0]} and {workdir} differ in task {different[0][0]!r}:"
                " compare runs of the same tasks"
            )
    runs = []
    for workdir, name in zip(workdirs, experiment.short_names(workdirs), strict=True):
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
        raise UserError(
            f"two tasks with a label per pixel are needed, and the runs have {known}: train with more"
        )
    if text is None:
        return list(itertools.permutations(dense, 2))
    pairs = []
    for item in text.split(","):
        target, colon, source = item.strip().partition(":")
        if not colon:
            raise UserError(f"--pairs has {item!r}: give TARGET:SOURCE, as in depth:normals,semseg:depth")
        for name in (target, source):
            if name not in dense:
                raise UserError(
                    f"--pairs has {name!r}: the tasks with a label per pixel are {', '.join(dense)}"
                )
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


def sources_of(pairs: Sequence[Pair], tasks: Mapping[str, Task]) -> dict[str, Task]:
    return {source: tasks[source] for _, source in pairs}


def batches(split: Split, tasks: Mapping[str, Task], config: ConfigDict) -> Iterator[pipeline.Batch]:
    """The split's images one by one, with the labels of the tasks."""
    one_by_one = ConfigDict({"eval_batch_size": 1, "eval_size": config.data.eval_size})
    return pipeline.eval_batches(split, tasks, one_by_one)


def labels_at(batch: Mapping, source: str, task: Task, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Of the one image of a batch: f32[P,channels], encoded, and bool[P], is it known, at P = h w pixels."""
    label, valid = (ccr.downsampled(batch[key][source], size) for key in ("labels", "valid"))
    values = encoded(task, label, valid)
    return values.reshape(-1, values.shape[-1]), valid.reshape(-1) > 0


def key_of(seed: int, index: int, source: str, tasks: Mapping[str, Task]) -> jax.Array:
    """Of what is drawn in an image of the split by the labels of a source: one for all runs and targets."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), list(tasks).index(source))


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

    Raises:
      UserError: the labels of a source allow none, or the runs do not fit together.
    """
    config, tasks = runs[0].trained.config, runs[0].trained.tasks
    shown, each = views(runs, pairs), -(-triplets // len(split))
    parts = {view.name: {pair: [] for pair in pairs if view.space(pair)} for view in shown}
    for batch in batches(split, sources_of(pairs, tasks), config):
        index = int(batch["id"][0])
        if index < 0:  # it was left out
            continue
        maps, sizes = embed_all(runs, batch["image"], pairs)
        k = choose_k(runs, k, max(h * w for h, w in sizes.values()))
        drawn = {}
        for source, size in {(source, sizes[target]) for target, source in pairs}:
            labels = labels_at(batch, source, tasks[source], size)
            key, count = key_of(seed, index, source, tasks), min(each, size[0] * size[1])
            drawn[source, size] = draw_triplets(tasks[source], *labels, key, count, k)
        for view, (target, source) in itertools.product(shown, pairs):
            if space := view.space((target, source)):
                chosen, real = drawn[source, sizes[target]]
                found = distances(maps[view.run.name][space], chosen, squared)
                parts[view.name][target, source].append([np.asarray(x)[np.asarray(real)] for x in found])
    for (_, source), some in parts[shown[0].name].items():
        if not any(near.size for near, _ in some):
            raise UserError(
                f"no pixel of {len(split)} images has a positive and a negative by the labels of task"
                f" {source!r}: use more --images, or leave the task out by --pairs"
            )
    return {
        view: {
            pair: Distances(*map(np.concatenate, zip(*some, strict=True))) for pair, some in by_pair.items()
        }
        for view, by_pair in parts.items()
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
    kind = "squared " if squared else ""
    columns = [
        Column(f"mean {kind}d_pos", decimals=3),
        Column(f"mean {kind}d_neg", decimals=3),
        Column("gap", decimals=3),
        Column("overlap", decimals=3),
        Column("P(negative farther)", decimals=3),
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
    """A row per pair, a column per view; all have one axis of distances, each row one of densities."""
    figure = Figure((_TILE * len(found) + 0.7, 1.6 * len(pairs) + 1.2), dpi=130, layout="constrained")
    panels = figure.subplots(len(pairs), len(found), sharex=True, sharey="row", squeeze=False)
    largest = max(
        np.quantile(x, 0.999) for by_pair in found.values() for some in by_pair.values() for x in some
    )
    panels[0, 0].set_xlim(0, min(edges(squared)[-1], 1.05 * largest))
    for row, pair in zip(panels, pairs, strict=True):
        row[0].set_ylabel(title(pair), fontsize=9)
        for axes, by_pair in zip(row, found.values(), strict=True):
            axes.set_yticks([])
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right", "left"]].set_visible(False)
            if pair in by_pair:
                _draw_histograms(axes, by_pair[pair], squared)
            else:
                _no_projector(axes)
        peaks = (shares(x, squared).max() for by_pair in found.values() for x in by_pair.get(pair, ()))
        row[0].set_ylim(0, 1.35 * BINS / edges(squared)[-1] * max(peaks))
    for axes, view in zip(panels[0], found, strict=True):
        axes.set_title(view, fontsize=10)
    kind = "squared L2 distance" if squared else "L2 distance"
    figure.supxlabel(
        f"{kind} from anchors, between unit vectors\n"
        "gap: from mean to mean; P: share of triplets whose negative is farther away",
        fontsize=9,
    )
    handles = [Patch(color=color, alpha=0.5, label=name) for name, color in COLORS.items()]
    handles.append(Line2D([], [], color="0.3", linestyle="--", linewidth=1.2, label="mean"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_histograms(axes: Axes, found: Distances, squared: bool) -> None:
    borders, values = edges(squared), statistics(found, squared)
    for distance, mean, color in zip(found, values[:2], COLORS.values(), strict=True):
        density = shares(distance, squared) / np.diff(borders)
        axes.stairs(density, borders, fill=True, alpha=0.4, color=color)
        axes.stairs(density, borders, color=color, linewidth=1)
        axes.axvline(mean, 0, 0.88, color=color, linestyle="--", linewidth=1.2)
    text = f"gap {values.gap:.2f}   P {values.ordered:.2f}"
    axes.text(0.99, 0.99, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="0.25")


class Sets(NamedTuple):
    """An anchor i32[] of an image, its positives and its negatives bool[P], by the labels of a source."""

    anchor: jax.Array
    positive: jax.Array
    negative: jax.Array


def draw_sets(task: Task, label: jax.Array, known: jax.Array, rng: jax.Array, k: int) -> Sets:
    """Of the first anchor that has both, if there is one among those that are drawn."""
    triplets, real = draw_triplets(task, label, known, rng, min(_BLOCK, len(known)), k)
    anchor = triplets.anchor[jnp.argmax(real)]
    return Sets(anchor, *ccr.alike(task, label, known, anchor, k))


def mine(features: jax.Array, sets: Sets, count: int) -> tuple[list[int], list[int]]:
    """The hardest positive, if any, and at most `count` semi-hard negatives, in a map f32[h,w,D]."""
    flat = features.reshape(-1, features.shape[-1])
    far = ccr.length(flat - flat[sets.anchor])
    hardest, chosen, exist = ccr.mine(far, sets.positive, sets.negative, count)
    return [int(hardest)] * bool(jnp.any(sets.positive)), np.asarray(chosen)[np.asarray(exist)].tolist()


@dataclasses.dataclass(frozen=True)
class Mined:
    """What the labels of a pair's source say in an image, and what is mined by the target's features.

    Attributes:
      size: (h, w) of the maps.
      chosen: by view, as from `mine`; views without a projector are missing.
    """

    sets: Sets
    size: tuple[int, int]
    chosen: Mapping[str, tuple[list[int], list[int]]]


def mine_all(
    runs: Sequence[Run], pairs: Sequence[Pair], batch: Mapping, index: int, k: int | None, seed: int
) -> dict[Pair, Mined]:
    """By the pair, for the one image of a batch, which is number `index` of the split."""
    tasks = runs[0].trained.tasks
    maps, sizes = embed_all(runs, batch["image"], pairs)
    k = choose_k(runs, k, max(h * w for h, w in sizes.values()))
    found = {}
    for pair in pairs:
        target, source = pair
        labels = labels_at(batch, source, tasks[source], sizes[target])
        sets = draw_sets(tasks[source], *labels, key_of(seed, index, source, tasks), k)
        chosen = {
            view.name: mine(maps[view.run.name][space], sets, view.run.negatives)
            for view in views(runs, pairs)
            if (space := view.space(pair))
        }
        found[pair] = Mined(sets, sizes[target], chosen)
    return found


def example(
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    split: Split,
    index: int,
    k: int | None = None,
    seed: int = 0,
) -> Figure:
    """What `mine_all` finds in image `index` of the split.

    Raises:
      UserError: the split has no such image.
    """
    if not 0 <= index < len(split):
        raise UserError(f"--example is {index}: the split has the images 0 to {len(split) - 1}")
    config, tasks = runs[0].trained.config, runs[0].trained.tasks
    batch = next(batches(split.subset([index]), sources_of(pairs, tasks), config))
    found = mine_all(runs, pairs, batch, index, k, seed)
    return example_figure(batch["image"][0], split.sizes[index], found, [v.name for v in views(runs, pairs)])


def example_figure(
    image: np.ndarray, real: Sequence[int], found: Mapping[Pair, Mined], shown: Sequence[str]
) -> Figure:
    """A row per pair: the image with its sets, and for each view with what is mined.

    Args:
      image: f32[H,W,3], whose upper left part of (height, width) = `real` is drawn.
      shown: names of the views.
    """
    height = _TILE * real[0] / real[1]
    size = _TILE * (1 + len(shown)) + 0.3, (height + 0.1) * len(found) + 0.9
    figure = Figure(size, dpi=130, layout="constrained")
    panels = figure.subplots(len(found), 1 + len(shown), squeeze=False)
    for axes, name in zip(panels[0], ("sets", *shown), strict=True):
        axes.set_title(name, fontsize=10)
    for row, (pair, one) in zip(panels, found.items(), strict=True):
        for axes in row:
            _show(axes, image, real, one.size)
        row[0].set_ylabel(title(pair), fontsize=9)
        row[0].images[0].set_data(0.6 + 0.4 * image.mean(-1, keepdims=True).repeat(3, -1))
        row[0].imshow(_tint(one.sets, one.size), interpolation="nearest")
        _mark(row[0], "anchor", [int(one.sets.anchor)], one.size)
        for axes, view in zip(row[1:], shown, strict=True):
            if view not in one.chosen:
                _no_projector(axes)
                continue
            positive, negatives = one.chosen[view]
            _mark(axes, "semi-hard negatives", negatives, one.size)
            _mark(axes, "hardest positive", positive, one.size)
            _mark(axes, "anchor", [int(one.sets.anchor)], one.size)
    handles = [Patch(color=color, alpha=_VEIL, label=name) for name, color in COLORS.items()]
    handles += [Line2D([], [], linestyle="none", label=name, **style) for name, style in MARKS.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5 if len(shown) > 1 else 3,
        frameon=False,
        fontsize=9,
    )
    return figure


def _show(axes: Axes, image: np.ndarray, real: Sequence[int], size: tuple[int, int]) -> None:
    """The real part of an image below maps of (h, w) = `size`: their pixel (i, j) lies at y = i, x = j."""
    axes.imshow(image, extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
    bottom, right = (n * r / w - 0.5 for n, r, w in zip(size, real, image.shape[:2], strict=True))
    axes.set(xlim=(-0.5, right), ylim=(bottom, -0.5), xticks=[], yticks=[])


def _mark(axes: Axes, kind: str, pixels: Sequence[int], size: tuple[int, int]) -> None:
    rows, columns = np.divmod(np.asarray(pixels, int), size[1])
    axes.plot(columns, rows, linestyle="none", label=kind, **MARKS[kind])


def _tint(sets: Sets, size: tuple[int, int]) -> np.ndarray:
    """f64[h,w,4], to be laid over the image."""
    picture = np.zeros((*size, 4))
    for one, color in zip((sets.positive, sets.negative), COLORS.values(), strict=True):
        picture[np.asarray(one).reshape(size)] = to_rgba(color, _VEIL)
    return picture


def _no_projector(axes: Axes) -> None:
    where = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, "no projector", color="0.4", fontsize=9, bbox={"color": "white"}, **where)


def _save(figure: Figure, folder: str, name: str) -> None:
    path = os.path.join(folder, name)
    figure.savefig(path)
    print(path)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdirs", nargs="+", required=True, metavar="DIR", help="of training runs")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures and the table")
    parser.add_argument("--pairs", metavar="TARGET:SOURCE,...", help="default: all of two tasks")
    parser.add_argument(
        "--triplets", type=int, default=100_000, metavar="N", help="of each pair; default 100000"
    )
    parser.add_argument("--images", type=int, metavar="N", help="the first N of the split; default: all")
    parser.add_argument(
        "--k", type=int, help="pixels that are alike, and that are not, of quantities; default: the runs'"
    )
    parser.add_argument("--squared", action="store_true", help="squared distances")
    parser.add_argument("--seed", type=int, default=0, help="of the triplets")
    parser.add_argument("--example", type=int, metavar="I", help="draw triplets.png of this image")
    flags = parser.parse_args()
    for name in ("triplets", "images", "k"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    runs = read_runs(flags.workdirs)
    config, tasks = runs[0].trained.config, runs[0].trained.tasks
    pairs = parse_pairs(flags.pairs, tasks)
    dataset = experiment.build_dataset(config)
    split = pipeline.open_split(dataset, config.data.eval, tuple(sources_of(pairs, tasks)), config.data)
    some = split.subset(range(min(flags.images or len(split), len(split))))
    found = measure(runs, pairs, some, flags.triplets, flags.k, flags.squared, flags.seed)
    table = tabulate(found, flags.squared)
    print(table.markdown(), end="")
    table.write(flags.out)
    _save(histograms(found, pairs, flags.squared), flags.out, "distances.png")
    if flags.example is not None:
        _save(example(runs, pairs, split, flags.example, flags.k, flags.seed), flags.out, "triplets.png")


if __name__ == "__main__":
    main()
