"""Finite sets of true samples, sorted by their condition, and draws from them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Cond


class Pool(NamedTuple):
    """True samples of G conditions; those of one condition are one run of rows."""

    x0: Array  # [N, ...]
    cond: Cond  # leaves [N, ...]
    starts: Array  # [G]
    counts: Array  # [G]


def pool(x0: Any, cond: Cond, conditions: Cond) -> Pool:
    """Sorts samples x0 [N, ...] with cond leaves [N, ...] by which row of `conditions`, leaves [G, ...], theirs is.

    Samples of other conditions are left out. Raises ValueError if a condition has no sample.
    """
    places = places_of(cond, conditions)
    known = np.flatnonzero(places >= 0)
    order = known[np.argsort(places[known], kind="stable")]
    counts = np.bincount(places[known], minlength=jax.tree.leaves(conditions)[0].shape[0])
    if counts.min() == 0:
        i = int(counts.argmin())
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[i].tolist() if np.ndim(leaf) == 1 else "...", conditions)
        raise ValueError(f"condition {i} ({own}) has no sample among {len(places)}")
    starts = np.cumsum(counts) - counts
    x0, cond = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[order]), (x0, cond))
    return Pool(x0, cond, jnp.asarray(starts), jnp.asarray(counts))


def places_of(cond: Cond, conditions: Cond) -> np.ndarray:
    """Which row of `conditions`, leaves [G, ...], equals each row of `cond`, leaves [N, ...]: [N], -1 for none."""
    conditions = jax.tree.map(np.asarray, conditions)
    cond = jax.tree.map(lambda own, like: np.asarray(own).astype(like.dtype), cond, conditions)
    known: dict[bytes, int] = {}
    for i, row in enumerate(_rows(conditions)):
        if known.setdefault(row, i) != i:
            raise ValueError(f"conditions {known[row]} and {i} are the same one")
    return np.asarray([known.get(row, -1) for row in _rows(cond)], np.int64)


def _rows(tree: Cond) -> list[bytes]:
    """The rows of all leaves [n, ...] together, as bytes that can be compared."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [b"".join(parts) for parts in zip(*([row.tobytes() for row in leaf] for leaf in leaves), strict=True)]


def draw(key: Array, data: Pool, n: int) -> tuple[Array, Cond]:
    """n pairs (x0, cond) with replacement, each sample as likely."""
    rows = jax.random.randint(key, (n,), 0, data.x0.shape[0])
    return data.x0[rows], jax.tree.map(lambda leaf: leaf[rows], data.cond)


def draw_each(key: Array, data: Pool, k: int, places: Array) -> Array:
    """k samples of each of K conditions, given by their places [K], with replacement: [K, k, ...]."""
    starts, counts = data.starts[places], data.counts[places]
    unit = jax.random.uniform(key, (places.shape[0], k))
    rows = starts[:, None] + jnp.floor(unit * counts[:, None]).astype(jnp.int32)
    return data.x0[jnp.minimum(rows, (starts + counts - 1)[:, None])]
