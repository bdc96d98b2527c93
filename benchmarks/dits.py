"""What the benchmarks of DiT share: the published sizes on 32 x 32 latents, random weights, and their arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.dit import TIME_WIDTH, DiT, dit

CLASSES, LATENT = 1000, (32, 32, 4)
PRECISIONS = ("float32", "bfloat16")
OURS = {
    "tiny": {"width": 32, "heads": 2, "depth": 2, "patch": 8},  # of the small modes
    "small": {"width": 64, "heads": 4, "depth": 4, "patch": 8},  # 16 tokens, as in configs/fashion_mnist.py
}


def network(size: str, precision: str = "float32", **fields) -> DiT:
    """Returns a DiT of a published size such as "XL/2", or of OURS. In bfloat16 the sum of blocks stays float32."""
    if precision == "bfloat16":
        fields |= {"dtype": jnp.bfloat16, "residual": jnp.float32}
    return DiT(**OURS[size], **fields) if size in OURS else dit(size, **fields)


def shapes(net: DiT):
    """Shapes of the params, held in the dtype that the network computes in."""
    held = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *LATENT)), jnp.zeros(1), jnp.zeros(1, int))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, net.dtype or jnp.float32), held["params"])


def random_params(net: DiT):
    """Nowhere zero, so that every part of the network works."""
    leaves, tree = jax.tree.flatten(shapes(net))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.02 * rng.normal(size=a.shape), a.dtype) for a in leaves])


def product_flops(net: DiT, side: int = LATENT[0], channels: int = LATENT[-1]) -> int:
    """Multiplications and additions in the matrix products of a forward on one sample, attention included.

    With N tokens of width d, a block has 24 N d^2 (q, k, v, the output, two layers of 4 d), 4 N^2 d (logits and
    mixing) and 12 d^2 (modulation). Half of the total is what arXiv 2212.09748, table 4, calls Gflops.
    """
    tokens, d, patch = (side // net.patch) ** 2, net.width, net.patch**2 * channels
    block = 24 * tokens * d**2 + 4 * tokens**2 * d + 12 * d**2
    ends = 2 * tokens * d * patch * (3 if net.learn_sigma else 2) + 4 * d**2 + 2 * d * (TIME_WIDTH + d)
    return net.depth * block + ends
