"""What a dataset is: named labels and splits of examples that can be read by index."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Example = dict[str, Any]
"""{"image": uint8[h,w,3], "labels": {task: [h,w,C] in the task's canonical form, compact dtype}}"""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, read at random by index.

    Attributes:
      ids: one unique name per example, in the split's own order.
      measure: () -> i32[N,2], height and width of each image; perhaps slow, as it may open every file.
      load: index -> Example, or None if it is left out; thread-safe; raises UserError that names the file it
        cannot read.
      given: task -> bool[N]: whether its label is given to training; None: all are.
    """

    ids: Sequence[str]
    measure: Callable[[], np.ndarray]
    load: Callable[[int], Example | None]
    given: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """i32[N,2]: height and width of each image."""
        return self.measure()

    def subset(self, indices: Sequence[int]) -> "Split":
        """These examples alone, in this order."""
        kept = np.asarray(indices, int)
        return Split(
            ids=[self.ids[i] for i in kept],
            measure=lambda: self.sizes[kept],
            load=lambda index: self.load(int(kept[index])),
            given=self.given and {task: mask[kept] for task, mask in self.given.items()},
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset: `build(**options)` of each module in data/datasets returns one.

    Attributes:
      labels: per task name, what the data say of the label: options of the task such as `kind`,
        `num_classes`, `class_names`.
      splits: names of the splits.
      split: (split name, tasks) -> Split that loads the labels of these tasks alone.
      published: images that a split has in the release.
      archives: "md5:..." or "sha256:..." of the release's archives by file name, where it is known.
    """

    labels: Mapping[str, Mapping[str, Any]]
    splits: Sequence[str]
    split: Callable[[str, Sequence[str]], Split]
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)
    archives: Mapping[str, str] = dataclasses.field(default_factory=dict)
