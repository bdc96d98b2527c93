"""A problem whose every number is known by hand: what samplers, weights and seeds make of it can be worked out.

A sample has two coordinates. The first is what guidance moves: D_c = a + c + 1 for the labels c = 0 and 1 and D_u = a,
whatever x, with `a` the one parameter of the network. The last step of a sampler answers the guided prediction, so a
constant omega ends at a + (c + 1)(1 + omega). The second is x/2 at every label: it carries the noise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.problems import interface
from guidance import predictions, schedules

SCHEDULE, NULL = schedules.rectified_flow(), 2


def ends(a, omega):
    """The first coordinate of samples of both classes; omega a number or one for each class."""
    return a + np.array([1.0, 2.0]) * (1 + np.asarray(omega))


def apply(params, x, t, cond):
    """The x0-prediction."""
    del t
    level = params["a"] + jnp.where(cond == NULL, 0.0, cond + 1.0)
    return jnp.stack([level, x[:, 1] / 2], axis=-1)


def init(key):
    """`a` within [0, 1], from the key."""
    return {"a": jax.random.uniform(key, ())}


def error(samples):
    """Mean over the classes of (mean end - 2 (c + 1))^2: with a = 0 the best omega is 1."""
    return float(np.mean((np.asarray(samples)[..., 0].mean(1) - np.array([2.0, 4.0])) ** 2))


def excess(samples):
    """Mean over the classes of |mean end - 1.5 (c + 1)|: with a = 0 the best omega is 1/2."""
    return float(np.mean(np.abs(np.asarray(samples)[..., 0].mean(1) - np.array([1.5, 3.0]))))


class Measured:
    """An instrument that writes down what it was shown; its floor follows from the key."""

    def __init__(self):
        self.shown = []  # (key, samples, full)

    def measure(self, key, samples, full):
        self.shown.append((jax.random.key_data(key).tolist(), np.asarray(samples), full))
        values = {"error": error(samples), "excess": excess(samples)}
        return values | {"end": float(np.mean(np.asarray(samples)[..., 0]))} if full else values

    def floor(self, key, n, full):
        assert full
        error, excess = 0.1 * np.asarray(jax.random.uniform(key, (2,)), np.float64)
        return {"error": float(error), "excess": float(excess), "end": float(n)}


def draw(key, arrays, n):
    """Points of both classes, where a = 0 and omega = 1 end, with a little noise."""
    del arrays
    label_key, key = jax.random.split(key)
    cond = jax.random.randint(label_key, (n,), 0, 2)
    first = 2.0 * (cond + 1) + 0.1 * jax.random.normal(key, (n,))
    return jnp.stack([first, jnp.zeros(n)], axis=-1), cond


def real(key, arrays, k, conditions):
    del arrays
    first = 2.0 * (conditions[:, None] + 1) + 0.1 * jax.random.normal(key, (len(conditions), k))
    return jnp.stack([first, jnp.zeros_like(first)], axis=-1)


def problem(instrument: Measured) -> interface.Problem:
    return interface.Problem(
        "two numbers",
        interface.Model(
            SCHEDULE,
            (2,),
            conditions=jnp.arange(2),
            null=NULL,
            denoise=lambda params: predictions.as_denoise(apply, params, "x0", SCHEDULE),
            network=interface.Network(init, apply, "x0"),
        ),
        interface.Data(draw, real),
        interface.Instrument(
            instrument.measure, instrument.floor, ("error", "excess"), picture=lambda axes, samples: None
        ),
    )


SIGNS = jnp.asarray([[1.0], [-1.0], [0.0]])  # the last one: null's


def tree(labels):
    """A condition of two leaves: the label, and a sign that goes with it."""
    return {"label": jnp.asarray(labels), "sign": SIGNS[jnp.asarray(labels)]}


def by_tree(given: interface.Problem) -> interface.Problem:
    """The same problem whose conditions are trees; it answers NaN where the leaves of a row do not belong together."""
    model, data = given.model, given.data

    def apply_tree(params, x, t, cond):
        whole = cond["sign"] == SIGNS[cond["label"]]
        return jnp.where(whole, apply(params, x, t, cond["label"]), jnp.nan)

    def draw_tree(key, arrays, n):
        x0, labels = draw(key, arrays, n)
        return x0, tree(labels)

    return given._replace(
        model=model._replace(
            conditions=tree(model.conditions),
            null=tree(model.null),
            denoise=lambda params: predictions.as_denoise(apply_tree, params, "x0", SCHEDULE),
            network=interface.Network(init, apply_tree, "x0"),
        ),
        data=data._replace(
            draw=draw_tree, real=lambda key, arrays, k, conditions: real(key, arrays, k, conditions["label"])
        ),
    )
