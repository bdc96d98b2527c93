"""The two ways of data through the code, each read from top to bottom on a small mixture with known answers.

Sampling:  key, x_T, cond -> guide (branches -> omega -> rule) -> step -> ... -> x_0.
Learning:  (x0, cond) -> (s, t) -> particles x_t -> branches -> omega -> guided particles at s -> mismatch to fresh x_s
           -> gradient of the weight's parameters only -> optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from guidance import guides, learning, schedules, weights
from guidance.learning import Model, OneStep
from guidance.sampling import ddim, initial_noise, sample, uniform_grid
from guidance.truth import mixtures

SCHEDULE = schedules.rectified_flow()
# two classes on a line, at -2 and 2, with variance 1/4; label 2 is the null condition
DATA = mixtures.from_classes([[[-2.0]], [[2.0]]], 0.25)
EXACT = mixtures.denoise(DATA, SCHEDULE)


def test_the_way_through_sampling():
    n = 4000
    cond = jnp.arange(n) % 2
    start_key, step_key = jax.random.split(jax.random.key(0))

    grid = uniform_grid(50)  # times from 1 (noise) to 0 (data)
    x_1 = initial_noise(start_key, SCHEDULE, grid, (1,), jnp.arange(n))  # one key per sample id
    weight = weights.constant(1.0)  # how much: (*, t, s, cond) -> omega
    guide = guides.cfg(weight, DATA.null)  # rule + weight + branches
    step = ddim()  # one update x_t -> x_s

    run = jax.jit(lambda guide: sample(step_key, EXACT, guide, step, SCHEDULE, grid, x_1, cond))
    unguided, guided = run(guides.unguided()), run(guide)

    # omega = 0 follows the true law of each class: mean +-2, variance 1/4 (first-order steps: within 0.02)
    sign = np.where(np.asarray(cond) == 0, -1.0, 1.0)
    centred = np.asarray(unguided.x0[:, 0], np.float64) * sign
    assert abs(centred.mean() - 2.0) < 5 * 0.5 / n**0.5 + 0.02
    assert abs(centred.var() - 0.25) < 5 * 0.25 * (2 / n) ** 0.5 + 0.02
    # guidance pushes away from the other class and narrows the law, at twice the evaluations
    pushed = np.asarray(guided.x0[:, 0], np.float64) * sign
    assert pushed.mean() > centred.mean() + 0.1
    assert pushed.var() < centred.var()
    assert {branch: int(count) for branch, count in unguided.nfe.items()} == {"positive": 50}
    assert {branch: int(count) for branch, count in guided.nfe.items()} == {"positive": 50, "reference": 50}


def _attenuated(r, x, t, cond):
    """(1 - r) D_c + r D_u; the exact repair is omega = r/(1 - r)."""
    return (1 - r) * EXACT(x, t, cond) + r * EXACT(x, t, jnp.full_like(cond, DATA.null))


WELL_TRAINED, UNDER_TRAINED = Partial(_attenuated, 0.0), Partial(_attenuated, 0.5)


@jax.jit
def _learn(denoise):
    """Learns omega(s, t, c) for a frozen denoiser and returns the trained weight."""
    model = Model(denoise, SCHEDULE, DATA.null)
    net = weights.GuidanceNet(condition="label", num_classes=2, width=16, depth=2, time_width=8, cond_width=4)
    optimizer = optax.adam(0.01)

    def loss(params, key):
        data_key, loss_key = jax.random.split(key)
        x0, cond = mixtures.sample_joint(data_key, DATA, 128)  # true samples with their labels
        weight = weights.learned(net, params, SCHEDULE)  # the only thing that has parameters
        return learning.self_consistency(loss_key, model, weight, x0, cond, OneStep())  # one guided step against truth

    def body(carry, key):
        params, opt_state, _ = learning.update(key, optimizer, loss, *carry)
        return (params, opt_state), None

    params = net.init(jax.random.key(1), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=jnp.zeros(1, jnp.int32))
    keys = jax.random.split(jax.random.key(2), 150)
    (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), keys)
    return weights.learned(net, params, SCHEDULE, gap_min=OneStep().delta)


def test_the_way_through_learning():
    """An exact model needs no guidance; an under-trained one gets it, and its samples come closer to the data."""
    cond = jnp.arange(2000) % 2
    grid = uniform_grid(20)
    x_1 = initial_noise(jax.random.key(3), SCHEDULE, grid, (1,), jnp.arange(2000))

    @jax.jit
    def run(guide):
        return sample(jax.random.key(4), UNDER_TRAINED, guide, ddim(), SCHEDULE, grid, x_1, cond).x0

    def error(guide):
        """How far the means of the classes are from +-2, after sampling the under-trained model."""
        x0 = np.asarray(run(guide)[:, 0], np.float64)
        return abs(x0[1::2].mean() - x0[::2].mean() - 4.0) / 2

    t = jnp.linspace(0.6, 0.9, 7)
    exact, repaired = _learn(WELL_TRAINED), _learn(UNDER_TRAINED)
    omega_exact, omega_repaired = (
        float(jnp.mean(w(t=t, s=t - 0.1, cond=jnp.zeros(7, int)))) for w in (exact, repaired)
    )
    assert omega_exact < 0.15
    assert omega_repaired > 0.5  # a perfect repair would be 1
    learned_guide = guides.cfg(repaired, DATA.null)
    assert error(learned_guide) < 0.5 * error(guides.unguided())
