"""Files of many kinds, written with PIL, NumPy and SciPy, read back by value; and damaged ones."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from mtl_jax.data import files
from mtl_jax.errors import UserError, reading

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_the_first_file_there_is_found(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    b.touch()
    c.touch()
    assert files.find([[a, b, c], [c, b]]) == [b, c] and files.find([]) == []
    a.mkdir()
    with pytest.raises(UserError, match=f"no file {a}: unpack"):
        files.find([[b], [a]])
    with pytest.raises(UserError, match=f"no file {a} or {tmp_path}/d; {tmp_path}/e: unpack"):
        files.find([[a, tmp_path / "d"], [c], [tmp_path / "e"]])


def test_of_many_missing_files_a_few_are_named(tmp_path):
    (tmp_path / "0").touch()
    with pytest.raises(UserError, match=r"/1; .*/2; .*/3; .*/4; .*/5; and 4 more of 10: unpack") as error:
        files.find([[tmp_path / str(i)] for i in range(10)])
    assert "/6" not in str(error.value)


def test_errors_inside_name_the_file():
    with pytest.raises(UserError, match=r"^cannot read some/file \(no such luck\): ") as caught:
        with reading("some/file"):
            raise ZeroDivisionError("no such luck")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserError, match="^better words$"):
        with reading("some/file"):
            raise UserError("better words")
    with pytest.raises(KeyboardInterrupt):
        with reading("some/file"):
            raise KeyboardInterrupt


def test_lines_and_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\n 1 käse \r\n\r\n2\n2".encode())
    assert files.read_lines(path) == ["1 käse", "2", "2"]
    with pytest.raises(UserError, match="list.txt lists '2' 2 times"):
        files.read_names(path)
    path.write_text("b\na/c.d\n")
    assert files.read_names(path) == ["b", "a/c.d"]
    path.write_text(" \n")
    with pytest.raises(UserError, match="list.txt is empty"):
        files.read_names(path)
    path.write_bytes(b"caf\xe9")  # Latin-1
    with pytest.raises(UserError, match="cannot read .*list.txt"):
        files.read_names(path)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*list.txt \(No such file or directory\)"):
        files.read_lines(path)


@pytest.mark.parametrize("ending", files.IMAGE_ENDINGS)
def test_images_of_every_ending(tmp_path, ending):
    flat = np.full((6, 9, 3), 60, np.uint8)
    path = save(tmp_path / f"a{ending}", flat[..., 0] if ending == ".pgm" else flat)
    image = files.read_image(path)
    assert image.shape == (6, 9, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image, 60, atol=1)
    assert files.image_sizes([path])().tolist() == [[6, 9]]


def test_pixels_are_read_as_stored_whatever_the_camera_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(tmp_path / "a.png", RGB, exif=exif)
    np.testing.assert_array_equal(files.read_image(path), RGB)
    np.testing.assert_array_equal(files.read_array(path), RGB)
    sizes = files.image_sizes([path, save(tmp_path / "b.png", GREY[:2])])()
    assert sizes.dtype == np.int32 and sizes.tolist() == [[5, 7], [2, 7]]


def test_colours_of_deep_and_transparent_images():
    grey = np.repeat(GREY[..., None], 3, axis=-1)
    for same in (GREY, GREY.astype(np.uint16) * 257, GREY.astype(np.float32) / 255):
        np.testing.assert_array_equal(files.to_rgb(Image.fromarray(same)), grey)
    alpha = RNG.integers(0, 256, (5, 7, 1))
    alpha[0, :2, 0] = 0, 255
    for opaque, stored in ((RGB, RGB), (grey, GREY[..., None])):
        image = Image.fromarray(np.concatenate([stored, alpha], axis=-1).astype(np.uint8))
        over_white = (alpha * opaque.astype(float) + (255 - alpha) * 255.0) / 255
        np.testing.assert_allclose(files.to_rgb(image), over_white, atol=1)
        np.testing.assert_array_equal(files.to_rgb(image)[0, 1], opaque[0, 1])


def test_arrays_are_read_as_stored(tmp_path):
    palette = Image.fromarray(GREY // 128)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(files.read_array(tmp_path / "palette.png")[..., 0], GREY // 128)
    for stored in (RGB, np.dstack([RGB, GREY]), GREY[..., None], GREY[..., None].astype(np.uint16) * 250):
        path = save(tmp_path / "a.png", stored[..., 0] if stored.shape[2] == 1 else stored)
        got = files.read_array(path)
        assert got.dtype == stored.dtype
        np.testing.assert_array_equal(got, stored)
    bits = files.read_array(save(tmp_path / "bits.png", GREY > 99))
    assert bits.dtype == bool and bits.tolist() == (GREY > 99)[..., None].tolist()
    for name, stored in (("a.npy", RNG.random((4, 3, 2))), ("b.npy", GREY[..., None].astype(np.float16))):
        np.save(tmp_path / name, stored)
        np.testing.assert_array_equal(files.read_array(tmp_path / name), stored)
    with open(tmp_path / "C.NPY", "wb") as file:
        np.save(file, GREY)
    np.testing.assert_array_equal(files.read_array(tmp_path / "C.NPY"), GREY[..., None])


SAVED = {
    "grey.jpg": ("L", {"quality": 90}),
    "colours.jpg": ("RGB", {"quality": 90}),
    "thinned.jpg": ("RGB", {"subsampling": "4:2:0"}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "print.jpg": ("CMYK", {}),
    "grey.png": ("L", {}),
    "colours.png": ("RGB", {}),
    "clear.png": ("RGB", {"transparency": (1, 2, 3)}),
    "clear_grey.png": ("L", {"transparency": 7}),
    "veiled.png": ("RGBA", {}),
    "palette.png": ("P", {}),
    "bit.png": ("1", {}),
    "deep.png": ("I;16", {}),
}


@pytest.mark.parametrize("name", SAVED)
def test_pixels_are_those_that_pillow_reads(tmp_path, name):
    mode, options = SAVED[name]
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 5)
    path = tmp_path / name
    (image if mode == "I;16" else image.convert(mode)).save(path, **options)
    with Image.open(path) as saved:
        stored, colours = np.asarray(saved), files.to_rgb(saved)
    found = files.read_array(path)
    assert found.dtype == stored.dtype
    np.testing.assert_array_equal(found, stored.reshape(found.shape))
    np.testing.assert_array_equal(files.read_image(path), colours)


@pytest.mark.parametrize("axes", [0, 1, 4])
def test_arrays_of_other_axes_are_named(tmp_path, axes):
    np.save(tmp_path / "a.npy", np.zeros((2,) * axes))
    with pytest.raises(UserError, match=f"a.npy holds an array of {axes} axes"):
        files.read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [np.zeros((0, 4)), np.full((2, 3), "1"), np.ones((2, 3), complex)])
def test_arrays_without_numbers_are_named(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(UserError, match=r"a.npy holds no numbers, but .* of [02]x[34]"):
        files.read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_is_never_filled_up(tmp_path, options):
    path = save(tmp_path / "a.jpg", np.tile(RGB, (8, 8, 1)), **options)
    whole = path.read_bytes()
    for kept in range(2, len(whole), 97):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=f"cannot read {path}"):
            files.read_image(path)


def test_classes_are_checked(tmp_path):
    path = tmp_path / "a.png"
    files.check_classes(np.array([3, 1, 255], np.uint8), range(1, 4), path, unknown=255)
    for wrong in (0, 4, 255, 1.5, np.nan, np.inf):
        with pytest.raises(UserError, match=rf"a.png holds {wrong:g}, but classes are 1 to 3: unpack"):
            files.check_classes(np.array([[3, 1], [wrong, 77]]), range(1, 4), path)
    with pytest.raises(UserError, match="a.png holds 0, but classes are 1 to 3 and 255: unpack"):
        files.check_classes(np.array([3, 0, 255], np.uint8), range(1, 4), path, unknown=255)


def test_positive_quantities(tmp_path):
    stored = np.array([[[0.0], [-1], [-np.inf], [np.nan], [1e-3], [7]]])
    got = files.positive(stored, 7.0, "metres", tmp_path / "a.npy")
    np.testing.assert_array_equal(got.ravel(), np.float32([0, 0, 0, 0, 1e-3, 7]))
    assert got.dtype == np.float32
    for wrong in (7.5, np.inf):
        with pytest.raises(UserError, match=f"a.npy holds {wrong:g}, which cannot be metres"):
            files.positive(np.append(stored, [[[wrong]]], axis=1), 7.0, "metres", tmp_path / "a.npy")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [truncated, lambda p: p.write_bytes(b""), lambda p: p.write_text("none")])
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("a.png", save, files.read_image),
        ("a.jpg", save, files.read_image),
        ("a.tif", save, files.read_image),
        ("a.webp", save, files.read_image),
        ("a.png", save, files.read_array),
        ("a.npy", np.save, files.read_array),
        ("a.npy", lambda path, _: np.save(path, [{}], allow_pickle=True), files.read_array),
        (
            "a.mat",
            lambda path, rgb: scipy.io.savemat(path, {"x": rgb}),
            lambda path: files.read_mat(path, "x"),
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, name, write, read, spoil):
    path = tmp_path / name
    write(path, np.tile(RGB, (8, 8, 1)))
    spoil(path)
    with pytest.raises(UserError, match=f"cannot read {path}"):
        read(path)
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path}"):
        read(path)


def test_images_without_a_header_and_hostile_sizes_are_named(tmp_path, monkeypatch):
    good, bad = save(tmp_path / "a.png", RGB), tmp_path / "b.png"
    bad.write_bytes(good.read_bytes()[:20])
    with pytest.raises(UserError, match=f"cannot read {bad}"):
        files.image_sizes([good, bad])()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB[..., 0].size)
    save(bad, np.tile(RGB, (3, 1, 1)))  # Pillow refuses, by an error of its own kind
    with pytest.raises(UserError, match=f"cannot read {bad} .*decompression bomb"):
        files.image_sizes([good, bad])()


def test_matlab_variables(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"depth": RNG.random((3, 4)), "other": GREY})
    np.testing.assert_array_equal(files.read_mat(tmp_path / "a.mat", "other"), GREY)
    with pytest.raises(UserError, match=r"a\.mat has no variable 'none'"):
        files.read_mat(tmp_path / "a.mat", "none")
    np.testing.assert_array_equal(files.read_mat_map(tmp_path / "a.mat", "other"), GREY[..., None])
    cell = np.array([["a", "b"]], object)
    for wrong, message in ((cell, "holds no numbers, but object of 1x2"), (RGB[None], "an array of 4 axes")):
        scipy.io.savemat(tmp_path / "a.mat", {"depth": wrong})
        with pytest.raises(UserError, match=rf"a\.mat .*{message}"):
            files.read_mat_map(tmp_path / "a.mat", "depth")


def test_other_shapes_are_named(tmp_path):
    files.check_shape(RGB, (5, 7, 3), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png holds 5x7x3 values, but its image asks for 7x5x3"):
        files.check_shape(RGB, (7, 5, 3), tmp_path / "a.png")
