"""Fixtures and closed forms that several tests share. Import as `from tests import oracles`.

Every number is derived in the docstring or published; none is recorded from our own code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guidance import schedules
from guidance.learning import Model, OneStep
from guidance.truth import mixtures, rewards
from guidance.truth.mixtures import Mixture
from guidance.types import Array, Denoise, Schedule


def standard_error(values) -> np.ndarray:
    """The standard error of the mean of values [n, ...] over the first axis."""
    values = np.asarray(values, np.float64)
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


# ---- a small mixture of two classes in every form of covariance

NAMES = tuple(schedules.SCHEDULES)
FORMS = ("isotropic", "diagonal", "full")
MEANS = (np.array([[1.0, -0.5], [-1.5, 0.3], [0.2, 2.0]]), np.array([[0.4, 0.1]]))
WEIGHTS, PRIOR = ([0.5, 0.3, 0.2], [1.0]), (0.3, 0.7)


def covariances(form: str) -> list[np.ndarray]:
    """Covariances of MEANS' modes: the same eigenvalues in every form, turned by another angle for each full mode."""
    if form == "isotropic":
        return [np.array([0.5, 0.8, 0.2]), np.array([1.1])]
    axes = [np.array([[0.5, 0.1], [0.8, 1.3], [0.2, 0.4]]), np.array([[1.1, 0.3]])]
    if form == "diagonal":
        return axes

    def turned(variance, angle):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return turn @ np.diag(variance) @ turn.T

    return [np.stack([turned(v, 0.7 + i) for i, v in enumerate(block)]) for block in axes]


def covariance_matrices(form: str) -> np.ndarray:
    stacked = np.concatenate(covariances(form))
    if form == "isotropic":
        return stacked[:, None, None] * np.eye(2)
    return stacked if form == "full" else np.stack([np.diag(v) for v in stacked])


def mode_probabilities() -> np.ndarray:
    """p(j | c) and, last, p(j), plainly; [C + 1, J]."""
    classes = np.array([[0.5, 0.3, 0.2, 0], [0, 0, 0, 1]])
    return np.concatenate([classes, (np.array(PRIOR) @ classes)[None]])


def example(form: str) -> mixtures.Mixture:
    return mixtures.from_classes(MEANS, covariances(form), WEIGHTS, PRIOR)


def points(n: int = 9, seed: int = 0):
    """States, inner times and all labels."""
    rng = np.random.default_rng(seed)
    x, t = jnp.asarray(rng.normal(size=(n, 2)) * 2), jnp.asarray(rng.uniform(0.05, 0.95, n))
    return x, t, jnp.arange(n) % 3


# ---- published mixtures


def tilt_prior() -> Mixture:
    """TILT: .6 N(-2, .3^2) + .4 N(1.5, .5^2), one class (label 0 = null label 1)."""
    return mixtures.from_classes([[[-2.0], [1.5]]], [[0.09, 0.25]], [[0.6, 0.4]])


def tilt_reward() -> rewards.LinearQuadratic:
    """TILT: r(x) = 1.2 x - .15 x^2, temperature 1; it moves almost all mass to the minority mode."""
    return rewards.linear_quadratic([1.2], 0.3)


# Completing the square per mode, V = v/(1 + .3 v), mu = (m + 1.2 v)/(1 + .3 v); moments and log Z by the mixture sums.
TILT = {
    "means": (-1.842259, 1.674419),
    "variances": (0.087634, 0.232558),
    "weights": (0.018750, 0.981250),
    "mean": 1.608481,
    "variance": 0.457374,
    "log_z": 0.594384,
    "z": 1.811914,
    "p_above_0": 0.980997,
    "p_above_-.25": 0.981218,
    "prior_mean": -0.6,
    "prior_variance": 3.094,
}
TILT_RHO = (0.0, 0.25, 0.6, 1.2, 3.0, 10.0)  # EDM noise levels of the particle tests


def nine_prior() -> Mixture:
    """NINE: nine equal modes on {-4, 0, 4}^2, variance .3, one class."""
    axis = np.array([-4.0, 0.0, 4.0])
    return mixtures.from_classes([np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(9, 2)], 0.3)


def nine_reward() -> rewards.LinearQuadratic:
    """NINE: r = -x^2/100 - y^2, temperature 1."""
    return rewards.linear_quadratic([0.0, 0.0], [0.02, 2.0])


def cfg_1d() -> Mixture:
    """CFG1D: p_c = N(1.5, .1)/2 + N(2.5, .1)/2 (label 0); p_u = N(-2, 1)/2 + N(2, 1)/2 (label 2, the null).

    p_u is not an average of classes: the prior (0, 1) makes the null condition the second "class".
    """
    return mixtures.from_classes([[[1.5], [2.5]], [[-2.0], [2.0]]], [0.1, 1.0], class_prior=(0, 1))


def toy2() -> Mixture:
    """TOY2: four equal classes N((+-2, +-2), .25 I)."""
    return mixtures.from_classes([[[2.0, 2.0]], [[-2.0, 2.0]], [[-2.0, -2.0]], [[2.0, -2.0]]], 0.25)


# ---- HG: a continuous condition

HG_DIM, HG_VARIANCE = 16, 0.49
HG_NULL = {"mu": 0.0, "known": 0.0}


def hg_sample(key: Array, n: int) -> tuple[Array, dict[str, Array]]:
    """HG: c = mu ~ N(0, I_16), x0 | mu ~ N(mu, .49 I). The condition says whether mu is known (null: it is not)."""
    mu_key, x_key = jax.random.split(key)
    mu = jax.random.normal(mu_key, (n, HG_DIM))
    x0 = mu + HG_VARIANCE**0.5 * jax.random.normal(x_key, (n, HG_DIM))
    return x0, {"mu": mu, "known": jnp.ones((n, 1))}


def _hg_denoise(schedule, x, t, cond):
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    mean = cond["known"] * cond["mu"]
    variance = HG_VARIANCE + (1 - cond["known"])
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def hg_denoise(schedule: Schedule) -> Denoise:
    """The exact D_c = mu + a v/(a^2 v + s^2) (x - a mu), v = .49, and D_u: the same with mu = 0, v = 1.49."""
    return Partial(_hg_denoise, schedule)


# ---- optimal weights of the learned-guidance objectives (per step s < t, exact branches, fresh noise)


def omega_l2(schedule: Schedule, s: float, t: float, churn: float) -> float:
    """omega* = (alpha_s - B)/B of the l2 objective: it regresses x_s onto E[alpha_s x0 | x_t], whatever the data."""
    ratio_a, ratio_s = float(schedule.alpha(t) / schedule.alpha(s)), float(schedule.sigma(s) / schedule.sigma(t))
    r11 = ratio_a * ratio_s
    b = 1 - churn**2 * r11**2 - (1 - churn**2) * r11
    return (1 - b) / b


def omega_energy_beta2(schedule: Schedule, t: float, variance: float = HG_VARIANCE, spread: float = 1.0) -> float:
    """omega* of the energy loss with beta = 2, lambda = 1 (mean matching given x0) on HG with mu ~ N(0, spread I).

    E[D_omega | x0, mu] - x0 is linear in the independent (mu, x0 - mu); minimise its mean square over omega, with
    D_c = mu + k_c (x - a mu), D_u = k_u x.
    """
    a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
    k_c = a * variance / (a**2 * variance + s**2)
    k_u = a * (variance + spread) / (a**2 * (variance + spread) + s**2)
    # coefficients on mu and on x0 - mu of (D_c - x0) and of (D_c - D_u)
    error, gap = np.array([0, k_c * a - 1]), np.array([1 - k_u * a, (k_c - k_u) * a])
    scale = np.array([spread, variance])
    return float(-np.sum(scale * error * gap) / np.sum(scale * gap**2))


def omega_attenuated(omega: float, r: float) -> float:
    """The optimum once D_c is attenuated: guided predictions sweep the same line, (1 + omega)/(1 - r) - 1."""
    return (1 + omega) / (1 - r) - 1


# ---- fixture HG as a model to be guided

RF = schedules.rectified_flow()


def steps_at(s, t, churn=1.0, **knobs) -> OneStep:
    """Settings whose steps are all s <- t: the triangle of allowed steps shrunk to a point."""
    return OneStep(s_min=s, delta=t - s, zeta=1 - t, churn=churn, **knobs)


def hg_attenuated(r, x, t, cond):
    """(1 - r) D_c + r D_u: an under-trained conditional branch with a known repair."""
    exact = hg_denoise(RF)
    unconditional = {"mu": cond["mu"], "known": jnp.zeros_like(cond["known"])}
    return (1 - r) * exact(x, t, cond) + r * exact(x, t, unconditional)


def hg_model(r=0.0):
    return Model(Partial(hg_attenuated, r), RF, HG_NULL)


def traced(config):
    return jax.tree.map(jnp.float32, config._replace(particles=None))
