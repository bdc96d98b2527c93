"""The fields of problems on images, and the conditions between them. Imports nothing heavy."""

from os.path import exists, isfile, join

from experiments.config.values import COUNT, SIDE, Field, Form, Kind, group, integer, number, path, text
from experiments.problems.chain_fields import BASE, CHAIN, NETWORK, PAIRED, SCHEDULE, multiple

MNIST_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def folder_of(names: tuple[str, ...]) -> Kind:
    """Returns the kind of paths of folders that hold files of all these names."""
    return path(f"a folder that holds {', '.join(names)}", exists=lambda p: all(isfile(join(p, n)) for n in names))


# weights of Inception, and statistics of real images to compare with
INCEPTION = path("random, or path of an existing file with Inception's weights", "random")
REFERENCE = path("empty, or path of an existing .npz with mu and sigma or of images", "", exists=exists)

EVERY_PAIR = (
    "eval.samples",
    f"at most {PAIRED} where metrics compare every pair of samples, as those of a classifier do",
    lambda c: getattr(c.problem, "instrument", "classifier") != "classifier" or c.eval.samples <= PAIRED,
)
PICTURES = Form(
    group(
        "problem",
        instrument=Field(
            path("classifier, random, or path of an existing file with Inception's weights", "classifier", "random"),
            "network whose features are compared: a classifier trained here, a random network, or Inception",
            "classifier",
        ),
        reference=Field(REFERENCE, "what the FID compares with; empty: the images that are held out", ""),
        schedule=SCHEDULE,
        train_fraction=Field(number(0, 1, "()"), "share of the images that train the denoiser and the guidance"),
        classifier_fraction=Field(number(0, 1, "()"), "share of the images that train the classifier"),
        classifier_steps=Field(COUNT, "updates of the classifier", 2000),
    ),
    EVERY_PAIR,
    (
        "problem.classifier_fraction",
        "problem.train_fraction + problem.classifier_fraction below 1 (the rest is held out)",
        lambda c: c.problem.train_fraction + c.problem.classifier_fraction < 1,
    ),
    (
        "problem.reference",
        "empty where problem.instrument = classifier",
        lambda c: not c.problem.reference or c.problem.instrument != "classifier",
    ),
)
ANY_SET = Form(
    group(
        "problem",
        source=Field(text("a published set, or a path of images with labels"), "where the images are"),
        split=Field(text("the name of a split of the source"), "the part of it that is used", "train"),
        size=Field(integer(1, SIDE), "side of the square to which images are cropped, in pixels"),
        images=Field(integer(0), "images kept in memory; the denoiser reads the others from disk; 0: all are kept", 0),
    ),
    (
        "base.patch",
        "a divisor of problem.size",
        lambda c: c.base.network != "dit" or c.problem.size % multiple(c.base) == 0,
    ),
    (
        "problem.size",
        "a multiple of 4 where base.network = unet, of 8 where it is adm",
        lambda c: c.base.network == "dit" or c.problem.size % multiple(c.base) == 0,
    ),
)
# the files of the published MNIST model, none of which is part of this repository
NPZ = path("path of an existing .npz file")
MNIST = group(
    "problem",
    model=Field(NPZ, "weights of the published flow transformer"),
    classifier=Field(NPZ, "weights of the LeNet whose features are compared"),
    data=Field(folder_of(MNIST_FILES), "the MNIST images and labels"),
)

DIGITS = CHAIN | BASE | PICTURES
LABELLED = DIGITS | NETWORK | ANY_SET
MNIST_MODEL = CHAIN | Form(MNIST, EVERY_PAIR)
