"""Rules run to the end on closed-form mixtures, against values simulated elsewhere with other code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, rules, sampling, schedules, weights
from guidance.truth import mixtures

pytestmark = pytest.mark.compute

EDM = schedules.SCHEDULES["edm"]()
SAMPLES = 20_000

# SIMPLEX: E|x0| and the mean projection on the class direction at omega 0, 1, 3, 7; per-dimension variance at 7
SIMPLEX = {
    "cfg": (lambda: rules.cfg, (5.055, 5.627, 6.347, 7.278), (3.354, 4.269, 5.209, 6.324), 0.827),
    "angle_domain": (rules.angle_domain, (5.055, 5.153, 4.944, 4.777), (3.354, 3.740, 3.715, 3.679), 0.609),
    "apg": (
        lambda: rules.apg(0.0, jnp.inf, 0.0),
        (5.055, 4.839, 4.585, 4.290),
        (3.354, 3.490, 3.583, 3.651),
        0.390,
    ),
    "cfg_rescale": (rules.cfg_rescale, (5.055, 5.159, 5.463, 5.960), (3.354, 3.738, 4.211, 4.850), 0.775),
}


def _simplex():
    means = 4 * np.eye(16)[:4] - np.mean(4 * np.eye(16)[:4], axis=0)
    return mixtures.from_classes(means[:, None], 1.0), means[1]


@pytest.mark.parametrize("name", sorted(SIMPLEX))
def test_adg_5_and_6_norm_growth_on_a_simplex_of_classes(name):
    """d = 16, 4 classes N(4 e_k - centroid, I), 60 log-spaced Euler steps, sigma/alpha from 30 to 0.01."""
    mixture, direction = _simplex()
    rule, norms, projections, variance = SIMPLEX[name]
    grid = EDM.time(-2 * jnp.log(jnp.geomspace(30.0, 0.01, 61)))
    labels = jnp.ones(SAMPLES, jnp.int32)
    x = sampling.initial_noise(jax.random.key(0), EDM, grid, (16,), jnp.arange(SAMPLES))

    @jax.jit
    def run(omega):
        guide = guides.guided(rule(), weights.constant(omega), mixture.null, skip=False)
        denoise = mixtures.denoise(mixture, EDM)
        # the fixture stops at sigma = 0.01 alpha, where x is the sample
        return sampling.sample(jax.random.key(1), denoise, guide, sampling.ddim(), EDM, grid, x, labels).x0

    unit = jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)
    for omega, norm, projection in zip((0.0, 1.0, 3.0, 7.0), norms, projections, strict=True):
        x0 = run(omega) / EDM.alpha(grid[-1])
        assert float(jnp.mean(jnp.linalg.norm(x0, axis=-1))) == pytest.approx(norm, abs=0.03)
        assert float(jnp.mean(x0 @ unit)) == pytest.approx(projection, abs=0.03)
    assert float(jnp.mean(jnp.var(x0, axis=0))) == pytest.approx(variance, abs=0.02)


# OU: (mean q, d var q) of CFG and of the power law at omega 3, exponent 0.9; averages over 8 seeds of 1500 chains
OU = {1: ((1.936, 0.535), (1.530, 0.534)), 4: ((1.279, 0.740), (1.166, 0.749)), 16: ((1.071, 0.954), (1.043, 0.958))}
CHAINS = 12_000


def _ou(rule, d, key):
    """Reverse Euler-Maruyama of the Ornstein-Uhlenbeck process for two classes +-m, m = (1, .., 1): chains of +m."""
    mixture = mixtures.from_classes([np.ones((1, d)), -np.ones((1, d))], 1.0)
    times = jnp.linspace(0.5 * np.log(d) + 4, 0.001, 301)
    alpha = lambda u: jnp.exp(-u)  # noqa: E731
    # the process visits x_u = e^-u x0 + sqrt(1 - e^-2u) z: any variance-preserving schedule at the same log-SNR
    schedule = schedules.cosine()
    grid = schedule.time(2 * jnp.log(alpha(times)) - jnp.log1p(-(alpha(times) ** 2)))
    guide = guides.guided(rule, weights.constant(3.0), mixture.null, skip=False)
    denoise, labels = mixtures.denoise(mixture, schedule), jnp.zeros(CHAINS, jnp.int32)

    def step(x, inputs):
        u, du, t, key = inputs
        t = jnp.full(CHAINS, t)
        x0 = guide.apply(guide.init(x), denoise, schedule, x, t=t, s=t, cond=labels)[1].x0
        score = (alpha(u) * x0 - x) / (1 - alpha(u) ** 2)
        noise = jax.random.normal(key, x.shape)
        return x + du * (x + 2 * score) + jnp.sqrt(2 * du) * noise, None

    start, walk = jax.random.split(key)
    x = jax.random.normal(start, (CHAINS, d))
    inputs = times[:-1], times[:-1] - times[1:], grid[:-1], jax.random.split(walk, 300)
    x, _ = jax.lax.scan(step, x, inputs)
    return jnp.mean(x, axis=-1)


@pytest.mark.slow
def test_plw_the_power_law_overshoots_less_and_the_overshoot_falls_with_the_dimension():
    """PLW-1 and PLW-2: within 4 standard errors of both estimates (8 x 1500 chains there, 12000 here)."""
    overshoot = {}
    for d, expected in OU.items():
        for rule, (mean, variance) in zip((rules.cfg, rules.power_law(0.9)), expected, strict=True):
            q = jax.jit(lambda key, rule=rule, d=d: _ou(rule, d, key))(jax.random.key(d))
            spread = np.sqrt(variance / d / CHAINS)
            assert float(q.mean()) == pytest.approx(mean, abs=4 * np.sqrt(2) * spread + 0.003)
            assert d * float(q.var()) == pytest.approx(variance, abs=4 * 2 * variance / np.sqrt(CHAINS) + 0.005)
            overshoot[d, rule is rules.cfg] = float(q.mean()) - 1
        assert overshoot[d, False] < overshoot[d, True]
    assert overshoot[1, True] > overshoot[4, True] > overshoot[16, True]
    chex.assert_tree_all_finite(list(overshoot.values()))
