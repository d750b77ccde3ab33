"""Runs the rows of a paper's table and prints ours beside the paper's:

    python -m mtl_jax.sweep --config=FILE:ARG --workdir=DIR [--rows=a,b] [--seeds=N] [--scale=mini]
                            [--config.key=value ...]

The config file defines `sweep(arg)` beside `get_config(arg)`. A complete example:

    from mtl_jax import config as configs
    from mtl_jax.sweep import Row, Sweep

    TASKS = ("semseg", "depth")

    def get_config(arg=None):
        args = configs.parse_arg(arg, adversarial=False)
        config = configs.default()
        config.tasks = {name: {} for name in TASKS}
        if args.adversarial:
            config.method = {"name": "astmt", "weight": 0.1}
        return config

    def sweep(arg=None):
        return Sweep(
            rows={
                "single-task": Row(  # a network per task, their results put together
                    runs={name: {"tasks": {name: {}}} for name in TASKS},
                    paper={"semseg/mIoU": 0.640, "depth/rmse": 0.61},
                ),
                "multi-task": Row(paper={"semseg/mIoU": 0.632, "depth/rmse": 0.64}),
                "wider": Row({"model": {"name": "deeplab", "width": 2.0}}),
                "+ adversarial": Row(arg="adversarial"),
            },
            baseline="single-task",
            mini={"train.steps": 500, "model.width": 0.25},
        )

Every row and seed k = 0 ... N-1 (config.seed + k) runs as a `python -m mtl_jax.main` of its own in
DIR/<row>/seed<k> (DIR/<row>/seed<k>/<name> for the `runs` of a row), with its output in log.txt there.
Finished runs are skipped, interrupted ones go on; a run that fails does not stop the others, and is
listed in the end, with exit code 1.

In the strings of a row's overrides `{row:NAME}` stands for the folder of row NAME with the same seed, and
`{row:NAME}/RUN` for that of one of its `runs`: Row({"data.teachers": {"depth": "{row:single-task}/depth"}}).
A row fails as long as a run that it names so is not finished: put the row NAME before it.

The table holds every row with finished seeds, also from earlier calls: mean ± sample standard deviation
over the seeds, and Delta_m over the mean of the baseline row.
"""

import argparse
import dataclasses
import glob
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax import experiment, report
from mtl_jax.errors import Interrupted, UserError, exit_on_user_error
from mtl_jax.table import Table

Overrides = Mapping[str, Any]  # dotted key -> value; see config.override


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      overrides: of the config.
      arg: argument for get_config instead of the sweep's own.
      runs: name -> further overrides, if the row is several runs whose tasks are put together; {} for a
        row that only quotes the paper.
      paper: published numbers in eval.json's units: "task/metric" -> value (fractions, metres, degrees),
        "all/delta_m" in percent.
    """

    overrides: Overrides = dataclasses.field(default_factory=dict)
    arg: str | None = None
    runs: Mapping[str, Overrides] | None = None
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def parts(self) -> Mapping[str, Overrides]:
        """Further overrides of each run of one seed, by its folder's name below the seed's."""
        return {"": {}} if self.runs is None else self.runs


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The rows of a table, in its order.

    Attributes:
      baseline: the row that Delta_m compares to.
      mini: overrides for --scale=mini, applied after the rows' own.
    """

    rows: Mapping[str, Row]
    baseline: str
    mini: Overrides = dataclasses.field(default_factory=dict)

    def row(self, name: str) -> Row:
        """The row of that name; UserError if there is none."""
        if name not in self.rows:
            raise UserError(f"the sweep has no row {name!r}: it has {', '.join(self.rows)}")
        return self.rows[name]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: `python -m mtl_jax.main` with these arguments.

    Attributes:
      spec: FILE:ARG of its config.
      overrides: all of them, in order.
      needs: folder of each run that has to be finished before -> its row.
    """

    row: str
    seed: int
    spec: str
    overrides: Overrides
    workdir: str
    needs: Mapping[str, str]

    def config(self) -> ConfigDict:
        return configs.load(self.spec, self.overrides)

    def command(self) -> list[str]:
        keys = [f"--config.{key}={value!r}" for key, value in self.overrides.items()]
        return [
            sys.executable,
            "-m",
            "mtl_jax.main",
            f"--config={self.spec}",
            *keys,
            f"--workdir={self.workdir}",
        ]


def load_sweep(spec: str) -> Sweep:
    """The sweep of FILE:ARG; UserError if the file has none, or one without its baseline."""
    module, arg = configs.load_file(spec)
    if not hasattr(module, "sweep"):
        raise UserError(f"{spec} defines no sweep(arg)")
    found = module.sweep(arg)
    if found.baseline not in found.rows:
        raise UserError(f"the sweep of {spec} has no row {found.baseline!r}, which is its baseline")
    folders: dict[str, str] = {}
    for name in found.rows:
        if (other := folders.setdefault(folder_name(name), name)) != name:
            raise UserError(f"the rows {other!r} and {name!r} of {spec} share a folder: rename one")
    return found


def jobs(
    sweep: Sweep, spec: str, workdir: str, rows: Sequence[str], seeds: int, scale: str, last: Overrides
) -> list[Job]:
    """All runs of `rows`, seed by seed; `last` are overrides that win over all others.

    Raises:
      UserError: an unknown row, also as {row:NAME}, or a wrong config of one of them, which it names.
    """
    result = []
    file = spec.partition(".py")[0] + ".py"
    for name in rows:
        row = sweep.row(name)
        row_spec = spec if row.arg is None else f"{file}:{row.arg}"
        for part, further in row.parts().items():
            overrides = _chain(row.overrides, further, sweep.mini if scale == "mini" else {}, last)
            for k in range(seeds):
                folder = os.path.join(seed_folder(workdir, name, k), folder_name(part))
                try:
                    seeded, needs = resolve(overrides, sweep, workdir, k)
                    config = configs.load(row_spec, seeded)
                    configs.check(config)
                except UserError as error:
                    raise UserError(f"row {name!r}: {error}") from error
                seeded["seed"] = config.seed + k
                result.append(Job(name, k, row_spec, seeded, os.path.normpath(folder), needs))
    return sorted(result, key=lambda job: job.seed)


def _chain(*overrides: Overrides) -> dict[str, Any]:
    """All of them in order; a key that comes again is applied at its last place."""
    result: dict[str, Any] = {}
    for some in overrides:
        for key, value in some.items():
            result.pop(key, None)
            result[key] = value
    return result


# {row:NAME}, and the first folder below it.
_REFERENCE = re.compile(r"\{row:([^}]*)\}(?:/([^/]*))?")


def resolve(
    overrides: Overrides, sweep: Sweep, workdir: str, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """(overrides with folders in place of {row:NAME}, folder of each run that they name -> its row).

    Raises:
      UserError: there is no such row, or it has no such run.
    """
    needs: dict[str, str] = {}

    def folder(match: re.Match) -> str:
        name, below = match.groups()
        parts = [folder_name(part) for part in sweep.row(name).parts()]
        path = os.path.abspath(seed_folder(workdir, name, seed))
        if parts == [""]:
            needs[path] = name
        elif below in parts:
            needs[os.path.join(path, below)] = name
        else:
            known = ", ".join(f"{{row:{name}}}/{part}" for part in parts) or "none"
            raise UserError(f"{match[0]} is no run of row {name!r}: its runs are {known}")
        return path if below is None else os.path.join(path, below)

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: replaced(v) for key, v in value.items()}
        return _REFERENCE.sub(folder, value) if isinstance(value, str) else value

    return replaced(overrides), needs


def folder_name(name: str) -> str:
    """A row's name as a folder: what no shell and no file system minds."""
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "_", name)


def seed_folder(workdir: str, row: str, seed: int) -> str:
    return os.path.join(workdir, folder_name(row), f"seed{seed}")


def run(job: Job) -> str | None:
    """Runs a job to its end in a process of its own, unless it is finished; the failure's message, if any.

    A run that it needs and that is not finished is such a failure.

    Raises:
      Interrupted: a signal came; the run has saved its state.
    """
    finished = _finished(job.workdir)
    missing = [] if finished else [folder for folder in job.needs if not _finished(folder)]
    if missing:
        return f"it needs {missing[0]}, which is not finished: run row {job.needs[missing[0]]!r} first"
    try:
        experiment.claim_workdir(job.config(), job.workdir)
    except UserError as error:
        return str(error)
    if finished:
        return None
    command, log = job.command(), os.path.join(job.workdir, "log.txt")
    with open(log, "a") as output:
        output.write(shlex.join(command) + "\n")
        output.flush()
        code, stopped = _wait_for(command, output)
    if stopped or code == 143:
        raise Interrupted(f"in {job.workdir}; the same command resumes")
    if code:
        with open(log, errors="replace") as file:
            lines = file.read().strip().splitlines()
        return f"exit code {code}, {lines[-1].removeprefix('error: ')} (see {log})"
    return None


def _finished(workdir: str) -> bool:
    return os.path.exists(os.path.join(workdir, "eval.json"))


def _wait_for(command: Sequence[str], output: IO[str]) -> tuple[int, bool]:
    """(exit code, did a signal come) of a command; SIGINT and SIGTERM let it save its state and stop."""
    process, stopped = None, False

    def pass_on(number: int, _: Any) -> None:
        nonlocal stopped
        stopped = True
        if process:
            process.terminate()

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        if stopped:  # it came while the process was being started
            process.terminate()
        while process.poll() is None:  # `wait` would sleep through a signal that comes just before it
            time.sleep(0.1)
        return process.returncode, stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def collect(sweep: Sweep, workdir: str) -> Table | None:
    """The table of all finished seeds in `workdir`; None if there are none."""
    rows = {}
    for name, row in sweep.rows.items():
        parts = [folder_name(part) for part in row.parts()]
        folders = sorted(glob.glob(os.path.join(glob.escape(workdir), folder_name(name), "seed*")))
        rows[name] = [
            report.merge([report.read_run(os.path.join(folder, part)) for part in parts])
            for folder in folders
            if all(_finished(os.path.join(folder, part)) for part in parts)
        ]
    if not any(rows.values()):
        return None
    paper = {name: row.paper for name, row in sweep.rows.items() if row.paper}
    shown = {name: runs for name, runs in rows.items() if runs or name in paper}
    return report.compare(shown, rows[sweep.baseline], paper)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file with sweep(arg), and perhaps :ARG behind it")
    parser.add_argument("--workdir", required=True, help="folder of all runs and of the table")
    parser.add_argument("--rows", help="names of the rows to run, separated by commas; default all")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds per row")
    parser.add_argument("--scale", choices=("full", "mini"), default="full")
    flags, rest = parser.parse_known_args()
    if flags.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {flags.seeds}")
    sweep = load_sweep(flags.config)
    rows = flags.rows.split(",") if flags.rows else list(sweep.rows)
    last = configs.command_line_overrides(rest)
    todo = jobs(sweep, flags.config, flags.workdir, rows, flags.seeds, flags.scale, last)

    failures = {}
    for i, job in enumerate(todo):
        began = time.monotonic()
        print(f"[{i + 1}/{len(todo)}] {job.workdir}", flush=True)
        if message := run(job):
            failures[job.workdir] = message
            print(f"  failed: {message}", flush=True)
        else:
            print(f"  done in {time.monotonic() - began:.0f} s", flush=True)
    if table := collect(sweep, flags.workdir):
        print(table.markdown(), end="")
        table.write(flags.workdir)
    if failures:
        print(
            f"{len(failures)} of {len(todo)} runs failed; the same command tries them again:", file=sys.stderr
        )
        for workdir, message in failures.items():
            print(f"  {workdir}: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
