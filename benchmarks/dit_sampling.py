"""Guided sampling from a DiT: ours against diffusers' loop in PyTorch at the same weights, and what skipping saves.

    python -m benchmarks.dit_sampling [--size S/2] [--batch 8] [--steps 20] [--repeats 5] [--precision float32]

CFG at scale 4 through DDIM. Rows: ours; ours guided on a part of the steps, as weights learned or set by hand within
an interval ask for, so that the reference branch is skipped on the others; with PyTorch and diffusers installed (the
extra `parity`) also their loop, eager and compiled. Wall time, medians; the contenders take turns, so that drift hits
all alike; run it on an idle machine. In bfloat16 the weights of both are bfloat16. The last lines say how far the
samples are apart. Without an accelerator --size S/8 --steps 4 is quick, and --size XL/2 --batch 2 --steps 2 feasible;
on a GPU, where PyTorch wants memory as well, set XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import dits
from benchmarks.timing import alternated, neighbours
from experiments.parity import torch_side
from experiments.runtime.launch import keep_freed_memory
from guidance import guides, sampling, schedules, weights
from guidance.nets import timesteps
from guidance.nets.dit import TIMESTEPS, dit_denoiser
from guidance.nets.published_dit import to_diffusers

OMEGA = 3.0
SCHEDULE = schedules.linear_vp()
YARDSTICKS = ("diffusers", "diffusers, compiled")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=dits.PRECISIONS, default="float32")
    options = parser.parse_args(arguments)
    # diffusers' conventions, so that both compute the same
    net = dits.network(options.size, options.precision, freq_shift=1, mlp_norm_eps=1e-5)
    params = dits.random_params(net)
    x = np.random.default_rng(0).normal(size=(options.batch, *dits.LATENT)).astype(np.float32)
    labels = np.arange(options.batch) % dits.CLASSES
    contenders = ours(net, params, x, labels, options.steps) | theirs(net, params, x, labels, options.steps)
    flags = os.environ.get("XLA_FLAGS", "")
    print(
        f"DiT-{options.size}, batch {options.batch}, {options.steps} steps, {options.precision}, "
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, XLA_FLAGS={flags}"
    )
    turns = alternated(contenders, options.repeats)
    yardstick = np.median(turns.seconds["ours"])
    for name, each in turns.seconds.items():
        print(f"  {name:28s} {np.median(each):8.2f} s   ours is {np.median(each) / yardstick:.2f} times as fast")
    samples = {name: np.asarray(x0) for name, x0 in turns.first.items()}
    for name in filter(samples.__contains__, YARDSTICKS):
        off = np.abs(samples[name] - samples["ours"]).max() / np.abs(samples["ours"]).max()
        print(f"  largest relative difference of samples to {name}: {off:.1e}")
    print(neighbours(turns))


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

    shares = {"3/4": 0.75, "1/2": 0.5, "2/5": 0.4, "3/10": 0.3}
    fewer = {
        f"ours, {words} of steps guided": guided(share)
        for words, share in shares.items()
        if 0 < round(steps * share) < steps
    }
    return {"ours": guided(1), **fewer}


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
    dtype = torch.bfloat16 if net.dtype else torch.float32
    model = DiTTransformer2DModel(
        num_attention_heads=net.heads, attention_head_dim=net.width // net.heads, in_channels=4, out_channels=8,
        num_layers=net.depth, sample_size=32, patch_size=net.patch, num_embeds_ada_norm=net.classes,
    ).eval().to(device, dtype)  # fmt: skip
    arrays = {name: torch.tensor(array.astype(np.float32)) for name, array in to_diffusers(net, params).items()}
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
                both = network(torch.cat([z, z]).to(dtype), t.expand(2 * len(z)).to(device), classes).sample[:, :4]
                conditional, unconditional = both.float().chunk(2)
                eps = unconditional + (1 + OMEGA) * (conditional - unconditional)
                z = scheduler.step(eps, t, z).prev_sample
        return z.permute(0, 2, 3, 1).cpu().numpy()

    compiled = torch.compile(model)
    return {"diffusers": lambda: loop(model), "diffusers, compiled": lambda: loop(compiled)}


if __name__ == "__main__":
    keep_freed_memory()
    main()
