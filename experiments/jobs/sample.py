"""Job `sample`: the checkpoint of a problem, or imported weights, in; images out.

Each sample follows from its own seed: its noise, the noise of its steps and its label, whatever else is in the batch.
Batches are saved one by one under WORKDIR/<sample.into>/parts, and joined at the end; a run that was killed or stopped
goes on with the batches that are missing and ends with the same bytes. Beside the samples lies `samples.json`: the
settings, the evaluations of the network for each sample, and the digests of what was written.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments import data
from experiments.config import ConfigError, flat
from experiments.config.expressions import LEARNED, integers
from experiments.files import sample_parts, tensors
from experiments.jobs import samplers, train
from experiments.problems import construct
from experiments.problems.images.judge import to_pixels
from experiments.problems.interface import require
from experiments.runtime import drawing, launch, mesh, progress, sizes
from experiments.runtime.writing import write_whole
from guidance.conditions import size, taken

SHOWN = 100  # samples in the grid
ARRAYS = ("arr_0", "arr_1", "seeds")  # samples and labels under the names of the ADM suite; the seeds


class DamagedPart(UserWarning):
    """A batch of samples on disk was not whole, and is computed again."""


def run(problem, config, workdir) -> None:
    """Samples what is missing, writes what `sample.output` names, and prints where it is."""
    settings, model = config.sample, problem.model
    if model.to_images is None and "png" in settings.output:
        raise ConfigError("sample.output: png: the samples of this problem are vectors; allowed: npz, grid")
    if model.to_images is None and "grid" in settings.output:
        require(problem, "sample with sample.output = grid", "instrument")
    seeds, folder = Integers(settings.seeds), pathlib.Path(workdir) / settings.into
    batch = min(settings.batch, len(seeds))
    labels = labels_of(settings.labels, size(model.conditions))
    times = construct.grid(settings, model.schedule)
    rule = construct.rule(settings.rule, "sample.rule")
    weight = construct.weight(settings, model, times, _names(problem, workdir))
    sampler = _sampler(problem, times, rule, weight, construct.solver(settings.sampler, "sample.sampler"))
    if launch.first(lambda: _claim(folder, config)):
        print(f"done before: {folder}")
        return
    base = _base(problem, config, workdir)
    to_images = mesh.shard(model.to_images)
    starts = range(0, len(seeds), batch)
    left = launch.first(lambda: _left(folder, model, seeds, starts, batch))
    for k in progress.track(left, "sampling", total=len(starts), start=len(starts) - len(left)):
        if progress.stop_requested():
            raise progress.Stopped
        own = seeds[starts[k] : starts[k] + batch]
        with progress.waiting("sampling: compiling") if k == left[0] else contextlib.nullcontext():
            arrays = _batch(sampler, base, to_images, own, labels[own % len(labels)], mesh.rounded(batch), settings)
        launch.first(lambda k=k, arrays=arrays: sample_parts.write(_part(folder, k), arrays))
    launch.first(lambda: _finish(problem, config, folder, [_part(folder, k) for k in range(len(starts))], len(seeds)))


def _names(problem, workdir) -> tuple[str, ...] | None:
    """Of the classes: the problem's or, where it comes without data, those that the run keeps."""
    if problem.data is not None:
        return problem.data.names
    try:
        return data.kept_names(workdir)
    except ValueError as error:
        raise ConfigError(str(error)) from None


class Integers:
    """The integers that "0-49999" or "0-9,42" names, in the order given; only those asked for take memory."""

    def __init__(self, text: str):
        self.ranges = integers(text)
        self.ends = np.cumsum([len(found) for found in self.ranges])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places) -> np.ndarray:
        """int64 at a slice, or at an array of places."""
        places = np.arange(*places.indices(len(self))) if isinstance(places, slice) else np.asarray(places)
        which = np.searchsorted(self.ends, places, side="right")
        starts = np.asarray([found.start for found in self.ranges])
        return starts[which] + places - (self.ends[which] - [len(self.ranges[i]) for i in which])


def labels_of(text: str, count: int) -> Integers:
    """The labels that seeds get in turn, the i-th of them seed i; a label is the number of one of the model's `count`
    conditions. Raises ConfigError for labels that it does not have.
    """
    chosen = Integers(f"0-{count - 1}" if text == "all" else text)
    foreign = [max(count, found.start) for found in chosen.ranges if found.stop > count]
    if foreign:
        raise ConfigError(f"sample.labels: the model has no class {min(foreign)}; allowed: 0 to {count - 1}")
    return chosen


def _left(folder: pathlib.Path, model, seeds: Integers, starts: range, batch: int) -> list[int]:
    """The parts that are missing. Raises ConfigError where the disk has no room for them and, at the end, for all of
    them joined."""
    left = [k for k, i in enumerate(starts) if not _there(_part(folder, k), seeds[i : i + batch])]
    shape = model.shape if model.to_images is None else _image_shape(model)
    each = int(np.prod(shape)) * (4 if model.to_images is None else 1) + 2 * 8  # label and seed
    free = shutil.disk_usage(folder).free
    sizes.check_disk(folder, "sample.seeds", each * (len(left) * batch + len(seeds)), free)
    return left


def _image_shape(model) -> tuple[int, ...]:
    example = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    return jax.eval_shape(model.to_images, example).shape[1:]


def _sampler(problem, times, rule, weight, step):
    """(base params, decoder or None, seeds [batch], labels [batch]) -> (samples, whole [batch], evaluations); jitted.

    With a Pair of params the reference is the weaker denoiser. Samples are uint8 images where the problem has images,
    else as the sampler left them; whole: no NaN, no infinity.
    """

    @jax.jit
    def run(base, to_images, seeds, labels):
        seeds, labels = mesh.spread((seeds, labels))
        model, cond = samplers.model_of(problem, rule, base), taken(problem.model.conditions, labels)
        out = model.sample(jax.random.key(0), weight, step, times, problem.model.shape, cond, seeds)
        whole = _finite(out.x0)
        if to_images is None:
            return out.x0, whole, out.nfe
        images = to_images(out.x0)
        return to_pixels(images), whole & _finite(images), out.nfe

    return run


def _finite(x):
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=-1)


def _base(problem, config, workdir):
    """The params to sample with: those that are known, or the checkpoint of one repetition (trained if need be); with
    sample.weak a Pair."""
    weak = config.sample.weak
    if problem.model.network is None and not weak:
        return mesh.shard(problem.model.known)
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.seed, alone.seeds = config.seed + config.sample.repetition, 1
    strong = train.run(problem, alone, workdir)[0]
    return samplers.Pair(strong, train.kept(problem, alone, workdir, alone.seed, weak)) if weak else strong


def _batch(sampler, base, to_images, seeds, labels, size: int, settings) -> sample_parts.Arrays:
    """One part. It is filled up with its first seed to `size` rows, so that nothing is compiled twice."""
    count = len(seeds)
    filled = [np.concatenate([a, np.repeat(a[:1], size - count)]).astype(np.int32) for a in (seeds, labels)]
    samples, whole, nfe = mesh.whole(sampler(base, to_images, *filled))
    if not whole[:count].all():
        broken = seeds[~whole[:count]]
        raise progress.Diverged(
            f"the samples of {len(broken)} seeds of this batch are not finite, the first is seed {broken[0]}: "
            f"sample.weight = {settings.weight}, sample.rule = {settings.rule}, sample.sampler = {settings.sampler} "
            f"or sample.grid = {settings.grid} may be too much for the model; the batches before it are saved"
        )
    counts = {f"nfe_{branch}": np.asarray(value) for branch, value in nfe.items()}
    return {"arr_0": samples[:count], "arr_1": labels.astype(np.int64), "seeds": seeds} | counts


def _part(folder: pathlib.Path, k: int) -> pathlib.Path:
    return folder / "parts" / f"part_{k:06d}.npz"


def _there(part: pathlib.Path, seeds: np.ndarray) -> bool:
    """Whether a part is on disk, whole; a damaged one is told of."""
    if not part.exists():
        return False
    try:
        held = sample_parts.read(part)
    except (ValueError, FileNotFoundError) as error:  # FileNotFoundError: of a folder, too
        held = {"error": error}
    if "error" in held or not np.array_equal(held.get("seeds", ()), seeds):
        warnings.warn(
            f"{held.get('error', f'{part} holds other seeds')}; sampling it again", DamagedPart, stacklevel=2
        )
        return False
    return True


def _settings(config) -> dict:
    """What the samples follow from, the contents of the files that it names included."""
    said = {name: value for name, value in flat(config).items() if name.startswith(("sample.", "problem."))}
    said |= {name: config[name] for name in ("seed",) if name in config}
    paths = [value for value in said.values() if isinstance(value, str) and value.endswith((".npz", LEARNED))]
    digests = {f"sha256 of {path}": tensors.sha256(path) for path in paths}
    return json.loads(json.dumps({k: v for k, v in said.items() if k != "sample.into"} | digests))


def _claim(folder: pathlib.Path, config) -> bool:
    """Takes the folder for samples of these settings; True if they are all there. Raises ConfigError for a folder that
    holds something else.
    """
    here, path = _settings(config), folder / "settings.json"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"sample.into = {folder.name!r}: {folder} is a file; allowed: another sample.into")
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        except (ValueError, AttributeError):
            raise ConfigError(f"{path} cannot be read; allowed: another sample.into") from None
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{folder} holds samples of other settings: {name} = {there.get(name)!r} there, {here.get(name)!r} "
                "here; allowed: the same command, or another sample.into"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds no samples; allowed: another sample.into")
    if (folder / "samples.json").exists():
        return True
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, json.dumps(here, indent=2) + "\n")
    return False


def _finish(problem, config, folder: pathlib.Path, parts, count: int) -> None:
    """Writes what was asked for, says so in samples.json, and removes the parts."""
    settings, written = config.sample, []
    if "npz" in settings.output:
        written.append(folder / "samples.npz")
        sample_parts.assemble(written[-1], parts, ARRAYS, count)
    if "png" in settings.output:
        (folder / "png").mkdir(exist_ok=True)
        for part in progress.track(parts, "writing PNG files"):
            held = sample_parts.read(part)
            for seed, image in zip(held["seeds"], held["arr_0"], strict=True):
                _image(image).save(folder / "png" / f"seed_{seed:010d}.png")
    if "grid" in settings.output:
        written.append(folder / "grid.png")
        _draw(problem, parts, written[-1])
    report = {
        "count": count,
        "nfe": _evaluations(parts),
        "sha256": {path.name: _digest(path) for path in written},
        "settings": _settings(config),
    }
    write_whole(folder / "samples.json", json.dumps(report, indent=2) + "\n")
    shutil.rmtree(folder / "parts")
    branches = ", ".join(f"{name} {value:g}" for name, value in report["nfe"].items() if name != "total")
    print(f"{count} samples, {report['nfe']['total']:g} network evaluations each ({branches})")
    for path in [*written, *([folder / "png"] if "png" in settings.output else [])]:
        print(path)


def _evaluations(parts) -> dict[str, float]:
    """Network evaluations per sample, the mean over the samples: skipping may differ from batch to batch."""
    counts, total = {}, 0
    for part in parts:
        held = sample_parts.read(part, lambda name: name != "arr_0")
        size = len(held.pop("seeds"))
        total += size
        for name in held.keys() - {"arr_1"}:
            counts[name] = counts.get(name, 0) + int(held[name]) * size
    means = {name.removeprefix("nfe_"): counts[name] / total for name in sorted(counts)}
    return {"total": sum(means.values())} | means


def _draw(problem, parts, path: pathlib.Path) -> None:
    """One picture: the first images row by row, or all vectors as the problem draws them."""
    if problem.model.to_images is None:
        _scatter(problem, parts, path)
        return
    images = _first(parts, SHOWN)["arr_0"]
    count, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    _image(sheet.reshape(rows * height, columns * width, channels)).save(path)


def _scatter(problem, parts, path: pathlib.Path) -> None:
    held = _first(parts, 4000)
    groups = [held["arr_0"][held["arr_1"] == label] for label in range(size(problem.model.conditions))]
    # one array for all classes, filled up with what no picture shows
    filled = np.full((len(groups), max(map(len, groups)), *problem.model.shape), np.nan, np.float32)
    for row, group in zip(filled, groups, strict=True):
        row[: len(group)] = group
    figure, [axes] = drawing.panels(1, 5, 5)
    problem.instrument.picture(axes, filled)
    drawing.legend(figure, markerscale=3)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def _first(parts, count: int) -> sample_parts.Arrays:
    """The first rows of the parts."""
    held, have = [], 0
    for part in parts:
        held.append(sample_parts.read(part))
        have += len(held[-1]["seeds"])
        if have >= count:
            break
    return {name: np.concatenate([one[name] for one in held])[:count] for name in ARRAYS}


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
