"""How long a training step takes here and in PyTorch, for the same networks on the same machine.

    python -m tests.benchmark_torch [--networks=resnet50,segnet] [--size=96,128] [--batch=2]

A step is forward pass in training mode, the mean of the output's squares as loss (of a backbone, the sum of
those of its maps), backward pass and update by SGD. Ours is compiled and gives its state away; PyTorch's is
eager, with channels last. The two take turns, so that other work on the machine hinders both alike. GFLOPs
are of one step: XLA's count of the compiled program, which includes arithmetic of whatever kind, and
PyTorch's of forward and backward pass, which is of convolutions and matrix products alone.

Where other work shares the cores, PyTorch's threads lose much time waiting for each other in loops: compare
with --threads=1 there. It prints a Markdown table, and needs the extra `parity` (see setup.py).
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mtl_jax.models import cost
from mtl_jax.models.backbones import efficientnet, hrnet, mobilenet_v2, resnet, segnet, vit
from mtl_jax.models.decoders.deeplab import RATES, DeepLabDecoder
from mtl_jax.models.decoders.segnet import SegNetDecoder
from mtl_jax.models.decoders.semantic_fpn import SemanticFPNDecoder
from tests.weights.reference import import_torchvision

RATE = 1e-3  # of learning
DEPTH = 4  # of the vision transformer, a third of the published one


def unit(inputs: int, outputs: int, size: int, activation: Any = torch.nn.ReLU, **options: Any) -> Any:
    """Convolution, batch norm, activation; options are the convolution's."""
    padding = options.get("dilation", 1) * (size // 2)
    convolution = torch.nn.Conv2d(inputs, outputs, size, padding=padding, **{"bias": False, **options})
    return torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(outputs), activation())


def enlarge(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(x, size=size, mode="bilinear")


class TimmMaps(torch.nn.Module):
    """The maps of strides 4 to 32 of a network of timm's."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model(name, features_only=True, **options)
        self.channels = self.network.feature_info.channels()[1:]

    def forward(self, image):
        return self.network(image)[1:]


class ViTMaps(torch.nn.Module):
    """The tokens after each block as maps, those of the last one normalised."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        import timm

        options = {"depth": DEPTH, "img_size": size, "num_classes": 0}
        self.network = timm.create_model("vit_base_patch16_224", **options)

    def forward(self, image):
        last, maps = self.network.forward_intermediates(image, indices=DEPTH)
        return [*maps[:-1], last]


class SegNetMaps(torch.nn.Module):
    """The indices of the five poolings and the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.stages, inputs = torch.nn.ModuleList(), 3
        for channels, units in segnet.STAGES:
            widths = [inputs] + units * [channels]
            units = [unit(*pair, 3, bias=True) for pair in zip(widths[:-1], widths[1:], strict=True)]
            self.stages.append(torch.nn.Sequential(*units))
            inputs = channels

    def forward(self, image):
        indices, x = [], image
        for stage in self.stages:
            x, index = functional.max_pool2d(stage(x), 2, return_indices=True)
            indices.append(index)
        return [*indices, x]


class SegNetUp(torch.nn.Module):
    """The encoder's mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.stages, coarser = torch.nn.ModuleList(), segnet.STAGES[-1][0]
        for stage in reversed(range(len(segnet.STAGES))):
            channels, units = segnet.STAGES[max(0, stage - 1)][0], segnet.STAGES[stage][1]
            widths = [coarser] + units * [channels]
            units = [unit(*pair, 3, bias=True) for pair in zip(widths[:-1], widths[1:], strict=True)]
            self.stages.append(torch.nn.Sequential(*units))
            coarser = channels

    def forward(self, maps):
        *indices, x = maps
        for stage, index in zip(self.stages, reversed(indices), strict=True):
            x = stage(functional.max_unpool2d(x, index, 2))
        return x


class DeepLabHead(torch.nn.Module):
    """DeepLabv3+'s decoder; the light form is that of models/decoders/deeplab.py."""

    def __init__(self, channels: Sequence[int], light: bool = False, features: int = 256) -> None:
        super().__init__()

        def make(inputs, outputs, size, **options):
            groups = math.gcd(inputs, outputs) if light else 1
            activation = torch.nn.ReLU6 if light else torch.nn.ReLU
            return unit(inputs, outputs, size, activation, **{"groups": groups, **options})

        skipped = 48 * features // 256
        self.point = make(channels[-1], features, 1, groups=1)
        self.atrous = torch.nn.ModuleList(make(channels[-1], features, 3, dilation=rate) for rate in RATES)
        self.pool = make(channels[-1], features, 1)
        self.merge = make(5 * features, features, 1)
        self.skip = make(channels[0], skipped, 1)
        self.refine = torch.nn.Sequential(make(features + skipped, features, 3), make(features, features, 3))

    def forward(self, maps):
        x = maps[-1]
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        views = [self.point(x), *(atrous(x) for atrous in self.atrous), pooled]
        high = enlarge(self.merge(torch.cat(views, 1)), maps[0].shape[2:])
        return self.refine(torch.cat([high, self.skip(maps[0])], 1))


class SemanticFPN(torch.nn.Module):
    """Feature pyramid, and the branch that sums its levels."""

    def __init__(self, channels: Sequence[int], pyramid: int = 256, features: int = 128) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.pyramid = FeaturePyramidNetwork(list(channels), pyramid)
        self.branch = torch.nn.ModuleList(
            torch.nn.ModuleList(
                unit(features if step else pyramid, features, 3) for step in range(max(1, level))
            )
            for level in range(len(channels))
        )

    def forward(self, maps):
        levels = list(self.pyramid(dict(enumerate(maps))).values())
        total = 0
        for level, (x, steps) in enumerate(zip(levels, self.branch, strict=True)):
            for step, layer in enumerate(steps):
                finer = max(0, level - 1 - step)
                x = enlarge(layer(x), levels[finer].shape[2:]) if level else layer(x)
            total = total + x
        return total


class Network(NamedTuple):
    """The same network twice, for images of a given (height, width)."""

    encoder: Callable[[tuple[int, int]], nn.Module]
    their_encoder: Callable[[tuple[int, int]], torch.nn.Module]
    decoder: Callable[[], nn.Module] | None = None
    their_decoder: Callable[[torch.nn.Module], torch.nn.Module] | None = None


def _timm(name: str, **options: Any) -> Callable[[tuple[int, int]], torch.nn.Module]:
    return lambda size: TimmMaps(name, **options)


RESNET26 = (lambda size: resnet.build("float32", 26), _timm("resnet26", output_stride=16))
RESNET50 = (lambda size: resnet.build("float32", 50), _timm("resnet50", output_stride=16))
MOBILENET = (lambda size: mobilenet_v2.build("float32"), _timm("mobilenetv2_100", output_stride=16))
HRNET = (
    lambda size: hrnet.build("float32", 18, upsampling="nearest"),
    _timm("hrnet_w18", feature_location=""),
)
SEGNET = (lambda size: segnet.build("float32"), lambda size: SegNetMaps())
DEEPLAB = (DeepLabDecoder, lambda encoder: DeepLabHead(encoder.channels))
NETWORKS = {
    "resnet26": Network(*RESNET26),
    "resnet50": Network(*RESNET50),
    "resnext50": Network(
        lambda size: resnet.build("float32", 50, groups=32, group_width=4),
        _timm("resnext50_32x4d", output_stride=16),
    ),
    "mobilenet_v2": Network(*MOBILENET),
    "efficientnet_b0": Network(
        lambda size: efficientnet.build("float32", drop=0.0), _timm("efficientnet_b0", output_stride=16)
    ),
    "hrnet_w18": Network(*HRNET),
    f"vit_b16_depth{DEPTH}": Network(
        lambda size: vit.build("float32", depth=DEPTH, grid=[n // 16 for n in size]), ViTMaps
    ),
    "segnet_encoder": Network(*SEGNET),
    "resnet26_deeplab": Network(*RESNET26, *DEEPLAB),
    "resnet50_deeplab": Network(*RESNET50, *DEEPLAB),
    "mobilenet_v2_deeplab": Network(
        *MOBILENET,
        lambda: DeepLabDecoder(light=True),
        lambda encoder: DeepLabHead(encoder.channels, light=True),
    ),
    "hrnet_w18_semantic_fpn": Network(
        *HRNET, SemanticFPNDecoder, lambda encoder: SemanticFPN(encoder.channels)
    ),
    "segnet": Network(*SEGNET, SegNetDecoder, lambda encoder: SegNetUp()),
}


class Whole(nn.Module):
    """Encoder and decoder, or the encoder alone."""

    encoder: nn.Module
    decoder: nn.Module | None

    @nn.compact
    def __call__(self, image):
        maps = self.encoder(image, True)
        return maps if self.decoder is None else self.decoder(maps, True)


class Side(NamedTuple):
    """One side of the comparison: `step` does one step and waits for its end."""

    step: Callable[[], None]
    parameters: int
    flops: float


def ours(network: Network, image: np.ndarray) -> Side:
    """Side of JAX."""
    decoder = network.decoder and network.decoder()
    model = Whole(network.encoder(image.shape[1:3]), decoder)
    image = jnp.asarray(image)
    state = dict(jax.jit(model.init)(jax.random.key(0), image))
    parameters = cost.parameters(state["params"])

    def loss(params, statistics, image):
        outputs, statistics = model.apply({"params": params, **statistics}, image, mutable=["batch_stats"])
        maps = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.mean(y**2) for y in maps), statistics

    def train(state, image):
        params, statistics = state["params"], {k: v for k, v in state.items() if k != "params"}
        gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics, image)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
        return {"params": params, **statistics}

    compiled = jax.jit(train, donate_argnums=0).lower(state, image).compile()

    def step():
        nonlocal state
        state = jax.block_until_ready(compiled(state, image))

    return Side(step, parameters, compiled.cost_analysis()["flops"])


def theirs(network: Network, image: np.ndarray) -> Side:
    """Side of PyTorch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = network.their_encoder(image.shape[1:3])
    decoder = network.their_decoder(encoder) if network.their_decoder else torch.nn.Identity()
    model = torch.nn.Sequential(encoder, decoder).train()
    model = model.to(device, memory_format=torch.channels_last)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def gradients():
        outputs = model(x)
        maps = [outputs] if torch.is_tensor(outputs) else [y for y in outputs if y.is_floating_point()]
        sum(y.square().mean() for y in maps).backward()

    def step():
        optimizer.zero_grad()
        gradients()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    backward = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        gradients()
    return Side(step, sum(p.numel() for p in model.parameters()), counter.get_total_flops())


def _convolution_backward(gradient, inputs, kernel, *rest, **unused):
    """FLOPs: as many for each wanted gradient as forward (PyTorch's own count is too high with groups)."""
    wanted = rest[-1]  # of input, kernel and bias
    return sum(wanted[:2]) * 2 * math.prod(kernel) * gradient[0] * math.prod(gradient[2:])


def compare(sides: Sequence[Side], steps: int) -> list[float]:
    """Median milliseconds of each side's step; they take turns."""
    times = [[] for _ in sides]
    for number in range(steps + 2):  # two to warm up
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            side.step()
            if number >= 2:
                taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of " + ", ".join(NETWORKS))
    parser.add_argument("--size", default="96,128", help="height and width of the images, multiples of 32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()

    # JAX has a thread for each core that it is allowed, and would take all of a GPU's memory for itself.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")  # on a GPU, as JAX and PyTorch's own convolutions
    import_torchvision()

    size = [int(n) for n in arguments.size.split(",")]
    image = np.random.default_rng(0).normal(size=(arguments.batch, *size, 3)).astype(np.float32)
    print(
        f"{jax.devices()[0].device_kind}, {arguments.threads} threads, {image.shape[0]} x {arguments.size}\n"
    )
    print("| network | M parameters | GFLOPs ours | theirs | ms ours | theirs | ours / theirs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.networks.split(","):
        sides = ours(NETWORKS[name], image), theirs(NETWORKS[name], image)
        mine, other = sides
        if mine.parameters != other.parameters:
            raise SystemExit(
                f"{name} has {mine.parameters} parameters here and {other.parameters} in PyTorch"
            )
        times = compare(sides, arguments.steps)
        print(
            f"| {name} | {mine.parameters / 1e6:.2f} | {mine.flops / 1e9:.2f} | {other.flops / 1e9:.2f}"
            f" | {times[0]:.0f} | {times[1]:.0f} | {times[0] / times[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
