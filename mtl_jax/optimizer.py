"""Learning-rate schedules and optimisers as unit-rate transformations over parameter groups."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from mtl_jax.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


def schedule(options: Any, steps: int) -> Schedule:
    """Learning rate by step, after a linear warm-up over `warmup_steps`.

    `poly` is lr * (1 - step/steps)^0.9 (DeepLab), `cosine` lr * (1 + cos(pi step/steps)) / 2; both
    count from the end of the warm-up and reach 0 at `steps`.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    if warmup >= steps:
        raise UserError(f"config.optimizer.warmup_steps={warmup} must be below config.train.steps={steps}")
    decay = {
        "poly": lambda: optax.polynomial_schedule(peak, 0.0, 0.9, steps - warmup),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup),
        "constant": lambda: optax.constant_schedule(peak),
    }
    if options.schedule not in decay:
        known = ", ".join(decay)
        raise UserError(f"config.optimizer.schedule is {options.schedule!r}: choose one of {known}")
    after = decay[options.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def transformation(options: Any, groups: Any) -> optax.GradientTransformation:
    """Gradients -> descent directions at learning rate 1, group by group.

    The train step multiplies them by -schedule(step), so that a group that sits out some updates
    still follows the common schedule.

    Args:
      options: config.optimizer.
      groups: a tree of group labels like the parameters'.
    """
    decay = optax.add_decayed_weights(
        options.weight_decay,
        mask=None if options.decay == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    chains = {
        "sgd": lambda: (decay, optax.trace(options.momentum)),
        "adam": lambda: (decay, optax.scale_by_adam()),
        "adamw": lambda: (optax.scale_by_adam(), decay),
    }
    if options.name not in chains:
        raise UserError(f"config.optimizer.name is {options.name!r}: choose one of {', '.join(chains)}")
    labels = set(jax.tree.leaves(groups))
    kinds = {label.split(":")[0] for label in labels}
    for name in options.lr_scale:
        if name not in labels | kinds:
            known = ", ".join(sorted(labels | kinds))
            raise UserError(f"config.optimizer.lr_scale names {name!r}: the groups are {known}")

    def group(label: str) -> optax.GradientTransformation:
        scale = options.lr_scale.get(label, options.lr_scale.get(label.split(":")[0], 1.0))
        return optax.chain(*chains[options.name](), optax.scale(scale))

    return optax.partition({label: group(label) for label in labels}, groups)
