"""The stream of batches: complete, repeatable, shared among hosts, and honest about failures."""

import dataclasses
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import jax
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict

from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import UserError
from mtl_jax.sharding import batch_sharding, make_mesh
from mtl_jax.tasks.boxes import Boxes
from mtl_jax.views import View

TASKS = task_modules.build(
    {"semseg": {}, "shading": {}, "scene": {}},
    {
        "semseg": {"num_classes": 9},
        "shading": {"kind": "regression"},
        "scene": {"kind": "classification", "num_classes": 99},
    },
)


def example(index, size=(6, 8)):
    rng = np.random.default_rng(index)
    classes = rng.integers(0, 9, (*size, 1)).astype(np.uint8)
    classes[0, 0] = 255
    shading = rng.random((*size, 1)).astype(np.float16)
    shading[-1] = np.nan
    labels = {"semseg": classes, "shading": shading, "scene": np.full((1, 1, 1), index, np.int32)}
    return {"image": rng.integers(0, 256, (*size, 3)).astype(np.uint8), "labels": labels}


def make_split(count=10, sizes=None, load=None, given=None):
    sizes = np.array(sizes or [(6, 8)] * count, np.int32)
    ids = [f"photo{i}" for i in range(len(sizes))]
    return Split(ids, lambda: sizes, load or (lambda i: example(i, tuple(sizes[i]))), given)


def augmented(**changes):
    nothing = {"flip": False, "scale": (1.0, 1.0), "rotate": 0.0, "zoom": (), "color": 0.0, "rand_augment": 0}
    return {**nothing, **changes}


def options(**changes):
    data = {"batch_size": 4, "eval_batch_size": 4, "size": (5, 6), "eval_size": None, "cache": False}
    data["augment"] = augmented(scale=(0.8, 1.5), color=0.3, flip=True)
    return ConfigDict({**data, **changes})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_every_epoch_is_a_new_order_of_all_examples():
    batches = pipeline.train_batches(make_split(), TASKS, options(), seed=0)
    epochs = np.concatenate([b["id"] for b in take(batches, 15)]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("seed", [0, 1])
def test_orders_have_no_habits(seed):
    """Which example comes first, and which follows which, is evenly spread over many epochs."""
    split = make_split(5)
    batches = pipeline.train_batches(split, {}, options(batch_size=250), seed)
    orders = next(batches)["id"].reshape(50, 5)
    orders = np.concatenate([orders, next(batches)["id"].reshape(50, 5)])
    first = np.bincount(orders[:, 0], minlength=5)
    step = np.bincount(((orders[:, 1:] - orders[:, :-1]) % 5).ravel(), minlength=5)[1:]
    assert scipy.stats.chisquare(first).pvalue > 1e-3
    assert scipy.stats.chisquare(step).pvalue > 1e-3


def test_a_batch_depends_on_seed_and_number_alone():
    whole = take(pipeline.train_batches(make_split(), TASKS, options(), seed=7), 6)
    later = take(pipeline.train_batches(make_split(), TASKS, options(), seed=7, start=4), 2)
    assert_same(whole[4:], later)
    other = next(pipeline.train_batches(make_split(), TASKS, options(), seed=8))
    assert not np.array_equal(whole[0]["id"], other["id"])
    # The same example is changed anew in each epoch.
    images = [b["image"][r] for b in whole for r in range(4) if b["id"][r] == 3]
    assert len(images) >= 2 and not np.array_equal(images[0], images[1])


def test_hosts_share_the_global_batch():
    whole = take(pipeline.train_batches(make_split(), TASKS, options(), seed=7, start=2), 3)
    parts = [
        take(pipeline.train_batches(make_split(), TASKS, options(), seed=7, start=2, shard=(k, 2)), 3)
        for k in range(2)
    ]
    assert_same(
        whole, [jax.tree.map(lambda *x: np.concatenate(x), *both) for both in zip(*parts, strict=True)]
    )


def test_a_batch_holds_the_labels_and_where_they_are_known():
    keep = options(size=None, augment=augmented())
    for batch in (
        next(pipeline.train_batches(make_split(), TASKS, keep, seed=0)),
        next(pipeline.eval_batches(make_split(), TASKS, keep)),
    ):
        for row, index in enumerate(batch["id"]):
            given = example(int(index))
            np.testing.assert_allclose(batch["image"][row], given["image"] / 255, atol=1e-6)
            known = given["labels"]["semseg"] != 255
            np.testing.assert_array_equal(batch["valid"]["semseg"][row], known)
            np.testing.assert_array_equal(batch["labels"]["semseg"][row], given["labels"]["semseg"] * known)
            shading = given["labels"]["shading"].astype(np.float32)
            np.testing.assert_array_equal(batch["valid"]["shading"][row], ~np.isnan(shading))
            np.testing.assert_array_equal(batch["labels"]["shading"][row], np.nan_to_num(shading))
            assert batch["labels"]["scene"][row] == index and batch["valid"]["scene"][row] == 1
        assert batch["image"].dtype == batch["valid"]["semseg"].dtype == np.float32
        assert batch["labels"]["semseg"].dtype == batch["id"].dtype == np.int32
        assert batch["labels"]["scene"].shape == batch["valid"]["scene"].shape == (4, 1, 1, 1)


def boxes_split():
    """Image i of a size of its own holds i boxes; the last one's label is unknown."""

    def load(index):
        rows = np.array([[k, k + 1, k + 2.5, k + 2, k, k % 2] for k in range(index)], np.float32)
        rows = np.full((1, 6), np.nan, np.float32) if index == 4 else rows.reshape(-1, 6)
        image = np.full((9 + index, 8, 3), index, np.uint8)
        return {"image": image, "labels": {"boxes": rows[:, None]}}

    return Split([str(i) for i in range(5)], lambda: np.array([(9 + i, 8) for i in range(5)]), load)


@pytest.mark.parametrize("eval_size", [None, (16, 12)])
def test_boxes_come_in_rows_of_one_number(eval_size):
    tasks = {"boxes": Boxes("boxes", max_boxes=3)}
    asked = options(eval_batch_size=1, eval_size=eval_size)
    for index, batch in enumerate(pipeline.eval_batches(boxes_split(), tasks, asked)):
        label, valid = batch["labels"]["boxes"], batch["valid"]["boxes"]
        assert label.shape == (1, 3, 1, 6) and valid.shape == (1, 1, 1, 1)
        assert valid.item() == (index != 4)
        rows = label[0, :, 0] if index != 4 else np.zeros((0, 6))
        rows = rows[np.argsort(rows[:, 4], stable=True)]
        np.testing.assert_array_equal(rows[:, 4], np.sort(([*range(index)] + [-1] * 3)[:3])[: len(rows)])
        np.testing.assert_array_equal(
            rows[rows[:, 4] >= 0], boxes_split().load(index)["labels"]["boxes"][: len(rows), 0]
        )
    batch = next(pipeline.train_batches(boxes_split(), tasks, options(batch_size=10), seed=0))
    assert batch["labels"]["boxes"].shape == (10, 3, 1, 6)
    for index, label, valid in zip(
        batch["id"], batch["labels"]["boxes"], batch["valid"]["boxes"], strict=True
    ):
        assert valid.item() == (index != 4)
        if index == 4:
            assert not label.any()
        assert (label[..., 4] >= 0).sum() <= index


VIEWS = {"near": View(), "other": View(), "recoloured": View(of="near", zoom=False)}


def lively(**changes):
    return options(augment=augmented(flip=True, zoom=(1.0, 1.2, 1.5), color=0.2, rand_augment=1), **changes)


def test_views_are_parts_of_the_batch():
    batch = next(pipeline.train_batches(make_split(), TASKS, lively(), seed=0, views=VIEWS))
    assert {name: set(view) for name, view in batch["views"].items()} == {
        "near": {"image", "labels", "valid"},
        "other": {"image", "labels", "valid"},
        "recoloured": {"image"},
    }
    for view in batch["views"].values():
        assert view["image"].shape == (4, 5, 6, 3) and view["image"].dtype == np.float32
    for name in ("near", "other"):
        labels, valid = batch["views"][name]["labels"], batch["views"][name]["valid"]
        assert jax.tree.map(np.shape, labels) == jax.tree.map(np.shape, batch["labels"])
        for task in TASKS:
            assert valid[task].any() and not labels[task][valid[task] == 0].any()
        np.testing.assert_array_equal(labels["scene"][:, 0, 0, 0], batch["id"])
    assert "views" not in next(pipeline.train_batches(make_split(), TASKS, lively(), seed=0))


def test_views_depend_on_seed_number_and_name_alone(monkeypatch):
    def batches(views=VIEWS, **more):
        return pipeline.train_batches(make_split(), TASKS, lively(), seed=7, views=views, **more)

    whole = take(batches(), 4)
    half = take(batches(start=2, shard=(1, 2)), 2)
    assert_same(jax.tree.map(lambda x: x[2:], whole[2:]), half)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = take(batches({"other": VIEWS["other"]}), 4)
    for one, two in zip(whole, alone, strict=True):
        assert_same(one["views"]["other"], two["views"]["other"])
        assert_same(one["image"], two["image"])


def test_zoomed_views_need_factors():
    pipeline.train_batches(make_split(), TASKS, options(), seed=0, views={"strong": View(zoom=False)})
    with pytest.raises(UserError, match="view 'near' .* config.data.augment.zoom"):
        pipeline.train_batches(make_split(), TASKS, options(), seed=0, views=VIEWS)


def test_a_label_that_is_not_given_is_nowhere():
    """Whatever stands there: the batches are the same, bit for bit, and all of it is unknown."""
    rng = np.random.default_rng(0)
    given = {name: rng.random(10) < 0.5 for name in TASKS}

    def with_garbage(index):
        found = example(index)
        for name, label in found["labels"].items():
            if not given[name][index]:
                found["labels"][name] = rng.integers(1, 9, label.shape).astype(label.dtype)
        return found

    def batches(load, cache):
        split, views = make_split(load=load, given=given), {"near": View()}
        data = options(augment=augmented(flip=True, scale=(0.8, 1.2), zoom=(1.2, 1.5)), cache=cache)
        yield from take(pipeline.train_batches(split, TASKS, data, seed=0, views=views), 5)
        yield from pipeline.eval_batches(split, TASKS, data)

    for batch, garbled in zip(batches(example, True), batches(with_garbage, False), strict=True):
        assert_same(batch, garbled)
        real = batch["id"] >= 0
        for view in (batch, *batch.get("views", {}).values()):
            for name in TASKS:
                known = view["valid"][name].any((1, 2, 3))
                np.testing.assert_array_equal(known[real], given[name][batch["id"][real]])
                assert not view["labels"][name][~known].any()


def test_a_subset_keeps_what_belongs_to_an_example():
    sizes = [(6, 8 + i) for i in range(5)]
    split = make_split(sizes=sizes, given={"semseg": np.array([1, 0, 0, 1, 0], bool)})
    part = split.subset([3, 1, 4])
    assert len(part) == 3 and part.ids == ["photo3", "photo1", "photo4"]
    np.testing.assert_array_equal(part.sizes, [sizes[3], sizes[1], sizes[4]])
    np.testing.assert_array_equal(part.given["semseg"], [True, False, False])
    assert part.load(2)["image"].shape == (6, 12, 3) and part.load(0)["labels"]["scene"] == 3
    assert part.subset(range(1)).ids == ["photo3"] and part.subset([]).ids == []
    assert pipeline.cached(part).given is part.given and make_split().subset([2]).given is None


@pytest.mark.parametrize("eval_size", [None, (9, 10)])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_each_example_once(eval_size, hosts):
    sizes = [(6, 8), (8, 6), (6, 8), (6, 8), (8, 6), (6, 8), (6, 8)]
    parts = [
        list(pipeline.eval_batches(make_split(sizes=sizes), TASKS, options(eval_size=eval_size), (k, hosts)))
        for k in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for batch in (b for part in parts for b in part):
        assert len(batch["id"]) == 4 // hosts
        for row, index in enumerate(batch["id"]):
            if index < 0:
                assert all(not valid[row].any() for valid in batch["valid"].values())
                assert all(not label[row].any() for label in batch["labels"].values())
                continue
            seen.append(index)
            height, width = sizes[index]
            given = example(int(index), (height, width))
            assert batch["image"].shape[1:3] == (eval_size or (height, width))
            np.testing.assert_allclose(batch["image"][row, :height, :width], given["image"] / 255, atol=1e-6)
            assert (batch["image"][row, height:] == np.float32(128 / 255)).all()
            known = batch["valid"]["semseg"][row]
            assert (
                known.sum() == height * width - 1 and not known[height:].any() and not known[:, width:].any()
            )
    assert sorted(seen) == list(range(7))


def test_evaluation_keeps_the_order():
    ids = [b["id"].tolist() for b in pipeline.eval_batches(make_split(6), TASKS, options(eval_size=(6, 8)))]
    assert ids == [[0, 1, 2, 3], [4, 5, -1, -1]]


def test_many_image_sizes_are_warned_of():
    split = make_split(sizes=[(6, 8 + i) for i in range(9)])
    with pytest.warns(UserWarning, match="9 different sizes.*data.eval_size"):
        pipeline.eval_batches(split, TASKS, options())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.eval_batches(split, TASKS, options(eval_size=(6, 20)))


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (pipeline.train_batches, {"batch_size": 5, "shard": (0, 2)}, "data.batch_size = 5 .* 2 hosts"),
        (
            pipeline.eval_batches,
            {"eval_batch_size": 3, "shard": (1, 2)},
            "data.eval_batch_size = 3 .* 2 hosts",
        ),
        (pipeline.eval_batches, {"eval_size": (6, 9)}, r"'photo1' \(6x10\) is larger than .*\(7, 10\)"),
        (pipeline.train_batches, {"size": None}, "3 different sizes: set data.size"),
    ],
)
def test_mistakes_are_named(make, changes, message):
    split = make_split(sizes=[(6, 8), (6, 10), (7, 9)])
    shard = changes.pop("shard", (0, 1))
    seed = {"seed": 0} if make is pipeline.train_batches else {}
    with pytest.raises(UserError, match=message):
        make(split, TASKS, options(**changes), shard=shard, **seed)


@pytest.mark.parametrize("error", [UserError("photos/7.jpg is damaged"), ZeroDivisionError("a bug")])
def test_what_reading_raises_comes_through(error):
    def load(index):
        if index == 7:
            raise error
        return example(index)

    split = make_split(load=load)
    for batches in (
        pipeline.train_batches(split, TASKS, options(), seed=0),
        pipeline.to_device(pipeline.eval_batches(split, TASKS, options()), here()),
    ):
        with pytest.raises(type(error)) as caught:
            take(batches, 3)
        assert caught.value is error


def test_cache_reads_each_example_once():
    reads = []

    def load(index):
        reads.append(index)
        return example(index)

    for cache in (True, False):
        reads.clear()
        take(pipeline.train_batches(make_split(load=load), TASKS, options(cache=cache), seed=0), 10)
        assert set(reads) == set(range(10))
        assert (len(reads) <= 12) == cache  # two threads may both miss the first time

    kept = pipeline.cached(make_split(load=load))
    reads.clear()
    one, two = (list(pipeline.eval_batches(kept, TASKS, options(eval_batch_size=5))) for _ in range(2))
    assert sorted(reads) == list(range(10))
    assert_same(one, two)


def here():
    return batch_sharding(make_mesh())


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("to_device")]


def test_to_device_keeps_order_and_runs_ahead_a_little():
    taken = []

    def host():
        for i in range(8):
            taken.append(i)
            image = np.zeros((2, 3, 4, 3), np.uint8)
            yield {"image": image, "labels": {}, "given": {}, "id": np.full(2, i, np.int32)}

    batches = pipeline.to_device(pipeline.Batches(host(), {}), here(), depth=2)
    first = next(batches)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(first))
    assert all(x.sharding.is_equivalent_to(here(), x.ndim) for x in jax.tree.leaves(first))
    time.sleep(0.2)
    assert taken == [0, 1, 2]
    assert [int(b["id"][0]) for b in batches] == [1, 2, 3, 4, 5, 6, 7]
    assert not workers()


def test_to_device_ends_its_thread_when_nobody_listens_any_more():
    batches = pipeline.to_device(pipeline.train_batches(make_split(), TASKS, options(), seed=0), here())
    next(batches)
    assert workers()
    batches.close()
    assert not workers()


@pytest.mark.parametrize("ending", ["1 / 0", "broken = True; list(batches)", "sys.exit(3)"])
def test_a_program_ends_although_batches_are_being_read(ending):
    """TensorFlow's threads wait for the interpreter, which must not wait for them in turn."""
    program = f"""
        import sys, time
        import numpy as np
        from ml_collections import ConfigDict
        from mtl_jax.data import pipeline
        from mtl_jax.data.dataset import Split

        def load(index):
            if broken and index == 0:
                raise ValueError
            time.sleep(2 if broken else 0.02)
            return {{"image": np.zeros((4, 4, 3), np.uint8), "labels": {{}}}}

        broken = False
        augment = {augmented()}
        data = ConfigDict({{"batch_size": 2, "size": (4, 4), "cache": False, "augment": augment}})
        split = Split(["a", "b"], lambda: np.full((2, 2), 4, np.int32), load)
        batches = pipeline.train_batches(split, {{}}, data, 0)
        next(batches)
        {ending}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=90, stderr=subprocess.PIPE
    )
    assert done.returncode == (3 if "exit" in ending else 1), done.stderr.decode()


def test_an_empty_split_is_named():
    with pytest.raises(UserError, match="no examples"):
        pipeline.train_batches(dataclasses.replace(make_split(), ids=[]), TASKS, options(), seed=0)


def with_damage(index):
    if index in (3, 7):
        raise UserError(f"cannot read photo{index}.png")
    return example(index)


def test_damaged_examples_leave_empty_rows(caplog):
    split = pipeline.skipping(make_split(load=with_damage), 0.2)
    whole = {
        int(i): b
        for b in pipeline.eval_batches(make_split(), TASKS, options(eval_batch_size=1))
        for i in b["id"]
    }
    seen = set()
    for batch in pipeline.eval_batches(split, TASKS, options()):
        for row, index in enumerate(batch["id"]):
            if index < 0:
                assert all((mask[row] == 0).all() for mask in batch["valid"].values())
                assert all((label[row] == 0).all() for label in batch["labels"].values())
                continue
            seen.add(int(index))
            jax.tree.map(
                lambda a, b, r=row: np.testing.assert_array_equal(a[r], b[0]), batch, whole[int(index)]
            )
    assert seen == set(range(10)) - {3, 7}

    with_all = take(pipeline.train_batches(make_split(), TASKS, options(), seed=5), 10)
    for batch, other in zip(
        take(pipeline.train_batches(split, TASKS, options(), seed=5), 10), with_all, strict=True
    ):
        np.testing.assert_array_equal(batch["id"], np.where(np.isin(other["id"], (3, 7)), -1, other["id"]))
        assert all((mask[batch["id"] < 0] == 0).all() for mask in batch["valid"].values())
        there = batch["id"] >= 0
        jax.tree.map(lambda a, b, t=there: np.testing.assert_array_equal(a[t], b[t]), batch, other)
    said = [record.getMessage() for record in caplog.records]
    assert sorted(said) == sorted({*said}) and len(said) == 2  # each is told once
    assert "2 of 10 examples left out" in said[1] and "photo" in said[0]


def test_no_more_are_left_out_than_allowed():
    split = pipeline.skipping(make_split(load=with_damage), 0.1)
    with pytest.raises(UserError, match=r"2 of 10 examples left out, more than .*max_skipped = 0.1: .*photo"):
        list(pipeline.eval_batches(split, TASKS, options()))
    lost = pipeline.skipping(make_split(load=lambda i: with_damage(3)), 1.0)
    with pytest.raises(UserError, match="every example of the split was left out"):
        pipeline.eval_batches(lost, TASKS, options())


def test_the_config_says_what_becomes_of_damaged_examples():
    dataset = Dataset({}, ("train",), lambda name, tasks: make_split(load=with_damage))
    data = ConfigDict({"on_error": "skip", "max_skipped": 0.2})
    assert pipeline.open_split(dataset, "train", (), data).load(3) is None
    data.on_error = "raise"
    with pytest.raises(UserError, match="cannot read photo3.png"):
        pipeline.open_split(dataset, "train", (), data).load(3)
