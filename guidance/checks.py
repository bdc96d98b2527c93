"""Checks of arguments: each raises, for an easily made mistake, one sentence that says what was expected.

The checks look at types, shapes and signatures, which are known while JAX traces a function. They look at values (the
times of a grid, labels) only where these are known, which inside `jit` they are not. They add nothing to the compiled
program. A wrong type raises TypeError; a right type with a wrong value or shape raises ValueError.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Cond, Denoise, Guide, Schedule, Solver


def known(value) -> bool:
    """Returns whether the value is concrete, that is, not being traced."""
    return not isinstance(value, jax.core.Tracer)


# ---- what a sampler takes


def inputs(key: Array, guide: Guide, schedule: Schedule, grid: Array, x: Array, cond: Cond) -> None:
    """Raises for arguments with which `sample` and `rollout` cannot start."""
    if not isinstance(guide, Guide):
        example = "guides.cfg(weights.constant(2.0), null=10)"
        raise TypeError(f"expected a guide, such as {example}, got {words(guide)}")
    beginning(key, schedule, grid, x, cond)


def beginning(key: Array, schedule: Schedule, grid: Array, x: Array, cond: Cond) -> None:
    """Raises for arguments with which no sampler can start, whatever its guide."""
    one_key(key)
    is_schedule(schedule)
    is_grid(grid)
    same_batch(x, cond)


def one_key(key: Array) -> None:
    """Raises unless `key` is one random key, typed or of the old style."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and getattr(key, "dtype", None) != jnp.uint32:
        raise TypeError(f"expected a random key, such as jax.random.key(0), got {words(key)}")
    if key.shape != (() if typed else (2,)):
        raise ValueError(f"one random key is needed, got keys of shape {key.shape}: samples get theirs by their ids")


def is_ids(ids: Array, batch: int | None = None) -> None:
    """Raises unless `ids` are integers [batch], one for each sample."""
    if not hasattr(ids, "dtype") or not jnp.issubdtype(ids.dtype, jnp.integer) or len(ids.shape) != 1:
        raise TypeError(f"expected ids, one integer for each sample, such as jnp.arange(64), got {words(ids)}")
    if batch is not None and ids.shape[0] != batch:
        raise ValueError(f"there are {ids.shape[0]} ids, x has {batch} rows: one id for each sample")


def is_schedule(schedule: Schedule) -> None:
    """Raises TypeError for what is no schedule, such as its name or its constructor, not called."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"expected a schedule, such as schedules.rectified_flow(), got {words(schedule)}")


def is_grid(grid: Array, change: str = "time runs from 1, noise, to 0, data") -> None:
    """Raises unless `grid` has floating times [steps + 1] that decrease strictly and lie within [0, 1].

    change: what the message tells the user to do about times that repeat or rise.
    """
    if not hasattr(grid, "shape"):
        example = "sampling.uniform_grid(20), or sampling.as_grid(your_times)"
        raise TypeError(f"expected a grid, such as {example}, got {words(grid)}")
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
    """Raises TypeError for what is neither a solver nor a step, such as a constructor that was not called."""
    if isinstance(step, Solver):
        return
    if not callable(step) or not _takes(step, "keys", "x", "guided", t=0, s=0, schedule=0):
        raise TypeError(f"expected a step or solver, such as sampling.ddim(), got {words(step)}")


def same_batch(x: Array, cond: Cond) -> None:
    """Raises for samples without a batch axis, and for conditions whose leaves have a batch axis of another length."""
    if not hasattr(x, "shape"):
        raise TypeError(f"expected an array [batch, ...] as the samples x, got {words(x)}")
    if len(x.shape) == 0:
        raise ValueError("x needs a batch axis: [batch, ...], got a scalar")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"x must hold floats, or integers that are tokens, got {x.dtype}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        name = f"cond{jax.tree_util.keystr(path)}"
        shape = jnp.shape(leaf)
        if len(shape) == 0:
            raise ValueError(f"{name} needs a batch axis, [{x.shape[0]}, ...] for x of shape {x.shape}, got a scalar")
        if shape[0] != x.shape[0]:
            raise ValueError(f"{name} has {shape[0]} rows, x has {x.shape[0]}: one condition for each sample")


def has_noise(eps) -> None:
    """Raises TypeError if there is no noise eps, as for integer x, which holds tokens."""
    if eps is None:
        raise TypeError("this step or guide needs x of floats; integer x holds tokens, which need others")


# ---- denoisers


def is_denoiser(denoise: Denoise) -> None:
    """Raises TypeError for what cannot be called as denoise(x, t, cond)."""
    if not callable(denoise) or not _takes(denoise, "x", "t", "cond"):
        example = "predictions.as_denoise(network, params, kind, schedule)"
        raise TypeError(f"expected a denoiser (x, t, cond) -> x0, such as {example}, got {words(denoise)}")


def watched(denoise: Denoise) -> Denoise:
    """Wraps a denoiser so that it raises, while it is traced, if it returns another shape than that of x."""
    is_denoiser(denoise)

    def checked(x, t, cond):
        out = denoise(x, t, cond)
        is_prediction("denoiser", out, x)
        return out

    return checked


def is_network(network) -> None:
    """Raises TypeError for what cannot be called as network(params, x, t, cond)."""
    if not callable(network) or not _takes(network, "params", "x", "t", "cond"):
        example = "the apply of a Flax module"
        raise TypeError(
            f"expected a network (params, x, t, cond) -> prediction, such as {example}, got {words(network)}"
        )


def is_prediction(name: str, out, x: Array) -> None:
    """Raises unless the output of a denoiser or network has the shape of x; for tokens, as many rows as x."""
    if not hasattr(out, "shape"):
        raise TypeError(f"the {name} must return an array of the shape of x, {x.shape}, got {words(out)}")
    if jnp.issubdtype(x.dtype, jnp.integer) and out.shape[:1] == x.shape[:1]:
        return  # logits of tokens have one more axis, over the vocabulary
    if out.shape != x.shape:
        raise ValueError(f"the {name} must return the shape of x, {x.shape}, got {out.shape}")


def same_structure(name: str, cond: Cond, other: Cond) -> None:
    """Raises unless `other`, which messages call `name`, is a pytree of the structure of `cond`."""
    wanted: Any = jax.tree.structure(cond)
    found: Any = jax.tree.structure(other)
    if wanted != found:
        raise ValueError(f"{name} must have the structure of cond, {_tree(wanted)}, got {_tree(found)}")


def null_fits(cond: Cond, null: Cond) -> None:
    """Raises unless `null` has the structure, the kind of numbers and the shape of one row of `cond`."""
    same_structure("null", cond, null)
    for (path, row), leaf in zip(jax.tree_util.tree_leaves_with_path(cond), jax.tree.leaves(null), strict=True):
        name, dtype, shape = f"null{jax.tree_util.keystr(path)}", jnp.result_type(leaf), jnp.shape(leaf)
        if jnp.issubdtype(row.dtype, jnp.integer) and not jnp.issubdtype(dtype, jnp.integer):
            given = f" = {leaf}" if known(leaf) and shape == () else ""
            raise ValueError(f"{name}{given} is {dtype}, but cond holds {row.dtype} labels: give a label, such as 10")
        if not _widens(shape, row.shape):
            raise ValueError(f"{name} has shape {shape}, but one condition has shape {row.shape[1:]}")


def is_list(conditions: Cond) -> None:
    """Raises unless `conditions` are a list of conditions: leaves [G, ...] that share one G >= 1."""
    rows = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(conditions):
        if len(leaf.shape) == 0:
            name = f"conditions{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} is one number, not a list [G, ...] such as jnp.arange(10)")
        rows.add(leaf.shape[0])
    if len(rows) != 1 or rows == {0}:
        raise ValueError(f"conditions need one first axis [G, ...], G of at least 1, got {sorted(rows)}")


def drawn(key: Array, draw, n: int) -> Any:
    """Returns draw(key, n). Raises if `draw` cannot be called with these two arguments."""
    if not _takes(draw, key, n):
        raise TypeError(f"expected a function (key, n) -> (x0, cond), got {words(draw)}")
    return draw(key, n)


def same_params(name: str, params, other) -> None:
    """Raises unless `other`, which the message calls `name`, has the shapes of `params`."""
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, other):
        raise ValueError(
            f"{name} must be the params of a network of the same width, depth, embedding and conditions, as "
            f"`Fitted.params` of such a fit; got {words(other)} of other shapes"
        )


# ---- weights and rules


def is_weight(weight) -> None:
    """Raises TypeError for what is no weight, such as a number or a function of other arguments."""
    if not callable(weight):
        example = f"weights.constant({weight:g})" if isinstance(weight, (int, float)) else "weights.constant(2.0)"
        raise TypeError(f"expected a weight, such as {example}, got {words(weight)}")
    if not _takes(weight, t=0, s=0, cond=0):
        raise TypeError(f"a weight is called as weight(t=t, s=s, cond=cond), which {words(weight)} does not take")


def is_omega(omega, t: Array) -> None:
    """Raises unless `omega`, the output of a weight, is one number for each sample."""
    if jnp.shape(omega) != t.shape:
        raise ValueError(f"a weight must return one omega for each sample, shape {t.shape}, got {jnp.shape(omega)}")


def is_features(found, x: Array) -> None:
    """Raises unless `found`, the output of a feature map, has one row for each sample."""
    if not hasattr(found, "shape") or found.shape[:1] != x.shape[:1]:
        got = found.shape if hasattr(found, "shape") else words(found)
        raise ValueError(f"features must return one row for each sample, shape ({x.shape[0]}, d), got {got}")


def is_reward(values, x0: Array) -> None:
    """Raises unless `values`, the output of a reward, is one number for each sample."""
    if jnp.shape(values) != x0.shape[:1]:
        raise ValueError(
            f"a reward must return one number for each sample, shape {x0.shape[:1]}, got {jnp.shape(values)}"
        )


def is_label(cond: Cond, classes: int) -> None:
    """Raises unless `cond` has integer labels, each, where its value is known, from 0 to classes - 1."""
    if not hasattr(cond, "dtype") or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise TypeError(f"a weight with a number for each class needs int labels [batch], got {words(cond)}")
    if known(cond) and cond.size:
        values = np.asarray(cond)
        lowest, highest = values.min(), values.max()
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} has no weight: it was made for {classes} classes, 0 to {classes - 1}")


def all_found(found: Array) -> None:
    """Raises if a condition equals no column of a table of weights; found [batch] says which rows were found."""
    if known(found) and not np.all(found):
        raise ValueError(f"the condition of row {int(np.argmin(found))} has no weight: the table lists no equal one")


def is_rule(rule) -> None:
    """Raises TypeError for what is no plain rule (positive, reference, omega) -> x0, such as its constructor."""
    if not callable(rule) or not _takes(rule, 0, 0, 0):
        raise TypeError(f"expected a rule, such as rules.cfg or rules.apg(), got {words(rule)}")


def is_guided(x0, rule, positive: Array) -> None:
    """Raises unless x0, the output of a plain rule, is an array of the shape of the predictions."""
    if not hasattr(x0, "shape"):
        raise TypeError(
            f"{words(rule)} must return a prediction, got {words(x0)}; call constructors of rules, as in rules.apg()"
        )
    if x0.shape != positive.shape:
        raise ValueError(f"a rule must return the shape of the predictions, {positive.shape}, got {x0.shape}")


def is_table(grid: Array, omegas: Array) -> None:
    """Raises unless `omegas`, a table of weights, is [steps] or [steps, conditions] for the steps of its grid."""
    steps, shape = grid.shape[0] - 1, jnp.shape(omegas)
    if len(shape) not in (1, 2) or shape[0] != steps:
        raise ValueError(f"a table of weights needs a row for each of the {steps} steps of its grid, got {shape}")


# ---- words


def _takes(function, *arguments, **named) -> bool:
    """Returns whether the function accepts these arguments; True if it has no signature."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _widens(shape: tuple, target: tuple) -> bool:
    """Returns whether an array of this shape can be broadcast to the target shape."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def words(thing: Any) -> str:
    """Describes an argument for an error message, as in "int 20", "the function ddim" or "an array of float32[5]"."""
    if callable(thing) and hasattr(thing, "__name__"):
        return f"the {'class' if inspect.isclass(thing) else 'function'} {thing.__name__}"
    if isinstance(thing, (int, float, str, bool, type(None))):
        return f"{type(thing).__name__} {thing!r}" if thing is not None else "None"
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"an array of {thing.dtype}{list(thing.shape)}"
    return f"a {type(thing).__name__}"


def _tree(structure) -> str:
    """Describes the structure of a pytree for an error message."""
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")").replace("*", "a leaf")
