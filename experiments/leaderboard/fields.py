"""The fields of the leaderboard, and what must hold between them. Imports nothing heavy."""

from os.path import isfile, join

from experiments.config import expressions
from experiments.config.values import COUNT, SAMPLES, Constraint, Field, Form, choice, each, integer, number, text
from experiments.problems.images.fields import MNIST, MNIST_FOUND

EPOCH_FILES = tuple(f"mnist_ddpm_cnn_epoch{epoch:04d}.npz" for epoch in (0, 20, 60, 200, 400))

PAIR_FOUND = (
    *MNIST_FOUND[1:],
    Constraint(
        "problem.epochs",
        f"a folder that holds {', '.join(EPOCH_FILES)}",
        lambda c: all(isfile(join(c.problem.epochs, name)) for name in EPOCH_FILES),
    ),
)

LEADERBOARD = Form(
    MNIST
    | {
        "problem.epochs": Field(
            text(f"a folder that holds {', '.join(EPOCH_FILES)}"), "one unconditional model at five epochs"
        ),
        "job": Field(choice("leaderboard"), "the part to run: all of it"),
        "seed": Field(integer(0), "first seed"),
        "columns": Field(each(choice("mixtures", "mnist", "pair"), names=True), "what to compete on"),
        "seeds": Field(integer(2, 10_000), "seeds that are reported"),
        "tuning_seeds": Field(integer(1, 10_000), "seeds that the knobs are tuned on"),
        "samples": Field(integer(8, SAMPLES), "samples for each condition, problem and seed"),
        "nfe": Field(each(integer(3, 100_000)), "network evaluations per sample, all branches together"),
        "image_nfe": Field(each(integer(3, 100_000)), "the same for the MNIST column"),
        "omegas": Field(each(number(-1)), "the values that every knob is tuned over (scale = 1 + omega)"),
        "rules": Field(
            expressions.several("rule", expressions.COMBINATIONS), "rules that compete, at constant weights"
        ),
        "weights": Field(
            expressions.several("weight", expressions.SHAPES, empty=True), "weights that compete, in the rule of CFG"
        ),
        "learned": Field(
            expressions.several("rule", expressions.COMBINATIONS, empty=True), "rules that a weight is learned inside"
        ),
        "updates": Field(COUNT, "updates of a learned weight at the lowest NFE; more NFE get fewer, for equal cost"),
        "base_steps": Field(each(COUNT), "updates of the under-trained and of the trained network"),
    },
    (
        Constraint("seeds", "seed + seeds of at most 2**31", lambda c: c.seed + c.seeds <= 2**31),
        Constraint(
            "base_steps",
            "two rising numbers of updates",
            lambda c: len(c.base_steps) == 2 and c.base_steps[0] < c.base_steps[1],
        ),
        *(f._replace(holds=lambda c, f=f: "mnist" not in c.columns or f.holds(c)) for f in MNIST_FOUND),
        *(f._replace(holds=lambda c, f=f: "pair" not in c.columns or f.holds(c)) for f in PAIR_FOUND),
    ),
)
