"""What learning_cost and memory measure: one update of the one-step objective, and one through the sampler.

Both are functions (denoise, params, opt_state, real, cond, key) -> (params, opt_state, figures) of the arguments that
`arguments` makes, for n conditions with m particles each: every denoising of all particles is 2 n m forwards.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import dits
from guidance import learning, predictions, sampling, schedules, weights
from guidance.learning.rollout import Rollout, rollout_loss
from guidance.learning.training import on_grid
from guidance.nets import flow_vit
from guidance.nets.dit import dit_denoiser
from guidance.types import Denoise, Schedule

CLASSES = 10
LABELS = jnp.arange(CLASSES)
NET, OPTIMIZER = weights.GuidanceNet(num_classes=CLASSES), optax.adam(1e-3)


class Model(NamedTuple):
    """A frozen denoiser on samples of `shape`; null: its null label."""

    denoise: Denoise
    schedule: Schedule
    shape: tuple[int, ...]
    null: int


def flow_model(net: flow_vit.FlowViT) -> Model:
    """A flow transformer on 28 x 28 images at its initial weights: the cost is the same."""
    schedule, shape = schedules.rectified_flow(), (28, 28, 1)
    variables = net.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return Model(predictions.as_denoise(net.apply, variables, "x0", schedule), schedule, shape, net.classes)


def dit_model(net, params) -> Model:
    """A DiT on latents; params: arrays, or their shapes where nothing is computed."""
    return Model(dit_denoiser(net, params), schedules.linear_vp(), dits.LATENT, net.classes)


def arguments(model: Model, n: int, m: int) -> tuple[Any, ...]:
    """(denoise, params, opt_state, real [n, m, ...], cond [n], key)."""
    params = NET.init(jax.random.key(2), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=jnp.zeros(1, jnp.int32))
    real = jax.random.uniform(jax.random.key(1), (n, m, *model.shape))
    return model.denoise, params, OPTIMIZER.init(params), real, jnp.arange(n) % CLASSES, jax.random.key(0)


def one_step(model: Model, m: int) -> Callable:
    """An update of self-consistency: one denoising of n m particles."""

    def loss(denoise, real, cond, params, key):
        weight = weights.learned(NET, params, model.schedule)
        frozen = learning.Model(denoise, model.schedule, model.null)
        return learning.self_consistency(key, frozen, weight, real[:, 0], cond, learning.OneStep(particles=m))

    return _update(loss)


def through_sampler(model: Model, m: int, steps: int, remat: str) -> Callable:
    """An update of the rollout objective on a grid of `steps`; with remat="segments" in sqrt(steps) segments."""
    grid = sampling.uniform_grid(steps)
    segments = math.isqrt(steps) if remat == "segments" else 1

    def loss(denoise, real, cond, params, key):
        weight = on_grid(weights.learned(NET, params, model.schedule), grid, LABELS, by_label=True)
        frozen = learning.Model(denoise, model.schedule, model.null)
        settings = Rollout(m, segments=segments, remat=remat)
        return rollout_loss(key, frozen, weight, sampling.ddim(), grid, real, cond, settings)

    return _update(loss)


def _update(loss) -> Callable:
    def update(denoise, params, opt_state, real, cond, key):
        return learning.update(key, OPTIMIZER, functools.partial(loss, denoise, real, cond), params, opt_state)

    return update
