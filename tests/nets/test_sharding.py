"""Sharding rules: which axis goes where, and that a network computes the same on two devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from guidance.nets.dit import DiT
from guidance.nets.sharding import RULES, batch_sharding, shardings, specs

NET = DiT(width=16, heads=2, depth=1, patch=2, classes=4)


def _mesh(data, model):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _params(net=NET):
    """Random everywhere, so that nothing is zero by adaLN-zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *_inputs())["params"]
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), shapes)


def _inputs():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 4, 2)), jnp.float32)
    return x, jnp.linspace(1.0, 900.0, 4), jnp.arange(4)


def test_columns_then_rows():
    block = specs(_params(), _mesh(1, 2))["block_0"]
    assert block["qkv"] == {"kernel": P(None, None, "model", None), "bias": P(None, "model", None)}
    assert block["out"] == {"kernel": P("model", None, None), "bias": P(None)}
    assert block["up"] == {"kernel": P(None, "model"), "bias": P("model")}
    assert block["down"] == {"kernel": P("model", None), "bias": P(None)}
    assert specs(_params(), _mesh(1, 2))["patch_embed"]["kernel"] == P(None, None)


def test_heads_are_never_cut():
    """Three heads on two devices: the attention stays whole, the MLP does not."""
    block = specs(_params(DiT(width=12, heads=3, depth=1, patch=2, classes=4)), _mesh(1, 2))["block_0"]
    assert block["qkv"]["kernel"] == P(None, None, None, None) and block["out"]["kernel"] == P(None, None, None)
    assert block["up"]["kernel"] == P(None, "model")


def test_fsdp_takes_the_largest_axis_that_is_left():
    block = specs(_params(), _mesh(2, 1), fsdp=True)["block_0"]
    assert block["up"]["kernel"] == P("data", "model")  # the largest axis is the model's
    assert block["down"]["kernel"] == P("model", "data")
    assert block["out"] == {"kernel": P("model", None, "data"), "bias": P(None)}
    odd = {"conv": {"kernel": jnp.zeros((3, 3, 6, 10))}, "odd": {"kernel": jnp.zeros((3, 5))}}
    assert specs(odd, _mesh(2, 1), fsdp=True) == {
        "conv": {"kernel": P(None, None, None, "data")},
        "odd": {"kernel": P(None, None)},
    }
    assert specs(odd, _mesh(2, 1)) == {"conv": {"kernel": P(*[None] * 4)}, "odd": {"kernel": P(None, None)}}


def test_the_first_rule_of_the_right_rank_decides():
    params = {
        "a": {"out": {"kernel": jnp.zeros((4, 6))}},
        "shortcut": {"kernel": jnp.zeros((4, 4))},
        "layout": jnp.zeros(2),
    }
    whole = jax.tree.map(lambda a: P(*[None] * a.ndim), params)
    assert specs(params, _mesh(1, 2)) == whole  # no such rank, no such name
    mine = [(r"out/kernel$", P("model", None)), *RULES]
    assert specs(params, _mesh(1, 2), mine)["a"]["out"]["kernel"] == P("model", None)


@pytest.mark.parametrize("data, model, fsdp", [(1, 2, False), (2, 1, False), (2, 1, True), (1, 2, True)])
def test_two_devices_compute_what_one_does(data, model, fsdp):
    params, inputs, mesh = _params(), _inputs(), _mesh(data, model)
    expected = jax.jit(NET.apply)({"params": params}, *inputs)
    spread = jax.device_put(params, shardings(params, mesh, fsdp=fsdp))
    batch = jax.device_put(inputs, batch_sharding(mesh))
    out = jax.block_until_ready(jax.jit(NET.apply)({"params": spread}, *batch))
    chex.assert_trees_all_close(np.asarray(out), np.asarray(expected), atol=1e-5)
    held = sum(a.addressable_shards[0].data.size for a in jax.tree.leaves(spread))
    total = sum(a.size for a in jax.tree.leaves(params))
    if fsdp or model == 2:
        assert held < 0.8 * total
    else:
        assert held == total
