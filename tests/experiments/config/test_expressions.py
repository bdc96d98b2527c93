"""Rules, weights, samplers and grids as text: what is read, what is refused, and what the library makes of it."""

import inspect
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import ConfigError, expressions
from experiments.config.values import Refused
from experiments.main import load
from experiments.problems import construct, interface
from guidance import rules, sampling, schedules, weights
from guidance.types import At
from tests.named import needed

SAMPLER = expressions.call("sampler", expressions.SAMPLERS)
GRID = expressions.call("grid", expressions.GRIDS)


@pytest.mark.parametrize(
    "text, known, expected",
    {
        "a name": ("cfg", expressions.RULES, [("cfg", {})]),
        "no knobs given": ("apg()", expressions.RULES, [("apg", {})]),
        "in order": ("apg(0.5, 5)", expressions.RULES, [("apg", {"eta": 0.5, "cap": 5})]),
        "by name": ("apg(beta=-0.75, cap=inf)", expressions.RULES, [("apg", {"beta": -0.75, "cap": math.inf})]),
        "a stack": (
            " momentum(-0.5),cfg, rescale(phi=.7) ",
            expressions.RULES,
            [("momentum", {"beta": -0.5}), ("cfg", {}), ("rescale", {"phi": 0.7})],
        ),
        "a tuple": ("channels((1, 1, 1, 0))", expressions.RULES, [("channels", {"mask": (1, 1, 1, 0)})]),
        "words": (
            "ramp(cosine, 2, -inf, 'omega')",
            expressions.WEIGHTS,
            [("ramp", {"shape": "cosine", "omega": 2, "floor": -math.inf, "of": "omega"})],
        ),
    }.values(),
)
def test_calls_are_read(text, known, expected):
    """Knobs that are not given have their defaults."""
    calls = expressions.parse("thing", text, known)
    usual = [{knob.name: knob.default for knob in known[name].knobs} for name, _ in expected]
    assert [(call.name, call.knobs) for call in calls] == [
        (name, all_knobs | knobs) for (name, knobs), all_knobs in zip(expected, usual, strict=True)
    ]


@pytest.mark.parametrize(
    "kind, text, words",
    {
        "typo": (expressions.rules(), "agp", "no such rule 'agp'; did you mean apg"),
        "code": (expressions.weight(), "__import__('os').system('ls')", "allowed: a number, one weight, as in "),
        "a call as a knob": (
            expressions.weight(),
            "constant(open('x'))",
            "constant: open('x'): allowed: numbers",
        ),
        "an attribute": (expressions.weight(), "constant(os.name)", "constant: os.name: allowed: numbers"),
        "a starred knob": (expressions.weight(), "constant(*[1])", "constant: *[1]: allowed: numbers"),
        "starred keywords": (expressions.weight(), "constant(**{'omega': 1})", "no knob None"),
        "a flag": (expressions.weight(), "constant(True)", "constant: True: allowed: numbers"),
        "out of the brackets": (expressions.rules(), "cfg),(cfg", "allowed: exactly one rule, as in "),
        "no text": (expressions.rules(), "", "allowed: exactly one rule, as in "),
        "nothing combines": (expressions.rules(), "momentum(-0.5), rescale", "allowed: exactly one rule, as in "),
        "two combine": (expressions.rules(), "cfg, apg", "allowed: exactly one rule, as in "),
        "too many knobs": (
            SAMPLER,
            "ddim(1)",
            "ddim: too many positional arguments; allowed: ddim",
        ),
        "a knob twice": (
            expressions.weight(),
            "constant(1, omega=2)",
            "constant: multiple values for argument 'omega'; allowed: ",
        ),
        "a wrong knob": (expressions.weight(), "interval(1, low=.2, hi=1)", "no knob 'low'; did you mean lo"),
        "a knob missing": (
            expressions.weight(),
            "interval(1)",
            "missing a required argument: 'lo'",
        ),
        "two samplers": (
            SAMPLER,
            "ddim, heun",
            "allowed: one sampler, as in ",
        ),
        "not finite": (expressions.weight(), "nan", "no such weight 'nan'"),
        "no seeds": (expressions.SEEDS, "", "allowed: integers and ranges from 0"),
        "negative seeds": (expressions.SEEDS, "-5", "allowed: integers and ranges from 0"),
        "backwards": (expressions.SEEDS, "9-0", "runs backwards"),
        "overlapping": (expressions.SEEDS, "0-9,5-6", "allowed: distinct integers and ranges"),
        "too large": (expressions.SEEDS, "0-2147483648", "2**31 - 1"),
        "a class by name": (expressions.LABELS, "cat", "allowed: integers and ranges from 0"),
        "a word for a number": (expressions.weight(), "constant(hello)", "omega = hello: allowed: a finite number"),
        "words for numbers": (expressions.weight(), "interval(1.5, a, b)", "lo = a: allowed: a number in [0, 1]"),
        "bounds exchanged": (expressions.weight(), "interval(1.5, 0.8, 0.2)", "hi = 0.2: allowed: above lo = 0.8"),
        "an infinite weight": (expressions.weight(), "constant(inf)", "omega = inf: allowed: a finite number"),
        "no number": (expressions.rules(), "apg(cap=nan)", "cap = nan: allowed: a number above 0 or inf"),
        "a word as a cap": (expressions.rules(), "apg(cap=big)", "cap = big: allowed: a number above 0 or inf"),
        "a negative cap": (expressions.rules(), "apg(cap=-3)", "cap = -3: allowed: a number above 0 or inf"),
        "more than all": (expressions.rules(), "cfg_rescale(phi=7)", "phi = 7: allowed: a number in [0, 1]"),
        "steps below none": (
            expressions.rules(),
            "cfg, zero_init(-1)",
            "steps = -1: allowed: an integer of at least 0",
        ),
        "half a step": (expressions.rules(), "cfg, zero_init(0.5)", "steps = 0.5: allowed: an integer"),
        "a mask of numbers": (expressions.rules(), "cfg, channels((1, 2))", "a tuple, each an integer from 0 to 1"),
        "a mask without end": (expressions.rules(), "cfg, channels(1)", "a tuple, each an integer from 0 to 1"),
        "churn below none": (
            SAMPLER,
            "churned_ddim(-1)",
            "a number in [0, 1]",
        ),
        "churn above all": (
            SAMPLER,
            "churned_ddim(5)",
            "a number in [0, 1]",
        ),
        "no such order": (
            SAMPLER,
            "unipc(7)",
            "order = 7: allowed: an integer from 1 to 3",
        ),
        "no such shape": (expressions.weight(), "ramp(circle, 1)", "shape = circle: allowed: linear or cosine"),
        "a grid from beyond": (
            GRID,
            "uniform(t_max=2)",
            "t_max = 2: allowed: a number in",
        ),
        "a grid backwards": (
            GRID,
            "edm(noise_min=90)",
            "noise_max = 80.0: allowed: above",
        ),
        "beyond all floats": (expressions.weight(), f"constant({'9' * 400})", "allowed: a finite number"),
    }.values(),
)
def test_what_is_wrong_is_named(kind, text, words):
    with pytest.raises(Refused) as error:
        kind.read(text)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "same", "shortest"),
    [
        ("apg", "apg(eta=0, cap=15, beta=-0.5)", "apg"),
        ("apg(0.0, 2.5)", "apg(eta=0, cap=2.5, beta=-0.5)", "apg(cap=2.5)"),
        ("apg(cap=inf)", "apg(eta=0, cap=inf, beta=-0.5)", "apg(cap=inf)"),
        ("cfg()", "cfg", "cfg"),
        (
            "frequency_decoupled((1,))",
            "frequency_decoupled(factors=(1,), parallel=1)",
            "frequency_decoupled(factors=(1,))",
        ),
        (
            "magnitude_aware(0.12345671)",
            "magnitude_aware(sensitivity=0.12345671)",
            "magnitude_aware(sensitivity=0.12345671)",
        ),
        ("channels((1, 0))", "channels(mask=(1, 0))", "channels(mask=(1, 0))"),
    ],
)
def test_equal_calls_have_one_text_which_reads_back(text, same, shortest):
    call = expressions.parse("rule", text, expressions.RULES)[0]
    assert (call.text, call.short) == (same, shortest)
    for again in (same, shortest):
        assert expressions.spelled("rule", again, expressions.RULES) == same


def test_numbers_are_written_to_the_last_bit():
    for value in (math.pi / 3, 0.1 + 0.2, 1e-30, 1e30, -2.5, -math.inf, 3, 3.0, 12345671e-8):
        call = expressions.parse(
            "weight", f"ramp(cosine, 1, floor={expressions.written(value)})", expressions.WEIGHTS
        )[0]
        assert call.knobs["floor"] == value
    assert expressions.written(3.0) == expressions.written(3) == "3"


def test_ranges_include_both_ends():
    assert expressions.integers("0-2,7, 4-4") == [range(0, 3), range(7, 8), range(4, 5)]
    assert expressions.LABELS.read("3,3,1") == "3,3,1", "a class may come twice"


def text_of(member) -> str:
    """The call with its needed knobs inside their ranges."""
    return f"{member.name}({', '.join(f'{name}={value!r}' for name, value in needed(member).items())})"


def settings(**given) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        **(
            {"grid": "uniform", "steps": 4, "shift": 1.0, "sampler": "ddim", "rule": "cfg", "weight": "0", "weak": 0}
            | given
        )
    )


MODEL = interface.Model(schedules.rectified_flow(), (2,), jnp.arange(3), 3, None)


@pytest.mark.parametrize("name", expressions.RULES)
def test_every_rule_works_at_its_defaults(name):
    text = text_of(expressions.RULES[name])
    stack = text if name in expressions.COMBINATIONS else f"{text}, cfg"
    rule = construct.rule(expressions.rules().read(stack))
    rng = np.random.default_rng(0)
    x, positive, reference = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(3))
    at = At(x, jnp.full(2, 0.5), jnp.full(2, 0.4), MODEL.schedule)
    out = rules.once(rule, positive, reference, jnp.full(2, 0.3), at).x0
    assert out.shape == x.shape and bool(jnp.all(jnp.isfinite(out)))


@pytest.mark.parametrize("name", expressions.WEIGHTS)
def test_every_weight_is_the_librarys(name):
    text = text_of(expressions.WEIGHTS[name])
    grid = construct.grid(settings(), MODEL.schedule)
    weight = construct.weight(settings(weight=expressions.weight().read(text)), MODEL, grid)
    at_hand = {"schedule": MODEL.schedule, "grid": grid}
    maker = getattr(weights, name)
    given = {k: v for k, v in at_hand.items() if k in inspect.signature(maker).parameters}
    same = maker(**given, **needed(expressions.WEIGHTS[name]))
    at = {"t": grid[:-1], "s": grid[1:], "cond": jnp.zeros(4, jnp.int32)}
    np.testing.assert_array_equal(weight(**at), same(**at))


@pytest.mark.parametrize("name", expressions.SAMPLERS)
def test_every_sampler_takes_a_step(name):
    solver = sampling.as_solver(construct.solver(text_of(expressions.SAMPLERS[name]), "sample.sampler"))
    assert solver.init(jnp.zeros((1, 2))) is not None


@pytest.mark.parametrize("name", expressions.GRIDS)
def test_every_grid_has_its_steps_and_shifts(name):
    grid = construct.grid(settings(grid=name), MODEL.schedule)
    shifted = construct.grid(settings(grid=name, shift=3.0), MODEL.schedule)
    assert grid.shape == shifted.shape == (5,)
    level = lambda t: t[1:-1] / (1 - t[1:-1])  # noqa: E731 (of rectified flow)
    np.testing.assert_allclose(level(shifted), 3 * level(grid), rtol=1e-3)


def test_a_shift_that_leaves_no_room_names_its_field():
    with pytest.raises(ConfigError, match=r"sample\.shift = 1e\+30: the times of a grid must decrease"):
        construct.grid(settings(shift=1e30), MODEL.schedule)


def test_karras_is_edm():
    grids = [construct.grid(settings(grid=f"{name}(noise_max=10)"), MODEL.schedule) for name in ("karras", "edm")]
    np.testing.assert_array_equal(*grids)


@pytest.mark.parametrize(
    "build, given, words",
    [
        (
            lambda s: construct.weight(s, MODEL, jnp.linspace(1, 0, 5)),
            {"weight": "interval_of_steps(1, 2, 9)"},
            "sample.weight = 'interval_of_steps(1, 2, 9)': ",
        ),
        (lambda s: construct.weight(s, MODEL, None), {"weight": "no.safetensors"}, "no.safetensors does not exist"),
    ],
)
def test_what_the_library_refuses_names_the_field(build, given, words):
    with pytest.raises(ConfigError) as error:
        build(settings(**given))
    assert words in str(error.value) and str(error.value).startswith("sample.")


def test_a_constant_is_a_number():
    t = jax.numpy.asarray([0.3, 0.9])
    np.testing.assert_allclose(construct.weight(settings(weight="1.5"), MODEL, None)(t=t, s=t, cond=None), 1.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learn.rules": "frequency_decoupled((1,2,3))"}, "learn.rules = 'frequency_decoupled(factors=(1, 2, 3), "),
        (
            {"eval.others": "cfg_rescale, frequency_decoupled((1,))"},
            "'frequency_decoupled(factors=(1,), ",
        ),
        ({"eval.others": "interval_of_steps(2, 4)", "eval.steps": "9,4"}, "last = 4: allowed: up to 3"),
        (
            {"job": "sample", "sample.rule": "cfg, channels((1,1,0))"},
            "sample.rule = 'cfg, channels((1,1,0))' does not",
        ),
        ({"eval.others": "interval_of_steps(2, 3),cfg_rescale", "learn.rules": "cfg,autoguided"}, None),
    ],
)
def test_calls_that_do_not_fit_the_samples_are_refused_before_training(fields, words):
    config = load("configs/mixture.py", {"base.keep": "9", "eval.weak": "9"} | fields)
    model = types.SimpleNamespace(schedule=schedules.rectified_flow(), shape=(2,))
    if words is None:
        construct.check(config, model)
        return
    with pytest.raises(ConfigError) as error:
        construct.check(config, model)
    assert words in str(error.value) and "\n" not in str(error.value)
