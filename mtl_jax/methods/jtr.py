"""Joint-task regularisation (Nishi, Kim, Li, Pfister, CVPR 2024): partial labels meet in one learned space.

The maps of all tasks are stacked on the channel axis twice (eq. 4): Y^ holds the predictions, Y the labels
where they are given and the predictions elsewhere. An encoder g1 takes both into the joint-task space,
where their distance trains the network; a decoder g2 that must restore the stacks keeps g1 from mapping
everything to one point. The cost grows with the number of tasks, not of their pairs.

By default this is the form that the paper's numbers come from (its authors' code): three crops of an image,
the first for the supervised losses, the second for the distance, with g1 fixed, the third for the training of
g alone; labelled predictions take no gradient from the distance (figure 2). `joint` is eqs. 5 and 6 to the
letter: one crop, where the distance trains g1 and all task branches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.errors import UserError
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import check_dense
from mtl_jax.methods.maps import check_architecture, cosine_distance, encoded, sampled, unit_range
from mtl_jax.methods.supervised import Supervised, labelled
from mtl_jax.metrics.masked import masked_mean
from mtl_jax.models.autoencoder import AutoEncoder
from mtl_jax.tasks import Task
from mtl_jax.views import View, apart, together

Moments = Mapping[str, tuple[jax.Array, jax.Array]]  # task -> mean and standard deviation of its labels


def reconstruction(task: Task, raw: jax.Array, stacked: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[B]: how far g's raw output for a task is from what was stacked of it, over the mask's places."""
    if task.values == "classes":
        per_pixel = jnp.sum(optax.sigmoid_binary_cross_entropy(raw, stacked), -1, keepdims=True)
    elif task.values == "directions":
        per_pixel = 1 - jnp.sum(task.activate(raw) * (2 * stacked - 1), -1, keepdims=True)
    else:
        per_pixel = jnp.mean(jnp.abs(jax.nn.sigmoid(raw) - stacked), -1, keepdims=True)
    return masked_mean(per_pixel, mask)


def joint_mask(valid: Mapping[str, jax.Array]) -> jax.Array:
    """f32[B,H,W,1]: where every label that the image has is known; all 1 for an image without labels."""
    known = labelled(valid)
    masks = [jnp.where(known[name][:, None, None, None], valid[name] > 0, True) for name in valid]
    return jnp.all(jnp.stack(masks), 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class JTR(Supervised):
    """L_SL + distance_weight D1 + encoder_weight D2 + reconstruction_weight R, means over the batch.

    D1 = D(<g1>(Y^), <g1>(Y)) trains the network, D2 = D(g1<Y^>, g1<Y>) trains g1, and
    R = rho(g<Y^>, <Y^>) + rho(g<Y>, <Y>) trains g, where <> takes no gradient. Jointly: D(g1(Y^), g1(Y)) of
    weight distance_weight in place of D1 and D2.

    For an image without any label Y would be Y^: there Y^ and Y are stacked from two views of the same place
    in other colours (section 4.4).

    Attributes:
      coder: g.
      distance_weight, encoder_weight, reconstruction_weight: 4, 8 and 2 in the authors' code, 1 each (with
        `joint`) in eqs. 5 and 6. Without reconstruction: 0; with encoder_weight 0 besides, g1 stays random.
      joint: eqs. 5 and 6 to the letter.
      unlabelled: there are images without labels; they are left out otherwise.
      moments: task -> (mean, standard deviation) that an unbounded quantity is squashed with; those of
        the labels seen so far for a task that is not named.
    """

    coder: AutoEncoder | None = None
    distance_weight: float = 4.0
    encoder_weight: float = 8.0
    reconstruction_weight: float = 2.0
    joint: bool = False
    unlabelled: bool = False
    moments: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def uses_unlabelled(self):
        return self.unlabelled

    @property
    def views(self):
        names = () if self.joint else ("distance", "auxiliary")
        views = {name: View() for name in names}
        if self.unlabelled:
            views["recoloured"] = View(of=names[0] if names else None, zoom=False)
        return views

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        channels = sum(task.channels for task in self.tasks.values())
        stack = jnp.zeros((1, *batch["image"].shape[1:3], channels))
        params = self.coder.init(jax.random.fold_in(rng, 1), stack)["params"]
        variables["params"]["method"]["coder"] = params
        if measured := self._measured():
            start = {"seen": jnp.zeros(()), "mean": jnp.zeros(()), "square": jnp.ones(())}
            variables["state"]["method"]["moments"] = {name: dict(start) for name in measured}
        return variables

    def losses(self, params, state, batch, rng, step):
        views = [batch, *batch.get("views", {}).values()]
        names = ["own", *batch.get("views", {})]
        images = together([view["image"] for view in views])
        prediction, state = self.forward(params, state, images, rng)
        parts = dict(zip(names, apart(prediction, len(views)), strict=True))
        outputs = {name: part.outputs for name, part in parts.items()}
        state, moments = self._moments(state, batch)
        regularise = self._joint if self.joint else self._apart
        loss, metrics = regularise(params["method"]["coder"], outputs, batch, moments, rng)
        return self.supervised(parts["own"], batch), loss, (metrics, state)

    def _apart(self, coder, outputs, batch, moments: Moments, rng) -> tuple[jax.Array, dict]:
        """The two regularising views: the second trains the network, the third trains g."""
        first, second = (batch["views"][name] for name in ("distance", "auxiliary"))
        keys = jax.random.split(rng)
        recoloured = outputs.get("recoloured")
        stacks = self.stacks(outputs["distance"], first, moments, keys[0], recoloured)
        distance = self._distance(jax.lax.stop_gradient(coder), *stacks)[0]
        stacks = self.stacks(outputs["auxiliary"], second, moments, keys[1], soft=True)
        stacks = jax.lax.stop_gradient(stacks)
        encoder, restored = self._distance(coder, *stacks)
        mask = joint_mask(second["valid"])
        recon = self.restoration(coder, restored, stacks, mask) if self.reconstruction_weight else 0.0
        loss = (
            self.distance_weight * distance
            + self.encoder_weight * encoder
            + self.reconstruction_weight * recon
        )
        return loss, {
            "all/distance": distance,
            "all/encoder_distance": encoder,
            "all/reconstruction": jnp.asarray(recon),
        }

    def _joint(self, coder, outputs, batch, moments: Moments, rng) -> tuple[jax.Array, dict]:
        """Eq. 5."""
        stacks = self.stacks(outputs["own"], batch, moments, rng, outputs.get("recoloured"))
        distance, _ = self._distance(coder, *stacks)
        loss = self.distance_weight * distance
        recon = jnp.zeros(())
        if self.reconstruction_weight:
            stacks = jax.lax.stop_gradient(stacks)
            maps = self.coder.apply({"params": coder}, together(stacks), method="encode")
            recon = self.restoration(coder, maps, stacks, joint_mask(batch["valid"]))
            loss += self.reconstruction_weight * recon
        return loss, {"all/distance": distance, "all/reconstruction": recon}

    def stacks(
        self,
        outputs: Mapping[str, jax.Array],
        view: Mapping[str, Any],
        moments: Moments,
        rng: jax.Array,
        recoloured: Mapping[str, jax.Array] | None = None,
        soft: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Y^ and Y, f32[B,H,W, sum of channels], every channel in about [0, 1].

        Predictions are cut to the joint mask of the labels, labels to their own. What a class map shows
        in Y^ and, for want of a label, in Y are two samples of the same prediction.

        Args:
          outputs: raw predictions by task.
          view: {"labels", "valid"} by task.
          recoloured: raw predictions that stand in Y for images without labels.
          soft: probabilities instead of a sample in Y^.
        """
        known, mask = labelled(view["valid"]), joint_mask(view["valid"])
        predicted, reliable = [], []
        unlabelled = ~jnp.any(jnp.stack(list(known.values())), 0)
        for index, (name, task) in enumerate(self.tasks.items()):
            has = known[name][:, None, None, None]
            raw, other = outputs[name], outputs[name]
            if recoloured is not None:
                other = jnp.where(unlabelled[:, None, None, None], recoloured[name], raw)
            keys = jax.random.split(jax.random.fold_in(rng, index))
            prediction = task.activate(raw) if soft else sampled(task, raw, keys[0])
            if not self.joint:
                prediction = jnp.where(has, jax.lax.stop_gradient(prediction), prediction)
            truth = encoded(task, view["labels"][name], view["valid"][name])
            target = jnp.where(has, truth, mask * sampled(task, other, keys[1]))
            mean, std = moments.get(name, (0.0, 1.0))
            predicted.append(unit_range(task, mask * prediction, mean, std))
            reliable.append(unit_range(task, target, mean, std))
        return jnp.concatenate(predicted, -1), jnp.concatenate(reliable, -1)

    def restoration(self, coder, maps, stacks: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        """f32[]: R, the reconstruction losses of both stacks from g1's maps of them, over all tasks."""
        size = stacks[0].shape[1:3]
        restored = self.coder.apply({"params": coder}, maps, size, method="decode")
        ends = np.cumsum([task.channels for task in self.tasks.values()])[:-1]
        total = 0.0
        for output, stack in zip(apart(restored, 2), stacks, strict=True):
            parts = zip(
                self.tasks.values(), jnp.split(output, ends, -1), jnp.split(stack, ends, -1), strict=True
            )
            total += sum(jnp.mean(reconstruction(task, raw, part, mask)) for task, raw, part in parts)
        return total

    def _distance(self, coder, predicted: jax.Array, reliable: jax.Array) -> tuple[jax.Array, list]:
        """f32[]: D(g1(Y^), g1(Y)); and g1's maps of both."""
        maps = self.coder.apply({"params": coder}, together([predicted, reliable]), method="encode")
        return jnp.mean(cosine_distance(*apart(maps[-1], 2))), maps

    def _measured(self) -> list[str]:
        return [n for n, task in self.tasks.items() if task.values == "real" and n not in self.moments]

    def _moments(self, state, batch) -> tuple[Any, Moments]:
        """The state with this batch's labels in the measured moments, and all moments.

        Each step with labels counts alike in the running means of the labels and of their squares.
        """
        measured = {}
        for name in self._measured():
            old, valid = state["method"]["moments"][name], batch["valid"][name]
            label = encoded(self.tasks[name], batch["labels"][name], valid)
            has = jnp.any(valid > 0).astype(jnp.float32)
            seen = old["seen"] + has
            share = has / jnp.maximum(seen, 1.0)
            measured[name] = {"seen": seen}
            for key, values in (("mean", label), ("square", label**2)):
                new = masked_mean(values[None], valid[None])[0]
                measured[name][key] = old[key] + share * (new - old[key])
        moments = {name: tuple(pair) for name, pair in self.moments.items()}
        for name, m in measured.items():
            moments[name] = m["mean"], jnp.sqrt(jnp.maximum(m["square"] - m["mean"] ** 2, 1e-12))
        if measured:
            state = {**state, "method": {**state["method"], "moments": measured}}
        return state, moments


def build(
    model,
    tasks,
    weights=None,
    weighting="fixed",
    average="image",
    distance_weight=4.0,
    encoder_weight=8.0,
    reconstruction_weight=2.0,
    joint=False,
    unlabelled=False,
    moments=None,
    architecture="segnet",
    width=1.0,
) -> JTR:
    """See JTR.

    Args:
      weights, weighting: see methods/weighting.py.
      architecture, width: of g; see models/autoencoder.py.

    Raises:
      UserError: a task that is not dense, or moments of a task that has none.
    """
    check_dense("jtr", tasks)
    check_architecture(architecture)
    moments = dict(moments or {})
    for name in moments:
        if name not in tasks or tasks[name].values != "real":
            real = ", ".join(n for n, task in tasks.items() if task.values == "real")
            raise UserError(
                f"config.method.moments names {name!r}: the unbounded quantities are {real or 'none'}"
            )
    channels = sum(task.channels for task in tasks.values())
    return JTR(
        model,
        tasks,
        weightings.make(tasks, weights, weighting),
        average,
        AutoEncoder(channels, architecture, width, model.dtype),
        distance_weight,
        encoder_weight,
        reconstruction_weight,
        joint,
        unlabelled,
        moments,
    )
