"""What a self-consistency update costs, as a ratio to the 2 n m denoiser forwards that it cannot do without.

    python -m benchmarks.learning_cost [--batch 64] [--particles 4] [--repeats 15]

The denoiser is the 209k-parameter flow transformer on 28 x 28 images (random weights: the cost is the same). Forward
and update alternate in one process; the table shows medians and the ratio of each pair.
"""

import argparse
import functools
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from guidance import learning, schedules, weights
from guidance.nets import flow_vit

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    n, m = arguments.batch, arguments.particles

    key, shape = jax.random.key(0), (28, 28, 1)
    example = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    denoise = flow_vit.denoiser(flow_vit.FlowViT().init(key, *example)["params"])
    x0, cond = jax.random.uniform(key, (n, *shape)), jnp.arange(n) % CLASSES
    schedule = schedules.rectified_flow()
    net = weights.GuidanceNet(num_classes=CLASSES)
    params = net.init(key, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    optimizer = optax.adam(1e-3)

    def loss(denoise, params, key):
        model = learning.Model(denoise, schedule, CLASSES)
        weight = weights.learned(net, params, schedule)
        return learning.self_consistency(key, model, weight, x0, cond, learning.OneStep(particles=m))

    @jax.jit
    def update(denoise, params, opt_state, key):
        return learning.update(optimizer, functools.partial(loss, denoise), params, opt_state, key)

    forward = jax.jit(lambda denoise, x, t, c: denoise(x, t, c))
    many = jax.random.normal(key, (2 * n * m, *shape))
    inputs = many, jnp.full(2 * n * m, 0.5), jnp.arange(2 * n * m) % (CLASSES + 1)
    opt_state = optimizer.init(params)

    forwards, updates = [], []
    for repeat in range(arguments.repeats + 1):
        forwards.append(_seconds(lambda: forward(denoise, *inputs)))
        updates.append(_seconds(lambda: update(denoise, params, opt_state, key)))
        if repeat == 0:  # compilation
            forwards.clear(), updates.clear()
    ratios = np.array(updates) / np.array(forwards)
    print(f"jax {jax.__version__}, flax {flax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}")
    print(f"n = {n}, m = {m}: {2 * n * m} forwards {1e3 * np.median(forwards):.1f} ms, ", end="")
    print(f"update {1e3 * np.median(updates):.1f} ms, ", end="")
    print(
        f"ratio {np.median(ratios):.3f} (quartiles {np.quantile(ratios, 0.25):.3f} to {np.quantile(ratios, 0.75):.3f})"
    )


def _seconds(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
