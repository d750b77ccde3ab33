"""Trees of arrays in all the forms in which they are passed around."""

import numpy as np
import pytest

from mtl_jax.data import numbered
from mtl_jax.errors import UserError

RNG = np.random.default_rng(0)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_photos(tmp_path, dtype):
    colours = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    for array in (colours, colours.astype(dtype) / 255, np.moveaxis(colours, -1, 0).astype(dtype) / 255):
        photo = numbered.read_photo(save(tmp_path / "a.npy", array))
        np.testing.assert_array_equal(photo, colours)
        assert photo.dtype == np.uint8
    between = RNG.uniform(size=(4, 6, 3)).astype(dtype)
    photo = numbered.read_photo(save(tmp_path / "a.npy", between))
    assert np.abs(photo / 255 - between).max() <= 0.5001 / 255
    for wrong in (between + 0.1, between - 0.1, np.full_like(between, np.nan), colours.astype(np.int64)):
        with pytest.raises(UserError, match="a.npy holds an image beyond 0 to 1"):
            numbered.read_photo(save(tmp_path / "a.npy", wrong))
    with pytest.raises(UserError, match="a.npy holds 4 channels instead of 3"):
        numbered.read_photo(save(tmp_path / "a.npy", np.ones((5, 6, 4))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (1, 3, 4)])
def test_classes(tmp_path, dtype, shape):
    classes = np.arange(12).reshape(3, 4) - 1
    label = numbered.read_classes(save(tmp_path / "a.npy", classes.reshape(shape).astype(dtype)), 11)
    np.testing.assert_array_equal(label[..., 0], np.where(classes < 0, 255, classes))
    assert label.dtype == np.uint8 and label.shape == (3, 4, 1)
    with pytest.raises(UserError, match="a.npy holds 10, but classes are -1 to 9"):
        numbered.read_classes(tmp_path / "a.npy", 10)


@pytest.mark.parametrize("wrong", [-2, 0.5, np.nan])
def test_what_is_no_class_is_named(tmp_path, wrong):
    path = save(tmp_path / "a.npy", np.array([[0, wrong]]))
    with pytest.raises(UserError, match=f"a.npy holds {wrong:g}, but classes"):
        numbered.read_classes(path, 3)


def test_positive_quantities(tmp_path):
    path = save(tmp_path / "a.npy", np.array([[0, -1, np.nan, 1e-3, 2.5]]))
    label = numbered.read_positive(path, 2.5, "metres")
    np.testing.assert_array_equal(label[..., 0], np.float32([[0, 0, 0, 1e-3, 2.5]]))
    assert label.dtype == np.float32
    with pytest.raises(UserError, match="a.npy holds 2.5, which cannot be metres"):
        numbered.read_positive(path, 2.4, "metres")
    save(path, np.array([[0.0, -1]]))
    assert not numbered.read_positive(path, 2.4, "metres").any()


@pytest.fixture
def root(tmp_path):
    for i in range(11):
        save(tmp_path / f"image/{i}.npy", np.full((2, 4, 3) if i % 2 else (3, 2, 4), i / 255))
        save(tmp_path / f"what/{i}.npy", np.full((2, 4), i))
    (tmp_path / "image/._3.npy").touch()  # as some systems leave in archives
    return tmp_path


def test_rows_are_numbers(root):
    split = numbered.read_split(root, {"t": ("what", lambda path: numbered.read_classes(path, 11))})
    assert split.ids == [str(i) for i in range(11)]
    assert split.sizes.dtype == np.int32 and split.sizes.tolist() == [[2, 4]] * 11
    for i in (2, 9, 10):
        example = split.load(i)
        assert (example["image"] == i).all() and example["image"].shape == (2, 4, 3)
        assert (example["labels"]["t"] == i).all()


def test_gaps_and_other_sizes_are_named(root):
    readers = {"t": ("what", lambda path: numbered.read_classes(path, 11))}
    save(root / "what/4.npy", np.zeros((4, 2)))
    with pytest.raises(UserError, match="what/4.npy holds 4x2x1 values, but its image asks for 2x4x1"):
        numbered.read_split(root, readers).load(4)
    (root / "what/7.npy").unlink()
    with pytest.raises(UserError, match="no file .*what/7.npy"):
        numbered.read_split(root, readers)
    assert len(numbered.read_split(root, {})) == 11
    (root / "image/5.npy").unlink()
    with pytest.raises(UserError, match="there is no .*image/5.npy, but its number counts"):
        numbered.read_split(root, {})
    with pytest.raises(UserError, match="there is no .*elsewhere/image/0.npy"):
        numbered.read_split(root / "elsewhere", {})
