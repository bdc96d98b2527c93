"""`Pool`: a finite set of true samples, sorted by condition, from which batches are drawn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Cond


class Pool(NamedTuple):
    """True samples of G conditions; those of condition i are the rows starts[i] .. starts[i] + counts[i] - 1."""

    x0: Array  # [N, ...]
    cond: Cond  # leaves [N, ...]
    starts: Array  # [G]
    counts: Array  # [G]


def pool(x0: Any, cond: Cond, conditions: Cond) -> Pool:
    """Sorts samples x0 [N, ...], cond leaves [N, ...], in the order of the list `conditions`, leaves [G, ...].

    Samples of conditions that are not listed are left out. Raises ValueError if a listed condition has no sample.
    """
    places = places_of(cond, conditions)
    listed = np.flatnonzero(places >= 0)
    order = listed[np.argsort(places[listed], kind="stable")]
    counts = np.bincount(places[listed], minlength=jax.tree.leaves(conditions)[0].shape[0])
    if counts.min() == 0:
        i = int(counts.argmin())
        shown = jax.tree.map(lambda leaf: np.asarray(leaf)[i].tolist() if np.ndim(leaf) == 1 else "...", conditions)
        raise ValueError(f"condition {i} ({shown}) has no sample among {len(places)}")
    starts = np.cumsum(counts) - counts
    x0, cond = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[order]), (x0, cond))
    return Pool(x0, cond, jnp.asarray(starts), jnp.asarray(counts))


def places_of(cond: Cond, conditions: Cond) -> np.ndarray:
    """Finds each row of `cond`, leaves [N, ...], in the list `conditions`, leaves [G, ...]; returns its number, [N].

    A row that is not in the list gets -1. Raises ValueError if two conditions of the list are equal.
    """
    conditions = jax.tree.map(np.asarray, conditions)
    cond = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), cond, conditions)
    known: dict[bytes, int] = {}
    for i, row in enumerate(_rows(conditions)):
        if known.setdefault(row, i) != i:
            raise ValueError(f"conditions {known[row]} and {i} are equal")
    return np.asarray([known.get(row, -1) for row in _rows(cond)], np.int64)


def _rows(tree: Cond) -> list[bytes]:
    """Returns each row of a tree with leaves [n, ...] as bytes, which can be compared and looked up."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [b"".join(parts) for parts in zip(*([row.tobytes() for row in leaf] for leaf in leaves), strict=True)]


def draw(key: Array, data: Pool, n: int) -> tuple[Array, Cond]:
    """Draws n pairs (x0 [n, ...], cond leaves [n, ...]) with replacement, uniformly over all samples."""
    rows = jax.random.randint(key, (n,), 0, data.x0.shape[0])
    return data.x0[rows], jax.tree.map(lambda leaf: leaf[rows], data.cond)


def draw_each(key: Array, data: Pool, k: int, places: Array) -> Array:
    """Draws k samples of each of K conditions with replacement, [K, k, ...]. places [K]: their numbers in the list."""
    starts, counts = data.starts[places], data.counts[places]
    unit = jax.random.uniform(key, (places.shape[0], k))
    rows = starts[:, None] + jnp.floor(unit * counts[:, None]).astype(jnp.int32)
    return data.x0[jnp.minimum(rows, (starts + counts - 1)[:, None])]
