"""Predictions and labels of tasks as maps that auxiliary networks read, and distances between maps."""

import itertools

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import one_of
from mtl_jax.metrics.masked import blank, masked_mean
from mtl_jax.models.autoencoder import ARCHITECTURES
from mtl_jax.tasks import Task


def check_architecture(name: str) -> None:
    """UserError if auxiliary networks have no such architecture."""
    one_of("method.architecture", name, ARCHITECTURES)


def ordered_pairs(tasks: int) -> list[tuple[int, int]]:
    """All (s, t) with s != t; a pair's place is its FiLM column, s (K - 1) + (t if t < s else t - 1)."""
    return list(itertools.permutations(range(tasks), 2))


def straight_through(logits: jax.Array, rng: jax.Array) -> jax.Array:
    """One-hot sample of softmax(logits), with the gradient of the soft sample (Gumbel softmax of tau = 1)."""
    noise = jax.random.gumbel(rng, logits.shape, jnp.float32)
    soft = jax.nn.softmax(logits.astype(jnp.float32) + noise)
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1])
    return hard + (soft - jax.lax.stop_gradient(soft))


def sampled(task: Task, raw: jax.Array, rng: jax.Array) -> jax.Array:
    """Raw output f[B,H,W,channels] -> f32 in the space of `encode`; classes are sampled, sharp as labels."""
    return straight_through(raw, rng) if task.values == "classes" else task.activate(raw)


def encoded(task: Task, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Label [B,H,W,C] -> f32[B,H,W,channels] in the space of `encode`; 0 where it is unknown."""
    return jnp.where(valid > 0, task.encode(blank(label, valid)), 0.0)


def unit_range(task: Task, values: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Values in the space of `encode` -> about [0, 1].

    Quantities without bounds pass through the normal distribution function of this mean and deviation.
    """
    if task.values == "directions":
        return (values + 1) / 2
    return jax.scipy.stats.norm.cdf(values, mean, std) if task.values == "real" else values


def mapping_input(task: Task, values: jax.Array) -> jax.Array:
    """Map f32[B,H,W,C] in the space of `encode` -> what the mapping reads; quantities over their largest."""
    if task.values == "real":
        return values / (jnp.max(jnp.abs(values), (1, 2, 3), keepdims=True) + 1e-12)
    return unit_range(task, values, 0.0, 1.0)


def disagreement(task: Task, raw: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """f32[B]: the task's loss between a raw output and a map in the space of `encode`, over valid places."""
    if task.values == "classes":
        per_pixel = optax.softmax_cross_entropy(raw, target)[..., None]
    elif task.values == "directions":
        per_pixel = 1 - jnp.sum(task.activate(raw) * target, -1, keepdims=True)
    else:
        per_pixel = jnp.abs(task.activate(raw) - target)
    return masked_mean(per_pixel, valid)


def cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[B]: 1 - mean over places of the cosine between vectors f[B,h,w,C]; that of a zero vector is 0."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)

    def norm(x: jax.Array) -> jax.Array:
        square = jnp.sum(x**2, -1)
        return jnp.sqrt(jnp.where(square > 0, square, 1.0))  # of a zero vector: finite, and times 0 below

    return 1 - jnp.mean(jnp.sum(a * b, -1) / jnp.maximum(norm(a) * norm(b), 1e-12), (1, 2))
