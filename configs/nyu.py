"""NYU-v2: joint semantic segmentation and depth (and boundaries from the label borders) on real rooms.

    python -m mtl_jax.main --config=configs/nyu.py --workdir=runs/nyu --config.data.options.data_dir=DIR

DIR holds images/NNNN.jpg, labels40/NNNN.png (0 ... 38, and 39 for unlabelled), depth/NNNN.png (8 bits, 10 m
= 255), train.txt (795) and test.txt (654) with names, and classes.txt with the 39 class names; another
layout is a matter of data.options (see mtl_jax/data/datasets/folder.py).

Arguments, as in --config=configs/nyu.py:tasks=semseg+depth+edges,mini :
    tasks    semseg, depth, edges
    mini     a thin network on half-size crops: minutes on a laptop
"""

from mtl_jax import config as configs

WEIGHTS = {"semseg": 1.0, "depth": 1.0, "edges": 50.0}


def get_config(arg=None):
    args = configs.parse_arg(arg, tasks=("semseg", "depth"), mini=False)
    config = configs.default()

    config.data.name = "folder"
    config.data.options = {
        "data_dir": "NYUv2_320x240",
        "splits": {"train": "train.txt", "test": "test.txt"},
        "labels": {
            "semseg": {
                "folder": "labels40",
                "num_classes": 39,
                "class_names": "classes.txt",
                "invalid": 39,
            },
            "depth": {"folder": "depth", "scale": 10 / 255},
            "edges": {"borders_of": "semseg"},
        },
    }
    config.data.size = (240, 320)
    config.data.batch_size = 8
    config.data.eval_batch_size = 6
    config.data.augment.scale = (1.0, 1.5)
    config.data.augment.color = 0.2

    config.tasks = {name: {} for name in args.tasks}
    config.model = {"name": "deeplab", "depth": 50}
    config.method = {"name": "supervised", "weights": {t: w for t, w in WEIGHTS.items() if t in args.tasks}}
    config.optimizer.learning_rate = 0.005
    config.train.steps = 20000
    config.train.eval_every = config.train.checkpoint_every = 2000

    if args.mini:
        config.data.size = (160, 208)
        config.data.augment.scale = (0.67, 1.0)
        config.model = {"name": "deeplab", "depth": 26, "width": 0.375, "decoder_width": 64}
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 50
        config.train.steps = 1000
        config.train.eval_every = config.train.checkpoint_every = 500
    return config
