"""What is on photographs: crops by hand, and a published network on photographs whose content is known."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage

from mtl_jax import classify
from mtl_jax.errors import UserError
from mtl_jax.models.preprocessing import IMAGENET, Preprocessing
from mtl_jax.predict import read_image
from mtl_jax.weights import packages

NETWORK = "efficientnet_lite0"
CACHE = Path(__file__).parents[1] / ".cache"  # kept from run to run, for it is a download of 17 MB
COFFEE, CAT = (os.path.join(skimage.data_dir, name) for name in ("coffee.png", "chelsea.png"))
CATS = {"tabby, tabby cat", "tiger cat", "Persian cat", "Siamese cat, Siamese", "Egyptian cat"}


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(CACHE))
        try:
            packages.fetch(NETWORK)
        except UserError as error:
            pytest.skip(f"the published network is not here: {error}")
        yield NETWORK


def test_a_published_network_knows_coffee_and_cats(network):
    names = classify.class_names()
    coffee, cat = classify.classify(network, [read_image(path) for path in (COFFEE, CAT)])
    assert names[np.argmax(coffee)] == "espresso" and coffee.max() > 0.9
    assert {names[i] for i in np.argsort(-cat)[:3]} <= CATS
    assert coffee.dtype == np.float32 and coffee.shape == (1000,)
    np.testing.assert_allclose([coffee.sum(), cat.sum()], 1, rtol=1e-5)


def test_the_command_prints_the_most_probable_classes(network, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classify", f"--weights={network}", COFFEE, CAT])
    classify.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (1 + classify.SHOWN)
    assert lines[0] == COFFEE and lines[6] == CAT
    assert lines[1].startswith("   9") and lines[1].endswith(" %  espresso")
    shares = [float(line.split("%")[0]) for line in lines[7:]]
    assert shares == sorted(shares, reverse=True)


def test_the_command_ends_with_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["classify", f"--weights={NETWORK}", str(tmp_path / "none.jpg")])
    with pytest.raises(SystemExit) as stop:
        classify.main()
    assert stop.value.code == 2
    assert "none.jpg" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name,words", [("vgg16", "'vgg16' have no classifier"), ("vgg", "weights 'vgg'")])
def test_packages_without_a_classifier_are_refused(name, words):
    """Before anything is fetched."""
    with pytest.raises(UserError, match=words):
        classify.classify(name, [])


def test_class_names():
    names = classify.class_names()
    assert len(names) == 1000
    assert [names[i] for i in (0, 281, 967, 999)] == [
        "tench, Tinca tinca",
        "tabby, tabby cat",
        "espresso",
        "toilet tissue, toilet paper, bathroom tissue",
    ]


def quarters(height, width):
    """uint8[height,width,3]: the quarters are black, red, green and blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, width // 2 :, 0] = 255
    image[height // 2 :, : width // 2, 1] = 255
    image[height // 2 :, width // 2 :, 2] = 255
    return image


@pytest.mark.parametrize("height,width", [(100, 60), (60, 100), (80, 80), (10, 20), (700, 500), (32, 34)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_the_crop_is_the_middle(height, width, crop):
    preprocessing = Preprocessing(size=48, crop=crop)
    got = classify.crop(quarters(height, width), preprocessing)
    assert got.shape == (48, 48, 3) and got.dtype == np.uint8
    corners = got[[8, 8, 39, 39], [8, 39, 8, 39]]
    np.testing.assert_allclose(corners, [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], atol=2)
    between = (got[8].astype(int)[:, 0] > 127).argmax()  # first red column
    below = (got[:, 8].astype(int)[:, 1] > 127).argmax()
    assert abs(between - 24) <= 2 and abs(below - 24) <= 2


def test_the_crop_covers_its_share_of_the_shorter_side():
    """Of a ramp: the values at the first and the last column."""
    ramp = np.broadcast_to(np.arange(0, 256, dtype=np.uint8)[None, :, None], (200, 256, 3))
    for crop, (first, last) in {1.0: (28, 228), 0.5: (78, 178)}.items():
        got = classify.crop(ramp, Preprocessing(size=50, crop=crop))
        assert abs(int(got[0, 0, 0]) - first) <= 4 and abs(int(got[0, -1, 0]) - last) <= 4


def test_a_crop_that_fits_changes_no_pixel():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    np.testing.assert_array_equal(classify.crop(image, IMAGENET), image[16:240, 16:240])
