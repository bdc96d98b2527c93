"""The real-image columns: every contender on a published MNIST model, and autoguidance between epochs of another.

Distances are those to held-out images, in the features of the published LeNet. The knob of every contender is tuned on
the Frechet distance of TRIAL samples with one seed. The rows are means over the other seeds, of FINAL or PAIR_FINAL
samples each.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.config.expressions import COMBINATIONS, shortened
from experiments.files import tensors
from experiments.leaderboard import contenders as field
from experiments.leaderboard import evaluate
from experiments.problems import construct
from experiments.problems.images import judge, mnist
from experiments.runtime import drawing
from guidance import guides, predictions, rules, sampling, weights
from guidance.nets import ddpm_cnn, lenet

TRIAL, FINAL, PAIR_FINAL = 500, 2000, 500  # the pair's network is a slow one
LEAD = "frechet_distance"
MNIST, PAIR = "mnist", "mnist, unconditional"
PROBLEMS = {
    MNIST: """## MNIST

Every contender with hand-made weights samples from a published class-conditional flow transformer. Distances are
taken in the features of a published LeNet, to the test images: the Frechet distance, and the energy distance for each
class. Class agreement is the share of samples that the LeNet reads as their class. A number is a mean over {seeds}
seeds of 2000 samples, tuned on 500 samples of another seed. `docs/results.md` has learned weights for this model.
""",
    PAIR: """## A strong and a weak network

This is autoguidance on published weights: an unconditional network after 400 epochs, guided away from itself at
earlier epochs of the same run, at equal NFE. The Frechet distance is that of the section before. A number is a mean
over {seeds} seeds of 500 samples, and so few samples raise all numbers alike.
""",
}
STRONG_OMEGA, PICTURE_STEPS = 3.0, 20
STRONG, WEAK = "0400", ("0020", "0060")  # epochs of the published training run
PAIR_OMEGAS, PAIR_NFE = (0.3, 0.6, 1.0, 1.5), 40
CHUNK = 50  # evaluations of the convolutional network at a time


def mnist_units(config) -> list[field.Unit]:
    """Returns the units of the published class-conditional model, one for each structure of contenders."""
    problem = mnist.build(config, None)
    instrument = problem.instrument
    measure = functools.partial(instrument.measure, jax.random.key(0))
    longest = max(config.image_nfe)
    compiled = {}

    def tuned(entrant, nfe):
        if entrant.structure not in compiled:
            compiled[entrant.structure] = _sampler(problem.model, entrant.guide, entrant.step)
        steps = entrant.steps(nfe)
        tables = np.repeat(entrant.table(sampling.uniform_grid(steps), longest)[..., None], mnist.CLASSES, axis=-1)
        run = compiled[entrant.structure]
        draws = [
            functools.partial(run, table, evaluate.padded(sampling.uniform_grid(steps), longest), steps)
            for table in tables
        ]
        entry = MNIST, entrant.name, entrant.knob, entrant.knobs
        return _protocol(config, *entry, draws, FINAL, measure, steps, nfe)

    def floor():
        keys = evaluate.keys(config, 1)[1:]
        finals = [instrument.floor(key, FINAL // mnist.CLASSES, False) for key in keys]
        return _rows(MNIST, "true data", "", {}, 1, 0, finals)

    hand_made = field.units(field.contenders(config), MNIST, config.image_nfe, tuned)
    return [[({"problem": MNIST, "contender": "true data"}, floor)], *hand_made]


def pair_units(config) -> list[field.Unit]:
    """Returns the units of the unconditional model: its last epoch alone, and guided by each earlier epoch."""
    strong, *weaker = (_epoch(config.problem.epochs, epoch) for epoch in (STRONG, *WEAK))
    classifier = lenet.from_torch(tensors.read_weights(config.problem.classifier))
    _, test = data.mnist(config.problem.data)
    look = jax.jit(lambda x: lenet.read(classifier, jnp.clip(x + 0.5, 0, 1)))  # the model's pixels start at -1/2
    meter = judge.meter(look, data.to_unit(test.images) - 0.5, test.labels)

    def measure(samples, full):
        del full
        return {LEAD: judge.frechet(meter, samples)}

    def sample(weak, omega, steps, key):
        guide = guides.unguided() if weak is None else guides.autoguided(rules.cfg, weights.constant(omega), weak)
        cond = jnp.zeros(TRIAL, jnp.int32)
        return _sampled(strong, guide, ddpm_cnn.schedule(), sampling.uniform_grid(steps), key, cond)[None]

    def tuned(name, weak, knobs, nfe):
        steps = nfe if weak is None else nfe // 2
        draws = [functools.partial(sample, weak, omega, steps) for omega in knobs]
        return _protocol(config, PAIR, name, "omega", knobs, draws, PAIR_FINAL, measure, steps, nfe)

    entrants = [(f"epoch {int(STRONG)} alone", None, (0.0,))]
    entrants += [(f"guided by epoch {int(e)}", weak, PAIR_OMEGAS) for e, weak in zip(WEAK, weaker, strict=True)]
    return [
        [
            (
                {"problem": PAIR, "contender": name, "nfe": PAIR_NFE},
                functools.partial(tuned, name, weak, knobs, PAIR_NFE),
            )
        ]
        for name, weak, knobs in entrants
    ]


def draw(workdir, config) -> tuple[str, str]:
    """Draws what each rule does to the same noise into mnist.png; returns its name and caption."""
    model = mnist.build(config, None).model
    grid = sampling.uniform_grid(PICTURE_STEPS)
    rows = {"unguided": (field.unguided, STRONG_OMEGA)}
    for text in config.rules:
        omega = STRONG_OMEGA if field.weight_of(text) == "omega" else 1.0
        rows[shortened(text, COMBINATIONS)] = field.by_rule(construct.rule(text)), omega
    figure, axes = drawing.subplots(figsize=(9, 0.75 * len(rows)))
    shown = []
    for guide, omega in rows.values():
        built = guide(weights.constant(omega), model.null)
        key, cond = jax.random.key(config.seed), model.conditions
        x = _sampled(model.denoise(()), built, model.schedule, grid, key, cond)
        shown.append(np.clip(np.asarray(x)[..., 0], 0, 1).transpose(1, 0, 2).reshape(28, -1))
    axes.imshow(np.concatenate(shown), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=14 + 28 * np.arange(mnist.CLASSES), xticklabels=range(mnist.CLASSES), xlabel="class")
    axes.set(yticks=14 + 28 * np.arange(len(rows)), yticklabels=list(rows))
    drawing.Picture(figure).save(workdir / "mnist.png", dpi=90)
    return "mnist.png", f"What each rule makes of the same noise at omega = {STRONG_OMEGA:g} (lambda = 1 for CFG++)."


@jax.jit
def _sampled(denoise, guide, schedule, grid, key, cond):
    """Draws DDIM samples [batch, 28, 28, 1]."""
    keys, step = jax.random.split(key), sampling.ddim()
    return sampling.from_noise(keys, denoise, guide, step, schedule, grid, mnist.IMAGE_SHAPE, cond).x0


def _sampler(model, guide, step):
    """Returns a jitted function (table [longest, G], grid, steps, key) -> samples [G, TRIAL / G, ...]."""
    n = TRIAL // mnist.CLASSES

    @jax.jit
    def run(table, grid, steps, key):
        built = guide(weights.table(grid, table), model.null)
        cond = jnp.repeat(model.conditions, n)
        inputs = model.denoise(()), built, step, model.schedule, grid, model.shape, cond
        x = sampling.from_noise(jax.random.split(key), *inputs, steps=steps).x0
        return x.reshape(mnist.CLASSES, n, *model.shape)

    return run


def _epoch(folder, epoch: str):
    arrays = tensors.read_weights(pathlib.Path(folder) / f"mnist_ddpm_cnn_epoch{epoch}.npz")
    return predictions.in_chunks(ddpm_cnn.denoiser(ddpm_cnn.from_torch(arrays)), CHUNK)


def _protocol(config, problem, method, what, knobs, draws, final, measure, steps, nfe) -> list[dict]:
    """Returns the rows of the best of several draws (key -> samples [G, n, ...]), one for each knob.

    The best is chosen on the first seed, and measured on the others.
    """
    trial, *others = evaluate.keys(config, 1)
    best = 0
    if len(draws) > 1:
        scores = np.asarray([measure(draw(jax.random.fold_in(trial, 0)), False)[LEAD] for draw in draws])
        best = int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))
    finals = []
    for key in others:
        parts = [np.asarray(draws[best](jax.random.fold_in(key, i))) for i in range(final // TRIAL)]
        finals.append(measure(np.concatenate(parts, axis=1), False))
    words = f"{what} = {knobs[best]:.3g}"
    return _rows(problem, method, words, {what: knobs[best]}, steps, nfe, finals)


def _rows(problem, method, words, settings, steps, nfe, finals) -> list[dict]:
    """Returns one row for each metric from the metrics of each seed."""
    named = {metric: [final[metric] for final in finals] for metric in finals[0]}
    return evaluate.rows(problem, method, words, settings, steps, nfe, named)
