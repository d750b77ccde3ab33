"""Sweeps whose runs are a small script instead of a training."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mtl_jax import config as configs
from mtl_jax import sweep

FILE = """
from mtl_jax import config as configs
from mtl_jax.sweep import Row, Sweep

def get_config(arg=None):
    config = configs.default()
    config.seed = 10
    config.train.steps = configs.parse_arg(arg, steps=100).steps
    config.tasks = {"semseg": {}, "depth": {}}
    return config

def sweep(arg=None):
    return Sweep(
        rows={
            "single task": Row(
                {"ema_decay": 0.5},
                runs={name: {"tasks": {name: {}}} for name in ("semseg", "depth")},
                paper={"semseg/mIoU": 0.3},
            ),
            "joint": Row(
                {"model": {"name": "deeplab", "depth": 50, "norm": "group"}}, paper={"all/delta_m": -1.0}
            ),
            "long": Row(arg="steps=700"),
            "quoted": Row(runs={}, paper={"semseg/mIoU": 0.9}),
        },
        baseline="single task",
        mini={"model.depth": 26, "train.eval_every": 7},
    )
"""

# Stands in for mtl_jax.main: reports numbers that can be foretold from the config.
RUN = """
import json, os, sys
folder = sys.argv[1]
config = json.load(open(os.path.join(folder, "config.json")))
print("training")
if os.path.exists(os.path.join(folder, "..", "broken")):
    print("error: the disk is full", file=sys.stderr)
    sys.exit(2)
specs = {"semseg": {"num_classes": 3}, "depth": {}}
names = list(config["tasks"])
json.dump({n: specs[n] for n in names}, open(os.path.join(folder, "tasks.json"), "w"))
values = {"semseg": ("mIoU", config["seed"] / 100), "depth": ("rmse", config["train"]["steps"] / 100)}
results = {f"test/{n}/{values[n][0]}": values[n][1] for n in names}
results["model/cost/params"] = 1e6
json.dump(results, open(os.path.join(folder, "eval.json"), "w"))
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def scripted(monkeypatch):
    """Runs take milliseconds; holds the folders that ran."""
    ran = []

    def command(job):
        ran.append(job.workdir)
        return [sys.executable, "-c", RUN, job.workdir]

    monkeypatch.setattr(sweep.Job, "command", command)
    return ran


def run_sweep(monkeypatch, spec, workdir, *arguments):
    monkeypatch.setattr(sys, "argv", ["sweep", f"--config={spec}", f"--workdir={workdir}", *arguments])
    sweep.main()


def plan(spec, rows=("single task", "joint", "long"), seeds=1, scale="full", last=None):
    found = sweep.load_sweep(spec)
    return sweep.jobs(found, spec, "runs", rows, seeds, scale, last or {})


def test_the_plan(spec):
    jobs = plan(spec, seeds=2)
    first = [
        "runs/single_task/seed0/semseg",
        "runs/single_task/seed0/depth",
        "runs/joint/seed0",
        "runs/long/seed0",
    ]
    assert [job.workdir for job in jobs] == first + [f.replace("seed0", "seed1") for f in first]
    assert [job.config().seed for job in jobs] == [10] * 4 + [11] * 4
    semseg, depth, joint, long = (job.config() for job in jobs[:4])
    assert list(semseg.tasks) == ["semseg"] and list(depth.tasks) == ["depth"] and len(joint.tasks) == 2
    assert (semseg.ema_decay, joint.ema_decay) == (0.5, None)
    assert joint.model.to_dict() == {"name": "deeplab", "depth": 50, "norm": "group"}
    assert (joint.train.steps, long.train.steps) == (100, 700)


def test_mini_comes_after_the_rows_and_the_command_line_after_all(spec):
    mini = plan(spec, ("joint",), scale="mini")[0].config()
    assert mini.model.to_dict() == {"name": "deeplab", "depth": 26, "norm": "group"}
    assert mini.train.eval_every == 7
    last = plan(spec, ("joint",), scale="mini", last={"model": {"name": "segnet"}, "seed": 3})[0].config()
    assert last.model.to_dict() == {"name": "segnet"} and last.seed == 3


def test_a_run_of_its_own_sees_the_same_config(spec):
    last = {
        "data.size": (32, 48),
        "data.train": "2012",
        "data.options": {"path": "a 'quoted' name", "list": [1, None]},
        "dtype": "bfloat16",
    }
    for job in plan(spec, scale="mini", last=last):
        *start, file = job.command()[:4]
        assert start == [sys.executable, "-m", "mtl_jax.main"]
        overrides = configs.command_line_overrides(
            [a for a in job.command()[4:] if a.startswith("--config.")]
        )
        theirs = configs.load(file.removeprefix("--config="), overrides)
        assert theirs.to_dict() == job.config().to_dict()
        assert job.command()[-1] == f"--workdir={job.workdir}"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("Row(arg=", "Row({'train.setps': 1}, arg="), (), "row 'long': unknown config key"),
        (("", ""), ("--rows=joint,lnog",), "no row 'lnog': it has single task, joint, long, quoted"),
        (('baseline="single', 'baseline="singel'), (), "no row 'singel task', which is its baseline"),
        (('"long"', '"single_task"'), (), "rows 'single task' and 'single_task' of .* share a folder"),
        (("def sweep", "def swoop"), (), "mine.py defines no sweep"),
        (("", ""), ("--config.train.steps=0",), "config.train.steps must be a positive integer"),
        (("", ""), ("--seeds=0",), "--seeds must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_end_it_before_anything_runs(
    tmp_path, monkeypatch, spec, scripted, capsys, change, arguments, message
):
    (tmp_path / "mine.py").write_text(FILE.replace(*change, 1))
    with pytest.raises(SystemExit) as stop:
        run_sweep(monkeypatch, spec, tmp_path / "w", *arguments)
    assert stop.value.code == 2 and not scripted
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "w").exists()


def test_rows_seeds_and_the_table(tmp_path, monkeypatch, spec, scripted, capsys):
    workdir = tmp_path / "w"
    run_sweep(monkeypatch, spec, workdir, "--seeds=2")
    assert len(scripted) == 8
    lines = [
        [c.strip() for c in line.split("|")[1:-1]] for line in (workdir / "table.md").read_text().splitlines()
    ]
    assert lines[0] == ["run", "semseg mIoU [%] ↑", "paper: semseg mIoU [%]", "depth rmse [m] ↓", "Δm [%] ↑",
                        "paper: Δm [%]", "params [M]", "GFLOPs", "seeds"]  # fmt: skip
    # mIoU of the seeds: 10 and 11 percent.
    assert lines[2] == [
        "single task",
        "**10.50** ± 0.71",
        "30.00",
        "**1.000** ± 0.000",
        "**0.00** ± 3.37",
        "–",
        "2.000",
        "–",
        "2",
    ]
    assert lines[3] == [
        "joint",
        "**10.50** ± 0.71",
        "–",
        "**1.000** ± 0.000",
        "**0.00** ± 3.37",
        "-1.00",
        "1.000",
        "–",
        "2",
    ]
    # Depth error 7 instead of 1: (0 - 600) / 2.
    assert lines[4][3:5] == ["7.000 ± 0.000", "-300.00 ± 3.37"]
    assert lines[5] == ["quoted", "–", "90.00", "–", "–", "–", "–", "–", "–"]
    assert capsys.readouterr().out.endswith((workdir / "table.md").read_text())
    assert (workdir / "table.csv").exists() and (workdir / "table.tex").exists()


def test_finished_runs_are_skipped_and_stay_in_the_table(tmp_path, monkeypatch, spec, scripted):
    run_sweep(monkeypatch, spec, tmp_path / "w", "--rows=joint")
    run_sweep(monkeypatch, spec, tmp_path / "w", "--rows=joint,long")
    assert [os.path.basename(os.path.dirname(folder)) for folder in scripted] == ["joint", "long"]
    assert "| joint" in (tmp_path / "w" / "table.md").read_text()


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(
    tmp_path, monkeypatch, spec, scripted, capsys
):
    workdir = tmp_path / "w"
    (workdir / "joint").mkdir(parents=True)
    (workdir / "joint" / "broken").touch()
    with pytest.raises(SystemExit) as stop:
        run_sweep(monkeypatch, spec, workdir)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert (
        f"{workdir}/joint/seed0: exit code 2, the disk is full (see {workdir}/joint/seed0/log.txt)"
        in captured.err
    )
    assert "1 of 4 runs failed" in captured.err and "| long" in captured.out
    (workdir / "joint" / "broken").unlink()
    run_sweep(monkeypatch, spec, workdir)
    assert scripted[4:] == [f"{workdir}/joint/seed0"]
    log = (workdir / "joint" / "seed0" / "log.txt").read_text()
    assert log.count("training\n") == 2 and "error: the disk is full" in log


def test_a_finished_run_of_another_config_is_not_taken_for_this_one(
    tmp_path, monkeypatch, spec, scripted, capsys
):
    run_sweep(monkeypatch, spec, tmp_path / "w", "--rows=joint")
    with pytest.raises(SystemExit):
        run_sweep(monkeypatch, spec, tmp_path / "w", "--rows=joint", "--scale=mini")
    assert (
        "holds a run of another config; these keys differ: config.model.depth (50 there, 26 now)"
        in capsys.readouterr().err
    )


def test_half_of_a_seed_does_not_count(tmp_path, monkeypatch, spec, scripted):
    run_sweep(monkeypatch, spec, tmp_path / "w", "--rows=single task,joint")
    (tmp_path / "w" / "single_task" / "seed0" / "depth" / "eval.json").unlink()
    table = sweep.collect(sweep.load_sweep(spec), str(tmp_path / "w"))
    assert [cell for cell in table.rows["single task"] if cell] and table.rows["single task"][0] is None
    (tmp_path / "w" / "joint" / "seed0" / "eval.json").unlink()
    assert sweep.collect(sweep.load_sweep(spec), str(tmp_path / "w")) is None


TEACHERS = """            "student": Row({
                "data.teachers": {"semseg": "{row:single task}/semseg", "depth": "{row:single task}/depth"},
                "data.options": {"deep": {"wide": "x {row:joint}/checkpoints y"}, "steps": 5},
            }),
        },
        baseline="""


@pytest.fixture
def with_student(tmp_path):
    """A sweep whose last row names runs of other rows."""
    path = tmp_path / "student.py"
    path.write_text(FILE.replace("        },\n        baseline=", TEACHERS))
    return str(path)


def test_a_row_names_the_runs_of_others_by_their_folders(with_student):
    first, second = plan(with_student, ("student",), seeds=2)
    here = os.getcwd() + "/runs"
    for job, seed in ((first, "seed0"), (second, "seed1")):
        c = job.config()
        teachers = {name: f"{here}/single_task/{seed}/{name}" for name in ("semseg", "depth")}
        assert c.data.teachers.to_dict() == teachers
        wide = {"wide": f"x {here}/joint/{seed}/checkpoints y"}
        assert c.data.options.to_dict() == {"deep": wide, "steps": 5}
        assert job.needs == {
            **dict.fromkeys(teachers.values(), "single task"), f"{here}/joint/{seed}": "joint"
        }  # fmt: skip
    assert not any(job.needs for job in plan(with_student))


def test_runs_may_name_runs_too(tmp_path, with_student):
    path = tmp_path / "student.py"
    runs = 'Row(runs={"again": {"data.options": {"path": "{row:joint}"}}}),\n'
    path.write_text(path.read_text().replace('"joint": Row(', f'"echo": {runs}"joint": Row('))
    (job,) = plan(with_student, ("echo",))
    assert job.config().data.options.path == os.path.abspath("runs/joint/seed0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{row:singel task}/depth", "row 'student': the sweep has no row 'singel task': it has single task,"),
        ("{row:single task}/dpeth", "{row:single task}/dpeth is no run .*: its runs are .*/semseg, .*/depth"),
        ("{row:single task}", "row 'student': {row:single task} is no run of row 'single task'"),
        ("{row:quoted}", "{row:quoted} is no run of row 'quoted': its runs are none"),
    ],
)
def test_a_row_that_names_no_run_ends_it(tmp_path, monkeypatch, with_student, capsys, wrong, message):
    path = tmp_path / "student.py"
    path.write_text(path.read_text().replace("{row:single task}/depth", wrong))
    with pytest.raises(SystemExit) as stop:
        run_sweep(monkeypatch, with_student, tmp_path / "w")
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "w").exists()


def test_a_row_waits_for_the_runs_that_it_names(tmp_path, monkeypatch, with_student, scripted, capsys):
    workdir = tmp_path / "w"
    (workdir / "joint" / "seed0").mkdir(parents=True)
    (workdir / "joint" / "broken").touch()

    def fails(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_sweep(monkeypatch, with_student, workdir, *arguments)
        assert stop.value.code == 1
        return capsys.readouterr().err

    error = fails("--rows=student")
    assert f"it needs {workdir}/single_task/seed0/semseg, which is not finished" in error
    assert "run row 'single task' first" in error
    assert not scripted and not (workdir / "student").exists()
    # In the order of the rows their runs come first, and what fails there stops the student alone.
    assert f"it needs {workdir}/joint/seed0, which is not finished: run row 'joint' first" in fails()
    assert [os.path.relpath(folder, workdir) for folder in scripted] == [
        "single_task/seed0/semseg", "single_task/seed0/depth", "joint/seed0", "long/seed0"
    ]  # fmt: skip
    (workdir / "joint" / "broken").unlink()
    run_sweep(monkeypatch, with_student, workdir)
    assert scripted[4:] == [f"{workdir}/joint/seed0", f"{workdir}/student/seed0"]
    # What is finished needs nobody any more.
    (workdir / "single_task" / "seed0" / "depth" / "eval.json").unlink()
    run_sweep(monkeypatch, with_student, workdir, "--rows=student")
    assert len(scripted) == 6


WAIT = """
import signal, sys, time
def stop(*_):
    print("state saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + "/waiting", "w").close()
for _ in range(600):
    time.sleep(0.1)
"""

DRIVER = """
import sys, time
from mtl_jax import sweep
_, spec, script, workdir = sys.argv
sweep.Job.command = lambda job: [sys.executable, "-c", script, job.workdir]
sys.argv = ["sweep", f"--config={spec}", f"--workdir={workdir}"]
sweep.main()
"""


@pytest.mark.parametrize(
    ("number", "script"),
    [(signal.SIGTERM, WAIT), (signal.SIGINT, WAIT), (signal.SIGTERM, WAIT.replace("signal.signal", "print"))],
    ids=["SIGTERM", "SIGINT", "before the run listens"],
)
def test_a_signal_lets_the_run_save_its_state_and_starts_no_other(tmp_path, spec, number, script):
    workdir = tmp_path / "w"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, spec, script, str(workdir)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    first = workdir / "single_task" / "seed0" / "semseg"
    while not (first / "waiting").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and error.startswith(f"stopped: in {first}; the same command resumes")
    assert script != WAIT or "state saved" in (first / "log.txt").read_text().splitlines()
    assert sorted(os.listdir(workdir)) == ["single_task"]
