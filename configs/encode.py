"""Images to latents of Stable Diffusion's autoencoder, once, so that training reads latents instead of images.

    python -m experiments.tools.prepare imagenet256
    python -m experiments.main --config=configs/encode.py --workdir=latents/imagenet256
    python -m experiments.main --config=configs/encode.py:smoke --workdir=latents/tiny

The job writes the law of the latents (mean and standard deviation) of every image and of its mirror image: 64 KB for
an image of 256 x 256 pixels, 84 GB for all of ImageNet. The same command resumes at the first file that is missing.
docs/weights.md says where the weights of the autoencoder come from, and experiments.tools.prepare which archives of
ImageNet it needs. The preset smoke encodes random pictures with a tiny random autoencoder: about ten seconds on two
cores.
"""

from configs import _common as common

PRESETS = {
    "smoke": {
        "problem.source": "synthetic",
        "problem.split": "all",
        "problem.size": 16,
        "problem.images": 20,
        "problem.vae": "random",
        "encode.batch": 4,
        "encode.shard": 8,
    },
}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        problem={
            "name": "latents",
            "source": "imagenet256",
            "split": "train",
            "size": 256,
            "images": 0,
            "vae": "weights/sd-vae-ft-mse.safetensors",
        },
        encode={"batch": 64, "shard": 4096, "mirrored": True, "precision": "float32"},
    )
