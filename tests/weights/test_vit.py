import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.vit import ViT, resample
from mtl_jax.weights.source import fill
from mtl_jax.weights.vit import SOURCES
from tests.weights.reference import assert_close, filled, photograph, shapes_of, tensors_of

SIZE = {"width": 36, "depth": 4, "heads": 3}


def transformer(torch, timm, width=36, depth=4, heads=3, grid=4, patch=16, classes=10):
    """timm's, with weights that put all of its parts in play; it takes images of any size as ours does."""
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    generator = torch.Generator().manual_seed(0)
    for name, x in network.named_parameters():
        noise = torch.randn(x.shape, generator=generator)
        if name in ("cls_token", "pos_embed"):
            x.data = noise
        elif x.ndim == 1:
            x.data = 0.2 * noise + ("norm" in name and name.endswith("weight"))
        else:
            x.data = noise / x[0].numel() ** 0.5
    return network.eval()


def as_torch(torch, image):
    return torch.from_numpy(image.transpose(0, 3, 1, 2))


def maps_of(network, image, taps):
    """timm's tokens after the blocks `taps`, of which the last is normalised, as [B,C,h,w]; class token."""
    grid = [-(-n // 16) for n in image.shape[2:]]
    x = network._pos_embed(network.patch_embed(image))
    maps = []
    for number, block in enumerate(network.blocks, 1):
        x = block(x)
        if number == len(network.blocks):
            x = network.norm(x)
        if number in taps:
            maps.append(x[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2))
    return maps, x[:, 0]


def apply(ours, variables, image):
    return jax.jit(lambda v, x: ours.apply(v, x, False))(variables, image)


@pytest.mark.parametrize("size", [(64, 64), (65, 40), (33, 100)])
def test_a_timm_transformer_gives_the_same_maps(torch, timm, size):
    theirs = transformer(torch, timm)
    ours = ViT(**SIZE, grid=(4, 4), top=True)
    image = photograph(size)
    *maps, token = apply(ours, filled(ours, theirs, SOURCES["timm"]), image)
    with torch.no_grad():
        expected, expected_token = maps_of(theirs, as_torch(torch, image), (1, 2, 3, 4))
    for ours_map, theirs_map in zip(maps, expected, strict=True):
        assert_close(ours_map, theirs_map)
    assert_close(token[:, 0, 0], expected_token)


class Classifier(nn.Module):
    """What a released network is: our encoder and, behind its last output, a dense layer `head`."""

    encoder: ViT
    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="head")(self.encoder(x, False)[-1][:, 0, 0])


def test_the_smallest_released_one_classifies_the_same(torch, timm):
    theirs = transformer(torch, timm, 192, 12, 3, grid=14, classes=1000)
    ours = ViT(192, 12, 3, grid=(14, 14), top=True)
    image = photograph((96, 80), batch=1)
    shapes = shapes_of(ours)
    head = jax.eval_shape(lambda: nn.Dense(1000).init(jax.random.key(0), jnp.zeros((1, 192))))["params"]
    tree = fill(
        {"params": {**shapes["params"], "head": head}}, tensors_of(theirs), SOURCES["timm"], ours, "memory"
    )["params"]
    classifier = {"head": tree.pop("head"), "encoder": tree}
    logits = jax.jit(Classifier(ours, 1000).apply)({"params": classifier}, image)
    with torch.no_grad():
        assert_close(logits, theirs(as_torch(torch, image)))


@pytest.mark.parametrize(
    "old,new", [(14, (14, 14)), (14, (32, 32)), (24, (28, 36)), (24, (7, 30)), (8, (3, 2))]
)
def test_positions_are_resampled_as_timm_does(torch, timm, old, new):
    position = np.random.default_rng(0).normal(size=(old, old, 5)).astype(np.float32)
    theirs = timm.layers.resample_abs_pos_embed(
        torch.from_numpy(position.reshape(1, -1, 5)), list(new), num_prefix_tokens=0
    )
    ours = np.asarray(resample(position, new)).reshape(1, -1, 5)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (6, 5)])
def test_positions_of_a_release_fit_any_grid(torch, timm, grid):
    theirs = transformer(torch, timm)
    ours = ViT(**SIZE, grid=grid)
    parameters = filled(ours, theirs, SOURCES["timm"])["params"]
    expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed, list(grid))
    assert_close(parameters["position"].reshape(1, -1, 36), expected[:, 1:], 1e-5)
    assert_close(parameters["class_position"], expected[0, 0])


def google(width=36, depth=4, heads=3, grid=4, patch=16, classes=10):
    """Names and layout of the .npz files of Google's releases, with random values."""
    rng = np.random.default_rng(0)
    part = width // heads
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "head/kernel": (width, classes),
        "head/bias": (classes,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + grid * grid, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{leaf}": (width,) for leaf in ("scale", "bias")}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for projection in ("query", "key", "value"):
            shapes[f"{attention}/{projection}/kernel"] = (width, heads, part)
            shapes[f"{attention}/{projection}/bias"] = (heads, part)
        shapes |= {f"{attention}/out/kernel": (heads, part, width), f"{attention}/out/bias": (width,)}
        for layer, (before, after) in enumerate([(width, 4 * width), (4 * width, width)]):
            dense = f"{block}/MlpBlock_3/Dense_{layer}"
            shapes |= {f"{dense}/kernel": (before, after), f"{dense}/bias": (after,)}
    return {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_release_of_google_is_what_timm_reads_in_it(torch, timm, tmp_path, prefix):
    file = tmp_path / "Ti_16.npz"
    np.savez(file, **{prefix + name: x for name, x in google().items()})
    theirs = transformer(torch, timm)
    with torch.no_grad():
        theirs.load_pretrained(str(file))
    ours = ViT(**SIZE, grid=(4, 4), top=True)
    tree = shapes_of(ours)
    tree["params"]["head"] = {
        "kernel": jax.ShapeDtypeStruct((36, 10), jnp.float32),
        "bias": jax.ShapeDtypeStruct((10,), jnp.float32),
    }
    with np.load(file) as saved:
        tensors = SOURCES["google"].tensors(dict(saved), file)
    variables = fill(tree, tensors, SOURCES["google"], ours, file)
    expected = fill(tree, tensors_of(theirs), SOURCES["timm"], ours, "memory")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    image = photograph((64, 64), batch=1)
    del variables["params"]["head"]
    with torch.no_grad():
        _, token = maps_of(theirs, as_torch(torch, image), ())
    assert_close(apply(ours, variables, image)[-1][:, 0, 0], token)


def test_layers_of_other_uses_are_left(torch, timm):
    ours = ViT(**SIZE, grid=(4, 4))
    tensors = google() | {"pre_logits/kernel": np.zeros((36, 36)), "pre_logits/bias": np.zeros(36)}
    fill(shapes_of(ours), tensors, SOURCES["google"], ours, "a.npz")
    tensors = tensors_of(transformer(torch, timm)) | {"pre_logits.fc.weight": np.zeros((36, 36))}
    fill(shapes_of(ours), tensors, SOURCES["timm"], ours, "a.pth")


@pytest.mark.parametrize("release", ["deit", "dino", "mae"])
def test_releases_with_timms_names(torch, timm, release):
    ours = ViT(**SIZE, grid=(4, 4))
    source = SOURCES[release]
    theirs = tensors_of(transformer(torch, timm))
    if release != "deit":  # they have no classifier
        del theirs["head.weight"], theirs["head.bias"]
    saved = theirs if release == "dino" else {"model": theirs}
    fill(shapes_of(ours), source.tensors(saved, "a.pth"), source, ours, "a.pth")


def test_other_numbers_of_heads_or_tokens_are_told():
    ours = ViT(**SIZE, grid=(4, 4))
    tensors = google(heads=4)
    with pytest.raises(UserError, match=r"out/kernel \[4, 9, 36\] for params/block1/out/kernel \[36, 36\]"):
        fill(shapes_of(ours), tensors, SOURCES["google"], ours, "a.npz")
    tensors = google()
    tensors["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 13, 36), np.float32)
    with pytest.raises(UserError, match=r"pos_embedding \[1, 13, 36\] for params/position \[4, 4, 36\]"):
        fill(shapes_of(ours), tensors, SOURCES["google"], ours, "a.npz")


def test_a_distilled_transformer_is_another_network(torch, timm):
    ours = ViT(**SIZE, grid=(4, 4))
    tensors = tensors_of(transformer(torch, timm)) | {"dist_token": np.zeros((1, 1, 36), np.float32)}
    with pytest.raises(UserError, match="has besides dist_token"):
        fill(shapes_of(ours), tensors, SOURCES["deit"], ours, "a.pth")
