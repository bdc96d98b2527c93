"""An adaptive Runge-Kutta solver of the guided probability-flow ODE. It serves as a reference; it is not fast.

It integrates u = x/sqrt(alpha^2 + sigma^2) over the angle theta = atan2(sigma, alpha). In these variables the ODE is
the same for every schedule, and bounded:

    u = cos(theta) x_0 + sin(theta) eps,    du/dtheta = cos(theta) eps - sin(theta) x_0   (the v-prediction)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guidance.ranges import Count, NonNegative, not_by_name, ranged
from guidance.sampling.solvers import no_memory, where_needed
from guidance.sampling.steps import ddim
from guidance.shapes import like
from guidance.types import Array, Guided, Schedule, Solver, State

# Dormand and Prince, "A family of embedded Runge-Kutta formulae" (1980), RK5(4)7M. The last row gives the 5th-order
# solution, at which the first stage of the next step is evaluated.
_NODES = np.array([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_STAGES = np.array(
    [
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
# 5th- minus 4th-order weights
_ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])


class _Flow(NamedTuple):
    """The state of the integration: carry, angle, next step, u, its rate du/dtheta, and the number of attempts."""

    carry: State
    angle: Array
    step: Array
    u: Array
    rate: Array
    attempts: Array


@not_by_name("its evaluations are counted for a batch, not for a sample")
@ranged
def adaptive(rtol: NonNegative = 1e-6, atol: NonNegative = 1e-6, max_attempts: Count = 10_000) -> Solver:
    """Builds the Dormand-Prince 5(4) solver, which integrates from t to s to the given tolerances.

    Each sample controls its own step size, so that it does not depend on its batch. An attempt is accepted if the root
    mean square over the sample of error/(atol + rtol |u|) is at most 1. The solver works with any guide and on any
    grid, even of one step. Weights are evaluated for steps of length zero, omega(t, t). A target sigma_s = 0 is
    approached to the angle sqrt(machine epsilon), and one DDIM step covers the rest with a relative error of machine
    epsilon. A sample is NaN if it meets a NaN or has not arrived after `max_attempts`.

    Costs 1 + 6 evaluations per attempt, and 1 for a last step to sigma_s = 0. Attempts are counted for the whole
    batch, rejected ones included, until its last sample has arrived. The state of a guide advances on rejected
    attempts, too. Only forward-mode derivatives are possible.
    Source: Dormand and Prince 1980, doi 10.1016/0771-050X(80)90013-3; the variable and the controller are our choice.
    """
    return Solver(Partial(no_memory), Partial(_adaptive, rtol, atol, max_attempts))


def _angle(schedule: Schedule, t: Array) -> Array:
    return jnp.arctan2(schedule.sigma(t), schedule.alpha(t))


def _length(schedule: Schedule, t: Array) -> Array:
    return jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)


def _time(schedule: Schedule, angle: Array) -> Array:
    # a right angle in float32 is a little more than pi/2
    floor = float(jnp.finfo(angle.dtype).tiny)
    log_tangent = jnp.log(jnp.maximum(jnp.sin(angle), floor)) - jnp.log(jnp.maximum(jnp.cos(angle), floor))
    return jnp.clip(schedule.time(-2 * log_tangent), 0, 1).astype(angle.dtype)


def _evaluate_at_angle(carry, evaluate, schedule, u, angle) -> tuple[State, Guided, Array]:
    t = _time(schedule, angle)
    carry, guided = evaluate(carry, u * like(_length(schedule, t), u), t=t, s=t)
    return carry, guided, t


def _rate(carry, evaluate, schedule, u, angle) -> tuple[State, Array]:
    carry, guided, _ = _evaluate_at_angle(carry, evaluate, schedule, u, angle)
    return carry, (like(jnp.cos(angle), u) * guided.eps - like(jnp.sin(angle), u) * guided.x0).astype(u.dtype)


def _attempt(rtol, atol, evaluate, schedule, end, flow: _Flow) -> _Flow:
    """Tries one step of every sample that has not arrived."""
    carry, angle, step, u, rate, attempts = flow
    step = jnp.minimum(step, angle - end)

    def stage(state, inputs):
        carry, rates, _ = state
        i, node, row = inputs
        moved = u - like(step, u) * jnp.tensordot(row, rates, 1)
        carry, k = _rate(carry, evaluate, schedule, moved, angle - node * step)
        return (carry, rates.at[i].set(k), moved), None

    rates = jnp.zeros((7, *u.shape), u.dtype).at[0].set(rate)
    rows = jnp.arange(1, 7), jnp.asarray(_NODES, u.dtype), jnp.asarray(_STAGES, u.dtype)
    (carry, rates, moved), _ = jax.lax.scan(stage, (carry, rates, u), rows)

    error = like(step, u) * jnp.tensordot(jnp.asarray(_ERROR, u.dtype), rates, 1)
    scaled = (error / (atol + rtol * jnp.maximum(jnp.abs(u), jnp.abs(moved)))).reshape(u.shape[0], -1)
    norm = jnp.sqrt(jnp.mean(scaled**2, axis=-1))
    accept = norm <= 1
    last = step >= angle - end
    landed = jnp.where(last, end, angle - step)
    # the usual controller for an error of fifth order in the step: a safety factor of 0.9, changes by at most 5
    factor = jnp.clip(0.9 * jnp.maximum(norm, 1e-10) ** -0.2, 0.2, 5.0)
    return _Flow(
        carry,
        jnp.where(accept, landed, angle),
        (step * factor).astype(step.dtype),
        jnp.where(like(accept, u), moved, u),
        jnp.where(like(accept, u), rates[-1], rate),
        attempts + 1,
    )


def _adaptive(rtol, atol, max_attempts, keys, memory, carry, evaluate, x, *, t, s, schedule):
    epsilon = float(jnp.finfo(x.dtype).eps)
    start, target = _angle(schedule, t), _angle(schedule, s)
    end = jnp.minimum(jnp.maximum(target, epsilon**0.5), start)
    u = x / like(_length(schedule, t), x)
    carry, rate = _rate(carry, evaluate, schedule, u, start)
    # the first step is a tenth of the way: the controller corrects a bad guess in a few attempts
    flow = _Flow(carry, start, 0.1 * (start - end), u, rate, jnp.zeros((), jnp.int32))

    def unfinished(flow):
        # where the network returns NaN the step size becomes NaN, too, and that sample is given up
        return jnp.any((flow.angle > end) & (flow.step > 0)) & (flow.attempts < max_attempts)

    flow = jax.lax.while_loop(unfinished, lambda flow: _attempt(rtol, atol, evaluate, schedule, end, flow), flow)
    u = jnp.where(like(flow.angle > end, x), jnp.nan, flow.u)

    def finish(carry):
        carry, guided, at = _evaluate_at_angle(carry, evaluate, schedule, u, end)
        return carry, ddim()(keys, u, guided, t=at, s=s, schedule=schedule)

    carry, x_s = where_needed(target < end, finish, flow.carry, (u * like(_length(schedule, s), u)).astype(x.dtype))
    return memory, carry, x_s
