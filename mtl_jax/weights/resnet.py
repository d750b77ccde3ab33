"""Published weights of models/backbones/resnet.py."""

import re

from mtl_jax.models.preprocessing import IMAGENET
from mtl_jax.weights.source import TORCH_NORM, Source, Taken, plain, torch_conv, torch_dense


def _torchvision(path: str, encoder) -> Taken | None:
    """torchvision's names: conv1, bn1, layer1.0.conv1, layer1.0.bn1, layer1.0.downsample.0, fc."""
    del encoder
    unit, _, rest = path.partition("/")
    if unit == "head":
        return torch_dense("fc.weight") if rest == "kernel" else plain("fc.bias")
    block, number = "", "1"
    if unit != "stem":
        stage, index = re.fullmatch(r"stage(\d)_block(\d+)", unit).groups()
        block = f"layer{stage}.{int(index) - 1}."
        name, _, rest = rest.partition("/")
        number = name.removeprefix("conv")
        if name == "shortcut":
            conv, norm = f"{block}downsample.0", f"{block}downsample.1"
        else:
            conv, norm = f"{block}conv{number}", f"{block}bn{number}"
    else:
        conv, norm = "conv1", "bn1"
    kind, leaf = rest.split("/")
    return torch_conv(f"{conv}.weight") if kind == "conv" else plain(f"{norm}.{TORCH_NORM[leaf]}")


COUNTERS = r".*\.num_batches_tracked"  # of torch's batch norm

SOURCES = {
    "torchvision": Source(_torchvision, IMAGENET, unused=(r"fc\..*", COUNTERS)),
}
