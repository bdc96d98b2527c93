"""The fields of the job `sample`, and the conditions between them. Imports nothing heavy."""

import re

from experiments.config import expressions, values
from experiments.config.values import COUNT, POSITIVE, STEPS, Field, Form, Kind, choice, each, group, integer

TAKEN = (  # the names of other files and folders that a run writes
    "base", "classifier", "config.json", "diverged", "evaluations.jsonl", "guidance", "metrics.jsonl", "pictures",
    "refused", "report.html", "results.json", "selection.jsonl", "weights",
)  # fmt: skip
FOLDER = Kind(
    "a name of up to 100 letters, digits and . _ - + @ that nothing else in the folder of a run has",
    values.as_text,
    lambda name: re.fullmatch(r"(?!.*\.png$)\w[\w.+@-]*", name) and len(name.encode()) <= 100 and name not in TAKEN,
)
BATCHES = 1_000_000  # files that a folder of batches may hold


def weak_is_kept(part: str) -> tuple:
    """Returns the condition that `part`.weak is 0, or a number of updates at which training keeps parameters."""
    return (
        f"{part}.weak",
        "0, or one of base.keep",
        lambda c: not c[part].weak or ("base" in c and c[part].weak in c.base.keep),
    )


# every problem has these, so each has a default: a config file need not mention them
SAMPLE = Form(
    group(
        "sample",
        seeds=Field(expressions.SEEDS, "a seed for each sample, from which its noise and its label follow", "0-63"),
        batch=Field(COUNT, "samples that are computed, and saved, at a time; they are the same for any batch", 64),
        labels=Field(expressions.LABELS, "classes, which the seeds get in turn, over and over", "all"),
        rule=Field(expressions.rules(), "how the predictions are combined; a stack goes from left to right", "cfg"),
        weight=Field(expressions.weight(), "the weight omega of the guidance; 0 is unguided, scale = 1 + omega", "0"),
        weak=Field(
            integer(0), "guide away from the denoiser as it was after so many updates; 0: the null condition", 0
        ),
        sampler=Field(expressions.call("sampler", expressions.SAMPLERS), "the step from one time to the next", "ddim"),
        grid=Field(expressions.call("grid", expressions.GRIDS), "the times that the sampler visits", "uniform"),
        shift=Field(POSITIVE, "factor on the noise levels of the grid; 1 leaves them as they are", 1.0),
        steps=Field(STEPS, "steps of the sampler", 50),
        output=Field(
            each(choice("npz", "png", "grid")),
            "files to write: all samples as ADM writes them, a PNG for each seed, one picture of many",
            ("npz", "grid"),
        ),
        into=Field(FOLDER, "folder of these samples in the workdir; other settings need another", "samples"),
    ),
    (
        "sample.seeds",
        f"at most {BATCHES} batches of sample.batch",
        lambda c: sum(map(len, expressions.integers(c.sample.seeds))) <= BATCHES * c.sample.batch,
    ),
    weak_is_kept("sample"),
)
