"""What must hold between the fields of a config, by the name of its problem; see `fields`. Imports nothing heavy."""

from collections.abc import Callable
from os.path import exists, isfile, join  # False for what no file can be called, where pathlib raises
from typing import Any, NamedTuple

from experiments.calls import REWARDS, parse
from experiments.fields import EPOCH_FILES, MNIST_FILES
from experiments.sampling_fields import BATCHES, batches_few, weight_found
from guidance.times import last_equal, within


class Constraint(NamedTuple):
    """A condition between fields; `field` is the one to name when it fails."""

    field: str
    allowed: str
    holds: Callable[[Any], bool]


def multiple(base) -> int:
    """What the side of the images or latents that a network sees must be a multiple of."""
    return {"dit": base.patch, "unet": 4, "adm": 8}.get(base.network, 1)


def _starts_within(steps: int, lo: float, hi: float) -> bool:
    """Whether one of `steps` uniform steps starts in (lo, hi]: the first start after lo does, if any."""
    near = int(steps * last_equal(lo))
    return any(within(i / steps, lo, hi) for i in (near, near + 1, near + 2))


def _knob(config, name: str) -> Any:
    """The value of a knob of problem.reward; None where it has none of that name."""
    found = parse("reward", config.problem.reward, REWARDS) if config.problem.reward else []
    return found[0].knobs.get(name) if found else None


def _numbers(config) -> list:
    """All numbers in the knobs of problem.reward."""
    found = parse("reward", config.problem.reward, REWARDS) if config.problem.reward else []
    values = [value for call in found for value in call.knobs.values()]
    return [number for value in values for number in (value if isinstance(value, tuple) else (value,))]


def _network_found(name: str) -> Constraint:
    return Constraint(
        f"problem.{name}",
        "path of an existing .safetensors file, or random",
        lambda c: c.problem[name] == "random" or isfile(c.problem[name]),
    )


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

SAMPLING = (
    Constraint("sample.seeds", f"at most {BATCHES} batches of sample.batch", batches_few),
    Constraint("sample.weight", "path of an existing .safetensors file", weight_found),
    Constraint(
        "sample.weak",
        "0, or one of base.keep",
        lambda c: not c.sample.weak or ("base" in c and c.sample.weak in c.base.keep),
    ),
)

BASE_HOLDS = (
    Constraint("base.accumulate", "a divisor of base.batch", lambda c: c.base.batch % c.base.accumulate == 0),
    Constraint("base.keep", "updates up to base.steps", lambda c: all(step <= c.base.steps for step in c.base.keep)),
)

NETWORK_HOLDS = (
    Constraint(
        "base.heads",
        "a divisor of base.width with base.width / base.heads even",
        lambda c: c.base.network != "dit" or c.base.width % (2 * c.base.heads) == 0,
    ),
    Constraint(
        "base.width",
        "a multiple of 16 where base.network = unet",
        lambda c: c.base.network != "unet" or c.base.width % 16 == 0,
    ),
)

HELD_OUT = (
    Constraint(
        "problem.classifier_fraction",
        "problem.train_fraction + problem.classifier_fraction below 1 (the rest is held out)",
        lambda c: c.problem.train_fraction + c.problem.classifier_fraction < 1,
    ),
)

LEARNING = (
    *SAMPLING,
    Constraint("sample.repetition", "less than seeds", lambda c: c.sample.repetition < c.seeds),
    Constraint("seeds", "seed + seeds of at most 2**31", lambda c: c.seed + c.seeds <= 2**31),
    Constraint(
        "eval.weak",
        "one of base.keep where autoguided is one of eval.others or learn.rules",
        lambda c: "autoguided" not in (*c.eval.others, *c.learn.rules) or ("base" in c and c.eval.weak in c.base.keep),
    ),
    Constraint(
        "eval.weak",
        "0, or one of base.keep",
        lambda c: not c.eval.weak or ("base" in c and c.eval.weak in c.base.keep),
    ),
    Constraint(
        "learn.select_every",
        "0, or at least a ten-thousandth of learn.iterations and learn.rollout_iterations",
        lambda c: (
            not c.learn.select_every
            or max(c.learn.iterations, c.learn.rollout_iterations) <= 10_000 * c.learn.select_every
        ),
    ),
    Constraint(
        "learn.intervals",
        "intervals (lo, hi] in which a step starts, at each of eval.steps",
        lambda c: all(_starts_within(steps, lo, hi) for lo, hi in c.learn.intervals for steps in c.eval.steps),
    ),
    Constraint(
        "learn.particles",
        "at least 2 when learn.lambda_ > 0",
        lambda c: c.learn.particles > 1 or c.learn.lambda_ == 0,
    ),
    Constraint(
        "learn.delta",
        "learn.s_min + learn.delta + learn.zeta below 1",
        lambda c: c.learn.s_min + c.learn.delta + c.learn.zeta < 1,
    ),
)

PAIRED = 50_000  # samples whose every pair is compared in minutes; ten times as many take a hundred times as long
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
PAIR_FOUND = (
    *MNIST_FOUND[1:],
    Constraint(
        "problem.epochs",
        f"a folder that holds {', '.join(EPOCH_FILES)}",
        lambda c: all(isfile(join(c.problem.epochs, name)) for name in EPOCH_FILES),
    ),
)

CONSTRAINTS = {
    "mixture": LEARNING
    + BASE_HOLDS
    + (
        Constraint(
            "eval.samples",
            f"at most {PAIRED} for each of problem.classes, since the energy distance compares every pair of them",
            lambda c: c.eval.samples <= PAIRED * c.problem.classes,
        ),
        Constraint(
            "problem.layout",
            "ring only when problem.dimension = 2",
            lambda c: c.problem.layout != "ring" or c.problem.dimension == 2,
        ),
        Constraint(
            "problem.deviation",
            "at least a thousandth of problem.radius",
            lambda c: 1000 * c.problem.deviation >= c.problem.radius,
        ),
        Constraint(
            "problem.reward",
            "numbers of at most 1000 in size",
            lambda c: all(abs(n) <= 1000 for n in _numbers(c)),
        ),
        Constraint(
            "problem.reward",
            "a linear term of one number for each of problem.dimension",
            lambda c: not _knob(c, "linear") or len(_knob(c, "linear")) == c.problem.dimension,
        ),
        Constraint(
            "problem.reward",
            "quadratic above -problem.temperature / problem.deviation^2, so that the tilted law exists",
            lambda c: (_knob(c, "quadratic") or 0) * c.problem.deviation**2 > -c.problem.temperature,
        ),
        Constraint(
            "learn.gammas",
            "0 unless problem.reward says what is rewarded",
            lambda c: not any(c.learn.gammas) or c.problem.reward,
        ),
        Constraint(
            "learn.objectives",
            "reward_only only where problem.reward says what is rewarded",
            lambda c: "reward_only" not in c.learn.objectives or c.problem.reward,
        ),
    ),
    "digits": LEARNING + EVERY_PAIR + BASE_HOLDS + HELD_OUT + INSTRUMENT_FOUND,
    "labelled": LEARNING
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
    "mnist": LEARNING + EVERY_PAIR + MNIST_FOUND,
    "imported": (*SAMPLING, _network_found("weights"), _network_found("vae")),
    "imported_latents": (
        *LEARNING,
        _network_found("weights"),
        _network_found("vae"),
        *(
            f._replace(holds=lambda c, f=f: c.job == "sample" or f.holds(c))
            for f in (*LATENTS_FOUND, *INSTRUMENT_FOUND)
        ),
    ),
    "trained_latents": (
        *LEARNING,
        *BASE_HOLDS,
        *NETWORK_HOLDS,
        _network_found("vae"),
        *LATENTS_FOUND,
        *INSTRUMENT_FOUND,
    ),
    "latents": (
        Constraint("problem.size", "a multiple of 8", lambda c: c.problem.size % 8 == 0),
        _network_found("vae"),
    ),
    "leaderboard": (
        Constraint("seeds", "seed + seeds of at most 2**31", lambda c: c.seed + c.seeds <= 2**31),
        Constraint(
            "base_steps",
            "two rising numbers of updates",
            lambda c: len(c.base_steps) == 2 and c.base_steps[0] < c.base_steps[1],
        ),
        *(f._replace(holds=lambda c, f=f: "mnist" not in c.columns or f.holds(c)) for f in MNIST_FOUND),
        *(f._replace(holds=lambda c, f=f: "pair" not in c.columns or f.holds(c)) for f in PAIR_FOUND),
    ),
}
