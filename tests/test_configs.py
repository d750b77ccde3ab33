"""Every config file is complete, and every row of its sweep can be built."""

import pathlib

import pytest

from mtl_jax import config as configs
from mtl_jax import names, sweep
from mtl_jax import tasks as tasks_lib
from mtl_jax.errors import UserError
from mtl_jax.experiment import build_dataset, build_method, build_model

FILES = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))


def parts(config):
    """Builds the tasks, model and method of a config (the dataset may not be on this machine)."""
    configs.check(config)
    if config.weights.source == "run":  # of a row before, which has not run
        config.weights = configs.default().weights
    names.resolve("data.datasets", config.data.name)
    known = {  # where the labels are known only with the files
        "bsds500": {"edges": {"annotators": 9}},
        "nyud_raw": {"normals": {}},
        "folder": config.data.options.get("labels", {}),
    }
    labels = known.get(config.data.name) or build_dataset(config).labels
    plain = {
        name: {k: v for k, v in spec.items() if k in ("kind", "num_classes", "annotators", "max_distance")}
        for name, spec in labels.items()
    }
    tasks = tasks_lib.build(config.tasks, plain)
    return build_method(config, build_model(config, tasks), tasks)


@pytest.mark.parametrize(
    "spec",
    [
        *FILES,
        "configs/scenes.py:demo",
        "configs/nyu.py:mini",
        "configs/bsds500.py:mini",
        "configs/astmt.py:dataset=scenes,tasks=depth",
        "configs/jtr.py:method=jtr,joint",
        "configs/jtr.py:dataset=taskonomy,backbone=resnet50,method=mtpsl",
        "configs/ccr.py:dataset=pascal,host=invpt,sharing=none",
        "configs/ccr.py:dataset=rooms,host=mti_net",
        "configs/ccr.py:tasks=depth",
    ],
)
def test_config_is_complete(spec):
    parts(configs.load(spec))


TABLES = [
    "configs/scenes.py",
    "configs/astmt.py:table=2",
    *(f"configs/astmt.py:table={name}" for name in configs.load_file("configs/astmt.py")[0].TABLES),
]
PARTIAL = [f"configs/jtr.py:table={name}" for name in configs.load_file("configs/jtr.py")[0].TABLES]

CONTRAST = [
    *(f"configs/ccr.py:table={name}" for name in configs.load_file("configs/ccr.py")[0].TABLES),
    "configs/ccr.py:table=1,dataset=pascal",
    *(f"configs/ccr.py:table={table},dataset=scenes" for table in "123"),
    "configs/ccr.py:table=k,dataset=scenes",
    "configs/ccr.py:table=1,dataset=rooms",
]
COMPOSITE = [
    f"configs/compl.py:table={name}/{percents[0]}"
    for name, (_, _, _, percents, _) in configs.load_file("configs/compl.py")[0].TABLES.items()
]


@pytest.mark.parametrize("scale", ["full", "mini"])
@pytest.mark.parametrize("spec", TABLES + PARTIAL + CONTRAST + COMPOSITE)
def test_rows_of_a_table_are_complete(spec, scale):
    found = sweep.load_sweep(spec)
    for job in sweep.jobs(found, spec, "runs", list(found.rows), 1, scale, {}):
        method = parts(job.config())
        assert set(method.tasks) == {
            task for turn in method.turns for task in ([turn] if turn else method.tasks)
        }


def test_the_papers_drops_follow_from_its_numbers():
    """All rows but those whose printed numbers are known not to give the printed drop."""
    better = {"odsF": 1, "mIoU": 1, "mErr": -1, "rmse_image": -1}
    odd = {("5b/50", "multi-task"), ("6a", "multi-task"), ("7", "+ SE"), ("5a/101", "multi-task")}
    for spec in TABLES[2:]:
        found, table = sweep.load_sweep(spec), spec.partition("=")[2]
        base = found.rows[found.baseline].paper
        for name, row in found.rows.items():
            metrics = [key for key in row.paper if key in base]
            if "all/delta_m" not in row.paper or not metrics or (table, name) in odd:
                continue
            gains = [better[key.split("/")[1]] * (row.paper[key] / base[key] - 1) for key in metrics]
            if table == "figure9" and name in ("R-101 multi-task", "MobileNet + SE"):  # as computed by hand
                assert (
                    abs(row.paper["all/delta_m"] + {"R-101 multi-task": 4.50, "MobileNet + SE": 8.16}[name])
                    < 0.01
                )
            slack = 0.9 if "depth/rmse_image" in base or "albedo/rmse_image" in base else 0.1
            assert abs(100 * sum(gains) / len(gains) - row.paper["all/delta_m"]) < slack, (table, name)


def test_the_papers_gains_on_partial_labels_follow_from_its_numbers():
    """Rounded as printed; tables of gains alone, and of costs, have nothing to compute from."""
    better = {"mIoU": 1, "absErr": -1, "mErr": -1}
    checked = 0
    for spec in PARTIAL:
        found = sweep.load_sweep(spec)
        base = found.rows[found.baseline].paper
        for name, row in found.rows.items():
            metrics = [key for key in row.paper if key.split("/")[1] in better]
            if "all/delta_m" not in row.paper or len(metrics) < 2 or spec.endswith("rooms/onelabel"):
                continue
            gains = [better[key.split("/")[1]] * (row.paper[key] / base[key] - 1) for key in metrics]
            mean = 100 * sum(gains) / len(gains)
            assert abs(mean - row.paper["all/delta_m"]) < 0.006, (spec, name)
            checked += 1
    assert checked > 60


def test_the_papers_gains_of_contrast_follow_from_its_numbers():
    """But for three rows, whose printed gains are others'; and table 3's rows are table 1's."""
    found = sweep.load_sweep("configs/ccr.py:table=1")
    base = found.rows[found.baseline].paper
    better = {"semseg/mIoU": 1, "depth/rmse": -1, "normals/mErr": -1}
    gains = {
        name: 100 * sum(s * (row.paper[key] / base[key] - 1) for key, s in better.items()) / 3
        for name, row in found.rows.items()
    }
    odd = {"CCR-Basic": -0.508, "+ Proj": 0.213, "+ Proj + SS": 1.430}
    for name, gain in gains.items():
        printed = found.rows[name].paper.get("all/delta_m", 0.0)
        assert abs(gain - odd.get(name, printed)) < 0.02, name
        assert (abs(gain - printed) > 0.2) == (name in odd), name
    third = sweep.load_sweep("configs/ccr.py:table=3").rows
    full = found.rows["+ Proj + SS + CTS"].paper
    assert all(third["shared by sources"].paper[key] == full[key] for key in better)
    assert sweep.load_sweep("configs/ccr.py:table=1,dataset=pascal").rows["MT Baseline"].paper == {}


def test_thin_networks_have_fewer_anchors_and_pixels_that_are_alike():
    """As many for their maps as the paper has for its own; and the weight rises over what is trained."""
    full, thin = (configs.load(f"configs/ccr.py:dataset={name}").method for name in ("nyud", "scenes"))
    assert (full.k, full.gamma, thin.k, thin.gamma) == (128, 0.01, 16, 0.05)
    short = configs.load("configs/ccr.py:dataset=scenes", {"train.steps": 600})
    assert short.method.ramp_steps == 30 and short.optimizer.warmup_steps == 6


def test_composite_learning_has_the_papers_rows_and_stages():
    found = sweep.load_sweep("configs/compl.py:table=1/5").rows
    assert found["Depth + DenseCL"].paper == {"depth/rmse_image": 0.8479}
    assert sweep.load_sweep("configs/compl.py:table=4/100").rows["Depth + Semseg"].paper == {
        "depth/rmse_image": 0.606,
        "semseg/mIoU": pytest.approx(0.3166),
    }
    later = found["MoCo -> Depth + MoCo"]
    assert later.overrides["weights"]["path"] == "{row:MoCo}" and "auxiliary=moco" in later.arg
    before, after = (configs.load(f"configs/compl.py:{found[name].arg}") for name in ("MoCo", "Depth + MoCo"))
    assert (before.method.weights.depth, before.method.weight, before.data.labels.unlabelled.to_dict()) == (
        0.0,
        1.0,
        {},
    )
    assert after.method.weights.depth == 1.0 and "weight" not in after.method
    assert after.data.labels.unlabelled.all == pytest.approx(0.95)
    assert configs.load("configs/compl.py:auxiliary=none").method.name == "supervised"
    for arg, message in (
        ("table=1/7", "table='1/7' is unknown"),
        ("percent=0", "percent=0.0 makes no sense"),
    ):
        with pytest.raises(UserError, match=message):
            (sweep.load_sweep if "table" in arg else configs.load)(f"configs/compl.py:{arg}")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("method=mtl", "method='mtl' is unknown: choose one of supervised, consistency"),
        ("scenario=half", "scenario='half' is unknown: choose one of fully"),
        ("dataset=ade", "dataset='ade' is unknown: choose one of nyu"),
    ],
)
def test_an_unknown_choice_is_named(arg, message):
    with pytest.raises(UserError, match=message):
        configs.load(f"configs/jtr.py:{arg}")


def test_an_unknown_table_is_named():
    with pytest.raises(UserError, match="table='10' is unknown: choose one of 1/onelabel"):
        sweep.load_sweep("configs/jtr.py:table=10")
    with pytest.raises(UserError, match="table='6' is unknown: choose one of 1, 2"):
        sweep.load_sweep("configs/ccr.py:table=6")
    with pytest.raises(UserError, match="host='unet' is unknown: choose one of fpn"):
        configs.load("configs/ccr.py:host=unet")
