"""Delta_m: how much better or worse a multi-task network is than its reference, over all tasks."""

from collections.abc import Mapping
from typing import Protocol

from mtl_jax.errors import UserError


class Measured(Protocol):
    """What Delta_m must know of a task."""

    headline: str
    better: int


Headlines = Mapping[str, float]  # task -> value of its headline metric


def gains(results: Headlines, reference: Headlines, tasks: Mapping[str, Measured]) -> dict[str, float]:
    """Relative gain of each task in percent; positive is better, whatever the metric's direction.

    Raises:
      UserError: a task is missing in `results` or `reference`, or its reference is 0.
    """
    gain = {}
    for name, task in tasks.items():
        for values, role in ((results, "results"), (reference, "reference")):
            if name not in values:
                raise UserError(
                    f"Delta_m needs task {name!r}, which the {role} lack: leave the task out of both"
                )
        if reference[name] == 0:
            raise UserError(f"Delta_m is undefined for task {name!r}: its reference {task.headline} is 0")
        gain[name] = 100 * task.better * (results[name] - reference[name]) / reference[name]
    return gain


def delta_m(results: Headlines, reference: Headlines, tasks: Mapping[str, Measured]) -> float:
    """Mean of `gains` over the tasks, in percent (Maninis et al., CVPR 2019, Eq. 4, times 100).

    Raises:
      UserError: as `gains`.
    """
    terms = gains(results, reference, tasks)
    return sum(terms.values()) / len(terms)
