"""A DiT trained here on the latents of ImageNet, and guidance learned for it.

    python -m experiments.main --config=configs/encode.py --workdir=latents/imagenet256
    python -m experiments.main --config=configs/imagenet256_dit.py --workdir=runs/dit_b
    python -m experiments.main --config=configs/imagenet256_dit.py:smoke --workdir=runs/dit_smoke

DiT-B/2, 130 million parameters, with the settings of arXiv 2212.09748 and 2401.08740 for it: batch 256, learning rate
1e-4, condition dropout 0.1, an average of the params, the velocity of the rectified flow; sizes are compared there at
400,000 updates. Ours are the cosine decay and the relative width of the average. Every latent is read from disk;
guidance is learned and measured on `problem.images` of them, as in configs/imagenet256_latents.py. docs/walkthrough.md
says where the files come from. problem.latents names a folder of other latents with labels; base.network and the
fields beside it choose another network.

Presets: smoke, the whole chain on a tiny network and random latents of the same shape, ten classes.
"""

from configs import _common as common

PRESETS = {
    "smoke": common.SMOKE
    | {
        "problem.vae": "random", "problem.latents": "synthetic", "learn.objectives": ("self_consistency",),
        "base.steps": 4, "base.batch": 4, "base.width": 32, "base.depth": 1, "base.heads": 2, "base.patch": 4,
        "base.precision": "float32", "base.remat": False, "base.pictures": 1,
    },
}  # fmt: skip


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=1,
        problem=common.LATENTS | {"name": "trained_latents", "schedule": "rectified_flow"},
        base={
            "network": "dit",
            "steps": 400_000,
            "batch": 256,
            "learning_rate": 1e-4,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "patch": 2,
            "precision": "bfloat16",
            "remat": True,
            "averages": (0.05,),
            "pictures": 20,
        },
        learn=common.PAPER,
        eval=common.LATENT_SAMPLES,
        sample=common.LATENT_SAMPLE,
    )
