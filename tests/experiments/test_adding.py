"""Adding to the library: a function and its line in the package; everything else follows, in a copy of the sources."""

import shutil
import subprocess
import sys

from tests.conftest import REPOSITORY

RULE = '''
"""A rule that a test adds."""

from jax.tree_util import Partial

from guidance.ranges import Share, ranged
from guidance.shapes import like
from guidance.types import Rule


@ranged
def halved(factor: Share = 0.5) -> Rule:
    """CFG at a share of omega: D_c + factor omega (D_c - D_u).

    Two evaluations a step. Source: a test.
    """
    return Partial(_halved, factor)


def _halved(factor, positive, reference, omega):
    return positive + factor * like(omega, positive) * (positive - reference)
'''
WEIGHT = '''
"""A weight that a test adds."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.ranges import Finite, Time, ranged
from guidance.types import Weight


@ranged
def late(omega: Finite, start: Time) -> Weight:
    """omega where t <= start, else 0. Source: a test."""
    return Partial(_late, omega, start)


def _late(omega, start, *, t, s, cond):
    return jnp.where(t <= start, omega, 0.0)
'''
SOLVER = '''
"""A solver and a grid that a test adds."""

import jax.numpy as jnp

from guidance.ranges import Count, Positive, ranged
from guidance.sampling.steps import ddim
from guidance.types import Array, Step


def again() -> Step:
    """DDIM under another name. Source: a test."""
    return ddim()


@ranged
def powered_grid(steps: Count, power: Positive = 2.0) -> Array:
    """t_i = (1 - i/steps)^power. Source: a test."""
    return jnp.linspace(1.0, 0.0, steps + 1) ** power
'''
REWARD = '''

def downhill(slope: Finite) -> LinearQuadratic:
    """-slope times the first of two coordinates. Source: a test."""
    return linear_quadratic((-slope, 0.0))
'''
LINES = {  # file: what goes in after its first import, and what into __all__
    "rules/__init__.py": ("from guidance.rules.added import halved", ["halved"]),
    "weights/__init__.py": ("from guidance.weights.added import late", ["late"]),
    "sampling/__init__.py": ("from guidance.sampling.added import again, powered_grid", ["again", "powered_grid"]),
}
LOOK = """
import sys
from experiments import config, main
from experiments.config import catalogue, expressions

listing = catalogue.listing()
for line in ("halved(factor=0.5)", "late(omega, start)", "again()", "powered_grid(steps, power=2)", "downhill(slope)"):
    assert f"  {line}" in listing, line

MIXTURE = "configs/mixture.py"
asked = {
    "learn.rules": "cfg,halved(0.25)", "eval.others": "halved,late(0.5)", "eval.sampler": "again",
    "sample.rule": "halved, rescale", "sample.weight": "late(1, 0.5)", "sample.sampler": "again",
    "sample.grid": "powered(3)", "problem.reward": "downhill(2)", "eval.steps": "4",
}
found = main.load(MIXTURE, asked)
for field, text, words in (
    ("sample.rule", "halved(7)", "factor = 7: allowed: a number in [0, 1]"),
    ("learn.rules", "halfed", "did you mean halved?"),
    ("sample.weight", "late(1, 2)", "start = 2: allowed: a number in [0, 1]"),
    ("sample.grid", "powered(-1)", "power = -1: allowed: a number above 0"),
    ("problem.reward", "downhill(steep)", "slope = steep: allowed: a finite number"),
):
    try:
        main.load(MIXTURE, {field: text})
        raise AssertionError(text)
    except config.ConfigError as error:
        assert words in str(error) and field in str(error), str(error)
assert "halved(factor=0.5)" in main.load("configs/leaderboard.py").rules
assert main.main(["--config=configs/mixture.py", "--help"]) == 0
assert not {"jax", "numpy"} & sys.modules.keys()

import jax.numpy as jnp
from experiments import problems
from experiments.tools import rules_page
from experiments.jobs import candidates, learn
from experiments.problems import construct
from guidance import rules, schedules
from tests.rules.test_battery import RULES
from tests.samplers import SOLVERS

assert "### halved" in rules_page.page() and "`factor` a number in [0, 1]" in rules_page.page()
assert "halved" in RULES and "again" in SOLVERS
a, b, omega = jnp.ones((2, 2)), jnp.zeros((2, 2)), jnp.asarray([1.0, 2.0])
assert jnp.array_equal(construct.rule("halved(0.25)")(a, b, omega), rules.cfg(a, b, omega / 4))
problem = problems.build(found)
assert problem.name.endswith("tilted") and float(problem.reward(jnp.asarray([[3.0, 1.0]]))[0]) == -6
tasks = {task.name: task.rule for task in learn.tasks(problem, found)}
assert tasks["rollout halved(factor=0.25)@4"] == "halved(factor=0.25)"
families = {c.family for c in candidates.candidates(found, schedules.rectified_flow())}
assert {"halved(factor=0.5)", "late(start=0.5)"} <= families
times = construct.grid(found.sample, schedules.rectified_flow())
assert len(times) == 51 and construct.weight(found.sample, problem.model, times) is not None
print("all of it")
"""


def test_a_function_and_its_line_are_all_that_it_takes(tmp_path):
    """A rule, a weight, a solver, a grid, a reward: nameable, learnable, in the battery, listed, documented."""
    for name in ("guidance", "experiments", "configs", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for path, text in (("rules", RULE), ("weights", WEIGHT), ("sampling", SOLVER)):
        (tmp_path / "guidance" / path / "added.py").write_text(text.lstrip())
    for path, (line, names) in LINES.items():
        file = tmp_path / "guidance" / path
        text = file.read_text()
        exported = "".join(f'    "{name}",\n' for name in names)
        file.write_text(
            text.replace("\nfrom ", f"\n{line}\nfrom ", 1).replace("__all__ = [\n", f"__all__ = [\n{exported}")
        )
    with (tmp_path / "guidance" / "truth" / "rewards.py").open("a") as file:
        file.write(REWARD)
    run = subprocess.run([sys.executable, "-c", LOOK], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("all of it\n")
