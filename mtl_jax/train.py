"""The generic training loop and its one train step; it knows none of the methods it runs."""

import collections
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax import evaluate, experiment, figures, optimizer, pseudo_label
from mtl_jax import tasks as tasks_lib
from mtl_jax.checkpoint import Checkpoints, abstract
from mtl_jax.data import availability, pipeline
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import Interrupted, UserError
from mtl_jax.logs import Log, Progress
from mtl_jax.methods.base import Method
from mtl_jax.metrics.delta import delta_m
from mtl_jax.models import cost
from mtl_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated, this_host

PROFILED = 5  # steps in the profile that config.train.profile_step asks for

Tree = Any
Tasks = Mapping[str, tasks_lib.Task]


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: i32[], completed steps.
      params, state: {"model", "method"} trees of the method (see methods/base.py).
      opt_state: optimiser state by parameter group.
      average: exponential moving average of {"params", "state"} of the model, or {}.
    """

    step: jax.Array
    params: Tree
    state: Tree
    opt_state: Tree
    average: Tree

    def deployed(self) -> Tree:
        """The network as it is used: averaged, if the run averages."""
        return self.average or self.current()

    def current(self) -> Tree:
        return {"params": self.params["model"], "state": self.state["model"]}

    def split(self) -> tuple[Tree, Tree]:
        """(deployed, all else), which a checkpoint holds apart; `join` undoes it."""
        rest = {
            "step": self.step,
            "opt_state": self.opt_state,
            "method": {"params": self.params["method"], "state": self.state["method"]},
            "current": self.current() if self.average else {},
        }
        return self.deployed(), rest

    @staticmethod
    def join(deployed: Tree, rest: Tree) -> "TrainState":
        current = rest["current"] or deployed
        return TrainState(
            step=rest["step"],
            params={"model": current["params"], "method": rest["method"]["params"]},
            state={"model": current["state"], "method": rest["method"]["state"]},
            opt_state=rest["opt_state"],
            average=deployed if rest["current"] else {},
        )


def init_state(method: Method, config: ConfigDict, rng: jax.Array, batch: Tree) -> TrainState:
    """The state before the first step."""
    variables = method.init(rng, batch)
    params, state = variables["params"], variables["state"]
    tx = optimizer.transformation(config.optimizer, method.groups(params))
    new = TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params), {})
    # A copy: the averaged and the current arrays are donated together and must not share buffers.
    return new.replace(average=jax.tree.map(jnp.copy, new.current())) if config.ema_decay else new


def start_from(state: TrainState, model: nn.Module, config: ConfigDict) -> TrainState:
    """The state before the first step with the weights that the config names in the network."""
    variables = {**state.state["model"], "params": state.params["model"]}
    started = experiment.start_from(variables, model, config)
    new = state.replace(
        params={**state.params, "model": started.pop("params")}, state={**state.state, "model": started}
    )
    return new.replace(average=jax.tree.map(jnp.copy, new.current())) if state.average else new


def make_step(method: Method, config: ConfigDict) -> Callable[[TrainState, Tree], tuple[TrainState, Tree]]:
    """The pure train step: (state, batch) -> (new state, metrics by `task/metric`)."""
    common = optimizer.schedule(config.optimizer, config.train.steps)
    clip, decay = config.optimizer.clip_norm, config.ema_decay

    def turn_update(train: TrainState, batch: Tree, rng: jax.Array, turn: str | None):
        grad = jax.value_and_grad(method.loss, has_aux=True)
        (loss, (metrics, state)), grads = grad(train.params, train.state, batch, rng, train.step, turn)
        norm = optax.tree.norm(grads)
        if clip:
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)), grads)
        groups = method.groups(train.params)
        tx = optimizer.transformation(config.optimizer, groups)
        updates, opt_state = tx.update(grads, train.opt_state, train.params)
        labels = jax.tree.leaves(groups)
        schedules = optimizer.schedules(config.optimizer, config.train.steps, labels)
        rates = {label: schedule(train.step) for label, schedule in schedules.items()}
        trained = labels if method.trains(turn) is None else method.trains(turn)
        params = jax.tree.map(
            lambda p, u, group: p - rates[group] * u if group in trained else p,
            train.params,
            updates,
            groups,
        )
        if method.trains(turn) is not None:  # momentum and counters of the other groups stay as they are
            inner = {
                group: opt_state.inner_states[group] if group in trained else old
                for group, old in train.opt_state.inner_states.items()
            }
            opt_state = opt_state._replace(inner_states=inner)
        new = train.replace(params=params, state=method.update(params, state), opt_state=opt_state)
        if (idle := method.idle(batch, turn)) is not None:
            new = jax.tree.map(lambda old, new: jnp.where(idle, old, new), train, new)
        return new, {
            **metrics,
            "all/loss": loss,
            f"{turn or 'all'}/grad_norm": norm,
            "all/learning_rate": common(train.step),
        }

    def step(train: TrainState, batch: Tree) -> tuple[TrainState, Tree]:
        metrics = {}
        rng = jax.random.fold_in(jax.random.key(config.seed), train.step)
        for index, turn in enumerate(method.turns):
            train, new = turn_update(train, batch, jax.random.fold_in(rng, index), turn)
            metrics = {**new, **metrics, "all/loss": metrics.get("all/loss", 0.0) + new["all/loss"]}
        if decay:
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, train.average, train.current())
            train = train.replace(average=average)
        return train.replace(step=train.step + 1), metrics

    return step


def first_bad(metrics: dict[str, float]) -> str | None:
    """What is not finite in a step's metrics: a task's loss if there is one, else the gradient."""
    bad = [key for key, value in metrics.items() if not jnp.isfinite(value)]
    losses = [key for key in bad if key.endswith("/loss") and key != "all/loss"]
    if losses:
        return f"the loss of task {losses[0].split('/')[0]!r}"
    return "the gradient" if bad else None


class _Signals:
    """Remembers SIGTERM and SIGINT, so that the loop can stop between two steps."""

    def __enter__(self):
        self.received = None
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, _):
        self.received = signal.Signals(number).name

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def train_and_evaluate(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Trains to the end, or goes on where an earlier run in `workdir` stopped, and evaluates.

    Returns:
      What it writes to eval.json, by `split/task/metric`.

    Raises:
      UserError: a wrong config or workdir, an unreadable file, a loss that is not finite.
      Interrupted: SIGTERM or SIGINT; the state is saved.
    """
    mesh = make_mesh()
    check_batch_size("config.data.batch_size", config.data.batch_size, mesh)
    check_batch_size("config.data.eval_batch_size", config.data.eval_batch_size, mesh)
    dataset = experiment.build_dataset(config)
    tasks = tasks_lib.build(config.tasks, dataset.labels)
    model = experiment.build_model(config, tasks, workdir)
    method = experiment.build_method(config, model, tasks)
    data = config.data
    splits = {key: pipeline.open_split(dataset, data[key], tuple(tasks), data) for key in ("train", "eval")}
    streams = stream_splits(dataset, config, method, check_labels(config, method, len(splits["train"])))
    method = method.with_streams({name: len(split) for name, split in streams.items()})
    # All that can be wrong with the config shows here, before anything is written into the workdir.
    whole = replicated(mesh)
    key = jax.random.key(config.seed)
    batch = experiment.example_batch(config, tasks, method.views, method.streams)
    fresh = jax.jit(lambda key: init_state(method, config, key, batch), out_shardings=whole)
    shapes = abstract(jax.eval_shape(fresh, key), whole)
    train_step = make_step(method, config)
    if config.weights.path and not os.path.exists(os.path.join(workdir, "config.json")):
        experiment.start_from({**shapes.state["model"], "params": shapes.params["model"]}, model, config)
    experiment.claim_workdir(config, workdir)
    experiment.write_tasks(workdir, config, dataset)
    if config.weights.path:
        experiment.write_preprocessing(workdir, model)
    splits["train"], statistics = with_given_labels(splits["train"], config, workdir, method)
    if config.data.cache:  # it is read at every evaluation; train_batches keeps what it reads itself
        splits["eval"] = pipeline.cached(splits["eval"])

    # State: from the newest checkpoint, or fresh.
    checkpoints = Checkpoints(workdir, config.train.keep)
    start = checkpoints.latest_step()
    if start is None:
        start, state = 0, fresh(key)
        if config.weights.path:
            state = jax.device_put(start_from(state, model, config), whole)
    else:
        state = TrainState.join(*checkpoints.restore(start, *shapes.split()))
    log = Log(workdir, start)
    if start:
        log.say(f"resuming {workdir} at step {start} of {config.train.steps}")
    else:
        log.say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
        log.say(statistics)

    # Evaluation, and the reference that every result is compared to.
    eval_split = config.data.eval
    reference = constant_results(config, splits, tasks, mesh)
    evaluation = evaluate.Evaluation(evaluate.predictor(model, tasks), tasks, mesh)

    def run_evaluation(state: TrainState) -> dict[str, float]:
        batches = pipeline.eval_batches(splits["eval"], tasks, config.data, this_host())
        results = evaluation(experiment.variables(state.deployed()), batches)
        return {**results, "all/delta_m": over_constant(results, reference, tasks)}

    step_fn = jax.jit(
        train_step,
        in_shardings=(whole, batch_sharding(mesh)),
        out_shardings=whole,
        donate_argnums=0,
    )
    batches = pipeline.train_batches(
        splits["train"], tasks, config.data, config.seed, start, this_host(), method.views
    )
    further = {
        name: pipeline.stream_batches(
            split, method.streams[name], name, config.data, config.seed, start, this_host()
        )
        for name, split in streams.items()
    }
    batches = pipeline.beside(batches, further)
    batches = pipeline.to_device(batches, batch_sharding(mesh))
    progress = Progress(log, start, config.train.steps, config.data.batch_size)
    pending: collections.deque[tuple[int, Tree]] = collections.deque()

    def settle(waiting: int) -> None:
        """Reads the metrics of all but the last `waiting` steps, so that the device never waits."""
        while len(pending) > waiting:
            step, metrics = pending.popleft()
            metrics = jax.device_get(metrics)
            if culprit := first_bad(metrics):
                kept = checkpoints.latest_step()
                raise UserError(
                    f"{culprit} is not finite at step {step}; "
                    f"{'no checkpoint yet' if kept is None else f'the checkpoint of step {kept} is kept'}. "
                    "Lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
                )
            progress.add(step, metrics)

    best = checkpoints.best_results()
    results: dict[str, float] = {}
    began = time.monotonic()
    try:
        with _Signals() as signals:
            for step in range(start + 1, config.train.steps + 1):
                state, metrics = step_fn(state, next(batches))
                pending.append((step, metrics))
                settle(waiting=1)
                if step == config.train.profile_step:
                    jax.profiler.start_trace(workdir)
                elif config.train.profile_step and step == config.train.profile_step + PROFILED:
                    settle(waiting=0)
                    jax.profiler.stop_trace()
                last = step == config.train.steps
                if step % config.train.log_every == 0 or last:
                    settle(waiting=0)
                    progress.report(step)
                if step % config.train.eval_every == 0 or last:
                    settle(waiting=0)
                    with progress.paused():
                        results = run_evaluation(state)
                        log.write(step, {f"{eval_split}/{k}": v for k, v in results.items()})
                        log.say(f"step {step} · {eval_split}: {summary(results, tasks)}")
                    if best is None or results["all/delta_m"] > best[1]["all/delta_m"]:
                        best = step, results
                        checkpoints.save_best(step, state.deployed(), results)
                if step % config.train.checkpoint_every == 0 or last or signals.received:
                    settle(waiting=0)
                    checkpoints.save(step, *state.split())
                if signals.received and not last:
                    raise Interrupted(
                        f"{signals.received} at step {step} of {config.train.steps}: "
                        "the state is saved; the same command resumes"
                    )
            checkpoints.wait()
    finally:
        batches.close()
        checkpoints.close()
        log.close()

    if not results:  # the run had been complete before
        results = run_evaluation(state)
    report = {f"{eval_split}/{k}": v for k, v in results.items()}
    report |= {f"constant/{k}": v for k, v in reference.items()}
    report |= {f"best/{k}": v for k, v in {**best[1], "all/step": best[0]}.items()}
    flops = cost.flops(model, experiment.variables(state.current()), tuple(tasks), tuple(config.data.size))
    report["model/cost/params"] = cost.parameters(state.params["model"])
    report["model/cost/gflops"] = flops / 1e9
    report["train/all/seconds"] = time.monotonic() - began
    experiment.write_results(workdir, report)
    figures.curves(workdir)
    if config.figures.examples:
        some = splits["eval"].subset(range(config.figures.examples))
        path = os.path.join(workdir, "figures", "panels.png")
        network = model, experiment.variables(state.deployed())
        evaluate.draw_examples(path, config, some, tasks, {"prediction": network})
    log.say(f"results {workdir}/eval.json · pictures {workdir}/figures")
    return report


def check_labels(config: ConfigDict, method: Method, count: int) -> Mapping[str, np.ndarray]:
    """{task: bool[count]}: which labels training is given.

    Raises:
      UserError: config.data.labels makes no sense for `count` images, or the method cannot use its labels.
    """
    options, tasks = config.data.labels, tuple(method.tasks)
    given = availability.by_task(availability.table(options, tasks, count), options, tasks)
    for name in config.data.teachers:
        if name not in given:
            raise UserError(f"config.data.teachers names task {name!r}: the tasks are {', '.join(given)}")
        given[name] = np.ones(count, bool)
    method.check_labels(given)
    return given


def stream_splits(
    dataset: Dataset, config: ConfigDict, method: Method, given: Mapping[str, np.ndarray]
) -> dict[str, Split]:
    """The images of each of the method's streams, by name."""
    labelled = np.flatnonzero(np.any(list(given.values()), axis=0))
    images = functools.partial(pipeline.open_split, dataset, config.data.train, (), config.data)
    return {
        name: images().subset(labelled) if stream.labelled else images()
        for name, stream in method.streams.items()
    }


def with_given_labels(split: Split, config: ConfigDict, workdir: str, method: Method) -> tuple[Split, str]:
    """The training split with the labels that config.data.labels gives it, and how many they are, in words.

    Labels that config.data.teachers can make are filled in; images without any are left out unless the
    method uses them.

    Raises:
      UserError: the workdir has another table, or a teacher that does not fit.
    """
    tasks = method.tasks
    given = availability.claim(workdir, config.data.labels, tuple(tasks), len(split))
    statistics = availability.statistics(given)
    split = dataclasses.replace(split, given=given)
    if config.data.teachers:
        folder = os.path.join(workdir, "pseudo_labels")
        split = pseudo_label.fill(split, tasks, config.data.teachers, folder)
    labelled = np.any(list(split.given.values()), axis=0)
    if not method.uses_unlabelled and not labelled.all():
        split = split.subset(np.flatnonzero(labelled))
        statistics += f"\n{np.sum(~labelled)} images without any label are left out"
    return split, statistics


def constant_results(
    config: ConfigDict, splits: Mapping[str, Split], tasks: Tasks, mesh: Mesh
) -> dict[str, float]:
    """Results of the best constant prediction of each task, from at most 1000 training examples."""
    some = pipeline.eval_batches(
        splits["train"].subset(range(min(1000, len(splits["train"])))), tasks, config.data
    )
    values = evaluate.mean_labels(some, tasks)
    evaluation = evaluate.Evaluation(evaluate.constant_predictor(tasks), tasks, mesh)
    return evaluation(values, pipeline.eval_batches(splits["eval"], tasks, config.data, this_host()))


def over_constant(results: Mapping[str, float], reference: Mapping[str, float], tasks: Tasks) -> float:
    """Delta_m over the best constant prediction, of results by `task/metric`.

    A constant may score exactly 0, as every one does in detection: the gain over it is absolute then.
    """
    key = {name: f"{name}/{task.headline}" for name, task in tasks.items()}
    raised = {name: float(reference[key[name]] == 0) for name in tasks}
    ours, constant = ({n: values[key[n]] + raised[n] for n in tasks} for values in (results, reference))
    return delta_m(ours, constant, tasks)


def summary(results: dict[str, float], tasks: Tasks) -> str:
    """One line: each task's headline, and Delta_m over the best constant prediction."""
    parts = [
        f"{name} {task.headline} {results[f'{name}/{task.headline}']:.4g}" for name, task in tasks.items()
    ]
    return " · ".join([*parts, f"Delta_m over a constant {results['all/delta_m']:+.1f} %"])
