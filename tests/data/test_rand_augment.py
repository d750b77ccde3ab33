"""The colours change as Pillow changes them, by chance as it should be, and no pixel moves."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from mtl_jax.data import rand_augment as ra

LEVELS = range(6)
BLENDS = {
    "brightness": (ra.brightness, ImageEnhance.Brightness),
    "color": (ra.color, ImageEnhance.Color),
    "contrast": (ra.contrast, ImageEnhance.Contrast),
    "sharpness": (ra.sharpness, ImageEnhance.Sharpness),
}
BYTES = {
    "identity": lambda photo, level: photo,
    "posterize": lambda photo, level: ImageOps.posterize(photo, [8, 8, 8, 8, 7, 7][level]),
    "solarize": lambda photo, level: ImageOps.solarize(photo, 255 - 8.5 * level),
    "equalize": lambda photo, level: ImageOps.equalize(photo),
}


def photo(seed, size=(23, 31)):
    """Channels of different range; smooth and noisy places; black and white among the values."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / 31
    channels = [200 * x + 30, 255 * y**2, 90 + 40 * np.sin(9 * x * y)]
    values = np.stack(channels, axis=-1) + rng.normal(0, 12, (*size, 3)) * (x > 0.4)[..., None]
    values[2:4, 3:6], values[-2:, -3:] = 255, 0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def scaled(image):
    return tf.constant(image.astype(np.float32) / np.float32(255))


def levels_of(image):
    """Its values in 255ths."""
    return np.asarray(image) * 255.0


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.85, 1.0, 1.15, 1.8])
@pytest.mark.parametrize("name", BLENDS)
def test_blends_are_those_of_pillow(name, factor):
    ours, enhance = BLENDS[name]
    for seed in range(3):
        image = photo(seed)
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor), np.float64)
        error = levels_of(ours(scaled(image), factor)) - expected
        # Pillow rounds the picture that it blends with, and cuts the result down to whole numbers.
        assert np.abs(error).max() < 1.01 + 0.51 * abs(1 - factor)
        if factor == 1:
            np.testing.assert_array_equal(ours(scaled(image), factor), scaled(image))


@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_posterize_is_pillows(bits):
    expected = np.asarray(ImageOps.posterize(Image.fromarray(photo(0)), bits))
    np.testing.assert_allclose(levels_of(ra.posterize(scaled(photo(0)), bits)), expected, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 128.0, 212.5, 246.5, 255.0])
def test_solarize_is_pillows(threshold):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(photo(0)), threshold))
    np.testing.assert_allclose(levels_of(ra.solarize(scaled(photo(0)), threshold)), expected, atol=1e-4)


def odd_images():
    flat = photo(0)
    flat[..., 1] = 77
    dull = (photo(1) // 4 + 60).astype(np.uint8)
    two = np.where(photo(2) > 100, 201, 9).astype(np.uint8)
    return [photo(0), flat, dull, two, photo(3, (4, 5)), photo(4, (90, 70))]


@pytest.mark.parametrize("image", odd_images())
def test_histograms_are_changed_as_pillow_does(image):
    """Whole images: a flat channel, few values, and too few pixels for a step are cases of their own."""
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image)))
    np.testing.assert_allclose(levels_of(ra.equalize(scaled(image))), expected, atol=1e-4)
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(image)), np.float64)
    error = levels_of(ra.auto_contrast(scaled(image))) - expected
    assert -1e-3 < error.min() and error.max() < 1.001  # Pillow cuts down to whole numbers


@pytest.mark.parametrize("level", LEVELS)
def test_levels_have_the_published_strengths(level):
    image = photo(level)
    changed = {
        (name, sign): levels_of(ra.apply(scaled(image), tf.constant(index), level, sign))
        for index, name in enumerate(ra.OPERATIONS)
        for sign in (-1, 1)
    }
    assert {name for name, _ in changed} == {*BLENDS, *BYTES, "auto_contrast"}
    for (name, sign), got in changed.items():
        if name in BLENDS:
            expected = BLENDS[name][1](Image.fromarray(image)).enhance(1 + sign * 0.03 * level)
            assert np.abs(got - np.asarray(expected, np.float64)).max() < 1.1
        elif name in BYTES:
            np.testing.assert_allclose(got, BYTES[name](Image.fromarray(image), level), atol=1e-4)
    for name in BLENDS:  # and one sign takes what the other adds
        up, down = changed[name, 1] - levels_of(scaled(image)), changed[name, -1] - levels_of(scaled(image))
        assert (np.abs(up).max() > 1.5) == (np.abs(down).max() > 1.5) == (level > 0)
        assert np.mean(up * down) <= 0


def draws(count, operations=2):
    seeds = tf.data.Dataset.range(count).map(lambda s: ra.draw(tf.stack([s, 5]), operations))
    return [x.numpy() for x in next(iter(seeds.batch(count)))]


def test_draws_are_even_and_independent():
    which, level, sign = draws(6000)
    for values, count in ((which, 9), (level, 6), ((sign > 0).astype(int), 2)):
        for k in range(2):
            counts = np.bincount(values[:, k], minlength=count)
            assert len(counts) == count and scipy.stats.chisquare(counts).pvalue > 1e-3
    assert set(np.unique(sign)) == {-1, 1}
    pairs = [(which[:, 0], which[:, 1]), (level[:, 0], level[:, 1]), (which[:, 0], level[:, 0]),
             (which[:, 1], sign[:, 1]), (level[:, 0], sign[:, 0])]  # fmt: skip
    for one, two in pairs:
        table = scipy.stats.contingency.crosstab(one, two).count
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_operations_follow_one_another_as_drawn():
    image = scaled(photo(0))
    for number in range(20):
        seed = tf.constant([1, number])
        expected = image
        for which, level, sign in zip(*(x.numpy() for x in ra.draw(seed, 3)), strict=True):
            expected = list(ra.OPERATIONS.values())[which](expected, np.float32(level), sign)
        np.testing.assert_allclose(ra.rand_augment(image, seed, 3), expected, atol=1e-6)


def many(image, count, operations=2):
    changed = tf.data.Dataset.range(count).map(
        lambda s: ra.rand_augment(tf.constant(image), tf.stack([3, s]), operations)
    )
    return np.stack(list(changed.as_numpy_iterator()))


def test_a_thousand_draws_never_move_a_pixel():
    """A lone pixel, also when it spreads to its neighbours evenly, stays the centre of what differs."""
    image = np.full((22, 24, 3), 0.4, np.float32)
    image[16, 3] = 0.9
    changed = many(image, 1000)
    differs = np.abs(changed - np.median(changed, axis=(1, 2), keepdims=True)).sum(-1)
    total = differs.sum((1, 2))
    seen = total > 0.1  # stretched to white, then inverted, it may be as black as the rest
    assert seen.mean() > 0.9
    rows = (differs.sum(2) * np.arange(22)).sum(1)[seen] / total[seen]
    columns = (differs.sum(1) * np.arange(24)).sum(1)[seen] / total[seen]
    np.testing.assert_allclose(rows, 16, atol=1e-3)
    np.testing.assert_allclose(columns, 3, atol=1e-3)


def test_results_are_images_that_the_seed_decides():
    image = photo(0).astype(np.float32) / np.float32(255)
    one, two = many(image, 120), many(image, 120)
    np.testing.assert_array_equal(one, two)
    assert one.min() >= 0 and one.max() <= 1 and np.isfinite(one).all() and one.dtype == np.float32
    assert len(np.unique(one.mean((1, 2, 3)))) > 60
    np.testing.assert_array_equal(many(image, 3, operations=0), [image] * 3)
