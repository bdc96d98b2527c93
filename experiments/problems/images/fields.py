"""The fields of problems on images, and what must hold between them. Imports nothing heavy."""

from os.path import exists, isfile, join  # False for what no file can be called, where pathlib raises

from experiments.config.values import COUNT, SIDE, Constraint, Field, Form, choice, integer, number, text
from experiments.problems.chain_fields import (
    BASE,
    BASE_HOLDS,
    FIELDS,
    LEARNING,
    NETWORK,
    NETWORK_HOLDS,
    PAIRED,
    SCHEDULES,
    multiple,
)

MNIST_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

# what measures images
INSTRUMENT = {
    "problem.instrument": Field(
        text("classifier, random, or path of an existing file with Inception's weights"),
        "network whose features are metrics: a classifier that is trained here, a random one, Inception",
        "classifier",
    ),
    "problem.reference": Field(
        text("empty, or path of an existing .npz with mu and sigma or of images", empty=True),
        "statistics of real images that the FID compares with; empty: those of images held out, or of decoded latents",
        "",
    ),
}

# for problems on labelled images
PARTS = INSTRUMENT | {
    "problem.schedule": Field(choice(*SCHEDULES), "noise schedule"),
    "problem.train_fraction": Field(number(0, 1, "()"), "share of the images for denoiser and guidance"),
    "problem.classifier_fraction": Field(number(0, 1, "()"), "share for the classifier whose features are metrics"),
    "problem.classifier_steps": Field(COUNT, "updates of the classifier"),
}

# for what runs on the published MNIST model; none of these files is part of this repository
MNIST = {
    "problem.model": Field(text("path of an existing .npz file"), "weights of the published flow transformer"),
    "problem.classifier": Field(text("path of an existing .npz file"), "the LeNet whose features are metrics"),
    "problem.data": Field(text(f"a folder that holds {', '.join(MNIST_FILES)}"), "the MNIST images and labels"),
}

INSTRUMENT_FOUND = (
    Constraint(
        "problem.instrument",
        "classifier, random, or path of an existing file with Inception's weights",
        lambda c: c.problem.instrument in ("classifier", "random") or isfile(c.problem.instrument),
    ),
    Constraint(
        "problem.reference",
        "empty, or path of an existing .npz with mu and sigma or of images",
        lambda c: not c.problem.reference or exists(c.problem.reference),
    ),
    Constraint(
        "problem.reference",
        "empty where problem.instrument = classifier",
        lambda c: not c.problem.reference or c.problem.instrument != "classifier",
    ),
)

HELD_OUT = (
    Constraint(
        "problem.classifier_fraction",
        "problem.train_fraction + problem.classifier_fraction below 1 (the rest is held out)",
        lambda c: c.problem.train_fraction + c.problem.classifier_fraction < 1,
    ),
)

EVERY_PAIR = (
    Constraint(
        "eval.samples",
        f"at most {PAIRED} where metrics compare every pair of samples, as those of a classifier do",
        lambda c: getattr(c.problem, "instrument", "classifier") != "classifier" or c.eval.samples <= PAIRED,
    ),
)

MNIST_FOUND = (
    Constraint("problem.model", "path of an existing .npz file", lambda c: isfile(c.problem.model)),
    Constraint(
        "problem.classifier",
        "path of an existing .npz file",
        lambda c: isfile(c.problem.classifier),
    ),
    Constraint(
        "problem.data",
        f"a folder that holds {', '.join(MNIST_FILES)}",
        lambda c: all(isfile(join(c.problem.data, name)) for name in MNIST_FILES),
    ),
)

DIGITS = Form(
    FIELDS | BASE | PARTS,
    LEARNING + EVERY_PAIR + BASE_HOLDS + HELD_OUT + INSTRUMENT_FOUND,
)
LABELLED = Form(
    FIELDS
    | BASE
    | NETWORK
    | PARTS
    | {
        "problem.source": Field(text("a published set, or a path of images with labels"), "where the images are"),
        "problem.split": Field(text("the name of a split of the source"), "the part of it that is used"),
        "problem.size": Field(integer(1, SIDE), "side to which images are cropped"),
        "problem.images": Field(
            integer(0),
            "images kept in memory, 0 for all; the denoiser is trained on the others too, read from disk",
        ),
    },
    LEARNING
    + EVERY_PAIR
    + BASE_HOLDS
    + NETWORK_HOLDS
    + HELD_OUT
    + INSTRUMENT_FOUND
    + (
        Constraint(
            "base.patch",
            "a divisor of problem.size",
            lambda c: c.base.network != "dit" or c.problem.size % multiple(c.base) == 0,
        ),
        Constraint(
            "problem.size",
            "a multiple of 4 where base.network = unet, of 8 where it is adm",
            lambda c: c.base.network == "dit" or c.problem.size % multiple(c.base) == 0,
        ),
    ),
)
MNIST_MODEL = Form(FIELDS | MNIST, LEARNING + EVERY_PAIR + MNIST_FOUND)
