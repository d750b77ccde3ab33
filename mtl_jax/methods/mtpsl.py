"""Multi-task partially-supervised learning (Li, Liu, Bilen, CVPR 2022; Nishi et al., CVPR 2024, eq. 3).

For an image with the label of task t and without that of task s, the prediction of s and the label of t are
mapped into a space that belongs to the ordered pair (s, t), where they must point the same way. One
encoder serves all pairs; each has its own scale and shift behind every normalisation (FiLM).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.maps import (
    check_architecture,
    cosine_distance,
    encoded,
    mapping_input,
    ordered_pairs,
    sampled,
)
from mtl_jax.methods.supervised import Supervised, labelled
from mtl_jax.models.autoencoder import MappingEncoder
from mtl_jax.views import View, apart, together


def present_pairs(known: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """The pairs (s without label, t with label) of each image.

    Args:
      known: bool[B,K]: which labels an image has.
      slots: at least the largest number of pairs that an image has.

    Returns:
      i32[B,slots] columns of `ordered_pairs`, and bool[B,slots]: False where an image has fewer pairs.
    """
    source, target = np.array(ordered_pairs(known.shape[1])).T
    present = ~known[:, source] & known[:, target]
    columns = jnp.argsort(~present, axis=1, stable=True)[:, :slots]
    return columns, jnp.take_along_axis(present, columns, 1)


@dataclasses.dataclass(frozen=True)
class MTPSL(Supervised):
    """weight/B sum_x sum_{s in U_x, t in T_x} P(s, t), beside the supervised losses.

    P(s, t) = D(a, b) + regulariser (D(a, <f>) + D(b, <f>)) with the mapped prediction a of s, the mapped
    label b of t and the encoder's feature f, which takes no gradient. As in the authors' code, the sum is
    not divided by |U_x| as eq. 3 of Nishi et al. has it; P is made on a second crop of the image.

    Attributes:
      mapping: the mapping network.
      weight: 2 on NYU-v2, 1 on Cityscapes.
      regulariser: 0.5, or 0 for the form without.
      max_pairs: the largest number of pairs of an image, for which the step is compiled.
    """

    mapping: MappingEncoder | None = None
    weight: float = 2.0
    regulariser: float = 0.5
    max_pairs: int = 1

    views = {"mapped": View()}

    def check_labels(self, given):
        super().check_labels(given)
        known = np.sum(list(given.values()), 0)
        largest = int(np.max(known * (len(given) - known)))
        if largest > self.max_pairs:
            raise UserError(
                f"config.method.max_pairs is {self.max_pairs}, but there are images with {largest} pairs of "
                "a task without and a task with a label: set it to that, or leave it out"
            )

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        size = batch["image"].shape[1:3]
        maps = {name: jnp.zeros((1, *size, task.channels)) for name, task in self.tasks.items()}
        mapping = self.mapping.init(jax.random.fold_in(rng, 1), maps, jnp.zeros(1, jnp.int32))["params"]
        variables["params"]["method"]["mapping"] = mapping
        self._check_latent(variables, batch["image"][:1], maps)
        return variables

    def groups(self, params):
        def label(path: tuple, group: str) -> str:
            return "film" if any(getattr(entry, "key", None) == "film" for entry in path) else group

        return jax.tree_util.tree_map_with_path(label, super().groups(params))

    def losses(self, params, state, batch, rng, step):
        view = batch["views"]["mapped"]
        prediction, state = self.forward(params, state, together([batch["image"], view["image"]]), rng)
        own, mapped = apart(prediction, 2)
        feature = next(iter(mapped.encoded.values()))
        loss = self.pair_loss(params["method"]["mapping"], mapped.outputs, feature, view, rng)
        return self.supervised(own, batch), self.weight * loss, ({"all/pairs": loss}, state)

    def pair_loss(
        self,
        mapping: Mapping,
        outputs: Mapping[str, jax.Array],
        feature: jax.Array,
        view: Mapping,
        rng: jax.Array,
    ) -> jax.Array:
        """f32[]: 1/B sum_x sum P(s, t).

        Args:
          mapping: parameters of the mapping network.
          outputs: raw predictions f32[B,H,W,channels] by task, for `view`.
          feature: f[B,h,w,D] of the model's encoder.
          view: {"labels", "valid"} by task.
        """
        predicted, truths = [], []
        for index, (name, task) in enumerate(self.tasks.items()):
            prediction = sampled(task, outputs[name], jax.random.fold_in(rng, index))
            truth = encoded(task, view["labels"][name], view["valid"][name])
            maps = together([mapping_input(task, prediction), mapping_input(task, truth)])
            embedded = self.mapping.apply({"params": mapping}, maps, name, method="embed")
            for where, part in zip((predicted, truths), apart(embedded, 2), strict=True):
                where.append(part)
        known = jnp.stack([labelled(view["valid"])[name] for name in self.tasks], 1)
        columns, present = present_pairs(known, self.max_pairs)
        source, target = jnp.array(ordered_pairs(len(self.tasks))).T

        def chosen(maps: Sequence[jax.Array], task: jax.Array) -> jax.Array:  # -> f[B * slots, ...]
            picked = jnp.take_along_axis(jnp.stack(maps, 1), task[:, :, None, None, None], 1)
            return picked.reshape(-1, *picked.shape[2:])

        both = together([chosen(predicted, source[columns]), chosen(truths, target[columns])])
        of_pair = jnp.repeat(columns.reshape(-1), 2)
        a, b = apart(self.mapping.apply({"params": mapping}, both, of_pair, method="encode"), 2)
        f = jnp.repeat(jax.lax.stop_gradient(feature), self.max_pairs, 0)
        loss = cosine_distance(a, b)
        if self.regulariser:
            loss += self.regulariser * (cosine_distance(a, f) + cosine_distance(b, f))
        return jnp.sum(jnp.where(present.reshape(-1), loss, 0.0)) / len(known)

    def _check_latent(self, variables, image, maps) -> None:
        """The mapping's result and the encoder's are compared: they must have one shape."""
        mapping = {"params": variables["params"]["method"]["mapping"]}
        mapped = jax.eval_shape(lambda: self.mapping.apply(mapping, maps, jnp.zeros(1, jnp.int32)))
        prediction, _ = jax.eval_shape(
            lambda: self.forward(variables["params"], variables["state"], image, jax.random.key(0))
        )
        wanted = next(iter(prediction.encoded.values())).shape
        found = next(iter(mapped.values())).shape
        if found != wanted:
            raise UserError(
                f"the mapping network gives maps {found[1:]}, but the model's encoder {wanted[1:]}: "
                "make config.method.architecture and width those of config.model"
            )


def build(
    model,
    tasks,
    weights=None,
    weighting="fixed",
    average="image",
    weight=2.0,
    regulariser=0.5,
    max_pairs=None,
    architecture="segnet",
    width=1.0,
) -> MTPSL:
    """See MTPSL.

    Args:
      weights, weighting: see methods/weighting.py.
      max_pairs: None for as many as K tasks can have, floor(K^2 / 4); K - 1 suffice for one label per image.
      architecture, width: of the mapping network; see models/autoencoder.py.

    Raises:
      UserError: fewer than two tasks, or one that is not dense.
    """
    check_dense("mtpsl", tasks, least=2)
    check_architecture(architecture)
    largest = math.floor(len(tasks) ** 2 / 4)
    mapping = MappingEncoder(
        {name: task.channels for name, task in tasks.items()},
        columns=len(ordered_pairs(len(tasks))),
        arch=architecture,
        width=width,
        dtype=model.dtype,
    )
    return MTPSL(
        model,
        tasks,
        weightings.make(tasks, weights, weighting),
        average,
        mapping,
        weight,
        regulariser,
        max_pairs or largest,
    )
