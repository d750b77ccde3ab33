"""All parts together: a detector that learns one image."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.models.conv import Conv
from mtl_jax.models.detection import fast_rcnn, rpn
from mtl_jax.models.detection.anchors import anchors
from mtl_jax.models.detection.matching import anchor_targets, region_targets
from mtl_jax.models.detection.roi_align import pyramid_roi_align

SIZE = (64, 64)
ANCHORS = anchors([(8, 8), (4, 4)])
SAMPLES, REGIONS = 32, 32
SQUARE = (21, 13, 43, 40)  # ymin, xmin, ymax, xmax
propose = functools.partial(rpn.propose, anchors=ANCHORS, size=SIZE, after=64)


class Detector(nn.Module):
    """Two levels and both heads, all small."""

    classes: int = 2

    def setup(self):
        self.stem = [Conv(16, stride=2, use_bias=True) for _ in range(4)]
        self.rpn = rpn.RPNHead(features=16)
        self.head = fast_rcnn.FastRCNNHead(self.classes, features=16, convs=1, hidden=32)

    def pyramid(self, image):
        maps = [image]
        for conv in self.stem:
            maps.append(nn.relu(conv(maps[-1])))
        return maps[3:]

    def regions(self, levels, boxes, train):
        crops = jax.vmap(lambda levels, boxes: pyramid_roi_align(levels, boxes, size=3))(levels, boxes)
        return self.head(crops, train)

    def __call__(self, image, rows, keys):
        """The four losses f32[4]."""
        levels = self.pyramid(image)
        scores, deltas = self.rpn(levels, True)
        known = jnp.ones(len(image), bool)
        first = jax.vmap(
            lambda key, rows: anchor_targets(key, np.concatenate(ANCHORS), rows, samples=SAMPLES)
        )
        of_rpn = rpn.losses(scores, deltas, first(keys[:, 0], rows), known, SAMPLES)
        proposals, valid = jax.vmap(propose)(scores, deltas)
        second = jax.vmap(functools.partial(region_targets, samples=REGIONS))
        targets = second(keys[:, 1], proposals, valid, rows)
        logits, moves = self.regions(levels, targets.boxes, True)
        return jnp.stack([*of_rpn, *fast_rcnn.losses(logits, moves, targets, known)])

    def detect(self, image):
        levels = self.pyramid(image)
        proposals, valid = jax.vmap(propose)(*self.rpn(levels, False))
        logits, moves = self.regions(levels, proposals, False)
        return jax.vmap(lambda *args: fast_rcnn.detect(*args, SIZE))(logits, moves, proposals, valid)


def make_image(objects):
    """Coloured squares on grey: the first channel is the class."""
    image = np.full((1, *SIZE, 3), 0.2, np.float32)
    rows = np.tile(np.float32([0, 0, 0, 0, -1, 0]), (1, 4, 1))
    for k, (ymin, xmin, ymax, xmax, class_id) in enumerate(objects):
        image[0, ymin:ymax, xmin:xmax] = np.eye(3)[class_id]
        rows[0, k] = [ymin, xmin, ymax, xmax, class_id, 0]
    return image, rows


def keys_of(step):
    return jax.random.split(jax.random.key(step), (1, 2))


@functools.cache
def trainer():
    model = Detector()
    image, rows = make_image([(*SQUARE, 1)])
    variables = jax.jit(model.init)(jax.random.key(0), image, rows, keys_of(0))
    optimizer = optax.sgd(0.05, momentum=0.9)
    traced = []

    @jax.jit
    def step(variables, state, image, rows, number):
        traced.append(1)

        def loss(params):
            losses, new = model.apply(
                {**variables, "params": params}, image, rows, keys_of(number), mutable=["batch_stats"]
            )
            return jnp.sum(losses), (losses, new)

        (_, (losses, new)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **new}, state, losses, gradient

    return model, variables, optimizer.init(variables["params"]), step, traced


def finite(tree):
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def test_any_number_of_boxes_is_one_program_without_nan():
    _, variables, state, step, traced = trainer()
    for objects in ([], [(*SQUARE, 1)], [(*SQUARE, 1), (50, 50, 64, 64, 0), (0, 0, 9, 12, 0)]):
        _, _, losses, gradient = step(variables, state, *make_image(objects), 0)
        assert finite((losses, gradient))
        assert np.all(losses[jnp.array([0, 2])] > 0)
        assert np.all((losses[jnp.array([1, 3])] > 0) == bool(objects))
        assert np.any(gradient["rpn"]["deltas"]["kernel"]) == bool(objects)
    assert len(traced) == 1


def test_steps_draw_other_samples_and_equal_keys_the_same():
    _, variables, state, step, _ = trainer()
    image, rows = make_image([(*SQUARE, 1)])
    first, again, other = (step(variables, state, image, rows, number)[2] for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_one_image_is_learnt():
    model, variables, state, step, _ = trainer()
    image, rows = make_image([(*SQUARE, 1), (46, 30, 60, 58, 0)])
    for number in range(300):
        variables, state, losses, _ = step(variables, state, image, rows, number)
    assert np.sum(losses) < 0.1
    found = jax.jit(lambda v, x: model.apply(v, x, method="detect"))(variables, image)
    found = np.asarray(found)[0, :, 0]
    sure = found[found[:, 5] > 0.5]
    sure = sure[np.argsort(-sure[:, 4])]
    assert len(sure) == 2 and np.all(sure[:, 5] > 0.9)
    np.testing.assert_allclose(sure[:, :5], rows[0, :2, :5], atol=1)
