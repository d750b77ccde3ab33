"""Your own images: copy this file, name your folders, and run it.

    python -m mtl_jax.main --config=configs/folder.py --workdir=runs/mine --config.data.options.data_dir=DIR

DIR holds images/ and one folder per label, with a label file for every image, of the same name and size.
"""

from mtl_jax import config as configs


def get_config(arg=None):
    configs.parse_arg(arg)
    config = configs.default()

    config.data.name = "folder"
    config.data.options = {
        "data_dir": "my_data",
        "splits": {"train": "train.txt", "test": "test.txt"},  # lists of names, without the ending
        "labels": {
            # Class ids in 8-bit PNG; 255 is where nobody knows.
            "semseg": {"folder": "classes", "num_classes": 5, "invalid": 255},
            # 16-bit PNG in millimetres; 0 is where the sensor saw nothing.
            "depth": {"folder": "depth", "scale": 0.001, "invalid": 0},
        },
    }
    config.data.size = (256, 256)
    config.data.batch_size = 8
    config.data.augment.scale = (0.75, 1.5)
    config.data.augment.color = 0.3
    config.tasks = {"semseg": {}, "depth": {}}
    config.model = {"name": "deeplab", "depth": 50}
    config.train.steps = 10000
    return config
