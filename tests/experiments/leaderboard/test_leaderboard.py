"""The leaderboard: its problems, its protocol, its page; small, and with one contender at a time."""

import csv

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from experiments.config import expressions
from experiments.leaderboard import board, evaluate, page, problems
from experiments.leaderboard import contenders as field
from experiments.main import load
from guidance import guides, rules, sampling, weights
from guidance.tables import Row
from guidance.truth import mixtures

CONFIG = config_dict.ConfigDict(
    {"seed": 0, "seeds": 2, "tuning_seeds": 1, "samples": 64, "nfe": (10, 20), "updates": 2, "omegas": (0.0, 1.0)}
)
COMPETING = load("configs/leaderboard.py")


def contenders(*omegas):
    return field.contenders(config_dict.ConfigDict(COMPETING.to_dict() | {"omegas": omegas}))


@pytest.fixture(scope="module")
def plane():
    return problems.plane(jax.random.key(0))


def _pick(group, name):
    index = group.names.index(name)
    return jax.tree.map(lambda a: a[index], (group.truth, group.model))


def test_the_well_trained_model_is_exact(plane):
    truth, model = _pick(plane, "well trained")
    x, t = jax.random.normal(jax.random.key(1), (6, 2)), jnp.linspace(0.1, 1, 6)
    cond = jnp.asarray([0, 1, 2, 0, 1, 2])
    exact = mixtures.denoise(truth, problems.SCHEDULE)(x, t, cond)
    chex.assert_trees_all_close(plane.denoise(model)(x, t, cond), exact, rtol=1e-5, atol=1e-6)


def test_every_other_model_of_the_plane_is_wrong(plane):
    x, t = jax.random.normal(jax.random.key(1), (6, 2)), jnp.full(6, 0.5)
    for name in plane.names:
        truth, model = _pick(plane, name)
        gap = plane.denoise(model)(x, t, jnp.zeros(6, int)) - mixtures.denoise(truth, problems.SCHEDULE)(
            x, t, jnp.zeros(6, int)
        )
        assert (float(jnp.max(jnp.abs(gap))) > 0.05) == (name != "well trained"), name


def test_the_padded_loop_is_the_sampler():
    """A grid padded to another length gives the samples of `sampling.sample`, to rounding."""
    group = problems._many_classes()
    truth, model = _pick(group, "ten classes")
    grid, key = sampling.uniform_grid(4), jax.random.key(3)
    padded = jnp.zeros(11).at[:5].set(grid)
    table = jnp.full((10, problems.GUIDED), 0.7)
    run = evaluate.sampler(group, field.by_rule(rules.cfg), sampling.ddim(), 8)
    got = run(table, padded, 4, key, 0)
    start, step = jax.random.split(jax.random.key(3))
    cond = jnp.repeat(jnp.arange(2), 8)
    x = sampling.initial_noise(start, problems.SCHEDULE, grid, (2,), jnp.arange(16))
    guide = guides.cfg(weights.constant(0.7), truth.null, skip=False)
    want = sampling.sample(step, group.denoise(model), guide, sampling.ddim(), problems.SCHEDULE, grid, x, cond).x0
    chex.assert_trees_all_close(got.reshape(16, 2), want, rtol=1e-4, atol=1e-5)


@pytest.mark.key_reuse  # all problems and knobs see the same noise
def test_the_exact_repair_wins_the_tuning():
    """On the attenuated ten classes (rho = 1/2) the knob that is found is omega = 1, and it closes most of the gap."""
    group = problems._many_classes()
    bench = board.Bench(group, CONFIG)
    entrant = next(one for one in contenders(0.0, 1.0, 3.0) if one.name == "cfg")
    rows = [Row(**row) for row in bench.tuned(entrant, 20)]
    lead = next(row for row in rows if row.metric == "energy_distance")
    assert lead.settings == {"omega": 1.0} and lead.steps == 10 and lead.nfe == 20
    unguided = [Row(**row) for row in bench.tuned(contenders(0.0)[0], 20)][0]
    floor = [Row(**row) for row in bench.floor()][0]
    assert unguided.steps == 20
    assert lead.value - floor.value < 0.2 * (unguided.value - floor.value)


def test_every_rule_of_the_library_competes_and_keeps_its_published_knobs():
    found = {one.identity: one for one in contenders(0.0, 1.0)}
    assert {text.partition("(")[0] for text in COMPETING.rules} == set(expressions.COMBINATIONS)
    assert set(COMPETING.rules) < found.keys() and set(COMPETING.learned) < set(COMPETING.rules)
    for text in ("apg(eta=0, cap=2.5, beta=-0.5)", "magnitude_aware(sensitivity=2)", "gap_normalised(gamma=0.5)"):
        assert found[text].knob == "omega" and found[text].knobs == (0.0, 1.0)
    assert found["cfg_plus_plus"].knob == "lambda" and found["cfg_plus_plus"].knobs == (0.15, 1.0)
    assert found["cfg, interval(lo=0.3, hi=0.8)"].structure == "cfg"


def test_every_contender_has_a_table_on_every_grid():
    for entrant in contenders(0.0, 1.0):
        for steps in (3, 5, 25):
            table = entrant.table(sampling.uniform_grid(steps), 50)
            assert table.shape == (len(entrant.knobs), 50) and np.isfinite(table).all()
            assert not table[:, steps:].any()


def _rows():
    lead = {"a": (0.3, 0.1), "b": (0.1, 0.101), "true data": (0.0, 0.0)}
    nfe = {"a": 10.0, "b": 10.0, "true data": 0.0}
    return [
        Row(f"problem {p}", name, "w", {}, "DDIM", 5, nfe[name], 2, metric, value, 0.01)
        for name, values in lead.items()
        for p, value in enumerate(values)
        for metric in ("energy_distance", "norm_growth")
    ]  # fmt: skip


def test_standings_rank_and_the_page_marks_what_is_close():
    ranked = [row for row in _rows() if row.method != "true data"]
    assert {name: rank for name, rank, _ in page.standings(ranked, 10.0)} == {"a": 1.5, "b": 1.5}
    text = page.as_page(_rows(), CONFIG, [("plane.png", "a caption")])
    line = next(line for line in text.splitlines() if line.startswith("| a |"))
    assert "300 ± 10" in line and "**300" not in line  # 20 standard errors off
    assert "**100 ± 10**" in line  # the best of the second column
    assert "| true data |" in text and "## MNIST" not in text and "![a caption](plane.png)" in text


def test_the_page_of_images_has_its_own_table_ranked_by_the_last_nfe():
    scores = {("a", 10.0): 0.5, ("a", 20.0): 0.2, ("b", 10.0): 0.4, ("b", 20.0): 0.3, ("true data", 0.0): 0.1}
    rows = [
        Row("mnist", name, "w", {}, "DDIM", 5, nfe, 3, "frechet_distance", value, 0.01)
        for (name, nfe), value in scores.items()
    ]
    lines = page.as_page(rows, CONFIG, []).splitlines()
    assert "## MNIST" in lines and "## Mixtures" not in lines
    assert (
        "| a | 0.500 ± 0.010 | **0.200 ± 0.010** |" in lines
        and "| true data | 0.100 ± 0.010 | 0.100 ± 0.010 |" in lines
    )
    assert lines.index("| a | 0.500 ± 0.010 | **0.200 ± 0.010** |") < lines.index(
        "| b | **0.400 ± 0.010** | 0.300 ± 0.010 |"
    )


def test_the_csv_has_a_line_for_each_method_and_problem():
    lines = list(csv.DictReader(page.as_csv(_rows()).splitlines()))
    assert len(lines) == 6
    first = lines[0]
    assert (first["problem"], first["method"], first["nfe"]) == ("problem 0", "a", "10")
    assert float(first["energy_distance"]) == 0.3 and float(first["norm_growth_se"]) == 0.01


def test_the_config_is_checked():
    config = load("configs/leaderboard.py:smoke")
    assert config.job == "leaderboard" and config.nfe == (10,)
    with pytest.raises(Exception, match="base_steps"):
        load("configs/leaderboard.py", {"base_steps": "10,5"})
    with pytest.raises(Exception, match="omegas"):
        load("configs/leaderboard.py", {"omegas": "-2"})
    nowhere = {"problem.epochs": "/nowhere"}
    assert load("configs/leaderboard.py", nowhere).columns == ("mixtures",)
    with pytest.raises(Exception, match="problem.epochs"):
        load("configs/leaderboard.py", nowhere | {"columns": "pair"})
