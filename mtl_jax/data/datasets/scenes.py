"""The embedded dataset: rendered rooms (`indoor`) and streets (`outdoor`), every task labelled exactly.

Nothing is downloaded. The images are rendered on first use, a minute's work at most at the default sizes,
and kept as TFDS records (array_record) in `data_dir`, TFDS_DATA_DIR or ~/tensorflow_datasets. The split
`unlabelled` holds images alone and is rendered when it is first asked for.

Depth is in metres along the optical axis, unknown in the sky and beyond 80 m; disparity is for a baseline
of 0.2 m; albedo is the reflectance with the sRGB curve, so that it looks like the image without its light.
"""

import contextlib
import fcntl
import functools
import io
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.scenes import Scenes, ScenesConfig
from mtl_jax.data.scenes.render import DOMAINS, SKY
from mtl_jax.data.scenes.scene import CLASSES, THINGS
from mtl_jax.errors import UserError

LABELS = {
    "semseg": {"num_classes": len(CLASSES), "class_names": list(CLASSES)},
    "parts": {},
    "depth": {},
    "normals": {},
    "edges": {},
    "saliency": {},
    "albedo": {},
    "disparity": {},
    "classification": {"num_classes": len(THINGS), "class_names": list(THINGS)},
    "reshading": {"kind": "regression"},
    "keypoints2d": {"kind": "regression"},
    "edge_texture": {"kind": "regression"},
    "edge_occlusion": {"kind": "regression"},
}

_MASKED_BY = {"albedo": "semseg", "reshading": "depth"}  # stored feature that tells where a label is unknown


def build(
    domain: str = "indoor",
    size: Sequence[int] = (96, 128),
    train_examples: int = 1600,
    test_examples: int = 200,
    unlabelled_examples: int = 5000,
    data_dir: str | None = None,
) -> Dataset:
    """The scenes of one domain.

    Args:
      size: height and width of the images; the same scenes at any size.
      train_examples, test_examples, unlabelled_examples: sizes of the splits `train`, `test`, `unlabelled`.
        A longer split begins with the images of a shorter one.
      data_dir: where TFDS keeps its data; None for TFDS's own choice.

    Raises:
      UserError: an unknown domain, a size or number below its least value.
    """
    if domain not in DOMAINS:
        raise UserError(f"unknown domain {domain!r} in data.options: choose one of {', '.join(DOMAINS)}")
    if len(size) != 2 or min(size) < 16:
        raise UserError(
            f"data.options.size is {tuple(size)}: give a height and a width of at least 16 pixels"
        )
    counts = {"train": train_examples, "test": test_examples, "unlabelled": unlabelled_examples}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"data.options.{name}_examples is {count}: a split needs at least 1 example")

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in counts:
            raise UserError(f"scenes has no split {name!r}: choose one of {', '.join(counts)}")
        wanted = [name] if name == "unlabelled" else ["train", "test"]
        config = _config(domain, size, {n: counts[n] for n in wanted})
        ids = [f"{domain}-{name}-{i:06d}" for i in range(counts[name])]
        if name == "unlabelled" and tasks:
            raise UserError(
                f"the split 'unlabelled' of scenes has no labels: ask for none there, not {tasks[0]!r}"
            )
        return Split(
            ids,
            lambda: np.tile(np.int32(size), (len(ids), 1)),
            _loader(_prepared(config, data_dir), name, tasks),
        )

    return Dataset(labels=LABELS, splits=tuple(counts), split=split)


def _config(domain: str, size: Sequence[int], examples: dict[str, int]) -> ScenesConfig:
    """The builder config of these images; its name tells them all, so that no two share a folder."""
    counts = "_".join(f"{n}{count}" for n, count in examples.items())
    return ScenesConfig(
        name=f"{domain}_{size[0]}x{size[1]}_{counts}",
        description=f"{domain}, {size[0]}x{size[1]}",
        domain=domain,
        height=size[0],
        width=size[1],
        examples=examples,
        annotated="unlabelled" not in examples,
    )


def _prepared(config: ScenesConfig, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder, with its records on disk; of several processes one renders and the others wait.

    TFDS writes to a temporary folder and renames it when all is done: there is never half a dataset.
    """
    folder = _builder(config, data_dir).data_path
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.parent / "lock"):
                if not folder.exists():
                    _render(config, data_dir)
        except OSError as error:
            raise UserError(
                f"cannot write the rendered scenes to {folder} ({error}): set data_dir"
            ) from error
    return _builder(config, data_dir)


def _builder(config: ScenesConfig, data_dir: str | None) -> Scenes:
    with _without_warnings():  # that the config is not one of the named ones
        return Scenes(config=config, data_dir=data_dir, file_format="array_record")


def _render(config: ScenesConfig, data_dir: str | None):
    builder = _builder(config, data_dir)
    for left in builder.data_path.parent.glob("incomplete.*"):  # we hold the lock: its writer is dead
        shutil.rmtree(left)
    number = sum(config.examples.values())
    print(f"Rendering {number} scenes ({config.description}), once, to {builder.data_path}")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@contextlib.contextmanager
def _locked(path: os.PathLike):
    """Waits for an exclusive lock, which the system releases even if the process is killed."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _without_warnings():
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _loader(builder: tfds.core.DatasetBuilder, split: str, tasks: Sequence[str]):
    wanted = {"image", *tasks, *(_MASKED_BY[t] for t in tasks if t in _MASKED_BY)}
    pictures, skipped = set(), {}  # pictures are decoded below: TFDS warns if OpenCV is not installed
    for name, feature in builder.info.features.items():
        if isinstance(feature, tfds.features.Image):
            pictures.add(name)
        if name in pictures or (name not in wanted and isinstance(feature, tfds.features.Tensor)):
            skipped[name] = tfds.decode.SkipDecoding()
    source = builder.as_data_source(split, decoders=skipped)
    return functools.partial(_load, source, f"{builder.data_path} ({split})", pictures & wanted, tasks)


def _load(source: Any, where: str, pictures: set[str], tasks: Sequence[str], index: int) -> Example:
    try:
        stored = dict(source[index])
        stored |= {name: np.asarray(Image.open(io.BytesIO(stored[name]))) for name in pictures}
    except Exception as error:  # the readers below raise what they please for damaged records
        raise UserError(
            f"cannot read example {index} of {where} ({error}): delete that folder to render it again"
        ) from error
    return {"image": stored["image"], "labels": {task: canonical(task, stored) for task in tasks}}


def canonical(task: str, stored: dict[str, np.ndarray]) -> np.ndarray:
    """Label [h,w,C] in the task's canonical form, from the stored features of an example."""
    value = np.asarray(stored[task])
    if task == "classification":
        return value.reshape(1, 1, 1).astype(np.int32)
    if task == "normals":
        value = value.astype(np.float32)
        return value / np.maximum(np.linalg.norm(value, axis=-1, keepdims=True), 1)
    value = value if value.ndim == 3 else value[..., None]
    if task == "albedo" or LABELS[task].get("kind") == "regression":
        value = (value / np.float32(255)).astype(np.float16)
        if task == "albedo":
            value[stored["semseg"] == SKY] = np.nan
        elif task == "reshading":
            value[stored["depth"] == 0] = np.nan
    return value
