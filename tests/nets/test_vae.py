"""The autoencoder: shapes, the law of its latents, its scaling, and what its convolutions may and may not see.

That it computes what the published one does is held against diffusers in test_parity.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets import vae
from guidance.nets.sharding import specs

NET = vae.AutoencoderKL(latents=2, widths=(4, 8), layers=1, groups=2)


@functools.cache
def _params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), _images())["params"]
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)


@functools.cache
def _images():
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, size=(2, 8, 6, 3)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _run(method, params, x):
    return NET.apply({"params": params}, x, method=method)


def test_the_published_size():
    """83.65 million parameters in 248 arrays, as diffusers builds it."""
    net = vae.AutoencoderKL()
    shapes = vae._shapes(net)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 83_653_863
    assert len(vae.shapes_of(vae._rows(net), shapes)) == 248
    posterior = jax.eval_shape(
        lambda p, x: net.apply({"params": p}, x, method="encode"), shapes, jnp.zeros((1, 64, 32, 3))
    )
    assert posterior.mean.shape == posterior.std.shape == (1, 8, 4, 4)


def test_shapes_dtypes_and_refusals():
    posterior = _run("encode", _params(), _images())
    chex.assert_shape(posterior, (2, 4, 3, 2))
    chex.assert_shape(_run("decode", _params(), posterior.mean), _images().shape)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(8, 5\)"):
        NET.apply({"params": _params()}, _images()[:, :, :5], method="encode")
    half = NET.clone(dtype=jnp.bfloat16)
    rounded = jax.jit(lambda x: half.apply({"params": _params()}, x, method="encode"))(_images())
    assert rounded.mean.dtype == jnp.float32
    # some tens of roundings of relative size 2^-9
    error = float(jnp.abs(rounded.mean - posterior.mean).max() / jnp.abs(posterior.mean).max())
    assert 1e-4 < error < 40 * 2.0**-9


@pytest.mark.parametrize("log_var, std", [(-2.0, np.exp(-1.0)), (99.0, np.exp(10.0)), (-99.0, np.exp(-15.0))])
def test_std_is_the_root_of_the_clipped_variance(log_var, std):
    """Bias of the last layer alone: mean 3 and the log variance as told."""
    params = jax.tree.map(jnp.zeros_like, _params())
    params["quant"]["bias"] = jnp.asarray([3.0, 3.0, log_var, log_var])
    posterior = _run("encode", params, _images())
    np.testing.assert_array_equal(posterior.mean, np.full((2, 4, 3, 2), 3.0))
    np.testing.assert_allclose(posterior.std, np.full((2, 4, 3, 2), std), rtol=1e-6)


def test_draws_have_the_mean_and_the_std():
    n = 20_000
    law = vae.Posterior(jnp.full((n, 1, 1, 2), 3.0), jnp.broadcast_to(jnp.asarray([0.0, 2.0]), (n, 1, 1, 2)))
    draws = np.asarray(vae.draw(jax.random.split(jax.random.key(0), n), law))
    np.testing.assert_array_equal(draws[..., 0], 3)
    assert abs(draws[..., 1].mean() - 3) < 5 * 2 / np.sqrt(n)
    assert abs(draws[..., 1].std() - 2) < 5 * 2 / np.sqrt(2 * n)


def test_scaling_is_the_published_factor_and_comes_back():
    latents = jnp.asarray([1.0, -2.0])
    np.testing.assert_allclose(vae.scale_latents(latents), [0.18215, -0.3643], rtol=1e-6)
    np.testing.assert_allclose(vae.unscale_latents(vae.scale_latents(latents)), latents, rtol=1e-6)


def test_halving_sees_zeros_below_and_to_the_right():
    """A resampling kernel with a one at its last tap reads two rows and columns on: zeros beyond the edge."""
    level = vae.Level(groups=1, dtype=None, channels=1, layers=0, change="half")
    image = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[2, 2].set(1.0)
    out = level.apply({"params": {"resample": {"kernel": kernel, "bias": jnp.zeros(1)}}}, image)
    np.testing.assert_array_equal(out[0, :, :, 0], [[11, 0], [0, 0]])


def test_doubling_repeats_pixels():
    level = vae.Level(groups=1, dtype=None, channels=1, layers=0, change="double")
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    image = jnp.arange(1.0, 5).reshape(1, 2, 2, 1)
    out = level.apply({"params": {"resample": {"kernel": kernel, "bias": jnp.zeros(1)}}}, image)
    np.testing.assert_array_equal(out[0, :, :, 0], np.kron([[1, 2], [3, 4]], np.ones((2, 2))))


def test_files_go_in_and_out():
    arrays = vae.to_diffusers(NET, _params())
    chex.assert_trees_all_equal(vae.from_diffusers(NET, arrays), _params())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in arrays.items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = array
    assert renamed.keys() != arrays.keys()
    chex.assert_trees_all_equal(vae.from_diffusers(NET, renamed), _params())


def test_every_fault_of_a_file_in_one_line():
    arrays = vae.to_diffusers(NET, _params())
    del arrays["quant_conv.bias"]
    arrays["encoder.conv_in.bias"] = np.zeros(4, np.int32)
    arrays["decoder.conv_in.bias"] = np.full(8, np.nan)
    arrays["decoder.conv_out.weight"] = np.zeros((3, 4, 1, 1))
    arrays["encoder.extra"] = np.zeros(1)
    with pytest.raises(ValueError) as error:
        vae.from_diffusers(NET, arrays)
    assert str(error.value) == (
        "VAE weights: missing quant_conv.bias (4,); unexpected encoder.extra; "
        "decoder.conv_in.bias holds NaN or infinity; "
        "decoder.conv_out.weight has shape (3, 4, 1, 1), expected (3, 4, 3, 3); "
        "encoder.conv_in.bias has dtype int32, expected floating point numbers"
    )


def test_the_sharding_rules_leave_it_whole():
    """Convolutions have no rule, and a single head is not cut."""
    mesh = jax.make_mesh((1, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert all(set(spec) <= {None} for spec in jax.tree.leaves(specs(_params(), mesh)))


def test_a_drawn_view_is_one_of_the_laws_at_random():
    """Far apart and narrow, which view it was shows; wide, the mean is 0.18215 times theirs, the deviation as well."""
    n = 4000
    keys, others = jax.random.split(jax.random.key(0), (2, n))
    means = jnp.broadcast_to(jnp.asarray([10.0, -10.0])[None, :, None, None, None], (n, 2, 1, 1, 2))
    narrow = jax.jit(vae.draw_view)(keys, vae.Posterior(means, jnp.full(means.shape, 1e-3))) / vae.SCALE
    assert float(jnp.abs(jnp.abs(narrow) - 10).max()) < 1e-2
    assert bool(jnp.all(narrow[..., 0] * narrow[..., 1] > 0))  # one view for the whole image
    share = float(jnp.mean(narrow[..., 0] > 0))
    assert abs(share - 0.5) < 4 * 0.5 / n**0.5
    wide = jax.jit(vae.draw_view)(others, vae.Posterior(jnp.ones((n, 1, 1, 1, 2)), jnp.full((n, 1, 1, 1, 2), 2.0)))
    assert wide.shape == (n, 1, 1, 2)
    assert abs(float(wide.mean()) / vae.SCALE - 1) < 4 * 2 / (2 * n) ** 0.5
    # a variance estimated from m numbers has relative deviation sqrt(2/m)
    assert abs(float(wide.var()) / (2 * vae.SCALE) ** 2 - 1) < 4 * (2 / (2 * n)) ** 0.5
