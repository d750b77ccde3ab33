"""Says what is on photographs: python -m mtl_jax.classify --weights=resnet50 photo.jpg

The networks are published classifiers of ImageNet's 1000 classes that a package registry carries
(weights/packages.py); they are fetched once. A network that was trained here is asked by mtl_jax.predict.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax.errors import UserError, exit_on_user_error
from mtl_jax.models import classifier
from mtl_jax.models.preprocessing import Preprocessing
from mtl_jax.predict import read_image
from mtl_jax.tasks import classification
from mtl_jax.weights import packages, pretrained

TASK = "classification"
SHOWN = 5


def class_names() -> list[str]:
    """Of ImageNet's 1000 classes, in their order, as TFDS has them."""
    from tensorflow_datasets.datasets.siscore import labels  # here, for it takes seconds

    return list(labels.IMAGENET_LABELS_LIST)


def crop(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8[h,w,3] -> uint8[size,size,3]: the middle of the image, enlarged or reduced."""
    size, side = preprocessing.size, min(image.shape[:2])
    factor = size / preprocessing.crop / side
    height, width = (max(size, round(factor * n)) for n in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def classify(name: str, images: Sequence[np.ndarray]) -> np.ndarray:
    """f32[N,1000]: probabilities of the classes in images uint8[h,w,3], by the packaged network `name`.

    Raises:
      UserError: there is no such package, it cannot be fetched, or has no classifier.
    """
    packaged = packages.package(name)
    if not packaged.classifies:
        raise UserError(f"the packaged weights {name!r} have no classifier: choose others")
    weights = ConfigDict({"source": None, "path": f"{packages.PREFIX}{name}", "parts": ("encoder", "head")})
    task = classification.build(TASK, num_classes=1000)
    model = classifier.build({TASK: task}, "float32", packaged.backbone, packaged.encoder)
    model = model.clone(preprocessing=pretrained.preprocessing(weights, model))
    size = model.preprocessing.size
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), (TASK,), train=False)
    )
    variables = pretrained.start(dict(shapes), model, weights)

    @jax.jit
    def probabilities(image: jax.Array) -> jax.Array:
        raw = model.apply(variables, image[None] / 255, (TASK,), train=False).outputs[TASK]
        return task.activate(raw)[0, 0, 0]

    return np.stack([probabilities(crop(image, model.preprocessing)) for image in images])


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name, packaged in packages.PACKAGES.items() if packaged.classifies]
    parser.add_argument("--weights", default=known[0], choices=known, help="the network")
    parser.add_argument("images", nargs="+", help="photographs")
    flags = parser.parse_args()
    names = class_names()
    for path, chances in zip(
        flags.images, classify(flags.weights, [read_image(p) for p in flags.images]), strict=True
    ):
        print(path)
        for index in np.argsort(-chances)[:SHOWN]:
            print(f"  {100 * chances[index]:5.1f} %  {names[index]}")


if __name__ == "__main__":
    main()
