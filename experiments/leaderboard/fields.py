"""The fields of the leaderboard, and the conditions between them. Imports nothing heavy."""

from experiments.config.expressions import COMBINATIONS, SHAPES, calls
from experiments.config.values import COUNT, SAMPLES, Field, Form, choice, each, integer, number
from experiments.problems.chain_fields import SEEDS
from experiments.problems.images.fields import MNIST, folder_of

EPOCH_FILES = tuple(f"mnist_ddpm_cnn_epoch{epoch:04d}.npz" for epoch in (0, 20, 60, 200, 400))


def _opened_by(field: Field, *columns: str) -> Field:
    """Returns the field of a file that must exist only if the config has one of these columns."""
    return field._replace(used=lambda config: any(column in config.columns for column in columns))


LEADERBOARD = SEEDS | Form(
    {
        "job": Field(choice("leaderboard"), "the only part", "leaderboard"),
        "columns": Field(each(choice("mixtures", "mnist", "pair")), "sets of problems to compete on"),
        "problem.model": _opened_by(MNIST["problem.model"], "mnist"),
        "problem.classifier": _opened_by(MNIST["problem.classifier"], "mnist", "pair"),
        "problem.data": _opened_by(MNIST["problem.data"], "mnist", "pair"),
        "problem.epochs": _opened_by(Field(folder_of(EPOCH_FILES), "one unconditional model at five epochs"), "pair"),
        "seeds": Field(integer(2, 10_000), "seeds that are reported"),
        "tuning_seeds": Field(integer(1, 10_000), "seeds that the knobs are tuned on"),
        "samples": Field(integer(8, SAMPLES), "samples for each condition, problem and seed"),
        "nfe": Field(each(integer(3, 100_000)), "network evaluations per sample, of all branches together"),
        "image_nfe": Field(each(integer(3, 100_000)), "the same for the column mnist"),
        "omegas": Field(each(number(-1)), "values that every knob is tuned over (scale = 1 + omega)"),
        "rules": Field(calls("rule", COMBINATIONS), "rules that compete, with constant weights"),
        "weights": Field(calls("weight", SHAPES, empty=True), "weights that compete, in the rule of CFG"),
        "learned": Field(calls("rule", COMBINATIONS, empty=True), "rules that a weight is learned inside"),
        "updates": Field(COUNT, "updates of a learned weight at the lowest NFE; at more NFE fewer, for equal cost"),
        "base_steps": Field(each(COUNT), "updates of the under-trained and of the trained network"),
    },
    (
        "base_steps",
        "two rising numbers of updates",
        lambda c: len(c.base_steps) == 2 and c.base_steps[0] < c.base_steps[1],
    ),
)
