"""The job that trains the base denoiser: what its options change in the network that comes out."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import problems
from experiments.config import load
from experiments.jobs import train
from experiments.problems import mixture
from guidance import guides, mixtures, rules
from guidance.schedules import diffuse

CONFIG = str(pathlib.Path(__file__).resolve().parents[2] / "configs/mixture.py")


@functools.cache
def _truth():
    """Noised data, its exact D_c, and the labels."""
    config = load(CONFIG)
    data = problems.build(config)
    x0, cond = data.draw(jax.random.key(1), 1000)
    t = jnp.linspace(0.2, 0.9, 1000)
    x = diffuse(data.schedule, x0, jax.random.normal(jax.random.key(2), x0.shape), t)
    return x, t, cond, mixtures.denoise(mixture.truth(config.problem), data.schedule)(x, t, cond)


def _error(workdir, omega_trained, omega_sampled):
    """E|D_guided - exact D_c|^2 of a network that was trained at one weight and is guided at another."""
    overrides = {"seeds": "1", "base.steps": "400", "base.width": "48", "base.guidance_matched": str(omega_trained)}
    config = load(CONFIG, overrides)
    workdir.mkdir(exist_ok=True)
    problem = problems.build(config)
    [params] = train.run(problem, config, workdir)
    x, t, cond, exact = _truth()
    positive, reference = guides.both_branches(problem.denoise(params), x, t, cond, problem.null)
    guided = rules.cfg(positive, reference, jnp.full(1000, omega_sampled))
    return float(np.mean(np.sum(np.asarray(guided - exact) ** 2, -1)))


@pytest.mark.slow
def test_a_guidance_matched_denoiser_is_right_when_guided_at_its_weight(tmp_path):
    """Guided at omega = 2 it is about as right as the plain one unguided; the plain one overshoots there."""
    matched = _error(tmp_path / "matched", 2.0, 2.0)
    plain = _error(tmp_path / "plain", 0.0, 2.0)
    unguided = _error(tmp_path / "plain", 0.0, 0.0)
    assert matched < 0.5 * plain
    assert matched == pytest.approx(unguided, rel=1.0)
