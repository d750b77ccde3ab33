"""What a training step costs: against counts by hand, and the laws by which it grows with the tasks."""

import functools
import itertools
import json
import sys
import types

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mtl_jax import config as configs
from mtl_jax import experiment, training_cost
from mtl_jax.models.backbones import segnet
from mtl_jax.training_cost import StepCost

SIZE = 32
SHORT = ((64, 1), (128, 1))  # two stages of a SegNet, of one unit each
NUMBERS = (2, 4, 6)
HALF = "MTPSL with half of the labels"
ONE = "MTPSL with one label"


@pytest.fixture
def short(monkeypatch):
    """SegNets of two stages: quicker to trace."""
    monkeypatch.setattr(segnet, "STAGES", SHORT)


def make_config(width=1.0, method="jtr"):
    config = configs.default()
    config.data.size, config.data.batch_size = (SIZE, SIZE), 1
    config.tasks = {"depth": {}}
    config.model = {"name": "segnet", "width": width}
    config.method = {"name": method, "width": width}
    config.optimizer.name = "adam"
    return config


@functools.cache
def lowered(curve, tasks, pairs=None):
    """The program and its cost; of networks of two stages."""
    config, method = training_cost.synthetic(make_config(), curve, tasks)
    assert pairs is None or method.max_pairs == pairs
    program, state = training_cost.lower(config, method)
    return program, program.cost_analysis()["flops"]


def bend(values):
    return np.diff(values, 2)[0]


def test_jtr_is_a_line_in_the_tasks(short):
    """Three numbers of tasks at the same distance; even a product of two maps would show."""
    flops = [lowered("JTR", k)[1] for k in NUMBERS]
    assert flops[2] > 1.02 * flops[0]
    assert abs(bend(flops)) < 1e-4 * (flops[2] - flops[0])
    first, middle, last = (training_cost.temporary_memory(lowered("JTR", k)[0]) for k in NUMBERS)
    assert last > first
    np.testing.assert_allclose(middle, (first + last) / 2, rtol=0.01)


def test_mtpsl_pays_for_pairs(short):
    """With half of the labels a parabola, with one a line; a pair costs two passes and their gradients."""
    half = [lowered(HALF, k, pairs)[1] for k, pairs in zip(NUMBERS, (1, 4, 9), strict=True)]
    one = [half[0], *(lowered(ONE, k, k - 1)[1] for k in NUMBERS[1:])]
    jtr = [lowered("JTR", k)[1] for k in NUMBERS]
    # By pair, in the same network with as many tasks: 4 - 3 and 9 - 5 more of them.
    more = half[1] - one[1], half[2] - one[2]
    np.testing.assert_allclose(more[1], 4 * more[0], rtol=0.02)
    # 3x3 taps that meet the map, inputs and outputs of the two units: forward pass and two gradients of it,
    # a multiply-add is 2; prediction and label.
    adds = sum(((3 * n - 2) ** 2) * c * d for n, c, d in ((SIZE, 64, 64), (SIZE // 2, 64, 128)))
    np.testing.assert_allclose(more[0], 2 * 3 * 2 * adds, rtol=0.03)
    assert bend(half) > 100 * abs(bend(jtr)) and bend(half) > 100 * abs(bend(one))


@pytest.mark.parametrize("tasks", [2, 3])
def test_scales_and_shifts_belong_to_every_ordered_pair(tasks):
    """8448 numbers: two for each of the 64 * 2 + 128 * 2 + 256 * 3 + 512 * 6 channels of a SegNet's units."""
    config, method = training_cost.synthetic(make_config(), ONE, tasks)
    batch = jax.eval_shape(lambda: experiment.example_batch(config, method.tasks, method.views))
    params = jax.eval_shape(lambda batch: method.init(jax.random.key(0), batch)["params"], batch)
    groups = jax.tree.leaves(method.groups(params))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    film = sum(size for size, group in zip(sizes, groups, strict=True) if group == "film")
    assert film == 8448 * tasks * (tasks - 1)


def test_pairs_of_an_image():
    pairs = training_cost.CURVES[HALF][1]
    assert [pairs(k) for k in range(2, 9)] == [1, 2, 4, 6, 9, 12, 16]
    assert [training_cost.CURVES[ONE][1](k) for k in (2, 7)] == [1, 6]
    config = make_config()
    labels, names = config.data.labels, [f"t{k}" for k in range(7)]
    # 1 to 6 labels, each number as likely as the others, have 6, 10, 12, 12, 10, 6 pairs.
    for scheme, expected in {"onelabel": 6, "randomlabels": 56 / 6, "halflabels": 12, "fully": 0}.items():
        labels.scheme = scheme
        assert training_cost.mean_pairs(config, names) == pytest.approx(expected, abs=0.03)
    labels.scheme, labels.unlabelled.all = "halflabels", 0.25
    assert training_cost.mean_pairs(config, names) == pytest.approx(9, abs=1e-9)
    # A run of some of the table's tasks.
    labels.scheme, labels.unlabelled.all, labels.tasks = "onelabel", 0.0, tuple(names)
    assert training_cost.mean_pairs(config, names[:2]) == pytest.approx(2 / 7, abs=1e-4)


@pytest.mark.parametrize(("pairs", "flops"), [(3.0, 65.0), (3.25, 67.5), (0.5, 40.0), (0.0, 35.0)])
def test_a_mean_number_of_pairs_lies_between_whole_ones(monkeypatch, pairs, flops):
    def lower(config, method):
        return types.SimpleNamespace(cost_analysis=lambda: {"flops": 2 * (35 + 10 * method.max_pairs)}), None

    monkeypatch.setattr(training_cost, "lower", lower)
    config, method = training_cost.synthetic(make_config(), ONE, 4)
    config.data.batch_size = 2
    assert training_cost.flops_for(pairs, config, method) == flops


def test_cost_of_a_step(monkeypatch):
    """FLOPs for one of the images; memory for all of them."""
    program = types.SimpleNamespace(cost_analysis=lambda: {"flops": 600.0})
    params = {"model": {"a": np.zeros((3, 4))}, "method": {"b": np.zeros(5), "c": np.zeros(2)}}
    monkeypatch.setattr(training_cost, "lower", lambda *_: (program, types.SimpleNamespace(params=params)))
    monkeypatch.setattr(training_cost, "temporary_memory", lambda lowered: 70 if lowered is program else 0)
    config, method = training_cost.synthetic(make_config(), "JTR", 2)
    config.data.batch_size = 4
    assert training_cost.step_cost(config, method) == StepCost(12, 7, 150.0, 70)


def made_up(numbers):
    """Costs whose laws are known."""
    laws = {
        "Supervised": lambda k: 10 + k,
        "JTR": lambda k: 100 + 4 * k,
        ONE: lambda k: 20 + 3 * k + 7 * (k - 1),
        HALF: lambda k: 20 + 3 * k + 7 * (k // 2) * (k - k // 2),
    }
    return {
        curve: [StepCost(1, 2, 1e9 * law(k), round(2**30 * law(k) / 8)) for k in numbers]
        for curve, law in laws.items()
    }


def test_laws_by_value():
    numbers = [2, 4, 6, 8]
    laws = training_cost.laws(numbers, made_up(numbers))
    assert laws["JTR"]["flops/per_task"] == pytest.approx(4e9)
    assert laws["JTR"]["memory/per_task"] == pytest.approx(2**29)
    assert laws[ONE]["flops/per_task"] == pytest.approx(10e9)
    for curve in ("Supervised", "JTR", ONE):
        assert laws[curve]["flops/off_line"] < 1e-9 and abs(laws[curve]["flops/quadratic"]) < 1
    # 20 + 3 k + 7 k^2 / 4; the line by least squares through 33, 60, 101, 156 is 20.5 k - 15.
    assert laws[HALF]["flops/quadratic"] == pytest.approx(7e9 / 4)
    assert laws[HALF]["flops/per_task"] == pytest.approx(20.5e9)
    assert laws[HALF]["flops/off_line"] == pytest.approx(7 / 33)
    assert laws["MTPSL"] == {
        "flops/per_task": pytest.approx(3e9),
        "flops/per_pair": pytest.approx(7e9),
        "flops/off": pytest.approx(0, abs=1e-9),
    }
    spoilt = made_up(numbers)
    spoilt["JTR"][1] = StepCost(1, 2, 120e9, 1)  # 116 by the line
    # Residuals of a bump of 4 at the second of four places: 4 * (-0.4, 0.7, -0.2, -0.1).
    assert training_cost.laws(numbers, spoilt)["JTR"]["flops/off_line"] == pytest.approx(2.8 / 120)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training_cost", *arguments])
    training_cost.main()


def cells(text):
    lines = [
        [c.strip(" *") for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    return lines[0], {line[0]: line[1:] for line in lines[2:]}


FILE = """
from mtl_jax import config as configs
from mtl_jax.sweep import Row, Sweep

def get_config(arg=None):
    config = configs.default()
    config.data.size, config.data.batch_size = (32, 32), 2
    config.data.labels.scheme = "onelabel"
    config.tasks = {"depth": {}, "normals": {}}
    config.model = {"name": "segnet", "width": 0.0625}
    config.optimizer.name = "adam"
    return config

def sweep(arg=None):
    def row(name, hours, gib, **options):
        method = {"name": name, "width": 0.0625, **options}
        return Row({"method": method}, paper={"all/hours": hours, "all/gib": gib})

    return Sweep(
        rows={
            "MTPSL": row("mtpsl", 8.0, 16.0),
            "JTR": row("jtr", 10.0, 12.0),
            "plain": Row(),
            "quoted": Row(runs={}),
            "wrong": row("mtpsl", 1.0, 1.0, height=3),
        },
        baseline="MTPSL",
    )
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


def test_table_of_a_sweep(short, tmp_path, monkeypatch, spec, capsys):
    memory = iter((4 * 2**30, 3 * 2**30))
    monkeypatch.setattr(training_cost, "temporary_memory", lambda lowered: next(memory))
    run(monkeypatch, f"--config={spec}", f"--out={tmp_path}/out", "--rows=MTPSL,JTR")
    text = capsys.readouterr().out
    header, rows = cells(text)
    assert text.endswith((tmp_path / "out" / "table.md").read_text())
    assert header == [
        *("row", "params [M]", "of the method [M]", "FLOPs [G]", "memory [GiB]"),
        *("paper: time [h]", "paper: memory [GiB]", "FLOPs / MTPSL", "memory / MTPSL"),
        *("paper: time / MTPSL", "paper: memory / MTPSL"),
    ]
    mtpsl, jtr = ([float(c) for c in rows[row]] for row in ("MTPSL", "JTR"))
    assert mtpsl[3:] == [4, 8, 16, 1, 1, 1, 1]
    assert jtr[3:6] + jtr[7:] == [3, 10, 12, 0.75, 1.25, 0.75]
    assert jtr[6] == pytest.approx(jtr[2] / mtpsl[2], rel=0.002)

    def unit(inputs, outputs):  # 3x3, bias, scale and shift
        return (9 * inputs + 3) * outputs

    def head(outputs):
        return (9 * 4 + 1) * 4 + (4 + 1) * outputs

    decoder_units = unit(8, 4) + unit(4, 4)
    network = unit(3, 4) + unit(4, 8) + decoder_units + head(1) + head(3)
    coder = unit(4, 4) + unit(4, 8) + decoder_units + head(4)
    mapping = unit(1, 4) + unit(3, 4) + unit(4, 4) + unit(4, 8) + 2 * 2 * (4 + 8)
    assert mtpsl[:2] == [network / 1e6, mapping / 1e6] and jtr[:2] == [network / 1e6, coder / 1e6]


def test_what_is_wrong_with_a_row_is_named(tmp_path, monkeypatch, spec, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"--config={spec}", f"--out={tmp_path}/out", "--rows=wrong")
    assert stop.value.code == 2
    assert "row 'wrong': methods.mtpsl has no option 'height'" in capsys.readouterr().err


def test_growth_is_written_and_drawn(tmp_path, monkeypatch, spec, capsys):
    numbers = [2, 4, 8]
    costs = made_up(numbers)
    asked = []

    def step_cost(config, method):
        asked.append((config.method.name, len(method.tasks), getattr(method, "max_pairs", None)))
        return list(itertools.chain(*costs.values()))[len(asked) - 1]

    monkeypatch.setattr(training_cost, "step_cost", step_cost)
    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (saved.append(self), savefig(self, path)))
    method = '--config.method={"name": "jtr", "width": 0.0625}'
    run(monkeypatch, f"--config={spec}", f"--out={tmp_path}/out", "--tasks=8,4,2,4", method)
    assert asked == [
        *(("supervised", k, None) for k in numbers),
        *(("jtr", k, None) for k in numbers),
        *(("mtpsl", k, k - 1) for k in numbers),
        *(("mtpsl", k, k * k // 4) for k in numbers),
    ]
    header, rows = cells(capsys.readouterr().out)
    assert header[:3] == ["tasks", "Supervised: FLOPs [G]", "JTR: FLOPs [G]"]
    assert list(rows) == ["2", "4", "8"]
    assert [float(c) for c in rows["4"]] == [14, 116, 53, 60, 1.75, 14.5, 6.62, 7.5]
    content = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert content["tasks"] == numbers and content["batch_size"] == 2
    assert content["costs"]["JTR"][1] == {"network": 1, "own": 2, "flops": 116e9, "memory": 14.5 * 2**30}
    assert content["laws"] == training_cost.laws(numbers, costs)
    with Image.open(tmp_path / "out" / "growth.png") as picture:
        assert picture.width > 1000 and np.asarray(picture).std() > 10
    flops, memory = saved[0].axes
    assert flops.get_ylabel() == "FLOPs of one image [G]"
    assert memory.get_ylabel() == "memory of a batch of 2 [GiB]"
    for axes, key, unit in ((flops, "flops", 1e9), (memory, "memory", 2**30)):
        for curve, dots, parabola in zip(costs, axes.lines[::2], axes.lines[1::2], strict=True):
            expected = [getattr(c, key) / unit for c in costs[curve]]
            assert dots.get_label() == curve
            np.testing.assert_allclose(dots.get_xydata().T, [numbers, expected])
            ends = parabola.get_ydata()[[0, -1]]
            np.testing.assert_allclose(ends, [expected[0], expected[-1]])  # three points are on a parabola


@pytest.mark.parametrize("numbers", ["2,3", "1,2,3", "two,3,4", "2,2,3"])
def test_too_few_numbers_of_tasks(tmp_path, monkeypatch, spec, capsys, numbers):
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--config={spec}", f"--out={tmp_path}/out", f"--tasks={numbers}")
    assert f"--tasks is {numbers!r}: give three or more numbers" in capsys.readouterr().err


def test_growth_needs_helping_networks(tmp_path, monkeypatch, spec, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--config={spec}", f"--out={tmp_path}/out", "--tasks=2,3,4")
    assert "config.method is 'supervised': give a config whose method is jtr or mtpsl" in (
        capsys.readouterr().err
    )
