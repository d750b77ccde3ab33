"""Runs a trained network on photographs of any size:

    python -m mtl_jax.predict --workdir=DIR --images=FOLDER_OR_FILE --out=DIR2 [--which=best|latest]

DIR2/<photograph>/ gets panel.png and per task, at the photograph's size, <task>.png in colours and the
values: <task>_ids.png (class ids), or else <task>.npy (f16[H,W,C] in the task's unit; for a task with
one answer per image f16[1,1,C]). Of boxes it gets <task>.png, the photograph with those that are sure, and
<task>.json, all of them: [{"box": [ymin, xmin, ymax, xmax] in pixels, "class": its name, "score"}, ...], from
the highest score down.

A photograph is resized so that its shorter side is the shorter side of a training crop (config.data.size):
at that scale things look as large as the network is used to. Its longer side is padded with its mirror
image up to the next of a few aspect ratios, so that the network is compiled for at most seven shapes.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageOps

from mtl_jax import atomic, experiment
from mtl_jax.data import files
from mtl_jax.errors import UserError, exit_on_user_error, reading
from mtl_jax.tasks import Task, pictures

_ASPECTS = (1.0, 4 / 3, 16 / 9, 3.0)  # longer side / shorter side
_MULTIPLE = 16  # of padded longer sides, as networks of this output stride want them
_PANEL = 640  # pixels, longer side of the photograph in a panel


def find_images(path: str) -> list[str]:
    """The image files in a folder, sorted, or the file itself; UserError if there is none."""
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(f"there is no image or folder {path}")
    found = sorted(name for name in os.listdir(path) if name.lower().endswith(files.IMAGE_ENDINGS))
    if not found:
        raise UserError(f"the folder {path} has no images: it takes {' '.join(files.IMAGE_ENDINGS)}")
    return [os.path.join(path, name) for name in found]


def read_image(path: str) -> np.ndarray:
    """uint8[H,W,3] by `files.to_rgb`, upright: turned as the camera noted.

    Raises:
      UserError: the file is no image, is damaged, or is too large to be a photograph.
    """
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return files.to_rgb(ImageOps.exif_transpose(image))


def network_size(height: int, width: int, shorter: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((h, w) to resize a photograph to, (h, w) to pad that to)."""
    ratio = max(height, width) / min(height, width)
    aspect = min((a for a in _ASPECTS if a >= ratio - 1e-6), default=_ASPECTS[-1])
    longer = -(-round(shorter * aspect) // _MULTIPLE) * _MULTIPLE
    # A strip that is longer than the last aspect ratio is made to fit in length.
    scale = min(shorter / min(height, width), longer / max(height, width))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    return small, (shorter, longer) if height <= width else (longer, shorter)


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f32[h,w,C] -> f32[H,W,C], bilinear, averaging where it gets smaller."""
    planes = (Image.fromarray(np.ascontiguousarray(values[..., c])) for c in range(values.shape[-1]))
    return np.stack([np.asarray(p.resize(size[::-1], Image.Resampling.BILINEAR)) for p in planes], axis=-1)


class Predictor:
    """A trained network behind one call, which takes images of any size."""

    def __init__(self, trained: experiment.Experiment):
        self.tasks = trained.tasks
        self._shorter = min(trained.config.data.size)
        self._variables = trained.variables
        names = tuple(trained.tasks)
        self._forward: Callable = jax.jit(
            lambda variables, image: trained.model.apply(variables, image, names, train=False).outputs
        )

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs f32[h,w,channels] for uint8[H,W,3], at the network's scale; see `network_size`."""
        small, padded = network_size(*image.shape[:2], self._shorter)
        pixels = Image.fromarray(image).resize(small[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(pixels, np.float32) / 255
        margin = ((0, padded[0] - small[0]), (0, padded[1] - small[1]), (0, 0))
        # Mirrored, since a flat border would be an object of its own to the network.
        outputs = self._forward(self._variables, np.pad(pixels, margin, "symmetric")[None])
        return {name: np.asarray(raw[0], np.float32)[: small[0], : small[1]] for name, raw in outputs.items()}


def class_ids(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W], most probable class of raw f32[h,w,channels]; one channel at a time, to spare memory."""
    best = np.full(size, -np.inf, np.float32)
    ids = np.zeros(size, np.uint8 if raw.shape[-1] <= 256 else np.uint16)
    for c in range(raw.shape[-1]):
        score = resize(raw[..., c : c + 1], size)[..., 0]
        ids[score > best] = c
        np.maximum(best, score, out=best)
    return ids


def detections(task: Task, raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f32[n,1,6], boxes in an image of (H, W) = `size`, of raw f32[h,w,channels]; see tasks/boxes.py."""
    rows = np.array(task.decode(task.activate(raw[None]))[0])
    rows = rows[rows[:, 0, 4] >= 0]
    rows[..., :4] *= np.tile(np.divide(size, raw.shape[:2]), 2)
    return rows


def write_boxes(path: str, task: Task, rows: np.ndarray, image: np.ndarray) -> None:
    """Writes <path>.json and <path>.png of boxes f32[n,1,6] in a photograph uint8[H,W,3]."""
    found = [
        {
            "box": [round(v, 2) for v in box],
            "class": task.class_names[int(class_id)],
            "score": round(score, 4),
        }
        for *box, class_id, score in rows[:, 0].tolist()
    ]
    atomic.write(f"{path}.json", "[" + ",\n ".join(map(json.dumps, found)) + "]\n")
    pictures.boxes_over(f"{path}.png", image, task, rows)


def write_task(folder: str, task: Task, raw: np.ndarray, image: np.ndarray) -> None:
    """Writes the values and the picture of one task for the photograph uint8[H,W,3], at its size."""
    path, size = os.path.join(folder, task.name), image.shape[:2]
    if task.values == "boxes":
        write_boxes(path, task, detections(task, raw, size), image)
        return
    if not task.dense:
        np.save(f"{path}.npy", np.asarray(task.activate(raw), np.float16))
        return
    if task.label_dtype == "int32":
        ids = class_ids(raw, size)
        Image.fromarray(ids).save(f"{path}_ids.png")
        colors = task.colorize(np.eye(task.channels, dtype=np.float32)[None])[0]
        Image.fromarray(colors[ids]).save(f"{path}.png")
        return
    values = np.asarray(task.activate(resize(raw, size)))
    np.save(f"{path}.npy", values.astype(np.float16))
    Image.fromarray(task.colorize(values)).save(f"{path}.png")


def write_panel(
    folder: str, image: np.ndarray, outputs: dict[str, np.ndarray], tasks: dict[str, Task]
) -> None:
    """Writes panel.png: the photograph beside the predictions."""
    scale = min(1.0, _PANEL / max(image.shape[:2]))
    size = tuple(max(1, round(n * scale)) for n in image.shape[:2])
    photograph = resize(image.astype(np.float32) / 255, size)

    def prediction(task: Task, raw: np.ndarray) -> np.ndarray:
        if task.values == "boxes":
            return detections(task, raw, size)
        return np.asarray(task.activate(resize(raw, size) if task.dense else raw))

    predictions = {name: prediction(task, outputs[name])[None] for name, task in tasks.items()}
    pictures.panels(
        os.path.join(folder, "panel.png"), photograph[None], {}, {"prediction": predictions}, tasks
    )


def predict(trained: experiment.Experiment, images: list[str], out: str) -> None:
    """Predicts image after image, with a line for each; UserError names one that cannot be read."""
    predictor = Predictor(trained)
    stems = [os.path.splitext(os.path.basename(path))[0] for path in images]
    for i, (path, stem) in enumerate(zip(images, stems, strict=True)):
        began = time.monotonic()
        image = read_image(path)
        outputs = predictor(image)
        # cat.jpg and cat.png must not share a folder.
        folder = os.path.join(out, stem if stems.count(stem) == 1 else os.path.basename(path))
        os.makedirs(folder, exist_ok=True)
        for name, task in trained.tasks.items():
            write_task(folder, task, outputs[name], image)
        write_panel(folder, image, outputs, trained.tasks)
        size = "x".join(map(str, image.shape[:2]))
        print(
            f"{i + 1}/{len(images)} {path} ({size}) -> {folder} in {time.monotonic() - began:.1f} s",
            flush=True,
        )


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="working directory of a training run")
    parser.add_argument("--images", required=True, help="an image file, or a folder of them")
    parser.add_argument("--out", required=True, help="folder for the predictions")
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="checkpoint to use")
    flags = parser.parse_args()
    images = find_images(flags.images)
    predict(experiment.load(flags.workdir, flags.which), images, flags.out)


if __name__ == "__main__":
    main()
