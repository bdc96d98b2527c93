"""The problems of the leaderboard: mixtures, each with a model whose error has one known cause."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from guidance import learning, predictions, schedules
from guidance.nets.mlp import DenoiserMLP
from guidance.truth import mixtures, model_errors
from guidance.truth.mixtures import Mixture
from guidance.types import Array, Denoise

SCHEDULE = schedules.rectified_flow()
GUIDED = 2  # the conditions that are sampled: classes 0 and 1


class Model(NamedTuple):
    """A denoiser of a mixture with errors: the mixture that it believes in, attenuation rho and blur h."""

    belief: Mixture
    rho: Array
    blur: Array


class Group(NamedTuple):
    """Problems of one structure, stacked along a leading axis, so that they compile together."""

    names: tuple[str, ...]
    truth: Mixture
    model: object
    denoise: object  # model -> Denoise, for one problem of the stack


def closed_form(model: Model) -> Denoise:
    """Returns the denoiser of the belief, blurred and attenuated; it is exact for rho = h = 0."""
    exact = model_errors.smoothed(mixtures.denoise(model.belief, SCHEDULE), SCHEDULE, model.blur)
    return model_errors.attenuated(exact, model.rho, model.belief.null)


def groups(key: Array, base_steps: tuple[int, int]) -> list[Group]:
    """Returns all problems. Two have small networks, which it trains for base_steps[0] and base_steps[1] updates."""
    return [plane(key), _many_classes(), _high_dimension(), _networks(jax.random.fold_in(key, 1), base_steps)]


def plane(key) -> Group:
    """Returns problems of two classes of two modes each in the plane, with one effect each."""
    ring = [[[2.0, 0.0], [0.0, 2.0]], [[-2.0, 0.0], [0.0, -2.0]]]
    close = [[[0.6, 0.0], [0.0, 1.8]], [[-0.6, 0.0], [0.0, -1.8]]]
    inside = [[[0.4, 0.0], [-0.4, 0.3]], [[2.5, 0.0], [-2.5, 0.0]]]
    wide, even = np.full((2, 2, 2), 0.15), [[0.6, 0.4], [0.6, 0.4]]
    long = np.asarray([[[1.2, 0.05], [0.05, 1.2]]] * 2)
    cases = {
        "well trained": (ring, wide, even, 0.0, 0.0, 0.0),
        "attenuated": (ring, wide, even, 0.5, 0.0, 0.0),
        "blurred": (ring, wide, even, 0.0, 0.35, 0.0),
        "wrong modes": (ring, wide, even, 0.0, 0.0, 0.25),
        "unbalanced modes": (ring, wide, [[0.9, 0.1], [0.9, 0.1]], 0.5, 0.0, 0.0),
        "close classes": (close, wide, even, 0.5, 0.0, 0.0),
        "anisotropic modes": (ring, long, even, 0.5, 0.0, 0.0),
        "class inside": (inside, wide / 2, even, 0.5, 0.0, 0.0),
    }
    truths, models = [], []
    for i, (means, variances, weights, rho, blur, shift) in enumerate(cases.values()):
        truth = mixtures.from_classes(means, variances, weights)
        belief = model_errors.perturbed(jax.random.fold_in(key, i), truth, shift, 2 * shift)
        truths.append(truth)
        models.append(Model(belief, jnp.float32(rho), jnp.float32(blur)))
    return Group(tuple(cases), _stacked(truths), _stacked(models), closed_form)


def _many_classes() -> Group:
    angles = 2 * np.pi * np.arange(10) / 10
    truth = mixtures.from_classes(3 * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None], 0.15)
    return _attenuated("ten classes", truth)


def _high_dimension() -> Group:
    corners = 4 * np.eye(64)[:4]
    truth = mixtures.from_classes((corners - corners.mean(0))[:, None], 1.0)
    return _attenuated("64 dimensions", truth)


def _attenuated(name, truth) -> Group:
    return Group((name,), _stacked([truth]), _stacked([Model(truth, jnp.float32(0.5), jnp.float32(0))]), closed_form)


def _networks(key, base_steps) -> Group:
    """Trains a small network on the ring for too short a time, and for longer."""
    truth = mixtures.from_classes([[[2.0, 0.0], [0.0, 2.0]], [[-2.0, 0.0], [0.0, -2.0]]], 0.15, [[0.6, 0.4]] * 2)
    net = DenoiserMLP(2, 64, 3)
    params, optimizer = net.init(key, jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32)), optax.adam(1e-3)

    def loss(params, key):
        data, noise, time, drop = jax.random.split(key, 4)
        x0, cond = mixtures.sample_joint(data, truth, 256)
        eps, t = jax.random.normal(noise, x0.shape), jax.random.uniform(time, (256,))
        cond = jnp.where(jax.random.uniform(drop, (256,)) < 0.1, truth.null, cond)
        out = net.apply(params, (1 - t)[:, None] * x0 + t[:, None] * eps, t, cond)
        return jnp.mean((out - (eps - x0)) ** 2)

    run = jax.jit(lambda keys, *state: learning.updates(keys, optimizer, loss, *state))
    trained, state, done = [], (params, optimizer.init(params)), 0
    for steps in base_steps:
        state = run(jax.random.split(jax.random.fold_in(key, steps), steps - done), *state)
        done = steps
        trained.append(state[0])
    denoise = Partial(predictions.as_denoise, net.apply, kind="velocity", schedule=SCHEDULE)
    return Group(("under-trained network", "trained network"), _stacked([truth] * 2), _stacked(trained), denoise)


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
