"""What fills what: names, layouts, what is left, and every fault by name."""

import types

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.preprocessing import PLAIN
from mtl_jax.weights.source import Source, Taken, fill, plain, torch_conv, torch_dense

ENCODER = types.SimpleNamespace(bias=True)


def take(path, encoder):
    """A form of publication: one convolution, its norm, and a classifier."""
    return {
        "stem/conv/kernel": torch_conv("conv.weight"),
        "stem/conv/bias": plain("conv.bias") if encoder.bias else None,
        "stem/norm/scale": plain("bn.weight"),
        "stem/norm/mean": Taken(
            ("bn.running_mean", "conv.bias"), lambda mean, bias, shape: (mean - bias).reshape(shape)
        ),
        "head/kernel": torch_dense("fc.weight"),
        "head/bias": plain("fc.bias"),
    }.get(path)


def source(**options):
    return Source(take, PLAIN, **options)


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def tree(norms=("norm",)):
    """Ours, as shapes; Flax names its own modules BatchNorm_0 inside."""
    scale = {"BatchNorm_0": {"scale": shape(4)}}
    mean = {"BatchNorm_0": {"mean": shape(4)}}
    return {
        "params": {
            "stem": {"conv": {"kernel": shape(3, 2, 5, 4)}} | dict.fromkeys(norms, scale),
            "new": {"kernel": shape(7)},
        },
        "batch_stats": {"stem": dict.fromkeys(norms, mean)},
    }


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    sizes = {"conv.weight": (4, 5, 3, 2), "conv.bias": (4,), "bn.weight": (4,), "bn.running_mean": (4,)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def test_every_parameter_gets_its_tensor(tensors):
    got = fill(tree(), tensors, source(), ENCODER, "a.pth")
    kernel = got["params"]["stem"]["conv"]["kernel"]
    assert kernel[2, 1, 4, 3] == tensors["conv.weight"][3, 4, 2, 1] and kernel.shape == (3, 2, 5, 4)
    np.testing.assert_array_equal(got["params"]["stem"]["norm"]["BatchNorm_0"]["scale"], tensors["bn.weight"])
    np.testing.assert_array_equal(
        got["batch_stats"]["stem"]["norm"]["BatchNorm_0"]["mean"],
        tensors["bn.running_mean"] - tensors["conv.bias"],
    )
    assert jax.tree.structure(got) == jax.tree.structure(tree())


def test_what_no_publication_holds_stays_as_it_is(tensors):
    ours = tree()
    assert fill(ours, tensors, source(), ENCODER, "a.pth")["params"]["new"] is not None
    assert fill(ours, tensors, source(), ENCODER, "a.pth")["params"]["new"] == ours["params"]["new"]


def test_what_tasks_have_for_themselves_is_copied(tensors):
    """Also of tasks whose names are no identifiers of Flax's."""
    got = fill(tree(("norm@depth", "norm@Norm_0")), tensors, source(), ENCODER, "a.pth")
    for collection, name, leaf in (("params", "bn.weight", "scale"), ("batch_stats", None, "mean")):
        one, two = (got[collection]["stem"][f"norm@{t}"]["BatchNorm_0"][leaf] for t in ("depth", "Norm_0"))
        np.testing.assert_array_equal(one, two)
        if name:
            np.testing.assert_array_equal(one, tensors[name])


def test_values_take_our_type(tensors):
    tensors = {name: x.astype(np.float64) for name, x in tensors.items()}
    for leaf in jax.tree.leaves(fill(tree(), tensors, source(), ENCODER, "a.pth")):
        assert leaf.dtype == np.float32


@pytest.mark.parametrize("published", [(6, 4), (6, 4, 1, 1)], ids=["dense", "1x1"])
def test_a_classifier_beside_the_encoder(tensors, published):
    tensors["fc.weight"] = np.arange(24, dtype=np.float32).reshape(published)
    tensors["fc.bias"] = np.arange(6, dtype=np.float32)
    ours = tree()
    ours["params"]["head"] = {"kernel": shape(4, 6), "bias": shape(6)}
    got = fill(ours, tensors, source(), ENCODER, "a.pth")["params"]["head"]
    np.testing.assert_array_equal(got["kernel"], np.arange(24).reshape(6, 4).T)
    np.testing.assert_array_equal(got["bias"], np.arange(6))
    with pytest.raises(UserError, match="it has besides fc.weight, fc.bias$"):
        fill(tree(), tensors, source(), ENCODER, "a.pth")
    fill(tree(), tensors, source(unused=(r"fc\..*",)), ENCODER, "a.pth")


def test_unused_names_are_whole_names(tensors):
    tensors["counter"] = tensors["old.counter"] = np.zeros(1)
    with pytest.raises(UserError, match="it has besides old.counter$"):
        fill(tree(), tensors, source(unused=("counter",)), ENCODER, "a.pth")


def test_every_fault_is_told_at_once(tensors):
    del tensors["bn.weight"], tensors["bn.running_mean"]
    tensors["conv.weight"] = tensors["conv.weight"][:2]
    tensors["late"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        fill(tree(), tensors, source(), ENCODER, "a.pth")
    assert str(error.value) == (
        "a.pth does not fit this network: it lacks bn.weight for params/stem/norm/BatchNorm_0/scale,"
        " bn.running_mean for batch_stats/stem/norm/BatchNorm_0/mean; has the wrong shape in conv.weight"
        " [2, 5, 3, 2] for params/stem/conv/kernel [3, 2, 5, 4]; has besides late"
    )


def test_a_dense_layer_where_a_convolution_is_wanted_is_a_wrong_shape(tensors):
    """No layout is guessed: a tensor of another rank stays as it is, and is named."""
    tensors["conv.weight"] = np.zeros((4, 5), np.float32)
    with pytest.raises(UserError, match=r"conv.weight \[4, 5\] for params/stem/conv/kernel \[3, 2, 5, 4\]"):
        fill(tree(), tensors, source(), ENCODER, "a.pth")
    tensors["fc.weight"], tensors["fc.bias"] = np.zeros((6, 4, 3, 3)), np.zeros(6)
    ours = {"params": {"head": {"kernel": shape(4, 6), "bias": shape(6)}}}
    with pytest.raises(UserError, match=r"fc.weight \[6, 4, 3, 3\] for params/head/kernel \[4, 6\]"):
        fill(ours, tensors, source(), ENCODER, "a.pth")


def test_long_lists_are_cut(tensors):
    tensors |= {f"extra{i}": np.zeros(1) for i in range(11)}
    with pytest.raises(UserError, match=r"besides extra0, .*, extra7 and 3 more$"):
        fill(tree(), tensors, source(), ENCODER, "a.pth")


def test_a_tensor_may_be_used_twice_and_what_makes_it_sees_our_shape(tensors):
    """conv.bias is no parameter of this network, but part of its mean."""
    got = fill(tree(), tensors, source(), types.SimpleNamespace(bias=False), "a.pth")
    assert got["batch_stats"]["stem"]["norm"]["BatchNorm_0"]["mean"].shape == (4,)


X = np.zeros(1)


@pytest.mark.parametrize(
    "options,saved,expected",
    [
        ({}, {"a": X, "epoch": 3, "b.c": X}, {"a", "b.c"}),
        ({"prefixes": ("module.",)}, {"module.a": X, "module.b": X}, {"a", "b"}),
        ({"prefixes": ("module.",)}, {"a": X, "b": X}, {"a", "b"}),
        ({"prefixes": ("module.",)}, {"module.a": X, "queue": X}, {"a"}),
        ({"prefixes": ("module.q.", "q.")}, {"q.a": X, "k.a": X}, {"a"}),
        ({"prefixes": ("module.q.", "module.")}, {"module.q.a": X, "module.b": X}, {"a"}),
        ({"prefixes": ("m.",)}, {"m.m.a": X}, {"m.a"}),
        ({"inside": ("state_dict",)}, {"state_dict": {"a": X}, "b": X}, {"a"}),
        ({"inside": ("state_dict",)}, {"a": X}, {"a"}),
        ({"inside": ("model", "ema")}, {"model": {"ema": {"a": X}}}, {"a"}),
        ({"inside": ("state_dict",)}, {"state_dict": X}, {"state_dict"}),
    ],
)
def test_tensors_of_a_file(options, saved, expected):
    assert set(source(**options).tensors(saved, "a.pth")) == expected


def test_a_file_without_named_tensors_is_refused():
    for saved in (X, [X], 3):
        with pytest.raises(UserError, match="a.pth holds no named tensors: give the file of a state dict"):
            source().tensors(saved, "a.pth")
