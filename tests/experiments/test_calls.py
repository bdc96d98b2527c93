"""Rules, weights, samplers and grids as text: what is read, what is refused, and that the tables are the library's."""

import inspect
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import calls, recipes
from experiments.config import ConfigError
from experiments.kinds import Refused
from guidance import rules, sampling, schedules, weights
from guidance.types import At

AT_HAND = {"grid", "schedule"}  # what the job knows and a config does not say
PREDICTIONS = {"positive", "reference", "omega"}

# what a config cannot name, and why
LEFT_OUT = {
    rules: {
        "annealed": "needs a network", "as_stage": "a helper", "effective_scale": "a measurement",
        "mahiro_batch": "a sample depends on its batch", "omega_from_scale": "a helper", "once": "a helper",
        "perp_neg": "needs negative conditions", "scale_from_omega": "a helper", "stack": "the comma",
        "unguided": "the weight 0",
    },
    weights: {
        "RAMPS": "names", "AnnealingNet": "a network", "GuidanceNet": "a network", "annealing": "of another rule",
        "learned": "a file", "snap": "a helper", "table": "an array", "tabulated": "a helper", "time_mean": "a helper",
        "times_of_log_snr": "a helper", "times_of_noise_level": "a helper",
    },
    sampling: {
        "Sampled": "a type",
        "adaptive": "a sample depends on its batch", "as_grid": "an array", "as_solver": "a helper",
        "exact_reverse": "needs a mixture", "initial_noise": "a helper", "noise_level_grid": "an array",
        "resolution_shift": "a helper", "sample": "a helper", "shifted": "sample.shift", "transition": "a helper",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "module, known",
    [
        (rules, set(calls.RULES)),
        (weights, set(calls.WEIGHTS)),
        (sampling, set(calls.SAMPLERS) | {f"{name}_grid" for name in set(calls.GRIDS) - {"karras"}}),
    ],
    ids=["rules", "weights", "sampling"],
)
def test_everything_that_a_config_can_name_has_a_name(module, known):
    assert known | LEFT_OUT[module].keys() == set(module.__all__)


@pytest.mark.parametrize(
    "name, knobs, maker",
    [
        *((name, knobs, getattr(rules, name)) for name, knobs in calls.RULES.items()),
        *((name, knobs, getattr(weights, name)) for name, knobs in calls.WEIGHTS.items()),
        *((name, knobs, getattr(sampling, name)) for name, knobs in calls.SAMPLERS.items()),
        *((name, knobs, recipes.GRID_MAKERS[name]) for name, knobs in calls.GRIDS.items()),
    ],
)
def test_the_tables_have_the_knobs_of_the_library(name, knobs, maker):
    parameters = inspect.signature(maker).parameters
    left = AT_HAND | (PREDICTIONS if name in recipes.PLAIN else {"steps"} if name in calls.GRIDS else set())
    words = [p + ("" if q.default is inspect.Parameter.empty else "?") for p, q in parameters.items() if p not in left]
    assert knobs.split() == words


@pytest.mark.parametrize(
    "text, known, expected",
    {
        "a name": ("cfg", calls.RULES, [("cfg", {})]),
        "no knobs given": ("apg()", calls.RULES, [("apg", {})]),
        "in order": ("apg(0.5, 5)", calls.RULES, [("apg", {"eta": 0.5, "cap": 5})]),
        "by name": ("apg(beta=-0.75, cap=inf)", calls.RULES, [("apg", {"beta": -0.75, "cap": math.inf})]),
        "a stack": (
            " momentum(-0.5),cfg, rescale(phi=.7) ",
            calls.RULES,
            [("momentum", {"beta": -0.5}), ("cfg", {}), ("rescale", {"phi": 0.7})],
        ),
        "a tuple": ("channels((1, 1, 1, 0))", calls.RULES, [("channels", {"mask": (1, 1, 1, 0)})]),
        "words": (
            "ramp(cosine, 2, -inf, 'omega')",
            calls.WEIGHTS,
            [("ramp", {"shape": "cosine", "omega": 2, "floor": -math.inf, "of": "omega"})],
        ),
    }.values(),
)
def test_calls_are_read(text, known, expected):
    assert calls.parse("thing", text, known) == [calls.Call(*call) for call in expected]


@pytest.mark.parametrize(
    "kind, text, words",
    {
        "typo": (calls.rules(), "agp", "no such rule 'agp'; did you mean apg"),
        "code": (calls.weight(), "__import__('os').system('ls')", "not a weight"),
        "a call as a knob": (calls.weight(), "constant(open('x'))", "omega is open('x'); allowed: a number"),
        "an attribute": (calls.weight(), "constant(os.name)", "omega is os.name"),
        "a starred knob": (calls.weight(), "constant(*[1])", "allowed: a number"),
        "starred keywords": (calls.weight(), "constant(**{'omega': 1})", "no knob None"),
        "a flag": (calls.weight(), "constant(True)", "omega is True"),
        "out of the brackets": (calls.rules(), "cfg),(cfg", "not a rule"),
        "no text": (calls.rules(), "", "not a rule"),
        "nothing combines": (calls.rules(), "momentum(-0.5), rescale", "0 of these say what x0 is"),
        "two combine": (calls.rules(), "cfg, apg", "2 of these say what x0 is"),
        "too many knobs": (calls.one("sampler", calls.SAMPLERS), "ddim(1)", "allowed: ddim without knobs"),
        "a knob twice": (calls.weight(), "constant(1, omega=2)", "omega is given twice"),
        "a wrong knob": (calls.weight(), "interval(1, low=.2, hi=1)", "no knob 'low'; did you mean lo"),
        "a knob missing": (calls.weight(), "interval(1)", "lo and hi missing"),
        "two samplers": (calls.one("sampler", calls.SAMPLERS), "ddim, heun", "one sampler"),
        "not finite": (calls.weight(), "nan", "no such weight 'nan'"),
        "no seeds": (calls.seeds(), "", "no integer or range"),
        "negative seeds": (calls.seeds(), "-5", "no integer or range"),
        "backwards": (calls.seeds(), "9-0", "runs backwards"),
        "overlapping": (calls.seeds(), "0-9,5-6", "seed 5 is given twice"),
        "too large": (calls.seeds(), "0-2147483648", "2**31 - 1"),
        "a class by name": (calls.labels(), "cat", "no integer or range"),
    }.values(),
)
def test_what_is_wrong_is_named(kind, text, words):
    with pytest.raises(Refused) as error:
        kind.read(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_ranges_include_both_ends():
    assert calls.integers("0-2,7, 4-4") == [range(0, 3), range(7, 8), range(4, 5)]
    assert calls.labels().read("3,3,1") == "3,3,1", "a class may come twice"


KNOBS = {
    "shape": "cosine", "mask": (1, 0, 1), "beta": -0.5, "a": 2, "b": 2, "rate": -1, "power": 2, "floor": 1,
    "lo": 0.2, "hi": 0.8,
    "first": 1, "last": 2, "radius": 1.0, "eta": 0.5, "churn": 0.5, "gamma": 0.1, "omega": 1.5,
}  # fmt: skip


def text_of(name: str, knobs: str) -> str:
    needed = [word for word in knobs.split() if not word.endswith("?")]
    return f"{name}({', '.join(f'{word}={KNOBS[word]!r}' for word in needed)})"


def settings(**given) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        **(
            {"grid": "uniform", "steps": 4, "shift": 1.0, "sampler": "ddim", "rule": "cfg", "weight": "0", "weak": 0}
            | given
        )
    )


PROBLEM = types.SimpleNamespace(schedule=schedules.rectified_flow(), conditions=jnp.arange(3), null=3)


@pytest.mark.parametrize("name", calls.RULES)
def test_every_rule_works_at_its_defaults(name):
    text = text_of(name, calls.RULES[name])
    stack = text if name in calls.COMBINATIONS else f"{text}, cfg"
    rule = recipes.rule(settings(rule=calls.rules().read(stack)))
    rng = np.random.default_rng(0)
    x, positive, reference = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(3))
    at = At(x, jnp.full(2, 0.5), jnp.full(2, 0.4), PROBLEM.schedule)
    out = rules.once(rule, positive, reference, jnp.full(2, 0.3), at).x0
    assert out.shape == x.shape and bool(jnp.all(jnp.isfinite(out)))


@pytest.mark.parametrize("name", calls.WEIGHTS)
def test_every_weight_is_the_librarys(name):
    text = text_of(name, calls.WEIGHTS[name])
    grid = recipes.grid(settings(), PROBLEM.schedule)
    weight = recipes.weight(settings(weight=calls.weight().read(text)), PROBLEM, grid)
    at_hand = {"schedule": PROBLEM.schedule, "grid": grid}
    maker = getattr(weights, name)
    given = {k: v for k, v in at_hand.items() if k in inspect.signature(maker).parameters}
    same = maker(**given, **{k: KNOBS[k] for k in calls.WEIGHTS[name].split() if not k.endswith("?")})
    arguments = grid[1:], grid[:-1], jnp.zeros(4, jnp.int32)
    np.testing.assert_array_equal(weight(*arguments), same(*arguments))


@pytest.mark.parametrize("name", calls.SAMPLERS)
def test_every_sampler_takes_a_step(name):
    solver = sampling.as_solver(recipes.solver(settings(sampler=text_of(name, calls.SAMPLERS[name]))))
    assert solver.init(jnp.zeros((1, 2))) is not None


@pytest.mark.parametrize("name", calls.GRIDS)
def test_every_grid_has_its_steps_and_shifts(name):
    grid = recipes.grid(settings(grid=name), PROBLEM.schedule)
    shifted = recipes.grid(settings(grid=name, shift=3.0), PROBLEM.schedule)
    assert grid.shape == shifted.shape == (5,)
    level = lambda t: t[1:-1] / (1 - t[1:-1])  # noqa: E731 (of rectified flow)
    np.testing.assert_allclose(level(shifted), 3 * level(grid), rtol=1e-3)


def test_a_shift_that_leaves_no_room_names_its_field():
    with pytest.raises(ConfigError, match=r"sample\.shift = 1e\+30: the times of a grid must decrease"):
        recipes.grid(settings(shift=1e30), PROBLEM.schedule)


def test_karras_is_edm():
    grids = [recipes.grid(settings(grid=f"{name}(noise_max=10)"), PROBLEM.schedule) for name in ("karras", "edm")]
    np.testing.assert_array_equal(*grids)


@pytest.mark.parametrize(
    "build, given, words",
    [
        (recipes.solver, {"sampler": "unipc(7)"}, "sample.sampler = 'unipc(7)'"),
        (
            lambda s: recipes.grid(s, PROBLEM.schedule),
            {"grid": "uniform(t_max=2)"},
            "sample.grid = 'uniform(t_max=2)'",
        ),
        (
            lambda s: recipes.weight(s, PROBLEM, jnp.linspace(1, 0, 5)),
            {"weight": "ramp(circle, 1)"},
            "sample.weight = 'ramp(circle, 1)': unknown",
        ),
        (lambda s: recipes.weight(s, PROBLEM, None), {"weight": "no.safetensors"}, "no.safetensors does not exist"),
    ],
)
def test_what_the_library_refuses_names_the_field(build, given, words):
    with pytest.raises(ConfigError) as error:
        build(settings(**given))
    assert words in str(error.value) and str(error.value).startswith("sample.")


def test_a_constant_is_a_number():
    t = jax.numpy.asarray([0.3, 0.9])
    np.testing.assert_allclose(recipes.weight(settings(weight="1.5"), PROBLEM, None)(t, t, None), 1.5)
