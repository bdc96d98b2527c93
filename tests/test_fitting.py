"""`guidance.fit` and `guidance.compare`: closed forms, resumption to the bit, refusals, and numbers by hand."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance
from guidance import comparing, fitting, keeping, pools, sampling, schedules, weights
from guidance.learning import Model, OneStep, training
from guidance.learning.training import Recipe
from guidance.tables import mean_row

RF = schedules.rectified_flow()
MEANS, NULL = jnp.asarray([-1.0, 2.0, 0.0]), 2  # of two classes, and of the null condition
SHARES = jnp.asarray([0.4, 0.5, 1.0])  # of its class's mean that the denoiser predicts: too little
LABELS = jnp.arange(2)
SMALL = Recipe(steps=1, updates=120, learning_rate=0.03, particles=8, real=64, width=8, depth=2, embedding=4)


def weakened(x, t, cond):
    """A share of the mean of its class, and 0 for none: omega = 1/share - 1 repairs it, 1.5 and 1."""
    del t
    return jnp.broadcast_to((SHARES * MEANS)[cond][:, None], x.shape)


def draw(key, n):
    label_key, noise_key = jax.random.split(key)
    cond = jax.random.randint(label_key, (n,), 0, 2)
    return MEANS[cond][:, None] + 0.1 * jax.random.normal(noise_key, (n, 1)), cond


MODEL = Model(weakened, RF, NULL)
ARRAYS = draw(jax.random.key(5), 400)


@pytest.fixture(autouse=True, scope="module")
def _without_a_bar():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def fitted():
    return guidance.fit(MODEL, ARRAYS, LABELS, SMALL)


def omegas(weight, conditions=LABELS):
    """What the weight says of the only step of SMALL, for each condition."""
    return np.asarray(weights.tabulated(weight, sampling.uniform_grid(1), conditions))[0]


# ---- what is learned


def test_the_inner_steps_of_its_own_grid_are_asked_of_the_network_as_they_are():
    """For 10 steps; at 40, whose steps are shorter, s is a step of a tenth below t."""
    net = training.network(LABELS, SMALL)
    params = jax.tree.map(lambda a: a + 0.3, training.initial(jax.random.key(0), net, LABELS))
    made = training.weight_of(net, RF, SMALL._replace(steps=10))(params)

    def asked(t, s):
        return net.apply(params, log_snr_t=RF.log_snr(t), log_snr_s=RF.log_snr(s), cond=jnp.ones(t.shape, int))

    times = jnp.asarray([0.9, 0.7, 0.5, 0.3, 0.2])
    for width, trained in ((0.1, 0.1), (0.025, 0.0999)):
        found = made(t=times, s=times - width, cond=jnp.ones(5, int))
        np.testing.assert_allclose(found, asked(times, times - trained), rtol=2e-6)
    assert float(jnp.max(jnp.abs(asked(times, times - 0.1) - asked(times, times - 0.1001)))) > 1e-4  # it would show


def test_the_weight_of_each_class_repairs_it(fitted):
    """One step from noise lands on the point D_c + omega (D_c - D_u), which is best at the median of the class."""
    np.testing.assert_allclose(omegas(fitted.weight), [1.5, 1.0], atol=0.1)
    assert fitted.history.loss.shape == fitted.history.gradient_norm.shape == (120,)
    assert fitted.history.loss[-10:].mean() < 0.5 * fitted.history.loss[:10].mean()


def test_a_draw_function_fills_the_same_pool():
    def twice(key, n):
        assert n == fitting.POOL
        return ARRAYS

    short = SMALL._replace(updates=3)
    drawn, given = (guidance.fit(MODEL, data, LABELS, short) for data in (twice, ARRAYS))
    np.testing.assert_array_equal(drawn.history.loss, given.history.loss)
    assert np.isfinite(guidance.fit(MODEL, draw, LABELS, short).history.loss).all()


def test_conditions_that_are_no_labels(fitted):
    """A dict in place of the label: its numbers are what the weight sees, and the repair is the same."""
    which = {"which": jnp.eye(2), "size": jnp.asarray([3, 4])}

    def of_which(x, t, cond):
        return weakened(x, t, jnp.where(cond["which"].sum(-1) == 0, NULL, jnp.argmax(cond["which"], axis=-1)))

    x0, labels = ARRAYS
    data = x0, jax.tree.map(lambda leaf: leaf[labels], which)
    model = Model(of_which, RF, {"which": jnp.zeros(2), "size": 0})
    found = guidance.fit(model, data, which, SMALL)
    np.testing.assert_allclose(omegas(found.weight, which), omegas(fitted.weight), atol=0.1)


def test_a_network_stands_for_a_denoiser(fitted):
    """(apply, params, prediction): velocity = (x - x0)/t for rectified flow."""

    def network(params, x, t, cond):
        return (x - params["scale"] * weakened(x, t, cond)) / t[:, None]

    model = Model((network, {"scale": jnp.float32(1)}, "velocity"), RF, NULL)
    found = guidance.fit(model, ARRAYS, LABELS, SMALL)
    np.testing.assert_allclose(omegas(found.weight), omegas(fitted.weight), atol=1e-3)


def test_a_fit_starts_from_another(fitted):
    again = guidance.fit(MODEL, ARRAYS, LABELS, SMALL._replace(updates=3, learning_rate=1e-6), start=fitted.params)
    np.testing.assert_allclose(omegas(again.weight), omegas(fitted.weight), atol=1e-3)
    assert np.ptp(again.history.loss) > 1e-3  # the weight stands still, so that it is the samples that are fresh


def test_outside_the_interval_the_weight_is_zero():
    recipe = SMALL._replace(steps=4, updates=3, interval=(0.3, 0.8))
    found = guidance.fit(MODEL, ARRAYS, LABELS, recipe)
    table = np.asarray(weights.tabulated(found.weight, sampling.uniform_grid(4), LABELS))
    np.testing.assert_array_equal(table > 0, np.asarray([[False, True, True, False]] * 2).T)  # starts 1, 3/4, 1/2, 1/4


# ---- resumption


class Killed(BaseException):
    """What no except clause of a library catches."""


def test_a_killed_fit_ends_in_the_same_bits(fitted, tmp_path, monkeypatch):
    """Killed after 40 updates, and again while the state of 80 is written: then it goes on to the end."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", -1.0)  # after every update
    save, counts = keeping.save, []

    def until(last, broken):
        def saving(folder, about, state):
            counts.append(int(state[0]))
            if counts[-1] == last and broken:
                monkeypatch.setattr(keeping.os, "replace", lambda *names: (_ for _ in ()).throw(Killed))
            save(folder, about, state)
            if counts[-1] == last:
                raise Killed

        return saving

    for last, broken in ((40, False), (80, True)):
        with monkeypatch.context() as patch:
            patch.setattr(keeping, "save", until(last, broken))
            with pytest.raises(Killed):
                guidance.fit(MODEL, ARRAYS, LABELS, SMALL, folder=tmp_path / "fit")
            monkeypatch.undo()
            monkeypatch.setattr(fitting, "SAVE_EVERY", -1.0)
    assert counts == [*range(1, 41), *range(41, 81)]
    resumed = guidance.fit(MODEL, ARRAYS, LABELS, SMALL, folder=tmp_path / "fit")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, fitted.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.history, fitted.history)
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["fit.npz"]
    finished = guidance.fit(MODEL, ARRAYS, LABELS, SMALL, folder=tmp_path / "fit")
    jax.tree.map(np.testing.assert_array_equal, finished.params, fitted.params)


def test_a_folder_belongs_to_one_fit(tmp_path):
    short = SMALL._replace(updates=2)
    guidance.fit(MODEL, ARRAYS, LABELS, short, folder=tmp_path)
    x0, labels = ARRAYS
    params = {"scale": jnp.float32(2)}
    triple = (lambda p, x, t, cond: p["scale"] * weakened(x, t, cond), params, "x0")
    for change, (model, data, recipe, seed) in {
        "steps is 1 there, 2 here": (MODEL, ARRAYS, short._replace(steps=2), 0),
        "step is '_ddim 0' there, '_churned_ddim": (MODEL, ARRAYS, short._replace(step=sampling.ddpm()), 0),
        "seed is 0 there, 1 here": (MODEL, ARRAYS, short, 1),
        "the data is": (MODEL, (x0 + 1, labels), short, 0),
        "the model is": (Model(triple, RF, NULL), ARRAYS, short, 0),
        # nothing but functions differs: of the schedule, of a constant in it, of the denoiser, of the rule
        "what an update computes is": (Model(weakened, schedules.cosine(), NULL), ARRAYS, short, 0),
        "what an update computes is ": (
            Model(lambda x, t, cond: 2 * weakened(x, t, cond), RF, NULL),
            ARRAYS,
            short,
            0,
        ),
        "what an update computes is  ": (Model(weakened, RF, NULL, lambda c, u, omega: c), ARRAYS, short, 0),
    }.items():
        with pytest.raises(ValueError, match=f"fit.npz holds another fit: {change.strip()}.*take another folder"):
            guidance.fit(model, data, LABELS, recipe, seed=seed, folder=tmp_path)


def test_the_sum_of_a_program_sees_operations_and_constants():
    def summed(c, function):
        return keeping.program(jax.jit(lambda x: function(x, c)).trace(jnp.ones(2)))

    one, two = np.asarray([1.0, 2.0]), np.asarray([1.0, 3.0])
    assert summed(one, jnp.add) == summed(one.copy(), jnp.add)
    assert len({summed(one, jnp.add), summed(two, jnp.add), summed(one, jnp.multiply)}) == 3


def test_a_damaged_file_is_said_to_be(tmp_path):
    state = {"a": jnp.arange(100.0)}
    keeping.save(tmp_path, {"k": 1}, state)
    np.testing.assert_array_equal(keeping.restore(tmp_path, {"k": 1}, state)["a"], state["a"])
    whole = (tmp_path / "fit.npz").read_bytes()
    at = whole.index(np.float32(50).tobytes())
    for broken in (whole[:200], whole[:at] + b"x" + whole[at + 1 :], b""):
        (tmp_path / "fit.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="fit.npz cannot be read .*; remove it to start over") as raised:
            keeping.restore(tmp_path, {"k": 1}, state)
        assert "\n" not in str(raised.value)


# ---- mistakes


RECIPES = {
    "objective = 'roll'; allowed: rollout or self_consistency": {"objective": "roll"},
    "steps = 0; allowed: at least 1": {"steps": 0},
    "steps = 2.0; allowed: an integer": {"steps": 2.0},
    "groups = '1'; allowed: an integer": {"groups": "1"},
    "learning_rate = inf; allowed: above 0 and finite": {"learning_rate": math.inf},
    "interval = 0.5; allowed: None, or two times lo < hi": {"interval": 0.5},
    r"interval = \(0.8, 0.2\); allowed: None, or two times lo < hi": {"interval": (0.8, 0.2)},
    "features = 3; allowed: None, or a function": {"features": 3},
    r"features must return one row for each sample, shape \(\d+, d\), got \(\)": {"features": jnp.sum},
    r"a reward must return one number for each sample, shape \(\d+,\), got \(\d+, 1\)": {
        "objective": "reward_only",
        "reward": lambda x0, cond: x0,
    },
    "particles = 1; allowed: at least 2": {"particles": 1},
    "updates = 0; allowed: at least 1": {"updates": 0},
    "learning_rate = -1; allowed: above 0": {"learning_rate": -1},
    "remat = 'all'; allowed: none or steps or segments": {"remat": "all"},
    "gamma = 0.5; allowed: at least 0, and 0 for a rollout": {"gamma": 0.5},
    "reward = None; allowed: a function": {"objective": "reward_only"},
    "one_step = OneStep.*; allowed: s_min .* below 1": {"one_step": OneStep(delta=0.99)},
    r"no step of 4 starts within \(0.6, 0.7\]": {"steps": 4, "interval": (0.6, 0.7)},
}


@pytest.mark.parametrize(("sentence", "change"), RECIPES.items(), ids=lambda value: str(value)[:20])
def test_recipes_that_cannot_work(sentence, change):
    with pytest.raises(ValueError, match=sentence):
        guidance.fit(MODEL, ARRAYS, LABELS, SMALL._replace(**change))


def test_what_cannot_be_learned():
    x0, labels = ARRAYS
    with pytest.raises(TypeError, match=r"expected a Model\(denoise, schedule, null\).*, got the function weakened"):
        guidance.fit(weakened, ARRAYS, LABELS)
    with pytest.raises(TypeError, match="expected a schedule.*, got the function cosine"):
        guidance.fit(Model(weakened, schedules.cosine, NULL), ARRAYS, LABELS)
    with pytest.raises(TypeError, match="expected a denoiser .*, got a tuple"):
        guidance.fit(Model((weakened, {}), RF, NULL), ARRAYS, LABELS)
    with pytest.raises(ValueError, match=r"condition 2 \(2\) has no sample among 400"):
        guidance.fit(MODEL, ARRAYS, jnp.arange(3))
    with pytest.raises(ValueError, match=r"one condition for each sample, got first axes \[\(399,\), \(400,\)\]"):
        guidance.fit(MODEL, (x0, labels[1:]), LABELS)
    with pytest.raises(ValueError, match="null = 2.5 is float.*, but cond holds int32 labels"):
        guidance.fit(Model(weakened, RF, 2.5), ARRAYS, LABELS, SMALL)
    with pytest.raises(FloatingPointError, match="rollout: the loss of update 0 or its gradient is not finite"):
        guidance.fit(Model(lambda x, t, cond: x / 0, RF, NULL), ARRAYS, LABELS, SMALL)


def test_what_is_no_list_of_conditions_and_no_data():
    x0, labels = ARRAYS
    for conditions, sentence in (
        (2, "conditions is one number, not a list"),
        ([0, 1], r"conditions\[0\] is one number, not a list"),
        (jnp.arange(0), r"conditions need one first axis \[G, ...\], G of at least 1, got \[0\]"),
        ({"a": jnp.arange(2), "b": jnp.arange(3)}, r"conditions need one first axis .*, got \[2, 3\]"),
        (jnp.asarray([1, 0, 1]), "conditions 0 and 2 are equal"),
        ({"label": jnp.arange(2)}, "conditions must have the structure of cond, a leaf, got {'label': a leaf}"),
    ):
        with pytest.raises(ValueError, match=sentence):
            guidance.fit(MODEL, ARRAYS, conditions, SMALL)
    for data, sentence in (
        (x0, r"expected true samples \(x0, cond\) or .*, got an array of float32\[400, 1\]"),
        ((x0, labels, labels), "expected true samples .*, got a tuple"),
        (lambda key: ARRAYS, r"expected a function \(key, n\) -> \(x0, cond\).*, got the function <lambda>"),
        (lambda key, n: x0, r"expected true samples \(x0, cond\) or .*, got an array"),
    ):
        with pytest.raises(TypeError, match=sentence):
            guidance.fit(MODEL, data, LABELS, SMALL)
    with pytest.raises(ValueError, match=r"condition 0 \(0\) has no sample among 0"):
        guidance.fit(MODEL, (x0[:0], labels[:0]), LABELS, SMALL)
    with pytest.raises(TypeError, match="expected a Recipe.*, got a dict"):
        guidance.fit(MODEL, ARRAYS, LABELS, {"steps": 2})
    with pytest.raises(ValueError, match="start must be the params of a network of the same width, .* a Partial"):
        guidance.fit(MODEL, ARRAYS, LABELS, SMALL, start=weights.constant(1.0))


def test_a_callback_is_for_one_step_objectives():
    def denoise(x, t, cond):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: 0.5 * np.asarray(x), like, x, vmap_method="expand_dims")

    with pytest.raises(ValueError, match="a callback cannot be .*self_consistency.* needs no derivative"):
        guidance.fit(Model(denoise, RF, NULL), ARRAYS, LABELS, SMALL)


# ---- pools


def test_a_pool_holds_the_samples_of_each_condition_in_one_run():
    x0, cond = np.arange(12.0).reshape(6, 2), np.asarray([7, 3, 9, 3, 7, 7])
    pool = pools.pool(x0, cond, np.asarray([3, 7]))  # 9 is none of them
    np.testing.assert_array_equal(pool.cond, [3, 3, 7, 7, 7])
    np.testing.assert_array_equal(pool.x0[:, 0], [2, 6, 0, 8, 10])
    assert (pool.starts.tolist(), pool.counts.tolist()) == ([0, 2], [2, 3])
    drawn = pools.draw_each(jax.random.key(0), pool, 300, jnp.asarray([1, 0]))
    shares = [np.mean(np.asarray(drawn[0, :, 0]) == value) for value in (0, 8, 10)]
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * math.sqrt(2 / 9 / 300))
    assert set(np.asarray(drawn[1, :, 0]).tolist()) == {2, 6}
    pairs, labels = pools.draw(jax.random.key(1), pool, 300)
    assert {(x, c) for x, c in zip(pairs[:, 0].tolist(), labels.tolist(), strict=True)} == {
        (2, 3), (6, 3), (0, 7), (8, 7), (10, 7)
    }  # fmt: skip


def test_recipes_know_their_rate_and_segments():
    assert (Recipe().rate, Recipe(objective="l2").rate, Recipe(learning_rate=0.1).rate) == (5e-3, 1e-3, 0.1)
    assert [training.segments(steps) for steps in (1, 7, 12, 16, 100)] == [1, 1, 3, 4, 10]


# ---- comparing


def samples(omega):
    """Where one step ends: D_c + omega (D_c - D_u), for each class."""
    return (1 + omega) * np.asarray(SHARES[:2] * MEANS[:2])


@pytest.mark.key_reuse  # every weight meets the same noise
def test_a_comparison_has_the_numbers_of_a_report(capsys):
    """Means and errors s/sqrt(n) over the seeds, evaluations of both branches, a row for each metric, best first."""
    seen = []

    def metric(x):
        assert x.shape == (2, 5, 1)
        seen.append(np.asarray(x)[:, :, 0])
        return {"mean": float(np.abs(x).mean()), "number": [2.0, 3.0, 7.0][len(seen) % 3 - 1]}

    known = {"unguided": weights.constant(0.0), "two": weights.constant(2.0), "half": weights.interval(2.0, 0.6, 1.0)}
    found = guidance.compare(MODEL, LABELS, known, metric, shape=(1,), steps=(1, 2), seeds=3, samples=5)
    rows = {(row.method, row.steps, row.metric): row for row in found.rows}
    assert len(rows) == 3 * 2 * 2 and all(row.seeds == 3 for row in found.rows)
    # from noise the last step always ends on the point that the guide names
    for name, omega in (("unguided", 0.0), ("two", 2.0)):
        assert rows[name, 2, "mean"].value == pytest.approx(np.abs(samples(omega)).mean(), rel=1e-5)
        assert rows[name, 2, "mean"].standard_error == pytest.approx(0, abs=1e-6)
    assert rows["half", 1, "mean"].value == pytest.approx(np.abs(samples(2.0)).mean(), rel=1e-5)
    assert rows["half", 2, "mean"].value == pytest.approx(np.abs(samples(0.0)).mean(), rel=1e-5)
    assert {name: rows[name, 2, "mean"].nfe for name in known} == {"unguided": 2, "two": 4, "half": 3}
    assert rows["two", 1, "number"].value == pytest.approx(4)
    assert rows["two", 1, "number"].standard_error == pytest.approx(math.sqrt(7) / math.sqrt(3))
    lines = str(found).splitlines()
    assert lines[0].split() == ["metric", "steps", "nfe", "method", "value", "seeds"]
    assert [line.split()[3] for line in lines[2:5]][0] == "unguided" and "4.0 ± 1.5" in lines[8]
    assert r"number & $1$ & $2$ & two & $4.0 \pm 1.5$ & $3$ \\" in found.latex().splitlines()
    data = list(csv.DictReader(found.csv().splitlines()))
    assert [(line["method"], float(line["value"])) for line in data] == [
        (row.method, pytest.approx(row.value, rel=1e-5)) for row in found.rows
    ]
    [curve] = [line for line in found.figure("number").axes[0].containers if line.get_label() == "two"]
    np.testing.assert_allclose(curve[0].get_xydata(), [[2, 4], [4, 4]])
    assert capsys.readouterr().out == ""


def test_a_comparison_refuses():
    good = {"weights": {"two": weights.constant(2.0)}, "metric": np.mean, "shape": (1,)}
    for change, sentence in (
        ({"weights": {"two": 2.0}}, r"expected a weight, such as weights.constant\(2\), got float 2.0"),
        ({"weights": weights.constant(2.0)}, "at least one weight by name.*, got a Partial"),
        ({"weights": {}}, "at least one weight by name, such as .*, got a dict"),
        ({"weights": {"two": weights.constant(jnp.ones(3))}}, r"one omega for each sample, shape \(2,\), got \(3,\)"),
        ({"metric": 3}, "expected a metric .*, got int 3"),
        (
            {"metric": lambda x: x, "seeds": 1, "steps": (1,)},
            "a metric must return a number, .*, got an array of float",
        ),
        ({"steps": 10}, "steps must be a tuple of integers, got 10"),
        ({"shape": 1}, "shape must be a tuple of integers, got 1"),
        ({"seeds": 0}, "seeds = 0: allowed: an integer of at least 1"),
        ({"samples": 0}, "samples = 0: allowed: an integer of at least 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            guidance.compare(MODEL, LABELS, **(good | change))
    row = mean_row("", "two", "", {}, "", 1, 2.0, "mean", [1.0])
    with pytest.raises(ValueError, match="metric = 'median': allowed: mean"):
        comparing.Compared([row]).figure("median")
    with pytest.raises(TypeError, match="expected a step or solver.*, got the function ddim"):
        guidance.compare(MODEL, LABELS, {}, np.mean, (1,), step=sampling.ddim)
