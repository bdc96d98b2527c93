"""One battery for the gradients of every sampler: in x_T, omega, each floating knob and every time of the grid.

Each is held against central differences in float64, on a small mixture. At the ends t = 1 (alpha = 0) and t = 0 a time
has no neighbour on one side, and the gradient in it is only finite. A sampler that joins the catalogue of
`tests.samplers` joins this battery.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from guidance import guides, sampling, schedules, weights
from guidance.sampling.steps import churned
from guidance.truth import mixtures
from tests import oracles
from tests.knobs import floating
from tests.samplers import SOLVERS

RF, TOY, LABELS = schedules.rectified_flow(), oracles.toy2(), jnp.asarray([0, 3])
SAMPLERS = {**SOLVERS, "exact_reverse": sampling.exact_reverse(TOY, LABELS)}
FORWARD_ONLY = ("adaptive",)  # a while loop
INSIDE, WHOLE = (0.9, 0.65, 0.4, 0.15), (1.0, 0.65, 0.3, 0.0)
WIDTH = 3e-5  # of the differences


class Differentiated:
    """A sampler as a scalar function of the arrays in a dict, compiled once: its value and its gradient anywhere."""

    def __init__(self, name, schedule):
        denoise, look = mixtures.denoise(TOY, schedule), jnp.asarray([[0.7, -0.4], [1.1, 0.3]])
        self.knobs, solver = floating(sampling.as_solver(SAMPLERS[name]))

        def value(inputs):
            guide = guides.cfg(weights.constant(inputs["omega"]), TOY.null, skip=False)
            grid = jnp.concatenate([inputs["ends"][:1], inputs["times"], inputs["ends"][1:]])
            own = solver(inputs["first knob"] + inputs["knobs"])
            key = jax.random.key(3)
            return jnp.sum(look * sampling.sample(key, denoise, guide, own, schedule, grid, inputs["x"], LABELS).x0)

        gradient = jax.jacfwd if name in FORWARD_ONLY else jax.grad
        self.both = jax.jit(lambda inputs: (value(inputs), gradient(value)(inputs)))

    def compare(self, grid, first_knob=None, but=()):
        """Asserts that the gradient is finite, and that of central differences except in the inputs named by `but`."""
        first = self.knobs[:1] if first_knob is None else [jnp.asarray(first_knob, float)]
        inputs = {"first knob": first, "knobs": self.knobs[1:], "omega": jnp.asarray(0.7)}
        inputs |= {"ends": jnp.asarray([grid[0], grid[-1]]), "times": jnp.asarray(grid[1:-1])}
        inputs["x"] = jnp.asarray([[0.8, -1.3], [-0.4, 0.9]])
        gradient = self.both(inputs)[1]
        chex.assert_tree_all_finite(gradient)
        for part in inputs.keys() - set(but):
            flat, form = ravel_pytree(inputs[part])
            got = ravel_pytree(gradient[part])[0]
            for i in np.flatnonzero(np.isfinite(flat)):  # an infinite knob is no bound
                up, down = (float(self.both({**inputs, part: form(flat.at[i].add(h))})[0]) for h in (WIDTH, -WIDTH))
                difference = (up - down) / (2 * WIDTH)
                assert float(got[i]) == pytest.approx(difference, rel=1e-4, abs=2e-5), f"{part}, entry {i}"


@functools.cache
def differentiated(name, schedule="rectified_flow"):
    return Differentiated(name, schedules.by_name(schedule))


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_are_those_of_central_differences(name, x64):
    differentiated(name).compare(INSIDE)
    differentiated(name).compare(WHOLE, but={"ends"})


ROOTS = {"dpmpp_2m_sde", "dpmpp_2s_sde", "edm_stochastic"}  # of whose first knob the noise is a root: no slope at 0
FIRST_KNOBS = [(name, knob) for name in ("churned_ddim", *sorted(ROOTS)) for knob in (0.0, 0.25)]


@pytest.mark.parametrize("name, knob", [*FIRST_KNOBS, ("churned_ddim", 1.0)])
def test_gradients_at_other_values_of_the_first_knob(name, knob, x64):
    """Churn, eta and gamma down to 0, where square roots of them and of what they leave meet 0."""
    but = {"first knob"} if name in ROOTS and knob == 0 else set()
    differentiated(name).compare(INSIDE, knob, but)
    differentiated(name).compare(WHOLE, knob, but | {"ends"})


def test_gradients_are_finite_where_sigma_has_infinite_slope(x64):
    """linear_vp: sigma ~ sqrt(t) at data, and t = 1 is not pure noise."""
    differentiated("churned_ddim", "linear_vp").compare(WHOLE, 1.0, {"ends"})


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_schedules_have_finite_slopes_at_both_ends(name):
    schedule = schedules.SCHEDULES[name]()._asdict()
    del schedule["time"]
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda t: {key: function(t) for key, function in schedule.items()})))
    chex.assert_tree_all_finite(slopes(jnp.asarray([0.0, 1e-6, 0.5, 1.0])))


def test_kept_noise_is_exact_near_pure_noise():
    """sigma_s (1 - e^2 (1 - r_11)) to float32 rounding; sqrt(sigma_s^2 - V) was wrong by up to 1e-4."""
    t, s = np.float32([0.999, 0.9999, 0.99, 0.9]), np.float32([0.99, 0.98, 0.6, 0.3])
    one, zero, exact = jnp.ones((4, 1)), jnp.zeros((4, 1)), np.float64
    for churn in (1.0, 0.999, 0.5):
        lost = 1 - (1 - exact(t)) / (1 - exact(s)) * exact(s) / exact(t)
        kept = churned(RF, zero, one, zero, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn)[:, 0]
        np.testing.assert_allclose(kept, s * (1 - churn**2 * lost), rtol=1e-6)
        added = churned(RF, zero, zero, one, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn)[:, 0]
        np.testing.assert_allclose(added, s * np.sqrt(1 - (1 - churn**2 * lost) ** 2), rtol=1e-6)
