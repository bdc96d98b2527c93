"""The fields of every problem that trains, learns and evaluates, and what must hold between them.

Imports nothing heavy.
"""

from experiments.config import expressions, registry
from experiments.config.values import (
    COUNT,
    DEPTH,
    POSITIVE,
    SAMPLES,
    SIDE,
    STEPS,
    WIDTH,
    Constraint,
    Field,
    choice,
    each,
    flag,
    integer,
    number,
    span,
)
from experiments.problems.sample_fields import REPETITION, SAMPLE, SAMPLING
from guidance.times import last_equal, within

SCHEDULES = registry.constants("schedules", "SCHEDULES")
OBJECTIVES = ("self_consistency", "l2", "rollout", "score_matching", "marginal", "per_condition", "reward_only")
REMAT = registry.constants("learning.rollout", "REMAT")


FIELDS = {
    "job": Field(choice("all", "train", "learn", "evaluate", "report", "sample"), "which part of the chain to run"),
    "seed": Field(integer(0), "first seed"),
    "seeds": Field(integer(1, 10_000), "independent repetitions: seeds seed, ..., seed + seeds - 1"),
    "figures": Field(flag(), "draw pictures for the report"),
    "learn.objectives": Field(each(choice(*OBJECTIVES), names=True), "the weights to learn, one per objective"),
    "learn.rules": Field(expressions.several("rule", expressions.LEARNABLE), "rules of a rollout weight, one each"),
    "learn.intervals": Field(each(span(), empty=True), "intervals in t that rollout weights are limited to, too", ()),
    "learn.iterations": Field(COUNT, "updates of a one-step objective"),
    "learn.batch": Field(COUNT, "data points per update, n"),
    "learn.particles": Field(COUNT, "particles per data point, m"),
    "learn.beta": Field(number(0, 2, "(]"), "exponent of the distance"),
    "learn.lambda_": Field(number(0, 1), "weight of the repulsion term"),
    "learn.delta": Field(number(0, 1, "()"), "smallest gap t - s drawn"),
    "learn.s_min": Field(number(0, 1, "()"), "smallest s drawn"),
    "learn.zeta": Field(number(0, 1, "()"), "largest t drawn is 1 - zeta"),
    "learn.churn": Field(number(0, 1), "churn of the training step"),
    "learn.learning_rate": Field(POSITIVE, "peak learning rate of a one-step objective"),
    "learn.width": Field(WIDTH, "hidden width of the guidance network"),
    "learn.depth": Field(DEPTH, "hidden layers of the guidance network"),
    "learn.embedding": Field(WIDTH, "width of its time and condition embeddings"),
    "learn.head": Field(
        choice("nonnegative", "signed"), "omega of the guidance network: max(a, 0), or a itself", "nonnegative"
    ),
    "learn.gammas": Field(each(number(0)), "reward coefficients, a weight for each; 0 leaves the reward out"),
    "learn.rollout_iterations": Field(
        COUNT, "updates of the rollout objective at the fewest steps; more steps get fewer, for equal cost"
    ),
    "learn.rollout_batch": Field(integer(2), "samples per condition and update of the rollout objective"),
    "learn.rollout_real": Field(integer(2), "true samples per condition and update of the rollout objective"),
    "learn.rollout_conditions": Field(integer(0), "conditions of a rollout update, drawn afresh; 0 for all", 0),
    "learn.select_every": Field(integer(0), "updates between checkpoints of which the best is kept; 0: the last", 0),
    "learn.select_samples": Field(integer(2, SAMPLES), "samples that each of them is scored on", 2048),
    "learn.remat": Field(choice(*REMAT), "what the rollout recomputes to save memory"),
    "learn.rollout_learning_rate": Field(POSITIVE, "peak learning rate of the rollout objective"),
    "learn.checkpoint_every": Field(COUNT, "updates between checkpoints"),
    "eval.steps": Field(each(STEPS), "sampler steps to evaluate at"),
    "eval.sweep_seeds": Field(COUNT, "seeds that see the whole grid of hand-made weights; the others see a shortlist"),
    "eval.samples": Field(integer(2, SAMPLES), "samples per evaluation and seed"),
    "eval.batch": Field(integer(0), "samples computed at a time; 0 for all", 0),
    "eval.omegas": Field(each(number(-1)), "grid of constant weights (scale = 1 + omega)"),
    "eval.intervals": Field(each(span(), empty=True), "intervals in t crossed with the omegas"),
    "eval.clamp": Field(each(number(0), empty=True), "floors, as scales, of the clamp-linear weight"),
    "eval.others": Field(
        expressions.several("rule or weight", expressions.SWEPT, empty=True),
        "further families: rules, and weights without their omega, crossed with the omegas",
    ),
    "eval.weak": Field(integer(0), "updates of the weak denoiser of autoguidance, one of base.keep; 0: none"),
    "eval.sampler": Field(
        expressions.one("sampler", expressions.SAMPLERS),
        "the update from one time to the next, of evaluations and rollouts; between the times of the grid a weight is "
        "that of the nearest step",
        "ddim",
    ),
    **SAMPLE,
    **REPETITION,
}

# for the problems that train their own denoiser
BASE = {
    "base.steps": Field(COUNT, "updates of the base denoiser"),
    "base.batch": Field(COUNT, "samples per update"),
    "base.learning_rate": Field(POSITIVE, "peak learning rate"),
    "base.width": Field(WIDTH, "hidden width"),
    "base.depth": Field(DEPTH, "hidden layers"),
    "base.condition_dropout": Field(number(0, 1, "()"), "share of samples trained with the null condition"),
    "base.accumulate": Field(COUNT, "parts of a batch whose gradients are computed one after the other"),
    "base.weighting": Field(choice("prediction", "min_snr"), "of the loss over t: none, or min(SNR, 5) for x0"),
    "base.averages": Field(
        each(number(0, 0.288, "()"), empty=True),
        "relative widths of the parameter averages kept; the first is sampled",
    ),
    "base.keep": Field(each(COUNT, empty=True), "updates after which the params to sample from are kept for good"),
    "base.pictures": Field(integer(0, 10_000), "pictures of samples drawn during the training"),
    "base.guidance_matched": Field(number(0), "omega of the guidance-matched loss; 0 is the plain loss"),
}

# and can choose its architecture
NETWORK = {
    "base.network": Field(
        choice("dit", "unet", "adm", "mlp"),
        "kind of network; a unet has width x 1, 2, 2 channels, adm width x 1, 2, 3, 4, depth blocks each",
    ),
    "base.heads": Field(WIDTH, "attention heads of a dit"),
    "base.patch": Field(integer(1, SIDE), "side of a patch of a dit"),
    "base.precision": Field(choice("float32", "bfloat16"), "of the products of a dit or unet; sums stay float32"),
    "base.remat": Field(flag(), "recompute the blocks of a dit or unet in the backward pass"),
}


def multiple(base) -> int:
    """What the side of the images or latents that a network sees must be a multiple of."""
    return {"dit": base.patch, "unet": 4, "adm": 8}.get(base.network, 1)


def _starts_within(steps: int, lo: float, hi: float) -> bool:
    """Whether one of `steps` uniform steps starts in (lo, hi]: the first start after lo does, if any."""
    near = int(steps * last_equal(lo))
    return any(within(i / steps, lo, hi) for i in (near, near + 1, near + 2))


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
