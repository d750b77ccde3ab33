"""Runs the job of a config: python -m mtl_jax.main --config=configs/scenes.py --workdir=runs/scenes

Any key of the config can be set on the command line, as in --config.optimizer.learning_rate=0.01.
The same command resumes a run that was interrupted.
"""

import argparse
import sys

import jax
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.errors import UserError, exit_on_user_error


def run(config: ConfigDict, workdir: str) -> None:
    """Checks the config and hands over to its job.

    Raises:
      UserError: something the user can mend; names it.
    """
    configs.check(config)
    from mtl_jax import train  # after the checks: it imports TensorFlow

    jobs = {"train": train.train_and_evaluate, "evaluate": train.evaluate_only}
    if config.job not in jobs:
        raise UserError(f"config.job is {config.job!r}: choose one of {', '.join(jobs)}")
    jobs[config.job](config, workdir)
