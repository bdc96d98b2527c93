"""What a `Recipe` means: the guidance network, the loss and the optimiser of a weight that is learned.

`guidance.fit`, the job `learn`, the leaderboard and the benchmarks all train with these functions. They differ in
where true samples come from and in which files they write.
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
OBJECTIVES = {  # a recipe's name for a one-step objective -> its function in `one_step`
    "self_consistency": "self_consistency",
    "l2": "l2",
    "score_matching": "score_matching",
    "marginal": "marginal_consistency",
    "per_condition": "per_condition_consistency",
    "reward_only": "reward_only",
}


class Recipe(NamedTuple):
    """The settings of one learned weight; the defaults are those that won on the README's mixtures.

    objective: "rollout" trains through the sampler; its denoiser must be differentiable in x. The one-step objectives
        need no gradient of the denoiser: "self_consistency", "l2", "score_matching", "marginal", "per_condition",
        "reward_only".
    steps, step: the number of steps of the uniform grid, and the step or solver, that a rollout runs through.
    interval: (lo, hi). The weight is 0 unless lo < t <= hi, where a step costs one evaluation. None: no such limit.
    features: a function [n, ...] -> [n, d]. A rollout compares samples in its space. None: in the samples' own space.
    updates, learning_rate: the number of updates of Adam and the peak of its rate, which falls to 0 along a cosine;
        gradients are clipped to norm 1. None is 5e-3 for a rollout and 1e-3 for a one-step objective.
    particles, real: the generated and the true samples per condition in one update of a rollout. Memory grows with
        `particles`, and with `steps` unless `remat` is "steps" or "segments" (see `learning.rollout`).
    groups: the number of conditions drawn for one update of a rollout; 0 takes all of them.
    batch, one_step: the number of true samples in one update of a one-step objective, and its other settings.
    reward, gamma: self_consistency and l2 subtract gamma E[reward] from their loss; reward_only uses the reward alone.
    width, depth, embedding, head: the sizes and the head of the guidance network. A "signed" head may learn weights
        below 0.
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
        """Returns the peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-3 if self.objective == ROLLOUT else 1e-3


def check(recipe: Recipe) -> None:
    """Raises TypeError for what is no Recipe, and ValueError, in one line that names the field, for a wrong value."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"expected a Recipe, such as guidance.Recipe(steps=10), got {checks.words(recipe)}")
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
    """The two ways in which an objective draws true samples.

    draw: (key, n) -> (x0 [n, ...], cond leaves [n, ...]): samples of the joint distribution.
    real: (key, k, conditions with leaves [K, ...]) -> x0 [K, k, ...]: k samples of each of the conditions.
    """

    draw: Callable[[Array, int], tuple[Array, Cond]]
    real: Callable[[Array, int, Cond], Array]


def with_denoiser(model: Model) -> Model:
    """Returns the model, with a triple (network, params, kind) turned into a denoiser by `predictions.as_denoise`.

    Raises TypeError for what is no model.
    """
    if not isinstance(model, Model):
        raise TypeError(f"expected a Model(denoise, schedule, null), got {checks.words(model)}")
    checks.is_schedule(model.schedule)
    if isinstance(model.denoise, tuple) and len(model.denoise) == 3:
        model = model._replace(denoise=as_denoise(*model.denoise, model.schedule))
    checks.is_denoiser(model.denoise)
    return model


def split_arrays(tree: Any) -> tuple[list, Callable[[list], Any]]:
    """Returns the arrays of a tree, and the function that puts arrays back into their places in it.

    A compiled function takes the arrays as arguments; otherwise it would hold them as constants. Other leaves, such as
    plain functions, stay in the tree, and arrays that those close over do become constants.
    """
    leaves, structure = jax.tree.flatten(tree)
    are_arrays = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]

    def together(arrays):
        rest = iter(arrays)
        return structure.unflatten(
            [next(rest) if is_array else leaf for leaf, is_array in zip(leaves, are_arrays, strict=True)]
        )

    return [leaf for leaf, is_array in zip(leaves, are_arrays, strict=True) if is_array], together


# ---- the weight


def network(conditions: Cond, recipe: Recipe) -> weights.GuidanceNet:
    """Returns the guidance network for these conditions: it embeds labels 0 .. G - 1 and projects other numbers."""
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
    """Draws the initial params of the network. Equal networks share one compilation."""
    return _initial(net, key, jnp.zeros(1), taken(conditions, slice(1)))


@functools.partial(jax.jit, static_argnums=0)
def _initial(net, key, log_snr, cond):  # not compiled, this takes seconds
    return net.init(key, log_snr_t=log_snr, log_snr_s=log_snr, cond=cond)


def weight_of(net: weights.GuidanceNet, schedule: Schedule, recipe: Recipe) -> Callable:
    """Returns the function params -> weight. The weight clamps its times to those it is trained on.

    A rollout through N uniform steps trains t and s from 0.5/N to 1 - 0.5/N and gaps t - s from 0.999/N. So only the
    two ends of its own grid are clamped, and a sampler with smaller steps gets the weight of the trained gap. A
    one-step objective trains where `OneStep` draws.
    """
    steps, one = recipe.steps, recipe.one_step
    trained = one.s_min, 1 - one.zeta, one.delta
    if recipe.objective == ROLLOUT:
        trained = 0.5 / steps, 1 - 0.5 / steps, 0.999 / steps
    return functools.partial(_weight, net, schedule, *trained, recipe.interval)


def _weight(net, schedule, s_min, t_max, gap_min, interval, params):
    return weights.learned(net, params, schedule, s_min, t_max, gap_min, interval)


def optimizer(learning_rate: float, updates: int) -> optax.GradientTransformation:
    """Returns the optimiser of every guidance network: Adam with clipped gradients and a cosine decay of its rate."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, updates)))


# ---- losses


def loss(key: Array, model: Model, weight: Weight, truth: Truth, conditions: Cond, recipe: Recipe) -> Array:
    """Returns the loss of one update for G conditions, leaves [G, ...], which must be concrete, not traced."""
    objective = _rollout if recipe.objective == ROLLOUT else _one_step
    return objective(key, model, weight, truth, conditions, recipe)


def _rollout(key, model, weight, truth, conditions, recipe) -> Array:
    with jax.ensure_compile_time_eval():
        grid = sampling.uniform_grid(recipe.steps)
        unguided = int(np.argmax(guided_steps(grid, recipe.interval)))  # steps before the first guided one
    data_key, roll_key, *rest = jax.random.split(key, 3 if recipe.groups else 2)
    chosen = drawn(rest[0], conditions, recipe.groups) if rest else conditions
    table = on_grid(weight, grid, chosen, by_label=chosen is conditions and are_labels(conditions))
    real = truth.real(data_key, recipe.real, chosen)
    settings = rollout.Rollout(
        recipe.particles,
        segments=segments(recipe.steps - unguided) if recipe.remat == "segments" else 1,
        remat=recipe.remat,
        detached=unguided,
        features=recipe.features,
    )
    return rollout.rollout_loss(roll_key, model, table, recipe.step, grid, real, chosen, settings)


def on_grid(weight: Weight, grid: Array, conditions: Cond, by_label: bool) -> Weight:
    """Returns the weight as a table on a grid: its network is evaluated once for each step and condition.

    by_label: the conditions are the labels 0 .. G - 1, and a label is the number of its column. Otherwise the table
    finds the column by comparing conditions.
    """
    return weights.table(grid, weights.tabulated(weight, grid, conditions), None if by_label else conditions)


def drawn(key: Array, conditions: Cond, count: int) -> Cond:
    """Draws `count` of the conditions, each subset with the same probability, and keeps their order.

    Returns all of them if there are no more than `count`. A mean over the subset is an unbiased estimate of the mean
    over all conditions.
    """
    if count >= size(conditions):
        return conditions
    return taken(conditions, jnp.sort(jax.random.permutation(key, size(conditions))[:count]))


def guided_steps(grid: Array | np.ndarray, interval: tuple[float, float] | None) -> np.ndarray:
    """Returns which steps of a grid start within the interval, [steps]; None: all. Raises ValueError if none does."""
    starts = np.asarray(grid[:-1])
    if interval is None:
        return np.ones(starts.shape, bool)
    inside = within(starts, *interval)
    if not inside.any():
        raise ValueError(f"no step of {len(starts)} starts within ({interval[0]:g}, {interval[1]:g}]")
    return inside


def segments(steps: int) -> int:
    """Returns the divisor of `steps` that is nearest to the square root of `steps`."""
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
