"""The fields of problems on the latents of images, and what must hold between them. Imports nothing heavy."""

from os.path import isfile, join

from experiments.config.values import COUNT, SIDE, WIDTH, Constraint, Field, Form, choice, flag, integer, text
from experiments.problems.chain_fields import BASE, BASE_HOLDS, FIELDS, LEARNING, NETWORK, NETWORK_HOLDS, SCHEDULES
from experiments.problems.images.fields import INSTRUMENT, INSTRUMENT_FOUND
from experiments.problems.sample_fields import SAMPLE, SAMPLING

# networks that were trained elsewhere, read from files of the user's
IMPORTED = {
    "job": Field(choice("sample"), "the part to run: there is one"),
    "problem.network": Field(choice("dit", "sit"), "eps at the timesteps of a diffusion, or velocity of a flow"),
    "problem.weights": Field(text("path of an existing .safetensors file"), "weights of the network"),
    "problem.vae": Field(text("path of an existing .safetensors file"), "weights of the autoencoder of its latents"),
    "problem.heads": Field(integer(0, 4096), "attention heads; 0: those of the published network of this width"),
    "problem.side": Field(integer(0, SIDE), "rows of the latents; 0: what the embedding of places in the file says"),
    "problem.vae_groups": Field(WIDTH, "groups of the autoencoder's normalisations"),
    "problem.dtype": Field(choice("float32", "bfloat16"), "dtype that the network computes in"),
}

# for problems on the latents of images
LATENTS = {
    "problem.latents": Field(
        text("a folder that job encode wrote, synthetic, or empty for job = sample", empty=True),
        "latents of real images by the same autoencoder",
    ),
    "problem.images": Field(integer(0), "images whose latents are kept in memory, drawn at random; 0 for all"),
}


def _network_found(name: str) -> Constraint:
    return Constraint(
        f"problem.{name}",
        "path of an existing .safetensors file, or random",
        lambda c: c.problem[name] == "random" or isfile(c.problem[name]),
    )


LATENTS_FOUND = (
    Constraint(
        "problem.instrument",
        "random, or path of an existing file with Inception's weights",
        lambda c: c.problem.instrument != "classifier",
    ),
    Constraint(
        "problem.latents",
        "a folder that job encode wrote (latents.json in it), or synthetic",
        lambda c: (
            c.problem.latents == "synthetic" or (c.problem.latents and isfile(join(c.problem.latents, "latents.json")))
        ),
    ),
)

IMPORTED_NETWORK = Form(IMPORTED | SAMPLE, (*SAMPLING, _network_found("weights"), _network_found("vae")))
IMPORTED_LATENTS = Form(
    IMPORTED | FIELDS | INSTRUMENT | LATENTS,
    (
        *LEARNING,
        _network_found("weights"),
        _network_found("vae"),
        *(
            f._replace(holds=lambda c, f=f: c.job == "sample" or f.holds(c))
            for f in (*LATENTS_FOUND, *INSTRUMENT_FOUND)
        ),
    ),
)
TRAINED_LATENTS = Form(
    FIELDS
    | BASE
    | NETWORK
    | INSTRUMENT
    | LATENTS
    | {name: IMPORTED[name] for name in ("problem.vae", "problem.vae_groups")}
    | {
        "problem.latents": Field(
            text("a folder that job encode wrote, or synthetic"), "latents of images with labels"
        ),
        "problem.schedule": Field(choice(*SCHEDULES), "noise schedule"),
    },
    (
        *LEARNING,
        *BASE_HOLDS,
        *NETWORK_HOLDS,
        _network_found("vae"),
        *LATENTS_FOUND,
        *INSTRUMENT_FOUND,
    ),
)
ENCODED = Form(
    {
        "job": Field(choice("encode"), "the part to run: all of it"),
        "problem.source": Field(text("a published set, a path of images, or synthetic"), "where the images are"),
        "problem.split": Field(text("the name of a split of the source, or all"), "the part of it that is used"),
        "problem.size": Field(integer(8, SIDE), "side to which images are cropped"),
        "problem.images": Field(integer(0), "images to encode, the first of the source; 0 for all"),
        "problem.vae": Field(text("path of an existing .safetensors file, or random"), "weights of the autoencoder"),
        "encode.batch": Field(COUNT, "images at a time"),
        "encode.shard": Field(COUNT, "images a file"),
        "encode.mirrored": Field(flag(), "encode every image with left and right exchanged as well"),
        "encode.precision": Field(choice("float32", "bfloat16"), "of the autoencoder's products"),
    },
    (
        Constraint("problem.size", "a multiple of 8", lambda c: c.problem.size % 8 == 0),
        _network_found("vae"),
    ),
)
