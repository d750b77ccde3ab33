import json

from mtl_jax.logs import Log, Progress


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_forgets_what_comes_again(tmp_path):
    log = Log(str(tmp_path))
    for step in (10, 20, 30):
        log.write(step, {"train/all/loss": step / 10})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/a')  # killed in the middle of a write
    log = Log(str(tmp_path), start=20)
    log.write(30, {"train/all/loss": 7.0})
    log.close()
    assert [(x["step"], x["train/all/loss"]) for x in lines(tmp_path)] == [(10, 1.0), (20, 2.0), (30, 7.0)]


def test_values_that_are_not_finite_stay_json(tmp_path):
    log = Log(str(tmp_path))
    log.write(1, {"test/semseg/mIoU": float("nan"), "test/depth/rmse": 1.5})
    log.close()
    assert lines(tmp_path) == [{"step": 1, "test/semseg/mIoU": None, "test/depth/rmse": 1.5}]


def test_progress_reports_means_of_its_window(tmp_path, capsys):
    log = Log(str(tmp_path))
    progress = Progress(log, start=0, steps=8, batch_size=4)
    for step, loss in enumerate([1.0, 3.0, 10.0, 20.0], 1):
        progress.add(step, {"semseg/loss": loss})
        if step % 2 == 0:
            progress.report(step)
    log.close()
    assert [x["train/semseg/loss"] for x in lines(tmp_path)] == [2.0, 15.0]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "step 4/8" in last and "semseg 15" in last and "images/s" in last and "ETA" in last
