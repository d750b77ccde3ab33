"""BSDS500: boundaries in photographs, judged by the benchmark's own rule (ODS-F over all annotators).

    python -m mtl_jax.main --config=configs/bsds500.py --workdir=runs/bsds --config.data.options.data_dir=DIR

DIR is the folder of the release that holds data/images and data/groundTruth. The final evaluation matches
200 images at 99 thresholds to all annotators: about 8 minutes on 2 cores.

Arguments, as in --config=configs/bsds500.py:mini :
    mini     a thin network and a short run: minutes on a laptop
"""

from mtl_jax import config as configs


def get_config(arg=None):
    args = configs.parse_arg(arg, mini=False)
    config = configs.default()

    config.data.name = "bsds500"
    config.data.options = {"data_dir": "BSDS500"}
    config.data.train = "trainval"
    config.data.size = (320, 320)
    config.data.batch_size = 8
    config.data.eval_batch_size = 4
    config.data.augment.scale = (0.75, 1.5)
    config.data.augment.rotate = 15.0
    config.data.augment.color = 0.2

    # A pixel is a boundary if at least 3 annotators say so; fewer but some are not counted in training.
    config.tasks = {"edges": {"positive_from": 3, "benchmark": True}}
    config.model = {"name": "deeplab", "depth": 50, "output_stride": 16}
    config.method = {"name": "supervised", "weights": {"edges": 50.0}}
    config.optimizer.learning_rate = 0.005
    config.train.steps = 10000
    config.train.eval_every = 10000
    config.train.checkpoint_every = 500

    if args.mini:
        config.data.size = (160, 160)
        config.data.augment.rotate = 0.0
        config.model = {"name": "deeplab", "depth": 26, "width": 0.25, "decoder_width": 64}
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 50
        config.train.steps = config.train.eval_every = 800
    return config
