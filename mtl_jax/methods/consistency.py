"""Consistency regularisation: an image's predictions do not depend on its colours (Nishi et al., CVPR 2024).

Eq. 2: beside the supervised losses, the predictions of the tasks whose label is missing are compared
between two augmentations of the image. Both show the same place: the augmentations change colours alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.supervised import Supervised, count, labelled
from mtl_jax.views import View, apart, together


@dataclasses.dataclass(frozen=True)
class Consistency(Supervised):
    """1/B sum_x 1/|U_x| sum_{t in U_x} mean (q_t(A_s x) - <q_t(A_r x)>)^2, beside the supervised losses.

    q_t is the activated prediction (probabilities, metres, unit vectors), <> takes no gradient, and U_x
    holds the tasks whose label is missing, all of them for an unlabelled image.

    Attributes:
      weight: of the consistency loss.
    """

    weight: float = 1.0

    uses_unlabelled = True
    views = {"strong": View(zoom=False)}

    def losses(self, params, state, batch, rng, step):
        images = together([batch["image"], batch["views"]["strong"]["image"]])
        prediction, state = self.forward(params, state, images, rng)
        missing = {name: ~known for name, known in labelled(batch["valid"]).items()}
        own, strong = apart(prediction, 2)
        difference = 0.0
        for name, task in self.tasks.items():
            target = jax.lax.stop_gradient(task.activate(own.outputs[name]))
            per_image = jnp.mean((task.activate(strong.outputs[name]) - target) ** 2, (1, 2, 3))
            difference += jnp.where(missing[name], per_image, 0.0)
        loss = jnp.mean(difference / count(missing))
        return self.supervised(own, batch), self.weight * loss, ({"all/consistency": loss}, state)


def build(model, tasks, weights=None, weighting="fixed", average="image", weight=1.0) -> Consistency:
    """`weights` and `weighting`: see methods/weighting.py; the others: see Consistency."""
    check_dense("consistency", tasks)
    return Consistency(model, tasks, weightings.make(tasks, weights, weighting), average, weight)
