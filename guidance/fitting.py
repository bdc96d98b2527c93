"""`guidance.fit`: learns a guidance weight for a denoiser of one's own."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from guidance import checks, keeping, learning, pools
from guidance.conditions import listed, places
from guidance.learning import Model, training
from guidance.learning.training import Recipe, Truth
from guidance.types import Array, Cond, Solver, Weight

USUAL = Recipe()
POOL = 2**14  # samples that a draw function is asked for
SAVE_EVERY = 5.0  # seconds


class History(NamedTuple):
    """What each update saw: its loss and the norm of its gradient, [updates]."""

    loss: np.ndarray
    gradient_norm: np.ndarray


class Fitted(NamedTuple):
    """A learned weight, the params of its network (from which another fit may start), and how the learning went."""

    weight: Weight
    params: Any
    history: History


class _Frozen(NamedTuple):
    """What an update takes and leaves as it is."""

    model: Model
    pool: pools.Pool
    features: Callable | None


def fit(
    model: Model, data, conditions: Cond, recipe: Recipe = USUAL, *, seed: int = 0, start=None, folder=None
) -> Fitted:
    """Learns the weight omega(s, t, c) with which `model` samples from the law of `data`.

    model: `Model(denoise, schedule, null, rule)`. In place of the denoiser may stand (apply, params, prediction): a
        network apply(params, x, t, cond) that predicts x0, eps, v, velocity or score.
    data: true samples (x0 [N, ...], cond leaves [N, ...]), or a function (key, n) that draws n of them; it is asked
        once, for 16384.
    conditions: the G conditions to learn for, leaves [G, ...]; each needs samples among the data. For the labels
        0 .. G - 1 the network embeds the label, for any others it sees the numbers in their leaves, so that the
        weight can be asked for conditions between those that it has learned.
    recipe: how; the default trains through ten steps of DDIM.
    seed: of everything that is drawn.
    start: the params of an earlier fit to go on from, of one at fewer steps, say.
    folder: where the state is kept, so that the same call goes on after a kill, and ends in the same bits. It is of
        one fit, and refused where anything that an update computes differs, the denoiser or the schedule, say.

    The bar is tqdm's (TQDM_DISABLE=1 hides it). Evaluations of an update: 2 for each step, condition and particle of a
    rollout, which is differentiated as well; 2 for each data point and particle of a one-step objective. Raises
    TypeError or ValueError, in one line, for what cannot be learned, and FloatingPointError where the loss breaks.
    Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815; the rollout is our choice (see
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
        made = training.weight_of(net, model.schedule, recipe)
        update, state, program = _update(key, frozen, made, conditions, recipe, params)
        about = {} if folder is None else _about(recipe, seed, frozen, conditions, params, program)
        params, _, history = _loop(key, update, state, recipe, bar, folder, about)
    return Fitted(made(params), params, History(np.asarray(history.loss), np.asarray(history.gradient_norm)))


def _pool(key: Array, data, conditions: Cond) -> pools.Pool:
    given = checks.drawn(key, data, POOL) if callable(data) else data
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"true samples (x0, cond) belong where {checks.words(given)} is, or (key, n) -> (x0, cond)")
    x0, cond = given
    checks.same_structure("conditions", cond, conditions)
    rows = sorted({np.shape(leaf)[:1] for leaf in (x0, *jax.tree.leaves(cond))})
    if len(rows) != 1 or rows == [()]:
        raise ValueError(f"data needs one condition for each sample, got first axes {rows}")
    return pools.pool(x0, cond, conditions)


# ---- the loop


def _update(key: Array, frozen: _Frozen, made: Callable, conditions: Cond, recipe: Recipe, params):
    """(update: (key, state, i) -> (state, figures), compiled; the first state: params, optimiser, history; the trace).

    Raises ValueError where the loss cannot be differentiated.
    """
    optimizer = training.optimizer(recipe.rate, recipe.updates)
    arrays, whole = training.split_arrays(frozen)

    def one(key, state, i, arrays):
        model, pool, features = whole(arrays)
        truth = Truth(
            lambda key, n: pools.draw(key, pool, n),
            lambda key, k, among: pools.draw_each(key, pool, k, places(among, conditions)[0]),
        )
        own = recipe._replace(features=features)

        def loss_at(params, own_key):
            return training.loss(own_key, model, made(params), truth, conditions, own)

        params, opt_state, history = state
        params, opt_state, figures = learning.update(jax.random.fold_in(key, i), optimizer, loss_at, params, opt_state)
        history = jax.tree.map(lambda kept, now: kept.at[i].set(now), history, History(**figures))
        return (params, opt_state, history), figures

    compiled = jax.jit(one, donate_argnums=1)
    empty = np.zeros(recipe.updates, np.float32)
    state = jax.tree.map(jnp.array, (params, optimizer.init(params), History(empty, empty)))

    try:
        traced = compiled.trace(key, state, 0, arrays)
    except ValueError as error:
        if "callbacks do not support JVP" not in str(error):
            raise
        raise ValueError(
            "a rollout needs a denoiser that JAX can differentiate in x, which a callback is not; "
            "Recipe(objective='self_consistency') needs none"
        ) from None
    return functools.partial(_called, compiled, arrays), state, traced


def _called(compiled, arrays, key, state, i):
    return compiled(key, state, i, arrays)


def _loop(key: Array, update, state, recipe: Recipe, bar: tqdm, folder, about: dict) -> Any:
    """Runs the updates that are left, and keeps the state in the folder now and then and at the end."""
    done, saved, before = 0, time.monotonic(), None

    def keep(count):
        if folder is not None:
            keeping.save(folder, about, (np.int32(count), state))

    if folder is not None:
        found = keeping.restore(folder, about, (np.int32(0), state))
        done, state = (0, state) if found is None else (int(found[0]), jax.tree.map(jnp.asarray, found[1]))
    bar.update(done)
    bar.set_description(f"{recipe.objective}: compiling" if done < recipe.updates else recipe.objective)
    for i in range(done, recipe.updates):
        state, figures = update(key, state, i)
        _show(bar, recipe, i - 1, before)  # the update before: this one goes on meanwhile
        before = figures
        if time.monotonic() - saved > SAVE_EVERY:
            _refuse_broken(recipe, i, figures)
            keep(i + 1)
            saved = time.monotonic()
    _show(bar, recipe, recipe.updates - 1, before)
    if done < recipe.updates:
        keep(recipe.updates)
    return state


def _show(bar: tqdm, recipe: Recipe, i: int, figures: dict | None) -> None:
    """Moves the bar on by the update i; None: there was none."""
    if figures is not None:
        _refuse_broken(recipe, i, figures)
        bar.set_description(recipe.objective, refresh=False)
        bar.set_postfix(loss=f"{float(figures['loss']):.4g}", refresh=False)
        bar.update()


def _refuse_broken(recipe: Recipe, i: int, figures: dict) -> None:
    if not all(np.isfinite(figure) for figure in figures.values()):
        raise FloatingPointError(
            f"{recipe.objective}: the loss of update {i} or its gradient is not finite; where the denoiser is, a "
            "smaller learning_rate may help"
        )


def _about(recipe: Recipe, seed: int, frozen: _Frozen, conditions: Cond, params, program) -> dict[str, Any]:
    """What tells one fit from another; a sum of arrays, and of what an update computes with them."""
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
    """A setting as JSON; of a function its name, and a sum of the arrays that it holds."""
    if isinstance(value, Solver):
        value = value.apply
    if not callable(value):
        return value
    function = getattr(value, "func", value)
    return f"{getattr(function, '__name__', type(function).__name__)} {keeping.summed(value)}"
