"""Labelled images and a denoiser that is trained on them: any source that `data.open_source` opens, and the digits.

The images are split into three parts: one trains the denoiser and the guidance, one the classifier whose features the
metrics use, and one is held out as the reference of all metrics. The floor is the score of the first part. With
Inception's features there is no classifier, and with a reference file no part is held out. Images are in [0, 1]; the
denoiser works in [-1, 1].
"""

import dataclasses
import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from experiments import data
from experiments.problems.images import inception, judge
from experiments.problems.interface import Data, Instrument, Model, Network, Problem, shares
from experiments.runtime import launch, mesh, progress
from experiments.runtime.loop import compiled, fit
from guidance import pools, predictions, schedules
from guidance.learning import update
from guidance.nets.convolution import Conv
from guidance.nets.dit import DiT
from guidance.nets.mlp import DenoiserMLP
from guidance.nets.unet import UNet
from guidance.pools import Pool

SPLIT_SEED = 0
CHUNK = 160  # evaluations at a time on a CPU


class Classifier(nn.Module):
    """A small convolutional classifier: features [n, 64] (tanh) and logits [n, classes]."""

    classes: int

    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            x = nn.silu(Conv(channels, (3, 3))(x))
            if channels == 32 or x.shape[1] >= 16:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        features = nn.tanh(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(self.classes)(features)


def build(config, folder: pathlib.Path | None) -> Problem:
    """Returns the problem of a config.

    Raises FileNotFoundError for a missing source, and ValueError for one without labels or with too few images.
    """
    settings, base = config.problem, config.base
    source = data.chosen(settings)
    if source.classes is None:
        raise ValueError(f"{source.name} has no labels")
    launch.first(lambda: data.keep_names(folder, source.names))
    rows = np.random.default_rng(SPLIT_SEED).permutation(len(source))[: settings.images or None]
    everything = in_memory(source, np.sort(rows))
    name = f"{pathlib.Path(settings.source).name}, {base.network}, {base.steps} updates"
    try:
        _check_enough(everything, source.classes, settings)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    problem = assemble(config, folder, everything, NETWORKS[base.network](base, source.classes), "velocity", name)
    if len(rows) == len(source):
        return problem
    _, *apart = _parts(len(rows), settings)
    judged_or_held = np.sort(rows)[np.concatenate(apart)]
    feed = _feed(source, np.setdiff1d(np.arange(len(source)), judged_or_held))
    return problem._replace(data=problem.data._replace(feed=feed))


def in_memory(source: data.Source, rows) -> data.Labelled:
    """Reads the images of these rows, in [0, 1], and their labels."""
    examples = [source[int(i)] for i in progress.track(rows, f"reading {source.name}")]
    return data.Labelled(
        data.to_unit(np.stack([example["image"] for example in examples])),
        np.asarray([example["label"] for example in examples], np.int32),
        source.names,
    )


def _check_enough(everything: data.Labelled, classes: int, settings) -> None:
    """Raises ValueError unless each part has as many images of each class as its use needs."""
    by_classifier = settings.instrument == "classifier"
    trained_on, judges, held_out = _parts(len(everything.labels), settings)
    needs = [("to train on", trained_on, 1)]
    if by_classifier:
        needs += [("for the classifier", judges, 1), ("held out", held_out, 2)]  # a distance has two of each
    for use, rows, least in needs:
        judge.check_classes(everything.labels[rows], classes, everything.names, least, use)
    if by_classifier and len(held_out) <= judge.NEIGHBOURS:
        raise ValueError(f"{len(held_out)} images are held out; expected more than {judge.NEIGHBOURS}")


def _feed(source: data.Source, rows):
    """Returns `Data.feed` for these rows: where memory does not have all images, the denoiser still learns from all.

    Batches are read ahead. Images that are set apart for the classifier and the metrics are not among the rows.
    """
    some = dataclasses.replace(source, count=len(rows), read=lambda i: source.read(int(rows[i])))

    def feed(batch: int, part, seed: int):
        read = data.Loader(some, batch, seed, part).in_order()

        def at(i):
            found = read(i)
            return 2 * data.to_unit(found["image"]) - 1, found["label"]

        return at

    return feed


class Timed(nn.Module):
    """A network whose time runs to 1000 where ours runs to 1."""

    net: nn.Module

    def __call__(self, x, t, cond):
        return self.net(x, 1000 * t, cond)


def _precision(base) -> dict:
    """Returns the fields that DiT and UNet share."""
    dtype = jnp.bfloat16 if base.precision == "bfloat16" else None
    return {"dtype": dtype, "residual": jnp.float32, "remat": base.remat}


def _dit(base, classes):
    net = DiT(base.width, base.heads, base.depth, base.patch, classes, learn_sigma=False, **_precision(base))
    return Timed(net)


def _unet(base, classes):
    channels = (base.width, 2 * base.width, 2 * base.width)
    return Timed(UNet(channels, base.depth, (2,), classes, head=32, groups=8, **_precision(base)))


def _mlp(base, classes):
    return DenoiserMLP(classes, base.width, base.depth)


def _adm(base, classes):
    """Returns ADM's U-Net for 64 x 64 pixels (width 192), or another width, with a null class, which ADM's lacks."""
    shared = {"head": math.gcd(base.width, 64), "groups": math.gcd(base.width, 32)}
    channels = tuple(base.width * times for times in (1, 2, 3, 4))
    return Timed(UNet(channels, base.depth, (1, 2, 3), classes, **shared, **_precision(base)))


NETWORKS = {"dit": _dit, "unet": _unet, "adm": _adm, "mlp": _mlp}


def assemble(config, folder, everything: data.Labelled, net: nn.Module, kind: str, name: str) -> Problem:
    """Returns the problem of images [n, H, W, C] in [0, 1] that have every label 0 .. G - 1; G is the null label."""
    settings, schedule = config.problem, schedules.by_name(config.problem.schedule)
    classes, shape = int(everything.labels.max()) + 1, everything.images.shape[1:]
    trained_on, judges, held_out = _parts(len(everything.labels), settings)

    def part(rows):
        return judge.pool(everything.images[rows], everything.labels[rows], classes)

    training, every = part(trained_on), jnp.arange(classes)
    example = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    network = Network(lambda key: net.init(key, *example), net.apply, kind)

    def draw(key, arrays, n):
        x, labels = pools.draw(key, arrays, n)
        return 2 * x - 1, labels

    def real(key, arrays, k, conditions):
        return 2 * pools.draw_each(key, arrays, k, conditions) - 1

    def denoise(params):
        whole = predictions.as_denoise(net.apply, params, kind, schedule)
        return predictions.in_chunks(whole, CHUNK) if jax.default_backend() == "cpu" else whole

    def show(axes, samples):
        judge.picture(axes, samples, _to_unit, everything.names)

    if settings.instrument == "classifier":
        read = _train_classifier(part(judges), classes, shape, settings.classifier_steps, folder)
        meter = judge.meter(read, everything.images[held_out], everything.labels[held_out])
        instrument = _by_classifier(read, meter, training, every, show)
    else:
        apart = everything.images[np.concatenate([judges, held_out])]
        meter = inception.load(settings, inception.as_images("held-out images", apart, Partial(jnp.asarray)))
        of_floor, _ = shares(every, config.eval.samples)
        true = lambda key, n, conditions: real(key, training, n, conditions)  # noqa: E731
        instrument = inception.instrument(meter, Partial(_to_unit), true, of_floor, show)
        name += f", FID of {config.eval.samples} samples"
    return Problem(
        name,
        Model(schedule, shape, every, classes, denoise, network, to_images=Partial(_to_unit)),
        Data(draw, real, training, names=everything.names),
        instrument,
    )


def _by_classifier(read, meter: judge.Meter, training: Pool, conditions, picture) -> Instrument:
    """Returns the instrument that measures in the features of the classifier `read`."""
    return Instrument(
        measure=lambda key, samples, full: judge.measure(meter, _to_unit(samples), full),
        floor=lambda key, n, full: judge.measure(meter, pools.draw_each(key, training, n, conditions), full),
        tuned=judge.TUNED,
        picture=picture,
        features=lambda x: read(_to_unit(x))[0],
    )


def _parts(count: int, settings):
    """Returns the rows for the denoiser, the rows for the classifier, and the held-out rows."""
    if settings.reference:
        return np.arange(count), np.arange(0), np.arange(0)
    rest = 1 - settings.train_fraction - settings.classifier_fraction
    return data.split(count, (settings.train_fraction, settings.classifier_fraction, rest), SPLIT_SEED)


def _to_unit(x):
    return (x + 1) / 2


def _train_classifier(judges: Pool, classes: int, shape, steps: int, folder: pathlib.Path):
    """Trains a classifier, with shifts by one pixel; returns a jitted (images in [0, 1]) -> (features, logits).

    It is stored in `folder`, since training it again, on other devices or threads, would give another classifier.
    """
    net, optimizer = Classifier(classes), optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-3)
    key = jax.random.key(SPLIT_SEED)

    def loss(params, key, judges):
        draw_key, shift_key = jax.random.split(key)
        x, labels = pools.draw(draw_key, judges, 128)
        shift = jax.random.randint(shift_key, (2,), -1, 2)
        _, logits = net.apply(params, jnp.roll(x, shift, (1, 2)))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def one_update(state, i, judges):
        of_these = functools.partial(loss, judges=judges)
        params, opt_state, figures = update(jax.random.fold_in(key, i + 1), optimizer, of_these, *state)
        return (params, opt_state), figures

    params = net.init(key, jnp.zeros((1, *shape)))
    one_update, judges = compiled(one_update), mesh.shard(judges)
    params, _ = fit(
        "classifier of the metrics",
        folder / "classifier",
        folder / "metrics.jsonl",
        (params, optimizer.init(params)),
        lambda carry, i: one_update(carry, i, judges),
        steps,
        steps,
    )
    params = mesh.local(params)
    return jax.jit(lambda x: net.apply(params, x))
