"""Images that a method draws beside its examples: which, in what order, at what size."""

import types

import numpy as np
import pytest

from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Split
from mtl_jax.data.resample import covering, smooth
from mtl_jax.errors import UserError
from mtl_jax.tasks import depth
from mtl_jax.views import Stream

STREAM = Stream((6, 8))
SIZES = [(6, 8), (12, 16), (9, 8), (6, 20), (3, 4)]


def split_of(count):
    def load(index):
        height, width = SIZES[index % len(SIZES)]
        return {"image": np.full((height, width, 3), index, np.uint8), "labels": {}}

    sizes = np.array([SIZES[i % len(SIZES)] for i in range(count)], np.int32)
    return Split([str(i) for i in range(count)], lambda: sizes, load)


def options(batch_size, cache=False):
    return types.SimpleNamespace(batch_size=batch_size, cache=cache)


def take(batches, count):
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


@pytest.mark.parametrize("cache", [False, True])
def test_an_epoch_is_every_image_at_most_once(cache):
    """11 images in batches of 3: two are left over in every epoch, others each time."""
    batches = take(pipeline.stream_batches(split_of(11), STREAM, "a", options(3, cache), 5), 12)
    left_over = set()
    for epoch in range(4):
        ids = np.concatenate([b["id"] for b in batches[3 * epoch : 3 * epoch + 3]])
        assert len(set(ids.tolist())) == 9 and ids.min() >= 0 and ids.max() <= 10
        left_over.add(tuple(sorted(set(range(11)) - set(ids.tolist()))))
    assert len(left_over) > 1
    for batch in batches:
        assert set(batch) == {"image", "id"}
        assert batch["image"].shape == (3, 6, 8, 3) and batch["image"].dtype == np.float32
        np.testing.assert_allclose(batch["image"][:, 0, 0, 0], batch["id"] / 255, atol=1e-6)


def test_it_starts_anywhere_and_is_shared_by_hosts_and_has_an_order_of_its_own():
    split, data = split_of(11), options(4)
    ids = [b["id"].tolist() for b in take(pipeline.stream_batches(split, STREAM, "a", data, 5), 6)]
    later = take(pipeline.stream_batches(split, STREAM, "a", data, 5, start=3), 3)
    assert [b["id"].tolist() for b in later] == ids[3:]
    parts = [take(pipeline.stream_batches(split, STREAM, "a", data, 5, 0, (k, 2)), 6) for k in (0, 1)]
    assert [[*a["id"], *b["id"]] for a, b in zip(*parts, strict=True)] == ids
    for name, seed in (("b", 5), ("a", 6)):
        other = take(pipeline.stream_batches(split, STREAM, name, data, seed), 6)
        assert [b["id"].tolist() for b in other] != ids


def test_batches_stand_beside_the_examples_and_change_nothing_of_them():
    tasks = {"depth": depth.build("depth")}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, 6, 8, 3), dtype=np.uint8)

    def load(index):
        return {"image": images[index], "labels": {"depth": np.full((6, 8, 1), 1.0 + index, np.float32)}}

    split = Split(list("abcde"), lambda: np.full((5, 2), (6, 8), np.int32), load)
    augment = types.SimpleNamespace(
        flip=True, scale=(0.5, 1.5), rotate=5.0, zoom=(), color=0.3, rand_augment=0
    )
    data = types.SimpleNamespace(batch_size=2, cache=True, size=(6, 8), augment=augment)

    def batches(with_stream):
        own = pipeline.train_batches(split, tasks, data, 3)
        streams = {"more": pipeline.stream_batches(split, STREAM, "more", data, 3)} if with_stream else {}
        return take(pipeline.beside(own, streams), 4)

    for plain, both in zip(batches(False), batches(True), strict=True):
        more = both.pop("streams")["more"]
        assert set(more) == {"image", "id"}
        np.testing.assert_array_equal(
            more["image"], images[more["id"]].astype(np.float32) * np.float32(1 / 255)
        )
        assert both["id"].tolist() == plain["id"].tolist()
        np.testing.assert_array_equal(both["image"], plain["image"])
        np.testing.assert_array_equal(both["labels"]["depth"], plain["labels"]["depth"])


def test_the_canvas_is_covered_and_its_middle_taken():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (6, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(covering(wide, (6, 8)), wide[:, 6:14])
    tall = rng.integers(0, 255, (30, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(covering(tall, (6, 8)), tall[12:18])
    small = rng.integers(0, 255, (3, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(covering(small, (6, 8)), smooth(small[:, :4], (6, 8)))
    same = rng.integers(0, 255, (425, 560, 3), dtype=np.uint8)
    np.testing.assert_array_equal(covering(same, (638, 840)), smooth(same, (638, 840)))


def test_too_few_images_are_named():
    with pytest.raises(UserError, match="stream 'a' has 3 images, which do not fill a batch of 4: lower"):
        pipeline.stream_batches(split_of(3), STREAM, "a", options(4), 0)
