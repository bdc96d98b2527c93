"""Starting several processes: what the environment may say, and what one process makes of it."""

import json
import os
import platform
import subprocess
import sys

import pytest

from experiments.config import ConfigError
from experiments.runtime import launch
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
PODS = (ROOT / "docs/pods.md").read_text(encoding="utf-8")
OURS = ("GUIDANCE_COORDINATOR", "GUIDANCE_PROCESSES", "GUIDANCE_PROCESS", "GUIDANCE_HEARTBEAT")
NAMES = (*OURS, "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables given, and none of the others that matter."""

    def only(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return only


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GUIDANCE_PROCESSES": "two"}, "GUIDANCE_PROCESSES = 'two': allowed: a number of processes, or auto"),
        ({"GUIDANCE_PROCESSES": "0"}, "GUIDANCE_PROCESSES = '0'"),
        ({"GUIDANCE_PROCESSES": "2"}, "GUIDANCE_COORDINATOR is missing beside GUIDANCE_PROCESSES=2"),
        ({"GUIDANCE_PROCESSES": "2", "GUIDANCE_COORDINATOR": "host"}, "GUIDANCE_COORDINATOR = 'host': allowed: host:"),
        ({"GUIDANCE_PROCESSES": "2", "GUIDANCE_COORDINATOR": "h:1"}, "GUIDANCE_PROCESS is missing"),
        (
            {"GUIDANCE_PROCESSES": "2", "GUIDANCE_COORDINATOR": "h:1", "GUIDANCE_PROCESS": "2"},
            "GUIDANCE_PROCESS=2: allowed: 0 to 1",
        ),
        ({"GUIDANCE_PROCESSES": "auto", "GUIDANCE_HEARTBEAT": "soon"}, "GUIDANCE_HEARTBEAT = 'soon': allowed: sec"),
        ({"SLURM_STEP_NUM_TASKS": "2", "GUIDANCE_HEARTBEAT": ""}, "GUIDANCE_HEARTBEAT = ''"),
    ],
)
def test_settings_that_cannot_work_are_one_line(environment, variables, words):
    environment(**variables)
    with pytest.raises(ConfigError) as raised:
        launch.start()
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("variables", [{}, {"GUIDANCE_PROCESSES": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_is_what_it_was(environment, variables):
    environment(**variables)
    launch.start()
    assert launch.primary() and not launch.several()
    assert launch.first(lambda: object) is object  # as it is, not through JSON
    with pytest.raises(ZeroDivisionError):
        launch.first(lambda: 1 / 0)


def test_starting_one_process_imports_no_jax_and_gives_virtual_devices_threads():
    program = (
        "import os, sys, json; from experiments.runtime import launch; launch.start();"
        "print(json.dumps(['jax' in sys.modules, os.environ['PJRT_NPROC']]))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (*NAMES, "PJRT_NPROC")}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [False, "8"]


def test_the_page_and_the_program_name_the_same_variables():
    for name in OURS:
        assert name in PODS and name in launch.start.__doc__


FAULTS = """
import resource, sys
import numpy as np
from experiments.runtime import launch
from tests.conftest import REPOSITORY
if sys.argv[1] == "kept":
    launch.keep_freed_memory()
for i in range(12):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    """Ten more arrays of 80 MB touch no new page, where each would touch 40 huge or 20,000 small ones."""
    ran = [
        subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, cwd=ROOT)
        for mode in ("kept", "returned")
    ]
    kept, returned = (int(run.stdout) for run in ran)
    assert kept < 100 and kept < returned / 3
