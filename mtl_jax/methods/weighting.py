"""How the losses of many tasks become one update: by weights that are fixed, learned, or solved for.

The fixed weights of config.method.weights come first: every L_t here is already multiplied by its own,
whatever the weighting. A method's further losses, its `rest`, count once and are never weighted.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError, one_of

Tree = Any
Method = Any  # that of methods/base.py, which is built on this file
Aux = tuple[dict[str, jax.Array], Tree]  # metrics, new state
Losses = Callable[[Tree, Tree], tuple[dict[str, jax.Array], jax.Array, Aux]]

KEY = "weighting"  # of what a weighting keeps in a method's own parameters and state
REST = ""  # stands beside the tasks' names, and is none

ITERATIONS = 100  # of the min-norm solver
VARIANTS = ("full", "upper_bound")
NORMALISERS = ("none", "l2", "loss", "loss+")

SMALLEST = 1e-3  # weight that GradNorm leaves to a task


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Fixed weights, L = sum_t L_t + rest; the other weightings override `init` and `total`.

    Attributes:
      weights: task -> factor of its loss, for all tasks of the run.
    """

    weights: Mapping[str, float]

    def init(self, method: Method, params: Tree, state: Tree, image: jax.Array) -> tuple[Tree, Tree]:
        """What it learns by the optimiser, and what it remembers: {} or a tree each.

        Args:
          params, state: {"model", "method"} each; the method's own parts are empty yet.
          image: f32[B,H,W,3], like those of a batch.

        Raises:
          UserError: the model does not allow this weighting.
        """
        return {}, {}

    def total(
        self, method: Method, losses: Losses, params: Tree, state: Tree, image: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The scalar whose gradient is the update, and (metrics, new state).

        Args:
          losses: (params, state) -> {task: L_t}, rest, (metrics, new state).
          params, state: {"model", "method"} each, as `losses` takes them.
          image: f32[B,H,W,3] of the batch.
        """
        values, rest, aux = losses(params, state)
        return sum(values.values()) + rest, aux

    def logged(self, factors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Metrics `task/weight`: by what a task's loss is multiplied in the end."""
        return {f"{task}/weight": self.weights[task] * factor for task, factor in factors.items()}


@dataclasses.dataclass(frozen=True)
class Uncertainty(Weighting):
    """Weights learned as the noise of each task (Kendall, Gal and Cipolla, CVPR 2018, eqs. 7-10).

    L = sum_t c_t exp(-s_t) L_t + s_t / 2 + rest with s_t = ln sigma_t^2, 0 at first, and c_t = 1 for a
    task whose labels are classes, else 1/2. s_t rests while no label of its task is in the batch.
    """

    def init(self, method, params, state, image):
        return {task: jnp.zeros(()) for task in self.weights}, {}

    def total(self, method, losses, params, state, image):
        values, total, (metrics, state) = losses(params, state)
        factors = {}
        for task, s in params["method"][KEY].items():
            factors[task] = (1.0 if method.tasks[task].discrete else 0.5) * jnp.exp(-s)
            total += factors[task] * values[task] + jnp.where(values[task] != 0, s / 2, 0.0)
        return total, (metrics | self.logged(factors), state)


@dataclasses.dataclass(frozen=True)
class MGDA(Weighting):
    """Weights alpha of the least norm of sum_t alpha_t g_t (Sener and Koltun, NeurIPS 2018, algorithm 2).

    Parameters that all tasks share receive sum_t alpha_t dL_t, those of a task their plain gradient. A
    task whose gradient is zero, such as one without labels in the batch, gets no alpha.

    Attributes:
      variant: what g_t is the gradient of L_t by: "full", the shared parameters, or "upper_bound", the
        last tensors that all tasks share (MGDA-UB, section 3.3), for one backward pass of the shared
        part instead of one per task.
      normalise: by what g_t is divided before alpha is solved for: its norm ("l2"), L_t ("loss"), both
        ("loss+"), or "none". As in the authors' code, alpha then weighs the gradients undivided.
    """

    variant: str = "full"
    normalise: str = "none"

    def __post_init__(self):
        one_of("method.weighting.variant", self.variant, VARIANTS)
        one_of("method.weighting.normalise", self.normalise, NORMALISERS)

    def init(self, method, params, state, image):
        if self.variant == "upper_bound" and not jax.tree.leaves(method.perturbations(params, state, image)):
            raise UserError(
                "config.method.weighting is MGDA's variant 'upper_bound', but the tasks share no"
                " representation in this model: choose the variant 'full'"
            )
        return {}, {}

    def total(self, method, losses, params, state, image):
        upper_bound = self.variant == "upper_bound"
        added = method.perturbations(params, state, image) if upper_bound else {}

        def perturbed(params, added):
            model = {**state["model"], "perturbations": added} if upper_bound else state["model"]
            return losses(params, {**state, "model": model})

        values, pull, (metrics, new_state) = _differentiate(perturbed, params, added)
        plain, by_added = zip(*(pull({task: 1.0}) for task in self.weights), strict=True)
        shared = jax.tree.map(lambda group: group == "shared", method.groups(params))
        by_shared = [jax.tree.map(lambda on, g: g if on else None, shared, own) for own in plain]
        products = gram(by_added if upper_bound else by_shared)
        products = _normalised(products, _stack(values, self.weights), self.normalise)
        alpha = dict(zip(self.weights, min_norm(products), strict=True))

        rest, _ = pull({REST: 1.0})
        if upper_bound:
            common, _ = pull(alpha)
        else:
            common = jax.tree.map(lambda *own: sum(map(jnp.multiply, alpha.values(), own)), *plain)
        gradient = jax.tree.map(lambda on, c, r, *p: (c if on else sum(p)) + r, shared, common, rest, *plain)
        total = sum(alpha[task] * values[task] for task in alpha) + values[REST]
        return _with_gradient(params, total, gradient), (metrics | self.logged(alpha), new_state)


@dataclasses.dataclass(frozen=True)
class GradNorm(Weighting):
    """Weights that let all tasks learn at a similar rate (Chen et al., ICML 2018, algorithm 1).

    The parameters receive the gradient of sum_t w_t L_t + rest; then w_t follows the rule of `balance`.

    Attributes:
      asymmetry: exponent that the paper calls alpha: how strongly slow tasks are favoured.
      learning_rate: of w_t.
    """

    asymmetry: float = 1.5
    learning_rate: float = 0.025

    def init(self, method, params, state, image):
        if not getattr(method.model, "last_shared", None):
            raise UserError(
                "config.method.weighting is 'gradnorm', but the model names no layer as the last one that"
                " all tasks share (`last_shared`)"
            )
        return {}, {"weights": jnp.ones(len(self.weights)), "first": jnp.zeros(len(self.weights))}

    def total(self, method, losses, params, state, image):
        values, pull, (metrics, new_state) = _differentiate(lambda p: losses(p, state), params)

        def norm(task):
            (layer,) = pull({task: 1.0})
            for key in ("model", *method.model.last_shared):
                layer = layer[key]
            return optax.tree.norm(layer)

        memory = state["method"][KEY]
        current = _stack(values, self.weights)
        first = jnp.where(memory["first"] > 0, memory["first"], current)
        norms = jnp.stack([norm(task) for task in self.weights])
        updated = balance(memory["weights"], norms, current, first, self.asymmetry, self.learning_rate)
        own = {**new_state["method"], KEY: {"weights": updated, "first": first}}

        weights = dict(zip(self.weights, memory["weights"], strict=True))
        (gradient,) = pull({**weights, REST: 1.0})
        total = sum(weights[task] * values[task] for task in weights) + values[REST]
        aux = metrics | self.logged(weights), {**new_state, "method": own}
        return _with_gradient(params, total, gradient), aux


KINDS = {"fixed": Weighting, "uncertainty": Uncertainty, "mgda": MGDA, "gradnorm": GradNorm}


def make(
    tasks: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    weighting: str | Mapping[str, Any] = "fixed",
) -> Weighting:
    """The weighting that config.method asks for.

    Args:
      weights: task -> fixed factor of its loss; tasks that are not named have 1.
      weighting: a name of KINDS, or {"name": ..., and attributes of that class}.

    Raises:
      UserError: an unknown task, name or option, or an option's value that makes no sense.
    """
    weights = dict(weights or {})
    for task in weights:
        if task not in tasks:
            raise UserError(f"config.method.weights names {task!r}, which is not one of config.tasks")
    options = {"name": weighting} if isinstance(weighting, str) else dict(weighting)
    name = options.pop("name", None)
    one_of("method.weighting", name, KINDS)
    known = [field.name for field in dataclasses.fields(KINDS[name]) if field.name != "weights"]
    for key in options:
        if key not in known:
            takes = ", ".join(known) or "none"
            raise UserError(f"config.method.weighting {name!r} has no option {key!r}: it takes {takes}")
    return KINDS[name]({task: float(weights.get(task, 1.0)) for task in tasks}, **options)


def min_norm(products: jax.Array) -> jax.Array:
    """alpha f32[T] >= 0 that sums to 1 and minimises |sum_t alpha_t g_t|^2, from f32[T,T] <g_s, g_t>.

    Frank-Wolfe with pairwise steps, which converges linearly (Lacoste-Julien and Jaggi, NIPS 2015):
    each moves weight from one task to another, the pair and the amount that lower the norm most. A
    zero gradient, which would make any other one vanish, takes no part: its alpha is 0.
    """
    norms = jnp.diag(products)
    present = norms > 0
    products = products / jnp.maximum(jnp.max(norms), jnp.finfo(jnp.float32).tiny)
    norms = jnp.diag(products)
    size = norms[:, None] + norms[None, :]
    # Of equal gradients, the difference is nothing but rounding.
    curvature = jnp.maximum(size - 2 * products, 1e-6 * jnp.where(size > 0, size, 1.0))

    def step(_, alpha):
        slope = products @ alpha
        slope = slope[None, :] - slope[:, None]  # [s, t]: half of what a unit moved from t to s wins
        moved = jnp.clip(slope / curvature, 0.0, alpha[None, :])
        won = jnp.where(present[:, None], moved * (2 * slope - moved * curvature), 0.0)
        to, origin = jnp.unravel_index(jnp.argmax(won), won.shape)
        return alpha.at[to].add(moved[to, origin]).at[origin].add(-moved[to, origin])

    alpha = present / jnp.maximum(jnp.sum(present), 1)
    alpha = jax.lax.fori_loop(0, ITERATIONS, step, alpha.astype(jnp.float32))
    return alpha / jnp.maximum(jnp.sum(alpha), 0.5)  # the sum is 1 but for rounding, or 0


def gram(trees: Sequence[Tree]) -> jax.Array:
    """f32[T,T]: inner products of T trees of one structure."""

    def products(*leaves: jax.Array) -> jax.Array:
        rows = jnp.stack([leaf.reshape(-1).astype(jnp.float32) for leaf in leaves])
        return jnp.matmul(rows, rows.T, precision="highest")

    return sum(jax.tree.leaves(jax.tree.map(products, *trees)))


def balance(
    weights: jax.Array,
    norms: jax.Array,
    losses: jax.Array,
    first: jax.Array,
    asymmetry: float,
    learning_rate: float,
) -> jax.Array:
    """GradNorm's next weights f32[T]; a task without labels in the batch (loss 0) keeps its own.

    One step down sum_t |G_t - mean(G) r_t^asymmetry| by w_t, where G_t = w_t norms_t, the target is
    held constant and r_t = (L_t / L_t(0)) / mean; the weights then get back their old sum.

    Args:
      norms: f32[T], of dL_t by the last shared layer.
      losses, first: f32[T], L_t and L_t(0), at a task's first batch with labels.
    """
    labelled = losses > 0

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(labelled, x, 0.0)) / jnp.maximum(jnp.sum(labelled), 1)

    ratio = losses / jnp.where(labelled, first, 1.0)
    rate = ratio / jnp.where(mean(ratio) > 0, mean(ratio), 1.0)
    scaled = weights * norms
    slope = jnp.sign(scaled - mean(scaled) * rate**asymmetry) * norms
    moved = jnp.maximum(weights - learning_rate * slope, SMALLEST)
    return jnp.where(labelled, moved * mean(weights) / mean(moved), weights)


def _normalised(products: jax.Array, losses: jax.Array, kind: str) -> jax.Array:
    """Inner products of the gradients after each is divided by its norm, its loss, or both."""
    divisor = jnp.ones_like(losses)
    if kind in ("l2", "loss+"):
        divisor *= jnp.sqrt(jnp.diag(products))
    if kind in ("loss", "loss+"):
        divisor *= losses
    divisor = jnp.where(divisor > 0, divisor, 1.0)
    return products / divisor[:, None] / divisor[None, :]


def _differentiate(losses: Callable, *variables: Tree) -> tuple[dict[str, jax.Array], Callable, Aux]:
    """({task: L_t, REST: rest}, pull, aux) of losses(*variables) -> {task: L_t}, rest, aux.

    pull({name: factor}) is the gradient of that weighted sum, a tuple like `variables`. The forward pass
    is made once; a `pull` runs backwards through what its names depend on, and no further.
    """

    def named(*variables):
        values, rest, aux = losses(*variables)
        return {**values, REST: jnp.asarray(rest, jnp.float32)}, aux

    # The gradient is given to the result by _with_gradient: none may flow through here besides.
    variables = jax.lax.stop_gradient(variables)
    values, linear, aux = jax.linearize(named, *variables, has_aux=True)

    def pull(factors: Mapping[str, jax.Array | float]) -> tuple[Tree, ...]:
        def part(*tangents):
            outputs = linear(*tangents)
            return {name: outputs[name] for name in factors}

        factors = {name: jnp.asarray(factor, values[name].dtype) for name, factor in factors.items()}
        return jax.linear_transpose(part, *variables)(factors)

    return values, pull, aux


@jax.custom_vjp
def _with_gradient(params: Tree, value: jax.Array, gradient: Tree) -> jax.Array:
    """`value`, whose gradient by `params` is `gradient`."""
    return value


_with_gradient.defvjp(
    lambda params, value, gradient: (value, gradient),
    lambda gradient, g: (jax.tree.map(lambda x: g * x, gradient), None, None),
)


def _stack(values: Mapping[str, jax.Array], names: Sequence[str]) -> jax.Array:
    return jnp.stack([values[name] for name in names])
