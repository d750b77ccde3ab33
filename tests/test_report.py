"""Reports of runs that are written here by hand."""

import json
import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import report, tasks
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import UserError
from mtl_jax.models.prediction import Prediction
from mtl_jax.report import Run
from mtl_jax.tasks import depth, pictures

SPECS = {"semseg": {"num_classes": 3}, "depth": {}, "normals": {}}
TASKS = tasks.build(dict.fromkeys(SPECS, {}), SPECS)


def write_run(folder, results, names=tuple(SPECS), split="val"):
    """A working directory as a finished run leaves it, with results by task."""
    folder.mkdir(parents=True)
    config = configs.default()
    config.data.eval = split
    (folder / "config.json").write_text(configs.to_json(config))
    (folder / "tasks.json").write_text(json.dumps({name: SPECS[name] for name in names}))
    evaluated = {f"{split}/{name}/{TASKS[name].headline}": results[name] for name in names}
    constant = {f"constant/{name}/{TASKS[name].headline}": 2.0 for name in names}
    best = {f"best/{name}/{TASKS[name].headline}": 77.0 for name in names}
    cost = {"model/cost/params": 2.5e6, "model/cost/gflops": 1.25}
    (folder / "eval.json").write_text(json.dumps({**evaluated, **constant, **best, **cost}))
    return str(folder)


def run(semseg, depth, normals):
    return Run(TASKS, {"semseg/mIoU": semseg, "depth/rmse": depth, "normals/mErr": normals}, {}, 2e6, 3.0)


def column(table, title):
    i = [c.title for c in table.columns].index(title)
    return {name: cells[i] and cells[i].mean for name, cells in table.rows.items()}


def test_a_run_is_read_from_its_working_directory(tmp_path):
    found = report.read_run(write_run(tmp_path / "a", {"semseg": 0.4, "depth": 0.5, "normals": 20.0}))
    assert found.results == {"semseg/mIoU": 0.4, "depth/rmse": 0.5, "normals/mErr": 20.0}
    assert found.constant == {"semseg/mIoU": 2.0, "depth/rmse": 2.0, "normals/mErr": 2.0}
    assert (found.params, found.gflops) == (2.5e6, 1.25)


def test_what_is_no_finished_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing is no working directory of a run"):
        report.read_run(str(tmp_path / "nothing"))
    folder = write_run(tmp_path / "half", {"depth": 0.5}, ("depth",))
    (tmp_path / "half" / "eval.json").unlink()
    with pytest.raises(UserError, match=f"the run in {folder} is not finished"):
        report.read_run(folder)


def test_units_directions_and_published_delta_m():
    # Nishi et al., CVPR 2024, Table 1, NYU-v2 "onelabel", with depth in our headline's place.
    rows = {"supervised": [run(0.2575, 0.6511, 33.73)], "MTPSL": [run(0.3040, 0.5926, 31.68)]}
    table = report.compare(rows, rows["supervised"])
    assert [(c.title, c.better) for c in table.columns] == [
        ("semseg mIoU [%]", 1), ("depth rmse [m]", -1), ("normals mErr [°]", -1), ("Δm [%]", 1),
        ("params [M]", 0), ("GFLOPs", 0),
    ]  # fmt: skip
    assert column(table, "semseg mIoU [%]")["MTPSL"] == pytest.approx(30.40)
    assert column(table, "depth rmse [m]")["MTPSL"] == 0.5926
    assert column(table, "Δm [%]") == pytest.approx({"supervised": 0, "MTPSL": 11.04}, abs=0.006)
    assert column(table, "params [M]")["MTPSL"] == pytest.approx(2.0)


def test_seeds_become_mean_and_sample_standard_deviation():
    base = [run(0.30, 0.60, 30.0), run(0.34, 0.64, 34.0)]
    ours = [run(0.4, 0.5, 28.0), run(0.5, 0.4, 26.0), run(0.6, 0.3, 24.0)]
    table = report.compare({"base": base, "ours": ours}, base)
    i = [c.title for c in table.columns].index("Δm [%]")
    # By hand: gains over the baseline's mean (0.32, 0.62, 32) of each seed, then over the seeds.
    gains = [np.mean([(r.results["semseg/mIoU"] - 0.32) / 0.32, (0.62 - r.results["depth/rmse"]) / 0.62,
                      (32 - r.results["normals/mErr"]) / 32]) for r in ours]  # fmt: skip
    assert table.rows["ours"][i].mean == pytest.approx(100 * np.mean(gains))
    assert table.rows["ours"][i].std == pytest.approx(100 * np.std(gains, ddof=1))
    assert table.rows["base"][i].mean == pytest.approx(0, abs=1e-12)
    assert table.rows["ours"][0].mean == pytest.approx(50) and table.rows["ours"][0].std == pytest.approx(10)
    assert column(table, "seeds") == {"base": 2, "ours": 3}


def test_the_papers_numbers_stand_beside_ours():
    rows = {"base": [run(0.3, 0.6, 30.0)], "ours": [], "quoted": []}
    paper = {
        "base": {"semseg/mIoU": 0.31, "depth/absErr": 0.4},
        "quoted": {"semseg/mIoU": 0.5, "all/delta_m": 7.5, "saliency/maxF": 0.7},
    }
    table = report.compare(rows, rows["base"], paper)
    assert column(table, "paper: semseg mIoU [%]") == {"base": 31, "ours": None, "quoted": 50}
    assert column(table, "paper: depth absErr") == {"base": 0.4, "ours": None, "quoted": None}
    assert column(table, "paper: Δm [%]") == {"base": None, "ours": None, "quoted": 7.5}
    titles = [c.title for c in table.columns]
    assert titles.index("paper: semseg mIoU [%]") == titles.index("semseg mIoU [%]") + 1
    assert "paper: depth rmse [m]" not in titles and not any("saliency" in t for t in titles)
    assert column(table, "semseg mIoU [%]") == {"base": 30, "ours": None, "quoted": None}


@pytest.mark.parametrize("value", [None, "missing"])
def test_delta_m_is_missing_where_a_task_of_the_baseline_is_unknown(value):
    ours = run(0.4, None, 30.0)
    if value == "missing":
        ours = Run({n: TASKS[n] for n in ("semseg", "normals")}, {"semseg/mIoU": 0.4, "normals/mErr": 30.0})
    base = run(0.3, 0.6, 30.0)
    assert column(report.compare({"base": [base], "ours": [ours]}, [base]), "Δm [%]") == {
        "base": 0,
        "ours": None,
    }
    # Over the tasks of the baseline alone, whatever else a network does:
    small = Run({"semseg": TASKS["semseg"]}, {"semseg/mIoU": 0.3})
    table = report.compare({"base": [small], "ours": [ours]}, [small])
    assert column(table, "Δm [%]")["ours"] == pytest.approx(100 / 3)
    assert column(report.compare({"ours": [ours]}, []), "Δm [%]") == {"ours": None}


def test_single_task_runs_are_put_together(tmp_path):
    values = {"semseg": 0.4, "depth": 0.5, "normals": 20.0}
    singles = [report.read_run(write_run(tmp_path / name, values, (name,))) for name in SPECS]
    whole = report.merge(singles)
    assert whole.results == {"semseg/mIoU": 0.4, "depth/rmse": 0.5, "normals/mErr": 20.0}
    assert (whole.params, whole.gflops) == (7.5e6, 3.75)
    with pytest.raises(UserError, match="task 'depth' is in two"):
        report.merge([whole, singles[1]])


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()
    return capsys.readouterr().out


def test_command(tmp_path, monkeypatch, capsys):
    a = write_run(tmp_path / "a", {"semseg": 0.4, "depth": 1.0, "normals": 20.0})
    b = write_run(tmp_path / "b", {"semseg": 0.6, "depth": 0.5, "normals": 30.0})
    (tmp_path / "b" / "figures").mkdir()
    (tmp_path / "b" / "figures" / "panels.png").touch()
    out = command(
        monkeypatch, capsys, "--workdirs", a, b, "--baseline", a + "/", "--out", str(tmp_path / "out")
    )
    assert out.startswith((tmp_path / "out" / "table.md").read_text())
    assert out.splitlines()[-1] == f"{b}/figures/panels.png"
    # (50 + 50 - 50) / 3, and bold since it is the best
    assert [line.split("|")[5].strip() for line in out.splitlines()[2:4]] == ["0.00", "**16.67**"]


def test_without_a_baseline_runs_compare_to_the_best_constant(tmp_path, monkeypatch, capsys):
    a = write_run(tmp_path / "a", {"semseg": 3.0, "depth": 1.0, "normals": 1.0})
    rows = [
        [c.strip() for c in line.split("|")]
        for line in command(monkeypatch, capsys, "--workdirs", a).splitlines()
    ]
    assert rows[2][1:6] == ["best constant", "200.0", "2.000", "2.000", "0.00"]
    assert rows[3][1] == a and rows[3][5] == "**50.00**"


def test_examples_stand_side_by_side(tmp_path, monkeypatch, capsys):
    """Truth and every run's prediction of each task, of the first run's evaluation images."""
    scores = {"a": {"semseg": 0.4, "depth": 1.0, "normals": 20.0}, "b": {"semseg": 0.6, "depth": 1.0}}
    folders = {name: write_run(tmp_path / name, values, tuple(values)) for name, values in scores.items()}

    class Constant(nn.Module):
        value: float

        def __call__(self, image, tasks, train):
            shape = (*image.shape[:3], 1)
            return Prediction({name: jnp.full(shape, self.value) for name in tasks}, {}, {})

    def load(workdir):
        names = [name for name in scores[workdir[-1]] if name == "depth" or workdir == folders["a"]]
        return types.SimpleNamespace(
            config=configs.default(),
            tasks={name: depth.build(name) for name in names},
            model=Constant(2.0 if workdir == folders["a"] else 6.0),
            variables={},
        )

    def example(index):
        label = np.full((4, 6, 1), 4.0, np.float32)
        return {"image": np.full((4, 6, 3), 10 * index, np.uint8), "labels": {"depth": label}}

    split = Split(list("xyz"), lambda: np.full((3, 2), (4, 6), np.int32), example)
    dataset = Dataset({"depth": {}}, ["test"], lambda name, tasks: split)
    drawn = {}
    monkeypatch.setattr(report.experiment, "load", load)
    monkeypatch.setattr(report.experiment, "build_dataset", lambda config: dataset)
    monkeypatch.setattr(
        pictures, "panels", lambda *arguments: drawn.update(zip("pitms", arguments, strict=False))
    )
    with pytest.raises(SystemExit):
        command(monkeypatch, capsys, "--workdirs", *folders.values(), "--examples=2", f"--out={tmp_path}")
    assert "--examples wants runs of the same tasks" in capsys.readouterr().err
    scores["a"] = {"depth": 1.0}
    command(monkeypatch, capsys, "--workdirs", *folders.values(), "--examples=2", f"--out={tmp_path}/out")
    assert drawn["p"] == f"{tmp_path}/out/panels.png" and list(drawn["s"]) == ["depth"]
    np.testing.assert_allclose(drawn["i"][:, 0, 0, 0], [0, 10 / 255], atol=1e-6)
    assert np.all(drawn["t"]["depth"] == 4) and drawn["t"]["depth"].shape == (2, 4, 6, 1)
    values = {title: np.unique(maps["depth"]).tolist() for title, maps in drawn["m"].items()}
    assert values == {"a": [2.0], "b": [6.0]}
    with pytest.raises(SystemExit):
        command(monkeypatch, capsys, "--workdirs", folders["a"], "--examples=2")
    assert "give --out=DIR" in capsys.readouterr().err


def test_a_mistake_ends_with_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, capsys, "--workdirs", str(tmp_path / "none"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none is no working directory of a run")
