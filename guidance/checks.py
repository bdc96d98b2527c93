"""The mistakes that are easily made where a thing enters, each answered by one sentence that says what belongs there.

The checks look at kinds, shapes and signatures, which are there while a function is traced. Values (the times of a
grid, labels) are looked at where they are known, which inside `jit` they are not. Nothing is added to what is run.
TypeError: the wrong kind of thing. ValueError: the right kind with a wrong value or shape.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Cond, Denoise, Guide, Schedule, Solver


def known(value) -> bool:
    """Whether the value can be looked at: it is not being traced."""
    return not isinstance(value, jax.core.Tracer)


# ---- what a sampler takes


def inputs(key: Array, guide: Guide, schedule: Schedule, grid: Array, x: Array, cond: Cond) -> None:
    """Refuses what `sample` and `rollout` cannot start from."""
    if not isinstance(guide, Guide):
        raise TypeError(f"a guide belongs where {words(guide)} is, as in guides.cfg(weights.constant(2.0), null=10)")
    beginning(key, schedule, grid, x, cond)


def beginning(key: Array, schedule: Schedule, grid: Array, x: Array, cond: Cond) -> None:
    """Refuses what no sampler can start from, whatever guides it."""
    one_key(key)
    is_schedule(schedule)
    is_grid(grid)
    same_batch(x, cond)


def one_key(key: Array) -> None:
    """Refuses all but one random key, typed or of the old style."""
    if not hasattr(key, "dtype"):
        raise TypeError(f"a random key belongs where {words(key)} is, as in jax.random.key(0)")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(f"a random key belongs where {words(key)} is, as in jax.random.key(0)")
    if key.shape != (() if typed else (2,)):
        raise ValueError(f"one random key is needed, got keys of shape {key.shape}: samples get theirs by their ids")


def is_ids(ids: Array, batch: int | None = None) -> None:
    """Refuses what does not number samples: integers [batch]."""
    if not hasattr(ids, "dtype") or not jnp.issubdtype(ids.dtype, jnp.integer) or len(ids.shape) != 1:
        raise TypeError(f"ids, an integer for each sample, belong where {words(ids)} is, as in jnp.arange(64)")
    if batch is not None and ids.shape[0] != batch:
        raise ValueError(f"there are {ids.shape[0]} ids, x has {batch} rows: one id for each sample")


def is_schedule(schedule: Schedule) -> None:
    """Refuses what is no schedule: its name, or a maker that was not called."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"a schedule belongs where {words(schedule)} is, as in schedules.rectified_flow()")


def is_grid(grid: Array, change: str = "time runs from 1, noise, to 0, data") -> None:
    """Refuses what is no grid: [steps + 1] times, in their own dtype, that decrease within [0, 1].

    `change` says what to do about times that repeat or rise.
    """
    if not hasattr(grid, "shape"):
        example = "sampling.uniform_grid(20); sampling.as_grid makes one of your own times"
        raise TypeError(f"a grid belongs where {words(grid)} is, as in {example}")
    if len(grid.shape) != 1 or grid.shape[0] < 2:
        raise ValueError(f"a grid needs at least two times in one dimension, got shape {grid.shape}")
    if not jnp.issubdtype(grid.dtype, jnp.floating):
        raise TypeError(f"the times of a grid are floats, got {grid.dtype}; sampling.as_grid casts them")
    if not known(grid):
        return
    found = np.asarray(grid)
    for i in np.flatnonzero(~(found[1:] < found[:-1]))[:1]:
        pair = f"times {i} and {i + 1} are {found[i]} and {found[i + 1]} in {found.dtype}"
        raise ValueError(f"the times of a grid must decrease, but {pair}; {change}")
    if not (found[0] <= 1 and found[-1] >= 0):
        raise ValueError(f"the times of a grid must lie within [0, 1], got {found[0]} to {found[-1]}")


def is_step(step) -> None:
    """Refuses what is neither a solver nor a step, as a maker that was not called."""
    if isinstance(step, Solver):
        return
    if not callable(step) or not _takes(step, "keys", "x", "guided", t=0, s=0, schedule=0):
        raise TypeError(f"a step or solver belongs where {words(step)} is, as in sampling.ddim()")


def same_batch(x: Array, cond: Cond) -> None:
    """Refuses samples without a batch axis, and conditions whose leaves have another one."""
    if not hasattr(x, "shape"):
        raise TypeError(f"an array [batch, ...] belongs where {words(x)} is: the samples x")
    if len(x.shape) == 0:
        raise ValueError("x needs a batch axis: [batch, ...], got a scalar")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"x holds floats, or integers that are tokens, got {x.dtype}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        name = f"cond{jax.tree_util.keystr(path)}"
        shape = jnp.shape(leaf)
        if len(shape) == 0:
            raise ValueError(f"{name} needs a batch axis, [{x.shape[0]}, ...] beside x {x.shape}, got a scalar")
        if shape[0] != x.shape[0]:
            raise ValueError(f"{name} has {shape[0]} rows, x has {x.shape[0]}: one condition for each sample")


def has_noise(eps) -> None:
    """Refuses integer x where noise is asked for, which tokens do not have."""
    if eps is None:
        raise TypeError("x of floats is needed here; integer x holds tokens, which need a step and guide of their own")


# ---- denoisers


def is_denoiser(denoise: Denoise) -> None:
    """Refuses what cannot be called as denoise(x, t, cond)."""
    if not callable(denoise) or not _takes(denoise, "x", "t", "cond"):
        raise TypeError(
            f"a denoiser (x, t, cond) -> x0 belongs where {words(denoise)} is; predictions.as_denoise(apply, params, "
            "kind, schedule) makes one"
        )


def watched(denoise: Denoise) -> Denoise:
    """The same denoiser, which refuses to answer in another shape than that of x; to be traced once."""
    is_denoiser(denoise)

    def asked(x, t, cond):
        out = denoise(x, t, cond)
        is_answer("denoiser", out, x)
        return out

    return asked


def is_network(network) -> None:
    """Refuses what cannot be called as network(params, x, t, cond)."""
    if not callable(network) or not _takes(network, "params", "x", "t", "cond"):
        raise TypeError(
            f"a network (params, x, t, cond) -> prediction belongs where {words(network)} is, as the apply of a Flax "
            "module"
        )


def is_answer(who: str, out, x: Array) -> None:
    """Refuses another answer of a denoiser or network than one array of the shape of x; of x's rows for tokens."""
    if not hasattr(out, "shape"):
        raise TypeError(f"the {who} must return an array of the shape of x, {x.shape}, got {words(out)}")
    if jnp.issubdtype(x.dtype, jnp.integer) and out.shape[:1] == x.shape[:1]:
        return  # logits of tokens have an axis of words, or more
    if out.shape != x.shape:
        raise ValueError(f"the {who} must return the shape of x, {x.shape}, got {out.shape}")


def same_structure(name: str, cond: Cond, other: Cond) -> None:
    """Refuses what has not the structure of a condition."""
    mine: Any = jax.tree.structure(cond)
    found: Any = jax.tree.structure(other)
    if mine != found:
        raise ValueError(f"{name} must have the structure of cond, {_tree(mine)}, got {_tree(found)}")


def null_fits(cond: Cond, null: Cond) -> None:
    """Refuses a null condition of another structure, kind or shape than one row of `cond`."""
    same_structure("null", cond, null)
    for (path, row), leaf in zip(jax.tree_util.tree_leaves_with_path(cond), jax.tree.leaves(null), strict=True):
        name, dtype, shape = f"null{jax.tree_util.keystr(path)}", jnp.result_type(leaf), jnp.shape(leaf)
        if jnp.issubdtype(row.dtype, jnp.integer) and not jnp.issubdtype(dtype, jnp.integer):
            given = f" = {leaf}" if known(leaf) and shape == () else ""
            raise ValueError(f"{name}{given} is {dtype}, but cond holds {row.dtype} labels: null is a label, as 10")
        if not _widens(shape, row.shape):
            raise ValueError(f"{name} has shape {shape}, but one condition has shape {row.shape[1:]}")


def is_list(conditions: Cond) -> None:
    """Refuses what is no list of conditions: leaves [G, ...] of one G >= 1."""
    rows = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(conditions):
        if len(leaf.shape) == 0:
            name = f"conditions{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} is one number, not a list: leaves are arrays [G, ...], as in jnp.arange(10)")
        rows.add(leaf.shape[0])
    if len(rows) != 1 or rows == {0}:
        raise ValueError(f"conditions need one first axis [G, ...], G of at least 1, got {sorted(rows)}")


def drawn(key: Array, draw, n: int) -> Any:
    """draw(key, n); refuses what cannot be called so."""
    if not _takes(draw, key, n):
        raise TypeError(f"a function (key, n) -> (x0, cond) belongs where {words(draw)} is")
    return draw(key, n)


def same_params(name: str, params, other) -> None:
    """Refuses other params than those of the same network."""
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, other):
        raise ValueError(
            f"{name} must be the params of a network of the same width, depth, embedding and conditions, as "
            f"`Fitted.params` of such a fit; got {words(other)} of other shapes"
        )


# ---- weights and rules


def is_weight(weight) -> None:
    """Refuses what is no weight: a number, or a function of other arguments."""
    if not callable(weight):
        example = f"weights.constant({weight:g})" if isinstance(weight, (int, float)) else "weights.constant(2.0)"
        raise TypeError(f"a weight belongs where {words(weight)} is, as in {example}")
    if not _takes(weight, t=0, s=0, cond=0):
        raise TypeError(f"a weight is called as weight(t=t, s=s, cond=cond), which {words(weight)} does not take")


def is_omega(omega, t: Array) -> None:
    """Refuses what a weight must not return: anything but one omega for each sample."""
    if jnp.shape(omega) != t.shape:
        raise ValueError(f"a weight must return one omega for each sample, shape {t.shape}, got {jnp.shape(omega)}")


def is_features(found, x: Array) -> None:
    """Refuses what a feature map must not return: anything but one row of numbers for each sample."""
    if not hasattr(found, "shape") or found.shape[:1] != x.shape[:1]:
        got = found.shape if hasattr(found, "shape") else words(found)
        raise ValueError(f"features must return one row for each sample, shape ({x.shape[0]}, d), got {got}")


def is_worth(values, x0: Array) -> None:
    """Refuses what a reward must not return: anything but one number for each sample."""
    if jnp.shape(values) != x0.shape[:1]:
        raise ValueError(
            f"a reward must return one number for each sample, shape {x0.shape[:1]}, got {jnp.shape(values)}"
        )


def is_label(cond: Cond, classes: int) -> None:
    """Refuses conditions that a weight for so many classes has no number for."""
    if not hasattr(cond, "dtype") or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise TypeError(f"a weight with a number for each class needs int labels [batch], got {words(cond)}")
    if known(cond) and cond.size:
        values = np.asarray(cond)
        lowest, highest = values.min(), values.max()
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} has no weight: it was made for {classes} classes, 0 to {classes - 1}")


def all_found(found: Array) -> None:
    """Refuses conditions that a table of weights has no column for."""
    if known(found) and not np.all(found):
        raise ValueError(f"the condition of row {int(np.argmin(found))} has no weight: none that is listed equals it")


def is_rule(rule) -> None:
    """Refuses what is no plain rule (positive, reference, omega) -> x0, as a maker that was not called."""
    if not callable(rule) or not _takes(rule, 0, 0, 0):
        raise TypeError(f"a rule belongs where {words(rule)} is, as in rules.cfg or rules.apg()")


def is_opinion(x0, rule, positive: Array) -> None:
    """Refuses what a plain rule must not return: anything but one array of the shape of the predictions."""
    if not hasattr(x0, "shape"):
        raise TypeError(
            f"{words(rule)} returned no prediction but {words(x0)}: makers of rules are called, as in rules.apg()"
        )
    if x0.shape != positive.shape:
        raise ValueError(f"a rule must return the shape of the predictions, {positive.shape}, got {x0.shape}")


def is_table(grid: Array, omegas: Array) -> None:
    """Refuses a table of weights that has not a row for each step of its grid, and at most classes beside them."""
    steps, shape = grid.shape[0] - 1, jnp.shape(omegas)
    if len(shape) not in (1, 2) or shape[0] != steps:
        raise ValueError(f"a table of weights needs a row for each of the {steps} steps of its grid, got {shape}")


# ---- words


def _takes(function, *arguments, **named) -> bool:
    """Whether the function can be called so; True where it does not say what it takes."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _widens(shape: tuple, target: tuple) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def words(thing: Any) -> str:
    """What a person calls the thing that they passed."""
    if callable(thing) and hasattr(thing, "__name__"):
        return f"the {'class' if inspect.isclass(thing) else 'function'} {thing.__name__}"
    if isinstance(thing, (int, float, str, bool, type(None))):
        return f"{type(thing).__name__} {thing!r}" if thing is not None else "None"
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"an array of {thing.dtype}{list(thing.shape)}"
    return f"a {type(thing).__name__}"


def _tree(structure) -> str:
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")").replace("*", "a leaf")
