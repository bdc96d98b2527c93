"""Every field of every config file: how its text is read, what is allowed, what it means.

Plain data for `experiments.config`, which turns whatever is wrong into one line; what must hold between fields is in
`constraints`. Imports nothing heavy.
"""

from experiments import calls, registry
from experiments.kinds import (
    COUNT,
    DEPTH,
    POSITIVE,
    SAMPLES,
    SIDE,
    STEPS,
    WIDTH,
    Field,
    choice,
    each,
    flag,
    integer,
    number,
    span,
    text,
)  # fmt: skip
from experiments.sampling_fields import IMPORTED, REPETITION, SAMPLE

SCHEDULES = registry.constants("schedules", "SCHEDULES")
OBJECTIVES = ("self_consistency", "l2", "rollout", "score_matching", "marginal", "per_condition", "reward_only")
REMAT = registry.constants("rollout", "REMAT")
MNIST_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
EPOCH_FILES = tuple(f"mnist_ddpm_cnn_epoch{epoch:04d}.npz" for epoch in (0, 20, 60, 200, 400))


FIELDS = {
    "job": Field(choice("all", "train", "learn", "evaluate", "report", "sample"), "which part of the chain to run"),
    "seed": Field(integer(0), "first seed"),
    "seeds": Field(integer(1, 10_000), "independent repetitions: seeds seed, ..., seed + seeds - 1"),
    "figures": Field(flag(), "draw pictures for the report"),
    "learn.objectives": Field(each(choice(*OBJECTIVES), names=True), "the weights to learn, one per objective"),
    "learn.rules": Field(calls.several("rule", calls.LEARNABLE), "rules of a rollout weight, one each"),
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
        calls.several("rule or weight", calls.SWEPT, empty=True),
        "further families: rules, and weights without their omega, crossed with the omegas",
    ),
    "eval.weak": Field(integer(0), "updates of the weak denoiser of autoguidance, one of base.keep; 0: none"),
    "eval.sampler": Field(
        calls.one("sampler", calls.SAMPLERS),
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

# for problems on the latents of images
LATENTS = {
    "problem.latents": Field(
        text("a folder that job encode wrote, synthetic, or empty for job = sample", empty=True),
        "latents of real images by the same autoencoder",
    ),
    "problem.images": Field(integer(0), "images whose latents are kept in memory, drawn at random; 0 for all"),
}

# for what runs on the published MNIST model; none of these files is part of this repository
MNIST = {
    "problem.model": Field(text("path of an existing .npz file"), "weights of the published flow transformer"),
    "problem.classifier": Field(text("path of an existing .npz file"), "the LeNet whose features are metrics"),
    "problem.data": Field(text(f"a folder that holds {', '.join(MNIST_FILES)}"), "the MNIST images and labels"),
}

PROBLEMS = {
    "mixture": FIELDS
    | BASE
    | {
        "problem.dimension": Field(integer(1, 4096), "dimension of the space"),
        "problem.classes": Field(integer(1, 1000), "number of classes"),
        "problem.modes": Field(integer(1, 100), "modes of each class"),
        "problem.layout": Field(choice("ring", "random"), "where the modes lie: on a circle, or drawn from a sphere"),
        "problem.radius": Field(number(0.001, 1000), "distance of the modes from the origin"),
        "problem.deviation": Field(number(0.001, 1000), "standard deviation of a mode"),
        "problem.schedule": Field(choice(*SCHEDULES), "noise schedule"),
        "problem.error": Field(choice("none", "attenuated", "under", "trained"), "what is wrong with the denoiser"),
        "problem.attenuation": Field(number(0, 1, "[)"), "rho: D_c becomes (1 - rho) D_c + rho D_u"),
        "problem.reward": Field(
            calls.one("reward", calls.REWARDS, empty=True),
            "what is rewarded: the target is the data tilted by exp(reward / temperature); empty: the data",
        ),
        "problem.temperature": Field(number(0.001, 1000), "of that tilt"),
    },
    "digits": FIELDS | BASE | PARTS,
    "labelled": FIELDS
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
    "mnist": FIELDS | MNIST,
    "imported": IMPORTED | SAMPLE,
    "imported_latents": IMPORTED | FIELDS | INSTRUMENT | LATENTS,
    "trained_latents": FIELDS
    | BASE
    | NETWORK
    | INSTRUMENT
    | LATENTS
    | {name: IMPORTED[name] for name in ("problem.vae", "problem.vae_groups")}
    | {
        "problem.latents": Field(
            text("a folder that job encode wrote, or synthetic"), "latents of images with labels"
        ),
        "problem.schedule": Field(choice(*SCHEDULES), "noise schedule"),
    },
    "latents": {
        "job": Field(choice("encode"), "the part to run: all of it"),
        "problem.source": Field(text("a published set, a path of images, or synthetic"), "where the images are"),
        "problem.split": Field(text("the name of a split of the source, or all"), "the part of it that is used"),
        "problem.size": Field(integer(8, SIDE), "side to which images are cropped"),
        "problem.images": Field(integer(0), "images to encode, the first of the source; 0 for all"),
        "problem.vae": Field(text("path of an existing .safetensors file, or random"), "weights of the autoencoder"),
        "encode.batch": Field(COUNT, "images at a time"),
        "encode.shard": Field(COUNT, "images a file"),
        "encode.mirrored": Field(flag(), "encode every image with left and right exchanged as well"),
        "encode.precision": Field(choice("float32", "bfloat16"), "of the autoencoder's products"),
    },
    "leaderboard": MNIST
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
        "rules": Field(calls.several("rule", calls.COMBINATIONS), "rules that compete, at constant weights"),
        "weights": Field(
            calls.several("weight", calls.SHAPES, empty=True), "weights that compete, in the rule of CFG"
        ),
        "learned": Field(
            calls.several("rule", calls.COMBINATIONS, empty=True), "rules that a weight is learned inside"
        ),
        "updates": Field(COUNT, "updates of a learned weight at the lowest NFE; more NFE get fewer, for equal cost"),
        "base_steps": Field(each(COUNT), "updates of the under-trained and of the trained network"),
    },
}
