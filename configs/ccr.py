"""CCR: contrastive multi-task dense prediction (Yang, Ye, Xu, AAAI 2023), and the networks it is added to.

    python -m mtl_jax.main --config=configs/ccr.py:dataset=nyud,host=fpn --workdir=runs/ccr \
        --config.data.options.data_dir=NYUD_MT

Arguments:
    dataset     nyud | pascal, the multi-task releases; scenes, embedded and small; rooms, NYU-v2 laid out as
                configs/nyu.py says
    tasks       some of the dataset's; one alone makes the single-task network
    host        fpn (HRNet-W18, Semantic FPN) | pad_net | mti_net | invpt (ViT-L)
    ccr         off | basic | proj | mined | full: without; with uniformly drawn triplets of all pairs of
                tasks, on the features themselves; of their projections; semi-hard ones; of drawn pairs
    sharing     of projectors: s_shared | t_shared | both | none
    k, gamma    how many pixels are alike, and anchors per pixel

The tables of the paper, each row a config argument, with the paper's numbers beside ours:

    python -m mtl_jax.sweep --config=configs/ccr.py:table=1 --workdir=runs/ccr_1

    table       1 (what CCR consists of) | 2 (hosts) | 3 (sharing) | 4, 5 (state of the art, on NYUD and on
                PASCAL) | k, gamma (figure 4, of which no number is legible)
    dataset     on which its rows run, by default the paper's; on scenes and rooms networks are thin (with
                --scale=mini two cores train a row in minutes)

The HRNet is the "small v2" that papers on these tasks call HRNet-W18. Published runs start from ImageNet:
--config.weights.source=official --config.weights.path=FILE, for InvPT --config.weights.source=google.
Images keep the size of the release, 425x560 on NYUD, where the paper does not say how it treats them.
The paper's Delta in table 1 does not follow from its numbers in the rows basic, proj and mined.
"""

import dataclasses
import os

from mtl_jax import config as configs
from mtl_jax.errors import UserError
from mtl_jax.sweep import Row, Sweep

WEIGHTS = {"semseg": 1.0, "parts": 2.0, "depth": 1.0, "normals": 10.0, "saliency": 5.0, "edges": 50.0}


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset as the paper uses it.

    Attributes:
      zoom, scale, rotate: of the augmentation for networks of convolutions.
      canvas: size of InvPT's crops.
      thin: the networks are, and few pixels are alike and anchors, as maps are smaller than the paper's.
    """

    name: str
    options: dict
    tasks: dict
    images: int
    size: tuple
    batch: int
    canvas: tuple
    zoom: tuple = ()
    scale: tuple = (1.0, 1.0)
    rotate: float = 0.0
    eval: str = "val"
    thin: bool = False


NYUD = {"semseg": {}, "depth": {}, "normals": {}}
PASCAL = {
    "semseg": {},
    "parts": {},
    "saliency": {},
    "normals": {},
    "edges": {"benchmark": True},
}
ROOMS = {"semseg": {}, "depth": {}, "edges": {}}
DATASETS = {
    "nyud": Data("nyud", {"data_dir": "NYUD_MT"}, NYUD, 795, (425, 560), 4, (448, 576), zoom=(1.0, 1.2, 1.5)),
    "pascal": Data(
        "pascal_context",
        {"data_dir": "PASCAL_MT"},
        PASCAL,
        4998,
        (512, 512),
        6,
        (512, 512),
        scale=(0.75, 1.25),
        rotate=20.0,
    ),
    "scenes": Data("scenes", {}, NYUD, 1600, (96, 128), 8, (96, 128), eval="test", thin=True),
    "rooms": Data("folder", {}, ROOMS, 795, (160, 208), 8, (160, 208), eval="test", thin=True),
}
VARIANTS = {  # rows of table 1
    "basic": {"sharing": "identity", "mining": "uniform", "pairs": "all"},
    "proj": {"mining": "uniform", "pairs": "all"},
    "mined": {"pairs": "all"},
    "full": {},
}
HRNET = {"backbone": "hrnet", "encoder": {"width": 18, "depth": "small_v2"}}
HOSTS = {
    "fpn": {"name": "semantic_fpn", **HRNET},
    "pad_net": {"name": "pad_net", **HRNET},
    "mti_net": {"name": "mti_net", **HRNET},
    "invpt": {"name": "invpt", "encoder": {"variant": "l16", "drop_path": 0.15}},
}
# Few steps are too few for the trunk's own slow statistics.
SLENDER = {"width": 8, "depth": "small_v2", "momentum": 0.9}
THIN = {
    "fpn": {"encoder": SLENDER, "pyramid_width": 48, "decoder_width": 32},
    "pad_net": {"encoder": SLENDER, "width": 64},
    "mti_net": {"encoder": SLENDER},
    "invpt": {"encoder": {"variant": "ti16", "patch": 8}, "width": 32},
}
FEW = {"k": 1 / 8, "gamma": 5.0}  # times the paper's, for thin networks
EPOCHS = 100  # and 5 in which the contrast's weight rises; the paper names neither
RAMP = 5


def get_config(arg=None):
    args = configs.parse_arg(
        arg, dataset="nyud", tasks=(), host="fpn", ccr="full", sharing="s_shared", k=128, gamma=0.01
    )
    for key, known in (("dataset", DATASETS), ("host", HOSTS), ("ccr", ("off", *VARIANTS))):
        if args[key] not in known:
            raise UserError(f"{key}={args[key]!r} is unknown: choose one of {', '.join(known)}")
    data = DATASETS[args.dataset]
    config = configs.default()
    if args.dataset == "rooms":
        file = os.path.join(os.path.dirname(__file__), "nyu.py:tasks=semseg+depth+edges,mini")
        config.data = configs.load(file).data
    else:
        config.data.name, config.data.options = data.name, data.options
        config.data.augment.zoom, config.data.augment.scale = data.zoom, data.scale
        config.data.augment.rotate = data.rotate
    config.data.eval = data.eval
    config.data.size = data.size
    config.data.batch_size = config.data.eval_batch_size = data.batch
    names = args.tasks or tuple(data.tasks)
    config.tasks = {name: data.tasks.get(name, {}) for name in names}
    config.model = HOSTS[args.host] | (THIN[args.host] if data.thin else {})
    config.optimizer.name = "adam"
    config.optimizer.decay = "all"
    if args.host == "invpt":
        _as_invpt(config, data)
    else:
        config.optimizer.learning_rate = 2e-4
        config.optimizer.weight_decay = 1e-4
        config.train.steps = EPOCHS * (data.images // data.batch)
        config.optimizer.warmup_steps = config.train.get_ref("steps") // EPOCHS
    config.train.eval_every = config.train.checkpoint_every = max(500, config.train.steps // 40)

    weights = {name: WEIGHTS[name] for name in names}
    config.method = {"name": "supervised", "weights": weights}
    if args.ccr != "off" and len(names) > 1:
        config.method = {
            "name": "ccr",
            "weights": weights,
            "ramp_steps": config.train.get_ref("steps") * RAMP // EPOCHS,
            "k": max(1, int(args.k * FEW["k"])) if data.thin else args.k,
            "gamma": args.gamma * FEW["gamma"] if data.thin else args.gamma,
            "sharing": args.sharing,
            **VARIANTS[args.ccr],
        }
    return config


def _as_invpt(config, data: Data) -> None:
    """As InvPT's authors train it (Ye & Xu, ECCV 2022): on crops at scales between 1/2 and 2."""
    config.data.size = data.canvas
    config.data.batch_size = 6
    config.data.augment.zoom, config.data.augment.scale = (), (0.5, 2.0)
    config.data.augment.rotate, config.data.augment.color = 0.0, 0.3
    config.optimizer.learning_rate = 2e-5
    config.optimizer.weight_decay = 1e-6
    config.train.steps = 40_000


# What the paper reports, in its tables' order, and as printed.
COLUMNS = {
    "nyud": (("semseg/mIoU", 0.01), ("depth/rmse", 1.0), ("normals/mErr", 1.0), ("all/delta_m", 1.0)),
    "pascal": (
        ("semseg/mIoU", 0.01),
        ("parts/mIoU", 0.01),
        ("saliency/maxF", 0.01),
        ("normals/mErr", 1.0),
        ("edges/odsF", 0.01),
    ),
}
TABLE1 = {  # ccr -> numbers
    "MT Baseline": ("ccr=off", (38.901, 0.615, 20.712, -2.025)),
    "CCR-Basic": ("ccr=basic", (39.499, 0.609, 20.305, 0.184)),
    "+ Proj": ("ccr=proj", (39.956, 0.603, 20.297, 0.635)),
    "+ Proj + SS": ("ccr=mined", (40.779, 0.595, 20.240, 1.203)),
    "+ Proj + SS + CTS": ("ccr=full", (41.275, 0.592, 20.178, 2.101)),
}
TABLE2 = {
    "PAD-Net": ("host=pad_net,ccr=off", (35.406, 0.670, 21.991)),
    "PAD-Net + CCR": ("host=pad_net", (36.925, 0.654, 21.139)),
    "MTI-Net": ("host=mti_net,ccr=off", (37.456, 0.626, 21.031)),
    "MTI-Net + CCR": ("host=mti_net", (39.192, 0.607, 20.826)),
    "InvPT": ("host=invpt,ccr=off", (52.840, 0.514, 18.872)),
    "InvPT + CCR": ("host=invpt", (53.799, 0.508, 18.670)),
}
TABLE3 = {
    "MT Baseline": TABLE1["MT Baseline"],
    "not shared": ("sharing=none", (40.414, 0.598, 20.219)),
    "shared by targets": ("sharing=t_shared", (40.273, 0.604, 20.318)),
    "shared by both": ("sharing=both", (40.574, 0.600, 20.299)),
    "shared by sources": ("sharing=s_shared", (41.275, 0.592, 20.178)),
}
QUOTED = {  # rows of others' networks that have no argument
    "4": {
        "PAP": (36.72, 0.618, 20.82),
        "PSD": (36.69, 0.625, 20.87),
        "ATRC": (46.33, 0.536, 20.18),  # with a larger backbone than PAP and PSD, an HRNet-W48 it seems
    },
    "5": {
        "PSD": (61.70, 60.18, 84.78, 14.23, 70.80),  # the very numbers of MTI-Net: a slip of the paper's
        "ATRC": (67.67, 62.93, 82.29, 14.24, 72.42),
    },
}
TABLE5 = {
    "PAD-Net": ("host=pad_net,ccr=off", (53.60, 59.60, 65.80, 15.30, 72.50)),
    "MTI-Net": ("host=mti_net,ccr=off", (61.70, 60.18, 84.78, 14.23, 70.80)),
    "InvPT": ("host=invpt,ccr=off", (79.03, 67.61, 84.81, 14.15, 73.00)),
    "CCR": ("host=invpt", (80.23, 68.40, 84.36, 13.93, 73.07)),
}
ROWS = {
    "1": TABLE1,
    "2": TABLE2,
    "3": TABLE3,
    "4": {"InvPT": TABLE2["InvPT"], "CCR": ("host=invpt", (53.80, 0.508, 18.67))},
    "5": TABLE5,
}
BASELINES = {
    "1": "ST Baseline",
    "2": "PAD-Net",
    "3": "MT Baseline",
    "4": "InvPT",
    "5": "InvPT",
    "k": "k = 128",
    "gamma": "gamma = 0.01",
}
GRID = {"k": (16, 32, 64, 128, 256, 512), "gamma": (0.0025, 0.005, 0.01, 0.02)}
TABLES = ("1", "2", "3", "4", "5", *GRID)
MINI = {  # what two cores train in minutes, on scenes and rooms
    "data.batch_size": 4,
    "data.eval_batch_size": 4,
    "train.steps": 600,
    "train.eval_every": 600,
    "train.checkpoint_every": 300,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 1e-6,
}
SMALL = {
    "scenes": {
        "data.options": {"size": (64, 96), "train_examples": 600, "test_examples": 200},
        "data.size": (64, 96),
    },
    "rooms": {"data.size": (112, 144)},
}


def sweep(arg=None):
    args = configs.parse_arg(arg, table="1", dataset="")
    table, dataset = args.table, args.dataset or ("pascal" if args.table == "5" else "nyud")
    for key, value, known in (("table", table, TABLES), ("dataset", dataset, DATASETS)):
        if value not in known:
            raise UserError(f"{key}={value!r} is unknown: choose one of {', '.join(known)}")

    def row(rest: str, numbers: tuple = (), **options) -> Row:
        return Row(arg=f"dataset={dataset},{rest}", paper=_paper(table, dataset, numbers), **options)

    rows = {name: row(rest, numbers) for name, (rest, numbers) in ROWS.get(table, {}).items()}
    if table == "1":
        tasks = DATASETS[dataset].tasks
        runs = {
            task: {"tasks": {task: options}, "method.weights": {task: WEIGHTS[task]}}
            for task, options in tasks.items()
        }
        rows = {"ST Baseline": row("ccr=off", (39.803, 0.617, 19.896), runs=runs), **rows}
    if table in GRID:
        rows = {f"{table} = {value}": row(f"{table}={value}") for value in GRID[table]}
    quoted = {
        name: Row(runs={}, paper=_paper(table, dataset, numbers))
        for name, numbers in QUOTED.get(table, {}).items()
    }
    return Sweep({**quoted, **rows}, BASELINES[table], MINI | SMALL.get(dataset, {}))


def _paper(table: str, dataset: str, numbers: tuple) -> dict:
    """The paper's numbers in eval.json's units, of the tasks that the dataset has."""
    theirs = "pascal" if table == "5" else "nyud"
    if dataset in ("nyud", "pascal") and dataset != theirs:  # of another dataset they would mislead
        return {}
    known = (*DATASETS[dataset].tasks, "all")
    pairs = zip(COLUMNS[theirs], numbers, strict=False)
    return {name: value * unit for (name, unit), value in pairs if name.partition("/")[0] in known}
