"""Claiming a run's folder as the command line does."""

from experiments.main import FORMS
from experiments.runtime import run_folder


def claim(workdir, config) -> int:
    """`run_folder.claim` with the fields of the config's problem."""
    return run_folder.claim(workdir, config, FORMS[config.problem.name].fields)
