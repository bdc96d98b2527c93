"""The port of the published MNIST transformer against a plain numpy forward pass and the original's outputs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from guidance.nets import flow_vit

NULL = 10


def random_torch_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of the published shapes, at a scale that keeps activations of order one."""
    rng = np.random.default_rng(seed)
    return {name: _random(rng, name, shape) for name, shape in flow_vit.torch_shapes().items()}


def _random(rng, name: str, shape) -> np.ndarray:
    """Matrices that keep the variance, embeddings of order one, gains near one, small biases: every input counts."""
    if name in ("pos_embed", "y_encoder.weight"):
        return rng.normal(size=shape)
    if len(shape) > 1:
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return (".norm" in name and name.endswith("weight")) + 0.1 * rng.normal(size=shape)


def torch_forward(w: dict[str, np.ndarray], x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The published network as its description reads: x [B, 1, 28, 28], t with 1 = data; loops where torch has ops."""

    def linear(h, name):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(h, name):
        scaled = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    corners = [(7 * r, 7 * c) for r in range(4) for c in range(4)]
    patches = [np.einsum("bcij,ocij->bo", x[:, :, r : r + 7, c : c + 7], w["patch_embed.weight"]) for r, c in corners]
    image_tokens = np.stack(patches, 1) + w["patch_embed.bias"] + w["pos_embed"]
    angles = t[:, None] * 10000.0 ** (-np.arange(64) / 63)
    time_tokens = np.stack([np.sin(angles), np.cos(angles)], 1)
    label_tokens = w["y_encoder.weight"][label].reshape(-1, 2, 64)
    h = np.concatenate([image_tokens, time_tokens, label_tokens], 1)
    for i in range(4):
        at = f"transformer.{i}"
        qkv = h @ w[f"{at}.self_attn.in_proj_weight"].T + w[f"{at}.self_attn.in_proj_bias"]
        heads = []
        for k in range(4):
            query, key, value = (qkv[..., 64 * j + 16 * k : 64 * j + 16 * (k + 1)] for j in range(3))
            heads.append(softmax(query @ key.swapaxes(1, 2) / 4, axis=-1) @ value)
        h = norm(h + linear(np.concatenate(heads, -1), f"{at}.self_attn.out_proj"), f"{at}.norm1")
        hidden = linear(h, f"{at}.linear1")
        h = norm(h + linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), f"{at}.linear2"), f"{at}.norm2")
    out = np.zeros_like(x)
    for n, (r, c) in enumerate(corners):
        out[:, :, r : r + 7, c : c + 7] = np.einsum("bi,iojk->bojk", h[:, n], w["unpatch.weight"])
    return out + w["unpatch.bias"][:, None, None]


def inputs(batch: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 28, 28, 1)), rng.uniform(size=batch), rng.integers(0, NULL + 1, batch)


@pytest.mark.parametrize("x64", [False, True])
def test_equals_the_description_at_random_weights(x64):
    arrays = random_torch_arrays()
    x, t, label = inputs(5)
    expected = torch_forward(arrays, x.transpose(0, 3, 1, 2), 1 - t, label).transpose(0, 2, 3, 1)
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        denoise = flow_vit.denoiser(flow_vit.from_torch({k: v.astype(dtype) for k, v in arrays.items()}))
        out = jax.jit(denoise)(jnp.asarray(x, dtype), jnp.asarray(t, dtype), jnp.asarray(label, jnp.int32))
        chex.assert_type(out, dtype)
    # errors of some hundred roundings of terms of order one
    np.testing.assert_allclose(out, expected, atol=300 * np.finfo(dtype).eps * np.abs(expected).max())


def test_converter_gives_the_tree_of_init():
    params = flow_vit.from_torch({k: v.astype(np.float32) for k, v in random_torch_arrays().items()})
    init = jax.eval_shape(
        flow_vit.FlowViT().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), init))
    assert sum(a.size for a in jax.tree.leaves(params)) == 208_705


def test_other_sizes():
    net = flow_vit.FlowViT(width=8, heads=2, depth=2, mlp=16, patch=3, classes=4)
    x, t, label = jnp.ones((2, 6, 9, 3)), jnp.asarray([0.2, 0.9]), jnp.asarray([0, 4])
    out, _ = jax.jit(net.init_with_output)(jax.random.key(0), x, t, label)
    chex.assert_shape(out, (2, 6, 9, 3))
    chex.assert_tree_all_finite(out)


def test_pixels_return_to_their_patch():
    """With D = unpatch alone (all else zero) a token's pixels must land in that token's square."""
    arrays = {k: np.zeros_like(v) for k, v in random_torch_arrays().items()}
    arrays["transformer.3.norm2.bias"] = np.eye(1, 64)[0]  # every token comes out as the first unit vector
    stamp = np.arange(49.0).reshape(7, 7)
    arrays["unpatch.weight"][0, 0] = stamp
    x, t, label = inputs(1)
    out = jax.jit(flow_vit.denoiser(flow_vit.from_torch(arrays)))(jnp.asarray(x), jnp.asarray(t), jnp.asarray(label))
    np.testing.assert_array_equal(out[0, :, :, 0], np.tile(stamp, (4, 4)))


def test_samples_do_not_mix_and_vmap_agrees():
    params = flow_vit.from_torch(random_torch_arrays())
    x, t, label = (jnp.asarray(a) for a in inputs(3))
    denoise = flow_vit.denoiser(params)
    each = jax.jit(jax.vmap(lambda x, t, c: denoise(x[None], t[None], c[None])[0]))(x, t, label)
    chex.assert_trees_all_close(jax.jit(denoise)(x, t, label), each, atol=1e-4)


def test_null_label_and_time_matter():
    denoise = jax.jit(flow_vit.denoiser(flow_vit.from_torch(random_torch_arrays())))
    x, t, _ = (jnp.asarray(a) for a in inputs(2))
    label = jnp.asarray([3, 3])
    out = denoise(x, t, label)
    assert jnp.abs(out - denoise(x, t, jnp.full(2, NULL))).max() > 0.1
    assert jnp.abs(out - denoise(x, 1 - t, label)).max() > 0.1


def test_params_are_leaves():
    """Other params under the same jit: no second trace."""
    traces = []

    @jax.jit
    def evaluate(denoise, x, t, label):
        traces.append(1)
        return denoise(x, t, label)

    x, t, label = (jnp.asarray(a) for a in inputs(1))
    outs = [evaluate(flow_vit.denoiser(flow_vit.from_torch(random_torch_arrays(s))), x, t, label) for s in (0, 1)]
    assert len(traces) == 1
    assert jnp.abs(outs[0] - outs[1]).max() > 1e-3


def test_gradient_matches_a_finite_difference():
    with jax.enable_x64(True):
        denoise = flow_vit.denoiser(flow_vit.from_torch(random_torch_arrays()))
        x, t, label = (jnp.asarray(a) for a in inputs(2))

        @jax.jit
        def value(x):
            return jnp.sum(denoise(x, t, label) ** 2)

        direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
        slope = jnp.vdot(jax.jit(jax.grad(value))(x), direction)
        h = 1e-5
        difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_converter_lists_every_fault_in_one_line():
    arrays = random_torch_arrays()
    del arrays["transformer.2.linear1.bias"]
    arrays["transformer.4.linear1.bias"] = np.zeros(256)
    arrays["pos_embed"] = np.zeros((1, 17, 64))
    with pytest.raises(ValueError) as error:
        flow_vit.from_torch(arrays)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "missing transformer.2.linear1.bias (256,)",
        "unexpected transformer.4.linear1.bias",
        "pos_embed has shape (1, 17, 64), expected (1, 16, 64)",
    ):
        assert part in message


@pytest.fixture(scope="module")
def published(shared):
    with np.load(shared / "data/weights/mnist_cfg_flow_vit.npz", allow_pickle=False) as arrays:
        return jax.jit(flow_vit.denoiser(flow_vit.from_torch(dict(arrays))))


def nhwc(images: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(images, -3, -1))


def test_equals_the_original_module(published, shared):
    """Outputs of the torch module itself; it runs time backwards and calls the null label -1."""
    check = np.load(shared / "data/port_check/mnist_cfg_flow_vit.npz", allow_pickle=False)
    label = np.where(check["y"] < 0, NULL, check["y"]).astype(np.int32)
    out = published(nhwc(check["x"]), jnp.asarray(1 - check["t"]), jnp.asarray(label))
    np.testing.assert_allclose(out, nhwc(check["out"]), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_equals_the_original_trajectory(published, shared, scale):
    """50 Euler steps of d x/d t = (D - x)/(1 - t) with D = D_u + scale (D_c - D_u), states after 10, 20, .. 50."""
    check = np.load(shared / "data/port_check/mnist_cfg_flow_vit_euler50.npz", allow_pickle=False)
    x, label = nhwc(check["z0"]), jnp.asarray(check["labels"], jnp.int32)
    states = []
    for i in range(50):
        t = jnp.full(10, 1 - i / 50)
        null = published(x, t, jnp.full(10, NULL))
        x0 = null + scale * (published(x, t, label) - null)
        x = x + (x0 - x) / (50 - i)
        if (i + 1) % 10 == 0:
            states.append(x)
    # rounding (1e-6 per evaluation) grows along the trajectory, and with the scale
    np.testing.assert_allclose(jnp.stack(states), nhwc(check[f"traj_w{scale}"]), atol=1e-4 * scale)
