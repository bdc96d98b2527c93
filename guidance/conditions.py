"""Conditions: pytrees of arrays with leaves [batch, ...]. The most common one is a class label, int32 [batch].

The null condition has the same structure, with leaves without batch axis: for C classes the label C, or for example
`{"class": 10, "angle": jnp.zeros(2)}`. A list of G conditions has leaves [G, ...].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance import checks
from guidance.shapes import like, null_like
from guidance.types import Array, Cond


def dropped(cond: Cond, null: Cond, drop: Array) -> Cond:
    """Replaces the condition by `null` in the rows where `drop` [batch] is true, to train the unconditional branch."""
    return jax.tree.map(lambda c, n: jnp.where(like(drop, c), n, c), cond, null_like(cond, null))


def is_null(cond: Cond, null: Cond) -> Array:
    """Returns which rows equal the null condition in every leaf, [batch]."""
    return _all_leaves(jax.tree.map(_rows_equal, cond, null_like(cond, null)))


def places(cond: Cond, conditions: Cond) -> tuple[Array, Array]:
    """Finds each row of `cond` in the list `conditions`; returns (i, found), [batch] each.

    i is the number of the first condition, leaves [G, ...], that equals the row exactly in every leaf. If there is
    none, i is 0 and found is False. The cost is batch G comparisons of whole conditions.
    """
    checks.same_structure("the list of conditions", cond, conditions)
    equal = _all_leaves(
        jax.tree.map(lambda c, g: jax.vmap(lambda row: _rows_equal(row[None], g))(c), cond, conditions)
    )
    return jnp.argmax(equal, axis=1), jnp.any(equal, axis=1)


def _rows_equal(a: Array, b: Array) -> Array:
    same = a == b
    return same.reshape(same.shape[0], -1).all(axis=1)


def _all_leaves(tree: Cond) -> Array:
    return jnp.stack(jax.tree.leaves(tree)).all(axis=0)


def listed(conditions: Any) -> Cond:
    """Returns a list of G >= 1 conditions as arrays, leaves [G, ...]. Raises ValueError for what is no such list."""
    conditions = jax.tree.map(jnp.asarray, conditions)
    checks.is_list(conditions)
    return conditions


def size(cond: Cond) -> int:
    """Returns the number of rows of a condition."""
    return jax.tree.leaves(cond)[0].shape[0]


def taken(cond: Cond, rows) -> Cond:
    """Returns the given rows of a condition. rows: a slice or integers [n]."""
    return jax.tree.map(lambda c: c[rows], cond)


def repeated(cond: Cond, times: int) -> Cond:
    """Repeats each row `times` times, the copies next to each other: leaves [batch * times, ...]."""
    return jax.tree.map(lambda c: jnp.repeat(c, times, axis=0), cond)


def flat_features(cond: Cond) -> Array:
    """Returns all leaves as floats, flattened within each row and joined in the order of the tree, [batch, d]."""
    return jnp.concatenate([_numbers(c).reshape(c.shape[0], -1) for c in jax.tree.leaves(cond)], axis=-1)


def _numbers(c: Array) -> Array:
    return c if jnp.issubdtype(c.dtype, jnp.floating) else c.astype(jnp.result_type(float))


def are_labels(conditions: Cond) -> bool:
    """Returns whether `conditions`, concrete values, are the labels 0, 1, .., G - 1, so that label c is in place c."""
    structure: Any = jax.tree.structure(conditions)
    if structure != jax.tree.structure(0):
        return False
    labels = np.asarray(conditions)
    return np.issubdtype(labels.dtype, np.integer) and np.array_equal(labels, np.arange(len(labels)))
