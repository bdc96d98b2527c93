"""CFG as a predictor-corrector: a conditional step, then Langevin steps on a sharper density.

In the limit of small steps the SDE with the CFG score is a conditional DDIM step followed by one Langevin step on the
power density p_c^(1 + 2 omega) p_u^(-2 omega). With more Langevin steps the samples approach the power density.
"""

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.guides import both_branches
from guidance.guides.two import as_guided, prediction_of
from guidance.predictions import x0_to
from guidance.rules import cfg
from guidance.sampling import Sampled, ddim
from guidance.sampling.sample import step_inputs
from guidance.shapes import as_state, like, normal_like, row_keys, safe_sqrt, with_dtypes_of
from guidance.types import Array, Cond, Denoise, Schedule, Step, Weight


def langevin(keys: Array, x: Array, score: Array, size: Array) -> Array:
    """Takes one unadjusted Langevin step, x + (size/2) score + sqrt(size) z, for x, score [batch, ...].

    keys [batch], size >= 0 [batch].
    """
    return x + like(size / 2, x) * score + like(safe_sqrt(size), x) * normal_like(keys, x)


def predict(
    keys: Array, denoise: Denoise, step: Step, schedule: Schedule, x: Array, *, t: Array, s: Array, cond: Cond
):
    """Takes the predictor step, an unguided conditional step from t to s; keys, t, s [batch]. Costs 1 evaluation."""
    guided = as_guided(schedule, x, prediction_of(denoise, x, t, cond), t, {})
    return step(keys, x, guided, t=t, s=s, schedule=schedule)


def correct(
    keys: Array,
    denoise: Denoise,
    weight: Weight,
    null: Cond,
    schedule: Schedule,
    x: Array,
    *,
    t: Array,
    s: Array,
    cond: Cond,
    size=1.0,
) -> Array:
    """Takes the corrector step, one Langevin step at s on the power density of weight 2 omega; x [batch, ...] at s.

        x += (h/2) [(1 + 2 omega) s_c - 2 omega s_u] + sqrt(h) z,   h = size alpha_s^2 (rho_t^2 - rho_s^2)

    With size = 1 predictor and corrector together approach the SDE of CFG with the weight omega as steps get smaller.
    Our choice: h is at most sigma_s^2, since rho is infinite at pure noise and longer Langevin steps may diverge. At
    s = 0 nothing is done. Costs 2 evaluations. Source: Classifier-Free Guidance is a Predictor-Corrector, arXiv
    2408.09000 (its gamma is 1 + omega, its gamma' = 2 gamma - 1 is 1 + 2 omega).
    """
    omega = weight(t=t, s=s, cond=cond)
    positive, reference = both_branches(denoise, x, s, cond, null)
    score = x0_to("score", schedule, x, cfg(positive, reference, 2 * omega), s)
    sigma = schedule.sigma(s)
    # alpha_s^2 (rho_t^2 - rho_s^2) = sigma_s^2 (rho_t^2/rho_s^2 - 1); the exponent is bounded for finite gradients
    growth = jnp.expm1(jnp.minimum(schedule.log_snr(s) - schedule.log_snr(t), 60.0))
    return langevin(keys, x, score, jnp.where(sigma > 0, sigma**2 * jnp.minimum(size * growth, 1), 0))


def predictor_corrector(
    key: Array,
    denoise: Denoise,
    weight: Weight,
    null: Cond,
    schedule: Schedule,
    grid: Array,
    x: Array,
    cond: Cond,
    *,
    corrections: int = 1,
    size=1.0,
    step: Step | None = None,
    ids: Array | None = None,
) -> Sampled:
    """Samples by one `predict` and then `corrections` times `correct` on every step of the grid.

    x [batch, ...] at grid[0], cond leaves [batch, ...]. step: the step of the predictor, by default ddim. One
    correction approximates the SDE of CFG; without any the samples are unguided. A sample depends on its id, by
    default its row number, and not on its batch. Evaluations per step: positive 1 + corrections, reference
    corrections, also on a step to s = 0, where corrections have no effect. Source: arXiv 2408.09000.
    """
    checks.beginning(key, schedule, grid, x, cond)
    checks.is_weight(weight)
    step, denoise = ddim() if step is None else step, checks.watched(denoise)
    checks.is_step(step)
    ids = jnp.arange(x.shape[0]) if ids is None else ids
    keys = row_keys(key, ids)

    def body(x, inputs):
        i, t, s = inputs
        t, s = jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s)
        step_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, i), 1 + corrections))(keys)
        after = predict(step_keys[:, 0], denoise, step, schedule, x, t=t, s=s, cond=cond)
        for j in range(corrections):
            after = correct(
                step_keys[:, 1 + j], denoise, weight, null, schedule, after, t=t, s=s, cond=cond, size=size
            )
        return with_dtypes_of(after, x), None

    x, _ = jax.lax.scan(body, as_state(x), step_inputs(grid))
    steps = grid.shape[0] - 1
    counts = {"positive": steps * (1 + corrections), "reference": steps * corrections}
    return Sampled(x, {branch: jnp.asarray(n, jnp.int32) for branch, n in counts.items()}, None)
