"""Guided sampling of a mixture against Google's hackable_diffusion, the same exact denoiser, grid and noise.

    pip install hackable-diffusion      (Python 3.12 or newer)
    python -m benchmarks.hackable [--batch 4096] [--steps 20] [--repeats 20]

CFG through deterministic DDIM on ten classes in 32 dimensions, two evaluations a step on both sides. That library
calls the network once for each branch and draws the noise that deterministic DDIM multiplies by zero; its grid stays
1e-6 away from both ends. Both loops are compiled whole and take turns in one process.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import alternated, neighbours
from guidance import guides, sampling, schedules, weights
from guidance.truth import mixtures

CLASSES, DIMENSION, OMEGA = 10, 32, 1.5
SCHEDULE = schedules.rectified_flow()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096, help="samples (4096)")
    parser.add_argument("--steps", type=int, default=20, help="steps, at least 2 (20)")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    law = mixtures.from_classes(3 * np.eye(DIMENSION)[:CLASSES, None], 0.15)
    cond = jnp.arange(options.batch) % CLASSES
    x = jax.random.normal(jax.random.key(0), (options.batch, DIMENSION))
    denoise = mixtures.denoise(law, SCHEDULE)
    try:
        contenders = {"hackable_diffusion": theirs(denoise, law.null, x, cond, options.steps)}
    except ModuleNotFoundError as error:
        sys.exit(f"error: no module {error.name!r}; pip install hackable-diffusion needs Python 3.12 or newer")
    contenders["ours"] = ours(denoise, law.null, x, cond, options.steps)
    turns = alternated(contenders, options.repeats)
    apart = float(jnp.max(jnp.abs(turns.first["ours"] - turns.first["hackable_diffusion"])))
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {options.batch} samples, {options.steps} steps")
    ratios = turns.seconds["hackable_diffusion"] / turns.seconds["ours"]
    for name, walls in turns.seconds.items():
        print(f"  {name:20s} {1e3 * np.median(walls):8.1f} ms")
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f"  theirs / ours: {middle:.2f} (quartiles {low:.2f} to {high:.2f}); samples differ by at most {apart:.1e}")
    print(neighbours(turns))


def ours(denoise, null, x, cond, steps: int):
    grid = sampling.uniform_grid(steps)

    @jax.jit
    def run(x):
        guide = guides.cfg(weights.constant(OMEGA), null)
        return sampling.sample(jax.random.key(1), denoise, guide, sampling.ddim(), SCHEDULE, grid, x, cond).x0

    return lambda: run(x)


def theirs(denoise, null, x, cond, steps: int):
    """Its sampler, guidance and DDIM step around our denoiser. ModuleNotFoundError where it is not installed."""
    from hackable_diffusion.lib.corruption import gaussian, schedules
    from hackable_diffusion.lib.inference import diffusion_inference, guidance
    from hackable_diffusion.lib.sampling import gaussian_step_sampler, time_scheduling
    from hackable_diffusion.lib.sampling import sampling as loops

    def predict(time, xt, conditioning):
        labels = jnp.full(xt.shape[0], null) if conditioning is None else conditioning["label"]
        return {"x0": denoise(xt, time.reshape(-1), labels)}

    sampler = loops.DiffusionSampler(
        time_schedule=time_scheduling.UniformTimeSchedule(),
        stepper=gaussian_step_sampler.DDIMStep(
            corruption_process=gaussian.GaussianProcess(schedule=schedules.RFSchedule()), stoch_coeff=0.0
        ),
        num_steps=steps + 1,  # it counts times
        store_trajectory=False,
    )
    guided = diffusion_inference.GuidedDiffusionInferenceFn(
        base_inference_fn=predict, guidance_fn=guidance.ScalarGuidanceFn(guidance=OMEGA)
    )

    @jax.jit
    def run(x):
        return sampler(guided, jax.random.key(1), x, {"label": cond})[0].xt

    return lambda: run(x)


if __name__ == "__main__":
    main()
