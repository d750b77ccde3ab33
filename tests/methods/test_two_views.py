"""Random views: each change against torchvision's for given parameters, and what is drawn of these."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.methods import two_views
from tests.weights.reference import import_torchvision

COORDINATES = jnp.stack([*jnp.mgrid[:40, :52], jnp.zeros((40, 52))], -1).astype(jnp.float32)


@pytest.fixture(scope="module")
def functional():
    absent = "install the extra `parity` (see setup.py) to compare with torchvision"
    pytest.importorskip("torch", reason=absent).set_num_threads(1)  # several tests run at once
    try:
        import_torchvision()
    except ImportError:
        pytest.skip(absent)
    return pytest.importorskip("torchvision.transforms.functional")


def noise(size=(19, 23), seed=0):
    image = np.random.default_rng(seed).uniform(size=(*size, 3)).astype(np.float32)
    image[2, 3:6] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]  # these have no hue
    image[3, 3:6] = [[0.7, 0.7, 0.1], [0.2, 0.9, 0.9], [0.8, 0.3, 0.8]]  # two channels are the largest
    return image


def theirs(function, image, *arguments, **options):
    import torch

    result = function(torch.from_numpy(image).permute(2, 0, 1), *arguments, **options)
    return result.permute(1, 2, 0).numpy()


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# Against torchvision.


@pytest.mark.parametrize(
    ("corner", "extent", "size"),
    [
        pytest.param((3, 4), (9, 12), (16, 15), id="enlarged"),
        pytest.param((0, 0), (19, 23), (6, 9), id="reduced"),
        pytest.param((10, 2), (9, 5), (4, 11), id="both"),
        pytest.param((5, 6), (7, 8), (7, 8), id="cut"),
    ],
)
def test_boxes(functional, corner, extent, size):
    image = noise()
    ours = two_views.crop(jnp.asarray(image), jnp.asarray(corner), jnp.asarray(extent), size)
    expected = theirs(functional.resized_crop, image, *corner, *extent, list(size), antialias=True)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "name", "strengths"),
    [
        (two_views.brightness, "adjust_brightness", (0.6, 1.4)),
        (two_views.contrast, "adjust_contrast", (0.6, 1.4)),
        (two_views.saturation, "adjust_saturation", (0.6, 1.4)),
        (two_views.hue, "adjust_hue", (-0.1, 0.1, 0.37, 0.0)),
    ],
)
def test_colours(functional, ours, name, strengths):
    image = noise()
    for strength in strengths:
        expected = theirs(getattr(functional, name), image, strength)
        np.testing.assert_allclose(
            ours(jnp.asarray(image), strength), expected, atol=1e-4
        )  # their luma is rounded


def test_colours_in_any_order(functional):
    image, strength = noise(), [1.4, 0.7, 0.6, 0.1]
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    run = jax.jit(two_views.jitter)
    results = []
    for order in itertools.permutations(range(4)):
        expected = image
        for number in order:
            expected = theirs(getattr(functional, names[number]), expected, strength[number])
        results.append(run(image, jnp.asarray(strength), jnp.asarray(order)))
        np.testing.assert_allclose(results[-1], expected, atol=1e-3)
    assert np.std(results, axis=0).max() > 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur(functional, sigma):
    size = 2 * two_views.REACH + 1
    expected = theirs(functional.gaussian_blur, noise(), [size, size], [sigma, sigma])
    np.testing.assert_allclose(two_views.blur(jnp.asarray(noise()), sigma), expected, atol=1e-6)


def test_boxes_are_drawn_like_torchvisions(functional):
    """The mean and the spread of height and width, also where few trials fit; all fit in the end."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    for full in ((40, 60), (20, 160)):
        drawn = jax.jit(jax.vmap(lambda key, full=full: two_views.draw_extent(key, full)))(keys(1000))
        blank = torch.zeros(3, *full)
        expected = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(1000)]
        assert np.all(drawn >= 1) and np.all(drawn <= np.asarray(full))
        for statistic in (np.mean, np.std):
            np.testing.assert_allclose(statistic(drawn, 0), statistic(expected, 0), rtol=0.1)
    one = two_views.draw_extent(jax.random.key(0), (4, 400))  # nothing fits: the largest box
    assert one.tolist() == [4, 5]


# What is drawn.


@pytest.mark.parametrize("size", [(24, 30), (48, 60)], ids=["cut", "enlarged"])
def test_windows_are_apart_by_the_shift_and_within_the_image(size):
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(two_views.windows(key, COORDINATES, (24, 30), 5, size))))
    views = np.asarray(draw(keys(400)))
    first, second = views[:, 0], views[:, 1]
    np.testing.assert_allclose((second - first)[..., :2], 5, atol=1e-4)
    corners = first[:, 0, 0, :2]
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [40 - 5 - 24 - 1, 52 - 5 - 30 - 1]
    counts = np.bincount(corners[:, 0].astype(int))
    assert counts.min() > 15 and np.corrcoef(corners.T)[0, 1] == pytest.approx(0, abs=0.2)
    assert second[:, -1, -1, 0].max() == 39 - 1 and second[:, -1, -1, 1].max() == 51 - 1


def test_windows_differ_by_32_pixels_of_the_papers_canvas():
    x = jnp.broadcast_to(jnp.arange(512.0)[None, :, None], (512, 512, 3))
    first, second = two_views.windows(jax.random.key(1), x, (384, 384), 32, (384, 384))
    assert jnp.all(second - first == 32)


def test_a_turned_view_is_the_same_view_turned_and_shows_no_border():
    batched = jax.jit(jax.vmap(lambda key, image: two_views.rotation_view(key, image, 12), (0, None)))

    def run(image, seed):
        return [np.asarray(x) for x in batched(keys(100, seed), jnp.broadcast_to(image, (30, 44, 3)))]

    views, quarters = run(jnp.asarray(0.3), 0)
    np.testing.assert_allclose(views, 0.3, atol=1e-6)
    assert views.shape == (100, 12, 12, 3) and np.bincount(quarters, minlength=4).min() > 12
    # The values are the columns: turned back, they rise, or fall if mirrored, along the rows.
    mirrored = 0
    for view, k in zip(*run(jnp.arange(44.0)[None, :, None], 1), strict=True):
        upright = np.rot90(view[..., 0], -k)
        np.testing.assert_allclose(upright, upright[:1].repeat(12, 0), atol=1e-4)
        assert len(set(np.sign(np.diff(upright[0])))) == 1
        mirrored += upright[0, 0] > upright[0, -1]
    assert 30 < mirrored < 70
    for view, k in zip(*run(jnp.arange(30.0)[:, None, None], 2), strict=True):  # none is upside down
        assert np.all(np.diff(np.rot90(view[..., 0], -k)[:, 0]) > 0)


def test_strengths_and_orders_are_drawn_over_their_ranges(monkeypatch):
    monkeypatch.setattr(two_views, "jitter", lambda image, strength, order: (strength, order))
    strength, order = jax.vmap(lambda key: two_views.jittered(key, jnp.zeros((1, 1, 3))))(keys(600))
    low, high = np.array([0.6, 0.6, 0.6, -0.1]), np.array([1.4, 1.4, 1.4, 0.1])
    assert np.all(strength >= low) and np.all(strength <= high)
    np.testing.assert_allclose(np.std(strength, 0), (high - low) / 12**0.5, rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(np.asarray(strength).T), np.eye(4), atol=0.2)
    assert len({tuple(o) for o in order.tolist()}) == 24
    monkeypatch.setattr(two_views, "blur", lambda image, sigma: sigma)
    sigma = jax.vmap(lambda key: two_views._blurred(key, None))(keys(600))
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2.0


def test_how_often_each_change_is_made(monkeypatch):
    """Of an image of two colours, with changes that leave a trace instead of the real ones."""
    monkeypatch.setattr(two_views, "jittered", lambda _, image: image + 10)
    monkeypatch.setattr(two_views, "_blurred", lambda _, image: image + 100)
    image = jnp.asarray([[[0.0, 0, 1], [1, 0, 0]]])
    results = np.asarray(jax.vmap(lambda key: two_views.changed(key, image))(keys(2000)))
    hundreds, tens = results // 100, results % 100 // 10
    made = {
        "jittered": tens[:, 0, 0, 0] == 1,
        "grey": results[:, 0, 0, 0] == results[:, 0, 0, 2],
        "blurred": hundreds[:, 0, 0, 0] == 1,
        "mirrored": results[:, 0, 0, 0] > results[:, 0, 1, 0],
    }
    shares = {"jittered": 0.8, "grey": 0.2, "blurred": 0.5, "mirrored": 0.5}
    assert {n: np.mean(made[n]) for n in made} == pytest.approx(shares, abs=0.05)
    np.testing.assert_allclose(np.corrcoef(list(made.values())), np.eye(4), atol=0.1)


def test_the_two_views_are_changed_on_their_own():
    image = jnp.asarray(noise((40, 52)))
    views = jax.jit(jax.vmap(lambda key: two_views.contrast_views(key, image, (24, 30), 0, (12, 15))))
    query, key = map(np.asarray, views(keys(30)))
    assert query.shape == key.shape == (30, 12, 15, 3)
    assert query.min() >= 0 and query.max() <= 1 + 1e-6
    assert np.mean(np.abs(query - key).max((1, 2, 3)) > 1e-3) > 0.9
