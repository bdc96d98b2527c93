"""Learned guidance on ImageNet at 256 x 256: a published DiT-XL/2 or SiT-XL/2, latents of the training images.

    python -m experiments.main --config=configs/encode.py --workdir=latents/imagenet256
    python -m experiments.main --config=configs/imagenet256_latents.py:dit_xl --workdir=runs/dit_xl
    python -m experiments.main --config=configs/imagenet256_latents.py:sit_xl --workdir=runs/sit_xl
    python -m experiments.main --config=configs/imagenet256_latents.py:smoke --workdir=runs/latents_smoke

docs/walkthrough.md goes from the published files to these commands and says what they cost. The objective and its
numbers are those of arXiv 2510.00815 on ImageNet (batch 256, m = 4, beta 1.75, lambda 1, 100k updates, churn 1 in
training and 0 in sampling, 100 steps, checkpoints chosen by FID on 2048 samples); learning rate and network are ours,
as the paper does not print them. The paper has no row at 256 x 256: its ImageNet table is at 64 x 64, see
configs/imagenet64.py. The authors of DiT print an FID of 2.27 at omega = 0.5 (250 DDPM steps, 50,000 samples, three of
four channels guided), those of SiT 2.15 at omega = 0.5 (ODE) and 2.06 (SDE).

Presets: dit_xl; sit_xl; smoke, the whole chain on tiny random networks and random latents of the same shape, ten
classes: a minute on two cores with an empty compilation cache.
"""

from configs import _common as common

PRESETS = {
    "dit_xl": {},
    "sit_xl": {"problem.network": "sit", "problem.weights": "weights/sit-xl-2-256.safetensors"},
    "smoke": common.SMOKE
    | {
        "problem.weights": "random",
        "problem.vae": "random",
        "problem.latents": "synthetic",
        "problem.dtype": "float32",
    },
}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=1,
        problem=common.LATENTS
        | {
            "name": "imported_latents",
            "network": "dit",
            "weights": "weights/dit-xl-2-256.safetensors",
            "dtype": "bfloat16",
        },
        learn=common.PAPER,
        eval=common.LATENT_SAMPLES,
        sample=common.LATENT_SAMPLE,
    )
