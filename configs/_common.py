"""What experiments share. A config names what its experiment sets; all other fields have the defaults of --help."""

from ml_collections import config_dict


def config(preset, **groups) -> config_dict.ConfigDict:
    """Returns the config of these fields and groups of fields, with what a preset changes by dotted name."""
    made = config_dict.ConfigDict(groups)
    made.update_from_flattened_dict(preset)
    return made


# the paper's settings on images, at its own size; what it does not print is our choice
PAPER = {
    "objectives": ("self_consistency",),
    "iterations": 100_000,
    "batch": 256,
    "learning_rate": 1e-4,
    "width": 512,
    "embedding": 64,
    "select_every": 10_000,
    "select_samples": 2048,
    "checkpoint_every": 1000,
    "rollout_iterations": 1000,
    "rollout_batch": 4,
    "rollout_real": 16,
    "rollout_conditions": 16,
}
PAPER_SAMPLES = {"steps": (100,), "samples": 50_000, "sweep_seeds": 1}
# latents of ImageNet's images of 256 x 256 pixels
LATENTS = {
    "latents": "latents/imagenet256",
    "images": 100_000,
    "vae": "weights/sd-vae-ft-mse.safetensors",
    "instrument": "weights/inception.safetensors",
    "reference": "references/VIRTUAL_imagenet256_labeled.npz",
}
# what hand-made weights are tuned over, and how many samples fit a card at a time
LATENT_SAMPLES = PAPER_SAMPLES | {"batch": 128, "omegas": (0.0, 0.25, 0.5, 0.95), "intervals": ((0.2, 0.8),)}
LATENT_SAMPLE = {"batch": 128, "steps": 100, "seeds": "0-49999"}
# the paper's sets of images of 64 x 64 pixels
LARGE_IMAGES = {
    "name": "labelled",
    "size": 64,
    "images": 100_000,
    "instrument": "weights/inception.safetensors",
    "schedule": "rectified_flow",
}
# ADM's U-Net for images of 64 x 64: 296 million parameters
LARGE_UNET = {
    "network": "adm",
    "width": 192,
    "depth": 3,
    "heads": 1,
    "patch": 1,
    "precision": "bfloat16",
    "remat": True,
    "learning_rate": 1e-4,
    "averages": (0.05,),
    "pictures": 20,
}

# what makes the whole chain take seconds, for presets that only show that everything runs
SMOKE = {
    "problem.instrument": "random", "problem.reference": "",
    "learn.objectives": ("self_consistency", "rollout"), "learn.iterations": 4, "learn.batch": 4,
    "learn.particles": 2, "learn.width": 16, "learn.depth": 2, "learn.embedding": 8, "learn.select_every": 2,
    "learn.select_samples": 10, "learn.rollout_iterations": 2, "learn.rollout_batch": 2, "learn.rollout_real": 4,
    "learn.rollout_conditions": 3, "learn.remat": "steps", "learn.checkpoint_every": 2,
    "eval.steps": (3,), "eval.samples": 20, "eval.batch": 10, "eval.omegas": (0.0, 0.5),
    "eval.intervals": ((0.2, 0.8),),
}  # fmt: skip
SMOKE_TRAINED = {
    "problem.source": "synthetic", "problem.images": 100, "problem.train_fraction": 0.6,
    "learn.objectives": ("self_consistency",), "base.network": "unet", "base.width": 16, "base.depth": 1,
    "base.steps": 4, "base.batch": 4, "base.pictures": 0, "base.precision": "float32", "base.remat": False,
}  # fmt: skip
