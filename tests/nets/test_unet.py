"""The U-Net of ADM: what its structure implies, the borders to our time, and both layouts of its weights.

That the network computes what the published one does is held against diffusers in test_parity.py.
"""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import parity
from guidance import predictions, schedules
from guidance.nets import published_unet, timesteps
from guidance.nets.perturb import identity_attention
from guidance.nets.unet import (
    PRESETS,
    TIMESTEPS,
    Down,
    Middle,
    UNet,
    Up,
    adm_denoiser,
    edm_denoiser,
    network,
    unet,
)

NET = UNet(channels=(4, 8), layers=1, attention=(1,), classes=5, head=4, groups=2, learn_sigma=True)


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
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, dtype), shapes)


@functools.cache
def _compiled(net, **call):
    return jax.jit(functools.partial(net.apply, **call))


def _out(net=NET, params=None, inputs=None, **call):
    apply = _compiled(net, **call)
    return apply({"params": _params() if params is None else params}, *(inputs or _inputs()))


def _shapes(net, side, channels):
    x = jnp.zeros((1, side, side, channels))
    return jax.eval_shape(net.init_with_output, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))


def test_the_published_size():
    """296M parameters, table 4 of arXiv 2105.05233; no row for a null class; eps and a variance."""
    out, variables = _shapes(unet("imagenet64"), 64, 3)
    assert round(sum(a.size for a in jax.tree.leaves(variables)) / 1e6) == 296
    assert variables["params"]["label"]["embedding"].shape[0] == 1000
    assert out.shape == (1, 64, 64, 6)


@pytest.mark.parametrize("name", ["small28", "base28"])
def test_small_presets_take_28_pixels(name):
    out, _ = _shapes(unet(name, classes=10), 28, 1)
    assert out.shape == (1, 28, 28, 1)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match=f"'adm'; known: {', '.join(PRESETS)}"):
        unet("adm")


def test_it_starts_with_zero_outputs_and_blocks_that_add_nothing():
    params = jax.jit(NET.init)(jax.random.key(0), *_inputs())["params"]
    chex.assert_trees_all_equal(_out(params=params), jnp.zeros((3, 6, 4, 4)))
    seen = params | {"conv_out": _params()["conv_out"]}
    x, t, label = _inputs()
    # no block adds anything, so that neither time nor label is seen yet
    chex.assert_trees_all_equal(_out(params=seen), _out(params=seen, inputs=(x, t + 1, label - label)))
    assert float(jnp.abs(_out(params=seen)).max()) > 0.01


def test_every_input_matters_and_samples_do_not_mix():
    x, t, label = _inputs()
    out, apply = _out(), (lambda *inputs: _out(inputs=inputs))
    for other in ((x, t + 1, label), (x, t, label.at[2].set(0)), (x[:, ::-1], t, label)):
        assert float(jnp.abs(apply(*other) - out)[2].max()) > 1e-3
    each = jax.vmap(lambda x, t, y: apply(x[None], t[None], y[None])[0])(x, t, label)
    chex.assert_trees_all_close(out, each, atol=1e-4)


def test_the_null_class_is_the_last_of_the_table_and_optional():
    table = _params()["label"]["embedding"]
    assert table.shape == (6, 16)
    change = jnp.abs(_out(params=_params() | {"label": {"embedding": table.at[5].add(1.0)}}) - _out())
    assert float(change[2].max()) > 1e-3 and float(change[:2].max()) == 0
    for fields, rows in (({"null": False}, 5), ({"classes": 0}, 1)):
        assert _shapes(NET.clone(**fields), 4, 2)[1]["params"]["label"]["embedding"].shape == (rows, 16)
    assert "label" not in _shapes(NET.clone(classes=0, null=False), 4, 2)[1]["params"]


def test_the_time_embedding_in_the_order_and_at_the_frequencies_of_ddpm():
    kernel = _params()["time_in"]["kernel"]
    turned = _params() | {"time_in": _params()["time_in"] | {"kernel": jnp.concatenate([kernel[2:], kernel[:2]])}}
    chex.assert_trees_all_close(_out(NET.clone(sine_first=True), turned), _out(), atol=1e-5)
    assert float(jnp.abs(_out(NET.clone(sine_first=True)) - _out()).max()) > 1e-3
    assert float(jnp.abs(_out(NET.clone(freq_shift=1)) - _out()).max()) > 1e-3
    zero = (_inputs()[0], jnp.zeros(3), _inputs()[2])  # every wave is at its start, whatever its frequency
    chex.assert_trees_all_close(_out(NET.clone(freq_shift=1), inputs=zero), _out(inputs=zero), atol=1e-6)


def test_what_is_not_there_is_refused():
    x, t, label = _inputs()
    for fields, message in (
        ({"groups": 3}, r"multiples of the 3 groups, got \(4, 8\)"),
        ({"head": 3}, r"multiples of the head's 3, got \[8, 8\]"),
        ({"attention": (2,)}, r"resolutions from 0 to 1, got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            NET.clone(**fields).apply({"params": _params()}, x, t, label)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(5, 4\)"):
        NET.apply({"params": _params()}, x[:, :5], t, label)
    for how, message in (
        ({"perturb": identity_attention}, "needs perturb_at"),
        ({"perturb_at": ("middle",)}, "needs perturb"),
        ({"perturb": identity_attention, "perturb_at": ("up_1",)}, "down_1, middle, up_0; got"),
    ):
        with pytest.raises(ValueError, match=message):
            NET.apply({"params": _params()}, x, t, label, **how)


def test_perturbed_attention_in_chosen_parts():
    everywhere = ("down_1", "middle", "up_0")
    plain = _out()
    chex.assert_trees_all_close(plain, _out(perturb=lambda logits: logits, perturb_at=everywhere), atol=1e-4)
    outs = [_out(perturb=identity_attention, perturb_at=parts) for parts in ((one,) for one in everywhere)]
    outs.append(_out(perturb=identity_attention, perturb_at=everywhere))
    for i, out in enumerate([plain, *outs]):
        assert all(float(jnp.abs(out - other).max()) > 1e-4 for other in outs[i:])


def test_recomputing_changes_nothing_but_memory():

    def loss(net, params):
        out = net.apply({"params": params}, *_inputs(), perturb=identity_attention, perturb_at=("middle",))
        return jnp.mean(out**2)

    net = NET.clone(channels=(8,), attention=())
    shapes = jax.eval_shape(net.init, jax.random.key(0), *_inputs())["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)
    losses = [functools.partial(loss, one) for one in (net, net.clone(remat=True))]
    plain, again = (jax.jit(jax.grad(one))(params) for one in losses)
    chex.assert_trees_all_close(plain, again, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(plain["middle"]["residual_0"]["conv1"]["kernel"]).max()) > 1e-4
    assert ["remat" in str(jax.make_jaxpr(one)(params)) for one in losses] == [False, True]


@pytest.mark.parametrize("residual", [None, jnp.float32])
def test_bfloat16_computes_in_it_and_keeps_the_residual_as_told(residual):
    net = NET.clone(dtype=jnp.bfloat16, residual=residual)

    def seeing(module, method):
        return isinstance(module, Down | Middle | Up) and method == "__call__"

    out, seen = _out(net, capture_intermediates=seeing, mutable="intermediates")
    assert out.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(seen)} == {jnp.dtype(residual or jnp.bfloat16)}
    # some tens of roundings of relative size 2^-9
    error = float(jnp.abs(out - _out()).max() / jnp.abs(_out()).max())
    assert 1e-4 < error < 40 * 2.0**-9


# --- the borders


def test_adm_at_its_own_timesteps(x64):
    """D = (x - sigma eps(x, k)) / alpha where alpha^2 is the alpha_bar_k of the network's own cosine diffusion."""
    params = _params(dtype=jnp.float64)
    x, _, label = _inputs(jnp.float64)
    k = np.asarray([0, 400, 990])
    t = timesteps.times(TIMESTEPS, schedules.cosine(), k)
    eps = _out(params=params, inputs=(x, jnp.asarray(k, jnp.float64), label))[..., :2]
    f = np.cos(np.pi / 2 * (np.arange(1001) / 1000 + 0.008) / 1.008) ** 2
    alpha_bar = (f / f[0])[k + 1].reshape(3, 1, 1, 1)  # the clipped beta is the last, of k = 999
    expected = (np.asarray(x) - np.sqrt(1 - alpha_bar) * np.asarray(eps)) / np.sqrt(alpha_bar)
    np.testing.assert_allclose(jax.jit(adm_denoiser(NET, params))(x, t, label), expected, rtol=1e-6, atol=1e-6)


def test_the_cosine_table_ends_as_its_clip_says():
    """alpha_bar_T-1 = (1 - 0.999) alpha_bar_T-2; without the clip it would be zero."""
    alpha_bar = 1 / (1 + np.exp(-TIMESTEPS))
    np.testing.assert_allclose(alpha_bar[-1], 1e-3 * alpha_bar[-2], rtol=1e-9)
    assert np.all(np.diff(TIMESTEPS) < 0)


@pytest.mark.parametrize("name", ["rectified_flow", "cosine"])
def test_edm_under_other_schedules_is_the_same_denoiser(x64, name):
    """D(x/alpha; sigma/alpha) by the paper's own formula, at sigma_data = 0.7."""
    schedule, params = schedules.by_name(name), _params(dtype=jnp.float64)
    x, _, label = _inputs(jnp.float64)
    t = jnp.asarray([0.05, 0.5, 0.95])
    s = np.asarray(schedule.sigma(t) / schedule.alpha(t)).reshape(3, 1, 1, 1)
    noisy, d = np.asarray(x) / np.asarray(schedule.alpha(t)).reshape(3, 1, 1, 1), 0.7
    raw = _out(params=params, inputs=(noisy / np.sqrt(s**2 + d**2), np.log(s.ravel()) / 4, label))[..., :2]
    expected = d**2 / (s**2 + d**2) * noisy + s * d / np.sqrt(s**2 + d**2) * np.asarray(raw)
    denoise = jax.jit(edm_denoiser(NET, params, sigma_data=0.7, schedule=schedule))
    np.testing.assert_allclose(denoise(x, t, label), expected, rtol=1e-6, atol=1e-8)


def test_edm_at_both_ends():
    """Without noise D is the identity; of noise alone, x at alpha = 0, what the raw network says, times sigma_data."""
    x, _, label = _inputs()
    denoise = functools.partial(edm_denoiser, NET, _params(), schedule=schedules.rectified_flow())
    out = jax.jit(denoise())(x, jnp.asarray([0.0, 1.0, 1.0]), label)
    chex.assert_trees_all_close(out[0], x[0], atol=1e-6)
    raw = _out(inputs=(x, jnp.full(3, np.log(80.0) / 4), label))[..., :2]
    chex.assert_trees_all_close(out[1:], 0.5 * raw[1:], atol=1e-5)
    grads = jax.jit(jax.grad(lambda x: jnp.sum(denoise()(x, jnp.asarray([0.0, 0.5, 1.0]), label))))(x)
    chex.assert_tree_all_finite(grads)


def test_our_own_network_is_told_a_thousand_times_our_time():
    x, _, label = _inputs()
    t = jnp.asarray([0.0, 0.25, 1.0])
    out = jax.jit(network(NET))(_params(), x, t, label)
    chex.assert_trees_all_close(out, _out(inputs=(x, jnp.asarray([0.0, 250.0, 1000.0]), label))[..., :2], atol=1e-5)


def _ours(net, params, **how):
    return predictions.as_denoise(network(net, **how), params, "velocity", schedules.rectified_flow())


@pytest.mark.parametrize("wrap", [adm_denoiser, edm_denoiser, _ours])
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
    weak = evaluate(wrap(NET, _params(), perturb=identity_attention, perturb_at=("middle",)), x, t, label)
    assert len(traces) == 2 and float(jnp.abs(one - weak).max()) > 1e-4


# --- published weights

SMALL = parity.reference("unet").small
FIELDS = {name: value for name, value in SMALL.items() if name not in ("side", "batch")}


@functools.cache
def _theirs() -> dict[str, np.ndarray]:
    return parity.read(pathlib.Path(__file__).parent / "golden" / "unet.npz").weights


# blocks of the stored network in the authors' order: (0 is the first convolution) a block, its change of resolution,
# a block with attention, its change, a block; then two blocks at each resolution of the way up
BY_HAND = {
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0": "down_blocks.0.downsamplers.0",
    "input_blocks.3.0": "down_blocks.1.resnets.0",
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "input_blocks.4.0": "down_blocks.1.downsamplers.0",
    "input_blocks.5.0": "down_blocks.2.resnets.0",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.upsamplers.0",
    "output_blocks.2.0": "up_blocks.1.resnets.0",
    "output_blocks.2.1": "up_blocks.1.attentions.0",
    "output_blocks.3.0": "up_blocks.1.resnets.1",
    "output_blocks.3.1": "up_blocks.1.attentions.1",
    "output_blocks.3.2": "up_blocks.1.upsamplers.0",
    "output_blocks.4.0": "up_blocks.2.resnets.0",
    "output_blocks.5.0": "up_blocks.2.resnets.1",
}
LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
}
TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@functools.cache
def _by_hand() -> dict[str, np.ndarray]:
    """The stored diffusers weights under the names of the authors' files, as their unet.py builds its modules."""
    theirs, arrays = _theirs(), {"label_emb.weight": _theirs()["class_embedding.weight"]}
    for leaf in ("weight", "bias"):
        arrays |= {f"{ours}.{leaf}": theirs[f"{name}.{leaf}"] for ours, name in TOP.items()}
        for at, block in BY_HAND.items():
            for ours, name in LAYERS.items():
                if f"{block}.{name}.{leaf}" in theirs:
                    arrays[f"{at}.{ours}.{leaf}"] = theirs[f"{block}.{name}.{leaf}"]
            if "attentions" in block:
                qkv = np.concatenate([theirs[f"{block}.to_{one}.{leaf}"] for one in "qkv"])
                out = theirs[f"{block}.to_out.0.{leaf}"]
                arrays[f"{at}.qkv.{leaf}"] = qkv[..., None] if leaf == "weight" else qkv
                arrays[f"{at}.proj_out.{leaf}"] = out[..., None] if leaf == "weight" else out
    return arrays


def test_both_layouts_give_the_same_params_and_come_back():
    net = UNet(**FIELDS)
    params = published_unet.from_original(net, _by_hand())
    chex.assert_trees_all_equal(params, published_unet.from_diffusers(net, _theirs()))
    chex.assert_trees_all_equal(published_unet.to_original(net, params), _by_hand())
    chex.assert_trees_all_equal(published_unet.to_diffusers(net, params), _theirs())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": 10}, r"label_emb.weight has shape \(6, 32\), expected \(11, 32\)"),
        ({"learn_sigma": False}, r"out.2.bias has shape \(6,\), expected \(3,\)"),
        ({"attention": (0, 1)}, r"missing input_blocks.1.1.norm.bias"),
        ({"layers": 2}, r"missing input_blocks.4.0.skip_connection.bias .* and 104 more; unexpected"),
    ],
)
def test_the_file_of_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        published_unet.from_original(UNet(**FIELDS | change), _by_hand())
    assert "\n" not in str(error.value) and str(error.value).startswith("U-Net weights: ")
    with pytest.raises(ValueError, match="missing .*unexpected"):
        published_unet.from_diffusers(UNet(**FIELDS), _by_hand())
