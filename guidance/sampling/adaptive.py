"""An adaptive Runge-Kutta solver of the guided probability-flow ODE: reference truth, not a fast sampler.

The ODE is integrated in the angle theta = atan2(sigma, alpha) for u = x/sqrt(alpha^2 + sigma^2), where it is the same,
and bounded, for every schedule:

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

# Dormand and Prince, "A family of embedded Runge-Kutta formulae" (1980), RK5(4)7M. The last row is the 5th-order
# solution, and the first stage of the next step.
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
    """Where each sample is: the guide's carry, angle and next step [batch], state, its rate, attempts so far."""

    carry: State
    angle: Array
    step: Array
    u: Array
    rate: Array
    attempts: Array


@not_by_name("its evaluations are counted for a batch, not for a sample")
@ranged
def adaptive(rtol: NonNegative = 1e-6, atol: NonNegative = 1e-6, max_attempts: Count = 10_000) -> Solver:
    """Dormand-Prince 5(4) with step control per sample: integrates from t to s to the given tolerances.

    A step is accepted when the root mean square over the sample of error/(atol + rtol |u|) is at most 1; so a sample
    does not depend on its batch. Works as any solver, also on grids of one step, with any guide; a weight is asked for
    steps of no length, omega(t, t). A target sigma_s = 0 is approached to the angle sqrt(machine epsilon), the rest is
    one DDIM step, of relative error machine epsilon. Samples that have not arrived after `max_attempts`, or met a NaN,
    are NaN.
    Evaluations: 1 + 6 an attempt (rejected ones included, until the last sample has arrived) and 1 for the last step,
    counted for the batch. Guides with state see rejected evaluations too. Forward-mode derivatives only.
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


def _ask(carry, evaluate, schedule, u, angle) -> tuple[State, Guided, Array]:
    t = _time(schedule, angle)
    carry, guided = evaluate(carry, u * like(_length(schedule, t), u), t=t, s=t)
    return carry, guided, t


def _rate(carry, evaluate, schedule, u, angle) -> tuple[State, Array]:
    carry, guided, _ = _ask(carry, evaluate, schedule, u, angle)
    return carry, (like(jnp.cos(angle), u) * guided.eps - like(jnp.sin(angle), u) * guided.x0).astype(u.dtype)


def _attempt(rtol, atol, evaluate, schedule, end, flow: _Flow) -> _Flow:
    """One trial step of every sample that has not arrived."""
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
    # the usual controller: the error is of fifth order in the step; safety .9, changes by at most 5
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
    # a tenth of the way: the controller corrects a bad first guess in a few attempts
    flow = _Flow(carry, start, 0.1 * (start - end), u, rate, jnp.zeros((), jnp.int32))

    def unfinished(flow):
        # a step that is NaN, where the network is, cannot be controlled any more
        return jnp.any((flow.angle > end) & (flow.step > 0)) & (flow.attempts < max_attempts)

    flow = jax.lax.while_loop(unfinished, lambda flow: _attempt(rtol, atol, evaluate, schedule, end, flow), flow)
    u = jnp.where(like(flow.angle > end, x), jnp.nan, flow.u)

    def finish(carry):
        carry, guided, at = _ask(carry, evaluate, schedule, u, end)
        return carry, ddim()(keys, u, guided, t=at, s=s, schedule=schedule)

    carry, x_s = where_needed(target < end, finish, flow.carry, (u * like(_length(schedule, s), u)).astype(x.dtype))
    return memory, carry, x_s
