"""Real data that trains anywhere: the 1,797 handwritten 8x8 digits inside scikit-learn.

Three disjoint parts: one for the denoiser and the guidance, one for the classifier whose features are metrics, one
held out as the reference for every number. The floor is what the first part scores against the held-out part.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from experiments import data, progress
from experiments.problems import Network, Problem, images
from guidance import predictions, schedules
from guidance.learning import update
from guidance.nets.mlp import DenoiserMLP

CLASSES = 10
SHAPE = (8, 8, 1)
SPLIT_SEED = 0


class Classifier(nn.Module):
    """A small convolutional classifier: features [n, 64] (tanh) and logits [n, 10]."""

    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            x = nn.silu(nn.Conv(channels, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        features = nn.tanh(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(CLASSES)(features)


def build(config) -> Problem:
    settings, schedule = config.problem, schedules.by_name(config.problem.schedule)
    everything = data.digits()
    rest = 1 - settings.train_fraction - settings.classifier_fraction
    own, judges, held = data.split(
        len(everything.labels), (settings.train_fraction, settings.classifier_fraction, rest), SPLIT_SEED
    )
    part = lambda rows: images.pool(everything.images[rows], everything.labels[rows], CLASSES)  # noqa: E731
    training = part(own)
    read = _train_classifier(part(judges), settings.classifier_steps)
    instrument = images.meter(read, everything.images[held], everything.labels[held])
    net = DenoiserMLP(CLASSES, config.base.width, config.base.depth)
    example = jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    network = Network(lambda key: net.init(key, *example), net.apply, "velocity")
    real = lambda key, k: images.draw_each(training, key, k)  # noqa: E731

    def show(axes, samples):
        images.picture(axes, real(jax.random.key(0), 6) if samples is None else _to_unit(samples))

    return Problem(
        name=f"digits, {config.base.steps} updates",
        schedule=schedule,
        shape=SHAPE,
        conditions=jnp.arange(CLASSES),
        null=CLASSES,
        network=network,
        denoise=lambda params: predictions.as_denoise(net.apply, params, network.kind, schedule),
        draw=lambda key, n: _centred(images.draw(training, key, n)),
        real=lambda key, k: 2 * real(key, k) - 1,
        features=lambda x: read(_to_unit(x))[0],
        measure=lambda key, samples, full: images.measure(instrument, _to_unit(samples), full),
        floor=lambda key, n, full: images.measure(instrument, real(key, n), full),
        tuned=("frechet_distance", "energy_distance"),
        reward=None,
        picture=show,
        to_images=Partial(_to_unit),
    )


def _centred(pair):
    """Pixels from [0, 1] to [-1, 1], where the denoiser works."""
    return 2 * pair[0] - 1, pair[1]


def _to_unit(x):
    return (x + 1) / 2


def _train_classifier(judges: images.Pool, steps: int):
    """A jitted (images in [0, 1]) -> (features, logits), trained on its own split with one-pixel shifts."""
    net, optimizer = Classifier(), optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-3)

    def loss(params, key):
        draw_key, shift_key = jax.random.split(key)
        x, labels = images.draw(judges, draw_key, 128)
        shift = jax.random.randint(shift_key, (2,), -1, 2)
        _, logits = net.apply(params, jnp.roll(x, shift, (1, 2)))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    @jax.jit
    def one_update(state, key):
        params, opt_state, _ = update(optimizer, loss, *state, key)
        return params, opt_state

    key = jax.random.key(SPLIT_SEED)
    params = net.init(key, jnp.zeros((1, *SHAPE)))
    state = params, optimizer.init(params)
    # a Python loop: convolutions inside a scan run many times slower on a CPU
    for i in progress.track(range(steps), "classifier of the metrics"):
        state = one_update(state, jax.random.fold_in(key, i + 1))
    params = state[0]
    return jax.jit(lambda x: net.apply(params, x))
