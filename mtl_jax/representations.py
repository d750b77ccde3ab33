"""Pictures of what a trained network makes of images for each task (Maninis et al., CVPR 2019, Figs. 1, 6):

    python -m mtl_jax.representations --workdir=DIR --figure=pca|tsne|gates [--images=N] [--out=DIR2]

The network is that of the newest checkpoint, the images are the first N of the split that the run is
evaluated on. DIR2 (default DIR/figures) gets

    pca    pca_<k>.png of image k = 0 ... N-1 (default N = 1): the encoder's maps and the features that the
           heads read, for each task with a prediction per pixel, in the colours of their first three
           principal components. In one row, equal vectors have equal colours, whatever their task.
    tsne   tsne.png: t-SNE of squeeze-and-excitation gates at a few depths, of every image (default N = 32)
           for every task.
    gates  gates.png: the same gates, averaged over the images, channel by channel.

The last two want a network whose tasks have gates of their own (see models/modulation.py).
"""

import argparse
import dataclasses
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.experiment import Experiment
from mtl_jax.models.naming import SEPARATOR, owner

Gates = Mapping[str, Mapping[str, np.ndarray]]  # layer, in forward order -> task -> f32[N,C] of N images

DEPTHS = 4  # how many of the layers with gates are drawn
PERPLEXITY = 30.0  # of t-SNE, where there are enough points
_TILE = 2.2  # inches, width of a picture


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image as the evaluation shows it to the network.

    Attributes:
      index: in its split.
      canvas: f32[1,H,W,3] in [0, 1].
      size: (h, w) of the image at the canvas's upper left.
    """

    index: int
    canvas: np.ndarray
    size: tuple[int, int]

    def crop(self, values: np.ndarray) -> np.ndarray:
        """The image's part f[h',w',C] of a map f[1,H',W',C] of the canvas."""
        whole, size = self.canvas.shape[1:3], values.shape[1:3]
        height, width = (-(-n * s // w) for n, s, w in zip(self.size, size, whole, strict=True))
        return values[0, :height, :width]


def first_images(config: ConfigDict, count: int) -> Iterator[Seen]:
    """The first `count` images of the evaluation split; labels are not read."""
    split = experiment.build_dataset(config).split(config.data.eval, ())
    some = split.subset(range(min(count, len(split))))
    one_by_one = ConfigDict({"eval_batch_size": 1, "eval_size": config.data.eval_size})
    for batch in pipeline.eval_batches(some, {}, one_by_one):
        index = int(batch["id"][0])
        yield Seen(index, batch["image"], tuple(some.sizes[index].tolist()))


def layer_maps(model: nn.Module, image: jax.Array, task: str) -> OrderedDict[str, jax.Array]:
    """Layer, in forward order -> its map f[1,h,w,C] of an image f32[1,H,W,3] for a task."""
    if not hasattr(model, "encode"):  # models may have no stages that have a meaning
        return OrderedDict(features=model.features(image, task, False))
    maps = model.encode(image, task, False)
    stages = [(f"stage {number}", x) for number, x in enumerate(maps, 1)]
    return OrderedDict([*stages, ("features", model.decode(maps, task, False))])


def joint_colors(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first three principal components of all vectors of all maps, as colours.

    Args:
      maps: f[h,w,C] of each task.

    Returns:
      f64[h,w,3] in [0, 1] of each map; the least and the largest value of a component, over all maps, are
      0 and 1. A component that is constant, or missing, is 0.
    """
    vectors = np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps]).astype(np.float64)
    with np.errstate(invalid="ignore"):  # the share of a variance that is 0
        found = PCA(min(3, *vectors.shape), random_state=0).fit_transform(vectors)
    found -= found.min(0)
    extent = found.max(0)
    colors = np.zeros((len(found), 3))
    colors[:, : found.shape[1]] = np.divide(found, extent, out=np.zeros_like(found), where=extent > 0)
    ends = np.cumsum([m.shape[0] * m.shape[1] for m in maps])[:-1]
    parts = np.split(colors, ends)
    return [part.reshape(*m.shape[:2], 3) for part, m in zip(parts, maps, strict=True)]


def draw_pca(trained: Experiment, folder: str, count: int) -> None:
    """Writes pca_<k>.png of the first `count` images."""
    tasks = [name for name, task in trained.tasks.items() if task.dense]
    if not tasks:
        raise UserError("no task of this run has a prediction per pixel: it has no maps to draw")

    @jax.jit
    def forward(variables, image):
        return [trained.model.apply(variables, image, task, method=layer_maps) for task in tasks]

    for seen in first_images(trained.config, count):
        by_task = forward(trained.variables, seen.canvas)
        colors = {
            layer: joint_colors([seen.crop(np.asarray(maps[layer])) for maps in by_task])
            for layer in by_task[0]
        }
        figure = pca_figure(seen.crop(seen.canvas), colors, tasks)
        _save(figure, os.path.join(folder, f"pca_{seen.index}.png"))


def pca_figure(image: np.ndarray, colors: Mapping[str, Sequence[np.ndarray]], tasks: Sequence[str]) -> Figure:
    """The image f[H,W,3], and beside it a row per layer, a column per task."""
    height = _TILE * image.shape[0] / image.shape[1]
    size = _TILE * (1 + len(tasks)), (height + 0.1) * len(colors) + 0.3
    figure = Figure(size, dpi=120, layout="constrained")
    grid = figure.add_gridspec(len(colors), 1 + len(tasks))
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(image)
    axes.set_title("image", fontsize=11)
    axes.set_axis_off()
    for i, (layer, pictures) in enumerate(colors.items()):
        for j, picture in enumerate(pictures):
            axes = figure.add_subplot(grid[i, 1 + j], xticks=[], yticks=[])
            axes.imshow(picture, interpolation="nearest", extent=(0, image.shape[1], image.shape[0], 0))
            if i == 0:
                axes.set_title(tasks[j], fontsize=11)
            if j == 0:
                axes.set_ylabel(layer, fontsize=11)
    return figure


def collect_gates(trained: Experiment, count: int) -> Gates:
    """The tasks' own gates for the first `count` images.

    Raises:
      UserError: the network has none.
    """

    @jax.jit
    def forward(variables, image):
        return own_gates(trained.model, variables, image, tuple(trained.tasks))

    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for seen in first_images(trained.config, count):
        for (layer, task), gate in forward(trained.variables, seen.canvas).items():
            found.setdefault(layer, {}).setdefault(task, []).append(np.asarray(gate, np.float32))
    if not found:
        raise UserError(
            "no task of this run has gates of its own: train a network that has, as with "
            "--config.model.encoder_se=task"
        )
    return {layer: {t: np.concatenate(g) for t, g in tasks.items()} for layer, tasks in found.items()}


def own_gates(
    model: nn.Module, variables: Mapping, image: jax.Array, tasks: Sequence[str]
) -> OrderedDict[tuple[str, str], jax.Array]:
    """(layer, task) -> gate f[B,C], in forward order; gates that tasks share are left out."""
    _, captured = model.apply(variables, image, tasks, train=False, mutable=["intermediates"])
    gates = OrderedDict()
    for path, values in flatten_dict(captured.get("intermediates", {})).items():
        task = next(filter(None, map(owner, path)), None)
        if path[-1] == "gate" and task:
            layer = "/".join(part.partition(SEPARATOR)[0] for part in path[:-2])
            gates[layer, task] = values[0]
    return gates


def at_depths(gates: Gates) -> Gates:
    """Of DEPTHS layers (all, if there are fewer), equally spaced from the first to the last."""
    layers = list(gates)
    chosen = np.linspace(0, len(layers) - 1, min(DEPTHS, len(layers))).round().astype(int)
    return {layers[i]: gates[layers[i]] for i in chosen}


def embed(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """t-SNE (van der Maaten & Hinton, JMLR 2008) of all tasks' vectors f[N,C] at once: f32[N,2] of each.

    The perplexity is at most a third of the number of points.

    Raises:
      UserError: fewer than 4 points.
    """
    points = np.concatenate(list(vectors.values()))
    if len(points) < 4:
        raise UserError(
            f"t-SNE wants 4 points, a point per image and task, not {len(points)}: use more images"
        )
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    # Exact: for hundreds of points faster than Barnes & Hut's approximation.
    places = TSNE(perplexity=perplexity, method="exact", random_state=0).fit_transform(points)
    ends = np.cumsum([len(v) for v in vectors.values()])[:-1]
    return dict(zip(vectors, np.split(places, ends), strict=True))


def draw_tsne(trained: Experiment, folder: str, count: int) -> None:
    """Writes tsne.png of the first `count` images."""
    places = {layer: embed(gates) for layer, gates in at_depths(collect_gates(trained, count)).items()}
    _save(tsne_figure(places, tuple(trained.tasks)), os.path.join(folder, "tsne.png"))


def tsne_figure(places: Gates, tasks: Sequence[str]) -> Figure:
    """A panel per layer: points f[N,2] of each task in its colour."""
    figure = Figure((3.2 * len(places), 3.6), dpi=120, layout="constrained")
    for i, (layer, points) in enumerate(places.items(), 1):
        axes = figure.add_subplot(1, len(places), i, xticks=[], yticks=[])
        for task, xy in points.items():
            axes.scatter(*xy.T, s=14, color=f"C{tasks.index(task)}", label=task)
        axes.set_title(layer, fontsize=10)
    _legend(figure, tasks)
    return figure


def draw_gates(trained: Experiment, folder: str, count: int) -> None:
    """Writes gates.png: means over the first `count` images."""
    gates = at_depths(collect_gates(trained, count))
    means = {layer: {task: g.mean(0) for task, g in by_task.items()} for layer, by_task in gates.items()}
    _save(gates_figure(means, tuple(trained.tasks)), os.path.join(folder, "gates.png"))


def gates_figure(means: Gates, tasks: Sequence[str]) -> Figure:
    """A panel per layer: a line per task through the gates f[C] of its channels."""
    figure = Figure((10, 2.1 * len(means) + 0.4), dpi=120, layout="constrained")
    for i, (layer, by_task) in enumerate(means.items(), 1):
        axes = figure.add_subplot(len(means), 1, i)
        for task, gates in by_task.items():
            axes.plot(gates, color=f"C{tasks.index(task)}", linewidth=1, label=task)
        axes.set_title(layer, fontsize=10)
        axes.set_ylabel("mean gate", fontsize=9)
        axes.margins(x=0)
        axes.grid(alpha=0.3)
    axes.set_xlabel("channel", fontsize=9)
    _legend(figure, tasks)
    return figure


def _legend(figure: Figure, tasks: Sequence[str]) -> None:
    """The tasks' colours, below the panels."""
    found = {k: v for axes in figure.axes for v, k in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [task for task in tasks if task in found]
    handles = [found[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


def _save(figure: Figure, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path)
    print(path)


FIGURES = {"pca": (draw_pca, 1), "tsne": (draw_tsne, 32), "gates": (draw_gates, 32)}  # and how many images


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="working directory of a training run")
    parser.add_argument("--figure", required=True, choices=FIGURES)
    parser.add_argument("--images", type=int, metavar="N", help="how many; default 1 for pca, else 32")
    parser.add_argument("--out", metavar="DIR2", help="default DIR/figures")
    flags = parser.parse_args()
    draw, usual = FIGURES[flags.figure]
    count = usual if flags.images is None else flags.images
    if count < 1:
        raise UserError(f"--images must be at least 1, not {count}")
    draw(experiment.load(flags.workdir), flags.out or os.path.join(flags.workdir, "figures"), count)


if __name__ == "__main__":
    main()
