"""Networks from one task's map to another's: baselines for partial labels (Nishi et al., CVPR 2024).

For an image with the label of task t and without that of task s (Li et al., CVPR 2022):
  direct      the prediction of s, mapped to t, must be the label of t;
  perceptual  the prediction and the label of t, both mapped to s, must be the same (Zamir et al., CVPR
              2020), and what the label of t is mapped to must be the prediction of s, which trains both.
Every ordered pair has a network of its own, trained together with the model, since one label per image
leaves no image to train a map on beforehand. The published descriptions leave the partial case open; these
are the plainest readings.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtl_jax.errors import one_of
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.maps import disagreement, encoded, mapping_input, ordered_pairs, sampled
from mtl_jax.methods.supervised import Supervised, labelled
from mtl_jax.models.autoencoder import AutoEncoder

KINDS = ("direct", "perceptual")


@dataclasses.dataclass(frozen=True)
class CrossTask(Supervised):
    """weight/B sum_x sum_{s in U_x, t in T_x} of the pair's loss, beside the supervised losses.

    Attributes:
      kind: "direct" or "perceptual".
      maps: the network of each ordered pair (from, to).
      weight: of the pairs' losses.
    """

    kind: str = "direct"
    maps: Mapping[tuple[str, str], AutoEncoder] = dataclasses.field(default_factory=dict)
    weight: float = 1.0

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        size = batch["image"].shape[1:3]
        variables["params"]["method"]["maps"] = {
            _key(*pair): network.init(
                jax.random.fold_in(rng, 1 + index), jnp.zeros((1, *size, self.tasks[pair[0]].channels))
            )["params"]
            for index, (pair, network) in enumerate(self.maps.items())
        }
        return variables

    def losses(self, params, state, batch, rng, step):
        prediction, state = self.forward(params, state, batch["image"], rng)
        known = labelled(batch["valid"])
        loss = 0.0
        for index, (missing, given) in enumerate(self._pairs()):
            key = jax.random.fold_in(rng, index)
            pair = self._direct if self.kind == "direct" else self._perceptual
            per_image = pair(params["method"]["maps"], prediction.outputs, batch, missing, given, key)
            loss += jnp.mean(jnp.where(~known[missing] & known[given], per_image, 0.0))
        return self.supervised(prediction, batch), self.weight * loss, ({"all/pairs": loss}, state)

    def _pairs(self) -> list[tuple[str, str]]:
        names = tuple(self.tasks)
        return [(names[s], names[t]) for s, t in ordered_pairs(len(names))]

    def _direct(self, maps, outputs, batch, s: str, t: str, rng) -> jax.Array:
        """f32[B]: l_t(m(s -> t)(prediction of s), label of t)."""
        prediction = mapping_input(self.tasks[s], sampled(self.tasks[s], outputs[s], rng))
        return self.tasks[t].loss(self._map(maps, s, t, prediction), batch["labels"][t], batch["valid"][t])

    def _perceptual(self, maps, outputs, batch, s: str, t: str, rng) -> jax.Array:
        """f32[B]: d_s(m(prediction of t), <m(label of t)>) + d_s(m(label of t), prediction of s).

        m maps t to s, and d_s is the loss of s between maps.
        """
        source, target, valid = self.tasks[t], self.tasks[s], batch["valid"][t]
        # The prediction is cut to where its label is known, so that this makes no difference of the two.
        prediction = mapping_input(source, valid * sampled(source, outputs[t], rng))
        truth = mapping_input(source, encoded(source, batch["labels"][t], valid))
        of_prediction, of_truth = (self._map(maps, t, s, x) for x in (prediction, truth))
        everywhere = jnp.ones_like(valid)
        fixed = target.activate(jax.lax.stop_gradient(of_truth))
        seen = disagreement(target, of_prediction, fixed, everywhere)
        return seen + disagreement(target, of_truth, target.activate(outputs[s]), everywhere)

    def _map(self, maps, start: str, end: str, x: jax.Array) -> jax.Array:
        return self.maps[start, end].apply({"params": maps[_key(start, end)]}, x)


def _key(start: str, end: str) -> str:
    return f"{start}_to_{end}"


def build(
    model,
    tasks,
    weights=None,
    weighting="fixed",
    average="image",
    kind="direct",
    weight=1.0,
    width=1.0,
) -> CrossTask:
    """See CrossTask.

    Args:
      weights, weighting: see methods/weighting.py.
      width: of the networks, SegNets.

    Raises:
      UserError: another kind, fewer than two tasks, or one that is not dense.
    """
    check_dense("crosstask", tasks, least=2)
    one_of("method.kind", kind, KINDS)
    names = tuple(tasks)
    maps = {
        (names[s], names[t]): AutoEncoder(tasks[names[t]].channels, "segnet", width, model.dtype)
        for s, t in ordered_pairs(len(names))
    }
    return CrossTask(model, tasks, weightings.make(tasks, weights, weighting), average, kind, maps, weight)
