"""The floating knobs of a rule, a guide or a solver, taken out so that a test can differentiate in them."""

import jax
import jax.numpy as jnp


def floating(tree):
    """(its floating leaves as arrays, what builds the same tree from other ones)."""
    leaves, form = jax.tree.flatten(tree)
    floats = [jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) for leaf in leaves]

    def built(knobs):
        given = iter(knobs)
        return jax.tree.unflatten(form, [next(given) if f else leaf for leaf, f in zip(leaves, floats, strict=True)])

    return [jnp.asarray(leaf, float) for leaf, f in zip(leaves, floats, strict=True) if f], built
