"""The fields of problems on latents of images, and the conditions between them. Imports nothing heavy."""

from os.path import isfile, join

from experiments.config.values import COUNT, FLAG, SIDE, WIDTH, Field, Form, choice, group, integer, path, text
from experiments.problems.chain_fields import BASE, CHAIN, NETWORK, SCHEDULE
from experiments.problems.images.fields import INCEPTION, REFERENCE
from experiments.problems.sample_fields import SAMPLE


def _evaluated(config) -> bool:
    """Returns whether the job needs images to compare with, as every job but `sample` does."""
    return config.job != "sample"


SAFETENSORS = path("path of an existing .safetensors file, or random", "random")
AUTOENCODER = group(
    "problem",
    vae=Field(SAFETENSORS, "weights of the autoencoder that decodes the latents"),
    vae_groups=Field(WIDTH, "groups in the normalisations of the autoencoder", 32),
)
# a network that was trained elsewhere, read from a file
IMPORTED = group(
    "problem",
    network=Field(choice("dit", "sit"), "dit predicts eps of a diffusion, sit the velocity of a flow"),
    weights=Field(SAFETENSORS, "weights of the network"),
    heads=Field(integer(0, 4096), "attention heads; 0: as in the published network of this width", 0),
    side=Field(integer(0, SIDE), "rows of the latents; 0: as many as the position embedding in the file has", 0),
    dtype=Field(choice("float32", "bfloat16"), "dtype that the network computes in"),
)
# real images as latents, and what measures samples
LATENTS = group(
    "problem",
    latents=Field(
        path(
            "a folder that job encode wrote (latents.json in it), synthetic, or anything for job = sample",
            "synthetic",
            exists=lambda folder: isfile(join(folder, "latents.json")),
        ),
        "latents of labelled images, by the same autoencoder",
        used=_evaluated,
    ),
    images=Field(integer(0), "images whose latents are kept in memory, drawn at random; 0: all are kept", 0),
    instrument=Field(
        INCEPTION, "network whose features are compared: a random network, or Inception", used=_evaluated
    ),
    reference=Field(REFERENCE, "what the FID compares with; empty: the latents, decoded", "", used=_evaluated),
)

IMPORTED_NETWORK = SAMPLE | Form({"job": Field(choice("sample"), "the only part"), **IMPORTED, **AUTOENCODER})
IMPORTED_LATENTS = IMPORTED_NETWORK | CHAIN | Form(LATENTS)
TRAINED_LATENTS = CHAIN | BASE | NETWORK | Form({**AUTOENCODER, **LATENTS, "problem.schedule": SCHEDULE})
ENCODED = Form(
    {
        "job": Field(choice("encode"), "the only part", "encode"),
        "problem.vae": AUTOENCODER["problem.vae"],
        **group(
            "problem",
            source=Field(text("a published set, a path of images, or synthetic"), "where the images are"),
            split=Field(text("the name of a split of the source, or all"), "the part of it that is used"),
            size=Field(integer(8, SIDE), "side of the square to which images are cropped, in pixels"),
            images=Field(integer(0), "images to encode, the first of the source; 0: all of them", 0),
        ),
        **group(
            "encode",
            batch=Field(COUNT, "images that are encoded at a time"),
            shard=Field(COUNT, "images in each file"),
            mirrored=Field(FLAG, "encode the mirror image of every image as well"),
            precision=Field(choice("float32", "bfloat16"), "dtype of the products of the autoencoder"),
        ),
    },
    ("problem.size", "a multiple of 8", lambda c: c.problem.size % 8 == 0),
)
