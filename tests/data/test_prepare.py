"""The command that checks and converts: what it says, keeps, and does again."""

import errno
import hashlib
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mtl_jax import names
from mtl_jax.data import prepare
from mtl_jax.data.datasets import folder, prepared
from mtl_jax.errors import UserError

LABELS = {
    "semseg": {
        "folder": "classes",
        "num_classes": 4,
        "class_names": ["sky", "road", "car", "tram"],
        "invalid": 9,
    },
    "depth": {"folder": "depth", "scale": 1e-3},
}
IDS = {"train": [f"a{i}" for i in range(7)], "test": ["b0", "b1"]}


def classes(name):
    return np.random.default_rng(list(name.encode())).choice([0, 1, 2, 9], (6, 8)).astype(np.uint8)


def depth(name):
    return np.random.default_rng(list(name.encode()) + [1]).integers(0, 9000, (6, 8)).astype(np.uint16)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A dataset of 7 + 2 images, of which the command reads 2 at a time."""
    monkeypatch.setattr(prepare, "PART", 2)
    root = tmp_path / "mine"
    for kind in ("images", "classes", "depth"):
        (root / kind).mkdir(parents=True)
    for split, ids in IDS.items():
        (root / f"{split}.txt").write_text("\n".join(ids))
        for name in ids:
            image = (
                np.random.default_rng(list(name.encode()) + [2]).integers(0, 256, (6, 8, 3)).astype(np.uint8)
            )
            Image.fromarray(image).save(root / f"images/{name}.png")
            Image.fromarray(classes(name)).save(root / f"classes/{name}.png")
            Image.fromarray(depth(name)).save(root / f"depth/{name}.png")
    return root


@pytest.fixture
def command(root, monkeypatch, capsys):
    """Runs the command on it -> (exit code, what it said)."""

    def run(*arguments):
        flags = [
            "--dataset=folder",
            f"--data_dir={root}",
            f"--config.data.options.labels={LABELS}",
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", ["prepare", *flags])
        code = 0
        try:
            prepare.main()
        except SystemExit as stop:
            code = stop.code
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def loads(monkeypatch):
    """Counts how often each image is read."""
    counted = Counter()
    read = folder.files.read_image

    def counting(path):
        counted[path.stem] += 1
        return read(path)

    monkeypatch.setattr(folder.files, "read_image", counting)
    return counted


def test_the_summary_is_that_of_the_files(root, command):
    code, said = command("--convert=never")
    assert code == 0
    every = np.stack([classes(name) for name in IDS["train"]])
    metres = np.stack([depth(name) for name in IDS["train"]]) / 1000
    shares = [
        f"{name} {(every == k).sum() / (every != 9).sum():.1%}"
        for k, name in enumerate(("sky", "road", "car"))
    ]
    assert "train: 7 images of 6x8\n" in said and "test: 2 images of 6x8\n" in said
    line = next(line for line in said.splitlines() if line.startswith("  semseg"))
    assert all(share in line for share in shares) and line.endswith("never tram")
    assert f"7 labels, {(every != 9).mean():.1%} known" in line
    known = metres[metres > 0]
    assert f"{known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g} m" in said

    written = json.loads((root.parent / "mine_prepared/summary.json").read_text())["train"]
    assert written["images"] == 7 and written["sizes"] == {"6x8": 7}
    assert written["tasks"]["semseg"]["counts"] == [*((every == k).sum() for k in range(3)), 0]
    assert written["tasks"]["depth"]["known"] == len(known)
    np.testing.assert_allclose(written["tasks"]["depth"]["total"], known.sum(), rtol=1e-6)
    assert not list((root.parent / "mine_prepared").glob("*.bin"))


def test_what_is_kept_is_what_was_read(root, command):
    assert command("--convert=always")[0] == 0
    release = names.build("data.datasets", "folder", {"data_dir": str(root), "labels": LABELS})
    converted = names.build("data.datasets", "prepared", {"data_dir": str(root.parent / "mine_prepared")})
    assert json.loads(json.dumps(converted.labels)) == json.loads(json.dumps(release.labels))
    for name, ids in IDS.items():
        old, new = (dataset.split(name, ("depth", "semseg")) for dataset in (release, converted))
        assert list(new.ids) == ids
        np.testing.assert_array_equal(new.sizes, old.sizes)
        for i in range(len(ids)):
            a, b = old.load(i), new.load(i)
            for x, y in ((a["image"], b["image"]), *((a["labels"][t], b["labels"][t]) for t in a["labels"])):
                assert x.dtype == y.dtype and y.ctypes.data % prepared.ALIGNED == 0
                np.testing.assert_array_equal(x, y)
    assert list(converted.split("train", ("depth",)).load(3)["labels"]) == ["depth"]


def test_training_from_what_was_kept(root, command, train_a_little):
    command("--convert=always")
    dataset = prepared.build(str(root.parent / "mine_prepared"))
    train_a_little(dataset, {"semseg": {}, "depth": {}}, "train", "test", canvas=(6, 8))


def test_an_interrupted_command_goes_on(root, command, loads, monkeypatch):
    def interrupted(path, content, write=prepare.atomic.write):
        if path.name == "train-00002-of-00004.json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare.atomic, "write", interrupted)
        command("--convert=always")
    loads.clear()
    code, said = command("--convert=always")
    assert code == 0 and "train: 7 images" in said
    assert loads == dict.fromkeys([*IDS["train"][4:], *IDS["test"]], 1)
    whole = {p.name: p.read_bytes() for p in (root.parent / "mine_prepared").iterdir()}
    shutil.rmtree(root.parent / "mine_prepared")
    command("--convert=always")
    assert {p.name: p.read_bytes() for p in (root.parent / "mine_prepared").iterdir()} == whole

    loads.clear()
    assert command("--convert=always")[0] == 0 and not loads  # nothing is left to read


def test_a_changed_list_is_read_anew(root, command, loads):
    command("--convert=always")
    loads.clear()
    (root / "train.txt").write_text("\n".join(["a0", "a1", "a3", "a2", "a4", "a5", "a6"]))
    assert command("--convert=always")[0] == 0 and sorted(loads) == ["a2", "a3"]
    changed = prepared.build(str(root.parent / "mine_prepared")).split("train", ("semseg",))
    assert list(changed.ids) == ["a0", "a1", "a3", "a2", "a4", "a5", "a6"]
    np.testing.assert_array_equal(changed.load(2)["labels"]["semseg"][..., 0] % 246, classes("a3"))


def test_damaged_files_are_named_and_read_again_once_mended(root, command, loads):
    path = root / "classes/a3.png"
    sound = path.read_bytes()
    path.write_bytes(sound[:40])
    code, said = command("--convert=always")
    assert code == 2 and f"cannot read {path}" in said and "train: 1 damaged" in said
    with pytest.raises(UserError, match=r"train-00001-of-00004\.json"):
        prepared.build(str(root.parent / "mine_prepared")).split("train", ())
    path.write_bytes(sound)
    loads.clear()
    assert command("--convert=always")[0] == 0
    assert sorted(loads) == ["a2", "a3"]
    assert len(prepared.build(str(root.parent / "mine_prepared")).split("train", ())) == 7


def test_damaged_examples_are_left_out_if_asked_to(root, command):
    (root / "classes/a3.png").write_bytes(b"")
    code, said = command("--convert=always", "--config.data.on_error=skip")
    assert code == 0 and "train: 1 damaged and left out" in said and "a3.png" in said
    kept = prepared.build(str(root.parent / "mine_prepared")).split("train", ("semseg",))
    assert list(kept.ids) == [name for name in IDS["train"] if name != "a3"]
    np.testing.assert_array_equal(kept.load(3)["labels"]["semseg"][..., 0] % 246, classes("a4"))  # 255 for 9


def test_all_that_is_missing_is_told_and_where_it_belongs(root, command):
    for name in ("a1", "a2", "a5"):
        (root / f"depth/{name}.png").unlink()
    (root / "test.txt").unlink()
    code, said = command("--convert=never")
    assert code == 2
    assert "split train, depth: there is no" in said and "(3 files are missing there)" in said
    assert "split test, images:" in said and "test.txt" in said
    assert folder.__doc__ in said
    assert "semseg  7 labels" in said  # the rest has been checked
    assert command("--convert=never", "--splits=train", "--tasks=semseg", f"--out={root}/other")[0] == 0


def test_archives_are_checked(tmp_path):
    (tmp_path / "deep/NYUD_MT").mkdir(parents=True)
    (tmp_path / "deep/sound.tgz").write_bytes(b"abc")
    (tmp_path / "damaged.tgz").write_bytes(b"ab")
    digest = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    archives = {"sound.tgz": digest, "damaged.tgz": digest, "absent.tgz": digest}
    told = prepare.check_archives(tmp_path / "deep/NYUD_MT", archives)
    assert len(told) == 1 and str(tmp_path / "damaged.tgz") in told[0]


def test_examples_are_kept_if_that_pays(root, command, monkeypatch):
    for faster, words in ((1.4, "that does not pay"), (1.6, "train from it by --config.data.name=prepared")):
        monkeypatch.setattr(prepare, "speed_up", lambda split, faster=faster: (faster, 100.0))
        code, said = command(f"--out={root}/{faster}")
        assert code == 0 and words in said
        assert bool(list((root / str(faster)).glob("*.bin"))) == (faster > 1.5)


def test_no_room(root, command, monkeypatch):
    monkeypatch.setattr(prepare, "speed_up", lambda split: (9.0, 1e15))
    code, said = command()
    assert code == 0 and "has room for" in said and not list((root.parent / "mine_prepared").glob("*.bin"))
    code, said = command("--convert=always", f"--out={root}/other")
    assert code == 2 and "choose another --out" in said


def test_a_full_disk_is_named_and_nothing_half_written_stays(root, command, monkeypatch):
    def full(file, example):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "speed_up", lambda split: (9.0, 1.0))
    monkeypatch.setattr(prepare.prepared, "append", full)
    code, said = command()
    assert code == 2 and "train-00000-of-00004.bin" in said and "No space left" in said
    assert sorted(p.name for p in (root.parent / "mine_prepared").iterdir()) == ["prepared.json"]


def test_a_folder_of_another_dataset_is_refused(root, command):
    command("--convert=never")
    code, said = command("--convert=never", "--config.data.options.images=depth")
    assert code == 2 and "choose another --out" in said
    (root.parent / "mine_prepared/prepared.json").write_text("{")
    code, said = command("--convert=never")
    assert code == 2 and "cannot read" in said and "prepared.json" in said


def test_files_that_are_not_whole_are_named(root, command):
    command("--convert=always")
    path = root.parent / "mine_prepared/train-00001-of-00004.bin"
    for content in (path.read_bytes()[:-1], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is missing or not whole"):
            prepared.build(str(root.parent / "mine_prepared")).split("train", ())


def test_wrong_splits_and_tasks_are_named(root, command):
    command("--convert=always", "--tasks=depth")
    dataset = prepared.build(str(root.parent / "mine_prepared"))
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        dataset.split("val", ())
    with pytest.raises(UserError, match="no labels of task 'semseg'"):
        dataset.split("train", ("semseg",))


def test_a_folder_that_is_not_prepared():
    with pytest.raises(UserError, match="there is no .*prepared.json: convert a dataset by"):
        prepared.build("/nowhere")


def test_examples_are_shown_with_their_labels(root, command, monkeypatch):
    (root / "classes/a2.png").write_bytes(b"")  # it is passed over
    drawn = {}

    def overlays(path, images, labels, tasks):
        drawn[path] = images, labels

    monkeypatch.setattr(prepare.pictures, "overlays", overlays)
    command("--show=3")
    (train, (images, labels)), (test, (others, _)) = drawn.items()
    assert train == f"{root}_prepared/overlay_train.png" and test == f"{root}_prepared/overlay_test.png"
    assert len(images) == 3 and len(others) == 2 and sorted(labels) == ["depth", "semseg"]
    for name, image, label in zip(("a0", "a4", "a6"), images, labels["semseg"], strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(root / f"images/{name}.png")))
        np.testing.assert_array_equal(np.where(label == 255, 9, label)[..., 0], classes(name))
