"""The fields of the job `sample`, and what must hold between them. Imports nothing heavy."""

import re
from os.path import isfile

from experiments.config import expressions
from experiments.config.expressions import GRIDS, LEARNED, SAMPLERS
from experiments.config.values import COUNT, POSITIVE, STEPS, Constraint, Field, Kind, Refused, choice, each, integer

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
    "sample.seeds": Field(
        expressions.seeds(), "the samples; each follows from its own seed, whatever the batch", "0-63"
    ),
    "sample.batch": Field(COUNT, "samples computed, and saved, at a time", 64),
    "sample.labels": Field(
        expressions.labels(), "their classes: seed i gets number i of the list, over and over", "all"
    ),
    "sample.rule": Field(
        expressions.rules(), "how predictions are combined; several are stacked, left to right", "cfg"
    ),
    "sample.weight": Field(expressions.weight(), "how much and when; omega = 0 is unguided, scale = 1 + omega", "0"),
    "sample.weak": Field(
        integer(0), "0: away from the null condition; else from the denoiser as it was after so many updates", 0
    ),
    "sample.sampler": Field(expressions.one("sampler", SAMPLERS), "the update from one time to the next", "ddim"),
    "sample.grid": Field(expressions.one("grid", GRIDS), "the times that the sampler visits", "uniform"),
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


BATCHES = 1_000_000  # files that a folder of batches may hold


def batches_few(config) -> bool:
    """Whether the seeds come in no more than BATCHES batches."""
    return sum(map(len, expressions.integers(config.sample.seeds))) <= BATCHES * config.sample.batch


def weight_found(config) -> bool:
    """Whether the file of a learned weight is there; what is no path needs none."""
    return not config.sample.weight.endswith(LEARNED) or isfile(config.sample.weight)


SAMPLING = (
    Constraint("sample.seeds", f"at most {BATCHES} batches of sample.batch", batches_few),
    Constraint("sample.weight", "path of an existing .safetensors file", weight_found),
    Constraint(
        "sample.weak",
        "0, or one of base.keep",
        lambda c: not c.sample.weak or ("base" in c and c.sample.weak in c.base.keep),
    ),
)
