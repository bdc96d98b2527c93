"""Where the arrays of a network live on a mesh with the axes "data" and "model": rules by the path of a parameter.

Tensor parallelism in the manner of Megatron-LM: the layer that widens (query, key and value; the first of an MLP) is
split by columns, the layer that narrows again by rows, so that a block needs one sum over "model" for its attention
and one for its MLP. Query, key and value are split between heads. The batch is split over "data".
Source: Megatron-LM, arXiv 1909.08053, section 3; ZeRO, arXiv 1910.02054, stage 3, for `fsdp`.
"""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# path regex -> spec; the first that matches decides, the rest is replicated. Kernels are those of Flax: [in, out],
# qkv [in, 3, heads, head width] (its bias without in), out [heads, head width, out].
RULES = (
    (r"(^|/)qkv/kernel$", P(None, None, "model", None)),
    (r"(^|/)qkv/bias$", P(None, "model", None)),
    (r"(^|/)out/kernel$", P("model", None, None)),
    (r"(^|/)(up|modulation)/kernel$", P(None, "model")),
    (r"(^|/)(up|modulation)/bias$", P("model")),
    (r"(^|/)down/kernel$", P("model", None)),
)
Rules = Sequence[tuple[str, P]]


def specs(params, mesh: Mesh, rules: Rules = RULES, fsdp: bool = False):
    """The PartitionSpec of every parameter, as a pytree like `params` (arrays or ShapeDtypeStructs).

    The first rule whose regex is found in the path ("block_0/up/kernel") and whose rank is the array's applies; of its
    axes those are dropped that the mesh does not divide evenly. fsdp: besides, the largest axis left that "data"
    divides is split over it. Vectors are not: to gather them costs more than to hold them.
    """
    sizes = dict(mesh.shape)
    return jax.tree_util.tree_map_with_path(lambda path, a: _spec(_name(path), a.shape, sizes, rules, fsdp), params)


def shardings(params, mesh: Mesh, rules: Rules = RULES, fsdp: bool = False):
    """The NamedSharding of every parameter, for `jax.device_put` or `jax.jit(in_shardings=...)`; see `specs`."""
    tree = specs(params, mesh, rules, fsdp)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree, is_leaf=lambda leaf: isinstance(leaf, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of any array with leading axis [batch]: split over "data", whole over "model"."""
    return NamedSharding(mesh, P("data"))


def _name(path) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _spec(name: str, shape: tuple[int, ...], sizes: dict[str, int], rules: Rules, fsdp: bool) -> P:
    matching = (spec for regex, spec in rules if re.search(regex, name) and len(spec) == len(shape))
    axes = list(next(matching, P(*[None] * len(shape))))
    axes = [
        axis if axis in sizes and size % sizes[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)
    ]
    if fsdp and len(shape) > 1:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % sizes["data"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "data"
    return P(*axes)
