"""Partial labels: JTR and what it is compared to (Nishi, Kim, Li, Pfister, CVPR 2024).

    python -m mtl_jax.main --config=configs/jtr.py:method=jtr,scenario=onelabel --workdir=runs/jtr \
        --config.data.options.data_dir=NYUV2

Arguments:
    dataset     nyu, cityscapes, taskonomy: the paper's preprocessed data; scenes (3 tasks) and scenes7 (7
                tasks), embedded and small; rooms, NYU-v2 laid out as configs/nyu.py says
    scenario    fully | onelabel | randomlabels | halflabels | extended (onelabel, and of nyu's raw frames the
                depth besides: set data.options.extension_dir)
    unlabelled  percentage of the images that lose all labels
    method      supervised | consistency | direct | perceptual | mtpsl | jtr
    regularised MTPSL's regulariser and JTR's reconstruction loss (on)
    joint       JTR by equations 5 and 6 to the letter, instead of the form that gave the published numbers
    backbone    segnet | resnet50, for the auxiliary networks too

The tables of the paper, each row a config argument, with the paper's numbers beside ours:

    python -m mtl_jax.sweep --config=configs/jtr.py:table=1/onelabel --workdir=runs/jtr_1

    table       1/onelabel | 1/randomlabels | 1/extended | 2 | 3/onelabel | 3/randomlabels |
                3/halflabels | 4/30 | 4/50 | 4/70 | 5/30 | 5/50 | 5/70 | 6 | 7/cityscapes | 7/taskonomy |
                8/nyu | 8/cityscapes | 9; scenes/<scenario>, scenes7/<scenario> and rooms/<scenario>: every
                method of the paper, thin networks (with --scale=mini on two cores in minutes each)

The published label tables can be read instead of drawn: --config.data.labels.file=onelabel.pth . The paper
marks numbers of table 1 and 2 with a star where it quotes them from an older recipe: Supervised, Consistency,
Direct and Perceptual Map; gains over them are larger than over a baseline of equal training.

Steps are the paper's epochs (300, on Taskonomy 20) times the labelled and unlabelled images.
"""

import dataclasses
import os

from mtl_jax import config as configs
from mtl_jax.errors import UserError
from mtl_jax.sweep import Row, Sweep

DEPTH = {"headline": "absErr"}
NORMALS = {"loss": "cosine"}
EXTRAS = {"edge_occlusion": {}, "reshading": {}, "keypoints2d": {}, "edge_texture": {}}
THREE = {"semseg": {}, "depth": DEPTH, "normals": NORMALS}


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset as the paper uses it.

    Attributes:
      tasks: in the order of the published label tables' columns.
      images: of the training split.
      pair_weight, film: of MTPSL, the weight of its loss and the learning rate of its scales and shifts.
      moments: of JTR; see methods/jtr.py.
      width: of the network, and of the method's own ones.
    """

    name: str
    options: dict
    tasks: dict
    images: int
    size: tuple
    batch: int
    epochs: int = 300
    eval: str = "val"
    flip: bool = False
    pair_weight: float = 2.0
    film: float = 1e-3
    moments: dict | None = None
    width: float = 1.0
    learning_rate: float = 1e-4


THIN = {"eval": "test", "width": 0.25, "learning_rate": 1e-3}
DATASETS = {
    "nyu": Data(
        "nyuv2",
        {"data_dir": "NYUV2"},
        THREE,
        795,
        (288, 384),
        4,
        moments={"depth": (2.3618, 1.5876)},  # of the authors' code, metres
    ),
    "cityscapes": Data(
        "cityscapes",
        {"data_dir": "CITYSCAPES"},
        {"semseg": {}, "disparity": DEPTH},
        2975,
        (128, 256),
        16,
        flip=True,
        pair_weight=1.0,
        film=1e-5,
    ),
    "taskonomy": Data(
        "taskonomy",
        {"data_dir": "TASKONOMY"},
        {**THREE, **EXTRAS},
        275_000,  # about; the tiny split
        (256, 256),
        8,
        epochs=20,
        eval="test",
    ),
    "scenes": Data("scenes", {}, THREE, 1600, (96, 128), 8, epochs=100, **THIN),
    "scenes7": Data("scenes", {}, {**THREE, **EXTRAS}, 1600, (96, 128), 8, epochs=100, **THIN),
    "rooms": Data("folder", {}, {"semseg": {}, "depth": DEPTH}, 795, (160, 192), 8, epochs=200, **THIN),
}
SCENARIOS = ("fully", "onelabel", "randomlabels", "halflabels", "extended")
METHODS = ("supervised", "consistency", "direct", "perceptual", "mtpsl", "jtr")
BACKBONES = {
    "segnet": {"name": "segnet"},
    "resnet50": {
        "name": "deeplab",
        "depth": 50,
        "output_stride": 8,
        "decoder": "own",
        "skip": False,
    },
}


def get_config(arg=None):
    args = configs.parse_arg(
        arg,
        dataset="nyu",
        scenario="onelabel",
        unlabelled=0,
        method="jtr",
        regularised=True,
        joint=False,
        backbone="segnet",
    )
    for key, known in (
        ("dataset", DATASETS),
        ("scenario", SCENARIOS),
        ("method", METHODS),
        ("backbone", BACKBONES),
    ):
        if args[key] not in known:
            raise UserError(f"{key}={args[key]!r} is unknown: choose one of {', '.join(known)}")
    data = DATASETS[args.dataset]
    config = configs.default()
    _set_data(config, args, data)
    config.tasks = data.tasks
    config.model = {**BACKBONES[args.backbone], "width": data.width}
    config.method = _method(args, data)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = data.learning_rate
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "halve"
    if args.method == "mtpsl":  # every 30 of 200 epochs
        config.optimizer.own = {"film": {"learning_rate": data.film, "halve_every": 0.15}}
    # The extension makes an epoch 60 times as long; three times as many updates as without it will do.
    longer = 3 if args.scenario == "extended" else 1
    config.train.steps = longer * data.epochs * data.images // data.batch
    config.train.eval_every = config.train.checkpoint_every = max(500, config.train.steps // 60)
    return config


def _set_data(config, args, data: Data) -> None:
    if args.dataset == "rooms":
        nyu = configs.load(os.path.join(os.path.dirname(__file__), "nyu.py:mini"))
        config.data = nyu.data
    else:
        config.data.name, config.data.options = data.name, data.options
    config.data.eval = data.eval
    config.data.batch_size = config.data.eval_batch_size = data.batch
    config.data.size = data.size
    config.data.augment.flip = data.flip
    config.data.augment.zoom = (1.0, 1.2, 1.5)
    config.data.augment.rand_augment = 2
    labels = config.data.labels
    labels.scheme = "onelabel" if args.scenario == "extended" else args.scenario
    labels.tasks = tuple(data.tasks)
    if args.unlabelled:
        labels.unlabelled = {"all": args.unlabelled / 100}
    if args.scenario == "extended":
        labels.update(base=data.images, extension="depth")
        if args.dataset == "nyu":
            config.data.options.extension_dir = "nyudepthv2"


def _method(args, data: Data) -> dict:
    """The method's options, with the paper's weights."""
    network = {"architecture": args.backbone, "width": data.width}
    if args.method in ("direct", "perceptual"):
        return {"name": "crosstask", "kind": args.method, "average": "image", "width": data.width}
    if args.method == "mtpsl":
        options = {"weight": data.pair_weight, "regulariser": 0.5 if args.regularised else 0.0}
        if args.scenario == "onelabel":
            options["max_pairs"] = len(data.tasks) - 1
        return {"name": "mtpsl", "average": "image", **options, **network}
    if args.method == "jtr":
        options = {"unlabelled": args.unlabelled > 0}
        if args.joint:
            options |= {
                "joint": True,
                "distance_weight": 1.0,
                "encoder_weight": 0.0,
                "reconstruction_weight": 1.0,
            }
        if not args.regularised:
            options["reconstruction_weight"] = 0.0
        if data.moments:
            options["moments"] = data.moments
        return {"name": "jtr", "average": "image", **options, **network}
    return {"name": args.method, "average": "image"}


# What the paper reports, in its tables' order: mIoU [%], absolute error, mean angle [degrees], Delta [%].
ROWS = {
    "Supervised MTL": "supervised",
    "Consistency Reg.": "consistency",
    "Direct Map": "direct",
    "Perceptual Map": "perceptual",
    "MTPSL w/o reg.": "mtpsl,regularised=false",
    "MTPSL": "mtpsl",
    "JTR w/o recon.": "jtr,regularised=false",
    "JTR": "jtr",
}
THREE_COLUMNS = (("semseg/mIoU", 0.01), ("depth/absErr", 1.0), ("normals/mErr", 1.0), ("all/delta_m", 1.0))
# Per task the paper has gains alone. Its means over the tasks are sums over 16: these are over 7.
SEVEN_COLUMNS = (("all/delta_m", 1.0),)
COLUMNS = {
    "nyu": THREE_COLUMNS,
    "scenes": THREE_COLUMNS,
    "rooms": (*THREE_COLUMNS[:2], None, THREE_COLUMNS[3]),
    "cityscapes": (("semseg/mIoU", 0.01), ("disparity/absErr", 1.0), ("all/delta_m", 1.0)),
    "taskonomy": SEVEN_COLUMNS,
    "scenes7": SEVEN_COLUMNS,
}
PAPER = {
    "1/onelabel": {
        "Supervised MTL": (25.75, 0.6511, 33.73, 0.0),
        "Consistency Reg.": (27.52, 0.6499, 33.58, 2.501),
        "Direct Map": (19.98, 0.6960, 37.56, -13.55),
        "Perceptual Map": (26.94, 0.6342, 34.30, 1.842),
        "MTPSL": (30.40, 0.5926, 31.68, 11.04),
        "JTR": (31.96, 0.5919, 30.80, 13.97),
    },
    "1/extended": {
        "Supervised MTL": (23.43, 0.6918, 39.44, -10.73),
        "Consistency Reg.": (23.94, 0.6840, 40.12, -10.34),
        "MTPSL": (33.80, 0.4794, 37.50, 15.49),
        "JTR": (33.63, 0.4898, 31.37, 20.79),
    },
    "1/randomlabels": {
        "Supervised MTL": (27.05, 0.6624, 33.58, 0.0),
        "Consistency Reg.": (29.50, 0.6224, 33.31, 5.300),
        "Direct Map": (29.17, 0.6128, 33.63, 5.060),
        "Perceptual Map": (32.20, 0.6037, 32.07, 10.80),
        "MTPSL": (35.60, 0.5576, 29.70, 19.66),
        "JTR": (37.08, 0.5541, 29.44, 21.92),
    },
    "2": {
        "Supervised MTL": (69.50, 0.0186, 0.0),
        "Consistency Reg.": (71.67, 0.0178, 3.712),
        "MTPSL": (72.09, 0.0168, 6.702),
        "JTR": (72.33, 0.0163, 8.219),
    },
    "3/onelabel": {
        "Supervised MTL": (0.0,),
        "Consistency Reg.": (3.583,),
        "MTPSL": (4.511,),
        "JTR": (8.029,),
    },
    "3/randomlabels": {
        "Supervised MTL": (0.0,),
        "Consistency Reg.": (5.153,),
        "MTPSL": (2.984,),
        "JTR": (9.360,),
    },
    "3/halflabels": {
        "Supervised MTL": (0.0,),
        "Consistency Reg.": (5.318,),
        "MTPSL": (7.224,),
        "JTR": (11.600,),
    },
    "4/30": {
        "Supervised MTL": (26.36, 0.6574, 33.02, 0.0),
        "Consistency Reg.": (29.89, 0.6136, 31.93, 7.785),
        "MTPSL": (31.92, 0.6071, 31.59, 11.03),
        "JTR": (32.20, 0.5912, 31.01, 12.77),
    },
    "4/50": {
        "Supervised MTL": (23.68, 0.6988, 35.00, 0.0),
        "Consistency Reg.": (25.16, 0.6543, 32.54, 6.549),
        "MTPSL": (28.18, 0.6393, 33.04, 11.04),
        "JTR": (28.69, 0.6268, 31.52, 13.80),
    },
    "4/70": {
        "Supervised MTL": (18.57, 0.7288, 37.49, 0.0),
        "Consistency Reg.": (20.60, 0.7135, 34.81, 6.727),
        "MTPSL": (23.33, 0.6952, 34.81, 12.46),
        "JTR": (24.05, 0.6945, 34.25, 14.29),
    },
    "5/30": {
        "Supervised MTL": (69.62, 0.0180, 0.0),
        "Consistency Reg.": (69.65, 0.0171, 2.522),
        "MTPSL": (71.48, 0.0169, 4.391),
        "JTR": (71.07, 0.0161, 6.319),
    },
    "5/50": {
        "Supervised MTL": (67.56, 0.0196, 0.0),
        "Consistency Reg.": (69.23, 0.0174, 6.848),
        "MTPSL": (70.30, 0.0174, 7.640),
        "JTR": (69.76, 0.0167, 9.026),
    },
    "5/70": {
        "Supervised MTL": (64.65, 0.0217, 0.0),
        "Consistency Reg.": (66.43, 0.0187, 8.289),
        "MTPSL": (68.09, 0.0187, 9.573),
        "JTR": (67.75, 0.0179, 11.15),
    },
    "8/nyu": {
        "Supervised MTL": (27.05, 0.6624, 33.58, 0.0),
        "MTPSL w/o reg.": (33.51, 0.5767, 34.00, 11.86),
        "MTPSL": (35.60, 0.5576, 29.70, 19.66),
        "JTR w/o recon.": (35.89, 0.5746, 32.96, 15.93),
        "JTR": (37.08, 0.5541, 29.44, 21.92),
    },
    "8/cityscapes": {
        "Supervised MTL": (69.50, 0.0186, 0.0),
        "MTPSL w/o reg.": (72.27, 0.0168, 6.832),
        "MTPSL": (72.09, 0.0168, 6.702),
        "JTR w/o recon.": (71.78, 0.0166, 7.017),
        "JTR": (72.33, 0.0163, 8.219),
    },
    "9": {
        "Supervised MTL": (27.05, 0.6624, 33.58, 0.0),
        "Consistency Reg.": (29.50, 0.6224, 33.31, 5.300),
        "MuST teachers": (24.73, 0.7278, 29.78, -2.378),
        "MuST student": (30.80, 0.6185, 31.82, 8.577),
        "MTPSL": (35.60, 0.5576, 29.70, 19.66),
        "JTR": (37.08, 0.5541, 29.44, 21.92),
    },
}
FULLY = {"nyu": (38.91, 0.5351, 28.57), "cityscapes": (72.70, 0.0163)}
# Hours and GiB on one A100 (tables 6 and 7).
COSTS = {
    "6": {
        "MTPSL": (8.33, 17.5),
        "JTR": (9.0, 17.5),
        "MTPSL with ResNet-50": (17.67, 21.5),
        "JTR with ResNet-50": (10.83, 16.2),
    },
    "7/cityscapes": {"MTPSL": (22.17, 14.4), "JTR": (23.75, 19.2)},
    "7/taskonomy": {"MTPSL": (223.17, 34.4), "JTR": (105.0, 23.9)},
}
# Number of each table -> dataset, scenario and percentage of images without labels.
SETTINGS = {
    "1": ("nyu", "onelabel", "0"),
    "2": ("cityscapes", "onelabel", "0"),
    "3": ("taskonomy", "onelabel", "0"),
    "4": ("nyu", "randomlabels", "0"),
    "5": ("cityscapes", "onelabel", "0"),
    "6": ("nyu", "randomlabels", "0"),
    "7": ("taskonomy", "randomlabels", "0"),
    "8": ("nyu", "randomlabels", "0"),
    "9": ("nyu", "randomlabels", "0"),
    "scenes": ("scenes", "onelabel", "0"),
    "scenes7": ("scenes7", "onelabel", "0"),
    "rooms": ("rooms", "onelabel", "0"),
}
MINI = {"train.steps": 1000, "train.eval_every": 1000, "optimizer.learning_rate": 1e-3}
SMALL_SCENES = {
    "data.options": {"size": (64, 64), "train_examples": 400},
    "data.size": (64, 64),
    "data.batch_size": 4,
    "train.steps": 500,
    "train.eval_every": 500,
}
SMALL = {  # what two cores train in minutes
    "scenes": SMALL_SCENES,
    "scenes7": SMALL_SCENES,
    "rooms": {
        "data.size": (96, 128),
        "data.batch_size": 4,
        "train.steps": 300,
        "train.eval_every": 300,
    },
}
EMBEDDED = {  # tables beyond the paper's, and their scenarios
    "scenes": ("onelabel", "randomlabels"),
    "scenes7": ("onelabel", "randomlabels", "halflabels"),
    "rooms": ("onelabel",),
}
TABLES = (*PAPER, *COSTS, *(f"{name}/{scenario}" for name, some in EMBEDDED.items() for scenario in some))


def sweep(arg=None):
    table = configs.parse_arg(arg, table="1/onelabel").table
    number, _, detail = table.partition("/")
    embedded = number in EMBEDDED
    if table not in TABLES:
        raise UserError(f"table={table!r} is unknown: choose one of {', '.join(TABLES)}")
    dataset, scenario, unlabelled = SETTINGS[number]
    if detail in SCENARIOS:
        scenario = detail
    elif detail in DATASETS:
        dataset = detail
        scenario = "onelabel" if dataset == "cityscapes" else scenario
    elif detail:
        unlabelled = detail
    setting = f"dataset={dataset},unlabelled={unlabelled}"
    data = DATASETS[dataset]

    def row(method: str, scenario: str = scenario, backbone: str = "segnet", **options) -> Row:
        return Row(arg=f"{setting},scenario={scenario},method={method},backbone={backbone}", **options)

    if table in COSTS:
        rows = {}
        for name, cost in COSTS[table].items():
            kind, _, other = name.partition(" with ")
            backbone = "resnet50" if other else "segnet"
            paper = dict(zip(("all/hours", "all/gib"), cost, strict=True))
            rows[name] = row(kind.lower(), backbone=backbone, paper=paper)
        return Sweep(rows, baseline="MTPSL", mini=MINI)

    quoted = _quoted(table, number, scenario)
    names = [*ROWS, "MuST teachers", "MuST student"] if embedded else list(PAPER[table])
    rows = {}
    if table in ("1/onelabel", "2") or embedded:
        paper = _paper(dataset, FULLY.get(dataset))
        rows["Supervised MTL on all labels"] = row("supervised", "fully", paper=paper)
    if table == "1/extended":  # its gains are over the row without the extension
        rows["Supervised MTL on onelabel"] = row(
            "supervised", "onelabel", paper=_paper(dataset, PAPER["1/onelabel"]["Supervised MTL"])
        )
    for name in names:
        paper = _paper(dataset, quoted.get(name))
        if name == "MuST teachers":
            runs = {task: {"tasks": {task: options}} for task, options in data.tasks.items()}
            rows[name] = row("supervised", runs=runs, paper=paper)
        elif name == "MuST student":
            teachers = {task: "{row:MuST teachers}/" + task for task in data.tasks}
            rows[name] = row("supervised", overrides={"data.teachers": teachers}, paper=paper)
        else:
            rows[name] = row(ROWS[name], paper=paper)
    baseline = "Supervised MTL on onelabel" if table == "1/extended" else "Supervised MTL"
    return Sweep(rows, baseline, SMALL.get(number, MINI))


def _quoted(table: str, number: str, scenario: str) -> dict:
    """Rows of the paper that a table is shown beside: its own, or those of its scenario."""
    if table in PAPER:
        return PAPER[table]
    quoted = PAPER.get(f"{'3' if number == 'scenes7' else '1'}/{scenario}", {})
    same = number != "scenes7" and scenario == "randomlabels"  # tables 8 and 9 are of that scenario
    return {**PAPER["8/nyu"], **PAPER["9"], **quoted} if same else quoted


def _paper(dataset: str, numbers: tuple | None) -> dict:
    """The paper's numbers in eval.json's units."""
    pairs = zip(COLUMNS[dataset], numbers or (), strict=False)
    return {column[0]: value * column[1] for column, value in pairs if column}
