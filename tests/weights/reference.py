"""The same weights in a network of PyTorch's and in one of ours must give the same maps."""

import importlib
import sys
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.weights.source import Source, fill


def import_torchvision() -> ModuleType:
    """Also where torchvision was built for another torch: none of its own operators is used here."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    import_torchvision.operators = torch.library.Library("torchvision", "FRAGMENT")  # as long as the module
    for name in ("nms", "qnms"):
        import_torchvision.operators.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    return importlib.import_module("torchvision")


def randomise(network: Any, seed: int = 0) -> Any:
    """The torch network in evaluation mode, with norms that differ from one another and from the identity."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, x in [*network.named_parameters(), *network.named_buffers()]:
        if x.ndim == 1:
            spread = torch.rand(x.shape, generator=generator) - 0.5
            x.data = 1 + 0.6 * spread if name.endswith(("weight", "var")) else 0.4 * spread
    return network.eval()


def tensors_of(network: Any) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in network.state_dict().items()}


def shapes_of(encoder: nn.Module, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """The encoder's variables, as shapes."""
    image = jnp.zeros((1, *size, 3))
    return dict(jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, False)))


def filled(encoder: nn.Module, network: Any, source: Source, size: tuple[int, int] = (64, 64)) -> Any:
    """The encoder's variables with the torch network's weights."""
    tensors = source.tensors(tensors_of(network), "memory")
    return fill(shapes_of(encoder, size), tensors, source, encoder, "memory")


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """f[B,H,W,C] of ours against [B,C,H,W] of torch (or equal shapes), relative to the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def photograph(size: tuple[int, int] = (64, 64), batch: int = 2) -> np.ndarray:
    """f32[B,H,W,3]: noise with the statistics of a normalised image."""
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)
