"""Published weights of models/backbones/vit.py."""

import dataclasses
import math
import re

import numpy as np

from mtl_jax.models.backbones.vit import resample
from mtl_jax.models.preprocessing import IMAGENET, SYMMETRIC
from mtl_jax.weights.source import TORCH_NORM, Source, Taken, plain, torch_dense


def _tokens(path: str, token: str, positions: str) -> Taken | None:
    """Of their [1, 1, C] and [1, 1 + h * w, C], our class token and positions; None for any other path."""
    if path == "class_token":
        return Taken((token,), lambda x, shape: x[0, 0])
    if path == "class_position":
        return Taken((positions,), lambda x, shape: x[0, 0])
    return Taken((positions,), _grid) if path == "position" else None


def _grid(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[1, 1 + h * w, C] -> the patches' of our grid: resampled, which is not exact, where theirs is another.

    Released grids are square; any other number of tokens is left as it is, for its shape to be told.
    """
    side = math.isqrt(x.shape[1] - 1)
    if side * side != x.shape[1] - 1:
        return x
    return np.asarray(resample(x[0, 1:].reshape(side, side, -1), shape[:2]))


def _torch_patches(name: str) -> Taken:
    """[C, 3, p, p] of a torch convolution that steps from patch to patch -> [p * p * 3, C]."""
    return Taken(
        (name,), lambda x, shape: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]) if x.ndim == 4 else x
    )


TIMM = {
    "qkv": "attn.qkv",  # query, key, value; heads and their channels within each, as ours
    "out": "attn.proj",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}


def _timm(path: str, encoder) -> Taken:
    """timm's names: patch_embed.proj, cls_token, pos_embed, blocks.0.attn.qkv, norm, head."""
    del encoder
    if (tokens := _tokens(path, "cls_token", "pos_embed")) is not None:
        return tokens
    if path == "embed/kernel":
        return _torch_patches("patch_embed.proj.weight")
    *block, layer, leaf = path.split("/")
    theirs = f"blocks.{_index(block[0])}.{TIMM[layer]}" if block else layer
    theirs = "patch_embed.proj" if layer == "embed" else theirs
    return torch_dense(f"{theirs}.weight") if leaf == "kernel" else plain(f"{theirs}.{TORCH_NORM[leaf]}")


GOOGLE = {
    "out": "MultiHeadDotProductAttention_1/out",
    "mlp1": "MlpBlock_3/Dense_0",
    "mlp2": "MlpBlock_3/Dense_1",
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_2",
}


def _google(path: str, encoder) -> Taken:
    """Names of Google's first release and of its augreg checkpoints, which have Flax's layout:
    embedding/kernel, cls, Transformer/encoderblock_0/LayerNorm_0/scale, Transformer/encoder_norm/scale.

    They were trained with GELU's tanh approximation; here, as in timm, they run with the exact one.
    """
    if (tokens := _tokens(path, "cls", "Transformer/posembed_input/pos_embedding")) is not None:
        return tokens
    if path == "embed/kernel":  # [p, p, 3, C]
        return Taken(("embedding/kernel",), lambda x, shape: x.reshape(-1, x.shape[-1]))
    *block, layer, leaf = path.split("/")
    if not block:
        theirs = {"embed": "embedding", "norm": "Transformer/encoder_norm", "head": "head"}[layer]
        return plain(f"{theirs}/{leaf}")
    inside = f"Transformer/encoderblock_{_index(block[0])}"
    attention = f"{inside}/MultiHeadDotProductAttention_1"
    if layer == "qkv":  # [C, N, C / N] each, or [N, C / N], of N heads
        return Taken(
            tuple(f"{attention}/{part}/{leaf}" for part in ("query", "key", "value")),
            lambda *xs: np.concatenate([x.reshape(*x.shape[:-2], -1) for x in xs[:-1]], -1),
        )
    if (layer, leaf) == ("out", "kernel"):  # [N, C / N, C]; with other heads than ours it is told as it is
        return Taken(
            (f"{attention}/out/kernel",),
            lambda x, shape: x.reshape(-1, x.shape[-1]) if len(x) == encoder.heads else x,
        )
    return plain(f"{inside}/{GOOGLE[layer]}/{leaf}")


def _index(block: str) -> int:
    """Theirs, from 0, of our name of a block."""
    return int(re.fullmatch(r"block(\d+)", block)[1]) - 1


# The members for 384 pixels have the grid that ours has by default. In the first releases, a layer
# `pre_logits` stands between the class token and the classifier of ImageNet-21k.
_TIMM = Source(
    _timm,
    dataclasses.replace(SYMMETRIC, size=384, crop=1.0),
    unused=(r"head\..*", r"pre_logits\..*"),
)
_FACEBOOK = dataclasses.replace(_TIMM, preprocessing=IMAGENET, inside=("model",))

SOURCES = {
    "timm": _TIMM,
    "google": Source(
        _google,
        _TIMM.preprocessing,
        prefixes=("opt/target/",),
        unused=(r"head/.*", r"pre_logits/.*"),
    ),
    # Touvron et al. (ICML 2021), not the distilled ones; Caron et al. (ICCV 2021); He et al. (CVPR 2022).
    "deit": _FACEBOOK,
    "dino": _FACEBOOK,
    "mae": _FACEBOOK,
}
