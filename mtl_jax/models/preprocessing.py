"""What a network does to an image before its first layer; pretrained weights bring their own."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From RGB in [0, 1] to what a network reads: (value - mean) / std of each channel.

    Attributes:
      mean, std: of each channel, red first, for values in [0, 1].
      bgr: the network reads blue first.
      size: height and width of the images that its classifier was made for.
      crop: share of the shorter side that such an image covers.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    size: int = 224
    crop: float = 0.875

    def __call__(self, image: jax.Array) -> jax.Array:
        """f32[B,H,W,3] RGB in [0, 1] -> f32[B,H,W,3]."""
        if self == PLAIN:
            return image
        image = (image - jnp.array(self.mean)) / jnp.array(self.std)
        return image[..., ::-1] if self.bgr else image


PLAIN = Preprocessing()
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SYMMETRIC = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # [-1, 1]
CAFFE = Preprocessing(  # of 0 ... 255, minus the mean alone
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True
)
