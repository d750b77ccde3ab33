"""CompL: dense tasks trained with a self-supervised one (Kanakis et al., Composite Learning, WACV 2023).

L = L_t(X_t, y_t) + weight L_a(X_a): the images X_a are drawn independently of the examples, without labels.
L_a reads the last features that all tasks share through a head of its own, and asks which of four ways an
image is turned (Rot), or which of all images another window is of (MoCo v2), and that of each cell of a grid
too (DenseCL). The network itself stays as it is: at test time nothing of this is left.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.errors import UserError, one_of
from mtl_jax.methods import two_views
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.supervised import Supervised
from mtl_jax.metrics.angular import unit
from mtl_jax.metrics.masked import masked_mean
from mtl_jax.views import Stream

Tree = Any

WEIGHTS = {"rotation": 0.05, "moco": 0.2, "densecl": 0.2}  # the auxiliary tasks, and lambda of each
CELLS = 128  # of the grid, whose logits are in memory at a time


class Linear(nn.Module):
    """A linear map that starts as torch's: weights and biases uniform within 1 / sqrt(inputs)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[...,C] -> f32[...,features]."""
        bound = x.shape[-1] ** -0.5

        def start(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(self.features, kernel_init=start, bias_init=start, name="dense")(x)


class RotationHead(nn.Module):
    """Mean over the map, linear."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """f32[B,h,w,C] -> f32[B,4], a logit for each number of quarter turns."""
        return Linear(4, name="linear")(jnp.mean(features, (1, 2)))


class Embedding(NamedTuple):
    """What contrast compares, all unit vectors; the last three are None without a grid.

    Attributes:
      image: f32[B,D].
      cells: f32[B,P,D], of the P = S S cells of the grid.
      pooled: f32[B,D], the mean of the cells before they are scaled to length 1.
      seen: f32[B,P,C], the features in each cell, by which cells are matched.
    """

    image: jax.Array
    cells: jax.Array | None = None
    pooled: jax.Array | None = None
    seen: jax.Array | None = None


class ContrastHead(nn.Module):
    """The projections of MoCo v2, and those of DenseCL (Wang et al., CVPR 2021) beside them.

    Attributes:
      width: D.
      grid: S; None without cells.
    """

    width: int
    grid: int | None = None

    @nn.compact
    def __call__(self, features: jax.Array) -> Embedding:
        """f32[B,h,w,C] -> Embedding."""
        image = unit(self._project("image", jnp.mean(features, (1, 2))))
        if self.grid is None:
            return Embedding(image)
        seen = adaptive_average(features, self.grid)
        seen = seen.reshape(seen.shape[0], -1, seen.shape[-1])
        cells = self._project("cells", seen)
        return Embedding(image, unit(cells), unit(jnp.mean(cells, 1)), unit(seen))

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        hidden = nn.relu(Linear(x.shape[-1], name=f"{name}1")(x))
        return Linear(self.width, name=f"{name}2")(hidden)


def adaptive_average(x: jax.Array, grid: int) -> jax.Array:
    """Means f32[B,h,w,C] -> f32[B,grid,grid,C].

    Cell i has the rows from floor(i h / grid) to ceil((i + 1) h / grid) - 1, and columns likewise: where the
    size is no multiple of the grid, neighbours overlap.
    """

    def shares(length: int) -> np.ndarray:
        cell, place = np.arange(grid)[:, None], np.arange(length)
        inside = (place >= cell * length // grid) & (place < -(-(cell + 1) * length // grid))
        return (inside / inside.sum(1, keepdims=True)).astype(np.float32)

    rows, columns = map(shares, x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def info_nce(
    query: jax.Array, positive: jax.Array, bank: jax.Array, ids: jax.Array, temperature: float
) -> jax.Array:
    """f32[B]: -log of the positive's share among it and the bank's rows of all other images.

    Args:
      query, positive: f32[B,D], unit vectors.
      bank: f32[N,D], a unit vector of each image.
      ids: i32[B], the queries' own rows in it.
    """
    own = jnp.arange(len(bank)) == ids[:, None]
    negative = jnp.where(own, -jnp.inf, query @ bank.T / temperature)
    same = jnp.sum(query * positive, -1, keepdims=True) / temperature
    return jax.nn.logsumexp(jnp.concatenate([same, negative], -1), -1) - same[:, 0]


def matches(query: jax.Array, key: jax.Array) -> jax.Array:
    """i32[B,P]: for each cell of `query` the most similar one of `key`, unit vectors f32[B,P,C] both."""
    return jnp.argmax(jnp.einsum("bpc,bqc->bpq", query, key, precision="highest"), -1)


def cell_loss(
    query: Embedding, key: Embedding, bank: jax.Array, ids: jax.Array, temperature: float
) -> jax.Array:
    """f32[B]: mean over the query's cells of `info_nce`, the positive being the cell that matches.

    The logits are made CELLS cells at a time, and anew for the gradient: no more than CELLS B N are there.
    """
    match = matches(*jax.lax.stop_gradient((query.seen, key.seen)))
    positive = jnp.take_along_axis(key.cells, match[..., None], 1)

    @jax.checkpoint
    def of_cell(pair):
        return info_nce(*pair, bank, ids, temperature)

    # Cell by cell, so that the images stay on the devices that hold them.
    pairs = jax.tree.map(lambda x: x.swapaxes(0, 1), (query.cells, positive))
    return jnp.mean(jax.lax.map(of_cell, pairs, batch_size=CELLS), 0)


def written(bank: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """The bank f32[N,D] with `rows` f32[B,D] at `ids` i32[B]; a row of id -1 is not written."""
    return bank.at[jnp.where(ids < 0, len(bank), ids)].set(rows, mode="drop")


@dataclasses.dataclass(frozen=True)
class CompL(Supervised):
    """The tasks' losses + weight * L_a.

    L_a is the cross-entropy of Rot, the contrast of images, or for DenseCL (1 - local_weight) of images
    + local_weight of cells. Negatives are in a bank with one row for each of the N auxiliary images, which
    holds what the key network made of it last; an image's own row is no negative. The key network follows the
    trained one, and starts equal to it at the first step, with whatever weights that starts.

    The weights of the tasks may be 0: that is pre-training by the auxiliary task alone, whose encoder another
    run then takes by config.weights (source "run", parts ("encoder",)).

    Attributes:
      auxiliary: "rotation", "moco" or "densecl".
      weight: lambda.
      canvas: height and width of what auxiliary images are brought to; views are cut from it and resized to
        the training crop, those of "rotation" to a square of its shorter side.
      window, shift: see `two_views.windows`.
      grid: S, cells along each side; of "densecl".
      temperature: by which cosines are divided.
      momentum: what the key network keeps of itself at each step.
      local_weight: of "densecl".
      width: of the embeddings.
      same_images: the auxiliary images are those with a label alone, not all training images.
      images: N; 0 if unknown, for as many as a batch has.
    """

    auxiliary: str = "densecl"
    weight: float = 0.2
    canvas: tuple[int, int] = (512, 512)
    window: tuple[int, int] = (384, 384)
    shift: int = 32
    grid: int = 32
    temperature: float = 0.4
    momentum: float = 0.999
    local_weight: float = 0.7
    width: int = 128
    same_images: bool = False
    images: int = 0

    @property
    def streams(self):
        return {"auxiliary": Stream(self.canvas, self.same_images)}

    def with_streams(self, counts):
        return dataclasses.replace(self, images=counts["auxiliary"])

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        params, state = variables["params"], variables["state"]
        self._check_model(params, state, batch["image"])
        features = jax.eval_shape(lambda: self._features(params["model"], batch["image"], rng))
        own, *banks = jax.random.split(jax.random.fold_in(rng, 1), 3)
        params["method"]["head"] = self._head.init(own, jnp.zeros(features.shape))["params"]
        if self.auxiliary == "rotation":
            return variables
        # Copies: what is trained and what follows it are donated together and must not share buffers.
        state["method"]["key"] = jax.tree.map(jnp.copy, self._online(params))
        rows = self.images or len(batch["streams"]["auxiliary"]["id"])
        for name, key in zip(self._banks, banks, strict=False):
            state["method"][name] = unit(jax.random.normal(key, (rows, self.width)))
        return variables

    def losses(self, params, state, batch, rng, step):
        prediction, state = self.forward(params, state, batch["image"], rng)
        regularise = self._rotation if self.auxiliary == "rotation" else self._contrast
        size, rng = batch["image"].shape[1:3], jax.random.fold_in(rng, 1)
        stream = batch["streams"]["auxiliary"]
        loss, metrics, kept = regularise(params, state["method"], stream, size, rng, step)
        state = {**state, "method": {**state["method"], **kept}}
        metrics = {"all/auxiliary": loss, **metrics}
        return self.supervised(prediction, batch), self.weight * loss, (metrics, state)

    def _rotation(self, params, kept, stream, size, rng, step) -> tuple[jax.Array, dict, dict]:
        """L_a, metrics, and what has changed in the method's state: nothing."""
        place, rng = jax.random.split(rng)
        keys = jax.random.split(place, len(stream["id"]))
        view = functools.partial(two_views.rotation_view, side=min(size))
        images, quarters = jax.vmap(view)(keys, stream["image"])
        logits = self._apply(self._online(params), images, rng)
        right = (jnp.argmax(logits, -1) == quarters).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, quarters)
        present = stream["id"] >= 0
        return _mean(losses, present), {"all/rotation_accuracy": _mean(right, present)}, {}

    def _contrast(self, params, kept, stream, size, rng, step) -> tuple[jax.Array, dict, dict]:
        """L_a, metrics, and what has changed in the method's state."""
        place, *rngs = jax.random.split(rng, 3)
        keys = jax.random.split(place, len(stream["id"]))
        views = jax.vmap(lambda key, x: two_views.contrast_views(key, x, self.window, self.shift, size))
        query_image, key_image = views(keys, stream["image"])
        online = self._online(params)
        kept = jax.lax.stop_gradient(kept)
        network = self._follow(kept["key"], online, step)
        query = self._apply(online, query_image, rngs[0])
        key = jax.lax.stop_gradient(self._apply(network, key_image, rngs[1]))
        ids, present = stream["id"], stream["id"] >= 0
        loss = _mean(info_nce(query.image, key.image, kept["bank"], ids, self.temperature), present)
        metrics = {"all/contrast_global": loss}
        changed = {"key": network, "bank": written(kept["bank"], ids, key.image)}
        if self.auxiliary == "densecl":
            cells = _mean(cell_loss(query, key, kept["local_bank"], ids, self.temperature), present)
            metrics["all/contrast_local"] = cells
            changed["local_bank"] = written(kept["local_bank"], ids, key.pooled)
            loss = (1 - self.local_weight) * loss + self.local_weight * cells
        return loss, metrics, changed

    def _follow(self, key: Tree, online: Tree, step: jax.Array) -> Tree:
        """The key network after its step towards the trained one as it was before this training step."""

        def follow(old, new):
            return jnp.where(step == 0, new, old + (1 - self.momentum) * (new - old))

        return jax.tree.map(follow, key, jax.lax.stop_gradient(online))

    @property
    def _banks(self) -> tuple[str, ...]:
        return ("bank", "local_bank") if self.auxiliary == "densecl" else ("bank",)

    @property
    def _head(self) -> nn.Module:
        if self.auxiliary == "rotation":
            return RotationHead()
        return ContrastHead(self.width, self.grid if self.auxiliary == "densecl" else None)

    def _online(self, params: Tree) -> Tree:
        return {"model": params["model"], "head": params["method"]["head"]}

    def _features(self, model: Tree, image: jax.Array, rng: jax.Array) -> jax.Array:
        """f32[B,h,w,C]: what the heads of all tasks read."""
        rngs, first = {"dropout": rng}, next(iter(self.tasks))
        features = self.model.apply({"params": model}, image, first, True, rngs=rngs, method="features")
        return features.astype(jnp.float32)

    def _apply(self, network: Tree, image: jax.Array, rng: jax.Array) -> Any:
        """What the auxiliary head makes of images f32[B,h,w,3], by {"model", "head"} of any network."""
        features = self._features(network["model"], image, rng)
        return self._head.apply({"params": network["head"]}, features)

    def _check_model(self, params: Tree, state: Tree, image: jax.Array) -> None:
        """UserError if images of one batch would know of each other, or if no features are all tasks'."""
        if state["model"].get("batch_stats"):
            raise UserError(
                "config.method 'compl' needs images that know nothing of each other, unlike those with batch"
                " statistics: set config.model.norm to 'group'"
            )
        if "features" not in self.perturbations(params, state, image):
            raise UserError(
                "config.method 'compl' reads the last features that all tasks share, but this model's tasks"
                " have decoders, or parts of them, of their own: set config.model.decoder to 'shared'"
            )


def _mean(values: jax.Array, present: jax.Array) -> jax.Array:
    """f32[]: mean of f32[B] over the images that are there."""
    return masked_mean(values[None], present[None])[0]


def build(
    model,
    tasks,
    weights=None,
    weighting="fixed",
    average="task",
    auxiliary="densecl",
    weight=None,
    canvas=(512, 512),
    window=(384, 384),
    shift=32,
    grid=32,
    temperature=0.4,
    momentum=0.999,
    local_weight=0.7,
    width=128,
    same_images=False,
) -> CompL:
    """See CompL; `weights` and `weighting`: see methods/weighting.py.

    The defaults are those for segmentation with crops of 512x512. For NYUD's depth with crops of 425x560:
    canvas (637, 840), window (425, 560), shift 8, grid 8; windows of 320x320 shifted by 4 for boundaries.

    Args:
      weight: None for that of the auxiliary task in WEIGHTS.

    Raises:
      UserError: a task that is not dense, an option that is none, or a window that does not fit.
    """
    check_dense("compl", tasks)
    one_of("method.auxiliary", auxiliary, WEIGHTS)
    weight = WEIGHTS[auxiliary] if weight is None else weight
    canvas, window = _size("canvas", canvas), _size("window", window)
    if weight < 0:
        raise UserError(f"config.method.weight is {weight}: give 0 or a positive factor")
    for key, value in {"grid": grid, "width": width}.items():
        if value < 1:
            raise UserError(f"config.method.{key} is {value}: give at least 1")
    if shift < 0:
        raise UserError(f"config.method.shift is {shift}: give 0 or a number of pixels")
    if auxiliary != "rotation" and any(w + shift >= c for w, c in zip(window, canvas, strict=True)):
        raise UserError(
            f"config.method.window {window} and its shift by {shift} do not fit into the canvas {canvas}:"
            " make the canvas larger than their sum"
        )
    if temperature <= 0:
        raise UserError(f"config.method.temperature is {temperature}: give a positive number, as 0.4")
    for key, value in {"momentum": momentum, "local_weight": local_weight}.items():
        if not 0 <= value <= 1:
            raise UserError(f"config.method.{key} is {value}: give a share, from 0 to 1")
    weighting = weightings.make(tasks, weights, weighting)
    return CompL(
        model, tasks, weighting, average, auxiliary, weight, canvas, window, shift, grid, temperature,
        momentum, local_weight, width, same_images,
    )  # fmt: skip


def _size(key: str, value: Any) -> tuple[int, int]:
    """UserError unless it is a height and a width."""
    size = tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) != 2 or any(n < 1 for n in size):
        raise UserError(f"config.method.{key} is {value!r}: give height and width in pixels, as (512, 512)")
    return size
