"""CompL: a dense task trained together with a self-supervised one (Kanakis et al., WACV 2023).

    python -m mtl_jax.main --config=configs/compl.py:dataset=nyud,percent=5,auxiliary=densecl \
        --workdir=runs/compl --config.data.options.data_dir=NYUD_MT

Arguments:
    dataset     nyud (depth) | nyud2 (depth and semseg) | voc (semseg) | bsds (edges), the paper's; scenes
                (semseg), embedded and small; rooms (depth), NYU-v2 laid out as configs/nyu.py says
    percent     of the training images that have a label
    auxiliary   none | rotation | moco | densecl
    same        auxiliary images are those with a label, instead of all
    weight      of the auxiliary loss; 0 for the paper's
    depth       26 | 50 | 101, of the ResNet
    alone       the auxiliary task trains alone, as a stage before (tasks have weight 0)

The tables of the paper, each row a config argument, with the paper's numbers beside ours:

    python -m mtl_jax.sweep --config=configs/compl.py:table=1/5 --workdir=runs/compl_1_5

    table       1/5 ... 1/100 (depth) | 2/1 ... 2/100 (semseg, VOC) | 3/10 ... 3/100 (edges) | 4/5 ... 4/100
                (two tasks) | s5/5 ... s5/100, s6/1 ... s6/100 (same images) | s9/10, s9/50 (weights);
                scenes/P, rooms/P: the rows of tables 2 and 1, thin (with --scale=mini two cores train one in
                minutes)

Networks of the paper start from ImageNet: --config.weights.source=gn --config.weights.path=FILE. Rows such as
"MoCo -> Depth" start from row "MoCo" here: the same network, trained by the auxiliary task alone on the
images of the dataset, where the paper's encoders saw ImageNet. Tables s7 and s8 are the networks of table 2
on other data (BDD100K, COCO), as they are:

    python -m mtl_jax.main --config=configs/compl.py:dataset=voc --workdir=runs/2/Semseg/seed0 \
        --config.job=evaluate --config.data.name=bdd100k --config.data.eval=val \
        --config.data.options="{'data_dir': 'bdd100k', 'classes': 'voc'}"
"""

import dataclasses
import os

from mtl_jax import config as configs
from mtl_jax.errors import UserError
from mtl_jax.sweep import Row, Sweep

DEPTH = {"depth": {"headline": "rmse_image"}}
SEMSEG = {"semseg": {}}
EDGES = {"edges": {"benchmark": True, "positive_from": 3, "ignore_doubtful": False}}


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset as the paper uses it.

    Attributes:
      auxiliary: options of the method that follow from the size of the images.
      weights: of the tasks; the paper names none for edges, whose loss is a twentieth of a plain one.
    """

    name: str
    options: dict
    tasks: dict
    steps: int
    size: tuple
    learning_rate: float
    auxiliary: dict
    train: str = "train"
    eval: str = "val"
    scale: tuple = (0.5, 2.0)
    weights: dict = dataclasses.field(default_factory=dict)
    thin: bool = False


HALF_AGAIN = {"canvas": (637, 840), "window": (425, 560), "shift": 8, "grid": 8}
SMALL = {"canvas": (96, 144), "window": (64, 96), "shift": 2, "grid": 8, "momentum": 0.99}
NYUD = Data("nyud", {"data_dir": "NYUD_MT"}, DEPTH, 20_000, (425, 560), 0.005, HALF_AGAIN)
DATASETS = {
    "nyud": NYUD,
    "nyud2": dataclasses.replace(NYUD, tasks=DEPTH | SEMSEG),
    "voc": Data(
        "voc2012",
        {"data_dir": "PASCAL/VOCdevkit/VOC2012", "sbd_dir": "PASCAL/benchmark_RELEASE/dataset"},
        SEMSEG,
        80_000,
        (512, 512),
        0.001,
        {"canvas": (512, 512), "window": (384, 384), "shift": 32, "grid": 32},
        train="trainaug",
    ),
    "bsds": Data(
        "bsds500",
        {"data_dir": "BSDS500"},
        EDGES,
        10_000,
        (481, 481),
        0.005,
        {"canvas": (481, 481), "window": (320, 320), "shift": 4, "grid": 32},
        train="trainval",
        eval="test",
        weights={"edges": 50.0},
    ),
    "scenes": Data(
        "scenes", {}, SEMSEG, 20_000, (64, 96), 0.01, SMALL, eval="test", scale=(0.75, 1.5), thin=True
    ),
    "rooms": Data("folder", {}, DEPTH, 20_000, (64, 96), 0.01, SMALL, eval="test", thin=True),
}
AUXILIARY = ("none", "rotation", "moco", "densecl")


def get_config(arg=None):
    args = configs.parse_arg(
        arg,
        dataset="nyud",
        percent=100.0,
        auxiliary="densecl",
        same=False,
        weight=0.0,
        depth=26,
        alone=False,
    )
    for key, known in (("dataset", DATASETS), ("auxiliary", AUXILIARY)):
        if args[key] not in known:
            raise UserError(f"{key}={args[key]!r} is unknown: choose one of {', '.join(known)}")
    if not 0 < args.percent <= 100:
        raise UserError(f"percent={args.percent} makes no sense: give a share of the images, up to 100")
    data = DATASETS[args.dataset]
    config = configs.default()
    if args.dataset == "rooms":
        file = os.path.join(os.path.dirname(__file__), "nyu.py:tasks=depth,mini")
        config.data = configs.load(file).data
        config.data.augment.color = 0.0
        config.data.augment.scale = (0.4, 0.8)  # the crop is that much smaller than the photographs
    else:
        config.data.name, config.data.options = data.name, data.options
        config.data.augment.scale = data.scale
    config.data.train, config.data.eval = data.train, data.eval
    config.data.size = data.size
    config.data.batch_size = config.data.eval_batch_size = 8
    if args.percent < 100:
        config.data.labels.unlabelled = {"all": 1 - args.percent / 100}
    config.tasks = data.tasks
    config.model = {
        "name": "deeplab",
        "depth": args.depth,
        "norm": "group",
        "stride_in_1x1": True,
    }
    if data.thin:
        config.model.update(width=0.25, decoder_width=64)
    weights = {name: 0.0 if args.alone else data.weights.get(name, 1.0) for name in data.tasks}
    config.method = {"name": "supervised", "weights": weights}
    if args.auxiliary != "none":
        config.method = {
            "name": "compl",
            "weights": weights,
            "auxiliary": args.auxiliary,
            "same_images": args.same,
            **data.auxiliary,
            **({"weight": args.weight} if args.weight else {"weight": 1.0} if args.alone else {}),
        }
    config.optimizer.learning_rate = data.learning_rate
    config.optimizer.decay = "all"
    config.train.steps = data.steps
    config.train.eval_every = config.train.checkpoint_every = max(500, data.steps // 20)
    return config


# What the paper reports, by percentage of the labels.
FEW = (5, 10, 20, 50, 100)
SEVEN = (1, 2, *FEW)
TABLES = {  # dataset, the target's name, its metric and unit, percentages, rows
    "1": (
        "nyud",
        "Depth",
        (("depth/rmse_image", 1.0),),
        FEW,
        {
            "Depth": (0.8871, 0.8120, 0.7471, 0.6655, 0.6223),
            "Rot -> Depth": (1.0830, 1.0120, 0.9114, 0.8322, 0.7822),
            "MoCo -> Depth": (0.8758, 0.7708, 0.7113, 0.6311, 0.5890),
            "DenseCL -> Depth": (0.8736, 0.7726, 0.7152, 0.6321, 0.5982),
            "Depth + Rot": (0.8762, 0.8071, 0.7298, 0.6460, 0.6107),
            "Depth + MoCo": (0.8501, 0.7955, 0.7206, 0.6434, 0.6000),
            "Depth + DenseCL": (0.8479, 0.7866, 0.7131, 0.6420, 0.5990),
            "MoCo -> Depth + MoCo": (0.8614, 0.7732, 0.7008, 0.6220, 0.5773),
            "DenseCL -> Depth + DenseCL": (0.8468, 0.7641, 0.6989, 0.6157, 0.5690),
        },
    ),
    "2": (
        "voc",
        "Semseg",
        (("semseg/mIoU", 0.01),),
        SEVEN,
        {
            "Semseg": (30.82, 37.66, 49.95, 55.17, 61.30, 67.38, 70.42),
            "Rot -> Semseg": (10.35, 12.43, 18.29, 24.71, 29.21, 35.43, 39.46),
            "MoCo -> Semseg": (31.55, 37.55, 48.60, 53.27, 58.74, 64.04, 68.09),
            "DenseCL -> Semseg": (34.89, 39.72, 50.96, 55.60, 61.13, 65.71, 69.56),
            "Semseg + Rot": (28.75, 36.81, 50.46, 56.21, 62.17, 67.96, 70.52),
            "Semseg + MoCo": (32.90, 40.31, 52.18, 56.50, 62.49, 68.40, 71.15),
            "Semseg + DenseCL": (33.51, 40.91, 52.76, 57.33, 63.22, 68.81, 71.16),
            "DenseCL -> Semseg + DenseCL": (36.32, 41.24, 52.94, 56.87, 62.71, 65.89, 69.81),
        },
    ),
    "3": (
        "bsds",
        "Boundaries",
        (("edges/odsF", 0.01),),
        (10, 20, 50, 100),
        {
            "Boundaries": (71.10, 73.50, 75.90, 76.80),
            "Rot -> Boundaries": (60.20, 62.80, 66.00, 67.70),
            "MoCo -> Boundaries": (71.00, 73.40, 75.60, 76.40),
            "DenseCL -> Boundaries": (68.90, 71.70, 75.40, 75.90),
            "Boundaries + Rot": (69.70, 73.00, 75.70, 76.60),
            "Boundaries + MoCo": (71.30, 73.80, 76.20, 76.90),
            "Boundaries + DenseCL": (71.30, 73.90, 76.00, 76.20),
        },
    ),
    "4": (
        "nyud2",
        "Depth + Semseg",
        (("depth/rmse_image", 1.0), ("semseg/mIoU", 0.01)),
        FEW,
        {
            "Depth + Semseg": (
                (0.997, 10.46), (0.904, 14.99), (0.794, 19.41), (0.665, 26.24), (0.606, 31.66),
            ),
            "Depth + Semseg + DenseCL": (
                (0.902, 10.72), (0.806, 15.29), (0.744, 20.08), (0.641, 28.18), (0.590, 33.48),
            ),
        },
    ),
    "s5": (
        "nyud",
        "Depth",
        (("depth/rmse_image", 1.0),),
        FEW,
        {
            "Depth": (0.8871, 0.8120, 0.7471, 0.6655, 0.6223),
            "Depth + DenseCL": (0.8840, 0.8080, 0.7305, 0.6508, 0.5990),
        },
    ),
    "s6": (
        "voc",
        "Semseg",
        (("semseg/mIoU", 0.01),),
        SEVEN,
        {
            "Semseg": (30.82, 37.66, 49.95, 55.17, 61.30, 67.38, 70.42),
            "Semseg + DenseCL": (31.59, 38.85, 50.87, 56.45, 61.92, 68.06, 71.15),
        },
    ),
    "s9": (
        "voc",
        "Semseg",
        (("semseg/mIoU", 0.01),),
        (10, 50),
        {"weight 0.1": (57.21, 68.64), "weight 0.2": (57.33, 68.81), "weight 0.5": (57.27, 68.79)},
    ),
}  # fmt: skip
TABLES["scenes"] = ("scenes", *TABLES["2"][1:])
TABLES["rooms"] = ("rooms", *TABLES["1"][1:])
SHORT = {"Rot": "rotation", "MoCo": "moco", "DenseCL": "densecl"}
MINI = {"train.steps": 600, "train.eval_every": 600, "train.checkpoint_every": 300}
SCENES = {"data.options": {"size": (64, 96), "train_examples": 400, "test_examples": 200}}


def sweep(arg=None):
    table = configs.parse_arg(arg, table="1/5").table
    number, _, percent = table.partition("/")
    known = [f"{name}/{p}" for name, (_, _, _, percents, _) in TABLES.items() for p in percents]
    if table not in known:
        raise UserError(f"table={table!r} is unknown: choose one of {', '.join(known)}")
    dataset, target, columns, percents, numbers = TABLES[number]
    setting = f"dataset={dataset},percent={percent}"
    if number in ("s5", "s6"):
        setting += ",same"

    def paper(name: str) -> dict:
        values = numbers[name][percents.index(int(percent))]
        values = values if isinstance(values, tuple) else (values,)
        return {key: value * unit for (key, unit), value in zip(columns, values, strict=True)}

    rows = {}
    for name in numbers:
        if "->" in name:
            start = name.partition(" -> ")[0]
            alone = f"dataset={dataset},auxiliary={SHORT[start]},alone"
            rows.setdefault(start, Row(arg=alone))
    for name in numbers:
        start, _, trained = name.rpartition(" -> ")
        auxiliary = SHORT.get(trained.removeprefix(target).removeprefix(" + "), "none")
        rest = f"weight={name.split()[1]}" if number == "s9" else f"auxiliary={auxiliary}"
        weights = {"source": "run", "path": f"{{row:{start}}}", "parts": ("encoder",)}
        overrides = {"weights": weights} if start else {}
        rows[name] = Row(overrides, arg=f"{setting},{rest}", paper=paper(name))
    baseline = "weight 0.2" if number == "s9" else target
    return Sweep(rows, baseline, MINI | (SCENES if dataset == "scenes" else {}))
