"""DiT and SiT: what their structure implies, and the borders to our time and predictions.

That the network computes what the published one does is held against diffusers in test_parity.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import predictions, schedules
from guidance.nets import timesteps
from guidance.nets.dit import TIMESTEPS, Block, DiT, dit, dit_denoiser, sit_denoiser
from guidance.nets.perturb import identity_attention

NET = DiT(width=16, heads=2, depth=2, patch=2, classes=5)


@functools.cache
def _inputs(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 6, 4, 2)), dtype)
    return x, jnp.asarray([3.0, 250.5, 990.0], dtype), jnp.asarray([0, 4, 5])


@functools.cache
def _params(dtype=jnp.float32):
    """Random where init is zero, too: every part of the network then matters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), *_inputs())["params"]
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * (0.3 if a.ndim > 1 else 0.1), dtype), shapes)


def _out(net=NET, params=None, inputs=None, **call):
    apply = jax.jit(functools.partial(net.apply, **call))
    return apply({"params": _params() if params is None else params}, *(inputs or _inputs()))


@pytest.mark.parametrize("size, millions", [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_published_parameter_counts(size, millions):
    """Table 4 of arXiv 2212.09748."""
    net = dit(size)
    assert net.learn_sigma and net.classes == 1000
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )
    assert round(sum(a.size for a in jax.tree.leaves(shapes)) / 1e6) == millions


@pytest.mark.parametrize("size", ["M/2", "XL/3", "XL", "", "xl/2"])
def test_unknown_sizes_are_refused(size):
    with pytest.raises(ValueError, match="known: S/2, S/4, S/8, B/2"):
        dit(size)


def test_blocks_start_as_the_identity_and_the_output_as_zero():
    params = jax.jit(NET.init)(jax.random.key(0), *_inputs())["params"]
    chex.assert_trees_all_equal(_out(params=params), jnp.zeros((3, 6, 4, 4)))
    seen = params | {"final": _params()["final"], "final_modulation": _params()["final_modulation"]}
    chex.assert_trees_all_close(_out(params=seen), _out(params=seen, skip=(0, 1)), atol=1e-6)
    assert float(jnp.abs(_out(params=seen)).max()) > 0.01


def test_skipping_the_last_blocks_is_the_shallower_network():
    """The names of the blocks that are left do not move."""
    kept = {name: leaf for name, leaf in _params().items() if name != "block_1"}
    shallow = DiT(width=16, heads=2, depth=1, patch=2, classes=5)
    chex.assert_trees_all_close(_out(skip=(1,)), _out(shallow, kept), rtol=1e-6)
    assert float(jnp.abs(_out() - _out(skip=(1,))).max()) > 1e-2


def test_perturbed_attention_in_chosen_blocks():
    plain, doing_nothing = _out(), _out(perturb=lambda logits: logits, perturb_blocks=(0, 1))
    chex.assert_trees_all_close(plain, doing_nothing, atol=1e-5)
    outs = [_out(perturb=identity_attention, perturb_blocks=blocks) for blocks in ((0,), (1,), (0, 1))]
    for i, out in enumerate([plain, *outs]):
        assert all(float(jnp.abs(out - other).max()) > 1e-3 for other in outs[i:])


def test_identity_attention_separates_the_tokens():
    """With every token attending to itself only, a patch of the output sees its own patch of the input."""
    x, t, label = _inputs()
    one, other = (
        _out(inputs=(x, t, label), perturb=identity_attention, perturb_blocks=(0, 1))
        for x in (x, x.at[:, :2, :2].add(1.0))
    )
    change = jnp.abs(one - other)
    assert float(change[:, :2, :2].min()) > 0 and float(change[:, 2:].max()) == float(change[:, :, 2:].max()) == 0


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_the_floor_of_each_normalisation(x64, part):
    """A block built to be h + LN(h), by its attention or by its MLP, on h of variance near the floors."""
    eye, rng = jnp.eye(4), np.random.default_rng(0)
    gates = {"attention": [0, 0, 1, 0, 0, 0], "mlp": [0, 0, 0, 0, 0, 1]}[part]
    params = {
        "modulation": {"kernel": jnp.zeros((4, 24)), "bias": jnp.repeat(jnp.asarray(gates, float), 4)},
        # every token attends to itself, and the value is the token
        "qkv": {"kernel": jnp.stack([eye] * 3, 1).reshape(4, 3, 2, 2), "bias": jnp.zeros((3, 2, 2))},
        "out": {"kernel": eye.reshape(2, 2, 4), "bias": jnp.zeros(4)},
        # GELU is the identity far to the right of zero
        "up": {"kernel": jnp.eye(4, 16), "bias": jnp.full(16, 50.0)},
        "down": {"kernel": jnp.eye(16, 4), "bias": jnp.full(4, -50.0)},
    }
    h = jnp.asarray(rng.normal(size=(1, 3, 4))) * 1e-3
    block = Block(heads=2, mlp_norm_eps=1e-5, dtype=None)
    out = block.apply({"params": params}, h, jnp.zeros((1, 4)), identity_attention)
    floor = {"attention": 1e-6, "mlp": 1e-5}[part]
    centred = h - h.mean(-1, keepdims=True)
    np.testing.assert_allclose(out - h, centred / jnp.sqrt(h.var(-1, keepdims=True) + floor), atol=1e-9)


def test_what_is_not_there_is_refused():
    x, t, label = _inputs()
    for call, message in (
        ({"skip": (2,)}, "skip names blocks from 0 to 1"),
        ({"perturb": identity_attention, "perturb_blocks": (-1,)}, "perturb_blocks names blocks from 0 to 1"),
        ({"perturb": identity_attention}, "needs perturb_blocks"),
        ({"perturb_blocks": (1,)}, "needs perturb"),
    ):
        with pytest.raises(ValueError, match=message):
            NET.apply({"params": _params()}, x, t, label, **call)
    with pytest.raises(ValueError, match="multiples of the patch 2"):
        NET.apply({"params": _params()}, x[:, :5], t, label)
    with pytest.raises(ValueError, match="multiple of the 3 heads"):
        NET.clone(heads=3).apply({"params": _params()}, x, t, label)


def test_every_input_matters_and_samples_do_not_mix():
    x, t, label = _inputs()
    apply = jax.jit(lambda *inputs: NET.apply({"params": _params()}, *inputs))
    out = apply(x, t, label)
    for other in ((x, t + 1, label), (x, t, label.at[2].set(0)), (x[:, ::-1], t, label)):
        assert float(jnp.abs(apply(*other) - out)[2].max()) > 1e-3
    each = jax.vmap(lambda x, t, y: apply(x[None], t[None], y[None])[0])(x, t, label)
    chex.assert_trees_all_close(out, each, atol=1e-4)  # of values of order ten


def test_the_null_class_is_the_last_of_the_table():
    assert _params()["label"]["embedding"].shape == (6, 16)
    moved = _params() | {"label": {"embedding": _params()["label"]["embedding"].at[5].add(1.0)}}
    change = jnp.abs(_out(params=moved) - _out()).max(axis=(1, 2, 3))
    assert float(change[2]) > 1e-3 and float(change[:2].max()) == 0


def test_recomputing_changes_nothing_but_memory():

    def loss(net, params):
        out = net.apply({"params": params}, *_inputs(), perturb=identity_attention, perturb_blocks=(1,))
        return jnp.mean(out**2)

    losses = [functools.partial(loss, net) for net in (NET, NET.clone(remat=True))]
    plain, again = (jax.jit(jax.grad(one))(_params()) for one in losses)
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-4)
    assert ["remat" in str(jax.make_jaxpr(one)(_params())) for one in losses] == [False, True]


@pytest.mark.parametrize("residual", [None, jnp.float32])
def test_bfloat16_computes_in_it_and_keeps_the_residual_as_told(residual):
    net = NET.clone(dtype=jnp.bfloat16, residual=residual)
    seeing = {"capture_intermediates": lambda module, _: isinstance(module, Block), "mutable": "intermediates"}
    out, seen = _out(net, **seeing)
    assert out.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(seen)} == {jnp.dtype(residual or jnp.bfloat16)}
    # some tens of roundings of relative size 2^-9
    error = float(jnp.abs(out - _out()).max() / jnp.abs(_out()).max())
    assert 1e-4 < error < 30 * 2.0**-9


# --- the borders


def test_dit_at_its_own_timesteps(x64):
    """D = (x - sigma eps(x, k)) / alpha where alpha^2 is the alpha_bar_k of the network's own training."""
    params = _params(dtype=jnp.float64)
    x, _, label = _inputs(jnp.float64)
    k = np.asarray([0, 400, 999])
    t = timesteps.times(TIMESTEPS, schedules.linear_vp(), k)
    eps = _out(params=params, inputs=(x, jnp.asarray(k, jnp.float64), label))[..., :2]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k].reshape(3, 1, 1, 1)
    expected = (np.asarray(x) - np.sqrt(1 - alpha_bar) * np.asarray(eps)) / np.sqrt(alpha_bar)
    np.testing.assert_allclose(jax.jit(dit_denoiser(NET, params))(x, t, label), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_dit_under_other_schedules_is_the_same_denoiser(x64, name):
    """D at equal signal-to-noise ratio and equal x / sqrt(alpha^2 + sigma^2) does not know the schedule."""
    params = _params(dtype=jnp.float64)
    x, _, label = _inputs(jnp.float64)
    vp, other = schedules.linear_vp(), schedules.by_name(name)
    t = jnp.asarray([0.1, 0.5, 0.9])
    u = other.time(vp.log_snr(t))
    scaled = x * jnp.sqrt(other.alpha(u) ** 2 + other.sigma(u) ** 2).reshape(3, 1, 1, 1)
    expected = jax.jit(dit_denoiser(NET, params))(x, t, label)
    np.testing.assert_allclose(
        jax.jit(dit_denoiser(NET, params, other))(scaled, u, label), expected, rtol=1e-6, atol=1e-8
    )


def _constant(value):
    """Params that make the network predict `value` [2] everywhere, and nonsense in the two channels after."""
    params = jax.tree.map(jnp.zeros_like, _params())
    bias = jnp.tile(jnp.concatenate([value, jnp.asarray([1e3, -1e3])]), 4)
    return params | {"final": {"kernel": params["final"]["kernel"], "bias": bias}}


def test_dit_finds_the_data_behind_a_known_noise():
    """x = alpha x_0 + sigma e with the e that the network predicts: D = x_0."""
    noise = jnp.asarray([0.3, -1.2])
    x0, t, label = _inputs()[0], jnp.asarray([0.05, 0.5, 0.9]), _inputs()[2]
    x = schedules.diffuse(schedules.linear_vp(), x0, jnp.broadcast_to(noise, x0.shape), t)
    # dividing by alpha(0.9) = 0.017 magnifies rounding
    np.testing.assert_allclose(jax.jit(dit_denoiser(NET, _constant(noise)))(x, t, label), x0, atol=1e-4)


def test_sit_walks_straight_to_the_data():
    """SiT's velocity is data - noise: with a constant one every x_t = x_0 - t v has D = x_0."""
    velocity = jnp.asarray([0.3, -1.2])
    x0, t, label = _inputs()[0], jnp.asarray([0.0, 0.5, 1.0]), _inputs()[2]
    x = x0 - t.reshape(3, 1, 1, 1) * jnp.broadcast_to(velocity, x0.shape)
    np.testing.assert_allclose(jax.jit(sit_denoiser(NET, _constant(velocity)))(x, t, label), x0, atol=1e-6)


def test_sit_runs_its_own_time_backwards():
    x, _, label = _inputs()
    t = jnp.asarray([0.1, 0.5, 0.8])
    v = _out(inputs=(x, jnp.asarray([0.9, 0.5, 0.2]), label))[..., :2]
    expected = x + t.reshape(3, 1, 1, 1) * v
    np.testing.assert_allclose(jax.jit(sit_denoiser(NET, _params()))(x, t, label), expected, atol=1e-5)


def test_without_a_variance_the_output_is_as_wide_as_the_input():
    net = NET.clone(learn_sigma=False)
    out = jax.eval_shape(net.init_with_output, jax.random.key(0), *_inputs())[0]
    assert out.shape == (3, 6, 4, 2)


@pytest.mark.parametrize("wrap", [dit_denoiser, sit_denoiser])
def test_a_denoiser_has_its_params_as_leaves_and_compiles_once(wrap):
    traces = []

    @jax.jit
    def evaluate(denoise, x, t, label):
        traces.append(1)
        return denoise(x, t, label)

    x, _, label = _inputs()
    t = jnp.asarray([0.2, 0.5, 0.9])
    one, two = (evaluate(wrap(NET, jax.tree.map(lambda p, s=s: s * p, _params())), x, t, label) for s in (1.0, 1.1))
    assert len(traces) == 1 and float(jnp.abs(one - two).max()) > 1e-3
    chex.assert_trees_all_equal(jax.tree.leaves(wrap(NET, _params())), jax.tree.leaves(_params()))
    weak = evaluate(wrap(NET, _params(), perturb=identity_attention, perturb_blocks=(1,)), x, t, label)
    assert len(traces) == 2 and float(jnp.abs(one - weak).max()) > 1e-4


def test_a_denoiser_guides_and_differentiates():
    x, _, label = _inputs()
    t = jnp.asarray([0.0, 0.5, 1.0])  # both ends
    denoise = jax.jit(dit_denoiser(NET, _params()))
    grads = jax.jit(jax.grad(lambda x: jnp.sum(denoise(x, t, label))))(x)
    chex.assert_tree_all_finite(grads)
    eps = predictions.x0_to("eps", schedules.linear_vp(), x, denoise(x, t, label), t)
    chex.assert_tree_all_finite(eps)
