"""A run from its first step to its report, on a few tiny scenes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import experiment, main, train
from mtl_jax import tasks as tasks_lib
from mtl_jax.errors import UserError

ALL_TASKS = ("semseg", "depth", "normals", "edges", "saliency", "parts", "albedo", "disparity",
             "classification", "reshading")  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


def tiny(data_dir, names=("semseg", "depth"), **changes):
    """A config of seconds: 16 scenes of 32x48, an encoder of a few channels."""
    c = configs.default()
    c.data.options = {"size": (32, 48), "train_examples": 16, "test_examples": 6, "data_dir": data_dir}
    c.data.size = (32, 48)
    c.data.batch_size = c.data.eval_batch_size = 4
    c.tasks = {name: {} for name in names}
    c.model = {"name": "deeplab", "depth": 26, "width": 0.125, "decoder_width": 16}
    c.train.update(steps=6, log_every=2, eval_every=3, checkpoint_every=2)
    c.figures.examples = 2
    c.lock()
    for key, value in changes.items():
        configs.override(c, key.replace("__", "."), value)
    return c


def restored(workdir):
    return experiment.load(str(workdir)).variables


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_all_tasks_from_config_to_pictures(tmp_path, data_dir):
    main.run(tiny(data_dir, ALL_TASKS, ema_decay=0.9), str(tmp_path))
    report = json.loads((tmp_path / "eval.json").read_text())
    for name, task in experiment.read_tasks(str(tmp_path)).items():
        for split in ("test", "constant", "best"):
            assert np.isfinite(report[f"{split}/{name}/{task.headline}"])
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in logged] == [2, 3, 4, 6, 6]
    assert {f"train/{name}/loss" for name in ALL_TASKS} <= set(logged[0])
    assert report["model/cost/params"] > 1e4 and report["model/cost/gflops"] > 0
    assert sorted(os.listdir(tmp_path / "figures")) == ["losses.png", "metrics.png", "panels.png"]


def test_training_learns_and_an_evaluation_repeats_its_results(tmp_path, data_dir):
    short = {"train__steps": 60, "train__eval_every": 60, "optimizer__learning_rate": 0.01}
    c = tiny(data_dir, ("depth",), **short, data__eval="train", model__norm="group")
    main.run(c, str(tmp_path))
    report = experiment.read_results(str(tmp_path))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [x["train/depth/loss"] for x in logged if "train/depth/loss" in x]
    assert losses[-1] < 0.6 * losses[0]
    assert report["train/depth/rmse"] < 0.9 * report["constant/depth/rmse"]
    configs.override(c, "job", "evaluate")
    configs.override(c, "data.eval_batch_size", 3)
    main.run(c, str(tmp_path))
    again = experiment.read_results(str(tmp_path))["train/depth/rmse"]
    assert again == pytest.approx(report["train/depth/rmse"], rel=1e-5)


def command(config_file, workdir, *overrides):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    arguments = [sys.executable, "-m", "mtl_jax.main", f"--config={config_file}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*arguments, *overrides], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, data_dir):
    c = tiny(data_dir, train__steps=12, train__log_every=1, train__checkpoint_every=3)
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        "from mtl_jax import config as configs\n\n"
        f"TEXT = {configs.to_json(c)!r}\n\n\n"
        "def get_config(arg=None):\n    return configs.from_json(TEXT)\n"
    )
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, config_file):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    main.run(configs.load(str(config_file)), str(workdir))
    return workdir


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, config_file, uninterrupted, number):
    run = command(config_file, tmp_path)
    for line in run.stdout:
        if line.startswith("step 8/12"):  # saving step 6 has waited for the checkpoint of step 3
            run.send_signal(number)
            break
    rest, _ = run.communicate(timeout=120)
    assert not (tmp_path / "eval.json").exists()
    if number == signal.SIGTERM:
        assert run.returncode == 143
        assert "the same command resumes" in rest
    run = command(config_file, tmp_path)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "resuming" in output
    assert_same_bits(restored(tmp_path), restored(uninterrupted))
    ours, theirs = (experiment.read_results(str(w)) for w in (tmp_path, uninterrupted))
    assert {k: v for k, v in ours.items() if k != "train/all/seconds"} == {
        k: v for k, v in theirs.items() if k != "train/all/seconds"
    }

    def steps(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [(x["step"], x.get("train/all/loss"), x.get("test/depth/rmse")) for x in lines]

    assert steps(tmp_path) == steps(uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, data_dir):
    c = tiny(data_dir, train__checkpoint_every=1, optimizer__learning_rate=1e30, train__steps=50)
    with pytest.raises(UserError, match=r"the loss of task '\w+' is not finite at step [2-9]; .* is kept"):
        main.run(c, str(tmp_path))
    jax.tree.map(lambda x: np.testing.assert_(np.isfinite(x).all()), restored(tmp_path)["params"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "scene"}, "unknown name 'scene' in data/datasets: choose one of .*scenes"),
        ({"model__name": "deplab"}, "unknown name 'deplab' in models: choose one of .*deeplab"),
        ({"model__widht": 2}, "no option 'widht'.*width"),
        ({"method__name": "superwised"}, "unknown name 'superwised' in methods: .*supervised"),
        ({"method__weights": {"normals": 1.0}}, "weights names 'normals'"),
        ({"tasks": {"detph": {}}}, "no label for task 'detph': it has .*depth"),
        ({"tasks": {"depth": {"kind": "dpeth"}}}, "unknown name 'dpeth' in tasks"),
        ({"job": "trian"}, "job is 'trian'"),
        ({"data__eval": "val"}, "config.data.eval is 'val'.*test"),
        ({"train__steps": 0}, "config.train.steps must be a positive integer, not 0"),
        ({"data__labels__scheme": "none"}, "config.data.labels.scheme is 'none': choose one of fully"),
        (
            {"data__labels__scheme": "onelabel", "tasks": {"depth": {}}},
            "'onelabel' needs at least 2 tasks, not 1",
        ),
        ({"data__labels__unlabelled": {"depth": 1.0}}, "no training image is given a label of task 'depth'"),
        ({"data__labels__file": "no.npy"}, "cannot read no.npy"),
        ({"data__teachers": {"normals": "."}}, "teachers names task 'normals': the tasks are depth, semseg"),
        ({"method": {"name": "jtr", "architecture": "vgg"}}, "architecture is 'vgg': choose one of segnet"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_configs_end_at_once_and_leave_nothing(tmp_path, data_dir, changes, message):
    with pytest.raises(UserError, match=message):
        main.run(tiny(data_dir, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


PARTIAL = {
    "data__augment__zoom": (1.0, 1.5),
    "data__augment__rand_augment": 2,
    "data__labels__scheme": "onelabel",
    "model": {"name": "segnet", "width": 0.0625},
}


def test_a_table_of_another_length_is_refused(tmp_path, data_dir):
    np.save(tmp_path / "table.npy", np.ones((15, 2)))
    c = tiny(data_dir, **PARTIAL, data__labels__file=str(tmp_path / "table.npy"))
    with pytest.raises(UserError, match=r"table.npy holds 15 x 2 values, but .* ask for 16 x 2"):
        main.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["jtr", "mtpsl"])
def test_partial_labels_resume_bit_for_bit(tmp_path, data_dir, capsys, method):
    """From the checkpoint before the last, with the labels, their moments and all views since."""
    options = {"name": method, "width": 0.0625} | ({"unlabelled": True} if method == "jtr" else {})
    c = tiny(data_dir, **PARTIAL, method=options, data__labels__unlabelled={"all": 0.25})
    main.run(c, str(tmp_path))
    printed = capsys.readouterr().out
    assert "images by labels: 4 with 0, 12 with 1, 0 with 2" in printed
    assert ("4 images without any label are left out" in printed) == (method == "mtpsl")
    assert np.load(tmp_path / "labels.npy").sum(1).tolist().count(0) == 4
    whole = restored(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "latest" / "6")
    (tmp_path / "eval.json").unlink()
    main.run(c, str(tmp_path))
    assert "at step 4 of 6" in capsys.readouterr().out
    assert_same_bits(restored(tmp_path), whole)
    assert np.isfinite(experiment.read_results(str(tmp_path))["test/all/delta_m"])
    table = np.load(tmp_path / "labels.npy")
    np.save(tmp_path / "labels.npy", 1 - table)
    with pytest.raises(UserError, match="labels.npy is not the file that .*labels.json describes"):
        main.run(c, str(tmp_path))


def test_a_student_learns_from_its_teachers(tmp_path, data_dir):
    """Every image has every label then; a teacher's are those of its last step."""
    short = {**PARTIAL, "data__labels__tasks": ("depth", "semseg"), "train__steps": 2}
    main.run(tiny(data_dir, **short), str(tmp_path / "teacher"))
    teachers = {name: str(tmp_path / "teacher") for name in ("depth", "semseg")}
    c = tiny(data_dir, **short, data__teachers=teachers)
    dataset = experiment.build_dataset(c)
    tasks = tasks_lib.build(c.tasks, dataset.labels)
    method = experiment.build_method(c, experiment.build_model(c, tasks), tasks)
    os.makedirs(tmp_path / "student")
    split, words = train.with_given_labels(
        dataset.split("train", tuple(tasks)), c, str(tmp_path / "student"), method
    )
    assert words.startswith("labels of 16 images: depth 8 (50.0%), semseg 8 (50.0%)")
    assert all(given.all() for given in split.given.values()) and len(split) == 16
    main.run(c, str(tmp_path / "student"))
    assert (tmp_path / "student" / "eval.json").exists()


def test_a_workdir_of_another_config_is_refused_and_untouched(tmp_path, uninterrupted, config_file):
    before = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}
    c = configs.load(str(config_file), {"optimizer.learning_rate": 0.5, "train.log_every": 7})
    with pytest.raises(
        UserError,
        match=r"another config; these keys differ: config.optimizer.learning_rate \(0.01 there, 0.5 now\)",
    ):
        main.run(c, str(uninterrupted))
    assert {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()} == before


def test_commands_print_one_sentence_and_exit_with_2(tmp_path, config_file):
    run = command(config_file, tmp_path, "--config.optimizer.learning_rat=0.1")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 2
    key = "config.optimizer.learning_rat"
    assert output.strip().splitlines()[-1] == f"error: unknown config key {key}: did you mean {key}e?"


DEVICES = """
import jax, json, numpy as np, sys
from mtl_jax.models.backbones import resnet
from mtl_jax import config as configs, experiment, tasks, train
from mtl_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated
from jax.sharding import AxisType
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
resnet.BLOCKS[26] = (1, 1, 1, 1)
c = configs.load(sys.argv[1], {"data.batch_size": 8, **json.loads(sys.argv[2])})
data = experiment.build_dataset(c)
known = tasks.build(c.tasks, data.labels)
method = experiment.build_method(c, experiment.build_model(c, known), known)
results = []
init = lambda key: train.init_state(method, c, key, experiment.example_batch(c, known, method.views))
start = jax.device_get(jax.jit(init)(jax.random.key(0)))
for n in (1, 8):
    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
    whole = replicated(mesh)
    split = batch_sharding(mesh)
    state = jax.device_put(start, whole)
    step = jax.jit(train.make_step(method, c), in_shardings=(whole, split), out_shardings=whole)
    batches = pipeline.train_batches(
        data.split("train", tuple(known)), known, c.data, 0, views=method.views
    )
    batches = pipeline.to_device(batches, split)
    for _ in range(2 // len(method.turns)):  # rounding grows tenfold with every update
        state, metrics = step(state, next(batches))
        if method.views:  # and more in networks that normalise maps of a few pixels: compare the losses
            state = {key: value for key, value in metrics.items() if key != "all/grad_norm"}
            break
    else:
        assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == n
        state = (state.params, state.state)
    results.append(jax.device_get(state))
    batches.close()
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5), *results)
try:
    check_batch_size("config.data.batch_size", 12, make_mesh())
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"name": "astmt", "discriminator_weight": 0.1, "steps": 6}, "model.decoder_se": "task"},
        {"method": {"name": "supervised", "weighting": {"name": "mgda", "variant": "upper_bound"}}},
        {
            "method": {"name": "jtr", "width": 0.0625, "unlabelled": True},
            "data.augment.zoom": [1.0, 1.5],
            "data.augment.rand_augment": 2,
        },
        {"method": {"name": "ccr", "width": 8, "k": 8, "gamma": 0.1}},
    ],
    ids=["supervised", "astmt", "mgda", "jtr", "ccr"],
)
def test_eight_devices_equal_one_and_batch_statistics_are_global(config_file, changes):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags}
    run = subprocess.run(
        [sys.executable, "-c", DEVICES, str(config_file), json.dumps(changes)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    error = run.stdout.strip().splitlines()[-1]
    assert error == "config.data.batch_size=12 does not divide over 8 devices: use 8 or 16"
