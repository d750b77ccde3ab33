"""What a run says while it goes: console lines, metrics.jsonl and TensorBoard events."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from clu import metric_writers


class Log:
    """Writes metrics of process 0 to `metrics.jsonl` and TensorBoard, and lines to the console.

    A run that resumes at step `start` takes back what its predecessor wrote after that step, a half
    written last line included, so that the file is as if the run had never been interrupted.
    """

    def __init__(self, workdir: str, start: int = 0):
        self._main = jax.process_index() == 0
        if not self._main:
            return
        path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= start]
        with open(path + ".tmp", "w") as file:
            file.writelines(kept)
        os.replace(path + ".tmp", path)
        self._file = open(path, "a")  # noqa: SIM115 (closed in `close`)
        self._events = metric_writers.SummaryWriter(os.path.join(workdir, "events"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One object per call; keys are `split/task/metric`. A value that is not finite becomes null."""
        if self._main:
            plain = {key: float(v) if np.isfinite(v) else None for key, v in values.items()}
            self._file.write(json.dumps({"step": step, **plain}) + "\n")
            self._file.flush()
            self._events.write_scalars(step, {k: v for k, v in plain.items() if v is not None})
            self._events.flush()

    def say(self, text: str) -> None:
        if self._main:
            print(text, flush=True)

    def close(self) -> None:
        if self._main:
            self._file.close()
            self._events.close()


def _complete_lines(path: str) -> Iterator[str]:
    if os.path.exists(path):
        with open(path) as file:
            yield from (line for line in file if line.endswith("\n"))


class Progress:
    """Means of the step metrics since the last report, with speed and the time that is left."""

    def __init__(self, log: Log, start: int, steps: int, batch_size: int):
        self._log, self._steps, self._batch_size = log, steps, batch_size
        self._window: list[dict[str, float]] = []
        # The clock starts at the first step's end: compilation says nothing about the speed.
        self._since: tuple[int, float] | None = None

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a completed step."""
        self._window.append({key: float(value) for key, value in metrics.items()})
        if self._since is None:
            self._since = step, time.monotonic()

    def report(self, step: int) -> None:
        """Logs the window's means and prints one line."""
        means = {key: float(np.mean([m[key] for m in self._window])) for key in self._window[-1]}
        first, began = self._since
        speed = (step - first) / max(time.monotonic() - began, 1e-9)
        if speed:
            means["all/steps_per_second"] = speed
        self._log.write(step, {f"train/{key}": value for key, value in means.items()})
        losses = [f"{k.removesuffix('/loss')} {v:.4g}" for k, v in means.items() if k.endswith("/loss")]
        parts = [f"step {step}/{self._steps}", "loss " + ", ".join(losses)]
        if speed:
            left = time.strftime("%H:%M:%S", time.gmtime((self._steps - step) / speed))
            parts += [f"{speed:.2f} steps/s", f"{speed * self._batch_size:.1f} images/s", f"ETA {left}"]
        self._log.say(" · ".join(parts))
        self._window.clear()
        self._since = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluation, saving) does not count as training."""
        began = time.monotonic()
        yield
        if self._since is not None:
            self._since = self._since[0], self._since[1] + time.monotonic() - began
