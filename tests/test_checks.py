"""Mistakes that a user of the library makes, each answered by one sentence before anything is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, predictions, rules, sampling, schedules, weights
from guidance.learning import Model, OneStep, self_consistency
from guidance.learning.rollout import rollout
from guidance.shapes import null_like
from guidance.steering import feynman_kac, predictor_corrector
from guidance.weights import GuidanceNet, learned

RF = schedules.rectified_flow()
GRID = sampling.uniform_grid(4)
CFG = guides.cfg(weights.constant(1.0), null=3)
X, LABELS = jnp.ones((5, 2)), jnp.asarray([0, 1, 2, 0, 1])


def denoise(x, t, cond):
    del t
    return x + cond[:, None]


GOOD = {
    "key": jax.random.key(0),
    "denoise": denoise,
    "guide": CFG,
    "step": sampling.ddim(),
    "schedule": RF,
    "grid": GRID,
    "x": X,
    "cond": LABELS,
}
KEY_ROWS = jax.random.split(jax.random.key(0), 5)

# what is passed in place of the right thing, and the sentence that comes back
MISTAKES = [
    ({"grid": jnp.asarray([0.0, 0.5, 1.0])}, "times 0 and 1 are 0.0 and 0.5 in float32; time runs from 1"),
    ({"grid": jnp.asarray([1.0, 0.5, 0.5, 0.0])}, "must decrease, but times 1 and 2 are 0.5 and 0.5"),
    ({"grid": jnp.asarray([1.0, jnp.nan, 0.0])}, "must decrease, but times 0 and 1 are 1.0 and nan"),
    ({"grid": jnp.asarray([2.0, 1.0, 0.0])}, r"lie within \[0, 1\], got 2.0 to 0.0"),
    ({"grid": jnp.asarray([80.0, 1.0, 0.0])}, r"lie within \[0, 1\], got 80.0 to 0.0"),
    ({"grid": jnp.asarray([1.0])}, "at least two times"),
    ({"grid": jnp.asarray([[1.0, 0.0]])}, "at least two times in one dimension"),
    ({"grid": jnp.asarray([1, 0])}, "the times of a grid are floats, got int32"),
    ({"grid": 20}, r"expected a grid, such as sampling.uniform_grid\(20\), .*, got int 20"),
    ({"grid": [1.0, 0.5, 0.0]}, "expected a grid.*as_grid.*, got a list"),
    ({"grid": sampling.uniform_grid}, r"expected a grid.*, got the function uniform_grid"),
    ({"guide": 1.5}, r"expected a guide, such as guides.cfg\(weights.constant.*, got float 1.5"),
    ({"guide": guides.unguided}, r"expected a guide.*, got the function unguided"),
    ({"guide": weights.constant(1.0)}, "expected a guide.*, got a Partial"),
    ({"step": sampling.ddim}, r"expected a step or solver, such as sampling.ddim\(\), got the function ddim"),
    ({"step": sampling.churned_ddim}, r"expected a step or solver.*, got the function churned_ddim"),
    ({"step": sampling.heun}, r"expected a step or solver.*, got the function heun"),
    ({"step": sampling.adaptive}, r"expected a step or solver.*, got the function adaptive"),
    ({"step": "ddim"}, "expected a step or solver.*, got str 'ddim'"),
    ({"schedule": schedules.cosine}, "expected a schedule.*, got the function cosine"),
    ({"schedule": "cosine"}, r"expected a schedule, such as schedules.rectified_flow\(\), got str 'cosine'"),
    ({"denoise": (denoise, {})}, r"expected a denoiser \(x, t, cond\) -> x0.*as_denoise.*, got a tuple"),
    ({"denoise": lambda x, t, cond: x[:, :1]}, r"the shape of x, \(\d+, 2\), got \(\d+, 1\)"),
    ({"denoise": lambda x, t, cond: jnp.sum(x)}, r"the shape of x, \(\d+, 2\), got \(\)"),
    ({"denoise": lambda x, t, cond: (x, t)}, r"an array of the shape of x, .*, got a tuple"),
    ({"cond": jnp.asarray([0, 1, 2])}, "cond has 3 rows, x has 5: one condition for each sample"),
    ({"cond": jnp.asarray(1)}, r"cond needs a batch axis, \[5, ...\].*got a scalar"),
    ({"cond": 1}, r"cond needs a batch axis, \[5, ...\].*got a scalar"),
    ({"cond": {"text": jnp.ones((4, 7))}}, r"cond\['text'\] has 4 rows, x has 5"),
    ({"x": jnp.asarray(1.0)}, "x needs a batch axis"),
    ({"x": jnp.ones((5, 2), jnp.complex64)}, "x must hold floats, or integers that are tokens, got complex64"),
    ({"x": jnp.ones((5, 2), bool)}, "x must hold floats, or integers that are tokens, got bool"),
    ({"x": [1.0, 2.0]}, "expected an array .*, got a list"),
    ({"x": jnp.ones(2), "cond": jnp.asarray(1)}, "cond needs a batch axis"),
    ({"key": 0}, r"expected a random key, such as jax.random.key\(0\), got int 0"),
    ({"key": KEY_ROWS}, r"one random key is needed, got keys of shape \(5,\)"),
    ({"key": jnp.ones(2)}, r"expected a random key.*, got an array of float32\[2\]"),
    ({"guide": guides.cfg(weights.constant(1.0), null=10.7)}, r"null = 10.7 is float.*, but cond holds int32 labels"),
    ({"guide": guides.cfg(weights.constant(1.0), null=(3, 3))}, r"null must have the structure of cond, a leaf, got"),
    ({"guide": guides.cfg(weights.constant(1.0), jnp.zeros(2, jnp.int32))}, r"null has shape \(2,\), but one"),
    ({"guide": guides.cfg(weights.table(GRID, jnp.ones((4, 2))), 3)}, "label 2 has no weight: .* 2 classes, 0 to 1"),
    ({"guide": guides.cfg(lambda t, s, cond: jnp.ones(3), 3)}, r"one omega for each sample, shape \(5,\), got \(3,\)"),
    ({"guide": guides.cfg(weights.constant(jnp.ones(3)), 3)}, r"one omega for each sample, shape \(5,\), got \(3,\)"),
    ({"guide": guides.cfg(lambda t, s, cond: 1.5, 3)}, r"one omega for each sample, shape \(5,\), got \(\)"),
    ({"guide": guides.guided(lambda c, u, w: c[:1], weights.constant(1.0), 3)}, "a rule must return the shape"),
    ({"guide": guides.guided(rules.apg, weights.constant(1.0), 3)}, "call constructors of rules, as in rules.apg()"),
]  # fmt: skip


def _name(value):
    return ",".join(value) if isinstance(value, dict) else None


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES, ids=_name)
@pytest.mark.parametrize("run", [sampling.sample, rollout], ids=["sample", "rollout"])
def test_one_sentence_for_a_mistake(run, mistake, sentence):
    """The samplers that a person calls and the one that learning runs through refuse the same things."""
    with pytest.raises((TypeError, ValueError), match=sentence) as raised:
        run(**(GOOD | mistake))
    assert "\n" not in str(raised.value)


TRACED = ("denoise", "step", "cond", "x")  # what has a shape or a signature is refused while jit traces, too


@pytest.mark.parametrize(("mistake", "sentence"), [m for m in MISTAKES if set(m[0]) <= set(TRACED)], ids=_name)
def test_shapes_are_refused_while_tracing(mistake, sentence):
    given = GOOD | mistake

    def run(x):
        return sampling.sample(**(given | {"x": mistake.get("x", x)}))

    with pytest.raises((TypeError, ValueError), match=sentence):
        jax.eval_shape(run, X)


def test_what_is_right_passes():
    """The same call without a mistake, with an old-style key, and with the values hidden by jit."""
    expected = sampling.sample(**GOOD).x0
    hidden = jax.jit(lambda grid, cond: sampling.sample(**(GOOD | {"grid": grid, "cond": cond})).x0)
    np.testing.assert_allclose(hidden(GRID, LABELS), expected, rtol=1e-6)
    assert sampling.sample(**(GOOD | {"key": jax.random.PRNGKey(0)})).x0.shape == X.shape
    assert sampling.sample(**(GOOD | {"cond": None, "guide": guides.unguided(), "denoise": lambda x, t, c: x})).nfe


# ---- where guides and weights are made


WEIGHTED = {
    "cfg": lambda w: guides.cfg(w, 3),
    "guided": lambda w: guides.guided(rules.cfg, w, 3),
    "autoguided": lambda w: guides.autoguided(rules.cfg, w, denoise),
    "early_stopping": lambda w: guides.early_stopping(rules.cfg, w, 3),
    "delayed": lambda w: guides.delayed(w, 3),
    "composed": lambda w: guides.composed(w, 3, []),
    "composed, others": lambda w: guides.composed(weights.constant(1.0), 3, [(w, 1)]),
    "perpendicular": lambda w: guides.perpendicular(w, 3, []),
    "summed": lambda w: guides.summed(w, 3, []),
    "summed, others": lambda w: guides.summed(weights.constant(1.0), 3, [(w, denoise)]),
    "rectified": lambda w: guides.rectified(w, 3),
}


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_a_guide_takes_a_weight(make):
    with pytest.raises(TypeError, match=r"expected a weight, such as weights.constant\(7.5\), got float 7.5"):
        make(7.5)
    with pytest.raises(TypeError, match=r"weight\(t=t, s=s, cond=cond\), which the function constant does not take"):
        make(weights.constant)


@pytest.mark.parametrize("rule", [rules.angle_domain, rules.stack, "cfg", 1.5, None])
def test_a_guide_takes_a_rule(rule):
    """`angle_domain` and `stack` are makers, which were not called."""
    with pytest.raises((TypeError, ValueError), match=r"expected a rule, such as|a stack needs|call constructors"):
        sampling.sample(**(GOOD | {"guide": guides.guided(rule, weights.constant(1.0), 3)}))


def test_bounds_of_an_interval_rise():
    with pytest.raises(ValueError, match=r"interval: hi = 0.2: allowed: above lo = 0.8"):
        weights.interval(1.5, 0.8, 0.2)


def test_a_table_has_a_row_for_each_step():
    with pytest.raises(ValueError, match=r"a row for each of the 4 steps of its grid, got \(3, 2\)"):
        weights.table(GRID, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"a row for each of the 4 steps of its grid, got \(4, 2, 1\)"):
        weights.table(GRID, jnp.ones((4, 2, 1)))


def _learned(classes: int):
    net = GuidanceNet(num_classes=classes, width=4, depth=2, time_width=4, cond_width=4)
    one = jnp.ones(1)
    params = net.init(jax.random.key(0), log_snr_t=one, log_snr_s=-one, cond=jnp.zeros(1, jnp.int32))
    return learned(net, params, RF)


MADE_FOR_THREE = {"table": lambda: weights.table(GRID, jnp.ones((4, 3))), "learned": lambda: _learned(3)}


@pytest.mark.parametrize("make", MADE_FOR_THREE.values(), ids=MADE_FOR_THREE)
def test_labels_beyond_those_of_a_weight(make):
    """Where the labels are known they are refused; inside jit the answer is NaN, never the number of another class."""
    weight, t = make(), jnp.full(2, 0.5)
    asked = functools.partial(weight, t=t, s=t / 2)
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"label {label} has no weight: it was made for 3 classes, 0 to 2"):
            asked(cond=jnp.asarray([0, label]))
    omega = jax.jit(lambda cond: asked(cond=cond))(jnp.asarray([0, 3]))
    assert np.isfinite(omega[0]) and np.isnan(omega[1])
    with pytest.raises(TypeError, match=r"needs int labels \[batch\], got an array of float32\[2\]"):
        asked(cond=jnp.ones(2))
    with pytest.raises(TypeError, match=r"needs int labels \[batch\], got a dict"):
        asked(cond={"label": jnp.zeros(2, jnp.int32)})


def test_a_null_condition_for_each_leaf():
    cond = {"label": LABELS, "text": jnp.ones((5, 7))}
    assert null_like(cond, {"label": 3, "text": 0.0})["text"].shape == (5, 7)
    with pytest.raises(ValueError, match=r"null\['label'\] = 10.7 is float.*int32 labels"):
        null_like(cond, {"label": 10.7, "text": 0.0})
    with pytest.raises(ValueError, match=r"null\['text'\] has shape \(3,\), but one condition has shape \(7,\)"):
        null_like(cond, {"label": 3, "text": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"null must have the structure of cond, \{'label': a leaf, 'text': a leaf\}"):
        null_like(cond, 3)


def test_one_step_objectives_refuse_answers_of_another_shape():
    model = Model(lambda x, t, cond: x[:, :1], RF, 3)
    with pytest.raises(ValueError, match=r"the denoiser must return the shape of x, \(\d+, 2\), got \(\d+, 1\)"):
        self_consistency(jax.random.key(0), model, weights.constant(1.0), X, LABELS, OneStep())


# ---- networks


def network(params, x, t, cond):
    del t, cond
    return params * x


def test_a_network_is_wrapped_with_its_kind():
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'; known: x0, eps, v, velocity, score"):
        predictions.as_denoise(network, 2.0, "epsilon", RF)
    with pytest.raises(TypeError, match="expected a schedule.*, got str 'cosine'"):
        predictions.as_denoise(network, 2.0, "eps", "cosine")
    with pytest.raises(TypeError, match=r"expected a network \(params, x, t, cond\) -> prediction.*, got a dict"):
        predictions.as_denoise({}, network, "eps", RF)
    with pytest.raises(TypeError, match=r"expected a network \(params, x, t, cond\) .*, got the function denoise"):
        predictions.as_denoise(denoise, 2.0, "eps", RF)
    with pytest.raises(ValueError, match=r"the network must return the shape of x, \(5, 1\), got \(5, 4\)"):
        predictions.as_denoise(network, jnp.ones((5, 4)), "eps", RF)(X[:, :1], jnp.full(5, 0.5), LABELS)


# ---- samplers with particles, and without a guide


def _particles(**mistake):
    given = {"denoise": denoise, "omega": 1.0, "null": 3, "step": sampling.churned_ddim(1.0)}
    return feynman_kac(**(GOOD_START | given | mistake))


def _corrected(**mistake):
    return predictor_corrector(
        **(GOOD_START | {"denoise": denoise, "weight": weights.constant(1.0), "null": 3} | mistake)
    )


GOOD_START = {name: GOOD[name] for name in ("key", "schedule", "grid", "x", "cond")}
ELSEWHERE = [
    (m, sentence) for m, sentence in MISTAKES if set(m) <= {"key", "schedule", "grid", "x", "cond", "denoise"}
]


@pytest.mark.parametrize(("mistake", "sentence"), ELSEWHERE, ids=_name)
@pytest.mark.parametrize("run", [_particles, _corrected])
def test_the_other_samplers_refuse_the_same(run, mistake, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        run(**mistake)


@pytest.mark.parametrize("run", [_particles, _corrected])
def test_the_other_samplers_take_steps(run):
    with pytest.raises(TypeError, match="expected a step or solver.*, got the function churned_ddim"):
        run(step=sampling.churned_ddim)
    with pytest.raises(TypeError, match=r"expected a weight.*, got float 1.5"):
        _corrected(weight=1.5)


def test_ids_number_the_samples():
    for ids, sentence in (
        (jnp.arange(3), "there are 3 ids, x has 5 rows: one id for each sample"),
        (jnp.arange(5.0), r"expected ids, one integer for each sample.*, got an array of float32\[5\]"),
        (5, "expected ids, one integer for each sample.*, got int 5"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            sampling.sample(**GOOD, ids=ids)
    for ids in (5, [0, 1], jnp.ones(2)):
        with pytest.raises(TypeError, match="ids, one integer for each sample"):
            sampling.initial_noise(GOOD["key"], RF, GRID, (2,), ids)
    with pytest.raises(TypeError, match="expected a schedule.*, got the function cosine"):
        sampling.initial_noise(GOOD["key"], schedules.cosine, GRID, (2,), jnp.arange(2))


STEPS = (
    sampling.ddim, sampling.ddpm, sampling.euler, sampling.heun, sampling.edm, sampling.dpmpp_2m, sampling.unipc,
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize(
    "guide", [CFG, guides.early_stopping(rules.cfg, weights.constant(1.0), 3)], ids=["cfg", "stop"]
)
def test_pictures_of_integers_are_no_tokens_for_a_step_of_floats(step, guide):
    """uint8 pictures are easily passed as they are: one sentence, not an error about None or about dtypes."""
    given = GOOD | {"step": step(), "guide": guide}
    with pytest.raises(TypeError, match="needs x of floats; integer x holds tokens"):
        jax.eval_shape(lambda x: sampling.sample(**(given | {"x": x})), jnp.ones((5, 2), jnp.uint8))


def test_integers_that_are_predicted_for_floats_become_floats():
    """One that rounds to classes, say, in either branch of a cond: 3 guided steps of 4, the answer is round(x) = 1."""
    guide = guides.cfg(weights.interval(1.0, 0.3, 1.0), null=3)
    rounded = GOOD | {"guide": guide, "denoise": lambda x, t, cond: jnp.ones(x.shape, jnp.int32)}
    np.testing.assert_allclose(sampling.sample(**rounded).x0, 1.0)


def test_shapes_over_steps_need_a_grid():
    """`triangle(20, 3.0)` means well; NumPy's numbers are numbers, and rows of omegas may be a list."""
    for make in (
        lambda grid: weights.triangle(grid, 3.0),
        lambda grid: weights.step_up(grid, 3.0),
        lambda grid: weights.interval_of_steps(grid, 3.0, 0, 1),
    ):
        with pytest.raises(TypeError, match="expected a grid.*, got int 20"):
            make(20)
    with pytest.raises(ValueError, match="interval: hi = 0.2.*: allowed: above lo = 0.8"):
        weights.interval(1.0, np.float32(0.8), np.float32(0.2))
    with pytest.raises(ValueError, match="constant: omega = nan: allowed: a finite number"):
        weights.constant(np.float32("nan"))
    listed = weights.table(GRID, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(listed(t=GRID[:2], s=GRID[1:3], cond=None), [1, 2])
