"""Checkpoints of a working directory, by Orbax: the newest for exact resume, and the best.

checkpoints/latest/<step>/model   what is deployed: {"params", "state"} of the network (averaged, if asked)
checkpoints/latest/<step>/train   all else of the train state
checkpoints/best/<step>/model     the deployable network at the best Delta_m so far, with its `results`
"""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from mtl_jax.errors import UserError

Tree = Any


def _manager(folder: str, keep: int) -> ocp.CheckpointManager:
    # Writes go to a temporary folder that is renamed when complete: a killed run leaves no half checkpoint.
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(os.path.abspath(folder), options=options)


def _restore(manager: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        folder = os.path.join(str(manager.directory), str(step))
        older = [s for s in manager.all_steps() if s < step]
        then = f"resumes from step {older[-1]}" if older else "starts from the beginning"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {folder} is damaged or incomplete ({type(error).__name__}: {reason}): "
            f"move that folder away, and the same command {then}"
        ) from error


class Checkpoints:
    """The checkpoints of one working directory; saving is asynchronous."""

    def __init__(self, workdir: str, keep: int = 1):
        self._latest = _manager(os.path.join(workdir, "checkpoints", "latest"), keep)
        self._best = _manager(os.path.join(workdir, "checkpoints", "best"), 1)

    def latest_step(self) -> int | None:
        return self._latest.latest_step()

    def save(self, step: int, model: Tree, train: Tree) -> None:
        """Saves the newest state; the arrays are copied before the call returns."""
        if step != self._latest.latest_step():
            items = {"model": ocp.args.StandardSave(model), "train": ocp.args.StandardSave(train)}
            self._latest.save(step, args=ocp.args.Composite(**items))

    def save_best(self, step: int, model: Tree, results: dict[str, float]) -> None:
        """Saves the deployable network as the best one so far, with its flat `results`."""
        # A run resumed from before its best step meets that step again, with the same arrays.
        if step != self._best.latest_step():
            items = {"model": ocp.args.StandardSave(model), "results": ocp.args.JsonSave(results)}
            self._best.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, model: Tree, train: Tree) -> tuple[Tree, Tree]:
        """The states saved at `step`, onto the shardings of the abstract trees given.

        Raises:
          UserError: the checkpoint is damaged; names its folder and what to do.
        """
        items = {"model": ocp.args.StandardRestore(model), "train": ocp.args.StandardRestore(train)}
        restored = _restore(self._latest, step, **items)
        return restored["model"], restored["train"]

    def best_results(self) -> tuple[int, dict[str, float]] | None:
        """Step and results of the best checkpoint, if there is one."""
        self._best.wait_until_finished()
        step = self._best.latest_step()
        if step is None:
            return None
        return step, _restore(self._best, step, results=ocp.args.JsonRestore())["results"]

    def restore_model(self, which: str, model: Tree) -> tuple[int, Tree]:
        """Step and the deployable variables of the `latest` or `best` checkpoint."""
        manager = self._best if which == "best" else self._latest
        step = manager.latest_step()
        if step is None:
            raise UserError(f"there is no {which} checkpoint in {manager.directory}: train first")
        return step, _restore(manager, step, model=ocp.args.StandardRestore(model))["model"]

    def restore_method(self, step: int, method: Tree) -> Tree:
        """What the method keeps beside the network, {"params", "state"}, as saved at `step`.

        Raises:
          UserError: as `restore`.
        """
        wanted = {"method": method}
        args = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,  # neither the optimiser's state nor the current network
        )
        return _restore(self._latest, step, train=args)["train"]["method"]

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self._latest.close()
        self._best.close()


def abstract(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Shapes and dtypes of `tree`, each with the sharding to restore onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
