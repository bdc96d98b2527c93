"""Conditions: pytrees of arrays, leaves [batch, ...]. A class label, int32 [batch], is the common case of one leaf.

The null condition has the same structure, its leaves without the batch axis: the label C for C classes, or
`{"class": 10, "angle": jnp.zeros(2)}`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance import checks
from guidance.shapes import like, null_like
from guidance.types import Array, Cond


def dropped(cond: Cond, null: Cond, drop: Array) -> Cond:
    """The condition with null in the rows that `drop` [batch] names: what trains the unconditional branch."""
    return jax.tree.map(lambda c, n: jnp.where(like(drop, c), n, c), cond, null_like(cond, null))


def is_null(cond: Cond, null: Cond) -> Array:
    """Which rows hold the null condition in every leaf, [batch]."""
    return _all_leaves(jax.tree.map(_rows_equal, cond, null_like(cond, null)))


def places(cond: Cond, among: Cond) -> tuple[Array, Array]:
    """(i, found), [batch] each: the first row of `among`, leaves [G, ...], that equals a row of `cond` in every leaf.

    Where there is none, i is 0 and found is False. Compared exactly: [batch, G, ...] comparisons.
    """
    checks.same_structure("what is listed", cond, among)
    equal = _all_leaves(jax.tree.map(lambda c, a: jax.vmap(lambda row: _rows_equal(row[None], a))(c), cond, among))
    return jnp.argmax(equal, axis=1), jnp.any(equal, axis=1)


def _rows_equal(a: Array, b: Array) -> Array:
    same = a == b
    return same.reshape(same.shape[0], -1).all(axis=1)


def _all_leaves(tree: Cond) -> Array:
    return jnp.stack(jax.tree.leaves(tree)).all(axis=0)


def listed(conditions: Any) -> Cond:
    """A list of G conditions as arrays, leaves [G, ...], G >= 1. Raises ValueError for what is no such list."""
    conditions = jax.tree.map(jnp.asarray, conditions)
    checks.is_list(conditions)
    return conditions


def size(cond: Cond) -> int:
    """How many rows a condition has."""
    return jax.tree.leaves(cond)[0].shape[0]


def taken(cond: Cond, rows) -> Cond:
    """These rows of a condition; `rows`: a slice or integers [n]."""
    return jax.tree.map(lambda c: c[rows], cond)


def repeated(cond: Cond, times: int) -> Cond:
    """Every row so many times in a row, leaves [batch * times, ...]."""
    return jax.tree.map(lambda c: jnp.repeat(c, times, axis=0), cond)


def flat_features(cond: Cond) -> Array:
    """The leaves as numbers, flattened for each row and joined in the order of the tree, [batch, d]."""
    return jnp.concatenate([_numbers(c).reshape(c.shape[0], -1) for c in jax.tree.leaves(cond)], axis=-1)


def _numbers(c: Array) -> Array:
    return c if jnp.issubdtype(c.dtype, jnp.floating) else c.astype(jnp.result_type(float))


def are_labels(conditions: Cond) -> bool:
    """Whether conditions, of known values, are the labels 0 .. G - 1: then a label is its own place among them."""
    structure: Any = jax.tree.structure(conditions)
    if structure != jax.tree.structure(0):
        return False
    labels = np.asarray(conditions)
    return np.issubdtype(labels.dtype, np.integer) and np.array_equal(labels, np.arange(len(labels)))
