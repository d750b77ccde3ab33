"""TFDS builder of the rendered scenes: `tfds.load("scenes/indoor")` after `import mtl_jax.data.scenes`."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from mtl_jax.data.scenes import workers
from mtl_jax.data.scenes.scene import CLASSES, PARTS, THINGS

_DESCRIPTION = """\
Ray-cast random scenes with exact labels. The domains `indoor` (rooms) and `outdoor` (streets) share their
classes and differ in layout, textures and light. Each image depends on its domain, split and index alone.
"""


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """Which images are rendered.

    Attributes:
      domain: "indoor" or "outdoor".
      height, width: pixels.
      examples: split -> number of images; a longer split begins with the images of a shorter one.
      annotated: False stores images without labels.
    """

    domain: str
    height: int = 96
    width: int = 128
    examples: dict[str, int]
    annotated: bool = True


def _configs() -> list[ScenesConfig]:
    configs = []
    for domain, what in (("indoor", "rooms"), ("outdoor", "streets")):
        configs += [
            ScenesConfig(
                name=domain,
                description=f"{what}, 96x128",
                domain=domain,
                examples={"train": 1600, "test": 200},
            ),
            ScenesConfig(
                name=f"{domain}_unlabelled",
                description=f"{what}, 96x128, images alone",
                domain=domain,
                examples={"unlabelled": 5000},
                annotated=False,
            ),
            ScenesConfig(
                name=f"{domain}_tiny",
                description=f"{what}, 32x48, a few for tests",
                domain=domain,
                height=32,
                width=48,
                examples={"train": 8, "test": 4},
            ),
        ]
    return configs


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Rendered rooms and streets. Any change of what is rendered or stored needs a new version."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _configs()
    code_path = (
        None  # no checksum file beside this module; TFDS would look with a package it fails to require
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(self._features()),
            license="Apache-2.0",
            disable_shuffling=True,  # example i of a split is image i: the images are random already
        )

    def _features(self) -> dict:
        f, config = tfds.features, self.builder_config
        size = (config.height, config.width)

        def picture(channels: int, doc: str):
            return f.Image(shape=(*size, channels), encoding_format="png", doc=doc)

        features = {"id": f.Text(doc="domain-split-index"), "image": picture(3, "sRGB")}
        if not config.annotated:
            return features
        found = {
            "bbox": f.BBoxFeature(doc="tight around the visible pixels"),
            "label": f.ClassLabel(names=list(CLASSES)),
        }
        return features | {
            "semseg": picture(1, f"class id: {', '.join(CLASSES)}"),
            "instances": picture(
                1, "0, or 1 + index into `objects` of the object that is seen: the instance masks"
            ),
            "objects": f.Sequence(found),
            "classification": f.ClassLabel(names=list(THINGS), doc="class of the salient object, -1 if none"),
            "saliency": picture(1, "1 on the salient object"),
            "edges": picture(1, "1 on borders of classes and instances"),
            "parts": picture(1, f"body part: {', '.join(PARTS)}"),
            "depth": f.Tensor(
                shape=size, dtype=np.float16, encoding="bytes", doc="metres along the axis, 0 unknown"
            ),
            "disparity": f.Tensor(shape=size, dtype=np.float16, encoding="bytes", doc="pixels, 0 unknown"),
            "normals": f.Tensor(
                shape=(*size, 3),
                dtype=np.int16,
                encoding="zlib",
                doc="x right, y up, z to the camera, times 32767",
            ),
            "albedo": picture(3, "reflectance with the sRGB curve; of no meaning in the sky"),
            "reshading": picture(1, "lit from the camera, times 255; of no meaning where depth is unknown"),
            "keypoints2d": picture(1, "detector response, times 255"),
            "edge_texture": picture(1, "gradient of the image, times 255"),
            "edge_occlusion": picture(1, "depth discontinuity, times 255"),
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {
            split: self._generate_examples(split, count)
            for split, count in self.builder_config.examples.items()
        }

    def _generate_examples(self, split: str, count: int):
        c = self.builder_config
        for index, example in enumerate(
            workers.examples(c.domain, split, count, (c.height, c.width), c.annotated)
        ):
            name = f"{c.domain}-{split}-{index:06d}"
            yield index, {"id": name, **{key: _encodable(key, value) for key, value in example.items()}}


def _encodable(key: str, value):
    if key != "objects":
        return value
    return [{"bbox": tfds.features.BBox(*thing["bbox"]), "label": thing["label"]} for thing in value]
