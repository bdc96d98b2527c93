r"""Images from a network that was trained elsewhere: DiT or SiT, with the autoencoder of Stable Diffusion.

    python -m experiments.main --config=configs/sample.py --workdir=runs/dit \
        --config.sample.weight="interval(0.5, 0, 0.8)"

docs/weights.md says where the files of weights come from and how to convert them. The result is
runs/dit/samples/samples.npz, 64 uint8 images with their labels and seeds as the ADM suite reads them, and grid.png.
The same command resumes. docs/walkthrough.md measures the FID of 50,000 samples, --config.sample.seeds=0-49999. For
DiT-XL/2 at 256 x 256, 250 DDPM steps and omega = 0.5 its authors print an FID of 2.27; they guide three of the four
channels, as --config.sample.rule="cfg, channels((1, 1, 1, 0))" does.

Presets: sit, the flow transformer; smoke, eight samples in four steps from small files that problem.weights and
problem.vae name.
"""

from configs import _common as common

PRESETS = {
    "sit": {"problem.network": "sit", "problem.weights": "weights/sit-xl-2-256.safetensors"},
    "smoke": {
        "problem.heads": 2,
        "problem.vae_groups": 2,
        "sample.seeds": "0-7",
        "sample.batch": 4,
        "sample.steps": 4,
        "sample.output": ("npz", "png", "grid"),
    },
}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        job="sample",
        problem={
            "name": "imported",
            "network": "dit",
            "weights": "weights/dit-xl-2-256.safetensors",
            "vae": "weights/sd-vae-ft-mse.safetensors",
            "dtype": "float32",
        },
        sample={"seeds": "0-63", "batch": 32, "steps": 50, "weight": "0.5", "output": ("npz", "grid")},
    )
