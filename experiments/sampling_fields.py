"""The fields of the job `sample`, and of the config that samples from imported networks. Imports nothing heavy."""

import re
from os.path import isfile

from experiments import calls
from experiments.calls import GRIDS, LEARNED, SAMPLERS
from experiments.kinds import COUNT, POSITIVE, SIDE, STEPS, WIDTH, Field, Kind, Refused, choice, each, integer, text

OUTPUTS = ("npz", "png", "grid")


TAKEN = (  # names of what else a run leaves in its folder
    "base", "classifier", "config.json", "diverged", "evaluations.jsonl", "guidance", "metrics.jsonl", "pictures",
    "refused", "report.html", "results.json", "selection.jsonl", "weights",
)  # fmt: skip


def _folder() -> Kind:
    allowed = "a name of up to 100 letters, digits and . _ - + @"

    def read(value):
        if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+@-]*", value) or len(value.encode()) > 100:
            raise Refused(f"allowed: {allowed}")
        if value in TAKEN or value.endswith(".png"):
            raise Refused(
                f"a run keeps something else there; allowed: {allowed}, other than {', '.join(TAKEN)}, *.png"
            )
        return value

    return Kind(allowed, read, lambda raw: raw.strip("'\""))


# every problem has these, so each has a default: a config file need not mention them
SAMPLE = {
    "sample.seeds": Field(calls.seeds(), "the samples; each follows from its own seed, whatever the batch", "0-63"),
    "sample.batch": Field(COUNT, "samples computed, and saved, at a time", 64),
    "sample.labels": Field(calls.labels(), "their classes: seed i gets number i of the list, over and over", "all"),
    "sample.rule": Field(calls.rules(), "how predictions are combined; several are stacked, left to right", "cfg"),
    "sample.weight": Field(calls.weight(), "how much and when; omega = 0 is unguided, scale = 1 + omega", "0"),
    "sample.weak": Field(
        integer(0), "0: away from the null condition; else from the denoiser as it was after so many updates", 0
    ),
    "sample.sampler": Field(calls.one("sampler", SAMPLERS), "the update from one time to the next", "ddim"),
    "sample.grid": Field(calls.one("grid", GRIDS), "the times that the sampler visits", "uniform"),
    "sample.shift": Field(POSITIVE, "factor on the noise levels of the grid; 1 leaves them", 1.0),
    "sample.steps": Field(STEPS, "steps of the sampler", 50),
    "sample.output": Field(
        each(choice(*OUTPUTS), names=True),
        "one npz as ADM writes it, a PNG for each seed, one picture",
        ("npz", "grid"),
    ),
    "sample.into": Field(
        _folder(), "folder inside the workdir that takes them; other settings need another", "samples"
    ),
}

# for problems with repetitions
REPETITION = {"sample.repetition": Field(integer(0), "whose denoiser: that of seed + this", 0)}

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


BATCHES = 1_000_000  # files that a folder of batches may hold


def batches_few(config) -> bool:
    """Whether the seeds come in no more than BATCHES batches."""
    return sum(map(len, calls.integers(config.sample.seeds))) <= BATCHES * config.sample.batch


def weight_found(config) -> bool:
    """Whether the file of a learned weight is there; what is no path needs none."""
    return not config.sample.weight.endswith(LEARNED) or isfile(config.sample.weight)
