"""What guidance itself costs: rules against a network's forward, `sample` against a hand-written loop.

    python -m benchmarks.rules [--repeats 20]

Rules act on a [64, 32, 32, 4] batch of latents; the yardstick is the matrix products of a DiT-S/2 forward on it
(12 layers, width 384, 256 tokens; one layer on 8 samples is timed and scaled up). `sample` with plain CFG runs an MLP
denoiser against a scan written out by hand with the same two evaluations a step. CPU time of the process on a CPU,
wall time elsewhere; medians; both sides alternate.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import seconds
from experiments.config.expressions import COMBINATIONS
from experiments.problems import construct
from guidance import guides, predictions, rules, sampling, schedules, weights
from guidance.nets.mlp import DenoiserMLP
from guidance.types import At

LATENTS = (64, 32, 32, 4)
LAYERS, WIDTH, TOKENS, PART = 12, 384, 256, 8
DIMENSION, STEPS, BATCH, CLASSES = 32, 20, 512, 10
SCHEDULE = schedules.rectified_flow()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    forward = forward_seconds(repeats)
    print(f"the products of a DiT-S/2 forward on {LATENTS}: {forward:.2f} s")
    # without its first, standing step, which needs no branch
    timed = {name: construct.rule(name) for name in COMBINATIONS} | {
        "cfg_zero_star": rules.stack(rules.optimized_scale(), rules.cfg)
    }
    for name, rule in timed.items():
        cost = rule_seconds(rule, repeats)
        print(f"  {name:20s} {1e3 * cost:7.2f} ms, {100 * cost / forward:.3f} % of the forward")
    ratio, low, high = loop_ratio(repeats)
    print(f"sample() / hand-written scan: {ratio:.3f} (quartiles {low:.3f} to {high:.3f})")
    print(f"a sweep over 64 omegas is traced {sweep_traces()} time(s)")


def forward_seconds(repeats: int) -> float:
    """Matrix products only: a lower bound of the forward."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (PART * TOKENS, WIDTH))
    into, out = (jax.random.normal(k, (WIDTH, 4 * WIDTH)) for k in keys[1:3])

    @jax.jit
    def layer(x):
        qkvo = x @ into  # q, k, v and the output projection: four products of width x width
        q, k = qkvo[:, :WIDTH].reshape(PART, TOKENS, WIDTH), qkvo[:, WIDTH : 2 * WIDTH].reshape(PART, TOKENS, WIDTH)
        mixed = jnp.einsum("bqk,bkd->bqd", jnp.einsum("bqd,bkd->bqk", q, k), k).reshape(PART * TOKENS, WIDTH)
        return (mixed @ into) @ out.T

    return LAYERS * LATENTS[0] / PART * float(np.median([seconds(layer, x) for _ in range(repeats + 1)][1:]))


def rule_seconds(rule, repeats: int) -> float:
    positive, reference, x = (jax.random.normal(jax.random.key(i), LATENTS) for i in range(3))
    at = At(x, jnp.full(LATENTS[0], 0.5), jnp.full(LATENTS[0], 0.4), SCHEDULE)
    apply = jax.jit(lambda p, r, x: rules.once(rule, p, r, jnp.full(LATENTS[0], 2.0), at._replace(x=x)).x0)
    return float(np.median([seconds(apply, positive, reference, x) for _ in range(repeats + 1)][1:]))


def loop_ratio(repeats: int) -> tuple[float, float, float]:
    """Median and quartiles of sample() over the same thing written out."""
    net = DenoiserMLP(CLASSES, 256, 4)
    params = net.init(jax.random.key(0), jnp.zeros((1, DIMENSION)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    denoise = predictions.as_denoise(net.apply, params, "velocity", SCHEDULE)
    grid, cond = sampling.uniform_grid(STEPS), jnp.arange(BATCH) % CLASSES
    x = jax.random.normal(jax.random.key(1), (BATCH, DIMENSION))

    @jax.jit
    def ours(x):
        guide = guides.cfg(weights.constant(1.5), CLASSES)
        return sampling.sample(jax.random.key(2), denoise, guide, sampling.ddim(), SCHEDULE, grid, x, cond).x0

    @jax.jit
    def by_hand(x):
        both = jnp.concatenate([cond, jnp.full(BATCH, CLASSES)])

        def step(x, times):
            t, s = times
            velocity = net.apply(params, jnp.concatenate([x, x]), jnp.full(2 * BATCH, t), both)
            c, u = velocity[:BATCH], velocity[BATCH:]
            return x + (s - t) * (c + 1.5 * (c - u)), None

        return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]

    np.testing.assert_allclose(ours(x), by_hand(x), rtol=1e-3, atol=1e-3)
    ratios = [seconds(ours, x) / seconds(by_hand, x) for _ in range(repeats)]
    return tuple(float(q) for q in np.quantile(ratios, (0.5, 0.25, 0.75)))


def sweep_traces() -> int:
    traces = []
    x, cond = jnp.ones((8, 2)), jnp.zeros(8, jnp.int32)

    @jax.jit
    def run(guide):
        traces.append(1)
        denoise = lambda x, t, cond: 0.5 * x  # noqa: E731
        grid = sampling.uniform_grid(4)
        return sampling.sample(jax.random.key(0), denoise, guide, sampling.ddim(), SCHEDULE, grid, x, cond).x0

    for omega in np.linspace(0, 8, 64):
        run(guides.guided(rules.apg(), weights.constant(float(omega)), 1))
    return len(traces)


if __name__ == "__main__":
    main()
