"""The guidance-matched loss: it trains a denoiser at the guidance weight at which the denoiser will be sampled."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.conditions import is_null
from guidance.shapes import like, null_like, row_dot
from guidance.types import Array, Cond


def guidance_matched_loss(
    predict: Callable[[Array, Array, Cond], Array], x: Array, t: Array, cond: Cond, null: Cond, target: Array, omega
) -> Array:
    """Returns E|(1 + omega) f(x, t, c) - omega sg[f(x, t, null)] - target|^2, a scalar; sg stops the gradient.

    predict: the network f as (x, t, cond) -> one of the five predictions; CFG has the same form in all of them. target
    is the true value of that prediction. x, target [n, ...], t [n], cond leaves [n, ...], null without batch axis.
    Rows with the null condition get the plain loss and alone teach f(., null), which becomes E[target|x]. Then the
    minimum is

        f(., c) = (E[target|x,c] + omega E[target|x])/(1 + omega)

    so CFG at omega predicts E[target|x,c]: it does not sharpen. CFG at another weight w acts as an ordinary model does
    at the scale (1 + w)/(1 + omega). omega = 0 is the plain loss. Costs 2 evaluations per row, one differentiated.
    Source: our reading of Bridging the Gap: Addressing Discrepancies in Diffusion Model Training for Classifier-Free
    Guidance, arXiv 2311.00938, whose loss we did not find. The stopped gradient is our choice.
    """
    positive = predict(x, t, cond)
    reference = jax.lax.stop_gradient(predict(x, t, null_like(cond, null)))
    dropped = like(is_null(cond, null), x)
    guided = positive + omega * jnp.where(dropped, 0, positive - reference)
    return jnp.mean(row_dot(guided - target, guided - target))
