"""How a weight is learned: from settings to network, loss and optimiser.

Said once for `guidance.fit`, the job `learn`, the leaderboard and the benchmarks, which differ in where true samples
are from and in what is written where.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from guidance import checks, sampling, weights
from guidance.conditions import are_labels, size, taken
from guidance.learning import one_step, rollout
from guidance.learning.model import Model
from guidance.learning.one_step import OneStep
from guidance.predictions import as_denoise
from guidance.times import within
from guidance.types import Array, Cond, Reward, Schedule, Solver, Step, Weight
from guidance.weights.learned import HEADS

ROLLOUT = "rollout"
OBJECTIVES = {  # of `learning`, by the names that recipes have for them
    "self_consistency": "self_consistency",
    "l2": "l2",
    "score_matching": "score_matching",
    "marginal": "marginal_consistency",
    "per_condition": "per_condition_consistency",
    "reward_only": "reward_only",
}


class Recipe(NamedTuple):
    """The settings of one weight that is learned; the defaults are those that won on the README's mixtures.

    objective: "rollout" trains through the sampler that will be used, and needs a denoiser that can be differentiated
        in x. The one-step objectives of `learning` do not: "self_consistency", "l2", "score_matching", "marginal",
        "per_condition", "reward_only".
    steps, step: the uniform grid and the step or solver that a rollout runs through.
    interval: (lo, hi], in t, outside of which the weight is 0, so that steps cost one evaluation; None: nowhere.
    features: the space [n, ...] -> [n, d] in which a rollout's samples are matched; None: their own.
    updates, learning_rate: of Adam, with gradients clipped to norm 1 and a rate that falls from its peak to 0 along a
        cosine. None is 5e-3 for a rollout, 1e-3 for one step.
    particles, real: samples, generated and true, of a rollout's update, for each condition. What a rollout keeps in
        memory grows with `particles`, with `steps` too unless `remat` is "steps" or "segments" (see `rollout`).
    groups: conditions of a rollout's update, drawn afresh; 0 for all.
    batch, one_step: data points of a one-step objective's update, and its other settings.
    reward, gamma: of self_consistency and l2, loss - gamma E[reward]; of reward_only.
    width, depth, embedding, head: of the guidance network; a "signed" head may learn weights below 0.
    """

    objective: str = ROLLOUT
    steps: int = 10
    step: Step | Solver = sampling.ddim()
    interval: tuple[float, float] | None = None
    features: Callable[[Array], Array] | None = None
    updates: int = 300
    learning_rate: float | None = None
    particles: int = 128
    real: int = 512
    groups: int = 0
    remat: str = "none"
    batch: int = 256
    one_step: OneStep = OneStep()
    reward: Reward | None = None
    gamma: float = 0.0
    width: int = 64
    depth: int = 6
    embedding: int = 32
    head: str = "nonnegative"

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-3 if self.objective == ROLLOUT else 1e-3


def check(recipe: Recipe) -> None:
    """Raises ValueError, in one line that names the field, for a recipe by which nothing can be learned."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"a Recipe belongs where {checks.words(recipe)} is, as in guidance.Recipe(steps=10)")
    for name in (*_COUNTS, "particles", "groups"):
        if not isinstance(getattr(recipe, name), numbers.Integral):
            raise ValueError(f"Recipe: {name} = {getattr(recipe, name)!r}; allowed: an integer")
    one, known = recipe.one_step, (ROLLOUT, *OBJECTIVES)
    rewarded = recipe.objective == "reward_only" or recipe.gamma > 0
    gamma_holds = recipe.gamma == 0 if recipe.objective == ROLLOUT else recipe.gamma >= 0
    for name, allowed, holds in (
        ("objective", " or ".join(known), recipe.objective in known),
        *((name, "at least 1", getattr(recipe, name) >= 1) for name in _COUNTS),
        ("particles", "at least 2", recipe.particles >= 2),
        ("groups", "at least 0", recipe.groups >= 0),
        ("learning_rate", "above 0 and finite", 0 < recipe.rate < math.inf),
        ("interval", "None, or two times lo < hi", recipe.interval is None or _is_pair(recipe.interval)),
        ("features", "None, or a function [n, ...] -> [n, d]", recipe.features is None or callable(recipe.features)),
        ("remat", " or ".join(rollout.REMAT), recipe.remat in rollout.REMAT),
        ("head", " or ".join(HEADS), recipe.head in HEADS),
        ("gamma", "at least 0, and 0 for a rollout", gamma_holds),
        ("reward", "a function (x0, cond), as the objective asks", callable(recipe.reward) or not rewarded),
        ("one_step", "s_min + delta + zeta below 1", one.s_min + one.delta + one.zeta < 1),
    ):
        if not holds:
            raise ValueError(f"Recipe: {name} = {getattr(recipe, name)!r}; allowed: {allowed}")
    guided_steps(np.linspace(1, 0, recipe.steps + 1), recipe.interval)


def _is_pair(interval) -> bool:
    return isinstance(interval, tuple | list) and len(interval) == 2 and interval[0] < interval[1]


_COUNTS = ("steps", "updates", "real", "batch", "width", "depth", "embedding")


class Truth(NamedTuple):
    """Where true samples are from.

    draw: (key, n) -> (x0 [n, ...], cond leaves [n, ...]).
    real: (key, k, some of the conditions, leaves [K, ...]) -> x0 [K, k, ...], k for each.
    """

    draw: Callable[[Array, int], tuple[Array, Cond]]
    real: Callable[[Array, int, Cond], Array]


def whole(model: Model) -> Model:
    """The model with a denoiser where a triple (apply, params, prediction) may stand; see `predictions.as_denoise`.

    Raises TypeError for what is no model.
    """
    if not isinstance(model, Model):
        raise TypeError(f"a Model(denoise, schedule, null) belongs where {checks.words(model)} is")
    checks.is_schedule(model.schedule)
    if isinstance(model.denoise, tuple) and len(model.denoise) == 3:
        model = model._replace(denoise=as_denoise(*model.denoise, model.schedule))
    checks.is_denoiser(model.denoise)
    return model


def apart(tree: Any) -> tuple[list, Callable[[list], Any]]:
    """(the arrays of a tree, arrays -> the tree): what is large is an argument of what is compiled, never a constant.

    Functions that are no pytrees stay in the tree; what they close over is compiled in.
    """
    leaves, structure = jax.tree.flatten(tree)
    are_arrays = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]

    def together(arrays):
        rest = iter(arrays)
        return structure.unflatten([next(rest) if own else leaf for leaf, own in zip(leaves, are_arrays, strict=True)])

    return [leaf for leaf, own in zip(leaves, are_arrays, strict=True) if own], together


# ---- the weight


def network(conditions: Cond, recipe: Recipe) -> weights.GuidanceNet:
    """The guidance network: of the label for labels 0 .. G - 1, of the numbers in any other condition."""
    labelled = are_labels(conditions)
    return weights.GuidanceNet(
        condition="label" if labelled else "features",
        num_classes=size(conditions) if labelled else 0,
        width=recipe.width,
        depth=recipe.depth,
        time_width=recipe.embedding,
        cond_width=recipe.embedding,
        head=recipe.head,
    )


def initial(key: Array, net: weights.GuidanceNet, conditions: Cond):
    """The first params of the network."""
    zero, one = jnp.zeros(1), taken(conditions, slice(1))
    return jax.jit(net.init)(key, log_snr_t=zero, log_snr_s=zero, cond=one)  # layer by layer it takes seconds


def weight_of(net: weights.GuidanceNet, schedule: Schedule, recipe: Recipe) -> Callable:
    """params -> the weight, clamped to where it is trained.

    Through a uniform grid of N steps that is the grid itself, half a step from its ends at most: no query of its inner
    steps is clamped, and a sampler with smaller steps gets the weight of the trained gap. For one step it is where
    `OneStep` draws.
    """
    steps, one = recipe.steps, recipe.one_step
    trained = one.s_min, 1 - one.zeta, one.delta
    if recipe.objective == ROLLOUT:
        trained = 0.5 / steps, 1 - 0.5 / steps, 0.999 / steps
    return functools.partial(_weight, net, schedule, *trained, recipe.interval)


def _weight(net, schedule, s_min, t_max, gap_min, interval, params):
    return weights.learned(net, params, schedule, s_min, t_max, gap_min, interval)


def optimizer(learning_rate: float, updates: int) -> optax.GradientTransformation:
    """What every guidance network is trained with."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, updates)))


# ---- losses


def loss(key: Array, model: Model, weight: Weight, truth: Truth, conditions: Cond, recipe: Recipe) -> Array:
    """The loss of one update of the weight for G conditions, leaves [G, ...], whose values are known."""
    of = _rollout if recipe.objective == ROLLOUT else _one_step
    return of(key, model, weight, truth, conditions, recipe)


def _rollout(key, model, weight, truth, conditions, recipe) -> Array:
    with jax.ensure_compile_time_eval():
        grid = sampling.uniform_grid(recipe.steps)
        unguided = int(np.argmax(guided_steps(grid, recipe.interval)))  # steps before the first guided one
    data_key, roll_key, *rest = jax.random.split(key, 3 if recipe.groups else 2)
    among = drawn(rest[0], conditions, recipe.groups) if rest else conditions
    table = on_grid(weight, grid, among, of_all=among is conditions and are_labels(conditions))
    real = truth.real(data_key, recipe.real, among)
    settings = rollout.Rollout(
        recipe.particles,
        segments=segments(recipe.steps - unguided) if recipe.remat == "segments" else 1,
        remat=recipe.remat,
        detached=unguided,
        features=recipe.features,
    )
    return rollout.rollout_loss(roll_key, model, table, recipe.step, grid, real, among, settings)


def on_grid(weight: Weight, grid: Array, conditions: Cond, of_all: bool) -> Weight:
    """The same weight on a grid, asked once for each step and condition.

    of_all: the conditions are the labels 0 .. G - 1; else the column of a condition is looked up.
    """
    return weights.table(grid, weights.tabulated(weight, grid, conditions), None if of_all else conditions)


def drawn(key: Array, conditions: Cond, count: int) -> Cond:
    """`count` of the conditions in their order, every such subset as likely; all of them where they are not more.

    A mean over the subset is an unbiased estimate of the mean over all.
    """
    if count >= size(conditions):
        return conditions
    return taken(conditions, jnp.sort(jax.random.permutation(key, size(conditions))[:count]))


def guided_steps(grid: Array | np.ndarray, interval: tuple[float, float] | None) -> np.ndarray:
    """Which steps of a grid start within the interval, [steps]; all for None. Raises ValueError where none does."""
    starts = np.asarray(grid[:-1])
    if interval is None:
        return np.ones(starts.shape, bool)
    inside = within(starts, *interval)
    if not inside.any():
        raise ValueError(f"no step of {len(starts)} starts within ({interval[0]:g}, {interval[1]:g}]")
    return inside


def segments(steps: int) -> int:
    """The divisor of `steps` nearest to its square root."""
    return min((d for d in range(1, steps + 1) if steps % d == 0), key=lambda d: abs(d - steps**0.5))


def _one_step(key, model, weight, truth, conditions, recipe) -> Array:
    data_key, key = jax.random.split(key)
    objective, settings = getattr(one_step, OBJECTIVES[recipe.objective]), recipe.one_step
    if recipe.objective == "per_condition":
        each = 2 * max(1, recipe.batch * settings.particles // (2 * size(conditions)))
        return objective(key, model, weight, truth.real(data_key, each, conditions), conditions, settings)
    x0, cond = truth.draw(data_key, recipe.batch)
    if recipe.objective in ("self_consistency", "l2"):
        reward = recipe.reward if recipe.gamma > 0 else None
        return objective(key, model, weight, x0, cond, settings, recipe.gamma, reward)
    if recipe.objective == "reward_only":
        return objective(key, model, weight, x0, cond, settings, recipe.reward)
    return objective(key, model, weight, x0, cond, settings)
