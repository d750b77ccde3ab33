"""Runs the job of a config: python -m mtl_jax.main --config=configs/scenes.py --workdir=runs/scenes

Any key of the config can be set on the command line, as in --config.optimizer.learning_rate=0.01.
The same command resumes a run that was interrupted. Exit codes: 0 done, 2 the user's mistake (one
sentence says which), 143 stopped by a signal with its state saved.
"""

import argparse

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.errors import UserError, exit_on_user_error


def run(config: ConfigDict, workdir: str) -> None:
    """Checks the config and hands over to its job.

    Raises:
      UserError: something the user can mend; names it.
    """
    configs.check(config)
    # Imported after the checks, since they bring in TensorFlow.
    from mtl_jax import evaluate, train

    jobs = {"train": train.train_and_evaluate, "evaluate": evaluate.evaluate_workdir}
    if config.job not in jobs:
        raise UserError(f"config.job is {config.job!r}: choose one of {', '.join(jobs)}")
    jobs[config.job](config, workdir)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, help="a file with get_config(arg), and perhaps :ARG behind it"
    )
    parser.add_argument("--workdir", required=True, help="folder for checkpoints, metrics and figures")
    flags, rest = parser.parse_known_args()
    run(configs.load(flags.config, configs.command_line_overrides(rest)), flags.workdir)


if __name__ == "__main__":
    main()
