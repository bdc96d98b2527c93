"""What a self-consistency update costs, as a ratio to the 2 n m denoiser forwards that it cannot do without.

    python -m benchmarks.learning_cost [--batch 64] [--particles 4] [--repeats 15]

Denoisers: the 209k-parameter flow transformer on 28 x 28 images, and one of 2.7 million (random weights: the
cost is the same). The forwards are timed in the faster of two ways, all at once or 128 at a time, and the update uses
the same one. Forward and update alternate in one process; figures are CPU time of the process on a CPU, so that other
load does not count, and wall time elsewhere.
"""

import argparse
import functools
import platform

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import seconds
from guidance import learning, predictions, schedules, weights
from guidance.nets import flow_vit

CLASSES = 10
SHAPE = (28, 28, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, flax {flax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}")
    print(f"n = {arguments.batch}, m = {arguments.particles}: {2 * arguments.batch * arguments.particles} forwards")
    for net in (flow_vit.FlowViT(), flow_vit.FlowViT(width=192, heads=6, depth=6, mlp=768)):
        compare(net, arguments.batch, arguments.particles, arguments.repeats)


def compare(net, n: int, m: int, repeats: int) -> None:
    """Prints one line: forwards, update, ratio."""
    key, schedule = jax.random.key(0), schedules.rectified_flow()
    variables = net.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    whole = predictions.as_denoise(net.apply, variables, "x0", schedule)
    many = jax.random.normal(key, (2 * n * m, *SHAPE))
    inputs = many, jnp.full(2 * n * m, 0.5), jnp.arange(2 * n * m) % (CLASSES + 1)
    forward = jax.jit(lambda denoise, x, t, c: denoise(x, t, c))
    ways = (whole, predictions.in_chunks(whole, 128))
    denoise = min(ways, key=lambda way: np.median([seconds(forward, way, *inputs) for _ in range(4)][1:]))
    update, state = _update(schedule, n, m)

    forwards, updates = [], []
    for _ in range(repeats + 1):
        forwards.append(seconds(forward, denoise, *inputs))
        updates.append(seconds(update, denoise, *state, key))
    ratios = np.array(updates[1:]) / np.array(forwards[1:])  # the first ones compile
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(
        f"{parameters / 1e6:.2f}M parameters: forwards {1e3 * np.median(forwards[1:]):.1f} ms, "
        f"update {1e3 * np.median(updates[1:]):.1f} ms, ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
    )


def _update(schedule, n: int, m: int):
    """The jitted update of a self-consistency objective and its (params, optimiser state)."""
    x0, cond = jax.random.uniform(jax.random.key(1), (n, *SHAPE)), jnp.arange(n) % CLASSES
    net, optimizer = weights.GuidanceNet(num_classes=CLASSES), optax.adam(1e-3)
    params = net.init(jax.random.key(2), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32))

    def loss(denoise, params, key):
        model = learning.Model(denoise, schedule, CLASSES)
        weight = weights.learned(net, params, schedule)
        return learning.self_consistency(key, model, weight, x0, cond, learning.OneStep(particles=m))

    def update(denoise, params, opt_state, key):
        return learning.update(optimizer, functools.partial(loss, denoise), params, opt_state, key)

    return jax.jit(update), (params, optimizer.init(params))


if __name__ == "__main__":
    main()
