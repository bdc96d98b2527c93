"""Every public function under jax's transformations: jit and vmap change no number, gradients are finite.

Each case is (function of arrays, example arrays with a batch axis first). Functions with randomness hold their key.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, learning, predictions, rules, schedules, weights
from guidance.learning import Model, OneStep, mismatch
from guidance.learning.rollout import Rollout, rollout_loss
from guidance.sampling import (
    churned_ddim,
    ddim,
    edm_grid,
    initial_noise,
    log_snr_grid,
    sample,
    transition,
    uniform_grid,
)
from guidance.shapes import like, normal_like, null_like, row_dot
from guidance.truth import mixtures
from guidance.types import Guided
from tests import oracles

COSINE, RF = schedules.cosine(), schedules.rectified_flow()
BATCH = 4
LABELS = jnp.arange(BATCH)


def _toy():
    toy = oracles.toy2()
    return mixtures.denoise(toy, RF), toy.null


def _array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, Y = _array(0, BATCH, 2), _array(1, BATCH, 2)
T, S = jnp.asarray([0.3, 0.5, 0.7, 0.9]), jnp.asarray([0.2, 0.1, 0.6, 0.4])
OMEGA = jnp.asarray([0.5, 1.0, 0.0, 2.0])
NET = weights.GuidanceNet(condition="label", num_classes=4, width=8, depth=2, time_width=4, cond_width=4)


def _net_params():
    return NET.init(jax.random.key(0), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=jnp.zeros(1, jnp.int32))


def _learned(s, t):
    return weights.learned(NET, _net_params(), COSINE, gap_min=0.1)(t=t, s=s, cond=LABELS)


def _guided(guide):
    denoise, _ = _toy()

    def apply(x, t, s):
        out = guide.apply(guide.init(x), denoise, RF, x, t=t, s=s, cond=LABELS)[1]
        return out.x0, out.eps

    return apply


def _cfg(omega, skip=False):
    return guides.cfg(weights.constant(omega), _toy()[1], skip)


def _step(step):
    def apply(x, x0, eps, t, s):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(BATCH))
        return step(keys, x, Guided(x0, eps, {}), t=t, s=s, schedule=RF)

    return apply


def _sampled(x, omega):
    denoise, null = _toy()
    guide = guides.cfg(weights.constant(omega), null, skip=False)
    return sample(jax.random.key(0), denoise, guide, churned_ddim(0.5), RF, uniform_grid(3, 0.9), x, LABELS).x0


def _objective(function, **knobs):
    def loss(x0, omega):
        model = Model(*_toy()[:1], RF, _toy()[1])
        return function(jax.random.key(0), model, weights.constant(omega), x0, LABELS, OneStep(particles=2), **knobs)

    return loss


def _per_condition(x0, omega):
    real = jnp.stack([x0, x0 + 0.1, x0 - 0.1, 2 * x0], axis=1)
    return _objective(learning.per_condition_consistency)(real, omega)


def _rollout(real, omega):
    denoise, null = _toy()
    model, real = Model(denoise, RF, null), jnp.stack([real, real + 0.1], axis=1)
    settings = Rollout(2, segments=2, path_weight=0.5)
    return rollout_loss(
        jax.random.key(0), model, weights.constant(omega), ddim(), uniform_grid(4, 0.9), real, LABELS, settings
    )


def _update(a):
    import optax

    optimizer = optax.adam(0.1)
    return learning.update(
        jax.random.key(0), optimizer, lambda p, key: jnp.sum((p - a) ** 2), a * 0, optimizer.init(a)
    )


CASES = {
    "like": (lambda t, x: like(t, x) * x, (T, X)),
    "row_dot": (row_dot, (X, Y)),
    "null_like": (lambda x: null_like(x, 3.0), (X,)),
    "normal_like": (lambda x: normal_like(jax.random.split(jax.random.key(0), BATCH), x), (X,)),
    "diffuse": (lambda x, y, t: schedules.diffuse(COSINE, x, y, t), (X, Y, T)),
    "noise_level": (lambda t: schedules.noise_level(COSINE, t), (T,)),
    "eps_from_x0": (lambda x, y, t: predictions.eps_from_x0(COSINE, x, y, t), (X, Y, T)),
    "transition": (lambda s, t: transition(COSINE, t=t, s=s, churn=0.5), (S, T)),
    "ddim": (_step(ddim()), (X, Y, X + 1, T, S)),
    "churned_ddim": (_step(churned_ddim(0.5)), (X, Y, X + 1, T, S)),
    "cfg": (rules.cfg, (X, Y, OMEGA)),
    "unguided rule": (rules.unguided, (X, Y, OMEGA)),
    "constant": (lambda s, t: weights.constant(2.0)(t=t, s=s, cond=LABELS), (S, T)),
    "interval": (lambda s, t: weights.interval(2.0, 0.4, 0.8)(t=t, s=s, cond=LABELS), (S, T)),
    "clamp_linear": (lambda s, t: weights.clamp_linear(2.0, 1.0)(t=t, s=s, cond=LABELS), (S, T)),
    "table": (
        lambda s, t: weights.table(uniform_grid(4), jnp.arange(16.0).reshape(4, 4))(t=t, s=s, cond=LABELS),
        (S, T),
    ),
    "times_of_noise_level": (lambda t: weights.times_of_noise_level(COSINE, t), (T,)),
    "times_of_log_snr": (lambda t: weights.times_of_log_snr(COSINE, t), (T,)),
    "learned": (_learned, (S, T)),
    "guided": (_guided(_cfg(1.5)), (X, T, S)),
    "unguided": (_guided(guides.unguided()), (X, T, S)),
    "sample": (_sampled, (X, jnp.float32(1.0))),
    "particle_mismatch": (lambda x, y: mismatch.particle_mismatch(x, y, 1.5, 1.0), (X, Y)),
    "grouped_mismatch": (lambda x, y: mismatch.grouped_mismatch(x[None], y[None], 1.0, 1.0), (X, Y)),
    "energy_offset": (lambda x: mismatch.energy_offset(x[None], 1.0), (X,)),
    "self_consistency": (
        _objective(learning.self_consistency, gamma=0.3, reward=lambda x0, cond: row_dot(x0, x0)),
        (X, jnp.float32(0.5)),
    ),
    "score_matching": (_objective(learning.score_matching), (X, jnp.float32(0.5))),
    "marginal_consistency": (_objective(learning.marginal_consistency), (X, jnp.float32(0.5))),
    "per_condition_consistency": (_per_condition, (X, jnp.float32(0.5))),
    "rollout_loss": (_rollout, (X, jnp.float32(0.5))),
    "update": (_update, (X,)),
}
for _kind in predictions.PREDICTIONS:
    CASES[f"x0_from {_kind}"] = (lambda x, y, t, k=_kind: predictions.x0_from(k, COSINE, x, y, t), (X, Y, T))
    CASES[f"x0_to {_kind}"] = (lambda x, y, t, k=_kind: predictions.x0_to(k, COSINE, x, y, t), (X, Y, T))
for _name, _make in schedules.SCHEDULES.items():
    CASES[f"schedule {_name}"] = (lambda t, m=_make: tuple(f(t) for f in m()), (T,))

# losses that take a mean with a fixed key, and functions whose labels or keys are bound to the batch size, are mapped
# over a new outer axis; that axis stands for seeds, hyper-parameters or devices
every_case = pytest.mark.parametrize("name", list(CASES))
# eager execution compiles every primitive on its own, which takes long for whole samplers: those run under jit only
COMPOSITES = [
    "guided", "unguided", "sample", "rollout_loss", "per_condition_consistency", "marginal_consistency",
    "self_consistency", "score_matching", "learned",
]  # fmt: skip


def _stacked(arguments):
    """Two versions of the arguments, stacked on a new outer axis."""
    return tuple(jnp.stack([a, 0.9 * a + 0.01]) for a in arguments)


def _unstacked(arguments, i):
    return tuple(a[i] for a in arguments)


@pytest.mark.parametrize("name", [name for name in CASES if name not in COMPOSITES])
def test_jit_changes_no_number(name):
    function, arguments = CASES[name]
    chex.assert_trees_all_close(jax.jit(function)(*arguments), function(*arguments), rtol=2e-5, atol=2e-5)


@pytest.mark.key_reuse  # recomputation draws the same noise again; and a vmapped lax.map over keys trips the checker
@every_case
def test_gradients_are_finite_and_vmap_equals_a_loop(name):
    """Gradients with respect to every argument, of a sum of bounded functions of all outputs."""
    function, arguments = CASES[name]

    def total(*arguments):
        out = function(*arguments)
        leaves = [a for a in jax.tree.leaves(out) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(a)) for a in leaves), out

    both = jax.grad(total, argnums=tuple(range(len(arguments))), has_aux=True)
    stacked, compiled = _stacked(arguments), jax.jit(both)
    loop = [compiled(*_unstacked(stacked, i)) for i in range(2)]
    chex.assert_tree_all_finite(loop)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    chex.assert_trees_all_close(jax.jit(jax.vmap(both))(*stacked), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices; tests/conftest.py asks for them")
@pytest.mark.parametrize("name", ["cfg", "churned_ddim", "sample", "self_consistency"])
def test_pmap_equals_a_loop(name):
    """As legacy users call it: one replica a device, a leading axis of devices."""
    function, arguments = CASES[name]
    stacked, compiled = _stacked(arguments), jax.jit(function)
    got = jax.pmap(function, devices=jax.local_devices()[:2])(*stacked)
    expected = [compiled(*_unstacked(stacked, i)) for i in range(2)]
    for i in range(2):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], got), expected[i], rtol=5e-5, atol=5e-5)


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices; tests/conftest.py asks for them")
def test_a_sharded_batch_gives_the_same_samples():
    """jit with a NamedSharding over the batch: the samples do not know on how many devices they were made."""
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.local_devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    run = jax.jit(_sampled)
    chex.assert_trees_all_close(run(jax.device_put(X, sharding), 1.0), run(X, 1.0), atol=1e-6)


def test_skipping_guide_under_jit_and_grad():
    """The `lax.cond` of a skipped branch is differentiable with respect to x, on both of its sides."""
    for omega in (0.0, 1.5):
        apply = _guided(_cfg(omega, skip=True))
        total = lambda x: jnp.sum(jnp.sin(apply(x, T, S)[0]))  # noqa: E731, B023
        full = lambda x: jnp.sum(jnp.sin(_guided(_cfg(omega))(x, T, S)[0]))  # noqa: E731, B023
        got, expected = (jax.jit(jax.grad(f))(X) for f in (total, full))
        chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [uniform_grid, lambda n: log_snr_grid(COSINE, n), lambda n: edm_grid(COSINE, n)])
def test_grids_under_jit(grid):
    chex.assert_trees_all_close(jax.jit(grid, static_argnums=0)(5), grid(5), rtol=1e-5)


def test_initial_noise_under_jit():
    run = lambda ids: initial_noise(jax.random.key(0), COSINE, uniform_grid(2), (2,), ids)  # noqa: E731
    chex.assert_trees_all_close(jax.jit(run)(LABELS), run(LABELS), rtol=1e-5)


def test_rollout_trains_under_jit():
    """value_and_grad of the rollout loss with respect to a whole network is finite and not zero."""
    denoise, null = _toy()
    real = jnp.stack([X, X + 0.1], axis=1)

    def loss(params):
        model, weight = Model(denoise, RF, null), weights.learned(NET, params, RF)
        return rollout_loss(jax.random.key(0), model, weight, ddim(), uniform_grid(4), real, LABELS, Rollout(2))

    value, gradient = jax.jit(jax.value_and_grad(loss))(_net_params())
    chex.assert_tree_all_finite((value, gradient))
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) > 0
