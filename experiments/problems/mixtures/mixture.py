"""Gaussian mixtures with a model error of known cause: every number is compared with closed-form truth."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.problems import construct
from experiments.problems.interface import Data, Instrument, Model, Network, Problem
from guidance import metrics, predictions, schedules
from guidance.nets.mlp import DenoiserMLP
from guidance.truth import mixtures, model_errors
from guidance.truth.rewards import LinearQuadratic
from guidance.truth.tilts import tilt

REFERENCE = 4  # true samples that a measurement compares with, for each sample that it measures
LAYOUT_SEED = 20250


def build(config, folder) -> Problem:
    del folder  # nothing is kept
    settings, schedule = config.problem, schedules.by_name(config.problem.schedule)
    data = truth(settings)
    classes, dimension = settings.classes, settings.dimension
    reward, target = None, data
    if settings.reward:
        reward = construct.reward(settings.reward)
        if not isinstance(reward, LinearQuadratic):
            raise ValueError(f"problem.reward = {settings.reward}: allowed: one whose tilt of a mixture is known")
        target, _ = tilt(data, reward, settings.temperature)
    network, denoise = _model(config, data, schedule)

    def of_target(key, k, conditions):
        labels = jnp.repeat(conditions, k)
        return mixtures.sample(key, target, labels).reshape(len(conditions), k, dimension)

    every = jnp.arange(classes)
    fast, full = _measures(target, reward, schedule, classes)

    def measure(key, samples, complete):
        samples = np.asarray(samples)  # wherever they lie, they share one compilation
        reference = _of_target(key, REFERENCE * samples.shape[1], every)
        values = full(key, samples, reference) if complete else fast(samples, reference)
        return {name: float(value) for name, value in values.items()}

    @jax.jit
    def log_density(points, labels):
        return mixtures.log_density(target, schedule, points, jnp.zeros(len(points)), labels)

    _of_target = jax.jit(of_target, static_argnums=1)
    return Problem(
        _name(settings),
        Model(schedule, (dimension,), every, classes, denoise, network),
        Data(
            draw=lambda key, _, n: mixtures.sample_joint(key, data, n),
            real=lambda key, _, k, conditions: of_target(key, k, conditions),
        ),
        Instrument(
            measure,
            floor=lambda key, n, complete: measure(key, _of_target(jax.random.fold_in(key, 1), n, every), complete),
            tuned=("energy_distance",),
            picture=lambda axes, samples: _picture(axes, target, samples, log_density),
        ),
        reward,
    )


def truth(settings) -> mixtures.Mixture:
    """Returns the law of the data: `ring` interleaves the classes' modes on a circle, `random` draws them on a sphere.

    Within a class the modes have weights proportional to 1, 1/2, 1/3, ...: unequal, so that a lost mode shows.
    """
    classes, modes = settings.classes, settings.modes
    if settings.layout == "ring":
        angles = 2 * np.pi * np.arange(classes * modes) / (classes * modes)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    else:
        points = np.random.default_rng(LAYOUT_SEED).normal(size=(classes * modes, settings.dimension))
        points /= np.linalg.norm(points, axis=-1, keepdims=True)
    points = settings.radius * points
    weights = 1 / np.arange(1, modes + 1)
    return mixtures.from_classes(
        [points[c::classes] for c in range(classes)],
        [np.full(modes, settings.deviation**2)] * classes,
        [weights] * classes,
    )


def _model(config, data, schedule):
    settings = config.problem
    if settings.error in ("under", "trained"):
        net = DenoiserMLP(settings.classes, config.base.width, config.base.depth)
        example = jnp.zeros((1, settings.dimension)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        network = Network(lambda key: net.init(key, *example), net.apply, "velocity")
        return network, lambda params: predictions.as_denoise(network.apply, params, network.kind, schedule)
    exact = mixtures.denoise(data, schedule)
    if settings.error == "attenuated":
        exact = model_errors.attenuated(exact, settings.attenuation, settings.classes)
    return None, lambda params: exact


def _measures(target, reward, schedule, classes):
    """Returns two jitted functions of samples [G, n, d] and a reference [G, k, d].

    The first computes the tuned metric; the second takes a key before and computes all metrics.
    """

    def energy(samples, reference):
        return jnp.mean(jax.vmap(lambda x, y: metrics.energy_distance(x, y).value)(samples, reference))

    @jax.jit
    def fast(samples, reference):
        return {"energy_distance": energy(samples, reference)}

    @jax.jit
    def full(key, samples, reference):
        groups, n, dimension = samples.shape
        flat, cond = samples.reshape(-1, dimension), jnp.repeat(jnp.arange(classes), n)
        zero = jnp.zeros(flat.shape[:1])
        shares = mixtures.responsibilities(target, schedule, flat, zero, cond).reshape(groups, n, -1)
        true_shares = jnp.exp(target.log_weights[:-1])
        sliced = jax.vmap(lambda x, y: metrics.sliced_wasserstein(key, x, y))(samples, reference)
        log_density = mixtures.log_density(target, schedule, flat, zero, cond)
        values = {
            "energy_distance": energy(samples, reference),
            "sliced_wasserstein": jnp.mean(sliced),
            "mode_share_error": jnp.mean(jax.vmap(metrics.share_error)(jnp.mean(shares, axis=1), true_shares)),
            "negative_log_likelihood": -jnp.mean(log_density),
            "variance_ratio": jnp.mean(jnp.var(samples, axis=1).sum(-1) / jnp.var(reference, axis=1).sum(-1)),
        }
        return values if reward is None else values | {"mean_reward": jnp.mean(reward(flat))}

    return fast, full


def _name(settings) -> str:
    extra = f" {settings.attenuation:g}" if settings.error == "attenuated" else ""
    tilted = ", tilted" if settings.reward else ""
    return f"mixture d={settings.dimension}, {settings.error}{extra}{tilted}"


def _picture(axes, target, samples, log_density) -> list[tuple[int, float, float]]:
    """Draws samples [K, n, ...] over the contours of the true density; returns the points, (class, x1, x2) each.

    It draws the first two coordinates, and ten classes at most.
    """
    samples, drawn = np.asarray(samples), []
    reach = 1.4 * float(jnp.abs(target.means[:, :2]).max()) + 2 * float(jnp.sqrt(target.variances.max()))
    side = jnp.linspace(-reach, reach, 90)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    for c in range(min(target.null, 10)):
        if target.means.shape[-1] == 2:
            labels = jnp.full(len(grid), c, jnp.int32)
            log_p = log_density(grid, labels).reshape(90, 90)
            axes.contour(side, side, log_p, levels=float(log_p.max()) - np.array([4.5, 2.0, 0.5]), colors=f"C{c}",
                         linewidths=0.7, linestyles="-", alpha=0.5, zorder=1)  # fmt: skip
        points = samples[c, :, :2][np.isfinite(samples[c]).all(-1)]
        axes.scatter(*points.T, s=5, color=f"C{c}", alpha=0.8, linewidths=0, zorder=2, label=f"class {c}")
        drawn += [(c, *point) for point in points]
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    return drawn
