"""Guided sampling from a DiT: ours against diffusers' loop in PyTorch at the same weights, and what skipping saves.

    python -m benchmarks.dit_sampling [--size S/2] [--batch 8] [--steps 20] [--repeats 5] [--precision float32]

CFG at scale 4 through DDIM. Rows: ours; ours guided on a quarter, half and three quarters of the steps, as learned or
interval weights ask for, so that the reference branch is skipped on the others; with PyTorch and diffusers installed
(the extra `parity`) also their loop, eager and compiled. Wall time, medians; the contenders take turns, so that drift
hits all alike; run it on an idle machine. The last lines say how far the samples are apart and which share of the
machine's own matrix-product rate our forward reaches. Without an accelerator --size S/8 --steps 4 is quick.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import torch_side
from guidance import guides, sampling, schedules, weights
from guidance.nets import timesteps
from guidance.nets.dit import TIMESTEPS, dit, dit_denoiser
from guidance.nets.published_dit import to_diffusers

OMEGA, CLASSES, LATENT = 3.0, 1000, (32, 32, 4)
SCHEDULE = schedules.linear_vp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    dtype = jnp.bfloat16 if options.precision == "bfloat16" else None
    # diffusers' conventions, so that both compute the same
    net = dit(options.size, freq_shift=1, mlp_norm_eps=1e-5, dtype=dtype, residual=jnp.float32)
    params = random_params(net)
    x = np.random.default_rng(0).normal(size=(options.batch, *LATENT)).astype(np.float32)
    labels = np.arange(options.batch) % CLASSES
    contenders = ours(net, params, x, labels, options.steps) | theirs(net, params, x, labels, options.steps)
    print(f"DiT-{options.size}, batch {options.batch}, {options.steps} steps, jax {jax.__version__}, "
          f"{jax.devices()[0].device_kind}, {options.precision}")  # fmt: skip
    taken = {name: [] for name in contenders}
    samples = {name: np.asarray(run()) for name, run in contenders.items()}  # compiles
    for _ in range(options.repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken[name].append(time.perf_counter() - start)
    yardstick = float(np.median(taken["ours"]))
    for name, seconds in taken.items():
        print(f"  {name:28s} {np.median(seconds):8.2f} s   ours is {np.median(seconds) / yardstick:.2f} times as fast")
    for name in samples.keys() & {"diffusers", "diffusers, compiled"}:
        off = np.abs(samples[name] - samples["ours"]).max() / np.abs(samples["ours"]).max()
        print(f"  largest relative difference of samples to {name}: {off:.1e}")
    rate, peak = forward_rate(net, params, options.batch), matmul_rate(dtype)
    print(
        f"  forward: {rate / 1e9:.0f} GFLOP/s, {100 * rate / peak:.0f} % of a large matrix product's {peak / 1e9:.0f}"
    )


def random_params(net):
    """Nowhere zero, so that every part of the network works."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *LATENT)), jnp.zeros(1), jnp.zeros(1, int))
    leaves, tree = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.02 * rng.normal(size=a.shape), jnp.float32) for a in leaves])


def ours(net, params, x, labels, steps):
    grid = jnp.append(timesteps.times(TIMESTEPS, SCHEDULE, jnp.asarray(visited(steps))), 0.0)
    denoise = dit_denoiser(net, params)

    @jax.jit
    def run(denoise, guide, x, labels):
        key = jax.random.key(0)
        return sampling.sample(key, denoise, guide, sampling.ddim(), SCHEDULE, grid, x, labels).x0

    def guided(share):
        first = round(steps * (1 - share) / 2)
        weight = weights.interval_of_steps(grid, OMEGA, first, first + round(steps * share) - 1)
        guide = guides.cfg(weights.constant(OMEGA) if share == 1 else weight, net.classes)
        return lambda: run(denoise, guide, jnp.asarray(x), jnp.asarray(labels))

    names = {1: "ours", 0.75: "ours, 3/4 of steps guided", 0.5: "ours, 1/2 of steps guided", 0.25: "ours, 1/4 guided"}
    return {name: guided(share) for share, name in names.items()}


def visited(steps: int) -> np.ndarray:
    """The timesteps of DDIM's published "leading" spacing, highest first."""
    return (np.arange(steps) * (1000 // steps))[::-1].copy()


def theirs(net, params, x, labels, steps):
    """diffusers' network, eager and compiled, in the loop of its DiT pipeline; {} where it is not installed."""
    try:
        torch = torch_side.torch()
        from diffusers import DDIMScheduler, DiTTransformer2DModel
    except ModuleNotFoundError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DiTTransformer2DModel(
        num_attention_heads=net.heads, attention_head_dim=net.width // net.heads, in_channels=4, out_channels=8,
        num_layers=net.depth, sample_size=32, patch_size=net.patch, num_embeds_ada_norm=net.classes,
    ).eval().to(device)  # fmt: skip
    arrays = {name: torch.tensor(array) for name, array in to_diffusers(net, params).items()}
    model.load_state_dict(arrays, strict=False)
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    start = torch.tensor(x.transpose(0, 3, 1, 2), device=device)
    classes = torch.tensor([*labels, *[net.classes] * len(labels)], device=device)

    def loop(network):
        z = start
        with torch.no_grad():
            for t in scheduler.timesteps:
                both = network(torch.cat([z, z]), t.expand(2 * len(z)).to(device), classes).sample[:, :4]
                conditional, unconditional = both.chunk(2)
                eps = unconditional + (1 + OMEGA) * (conditional - unconditional)
                z = scheduler.step(eps, t, z).prev_sample
        return z.permute(0, 2, 3, 1).cpu().numpy()

    compiled = torch.compile(model)
    return {"diffusers": lambda: loop(model), "diffusers, compiled": lambda: loop(compiled)}


def forward_rate(net, params, batch: int) -> float:
    """Products and sums a second in a forward on twice the batch, counted by the compiler."""
    arguments = jnp.ones((2 * batch, *LATENT)), jnp.full(2 * batch, 500.0), jnp.zeros(2 * batch, int)
    compiled = jax.jit(lambda params, *rest: net.apply({"params": params}, *rest)).lower(params, *arguments).compile()
    return compiled.cost_analysis()["flops"] / best_seconds(lambda: compiled(params, *arguments))


def matmul_rate(dtype) -> float:
    side = 4096 if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((side, side), dtype or jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / best_seconds(lambda: product(a, a))


def best_seconds(call) -> float:
    """The fastest of a few calls: the machine's own limit, not what else runs on it."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
