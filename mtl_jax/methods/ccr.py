"""Cross-task contrastive regularisation (Yang, Ye, Xu: Contrastive Multi-Task Dense Prediction, AAAI 2023).

The last feature map F_t of a target task t is projected to unit vectors. The labels of another, the source
task s, say of a few anchor pixels of each image which other pixels are alike (positives) and which are not
(negatives). A triplet loss draws the anchor's hardest positive nearer than negatives that are not much
farther away. The network itself stays as it is: at test time nothing of this is left.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError, one_of
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.maps import encoded
from mtl_jax.methods.supervised import Supervised
from mtl_jax.metrics.angular import unit
from mtl_jax.metrics.masked import masked_mean
from mtl_jax.models.conv import Conv
from mtl_jax.models.norm import Norm
from mtl_jax.tasks import Task

# Table 3: which pairs (target, source) have the same projector. None for the "identity" of CCR-Basic.
SHARING = {
    "none": lambda t, s: f"{t}_by_{s}",
    "t_shared": lambda t, s: s,
    "s_shared": lambda t, s: t,
    "both": lambda t, s: "all",
    "identity": lambda t, s: None,
}
MINING = ("semihard", "uniform")
PAIRS = ("drawn", "all")


class Projector(nn.Module):
    """BN . Conv1x1 . ReLU . Conv1x1 (eq. 2), then each pixel scaled to length 1.

    The paper gives no widths: the hidden one is that of the features.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """f[B,h,w,C] -> f32[B,h,w,width], unit vectors."""
        x = Conv(features.shape[-1], 1, use_bias=True, dtype=self.dtype, name="conv1")(features)
        x = Conv(self.width, 1, use_bias=True, dtype=self.dtype, name="conv2")(nn.relu(x))
        return unit(Norm("batch", self.dtype, name="norm")(x, train).astype(jnp.float32))


def downsampled(label: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B,H,W,C] -> [B,h,w,C]: of each cell its upper left pixel, so that no two labels are ever mixed."""
    rows, columns = (np.arange(n) * full // n for n, full in zip(size, label.shape[1:3], strict=True))
    return label[:, rows][:, :, columns]


class Triplets(NamedTuple):
    """Pixels of one image, or with a leading axis of several, by their number among all P = h w.

    Attributes:
      anchor: i32[A].
      known: bool[A], is the anchor one? Fewer than A pixels may have a label.
      positive: i32[A].
      negative: i32[A,C].
      usable: bool[A,C], is it a negative, and has the anchor a positive?
    """

    anchor: jax.Array
    known: jax.Array
    positive: jax.Array
    negative: jax.Array
    usable: jax.Array


def draw_anchors(rng: jax.Array, known: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`count` of the pixels that are `known` bool[P], uniformly, without replacement: i32[A], bool[A]."""
    value, anchor = jax.lax.top_k(jnp.where(known, jax.random.uniform(rng, known.shape), -1.0), count)
    return anchor, value >= 0


def alike(
    task: Task, label: jax.Array, known: jax.Array, anchor: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """The positives and the negatives of an anchor, bool[P] each, by the labels of the source task.

    Classes: the pixels of the same and those of other classes. Quantities: the `k` pixels whose labels are
    nearest and the `k` farthest, fewer where they would meet; of equally far ones those that come first.

    Args:
      label: f32[P,channels], encoded.
      known: bool[P]; no other pixel is either.
      anchor: i32[], which is neither.
    """
    candidate = known & (jnp.arange(known.size) != anchor)
    far = task.distance(label[anchor], label)
    if task.discrete:
        return candidate & (far == 0), candidate & (far > 0)
    count = jnp.minimum(k, (jnp.sum(known) - 1) // 2)

    def first(order: jax.Array, among: jax.Array) -> jax.Array:
        most = min(k, known.size)
        _, chosen = jax.lax.top_k(jnp.where(among, order, -jnp.inf), most)
        return jnp.zeros_like(known).at[chosen].set(jnp.arange(most) < count)

    positive = first(-far, candidate)
    return positive, first(far, candidate & ~positive)


def mine(
    distance: jax.Array, positive: jax.Array, negative: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The hardest positive (eq. 4) and the nearest negatives farther away than it, by distances f32[P].

    Returns:
      i32[], i32[count], and which of these exist, bool[count]: none without a positive.
    """
    hardest = jnp.argmax(jnp.where(positive, distance, -jnp.inf))
    semihard = negative & (distance > distance[hardest]) & jnp.any(positive)
    value, chosen = jax.lax.top_k(jnp.where(semihard, -distance, -jnp.inf), min(count, distance.size))
    return hardest, chosen, value > -jnp.inf


def draw(rng: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One positive and one negative, uniformly; as from `mine`."""
    order = jax.random.uniform(rng, (2, positive.size))
    one = jnp.argmax(jnp.where(positive, order[0], -1.0))
    other = jnp.argmax(jnp.where(negative, order[1], -1.0))
    return one, other[None], (jnp.any(positive) & jnp.any(negative))[None]


def length(vector: jax.Array) -> jax.Array:
    """f32[...,D] -> f32[...]; that of the zero vector has gradient 0."""
    square = jnp.sum(vector**2, -1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def triplet_loss(features: jax.Array, triplets: Triplets, margin: float) -> dict[str, jax.Array]:
    """Eq. 1 for one image: mean over its anchors of the mean over an anchor's negatives of the hinge.

    An anchor without a usable negative counts as 0, an image without anchors too.

    Args:
      features: f32[P,D].

    Returns:
      "contrast": the loss; and means over the triplets: "near" and "far", the distances of positives and
      of negatives, "mined", the share of anchors with a usable negative.
    """
    anchor = features[triplets.anchor]
    near = length(anchor - features[triplets.positive])
    far = length(anchor[:, None] - features[triplets.negative])
    per_anchor = masked_mean(nn.relu(near[:, None] - far + margin), triplets.usable)
    mined = jnp.any(triplets.usable, -1) & triplets.known

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return masked_mean(values[None], where[None])[0]

    return {
        "contrast": mean(per_anchor, triplets.known),
        "near": mean(near, mined),
        "far": mean(masked_mean(far, triplets.usable), mined),
        "mined": mean(mined.astype(jnp.float32), triplets.known),
    }


@dataclasses.dataclass(frozen=True)
class CCR(Supervised):
    """The tasks' losses + weight * ramp * sum_t R_{t,s}, R being the mean of eq. 1 over the images (eq. 5).

    The matrix of distances between anchors and pixels is made for `block` anchors at a time, and its
    gradient never: what was mined is gathered, and its distances are taken anew. For an image of P = h w
    pixels that takes at most 40 block P + 16 P width bytes (`memory_bound` in contrast_cost.py).

    Attributes:
      weight: lambda, which rises linearly over the first `ramp_steps`.
      margin: m.
      gamma: anchors per pixel.
      k: how many pixels are alike, and how many are not, where labels are quantities.
      negatives: C_neg, of an anchor.
      width: of the projection.
      sharing: of projectors, a key of SHARING.
      mining: "semihard" (`mine`) or "uniform" (`draw`).
      pairs: "drawn": each target has one source per step, drawn anew; "all": all of them (eq. 3).
      block: anchors at a time; None for all.
    """

    weight: float = 1.0
    margin: float = 0.2
    gamma: float = 0.01
    k: int = 128
    negatives: int = 16
    width: int = 128
    sharing: str = "s_shared"
    mining: str = "semihard"
    pairs: str = "drawn"
    ramp_steps: int = 0
    block: int | None = 64

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        predicted, _ = jax.eval_shape(
            lambda: self.forward(variables["params"], variables["state"], batch["image"], rng)
        )
        params, state, widths = {}, {}, {}
        for target in self.tasks:
            features = predicted.features[target]
            for name in filter(None, (self._name(target, source) for source in self._sources(target))):
                if widths.setdefault(name, features.shape[-1]) != features.shape[-1]:
                    raise UserError(
                        f"config.method.sharing is {self.sharing!r}, but the features of task {target!r} have"
                        f" {features.shape[-1]} channels and others {widths[name]}: choose s_shared or none"
                    )
                if name not in params:
                    own = jax.random.fold_in(rng, 1 + len(params))
                    made = dict(self._projector.init(own, jnp.zeros(features.shape), train=False))
                    params[name], state[name] = made.pop("params"), made
        variables["params"]["method"]["projectors"] = params
        variables["state"]["method"]["projectors"] = state
        return variables

    def losses(self, params, state, batch, rng, step):
        own, rng = jax.random.split(rng)
        prediction, state = self.forward(params, state, batch["image"], own)
        total, metrics, projectors = self.regularise(
            params["method"]["projectors"], state["method"]["projectors"], prediction.features, batch, rng
        )
        state = {**state, "method": {**state["method"], "projectors": projectors}}
        ramp = jnp.minimum(step / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        return self.supervised(prediction, batch), self.weight * ramp * total, (metrics, state)

    def regularise(
        self,
        params: Mapping,
        state: Mapping,
        features: Mapping[str, jax.Array],
        batch: Mapping,
        rng: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], Mapping]:
        """Eq. 3, or its drawn part, of any network's feature maps.

        Args:
          params, state: of the projectors.
          features: f[B,h,w,C] by task.
          batch: {"labels", "valid"} by task, at the image's size.

        Returns:
          (f32[], metrics by `task/name`, new state).
        """
        total, metrics = 0.0, {}
        for index, target in enumerate(self.tasks):
            key = jax.random.fold_in(rng, index)
            sources = self._sources(target)
            if self.pairs == "all":
                choices = [(number, jax.random.fold_in(key, number)) for number in range(len(sources))]
            else:
                key, own = jax.random.split(key)
                choices = [(jax.random.randint(own, (), 0, len(sources)), key)]
            parts = []
            for choice, own in choices:
                projected, state = self._project(params, state, features[target], target, choice)
                parts.append(self._pair_loss(projected, batch, sources, choice, own))
            for name in parts[0]:
                metrics[f"{target}/{name}"] = sum(part[name] for part in parts) / len(parts)
            total += sum(part["contrast"] for part in parts)
        return total, {**metrics, "all/contrast": total}, state

    def _sources(self, target: str) -> list[str]:
        return [name for name in self.tasks if name != target]

    def _name(self, target: str, source: str) -> str | None:
        return SHARING[self.sharing](target, source)

    @property
    def _projector(self) -> Projector:
        return Projector(self.width, self.model.dtype)

    def _project(self, params, state, features, target: str, choice) -> tuple[jax.Array, Mapping]:
        """f32[B,h,w,D] by the projector of the source that is number `choice`, and the new state of all."""
        names = [self._name(target, source) for source in self._sources(target)]
        if names[0] is None:
            return unit(features.astype(jnp.float32)), state
        distinct = list(dict.fromkeys(names))
        choice = choice if len(distinct) > 1 else 0

        def chosen(tree):  # of its small arrays, which costs less than a branch of the program for each
            return jax.tree.map(lambda *leaves: jnp.stack(leaves)[choice], *(tree[n] for n in distinct))

        projected, new = self._projector.apply(
            {"params": chosen(params), **chosen(state)}, features, train=True, mutable=["batch_stats"]
        )
        changed = {
            name: jax.tree.map(lambda old, now, i=i: jnp.where(i == choice, now, old), state[name], dict(new))
            for i, name in enumerate(distinct)
        }
        return projected, {**state, **changed}

    def _pair_loss(self, projected, batch, sources, choice, rng) -> dict[str, jax.Array]:
        """What `triplet_loss` returns, averaged over the images, for the source that is number `choice`."""
        count, *size, width = projected.shape
        fixed = jax.lax.stop_gradient(projected).reshape(count, -1, width)
        keys = jax.random.split(rng, count)
        branches = [functools.partial(self._select, source, batch, tuple(size)) for source in sources]
        # The index is no batch's: one branch alone runs. None has a gradient, so that none keeps anything.
        triplets = (
            branches[choice](fixed, keys)
            if isinstance(choice, int)
            else jax.lax.switch(choice, branches, fixed, keys)
        )
        losses = jax.vmap(triplet_loss, (0, 0, None))(projected.reshape(fixed.shape), triplets, self.margin)
        return jax.tree.map(jnp.mean, losses)

    def _select(self, source: str, batch, size, features, keys) -> Triplets:
        """Triplets of each image, f32[B,P,D], by the labels of a source."""
        task, valid = self.tasks[source], downsampled(batch["valid"][source], size)
        label = encoded(task, downsampled(batch["labels"][source], size), valid)
        label = label.reshape(*features.shape[:2], -1)
        known = valid.reshape(features.shape[:2]) > 0
        return jax.vmap(functools.partial(self.select, task))(features, label, known, keys)

    def select(
        self, task: Task, features: jax.Array, label: jax.Array, known: jax.Array, rng: jax.Array
    ) -> Triplets:
        """Triplets of one image.

        Args:
          task: the source.
          features: f32[P,D], unit vectors.
          label: f32[P,channels], encoded.
          known: bool[P], is the label?
        """
        pixels = known.size
        first, rng = jax.random.split(rng)
        anchors, exist = draw_anchors(first, known, max(1, int(self.gamma * pixels)))

        def partners(anchor_and_key):
            anchor, key = anchor_and_key
            positive, negative = alike(task, label, known, anchor, self.k)
            if self.mining == "uniform":
                return draw(key, positive, negative)
            cosine = jnp.matmul(features, features[anchor], precision="highest")
            return mine(jnp.maximum(2 - 2 * cosine, 0.0), positive, negative, self.negatives)

        keys = jax.random.split(rng, len(anchors))
        block = min(self.block or len(anchors), len(anchors))
        mined = jax.lax.map(partners, (anchors, keys), batch_size=block)
        return Triplets(anchors, exist, *mined)


def build(
    model,
    tasks,
    weights=None,
    weighting="fixed",
    average="task",
    weight=1.0,
    margin=0.2,
    gamma=0.01,
    k=128,
    negatives=16,
    width=128,
    sharing="s_shared",
    mining="semihard",
    pairs="drawn",
    ramp_steps=0,
    block=64,
) -> CCR:
    """See CCR; `weights` and `weighting`: see methods/weighting.py.

    Raises:
      UserError: fewer than two tasks, one that is not dense, or an option that is none.
    """
    check_dense("ccr", tasks, least=2)
    for key, value, known in (
        ("sharing", sharing, SHARING),
        ("mining", mining, MINING),
        ("pairs", pairs, PAIRS),
    ):
        one_of(f"method.{key}", value, known)
    for key, value in {
        "k": k,
        "negatives": negatives,
        "width": width,
        "block": 1 if block is None else block,
    }.items():
        if value < 1:
            raise UserError(f"config.method.{key} is {value}: give at least 1")
    if not 0 < gamma <= 1:
        raise UserError(f"config.method.gamma is {gamma}: give the share of pixels that are anchors, as 0.01")
    if margin <= 0:
        raise UserError(f"config.method.margin is {margin}: give a positive distance, as 0.2")
    if ramp_steps < 0:
        raise UserError(f"config.method.ramp_steps is {ramp_steps}: give 0 or a number of steps")
    weighting = weightings.make(tasks, weights, weighting)
    return CCR(
        model, tasks, weighting, average, weight, margin, gamma, k, negatives, width, sharing, mining, pairs,
        ramp_steps, block,
    )  # fmt: skip
