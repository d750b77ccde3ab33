"""Curves are checked where they say something: that the right thing stands at the right place."""

import json

import pytest
from PIL import Image

from mtl_jax import config as configs
from mtl_jax import figures
from mtl_jax.errors import UserError

SPECS = {
    "semseg": {"num_classes": 3, "class_names": ["sky", "road", "car"]},
    "depth": {},
    "scene": {"kind": "classification", "num_classes": 2, "class_names": ["street", "kitchen"]},
}


def write_run(folder, records, results=None):
    config = configs.default()
    config.data.eval = "val"
    (folder / "config.json").write_text(configs.to_json(config))
    (folder / "tasks.json").write_text(json.dumps(SPECS))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records) + '{"step": 9, "half'
    )
    if results:
        (folder / "eval.json").write_text(json.dumps(results))
    return str(folder)


def lines(figure):
    return {a.get_title(): [line.get_xydata().tolist() for line in a.lines] for a in figure.axes}


RECORDS = [
    {"step": 1, "train/all/loss": 3.0, "train/depth/loss": 2.0, "train/all/grad_norm": 7.0},
    {"step": 2, "train/all/loss": None, "train/depth/loss": -1.0},
    {"step": 2, "val/semseg/mIoU": 0.5, "val/semseg/pixAcc": 0.9, "val/all/delta_m": 12.0},
    {"step": 4, "val/semseg/mIoU": 0.6, "val/depth/rmse": 1.5, "train/all/loss": 2.0},
]


def test_curves_hold_what_was_logged(drawn, tmp_path):
    workdir = write_run(tmp_path, RECORDS, {"constant/semseg/mIoU": 0.1, "constant/depth/rmse": None})
    figures.curves(workdir)
    assert lines(drawn["losses.png"]) == {
        "train/all/loss": [[[1, 3], [4, 2]]],
        "train/depth/loss": [[[1, 2], [2, -1]]],
    }
    assert [a.get_yscale() for a in drawn["losses.png"].axes] == ["log", "linear"]
    shown = lines(drawn["metrics.png"])
    assert shown.pop("val/semseg/mIoU") == [[[2, 0.5], [4, 0.6]], [[0, 0.1], [1, 0.1]]]
    assert shown == {"val/depth/rmse": [[[4, 1.5]]], "val/Delta_m over a constant, %": [[[2, 12]]]}


def test_curves_are_files_in_the_working_directory_before_it_is_evaluated(tmp_path):
    figures.curves(write_run(tmp_path, RECORDS[:1]))
    for name in ("losses.png", "metrics.png"):
        with Image.open(tmp_path / "figures" / name) as picture:
            assert picture.width > 300


def test_a_run_that_has_logged_nothing_is_named(tmp_path):
    workdir = write_run(tmp_path, [])
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=f"{workdir} has no metrics.jsonl"):
        figures.curves(workdir)
