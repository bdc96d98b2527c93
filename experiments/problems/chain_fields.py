"""The fields that problems share which train, learn and evaluate, and the conditions between them.

Imports nothing heavy.
"""

from experiments.config import expressions, registry, values
from experiments.config.values import (
    COUNT,
    DEPTH,
    FLAG,
    POSITIVE,
    SAMPLES,
    SPAN,
    STEPS,
    WIDTH,
    Field,
    Form,
    choice,
    each,
    group,
    integer,
    number,
)
from experiments.problems.sample_fields import SAMPLE, weak_is_kept
from guidance.times import last_equal, within

SCHEDULE = Field(choice(*registry.constants("schedules", "SCHEDULES")), "noise schedule")
OBJECTIVES = ("self_consistency", "l2", "rollout", "score_matching", "marginal", "per_condition", "reward_only")
PAIRED = 50_000  # samples whose every pair is compared in minutes; ten times as many take a hundred times as long


def _starts_within(steps: int, lo: float, hi: float) -> bool:
    """Returns whether one of `steps` uniform steps starts in (lo, hi]."""
    near = int(steps * last_equal(lo))  # the first start after lo is one of these three
    return any(within(i / steps, lo, hi) for i in (near, near + 1, near + 2))


def _autoguided(config) -> bool:
    """Returns whether the config evaluates or learns autoguidance, which needs a weaker denoiser."""
    return expressions.AUTOGUIDED in (*config.eval.others, *config.learn.rules)


SEEDS = Form(
    {
        "seed": Field(integer(0), "the first seed", 0),
        "seeds": Field(integer(1, 10_000), "independent repetitions; their seeds are seed, ..., seed + seeds - 1"),
    },
    ("seeds", "seed + seeds of at most 2**31", lambda c: c.seed + c.seeds <= 2**31),
)

# the defaults of particles, beta, lambda_ and churn are the paper's (arXiv 2510.00815); the other defaults are ours
LEARN = group(
    "learn",
    objectives=Field(each(choice(*OBJECTIVES)), "losses; each makes a weight", ("self_consistency", "l2", "rollout")),
    rules=Field(expressions.calls("rule", expressions.LEARNABLE), "rules; each makes a rollout weight", ("cfg",)),
    intervals=Field(each(SPAN, empty=True), "intervals of t; each makes a rollout weight that is 0 elsewhere", ()),
    iterations=Field(COUNT, "updates of a one-step objective (any but rollout)"),
    batch=Field(COUNT, "data points per update, n"),
    particles=Field(COUNT, "particles per data point, m", 4),
    beta=Field(number(0, 2, "(]"), "exponent of the distance", 1.75),
    lambda_=Field(number(0, 1), "factor of the repulsion between particles", 1.0),
    delta=Field(number(0, 1, "()"), "a training step goes from t to s; smallest t - s that is drawn", 0.1),
    s_min=Field(number(0, 1, "()"), "smallest s that is drawn", 0.01),
    zeta=Field(number(0, 1, "()"), "the largest t that is drawn is 1 - zeta", 0.01),
    churn=Field(number(0, 1), "share of new noise in a training step, as in churned_ddim: 0 is DDIM", 1.0),
    learning_rate=Field(POSITIVE, "peak learning rate of a one-step objective", 1e-3),
    width=Field(WIDTH, "width of the hidden layers of the guidance network", 64),
    depth=Field(DEPTH, "hidden layers of the guidance network", 6),
    embedding=Field(WIDTH, "width of its embeddings of times and conditions", 32),
    head=Field(choice("nonnegative", "signed"), "omega is max(a, 0) of its output a, or a itself", "nonnegative"),
    gammas=Field(each(number(0)), "factors of the reward in the loss; each makes a weight", (0.0,)),
    rollout_iterations=Field(COUNT, "updates of rollout at the fewest steps; at more steps fewer, for equal cost"),
    rollout_batch=Field(integer(2), "samples per condition and update of rollout"),
    rollout_real=Field(integer(2), "data points per condition and update of rollout"),
    rollout_conditions=Field(integer(0), "conditions that each update of rollout draws; 0: it takes all of them", 0),
    select_every=Field(integer(0), "updates between checkpoints, of which the best is kept; 0: the last is kept", 0),
    select_samples=Field(integer(2, SAMPLES), "samples that each of these checkpoints is scored on", 2048),
    remat=Field(
        choice(*registry.constants("learning.rollout", "REMAT")), "what rollout recomputes, not stores", "none"
    ),
    rollout_learning_rate=Field(POSITIVE, "peak learning rate of rollout", 5e-3),
    checkpoint_every=Field(COUNT, "updates between the checkpoints from which a stopped run goes on", 200),
)

EVAL = group(
    "eval",
    steps=Field(each(STEPS), "numbers of sampler steps to evaluate at"),
    sweep_seeds=Field(COUNT, "seeds that try every hand-made weight; further seeds try only the best of them", 5),
    samples=Field(integer(2, SAMPLES), "samples per weight and seed", 2000),
    batch=Field(integer(0), "samples that are computed at a time; 0: all", 0),
    omegas=Field(each(number(-1)), "values of omega to try (scale = 1 + omega)"),
    intervals=Field(each(SPAN, empty=True), "intervals of t to try, with each omega"),
    clamp=Field(each(number(0), empty=True), "floors of the clamp-linear weight to try, as scales", (1.0,)),
    others=Field(
        expressions.calls("rule or weight", expressions.SWEPT, empty=True),
        "rules, and weights without their omega, to try with each omega",
        (),
    ),
    weak=Field(
        integer(0), "autoguidance is away from the denoiser as it was after so many updates; 0: there is none", 0
    ),
    sampler=Field(
        expressions.call("sampler", expressions.SAMPLERS),
        "solver of evaluations and rollouts; between the times of the grid, a weight is that of the nearest step",
        "ddim",
    ),
)

CHAIN = (
    Form(
        {
            "job": Field(choice("all", "train", "learn", "evaluate", "report", "sample"), "the part to run", "all"),
            "figures": Field(FLAG, "draw pictures for the report", True),
            **LEARN,
            **EVAL,
            "sample.repetition": Field(integer(0), "samples are of the model of seed + this number", 0),
        },
        ("sample.repetition", "less than seeds", lambda c: c.sample.repetition < c.seeds),
        (
            "learn.select_every",
            "0, or at least a ten-thousandth of learn.iterations and learn.rollout_iterations",
            lambda c: max(c.learn.iterations, c.learn.rollout_iterations) <= 10_000 * (c.learn.select_every or 2**31),
        ),
        (
            "learn.intervals",
            "intervals (lo, hi] in which a step starts, at each of eval.steps",
            lambda c: all(_starts_within(steps, *pair) for pair in c.learn.intervals for steps in c.eval.steps),
        ),
        (
            "learn.particles",
            "at least 2 when learn.lambda_ > 0",
            lambda c: c.learn.particles > 1 or c.learn.lambda_ == 0,
        ),
        (
            "learn.delta",
            "learn.s_min + learn.delta + learn.zeta below 1",
            lambda c: c.learn.s_min + c.learn.delta + c.learn.zeta < 1,
        ),
        (
            "eval.weak",
            "one of base.keep where autoguided is one of eval.others or learn.rules",
            lambda c: c.eval.weak or not _autoguided(c),
        ),
        weak_is_kept("eval"),
    )
    | SEEDS
    | SAMPLE
)

# for the problems that train their own denoiser
BASE = Form(
    group(
        "base",
        steps=Field(COUNT, "updates of the denoiser"),
        batch=Field(COUNT, "samples per update"),
        learning_rate=Field(POSITIVE, "peak learning rate", 1e-3),
        width=Field(WIDTH, "width of the hidden layers"),
        depth=Field(DEPTH, "hidden layers, or blocks"),
        condition_dropout=Field(number(0, 1, "()"), "share of samples trained with the null condition", 0.1),
        accumulate=Field(COUNT, "parts of a batch whose gradients are computed one after the other", 1),
        weighting=Field(
            choice("prediction", "min_snr"), "of the loss at t: none, or min(SNR, 5) for x0", "prediction"
        ),
        averages=Field(
            each(number(0, 0.288, "()"), empty=True),
            "relative widths of the averages of the parameters that are kept; the first is sampled",
            (),
        ),
        keep=Field(each(COUNT, empty=True), "updates after which the parameters are kept for good", ()),
        pictures=Field(integer(0, 10_000), "pictures of samples that are drawn during the training", 0),
        guidance_matched=Field(number(0), "omega of the guidance-matched loss; 0 is the plain loss", 0.0),
    ),
    ("base.accumulate", "a divisor of base.batch", lambda c: c.base.batch % c.base.accumulate == 0),
    ("base.keep", "updates up to base.steps", lambda c: max(c.base.keep, default=0) <= c.base.steps),
)

# and can choose its architecture
NETWORK = Form(
    group(
        "base",
        network=Field(
            choice("dit", "unet", "adm", "mlp"),
            "kind of network; unet: width x 1, 2, 2 channels, adm: width x 1, 2, 3, 4 channels, depth blocks of each",
        ),
        heads=Field(WIDTH, "attention heads of a dit"),
        patch=Field(integer(1, values.SIDE), "side of a patch of a dit"),
        precision=Field(choice("float32", "bfloat16"), "dtype of the products of a dit or unet; sums are float32"),
        remat=Field(FLAG, "recompute the blocks of a dit or unet in the backward pass, which saves memory"),
    ),
    (
        "base.heads",
        "a divisor of base.width with base.width / base.heads even",
        lambda c: c.base.network != "dit" or c.base.width % (2 * c.base.heads) == 0,
    ),
    (
        "base.width",
        "a multiple of 16 where base.network = unet",
        lambda c: c.base.network != "unet" or c.base.width % 16 == 0,
    ),
)


def multiple(base) -> int:
    """Returns a number that must divide the side of the images, or latents, which enter the network."""
    return {"dit": base.patch, "unet": 4, "adm": 8}.get(base.network, 1)
