"""Tasks by name. `build` joins what the config asks for with what the dataset knows of its labels."""

from collections.abc import Mapping
from typing import Any

from mtl_jax import names
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Metric, Task

__all__ = ["Metric", "Task", "build"]


def build(asked: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """The tasks of a run, in the order of `asked` (a ConfigDict sorts its keys).

    Args:
      asked: config.tasks: name -> options. `kind` names the module in tasks/ (default: the name).
      labels: what the dataset says of each label it has (`kind`, `num_classes`, ...), by task name.

    Raises:
      UserError: no task, an unknown kind or option, or a task that the dataset has no label for.
    """
    if not asked:
        raise UserError("config.tasks is empty: name at least one task")
    tasks = {}
    for name, options in asked.items():
        if name not in labels:
            raise UserError(f"the dataset has no label for task {name!r}: it has {', '.join(sorted(labels))}")
        merged = {**labels[name], **options}
        kind = merged.pop("kind", name)
        tasks[name] = names.build("tasks", kind, merged, name)
    return tasks
