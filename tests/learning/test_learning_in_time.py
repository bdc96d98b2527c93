"""The one-step objectives with a weight that depends on s, t and the condition, against NumPy.

The schedule alpha = 1 - t, sigma = 1e-9 t has no noise to speak of, so that every particle is known: x_t = (1 - t) x0,
x_s = (1 - s) x0, and the guided DDIM step is y = (s/t) x_t + (1 - s - (1 - t) s/t) D. What remains of chance are the
steps (s, t): the spies on the weight and on the denoiser tell which ones were drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import learning, sampling
from guidance.learning.rollout import Rollout, rollout_loss
from guidance.types import Schedule

NOISELESS = 1e-9
LINE = Schedule(
    alpha=lambda t: 1 - t,
    sigma=lambda t: NOISELESS * t,
    log_snr=lambda t: 2 * (jnp.log1p(-t) - jnp.log(NOISELESS * t)),
    time=lambda log_snr: 1 / (1 + NOISELESS * jnp.exp(log_snr / 2)),
    alpha_dot=lambda t: -jnp.ones_like(t),
    sigma_dot=lambda t: NOISELESS * jnp.ones_like(t),
)
PULL = np.array([[1.0, -0.5], [-1.5, 0.3], [0.2, 2.0], [0.4, 0.1]])  # by label; the last one is the null label's
NULL, DIMENSIONS = 3, 2
SETTINGS = learning.OneStep(particles=3, beta=1.3, lam=0.8, churn=0.0, s_min=0.05, zeta=0.1, delta=0.2)


def omega(s, t, label):
    """Another value for s and t exchanged, for s or t alone, and for every label."""
    return 0.5 + s + 2 * t**2 + 0.7 * label


def predicted(x, t, label):
    """A denoiser that depends on all it is given."""
    return PULL[label] + 0.3 * x + t[:, None]


def answered(x, t, cond):
    """`predicted` in JAX."""
    return jnp.asarray(PULL)[cond] + 0.3 * x + t[:, None]


class Spied:
    """A model and a weight that write down at which times and conditions they were asked."""

    def __init__(self):
        self.weighed, self.denoised = [], []
        self.model = learning.Model(self.denoise, LINE, NULL)

    def weight(self, *, t, s, cond):
        self.weighed.append(tuple(map(np.asarray, (s, t, cond))))
        return omega(s, t, cond)

    def denoise(self, x, t, cond):
        self.denoised.append(tuple(map(np.asarray, (t, cond))))
        return answered(x, t, cond)

    def steps(self, labels, particles):
        """(s, t) of each group, after checking that the weight was asked about the steps that were taken."""
        [(s, t, asked)], [(times, conditions)] = self.weighed, self.denoised
        rows = len(labels) * particles
        np.testing.assert_array_equal(asked, labels)
        np.testing.assert_array_equal(times, np.tile(np.repeat(t, particles), 2))
        np.testing.assert_array_equal(conditions[:rows], np.repeat(labels, particles))
        assert np.all(conditions[rows:] == NULL)
        assert np.all(s >= 0.05 - 1e-9) and np.all(t - s >= 0.2 - 1e-9) and np.all(t <= 0.9 + 1e-9)
        return s, t


def guided(x0, labels, s, t):
    """(y, D_omega) of clean samples [n, d] at one step (s, t) and label each."""
    x_t = (1 - t)[:, None] * x0
    positive, reference = predicted(x_t, t, labels), predicted(x_t, t, np.full_like(labels, NULL))
    clean = positive + omega(s, t, labels)[:, None] * (positive - reference)
    ratio = s / t
    return ratio[:, None] * x_t + (1 - s - ratio * (1 - t))[:, None] * clean, clean


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, DIMENSIONS)), rng.permutation(np.arange(n) % 3)


def length(x):
    return np.linalg.norm(x, axis=-1)


@pytest.mark.parametrize("name, beta", [("self_consistency", 1.3), ("l2", 2.0)])
def test_own_steps_against_own_noisings(name, beta, x64):
    """The copies of a sample are one point, so that nothing repels: the loss is mean |y_i - x_i|^beta."""
    x0, labels = data(7)
    spied = Spied()
    loss = getattr(learning, name)(
        jax.random.key(0), spied.model, spied.weight, jnp.asarray(x0), jnp.asarray(labels), SETTINGS
    )
    s, t = spied.steps(labels, 3)
    y, _ = guided(x0, labels, s, t)
    expected = np.mean(length(y - (1 - s)[:, None] * x0) ** beta)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def liking(x0, cond):
    """A reward that looks at the sample and at the condition."""
    return x0[:, 0] - 2 * x0[:, 1] + (1 + cond) * x0[:, 0] ** 2


def test_the_reward_alone_is_maximised(x64):
    """-mean R(D_omega, c): with the minus sign, so that descent on it raises the reward."""
    x0, labels = data(7, seed=1)
    spied = Spied()
    loss = learning.reward_only(
        jax.random.key(1), spied.model, spied.weight, jnp.asarray(x0), jnp.asarray(labels), SETTINGS, liking
    )
    _, clean = guided(x0, labels, *spied.steps(labels, 3))
    assert float(loss) == pytest.approx(-np.mean(liking(clean, labels)), rel=1e-6)


def test_the_reward_beside_the_mismatch(x64):
    x0, labels = data(7, seed=2)
    spied = Spied()
    loss = learning.self_consistency(
        jax.random.key(2), spied.model, spied.weight, jnp.asarray(x0), jnp.asarray(labels), SETTINGS, 0.4, liking
    )
    s, t = spied.steps(labels, 3)
    y, clean = guided(x0, labels, s, t)
    expected = np.mean(length(y - (1 - s)[:, None] * x0) ** 1.3) - 0.4 * np.mean(liking(clean, labels))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_guided_score_matching(x64):
    """Mean |x0 - D_omega|^2 at one particle for each sample."""
    x0, labels = data(7, seed=3)
    spied = Spied()
    loss = learning.score_matching(
        jax.random.key(3), spied.model, spied.weight, jnp.asarray(x0), jnp.asarray(labels), SETTINGS
    )
    _, clean = guided(x0, labels, *spied.steps(labels, 1))
    assert float(loss) == pytest.approx(np.mean(length(clean - x0) ** 2), rel=1e-6)


def mismatch(y, x):
    """E|y - x|^beta - (lambda/2) E|y - y'|^beta over pairs of different particles, of one group."""
    cross = np.mean(length(y[:, None] - x[None]) ** 1.3)
    apart = length(y[:, None] - y[None]) ** 1.3
    return cross - 0.5 * 0.8 * apart.sum() / (len(y) * (len(y) - 1))


def test_laws_of_each_condition(x64):
    """Half of each condition's samples are guided at that condition's step, the other half noised to the same s."""
    real, labels = np.random.default_rng(4).normal(size=(3, 6, DIMENSIONS)), np.array([2, 0, 1])
    spied = Spied()
    loss = learning.per_condition_consistency(
        jax.random.key(4), spied.model, spied.weight, jnp.asarray(real), jnp.asarray(labels), SETTINGS
    )
    s, t = spied.steps(labels, 3)
    groups = []
    for i, label in enumerate(labels):
        y, _ = guided(real[i, :3], np.full(3, label), np.full(3, s[i]), np.full(3, t[i]))
        groups.append(mismatch(y, (1 - s[i]) * real[i, 3:]))
    assert float(loss) == pytest.approx(np.mean(groups), rel=1e-6)


def test_laws_of_all_conditions_together(x64):
    """One step for the whole batch; its first half is guided, each row at its own label, the second half noised."""
    x0, labels = data(8, seed=5)
    spied = Spied()
    loss = learning.marginal_consistency(
        jax.random.key(5), spied.model, spied.weight, jnp.asarray(x0), jnp.asarray(labels), SETTINGS
    )
    s, t = spied.steps(labels[:4], 1)
    assert len(set(s)) == len(set(t)) == 1
    y, _ = guided(x0[:4], labels[:4], s, t)
    assert float(loss) == pytest.approx(mismatch(y, (1 - s[0]) * x0[4:]), rel=1e-6)


def test_a_rollout_compares_the_end_and_every_inner_time(x64):
    """Six DDIM steps from nothing in three segments: the particles of a condition are one point, y at 2/3, 1/3 and 0.

    L = mean_c [ mean_k |y_0 - x_k|^beta + kappa mean over both inner times s of mean_k |y_s - (1 - s) x_k|^beta ].
    """
    real, labels = np.random.default_rng(6).normal(size=(3, 4, DIMENSIONS)), np.array([2, 0, 1])
    model = learning.Model(answered, LINE, NULL)
    weight = lambda *, t, s, cond: omega(s, t, cond)  # noqa: E731
    settings = Rollout(2, beta=1.3, segments=3, path_weight=0.7)
    arguments = model, weight, sampling.ddim(), jnp.linspace(1.0, 0.0, 7), jnp.asarray(real), jnp.asarray(labels)
    loss = jax.jit(lambda key: rollout_loss(key, *arguments, settings))(jax.random.key(6))

    y, path, grid = np.zeros((3, DIMENSIONS)), {}, np.linspace(1, 0, 7)
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True), 1):
        positive, reference = (predicted(y, np.full(3, t), label) for label in (labels, np.full(3, NULL)))
        clean = positive + omega(s, t, labels)[:, None] * (positive - reference)
        y = s / t * y + (1 - s - s / t * (1 - t)) * clean
        path[i] = np.mean(length(y[:, None] - (1 - s) * real) ** 1.3)
    assert float(loss) == pytest.approx(path[6] + 0.7 * (path[2] + path[4]) / 2, rel=1e-6)
