"""What problems measure with, and against what: held-out images, never training ones; mixtures by their densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from experiments import data, problems
from experiments.jobs import samplers
from experiments.main import load
from experiments.problems.images import inception, judge, labelled
from experiments.problems.latents import imported_latents
from experiments.problems.mixtures import mixture
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
COUNT, SIDE = 120, 12


# ---- labelled images: each has a level of its own, which tells which image it is


def level(images):
    """The numbers of images in [0, 1]."""
    return np.rint(np.asarray(images)[..., 0, 0, 0] * 255 / 2).astype(int)


@pytest.fixture
def source(tmp_path):
    levels = np.broadcast_to(2 * np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, SIDE, SIDE, 1))
    np.savez(tmp_path / "levels.npz", images=levels, labels=np.arange(COUNT) % 2)
    return {
        "problem.source": str(tmp_path / "levels.npz"), "problem.size": str(SIDE), "problem.images": "0",
        "base.network": "mlp", "base.width": "8", "base.depth": "1", "problem.classifier_steps": "1",
    }  # fmt: skip


def parts(config):
    """The numbers of the images for the denoiser, for the classifier, and held out."""
    settings = config.problem
    fractions = settings.train_fraction, settings.classifier_fraction
    found = data.split(COUNT, (*fractions, 1 - sum(fractions)), labelled.SPLIT_SEED)
    assert [len(part) for part in found[:2]] == [round(COUNT * fraction) for fraction in fractions]
    assert sorted(np.concatenate(found)) == list(range(COUNT))
    return [set(map(int, part)) for part in found]


def test_the_denoiser_the_classifier_and_the_metrics_see_images_of_their_own(source, tmp_path, monkeypatch):
    config = load(f"{CONFIGS / 'fashion_mnist.py'}:smoke", source)
    own, judges, held = parts(config)
    seen = {}

    def classifier(pool, classes, shape, steps, folder):
        seen["classifier"] = set(level(pool.x0).tolist())
        np.testing.assert_array_equal(level(pool.x0) % 2, pool.cond)
        return jax.jit(lambda x: (jnp.mean(x, axis=(1, 2)), jnp.zeros((len(x), classes))))

    def meter(read, images, labels):
        seen["reference"] = set(level(images).tolist())
        np.testing.assert_array_equal(level(images) % 2, labels)
        return found_meter(read, images, labels)

    def measure(meter, samples, full):
        seen.setdefault("measured", []).append(np.asarray(samples))
        return found_measure(meter, samples, full)

    found_meter, found_measure = judge.meter, judge.measure
    monkeypatch.setattr(labelled, "_train_classifier", classifier)
    monkeypatch.setattr(judge, "meter", meter)
    monkeypatch.setattr(judge, "measure", measure)
    problem = problems.build(config, tmp_path)
    assert seen == {"classifier": judges, "reference": held}

    x0, cond = problem.data.draw(jax.random.key(0), problem.data.arrays, 2000)
    assert set(level((x0 + 1) / 2).tolist()) == own and float(x0.min()) >= -1
    np.testing.assert_array_equal(level((x0 + 1) / 2) % 2, cond)
    real = problem.data.real(jax.random.key(1), problem.data.arrays, 500, jnp.asarray([1, 0]))
    assert set(level((real[0] + 1) / 2).tolist()) == {i for i in own if i % 2 == 1}
    assert set(level((real[1] + 1) / 2).tolist()) == {i for i in own if i % 2 == 0}

    floor = problem.instrument.floor(jax.random.key(2), 300, True)
    [shown] = seen["measured"]  # the images for the denoiser, in the order of the classes
    assert shown.shape[:2] == (2, 300)
    assert all(set(level(shown[c]).tolist()) <= {i for i in own if i % 2 == c} for c in (0, 1))
    assert floor["mean_pixel"] == pytest.approx(shown.mean(), rel=1e-5)
    samples = 2 * shown[:, ::3] - 1
    values = problem.instrument.measure(jax.random.key(3), jnp.asarray(samples), True)
    energies = [energy(flat(shown[c, ::3]), flat(2 * np.array([i for i in held if i % 2 == c]) / 255)) for c in (0, 1)]
    assert values["pixel_energy_distance"] == pytest.approx(np.mean(energies), rel=1e-3, abs=1e-5)


def flat(levels):
    """Images, or their levels in [0, 1], as rows of pixels."""
    levels = np.asarray(levels, np.float64)
    rows = levels.reshape(len(levels), -1)
    return rows if rows.shape[1] > 1 else np.repeat(rows, SIDE * SIDE, axis=1)


def energy(x, y):
    others = lambda z: cdist(z, z).sum() / (len(z) * (len(z) - 1))  # noqa: E731
    return 2 * cdist(x, y).mean() - others(x) - others(y)


def test_a_fid_without_a_reference_file_is_to_all_images_that_are_set_apart(source, tmp_path, monkeypatch):
    config = load(f"{CONFIGS / 'fashion_mnist.py'}:smoke", source | {"problem.instrument": "random"})
    own, judges, held = parts(config)
    seen, found = [], inception.load

    def loaded(settings, apart):
        seen.extend(np.concatenate(list(apart.blocks(16)))[:, 0, 0, 0] // 2)
        return found(settings, apart)

    monkeypatch.setattr(inception, "load", loaded)
    problem = problems.build(config, tmp_path)
    assert sorted(map(int, seen)) == sorted(judges | held)
    assert problem.instrument.tuned == ("fid",) and f"FID of {config.eval.samples} samples" in problem.name
    x0, _ = problem.data.draw(jax.random.key(0), problem.data.arrays, 2000)
    assert set(level((x0 + 1) / 2).tolist()) == own


def test_latents_are_drawn_around_the_mean_of_a_view_with_its_deviation():
    """0.18215 (mean + deviation z) of one view or the other: laws of no width give their means, those of mean 0 their
    width."""
    n, keys = 2000, jax.random.split(jax.random.key(0), 4000)
    laws = np.zeros((n, 2, 2, 1, 1, 3), np.float16)
    laws[:, 0, 0], laws[:, 1, 0] = 2.0, 5.0
    views = jax.jit(imported_latents.views)
    found = np.asarray(views(keys[:n], laws))
    assert found.shape == (n, 1, 1, 3)
    first = np.isclose(found, 0.18215 * 2).all((1, 2, 3))
    assert np.all(first | np.isclose(found, 0.18215 * 5).all((1, 2, 3)))
    assert abs(first.mean() - 0.5) < 5 * 0.5 * n**-0.5
    laws[:, :, 0], laws[:, :, 1] = 0.0, 3.0
    noise = np.asarray(views(keys[n:], laws)) / (0.18215 * 3)
    assert abs(noise.mean()) < 5 * (3 * n) ** -0.5 and abs(noise.var() - 1) < 5 * (2 / (3 * n)) ** 0.5


# ---- mixtures


@pytest.fixture(scope="module")
def tilted():
    """(problem, config) of the reward preset: an attenuated denoiser, a target that is tilted."""
    config = load(f"{CONFIGS / 'mixture.py'}:reward")
    return problems.build(config), config


def test_every_number_of_a_mixture(tilted):
    """By SciPy's densities of the tilted law; those that need reference samples against samples drawn here."""
    problem, config = tilted
    settings, n = config.problem, 800
    law = mixture.truth(settings)
    linear, quadratic = (1.0, 0.0), 0.2  # of the preset
    assert settings.reward == "linear_quadratic((1, 0), 0.2)"
    means, weights = np.asarray(law.means, np.float64), np.exp(np.asarray(law.log_weights, np.float64))
    v, a = settings.deviation**2, np.asarray(linear) / settings.temperature
    b = quadratic / settings.temperature
    # completing the square: V = v/(1 + b v), mu = m + V (a - b m), and the weight of a mode its mean of e^r
    spread = v / (1 + b * v)
    slope = a[None] - b * means
    moved = means + spread * slope
    log_mass = (means * a).sum(1) - 0.5 * b * (means**2).sum(1) + 0.5 * spread * (slope**2).sum(1)
    shares = weights[:-1] * np.exp(log_mass)[None]
    shares /= shares.sum(1, keepdims=True)

    rng, classes = np.random.default_rng(0), settings.classes
    samples = 0.9 * means.reshape(-1, 2)[rng.integers(0, len(means), (classes, n))] + rng.normal(size=(classes, n, 2))
    values = problem.instrument.measure(jax.random.key(0), jnp.asarray(samples, jnp.float32), True)
    density = np.stack([stats.multivariate_normal(m, spread * np.eye(2)).pdf(samples) for m in moved], -1)
    joint = density * shares[:, None]
    member = (joint / joint.sum(-1, keepdims=True)).mean(1)
    assert values["negative_log_likelihood"] == pytest.approx(-np.log(joint.sum(-1)).mean(), rel=1e-4)
    assert values["mode_share_error"] == pytest.approx(0.5 * np.abs(member - shares).sum(1).mean(), rel=1e-3)
    worth = (samples @ np.asarray(linear) - 0.5 * quadratic * (samples**2).sum(-1)).mean()
    assert values["mean_reward"] == pytest.approx(worth, rel=1e-4)

    pick = np.stack([rng.choice(len(means), size=4 * n, p=share) for share in shares])
    truth = moved[pick] + spread**0.5 * rng.normal(size=(classes, 4 * n, 2))
    expected = np.mean([energy(x, y) for x, y in zip(samples, truth, strict=True)])
    assert values["energy_distance"] == pytest.approx(expected, rel=0.1)
    ratio = np.mean(samples.var(1).sum(-1) / truth.var(1).sum(-1))
    assert values["variance_ratio"] == pytest.approx(ratio, rel=0.1)
    fast = problem.instrument.measure(jax.random.key(0), jnp.asarray(samples, jnp.float32), False)
    assert fast == pytest.approx({"energy_distance": values["energy_distance"]}, rel=1e-5)


@pytest.mark.key_reuse  # the draws of the reference on their own
def test_the_floor_is_that_of_independent_true_samples(tilted):
    """Its energy distance is 0 in the mean: its samples are not those that it compares them with."""
    problem, _ = tilted
    found = [problem.instrument.floor(jax.random.key(i), 400, True) for i in range(6)]
    energies = np.array([one["energy_distance"] for one in found])
    error = energies.std(ddof=1) / 6**0.5
    assert abs(energies.mean()) < 5 * error and error < 0.01
    own = problem.data.real(jax.random.key(0), problem.data.arrays, 400, problem.model.conditions)
    shared = problem.instrument.measure(jax.random.key(0), own, True)  # the reference of this key begins like these
    assert abs(shared["energy_distance"] - energies[0]) > 1e-4
    shares = np.array([one["mode_share_error"] for one in found])
    assert 0 < shares.mean() < 3 * 400**-0.5
    ratios = np.array([one["variance_ratio"] for one in found])
    assert abs(ratios.mean() - 1) < 5 * ratios.std(ddof=1) / 6**0.5


@pytest.mark.key_reuse  # both weights meet the same noise
def test_an_attenuated_model_is_off_unguided_and_repaired_by_its_omega():
    """rho = 0.6: the exact repair is the constant omega = 0.6/0.4 = 1.5; what is left is the error of 50 steps."""
    config = load(f"{CONFIGS / 'mixture.py'}:attenuated")
    problem = problems.build(config)
    assert config.problem.attenuation == 0.6
    run = samplers.sampler(problem, config, 50, 4 * 500)
    values = []
    for seed in range(3):
        noise_key, measure_key = samplers.keys(seed)
        tables = (jnp.full((50, 4), omega) for omega in (0.0, 1.5))
        samples = [run((), table, noise_key)[0] for table in tables]
        values.append([problem.instrument.measure(measure_key, x, False)["energy_distance"] for x in samples])
    unguided, repaired = np.mean(values, 0)
    spread = np.std(values, 0, ddof=1) / 3**0.5
    assert unguided > 10 * spread[0] and unguided > 10 * abs(repaired)
