"""`guidance.fit`, which learns a guidance weight for your own denoiser."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from guidance import bars, checks, keeping, learning, pools
from guidance.conditions import listed, places
from guidance.learning import Model, training
from guidance.learning.training import Recipe, Truth
from guidance.types import Array, Cond, Solver, Weight

USUAL = Recipe()
POOL = 2**14  # how many samples are drawn from a function that draws
SAVE_EVERY = 5.0  # seconds


class History(NamedTuple):
    """The loss and the norm of the gradient of each update, [updates] each."""

    loss: np.ndarray
    gradient_norm: np.ndarray


class Fitted(NamedTuple):
    """A learned weight, the params of its network (another fit may start from them), and the history of the fit."""

    weight: Weight
    params: Any
    history: History


class _Frozen(NamedTuple):
    """The inputs of an update that it does not change."""

    model: Model
    pool: pools.Pool
    features: Callable | None


def fit(
    model: Model, data, conditions: Cond, recipe: Recipe = USUAL, *, seed: int = 0, start=None, folder=None
) -> Fitted:
    """Learns the weight omega(s, t, c) with which samples of `model` are distributed as `data`.

    model: `Model(denoise, schedule, null, rule)`. Instead of the denoiser you may give (network, params, kind), where
        network(params, x, t, cond) predicts the kind "x0", "eps", "v", "velocity" or "score".
    data: true samples (x0 [N, ...], cond leaves [N, ...]), or a function (key, n) that draws n of them. The function
        is called once, for 16384 samples.
    conditions: the G conditions to learn for, leaves [G, ...]. The data must have samples of each. For the labels
        0 .. G - 1 the guidance network embeds the label. For any other conditions it reads the numbers in their
        leaves, so that the weight is defined between the conditions that it has learned, too.
    recipe: the settings of the training. The default trains through ten steps of DDIM.
    seed: the seed of all random numbers.
    start: the params of an earlier fit to start from, for example of one with fewer steps.
    folder: a folder for the state. The same call resumes from it after a kill and ends in the same bits. A folder
        belongs to one fit: a call that computes anything else, with another denoiser for example, is refused.

    A progress bar is shown unless TQDM_DISABLE=1. An update costs 2 evaluations for each step, condition and particle
    of a rollout, which are differentiated, or 2 for each sample and particle of a one-step objective. Raises TypeError
    or ValueError, in one line, for arguments that do not fit, and FloatingPointError if the loss is not finite.
    Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815. The rollout is our choice (see
    `guidance.learning.rollout`).
    """
    training.check(recipe)
    with tqdm(total=recipe.updates, desc=f"{recipe.objective}: data", dynamic_ncols=True) as bar:
        model, conditions = training.with_denoiser(model), listed(conditions)
        data_key, init_key, key = jax.random.split(jax.random.key(seed), 3)
        frozen = _Frozen(model, _pool(data_key, data, conditions), recipe.features)
        net = training.network(conditions, recipe)
        params = training.initial(init_key, net, conditions)
        if start is not None:
            checks.same_params("start", params, start)
            params = start
        weight_of = training.weight_of(net, model.schedule, recipe)
        update, state, program = _update(key, frozen, weight_of, conditions, recipe, params)
        about = {} if folder is None else _about(recipe, seed, frozen, conditions, params, program)
        params, _, history = _loop(key, update, state, recipe, bar, folder, about)
    return Fitted(weight_of(params), params, History(np.asarray(history.loss), np.asarray(history.gradient_norm)))


def _pool(key: Array, data, conditions: Cond) -> pools.Pool:
    given = checks.drawn(key, data, POOL) if callable(data) else data
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"expected true samples (x0, cond) or a function that draws them, got {checks.words(given)}")
    x0, cond = given
    checks.same_structure("conditions", cond, conditions)
    rows = sorted({np.shape(leaf)[:1] for leaf in (x0, *jax.tree.leaves(cond))})
    if len(rows) != 1 or rows == [()]:
        raise ValueError(f"data needs one condition for each sample, got first axes {rows}")
    return pools.pool(x0, cond, conditions)


# ---- the loop


def _update(key: Array, frozen: _Frozen, weight_of: Callable, conditions: Cond, recipe: Recipe, params):
    """Returns the compiled update (key, state, i) -> (state, metrics), the initial state, and the update's trace.

    The state is (params, state of the optimiser, History). Raises ValueError if the loss cannot be differentiated.
    """
    optimizer = training.optimizer(recipe.rate, recipe.updates)
    arrays, together = training.split_arrays(frozen)

    def one(key, state, i, arrays):
        model, pool, features = together(arrays)
        truth = Truth(
            lambda key, n: pools.draw(key, pool, n),
            lambda key, k, chosen: pools.draw_each(key, pool, k, places(chosen, conditions)[0]),
        )
        traced_recipe = recipe._replace(features=features)

        loss_at = lambda params, key: training.loss(  # noqa: E731
            key, model, weight_of(params), truth, conditions, traced_recipe
        )
        params, opt_state, history = state
        params, opt_state, metrics = learning.update(jax.random.fold_in(key, i), optimizer, loss_at, params, opt_state)
        history = jax.tree.map(lambda kept, now: kept.at[i].set(now), history, History(**metrics))
        return (params, opt_state, history), metrics

    compiled = jax.jit(one, donate_argnums=1)
    empty = np.zeros(recipe.updates, np.float32)
    state = jax.tree.map(jnp.array, (params, optimizer.init(params), History(empty, empty)))

    try:
        traced = compiled.trace(key, state, 0, arrays)
    except ValueError as error:
        if "callbacks do not support JVP" not in str(error):
            raise
        raise ValueError(
            "a rollout needs a denoiser that JAX can differentiate in x, and a callback cannot be differentiated; "
            "Recipe(objective='self_consistency') needs no derivative"
        ) from None
    return functools.partial(_called, compiled, arrays), state, traced


def _called(compiled, arrays, key, state, i):
    return compiled(key, state, i, arrays)


def _loop(key: Array, update, state, recipe: Recipe, bar: tqdm, folder, about: dict) -> Any:
    """Runs the updates that are not yet done; saves the state in the folder every few seconds and at the end."""
    done, saved, previous = 0, time.monotonic(), None

    def save(count):
        if folder is not None:
            keeping.save(folder, about, (np.int32(count), state))

    if folder is not None:
        found = keeping.restore(folder, about, (np.int32(0), state))
        done, state = (0, state) if found is None else (int(found[0]), jax.tree.map(jnp.asarray, found[1]))
    bar.update(done)
    bar.set_description(f"{recipe.objective}: compiling" if done < recipe.updates else recipe.objective)
    for i in range(done, recipe.updates):
        state, metrics = update(key, state, i)
        _show(
            bar, recipe, i - 1, previous, compiled=i == done + 1
        )  # shows the previous update while this one is computed
        previous = metrics
        if time.monotonic() - saved > SAVE_EVERY:
            _check_finite(recipe, i, metrics)
            save(i + 1)
            saved = time.monotonic()
    _show(bar, recipe, recipe.updates - 1, previous)
    if done < recipe.updates:
        save(recipe.updates)
    return state


def _show(bar: tqdm, recipe: Recipe, i: int, metrics: dict | None, compiled: bool = False) -> None:
    """Moves the bar on by update i, which may have been compiled, and shows its loss. metrics: None without update."""
    if metrics is not None:
        _check_finite(recipe, i, metrics)
        bar.set_description(recipe.objective, refresh=False)
        bar.set_postfix(loss=f"{float(metrics['loss']):.4g}", refresh=False)
        bars.count_compiled(bar) if compiled else bar.update()


def _check_finite(recipe: Recipe, i: int, metrics: dict) -> None:
    if not all(np.isfinite(value) for value in metrics.values()):
        raise FloatingPointError(
            f"{recipe.objective}: the loss of update {i} or its gradient is not finite; if the denoiser's output is "
            "finite, a smaller learning_rate may help"
        )


def _about(recipe: Recipe, seed: int, frozen: _Frozen, conditions: Cond, params, program) -> dict[str, Any]:
    """Describes a fit, to tell it from others: its settings, and check sums of its arrays and of its update."""
    settings = {name: _named(value) for name, value in recipe._asdict().items()}
    return settings | {
        "seed": seed,
        "the first params": keeping.summed(params),
        "the model": keeping.summed(frozen.model),
        "the data": keeping.summed(frozen.pool),
        "the conditions": keeping.summed(conditions),
        "what an update computes": keeping.program(program),
    }


def _named(value: Any) -> Any:
    """Returns a setting as JSON. A function is given by its name and a check sum of its arrays."""
    if isinstance(value, Solver):
        value = value.apply
    if not callable(value):
        return value
    function = getattr(value, "func", value)
    return f"{getattr(function, '__name__', type(function).__name__)} {keeping.summed(value)}"
