"""The jobs train and learn compile each structure once, however many seeds there are."""

import collections
import logging
import re

import jax

from experiments.main import main
from tests.conftest import REPOSITORY

TINY = {
    "job": "learn", "base.steps": "2", "base.width": "8", "base.depth": "1", "base.batch": "8",
    "learn.objectives": "l2", "learn.iterations": "2", "learn.width": "8", "learn.depth": "1", "learn.batch": "8",
}  # fmt: skip
PROGRAMS = {"guarded", "_initial", "<lambda>", "init"}  # the updates, and the initial params of either network


def compiled(caplog, workdir, seeds: int) -> collections.Counter:
    """Returns {program: how often it was compiled} in a new folder."""
    caplog.clear()
    flags = [f"--config.{name}={value}" for name, value in (TINY | {"seeds": seeds}).items()]
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        assert main([f"--config={REPOSITORY / 'configs/mixture.py'}", f"--workdir={workdir}", *flags]) == 0
    found = (re.match(r"Finished XLA compilation of jit\(([^)]+)\)", record.getMessage()) for record in caplog.records)
    return collections.Counter(name[1] for name in found if name and name[1] in PROGRAMS)


def test_a_second_seed_compiles_nothing(tmp_path, caplog):
    one, two = compiled(caplog, tmp_path / "one", 1), compiled(caplog, tmp_path / "two", 2)
    assert one["guarded"] == 2, "the updates of a denoiser and of a weight"
    assert two <= one  # the same network is not initialised twice in a process
