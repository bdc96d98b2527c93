"""Guidance-matched CFG loss: the denoiser is trained at the weight at which it will be sampled."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.conditions import is_null
from guidance.shapes import like, null_like, row_dot
from guidance.types import Array, Cond


def guidance_matched_loss(
    predict: Callable[[Array, Array, Cond], Array], x: Array, t: Array, cond: Cond, null: Cond, target: Array, omega
) -> Array:
    """E|(1 + omega) f(x, t, c) - omega sg[f(x, t, null)] - target|^2, in the network's own prediction.

    predict: (x, t, cond) -> any of the five predictions, CFG being the same in all; target is the true one. Rows whose
    condition was dropped have the plain loss, so that f(., null) learns the unconditional expectation; sg, the stopped
    gradient, leaves it to them (without it the two heads are not identified). Then the minimiser is

        f(., c) = (E[target|x,c] + omega E[target|x])/(1 + omega)

    and guided sampling at omega predicts the true conditional: no sharpening; sampling at another weight has the ratio
    of the scales for its scale. omega = 0 is the plain loss. x, target [n, ...]; cond leaves [n, ...]; 2 evaluations.
    Our reading of Bridging the Gap: Addressing Discrepancies in Diffusion Model Training for Classifier-Free Guidance,
    arXiv 2311.00938, whose loss we did not find; the stopped gradient is our choice.
    """
    positive = predict(x, t, cond)
    reference = jax.lax.stop_gradient(predict(x, t, null_like(cond, null)))
    dropped = like(is_null(cond, null), x)
    guided = positive + omega * jnp.where(dropped, 0, positive - reference)
    return jnp.mean(row_dot(guided - target, guided - target))
