"""The port of the published convolutional network against the original, and its place among our conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from guidance.nets import ddpm_cnn
from guidance.predictions import eps_from_x0

EPOCHS = ("0000", "0020", "0060", "0200", "0400")


@pytest.fixture(scope="module")
def checks(shared):
    return data.read_npz(shared / "data/port_check/mnist_ddpm_cnn.npz")


def _params(shared, epoch):
    return ddpm_cnn.from_torch(data.read_npz(shared / f"data/weights/mnist_ddpm_cnn_epoch{epoch}.npz"))


def _random_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:], initial=1))).astype(np.float32)
        for name, shape in ddpm_cnn.torch_shapes().items()
    }


@pytest.mark.parametrize("epoch", EPOCHS)
def test_equals_the_torch_module(shared, checks, epoch):
    out = ddpm_cnn.DdpmCnn().apply(
        {"params": _params(shared, epoch)}, checks["x"].transpose(0, 2, 3, 1), jnp.asarray(checks["t"])
    )
    np.testing.assert_allclose(out, checks[f"out_epoch{epoch}"].transpose(0, 2, 3, 1), atol=2e-5)


def test_the_schedule_is_the_one_that_it_was_trained_on(checks):
    """alpha_bar_i is a product over 1 - beta, i = 0 .. 1000 t, where ours is an integral."""
    t, schedule = jnp.arange(1001) / 1000, ddpm_cnn.schedule()
    np.testing.assert_allclose(schedule.alpha(t), np.sqrt(checks["alphabar_t"]), atol=2e-3)
    np.testing.assert_allclose(schedule.sigma(t)[5:], np.sqrt(1 - checks["alphabar_t"])[5:], atol=5e-3)


def test_the_denoiser_predicts_the_noise_that_the_network_says():
    params = ddpm_cnn.from_torch(_random_arrays())
    x, t = jax.random.normal(jax.random.key(0), (2, 28, 28, 1)), jnp.asarray([0.3, 0.7])
    x0 = ddpm_cnn.denoiser(params)(x, t, jnp.zeros(2, jnp.int32))
    eps = ddpm_cnn.DdpmCnn().apply({"params": params}, x, t)
    np.testing.assert_allclose(eps_from_x0(ddpm_cnn.schedule(), x, x0, t), eps, atol=1e-4)


def test_converter_gives_the_tree_of_init_and_lists_every_fault():
    arrays = _random_arrays()
    params = ddpm_cnn.from_torch(arrays)
    init = jax.eval_shape(ddpm_cnn.DdpmCnn().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, init["params"])
    assert sum(a.size for a in jax.tree.leaves(params)) == 146_977
    arrays["blocks.9"] = arrays.pop("frequencies")
    with pytest.raises(ValueError, match=r"^[^\n]*missing frequencies[^\n]*unexpected blocks.9[^\n]*$"):
        ddpm_cnn.from_torch(arrays)
