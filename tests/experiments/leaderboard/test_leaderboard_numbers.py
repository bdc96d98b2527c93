"""The leaderboard's numbers: its metrics by SciPy, and its protocol on samplers whose scores are written down here."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict
from scipy import stats
from scipy.spatial.distance import cdist

from experiments.config import ConfigError
from experiments.leaderboard import board, evaluate, images, page, pictures, problems
from experiments.leaderboard import contenders as field
from guidance import rules, sampling
from guidance.tables import Row
from guidance.truth import mixtures
from tests.experiments.leaderboard.test_leaderboard import contenders

MEANS = [[[1.0, 0.0], [-1.0, 0.5]], [[0.0, 2.0], [0.5, -2.0]], [[4.0, 4.0], [5.0, 4.0]]]
VARIANCES = [[[0.4, 0.1], [0.2, 0.3]], [[0.3, 0.3], [0.1, 0.5]], [[1.0, 1.0], [1.0, 1.0]]]
SHARES = [[0.7, 0.3], [0.25, 0.75], [0.5, 0.5]]
CONFIG = config_dict.ConfigDict(
    {"seed": 3, "seeds": 3, "tuning_seeds": 2, "samples": 8, "nfe": (10, 20), "updates": 40, "omegas": (0.0, 1.0)}
)


# ---- the metrics

measure = jax.jit(evaluate.measure)


def energy(x, y):
    others = lambda z: cdist(z, z).sum() / (len(z) * (len(z) - 1))  # noqa: E731
    return 2 * cdist(x, y).mean() - others(x) - others(y)


def test_every_metric_by_its_definition():
    """Two of three classes are sampled; a class's own modes count, not those of the others."""
    truth = mixtures.from_classes(MEANS, VARIANCES, SHARES)
    rng = np.random.default_rng(0)
    x, reference = 1.2 * rng.normal(size=(2, 30, 2)) + 0.3, rng.normal(size=(2, 50, 2))
    values = measure(truth, jnp.asarray(x, jnp.float32), jnp.asarray(reference, jnp.float32))
    own = {name: [] for name in ("energy", "shares", "width", "likelihood")}
    for c in range(2):
        density = np.stack([
            w * stats.multivariate_normal(m, np.diag(v)).pdf(x[c])
            for w, m, v in zip(SHARES[c], MEANS[c], VARIANCES[c], strict=True)
        ], axis=1)  # fmt: skip
        member = density / density.sum(1, keepdims=True)
        weight = member.sum(0)
        spread = [np.cov(x[c].T, aweights=member[:, j], ddof=0).trace() / np.sum(VARIANCES[c][j]) for j in range(2)]
        own["energy"].append(energy(x[c], reference[c]))
        own["shares"].append(0.5 * np.abs(member.mean(0) - SHARES[c]).sum())
        own["width"].append(np.average(spread, weights=weight))
        own["likelihood"].append(-np.log(density.sum(1)).mean())
    length = lambda z: np.linalg.norm(z, axis=-1).mean()  # noqa: E731
    expected = {
        "energy_distance": np.mean(own["energy"]),
        "mode_share_error": np.mean(own["shares"]),
        "variance_ratio": np.mean(own["width"]),
        "norm_growth": length(x) / length(reference),
        "negative_log_likelihood": np.mean(own["likelihood"]),
    }
    assert tuple(expected) == evaluate.METRICS
    np.testing.assert_allclose(values, list(expected.values()), rtol=2e-4)


def test_samples_that_diverged_lose_and_spoil_nothing():
    """Three of a class's 30 at 1000 in both directions: pairs of the others with them cancel, and of the unbiased
    distance 2 * 3 * 2 / (30 * 29) of 1000 sqrt(2) remain, half of that in the mean of the two classes."""
    truth = mixtures.from_classes(MEANS, VARIANCES, SHARES)
    x = jnp.zeros((2, 30, 2)).at[0, 1:4].set(jnp.nan)
    reference = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 2)), jnp.float32)
    values = np.asarray(measure(truth, x, reference))
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(6 / 870 * 1000 * 2**0.5, abs=1.0)


@pytest.mark.key_reuse  # all see the same noise
def test_noise_and_reference_follow_from_keys_of_their_own():
    """The evaluator measures what the sampler draws with the first half of the key against four times as many true
    samples of the second half; the floor measures true samples of the first against the same."""
    truth = mixtures.from_classes(MEANS, VARIANCES, SHARES)
    model = problems.Model(truth, jnp.float32(0.5), jnp.float32(0))
    group = problems.Group(("one",), *jax.tree.map(lambda a: a[None], (truth, model)), problems.closed_form)
    guide, step, n, grid = field.by_rule(rules.cfg), sampling.ddim(), 5, sampling.uniform_grid(2)
    tables = jnp.full((1, 2, problems.GUIDED), 0.5)
    found = evaluate.evaluator(group, guide, step, n)(tables, grid, 2, jax.random.key(0))
    own, apart = jax.random.split(jax.random.key(0))
    drawn = evaluate.sampler(group, guide, step, n)(tables[0], grid, 2, own, 0)
    reference = evaluate.references(group, apart, 4 * n)[0]
    np.testing.assert_allclose(found[0, 0], measure(truth, drawn, reference), rtol=1e-3, atol=1e-5)

    floor = evaluate.floor(group, jax.random.key(1), n)
    own, apart = jax.random.split(jax.random.key(1))
    true, reference = evaluate.references(group, own, n)[0], evaluate.references(group, apart, 4 * n)[0]
    np.testing.assert_allclose(floor[0], measure(truth, true, reference), rtol=1e-3, atol=1e-5)


def test_every_budget_has_as_many_knobs():
    """The omegas themselves; for CFG++, whose knob is a share, as many numbers in (0, 1], 1 among them."""
    knobs = {one.name: one.knobs for one in contenders(0.0, 1.0, 3.0, 7.0)}
    assert knobs["unguided"] == (0.0,) and knobs["cfg"] == knobs["rectified"] == (0.0, 1.0, 3.0, 7.0)
    shares = knobs["cfg_plus_plus"]
    assert len(shares) == 4 and list(shares) == sorted(shares) and 0 < shares[0] < 0.3 and shares[-1] == 1.0
    assert all(each in ((0.0,), (0.0, 1.0, 3.0, 7.0), shares) for each in knobs.values())


# ---- the protocol


def seed_of(key, tuning=2):
    """The place of a key among those of the tuning seeds and the reported ones."""
    data = jax.random.key_data(key).tolist()
    [i] = [i for i, k in enumerate(evaluate.keys(CONFIG, tuning)) if jax.random.key_data(k).tolist() == data]
    return i


def test_every_seed_has_its_own_key():
    keys = [tuple(jax.random.key_data(key).tolist()) for key in evaluate.keys(CONFIG, 2)]
    other = config_dict.ConfigDict(CONFIG.to_dict() | {"seed": 4})
    keys += [tuple(jax.random.key_data(key).tolist()) for key in evaluate.keys(other, 2)]
    assert len(keys) == 10 == len(set(keys))


# energy distance [seed, problem, knob]: two tuning seeds, then three that are reported, which would tune otherwise
SCORES = np.array([
    [[5.0, 1.0, 3.0], [2.0, 4.0, 1.0]],
    [[5.0, 3.0, 2.0], [2.0, 4.0, 1.5]],
    [[0.1, 7.0, 9.0], [0.2, 0.3, 7.0]],
    [[0.1, 8.0, 9.0], [0.2, 0.3, 8.0]],
    [[0.1, 12.0, 9.0], [0.2, 0.3, 12.0]],
])  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    """The board with samplers that answer SCORES in the first metric, and 100 times the metric's place plus the seed
    in the others."""
    asked = []

    def built(group, guide, step, samples):
        assert samples == 8

        def run(tables, grid, steps, key):
            asked.append((np.asarray(tables), np.asarray(grid), steps))
            i = seed_of(key)
            others = np.broadcast_to(100.0 * np.arange(1, 5) + i, (2, 3, 4))
            return np.concatenate([SCORES[i][..., None], others], axis=-1)

        return run

    monkeypatch.setattr(evaluate, "evaluator", built)
    found = board.Bench(types.SimpleNamespace(names=("easy", "hard")), CONFIG)
    found.asked = asked
    return found


def rising(grid, knob):
    """Another value for s, t and the knob."""
    del grid
    return lambda s, t, cond: knob * (t + 10 * s) + 0 * cond


def contender(**changes):
    named = dict.fromkeys(("name", "identity", "structure"), "mine")
    default = {"guide": None, "weight": rising, "knobs": (0.5, 1.0, 2.0), "evaluations": 2}
    return field.Contender(**named | default | changes)


def test_knobs_are_tuned_on_the_tuning_seeds_and_reported_on_the_others(bench):
    """Means of the tuning seeds: (5, 2, 2.5) and (2, 4, 1.25), so the second and the third knob win."""
    rows = [Row(**row) for row in bench.tuned(contender(), 10)]
    lead = {row.problem: row for row in rows if row.metric == "energy_distance"}
    assert {name: row.settings for name, row in lead.items()} == {"easy": {"omega": 1.0}, "hard": {"omega": 2.0}}
    assert lead["easy"].weight == "omega = 1" and lead["hard"].weight == "omega = 2"
    for row in lead.values():  # 7, 8 and 12: mean 9, deviation sqrt(7), three seeds
        assert row.value == pytest.approx(9.0) and row.standard_error == pytest.approx(np.sqrt(7 / 3))
        assert (row.seeds, row.steps, row.nfe, row.method) == (3, 5, 10.0, "mine")
    for place, name in enumerate(evaluate.METRICS[1:], 1):  # seeds 2, 3 and 4: mean 3, deviation 1
        [row] = [row for row in rows if row.metric == name and row.problem == "hard"]
        assert row.value == pytest.approx(100 * place + 3) and row.standard_error == pytest.approx(3**-0.5)


def test_the_weight_is_asked_at_its_own_steps(bench):
    bench.tuned(contender(), 10)
    tables, grid, steps = bench.asked[0]
    assert steps == 5 and len(bench.asked) == 5
    times = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(grid[:6], [*times, 0.0], atol=1e-7)
    expected = np.array([0.5, 1.0, 2.0])[:, None] * (times + 10 * (times - 0.2))
    np.testing.assert_allclose(tables[:, :5], np.repeat(expected[..., None], 2, axis=-1), rtol=1e-5)
    assert tables.shape == (3, 20, 2)  # the longest of both budgets
    assert not tables[:, 5:].any()


@pytest.mark.parametrize(
    "evaluations, saved, nfe, steps", [(1, 0, 20, 20), (2, 0, 20, 10), (4, 2, 20, 5), (4, 2, 22, 6), (3, 0, 20, 6)]
)
def test_a_budget_pays_for_whole_steps(evaluations, saved, nfe, steps):
    """Heun's last step needs half its evaluations: 5 steps for 18, 6 for 22."""
    assert contender(evaluations=evaluations, saved=saved).steps(nfe) == steps


@pytest.mark.key_reuse  # all see the same noise
@pytest.mark.parametrize("name", ["unguided", "cfg", *(f"cfg, {name}" for name in field.SAMPLERS), "rectified"])
def test_nobody_takes_more_evaluations_than_the_budget(name):
    """As the sampler counts them: at most 12 where evaluations do not divide the budget, and 12 where they do."""
    [entrant] = [one for one in contenders(1.0) if one.name == name]
    truth = mixtures.from_classes(MEANS, VARIANCES, SHARES)
    denoise, grid = mixtures.denoise(truth, problems.SCHEDULE), sampling.uniform_grid(entrant.steps(12))
    guide = entrant.guide(entrant.weight(grid, 1.0), truth.null)
    x = sampling.initial_noise(jax.random.key(0), problems.SCHEDULE, grid, (2,), jnp.arange(2))
    run = jax.jit(lambda x: sampling.sample(
        jax.random.key(1), denoise, guide, sampling.as_solver(entrant.step), problems.SCHEDULE, grid, x, jnp.arange(2)
    ).nfe)  # fmt: skip
    total = sum(int(count) for count in run(x).values())
    assert total == (12 if (12 + entrant.saved) % entrant.evaluations == 0 else 10)


def test_learned_weights_are_reported_on_the_same_seeds(monkeypatch):
    """One training for each reported seed, with fewer updates at more steps; the key of its training is its own."""
    trained = []

    def trainer(group, rule, steps, updates):
        def train(key):
            trained.append((steps, updates, tuple(jax.random.key_data(key).tolist())))
            return np.full((2, steps, 2), len(trained), np.float32)

        return train

    def built(group, guide, step, samples):
        def run(tables, grid, steps, key):
            assert (tables[:, :steps] == len(trained)).all() and not tables[:, steps:].any()
            return np.broadcast_to(seed_of(key) * np.array([[1.0], [10.0]]), (2, 5))

        return run

    monkeypatch.setattr(board.learned, "trainer", trainer)
    monkeypatch.setattr(evaluate, "learned_evaluator", built)
    bench = board.Bench(types.SimpleNamespace(names=("easy", "hard")), CONFIG)
    rows = [Row(**row) for row in bench.learned("cfg", 20)]
    assert [one[:2] for one in trained] == [(10, 20)] * 3 and len({one[2] for one in trained}) == 3
    lead = {row.problem: row.value for row in rows if row.metric == "energy_distance"}
    assert lead == pytest.approx({"easy": 3.0, "hard": 30.0})  # seeds 2, 3 and 4


def test_true_data_score_on_the_reported_seeds(monkeypatch):
    monkeypatch.setattr(evaluate, "floor", lambda group, key, n: np.full((2, 5), seed_of(key) + n / 10))
    bench = board.Bench(types.SimpleNamespace(names=("easy", "hard")), CONFIG)
    row = Row(**bench.floor()[0])
    assert row.value == pytest.approx(3.8) and row.standard_error == pytest.approx(3**-0.5) and row.nfe == 0


def test_images_are_tuned_on_one_seed_and_reported_on_the_others():
    """A draw gives its knob, seed and batch as samples; the scores of the trial and of the finals disagree."""
    keys = evaluate.keys(CONFIG, 1)
    known = {
        tuple(jax.random.key_data(jax.random.fold_in(key, batch)).tolist()): 10 * seed + batch
        for seed, key in enumerate(keys)
        for batch in range(3)
    }

    def draw(knob):
        return lambda key: np.full((2, 3, 1), 100.0 * knob + known[tuple(jax.random.key_data(key).tolist())])

    def scored(samples, full):
        assert full is False
        knob, rest = divmod(samples.mean(), 100)
        return {images.LEAD: (3.0, 1.0, 2.0)[int(knob)] if rest < 10 else 50 * knob + rest, "n": samples.shape[1]}

    draws = [draw(knob) for knob in range(3)]
    rows = images._protocol(
        CONFIG, "mnist", "mine", "omega", (0.3, 0.6, 0.9), draws, 2 * images.TRIAL, scored, steps=5, nfe=10
    )
    lead, count = (Row(**row) for row in rows)
    assert lead.settings == {"omega": 0.6} and lead.weight == "omega = 0.6" and lead.seeds == 3
    # knob 1; seeds 1, 2 and 3, the mean of batches 0 and 1: 50 + 10.5, 20.5 and 30.5
    assert lead.value == pytest.approx(70.5) and lead.standard_error == pytest.approx(10 / 3**0.5)
    assert count.value == 6  # both batches of three


# ---- the page


def row(problem, method, value, error=0.01, nfe=10.0, metric="energy_distance"):
    return Row(problem, method, "w", {}, "DDIM", 5, nfe, 2, metric, value, error)


def test_ranks_are_means_over_the_problems_and_ties_share_theirs():
    """a: ranks 1, 2.5 and 3; b: 2, 2.5 and 1; c: 3, 1 and 2."""
    values = {"a": (0.1, 0.5, 0.9), "b": (0.2, 0.5, 0.1), "c": (0.3, 0.4, 0.5)}
    rows = [row(f"p{i}", name, value) for name, each in values.items() for i, value in enumerate(each)]
    rows += [row("p0", "a", 99.0, nfe=20.0), row("p0", "a", 99.0, metric="norm_growth")]
    ranks = {name: rank for name, rank, _ in page.standings(rows, 10.0)}
    assert ranks == pytest.approx({"b": 11 / 6, "c": 2.0, "a": 13 / 6})
    assert list(ranks) == ["b", "c", "a"]


def test_what_lies_within_two_standard_errors_of_the_best_is_bold():
    """Of the difference: sqrt(0.03^2 + 0.04^2) = 0.05, so up to 0.1 above the best; numbers times 1000."""
    best = row("p", "best", 0.2, 0.03)
    rows = [best, row("p", "near", 0.29, 0.04), row("p", "far", 0.31, 0.04), row("p", "one seed", 0.25, None)]
    shown = page.tables([*rows, row("p", "true data", 0.0, 0.01, nfe=0.0)])["nfe_10"]
    assert [line[2] for line in shown.body] == ["200 ± 30", "250", "290 ± 40", "310 ± 40", "0 ± 10"]
    assert shown.bold == {(0, 2), (1, 2), (2, 2)} and shown.body[-1][:2] == ["true data", ""]


def test_the_plane_has_a_point_for_each_method():
    """Mean share error and median width over the problems, at the largest NFE only."""
    spread = {"mode_share_error": (0.1, 0.2, 0.6), "variance_ratio": (0.5, 1.0, 4.0)}
    rows = [
        row(f"p{i}", "a", value, nfe=20.0, metric=name)
        for name, each in spread.items()
        for i, value in enumerate(each)
    ]
    rows += [row("p0", "a", 9.0, nfe=10.0, metric=name) for name in spread]
    drawn = pictures._plane(rows, 20)
    [axes] = drawn.figure.get_axes()
    points = [(*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert points == [line[1:] for line in drawn.lines] == [pytest.approx((0.3, 1.0))]


def test_no_two_names_of_the_plane_overlap():
    """Thirty methods in a cloud: every name is there, covers no other name and no point, and lies in the frame."""
    places = np.random.default_rng(0).normal(0, [0.005, 0.05], (30, 2)) + [0.3, 1.0]
    rows = [
        row("p", f"a method {i}", value, nfe=20.0, metric=name)
        for i, place in enumerate(places)
        for name, value in zip(pictures.METRICS, place, strict=True)
    ]
    figure = pictures._plane(rows, 20).figure
    figure.canvas.draw()
    [axes] = figure.get_axes()
    names = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert [text.get_text() for text in names] == [f"a method {i}" for i in range(30)]
    for i, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :]), names[i].get_text()
        assert not any(box.contains(*place) for place in axes.transData.transform(places))


@pytest.mark.parametrize("several, words", [(True, "allowed: one process"), (False, "out of memory: no room")])
def test_what_this_machine_cannot_do_is_one_line(several, words, tmp_path, monkeypatch):
    def no_room(path, fields):
        raise MemoryError("no room")

    monkeypatch.setattr(board.launch, "several", lambda: several)
    monkeypatch.setattr(board, "Ledger", no_room)
    with pytest.raises(ConfigError, match=words):
        board.run(CONFIG, tmp_path)
