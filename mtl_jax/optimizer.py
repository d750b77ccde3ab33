"""Learning-rate schedules and optimisers as unit-rate transformations over parameter groups."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mtl_jax.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


# What a group of parameters may have for itself in config.optimizer.own.
OWN = ("learning_rate", "schedule", "warmup_steps", "halve_every")


def schedule(options: Any, steps: int) -> Schedule:
    """Learning rate by step, after a linear warm-up over `warmup_steps`.

    `poly` is lr * (1 - step/steps)^0.9 (DeepLab), `cosine` lr * (1 + cos(pi step/steps)) / 2; both
    reach 0 at `steps`. `halve` is lr / 2^k after k times the share `halve_every` of the steps. All count
    from the end of the warm-up.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    if warmup >= steps:
        raise UserError(f"config.optimizer.warmup_steps={warmup} must be below config.train.steps={steps}")
    decay = {
        "poly": lambda: optax.polynomial_schedule(peak, 0.0, 0.9, steps - warmup),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup),
        "constant": lambda: optax.constant_schedule(peak),
        "halve": lambda: optax.exponential_decay(
            peak, max(1, round(options.halve_every * (steps - warmup))), 0.5, staircase=True
        ),
    }
    if options.schedule not in decay:
        known = ", ".join(decay)
        raise UserError(f"config.optimizer.schedule is {options.schedule!r}: choose one of {known}")
    after = decay[options.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def schedules(options: Any, steps: int, groups: Iterable[str]) -> dict[str, Schedule]:
    """The learning rate of each of `groups`: the common one, or that of config.optimizer.own.

    Raises:
      UserError: `own` names no group, or a key that is none of OWN.
    """
    groups = sorted(set(groups))  # sorted: the compilation cache knows a program by the order of its parts
    common = schedule(options, steps)
    _check_names("own", options.own, groups)
    result = {}
    for group in groups:
        own = options.own.get(group, options.own.get(kind(group)))
        for key in own or ():
            if key not in OWN:
                raise UserError(f"config.optimizer.own.{group} has no key {key!r}: it has {', '.join(OWN)}")
        result[group] = schedule(ConfigDict({**options, **own}), steps) if own else common
    return result


def kind(group: str) -> str:
    """`task` of `task:depth`; the label itself where it has no such parts."""
    return group.split(":")[0]


def _check_names(key: str, named: Iterable[str], groups: Iterable[str]) -> None:
    known = {*groups, *map(kind, groups)}
    for name in named:
        if name not in known:
            raise UserError(
                f"config.optimizer.{key} names {name!r}: the groups are {', '.join(sorted(known))}"
            )


def transformation(options: Any, groups: Any) -> optax.GradientTransformation:
    """Gradients -> descent directions at learning rate 1, group by group.

    The train step multiplies them by minus the group's schedule at its step, so that a group that sits
    out some updates still follows it.

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
    labels = sorted(set(jax.tree.leaves(groups)))
    _check_names("lr_scale", options.lr_scale, labels)

    def group(label: str) -> optax.GradientTransformation:
        scale = options.lr_scale.get(label, options.lr_scale.get(kind(label), 1.0))
        return optax.chain(*chains[options.name](), optax.scale(scale))

    return optax.partition({label: group(label) for label in labels}, groups)
