"""A network of pixels, and batches of partly labelled images, for the methods of partial labels."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import depth, normals, semseg

TASKS = {
    "depth": depth.build("depth", headline="absErr"),
    "normals": normals.build("normals", loss="cosine"),
    "semseg": semseg.build("semseg", 3),
}
SIZE = (4, 6)


class Pixels(nn.Module):
    """A shared layer on the pixels, and a linear head per task; `encoded` halves the resolution."""

    tasks: dict
    dtype = jnp.float32

    @nn.compact
    def __call__(self, image, tasks, train):
        x = nn.tanh(nn.Dense(5, name="trunk")(image))
        outputs = {t: nn.Dense(self.tasks[t].channels, name=owned("head", t))(x) for t in tasks}
        small = nn.avg_pool(x, (2, 2), (2, 2))
        return Prediction(outputs, dict.fromkeys(tasks, x), dict.fromkeys(tasks, small))


def make_batch(given, tasks=TASKS, views=(), seed=0):
    """Images whose tasks have a label where `given` bool[B,K] is true; some pixels of it are unknown."""
    rng = np.random.default_rng(seed)
    given = np.asarray(given, bool)
    count = len(given)

    def images():
        return rng.uniform(size=(count, *SIZE, 3)).astype(np.float32)

    def labelled():
        labels, valid = {}, {}
        for k, (name, task) in enumerate(tasks.items()):
            shape = (count, *SIZE, task.label_channels)
            if name == "semseg":
                label = rng.integers(0, 3, shape).astype(np.int32)
            elif name == "normals":
                label = rng.normal(size=shape).astype(np.float32)
                label /= np.linalg.norm(label, axis=-1, keepdims=True)
            else:
                label = rng.uniform(1, 5, shape).astype(np.float32)
            known = (rng.uniform(size=(count, *SIZE, 1)) < 0.8) & given[:, k, None, None, None]
            labels[name] = np.where(known, label, 0).astype(label.dtype)
            valid[name] = known.astype(np.float32)
        return {"labels": labels, "valid": valid}

    batch = {"image": images(), **labelled(), "id": np.arange(count, dtype=np.int32)}
    if views:
        batch["views"] = {
            name: {"image": images(), **(labelled() if view.zoom else {})} for name, view in views.items()
        }
    return batch


def spoilt(batch, seed=1):
    """The batch with garbage in every label that is not valid."""
    rng = np.random.default_rng(seed)

    def spoil(part):
        labels = {}
        for name, label in part["labels"].items():
            garbage = (
                rng.integers(-7, 300, label.shape)
                if label.dtype == np.int32
                else np.full(label.shape, np.nan)
            )
            labels[name] = np.where(part["valid"][name] > 0, label, garbage).astype(label.dtype)
        return {**part, "labels": labels}

    result = spoil(batch)
    if "views" in batch:
        result["views"] = {n: spoil(v) if "labels" in v else v for n, v in batch["views"].items()}
    return result


def random_params(shapes, seed=0):
    """Parameters of these shapes, all different."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.5, size=x.shape), x.dtype), shapes)


def variables_of(method, batch):
    """Random parameters, and a state of zeros."""
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    return random_params(shapes["params"]), jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), shapes["state"]
    )


def regulariser_gradient(method, batch):
    """Gradient, by all parameters, of what the method adds to the tasks' losses."""
    params, state = variables_of(method, batch)
    rest = jax.jit(jax.grad(lambda p: method.losses(p, state, batch, jax.random.key(0), 0)[1]))
    return rest(params)


def loss_and_gradient(method, batch, params=None, state=None, seed=0):
    """(loss, metrics, gradient by all parameters)."""
    if params is None:
        params, state = variables_of(method, batch)
    step = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (loss, (metrics, _)), grads = step(params, state, batch, jax.random.key(seed), jnp.zeros((), jnp.int32))
    return loss, metrics, grads


@pytest.fixture(scope="session")
def partial():
    """The names above."""
    return types.SimpleNamespace(**{k: v for k, v in globals().items() if callable(v) or k.isupper()})
