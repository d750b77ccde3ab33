"""Files of datasets: finding and reading them, with errors that name them."""

import functools
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from PIL import Image

from mtl_jax.errors import UserError, reading

NAMED = 5  # so many missing files are named; the others are counted
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def find(files: Sequence[Sequence[Path]]) -> list[Path]:
    """Of each file, the first of the places where it exists; one UserError for all that exist nowhere."""
    found = [next((path for path in places if path.is_file()), None) for places in files]
    missing = [places for places, path in zip(files, found, strict=True) if path is None]
    if missing:
        few = "; ".join(" or ".join(map(str, places)) for places in missing[:NAMED])
        more = f"; and {len(missing) - NAMED} more of {len(files)}" if len(missing) > NAMED else ""
        raise UserError(f"there is no file {few}{more}: unpack the release again")
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones; raises UserError if it cannot be read."""
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_names(path: Path) -> list[str]:
    """The names a split's list holds, one per line; raises UserError if there is none, or one twice."""
    names = read_lines(path)
    if not names:
        raise UserError(f"{path} is empty: list the names of the split's images, one per line")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path} lists {name!r} {times} times: keep each name once")
    return names


def image_sizes(paths: Sequence[Path]) -> Callable[[], np.ndarray]:
    """() -> i32[N,2]: height and width, from the headers alone; raises UserError if one cannot be read."""
    return functools.cache(lambda: np.array([_image_size(path) for path in paths], np.int32))


def _image_size(path: Path) -> tuple[int, int]:
    with reading(path), Image.open(path) as image:
        return image.height, image.width


def read_image(path: Path) -> np.ndarray:
    """uint8[h,w,3] by `to_rgb`, not turned: labels lie on the pixels as stored.

    Raises:
      UserError: the file is no image, or is damaged.
    """
    with reading(path):
        return rgb(path.read_bytes())


def rgb(content: bytes) -> np.ndarray:
    """uint8[h,w,3] by `to_rgb` of an image file's content; raises what Pillow does if that is damaged."""
    found = _decode(content)
    if found is not None and found.dtype == np.uint8:
        return cv2.cvtColor(found, cv2.COLOR_GRAY2RGB) if found.ndim == 2 else found
    with Image.open(io.BytesIO(content)) as image:
        return to_rgb(image)


def pixels(content: bytes) -> np.ndarray:
    """[h,w] or [h,w,C] as stored in an image file's content (with a palette, the indices; of one bit, bool).

    Raises what Pillow does if that is damaged.
    """
    found = _decode(content)
    if found is not None:
        return found
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def _decode(content: bytes) -> np.ndarray | None:
    """The pixels, [h,w] or [h,w,3], of a sound JPEG or PNG in grey or RGB; None of all else.

    What Pillow reads, OpenCV reads bit for bit alike, in two thirds of the time.
    """
    channels = _channels(content)
    if channels not in (1, 3):
        return None
    colours = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    flags = colours | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def _channels(content: bytes) -> int:
    """Of a JPEG, or of a PNG of 8 bits, or grey of 16, without palette and transparency; 0 of all else."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        depth, colours = content[24:26]
        plain = b"tRNS" not in content[: content.find(b"IDAT")]
        return {(8, 0): 1, (16, 0): 1, (8, 2): 3}.get((depth, colours), 0) if plain else 0
    start = 2
    while content[:2] == b"\xff\xd8" and content[start : start + 1] == b"\xff":
        marker = content[start + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the header of a frame
            return content[start + 9]
        start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return 0


def to_rgb(image: Image.Image) -> np.ndarray:
    """uint8[h,w,3] of any image: transparency over white, 16 bits scaled to 8, the first of its frames."""
    if image.mode[0] in "IF":  # 16 bits, or floats in [0, 1], which `convert` would clip at 255
        values = np.asarray(image).astype(np.float32) * (255 if image.mode == "F" else 1 / 257)
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_array(path: Path) -> np.ndarray:
    """[h,w,C] of an image file, by `pixels`, or .npy file.

    Raises:
      UserError: the file cannot be read, or its array has no numbers, or neither 2 nor 3 axes.
    """
    with reading(path):
        if path.suffix.lower() == ".npy":
            array = np.load(path)
        else:
            array = pixels(path.read_bytes())
    return _map(array, path)


def read_mat(path: Path, variable: str) -> np.ndarray:
    """The array of that name in a MATLAB file; raises UserError if the file does not give it."""
    with reading(path):
        found = scipy.io.loadmat(path, variable_names=[variable])
    if variable not in found:
        raise UserError(f"{path} has no variable {variable!r}: unpack the release again")
    return found[variable]


def read_mat_map(path: Path, variable: str) -> np.ndarray:
    """[h,w,C]: numbers in a MATLAB file; errors are those of `read_array`."""
    return _map(read_mat(path, variable), path)


def _map(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim not in (2, 3):
        raise UserError(
            f"{path} holds an array of {array.ndim} axes: store height, width and perhaps channels"
        )
    if array.dtype.kind not in "biuf" or not array.size:
        raise UserError(f"{path} holds no numbers, but {array.dtype} of {_by(array.shape)}: store a map")
    return array[..., None] if array.ndim == 2 else array


def check_classes(stored: np.ndarray, classes: range, path: Path, unknown: int | None = None) -> None:
    """Raises UserError if what was read from `path` holds anything but ids of classes, or `unknown`."""
    wrong = ~np.isin(stored, [*classes, *([] if unknown is None else [unknown])])
    if wrong.any():
        allowed = f"{classes[0]} to {classes[-1]}" + ("" if unknown is None else f" and {unknown}")
        raise UserError(
            f"{path} holds {stored[wrong][0]:g}, but classes are {allowed}: unpack the release again"
        )


def positive(stored: np.ndarray, largest: float, unit: str, path: Path) -> np.ndarray:
    """f32[h,w,1] of what was read from `path`: a positive quantity; else, as NaN, unknown: 0.

    Raises:
      UserError: a number is too large for its `unit`, perhaps infinite.
    """
    known = np.where(stored > 0, stored, 0).astype(np.float32)  # NaN is not
    if known.max() > largest:
        raise UserError(f"{path} holds {known.max():g}, which cannot be {unit}: convert the file")
    return known


def check_shape(array: np.ndarray, shape: tuple[int, ...], path: Path) -> None:
    """Raises UserError if what was read from `path` has not this shape."""
    if array.shape != shape:
        raise UserError(
            f"{path} holds {_by(array.shape)} values, but its image asks for {_by(shape)}:"
            " unpack the release again"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
