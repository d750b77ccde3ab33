"""Tables of given labels: their laws by counting and chi-square, their nesting, and what a run keeps."""

import hashlib
import itertools
import json
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from mtl_jax.data import availability
from mtl_jax.errors import UserError

TASKS = ("semseg", "depth", "normals")
DEFAULT = {
    "scheme": "fully",
    "seed": 0,
    "tasks": (),
    "file": None,
    "unlabelled": {},
    "base": None,
    "extension": None,
}


def options(**changes):
    return ConfigDict({**DEFAULT, **changes})


def test_every_label():
    given = availability.draw("fully", 5, 3, 0)
    assert given.dtype == np.uint8 and given.shape == (5, 3) and given.all()
    assert availability.draw("fully", 5, 1, 0).shape == (5, 1)
    assert availability.draw("onelabel", 0, 3, 0).shape == (0, 3)


@pytest.mark.parametrize(
    "count, tasks, counts", [(795, 3, [265] * 3), (2975, 2, [1487, 1488]), (5, 7, [0, 0] + [1] * 5)]
)
def test_one_label_is_balanced(count, tasks, counts):
    given = availability.draw("onelabel", count, tasks, seed=3)
    assert given.dtype == np.uint8 and (given.sum(1) == 1).all()
    assert sorted(given.sum(0)) == counts


def equally_likely(counts):
    return len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_one_label_falls_on_any_image():
    draws = np.stack([availability.draw("onelabel", 6, 3, seed) for seed in range(600)])
    # Each of the 6!/2!^3 = 90 deals is equally likely.
    _, seen = np.unique(draws.reshape(600, -1), axis=0, return_counts=True)
    seen = np.pad(seen, (0, 90 - len(seen)))
    assert equally_likely(seen)


def rows(given):
    """How often each row occurs, by its number of labels: {n: {row: times}}."""
    found = {}
    for row in map(tuple, given.tolist()):
        found.setdefault(sum(row), {}).setdefault(row, 0)
        found[sum(row)][row] += 1
    return found


@pytest.mark.parametrize(
    "scheme, tasks, numbers",
    [
        ("randomlabels", 2, [1]),
        ("randomlabels", 3, [1, 2]),
        ("randomlabels", 5, [1, 2, 3, 4]),
        ("halflabels", 2, [1]),
        ("halflabels", 3, [1, 2]),
        ("halflabels", 6, [3]),
        ("halflabels", 7, [3, 4]),
    ],
)
def test_numbers_and_subsets_are_equally_likely(scheme, tasks, numbers):
    found = rows(availability.draw(scheme, 6000, tasks, seed=1))
    assert sorted(found) == numbers
    assert equally_likely([sum(found[n].values()) for n in numbers])
    for n in numbers:
        subsets = [tuple(int(k in s) for k in range(tasks)) for s in itertools.combinations(range(tasks), n)]
        assert equally_likely([found[n].get(row, 0) for row in subsets])


def test_neighbouring_images_are_independent():
    given = availability.draw("randomlabels", 6000, 3, seed=2)
    number = given.sum(1)
    together = np.histogram2d(number[:-1], number[1:], bins=2)[0]
    assert stats.chi2_contingency(together).pvalue > 1e-3


@pytest.mark.parametrize("scheme", ["onelabel", "randomlabels", "halflabels"])
def test_a_draw_depends_on_the_seed_alone(scheme):
    one, again, other = (availability.draw(scheme, 50, 4, seed) for seed in (7, 7, 8))
    np.random.seed(1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    availability.draw(scheme, 50, 4, seed=-1)


MASK = 2**128 - 1


def pcg64(state, increment):
    """The 64-bit numbers of O'Neill's PCG XSL-RR 128/64 in plain integers."""
    while True:
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) & MASK
        word, turn = (state >> 64) ^ (state & (2**64 - 1)), state >> 122
        yield (word >> turn | word << (64 - turn)) & (2**64 - 1)


def test_draws_rest_on_the_bare_generator():
    """Draws again with integers and lists: no sampling routine of NumPy takes part."""
    inner = np.random.PCG64([5, 0]).state["state"]
    raw = pcg64(inner["state"], inner["inc"])
    expected = []
    for _ in range(20):
        number = 1 + next(raw) % 3
        keys = [next(raw) for _ in range(4)]
        expected.append([int(key in sorted(keys)[:number]) for key in keys])
    assert availability.draw("randomlabels", 20, 4, seed=5).tolist() == expected

    raw = pcg64(inner["state"], inner["inc"])
    keys = [next(raw) for _ in range(8)]
    dealt = [sorted(keys).index(key) % 3 for key in keys]
    assert availability.draw("onelabel", 8, 3, seed=5).argmax(1).tolist() == dealt


def test_the_draw_of_a_seed_never_changes():
    digests = {
        scheme: hashlib.sha256(availability.draw(scheme, 795, 5, 0).tobytes()).hexdigest()[:16]
        for scheme in ("onelabel", "randomlabels", "halflabels")
    }
    assert digests == {
        "onelabel": "ee8e318fbb932353",
        "randomlabels": "1a81855d496d5e1e",
        "halflabels": "0c810e971c6ef1a7",
    }


@pytest.mark.parametrize("scheme", ["onelabel", "randomlabels", "halflabels"])
def test_withholding_needs_two_tasks(scheme):
    with pytest.raises(UserError, match=f"scheme='{scheme}' needs at least 2 tasks, not 1: name all tasks"):
        availability.draw(scheme, 5, 1, 0)


def test_unlabelled_images_are_nested():
    base = availability.table(options(scheme="randomlabels", seed=4), TASKS, 795)
    tables = {
        share: availability.table(
            options(scheme="randomlabels", seed=4, unlabelled={"all": share}), TASKS, 795
        )
        for share in (0.0, 0.3, 0.5, 0.7, 1.0)
    }
    lost = {share: ~given.any(1) for share, given in tables.items()}
    assert {share: gone.sum() for share, gone in lost.items()} == {0: 0, 0.3: 238, 0.5: 398, 0.7: 556, 1: 795}
    for small, large in itertools.pairwise(lost.values()):
        assert (large >= small).all()
    for share, given in tables.items():
        np.testing.assert_array_equal(given[~lost[share]], base[~lost[share]])
    # Any image may be among them, whatever its label: not the first, nor those of one task.
    assert stats.kstest(np.flatnonzero(lost[0.3]) / 795, "uniform").pvalue > 1e-3
    kept, gone = base[~lost[0.5]].sum(0), base[lost[0.5]].sum(0)
    assert stats.chi2_contingency([kept, gone]).pvalue > 1e-3


def test_the_images_that_lose_their_label_are_drawn_apart_from_the_labels():
    lost = []
    for seed in range(200):
        full = availability.table(options(scheme="onelabel", seed=seed), TASKS, 30)
        kept = availability.table(options(scheme="onelabel", seed=seed, unlabelled={"all": 0.5}), TASKS, 30)
        lost.append((full - kept)[:, 0].sum())
    law = stats.hypergeom(30, 10, 15)  # of 30 images, 10 have the label, 15 are chosen
    assert abs(np.mean(lost) - law.mean()) < 4 * law.std() / 200**0.5
    assert abs(np.var(lost) / law.var() - 1) < 0.4


def test_single_labels_are_lost_from_the_same_images():
    given = availability.table(options(unlabelled={"depth": 0.25, "normals": 0.5, "all": 0.125}), TASKS, 16)
    assert given.sum(0).tolist() == [14, 12, 8]
    semseg, depth, normals = given.T
    assert (normals <= depth).all() and (depth <= semseg).all()
    other = availability.table(options(seed=1, unlabelled={"depth": 0.25}), TASKS, 16)
    assert other.sum(0).tolist() == [16, 12, 16] and (other[:, 1] != depth).any()


def test_images_behind_the_scheme():
    alone = options(scheme="onelabel", base=795, extension="depth", unlabelled={"all": 0.5})
    given = availability.table(alone, TASKS, 1000)
    assert given.dtype == np.uint8 and given.shape == (1000, 3)
    alone.base = alone.extension = None
    np.testing.assert_array_equal(given[:795], availability.table(alone, TASKS, 795))
    assert (given[795:] == [0, 1, 0]).all()
    alone.base, alone.extension = 795, "depth"
    assert availability.table(alone, TASKS, 795).shape == (795, 3)


def test_a_teacher_takes_its_column():
    whole = availability.table(options(scheme="onelabel"), TASKS, 12)
    named = options(scheme="onelabel", tasks=TASKS)
    np.testing.assert_array_equal(availability.table(named, ("normals",), 12), whole)
    turned = options(scheme="onelabel", tasks=("normals", "semseg", "depth"))
    np.testing.assert_array_equal(availability.table(turned, TASKS, 12), whole)


TABLE = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], np.uint8)


def torch_bytes(saved):
    """The older format of torch.save, for a table saved in the name "labels_weights" or another."""
    reference = b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x0cNtQ",
            b"K\x00(K\x04K\x03t(K\x03K\x01t\x89ccollections\nOrderedDict\n)RtR",
        ]
    )
    entries = b"".join(b"X" + len(n).to_bytes(4, "little") + n.encode() + reference for n in saved)
    body = b"\x80\x02}(" + entries + b"u." if saved else b"\x80\x02" + reference + b"."
    head = [
        pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    return b"".join(
        [*head, body, pickle.dumps(["7"], 2), (12).to_bytes(8, "little"), TABLE.astype("<f4").tobytes()]
    )


def test_tables_from_files(tmp_path):
    np.save(tmp_path / "bool.npy", TABLE.astype(bool))
    np.save(tmp_path / "float.npy", TABLE.astype(np.float64))
    (tmp_path / "table.csv").write_text("1,0,0\r\n0,1,1\r\n0, 0, 0\r\n1,1,1\r\n")
    (tmp_path / "table.txt").write_text("1 0 0\n0 1 1\n\n0 0 0\n1.0 1 1")
    (tmp_path / "published.pth").write_bytes(torch_bytes(["labels_weights"]))
    (tmp_path / "two.pth").write_bytes(torch_bytes(["other", "labels_weights"]))
    (tmp_path / "only.pt").write_bytes(torch_bytes(["mine"]))
    (tmp_path / "bare.pt").write_bytes(torch_bytes([]))
    for path in tmp_path.iterdir():
        given = availability.table(options(file=str(path)), TASKS, 4)
        assert given.dtype == np.uint8
        np.testing.assert_array_equal(given, TABLE, err_msg=path.name)
    both = options(file=str(tmp_path / "table.csv"), base=4, extension="semseg", unlabelled={"normals": 1.0})
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert availability.table(both, TASKS, 6).tolist() == expected


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "1,0\n0,1\n", "a.csv holds 2 x 2 values, but .* ask for 4 x 3"),
        ("a.csv", "1,0,1\n" * 5, "a.csv holds 5 x 3 values, but .* ask for 4 x 3"),
        ("a.csv", "", "a.csv holds 0 values"),
        ("a.csv", "1,0,1\n1,0\n1,0,1\n1,0,1\n", "cannot read .*a.csv"),
        ("a.csv", "semseg,depth,normals\n", "cannot read .*a.csv"),
        ("a.csv", "1,0,0.5\n" * 4, "a.csv holds the value 0.5: "),
        ("a.csv", "1,0,nan\n" * 4, "a.csv holds the value nan: "),
        ("a.csv", "1,0,-1\n" * 4, "a.csv holds the value -1: "),
        ("a.json", "[]", "config.data.labels.file is '.*a.json': a table is a .pth"),
        ("a.npy", "no array", "cannot read .*a.npy"),
        ("a.pth", "no tensor", "cannot read .*a.pth"),
    ],
)
def test_files_that_hold_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        availability.table(options(file=str(tmp_path / name)), TASKS, 4)


def test_files_without_the_table(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.csv .No such file"):
        availability.table(options(file=str(tmp_path / "none.csv")), TASKS, 4)
    path = tmp_path / "a.pth"
    path.write_bytes(torch_bytes(["one", "two"]))
    with pytest.raises(UserError, match="a.pth holds 2 tensors, none of them 'labels_weights'"):
        availability.table(options(file=str(path)), TASKS, 4)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read .*objects.npy"):
        availability.table(options(file=str(tmp_path / "objects.npy")), TASKS, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scheme": "twolabels"}, "labels.scheme is 'twolabels': choose one of fully, onelabel"),
        (
            {"tasks": ("semseg", "depth")},
            "labels.tasks lacks 'normals', a task of the run: it has semseg, depth",
        ),
        ({"unlabelled": {"edges": 0.5}}, "labels.unlabelled names 'edges': .* semseg, depth, normals"),
        ({"unlabelled": {"all": 1.5}}, "labels.unlabelled.all is 1.5: "),
        ({"unlabelled": {"depth": -0.1}}, "labels.unlabelled.depth is -0.1: "),
        ({"unlabelled": {"depth": "half"}}, "labels.unlabelled.depth is 'half': "),
        ({"base": 3}, "base and .extension go together"),
        ({"extension": "depth"}, "base and .extension go together"),
        ({"base": 3, "extension": "edges"}, "labels.extension names 'edges': "),
        ({"base": 5, "extension": "depth"}, "labels.base is 5, but the split has 4 images"),
        ({"base": -1, "extension": "depth"}, "labels.base is -1, but"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        availability.table(options(**changes), TASKS, 4)


def test_a_run_keeps_its_labels(tmp_path):
    wanted = options(scheme="randomlabels", seed=9, tasks=TASKS)
    given = availability.claim(str(tmp_path / "run"), wanted, ("normals", "semseg"), 20)
    drawn = availability.draw("randomlabels", 20, 3, 9)
    assert list(given) == ["normals", "semseg"] and given["semseg"].dtype == bool
    np.testing.assert_array_equal(given["normals"], drawn[:, 2] == 1)
    np.testing.assert_array_equal(given["semseg"], drawn[:, 0] == 1)
    stored = tmp_path / "run/labels.npy"
    np.testing.assert_array_equal(np.load(stored), drawn)
    assert np.load(stored).dtype == np.uint8
    assert json.loads((tmp_path / "run/labels.json").read_text()) == {
        "scheme": "randomlabels",
        "file": None,
        "seed": 9,
        "tasks": list(TASKS),
        "images": 20,
        "labels": {name: int(drawn[:, k].sum()) for k, name in enumerate(TASKS)},
        "sha256": hashlib.sha256(stored.read_bytes()).hexdigest(),
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"labels.npy", "labels.json"}
    before = stored.stat().st_mtime_ns
    again = availability.claim(str(tmp_path / "run"), wanted, ("normals", "semseg"), 20)
    assert all((again[name] == given[name]).all() for name in given)
    assert stored.stat().st_mtime_ns == before


def test_other_labels_than_the_run_began_with(tmp_path):
    run = str(tmp_path)
    wanted = options(scheme="onelabel")
    availability.claim(run, wanted, TASKS, 6)
    with pytest.raises(UserError, match=r"labels.npy differs from .* in \d+ of 18 labels: use another"):
        availability.claim(run, options(scheme="onelabel", seed=1), TASKS, 6)
    with pytest.raises(UserError, match="labels.npy has 6 x 3 labels, but .* give 7 x 3: use another"):
        availability.claim(run, wanted, TASKS, 7)
    with pytest.raises(
        UserError, match="labels.npy has the tasks semseg, depth, normals, but .* depth, normals, s"
    ):
        availability.claim(run, wanted, ("depth", "normals", "semseg"), 6)
    stored = tmp_path / "labels.npy"
    sound = stored.read_bytes()
    stored.write_bytes(sound[:-1] + bytes([1 - sound[-1]]))
    with pytest.raises(UserError, match="labels.npy is not the file that .*labels.json describes"):
        availability.claim(run, wanted, TASKS, 6)
    stored.unlink()
    with pytest.raises(UserError, match="cannot read .*labels.npy"):
        availability.claim(run, wanted, TASKS, 6)
    stored.write_bytes(sound)
    availability.claim(run, wanted, TASKS, 6)
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read .*labels.json"):
        availability.claim(run, wanted, TASKS, 6)


def test_a_run_that_was_stopped_between_the_files(tmp_path):
    (tmp_path / "labels.npy").write_bytes(b"half of a")
    availability.claim(str(tmp_path), options(), TASKS, 6)
    assert np.load(tmp_path / "labels.npy").shape == (6, 3)
    availability.claim(str(tmp_path), options(), TASKS, 6)


def test_statistics():
    given = {name: TABLE[:, k].astype(bool) for k, name in enumerate(TASKS)}
    assert availability.statistics(given).splitlines() == [
        "labels of 4 images: semseg 2 (50.0%), depth 2 (50.0%), normals 2 (50.0%)",
        "images by labels: 1 with 0, 1 with 1, 1 with 2, 1 with 3",
    ]
    given["semseg"] = np.zeros(4, bool)
    assert "semseg 0 (0.0%)" in availability.statistics(given)
    assert "0 with 3" in availability.statistics(given)
