"""Job `sample`: takes the checkpoint of a problem, or imported weights, and writes images.

A sample follows from its seed, whatever else is in the batch: its noise, the noise of its steps and its label. Batches
are saved one by one under WORKDIR/<sample.into>/parts and joined at the end. A run that was killed or stopped goes on
with the batches that are missing, and ends with the same bytes. Beside the samples lies `samples.json`, with the
settings, the network evaluations per sample, and the digests of the files.
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
from experiments.problems.interface import refusing, require
from experiments.runtime import drawing, launch, mesh, progress, sizes
from experiments.runtime.writing import write_whole
from guidance.conditions import size, taken

SHOWN = 100  # samples in the grid
ARRAYS = ("arr_0", "arr_1", "seeds")  # samples and labels, by the names of the ADM suite, and the seeds


class DamagedPart(UserWarning):
    """A batch of samples on disk was not whole, and is computed again."""


def run(problem, config, workdir) -> None:
    """Draws the samples that are missing, writes what `sample.output` names, and prints where that is."""
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
    missing = launch.first(lambda: _missing(folder, model, seeds, starts, batch))
    for k in progress.track(missing, "sampling", total=len(starts), start=len(starts) - len(missing)):
        if progress.stop_requested():
            raise progress.Stopped
        part = seeds[starts[k] : starts[k] + batch]
        with progress.waiting("sampling: compiling") if k == missing[0] else contextlib.nullcontext():
            arrays = _batch(sampler, base, to_images, part, labels[part % len(labels)], mesh.rounded(batch), settings)
        launch.first(lambda k=k, arrays=arrays: sample_parts.write(_part(folder, k), arrays))
    launch.first(lambda: _finish(problem, config, folder, [_part(folder, k) for k in range(len(starts))], len(seeds)))


def _names(problem, workdir) -> tuple[str, ...] | None:
    """Returns the names of the classes: the problem's or, for a problem without data, those in the run's folder."""
    if problem.data is not None:
        return problem.data.names
    with refusing():
        return data.kept_names(workdir)


class Integers:
    """The integers that "0-49999" or "0-9,42" names, in the order given; only those that are read take memory."""

    def __init__(self, text: str):
        self.ranges = integers(text)
        self.ends = np.cumsum([len(each) for each in self.ranges])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places) -> np.ndarray:
        """Returns the integers at a slice, or at an array of places, int64."""
        places = np.arange(*places.indices(len(self))) if isinstance(places, slice) else np.asarray(places)
        which = np.searchsorted(self.ends, places, side="right")
        starts = np.asarray([each.start for each in self.ranges])
        return starts[which] + places - (self.ends[which] - [len(self.ranges[i]) for i in which])


def labels_of(text: str, count: int) -> Integers:
    """Returns the labels that seeds get in turn: seed i the i-th of them, and again from the first.

    A label is the number of one of the model's `count` conditions. Raises ConfigError for a number beyond them.
    """
    chosen = Integers(f"0-{count - 1}" if text == "all" else text)
    beyond = [max(count, each.start) for each in chosen.ranges if each.stop > count]
    if beyond:
        raise ConfigError(f"sample.labels: the model has no class {min(beyond)}; allowed: 0 to {count - 1}")
    return chosen


def _missing(folder: pathlib.Path, model, seeds: Integers, starts: range, batch: int) -> list[int]:
    """Returns the numbers of the parts that are missing.

    Raises ConfigError where the disk has no room for them and, in the end, for all parts joined.
    """
    missing = [k for k, i in enumerate(starts) if not _is_whole(_part(folder, k), seeds[i : i + batch])]
    shape = model.shape if model.to_images is None else _image_shape(model)
    each = int(np.prod(shape)) * (4 if model.to_images is None else 1) + 2 * 8  # label and seed
    free = shutil.disk_usage(folder).free
    sizes.check_disk(folder, "sample.seeds", each * (len(missing) * batch + len(seeds)), free)
    return missing


def _image_shape(model) -> tuple[int, ...]:
    example = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    return jax.eval_shape(model.to_images, example).shape[1:]


def _sampler(problem, times, rule, weight, step):
    """Returns a jitted function (params or a Pair, decoder or None, seeds [batch], labels [batch]) -> batch.

    The batch is (samples, finite [batch], network evaluations by branch). Samples are uint8 images where the problem
    has images, else as the sampler left them; finite says which of them have no NaN and no infinity.
    """

    @jax.jit
    def run(base, to_images, seeds, labels):
        seeds, labels = mesh.spread((seeds, labels))
        model, cond = samplers.model_of(problem, rule, base), taken(problem.model.conditions, labels)
        out = model.sample(jax.random.key(0), weight, step, times, problem.model.shape, cond, seeds)
        finite = _finite(out.x0)
        if to_images is None:
            return out.x0, finite, out.nfe
        images = to_images(out.x0)
        return to_pixels(images), finite & _finite(images), out.nfe

    return run


def _finite(x):
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=-1)


def _base(problem, config, workdir):
    """Returns the params to sample with: those that are known, or those of one repetition, trained if need be.

    With sample.weak they are a Pair.
    """
    weak = config.sample.weak
    if problem.model.network is None and not weak:
        return mesh.shard(problem.model.known)
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.seed, alone.seeds = config.seed + config.sample.repetition, 1
    strong = train.run(problem, alone, workdir)[0]
    return samplers.Pair(strong, train.kept(problem, alone, workdir, alone.seed, weak)) if weak else strong


def _batch(sampler, base, to_images, seeds, labels, size: int, settings) -> sample_parts.Arrays:
    """Draws one part, filled up with its first seed to `size` rows, so that all parts share one compilation."""
    count = len(seeds)
    filled = [np.concatenate([a, np.repeat(a[:1], size - count)]).astype(np.int32) for a in (seeds, labels)]
    samples, finite, nfe = mesh.whole(sampler(base, to_images, *filled))
    if not finite[:count].all():
        broken = seeds[~finite[:count]]
        raise progress.Diverged(
            f"the samples of {len(broken)} seeds of this batch are not finite, the first is seed {broken[0]}: "
            f"sample.weight = {settings.weight}, sample.rule = {settings.rule}, sample.sampler = {settings.sampler} "
            f"or sample.grid = {settings.grid} may be too much for the model; the batches before it are saved"
        )
    counts = {f"nfe_{branch}": np.asarray(value) for branch, value in nfe.items()}
    return {"arr_0": samples[:count], "arr_1": labels.astype(np.int64), "seeds": seeds} | counts


def _part(folder: pathlib.Path, k: int) -> pathlib.Path:
    return folder / "parts" / f"part_{k:06d}.npz"


def _is_whole(part: pathlib.Path, seeds: np.ndarray) -> bool:
    """Returns whether a part with these seeds is on the disk; warns of one that is damaged."""
    if not part.exists():
        return False
    fault = f"{part} holds other seeds"
    try:
        if np.array_equal(sample_parts.read(part).get("seeds", ()), seeds):
            return True
    except (ValueError, FileNotFoundError) as error:  # FileNotFoundError: of a folder, too
        fault = str(error)
    warnings.warn(f"{fault}; sampling it again", DamagedPart, stacklevel=2)
    return False


def _settings(config) -> dict:
    """Returns what the samples follow from: fields of the config, and digests of the files that they name."""
    fields = {name: value for name, value in flat(config).items() if name.startswith(("sample.", "problem."))}
    fields |= {name: config[name] for name in ("seed",) if name in config}
    paths = [value for value in fields.values() if isinstance(value, str) and value.endswith((".npz", LEARNED))]
    digests = {f"sha256 of {path}": tensors.sha256(path) for path in paths}
    return json.loads(json.dumps({k: v for k, v in fields.items() if k != "sample.into"} | digests))


def _claim(folder: pathlib.Path, config) -> bool:
    """Takes the folder for samples of these settings; returns whether it has all of them already.

    Raises ConfigError for a folder that holds something else.
    """
    settings, path = _settings(config), folder / "settings.json"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"sample.into = {folder.name!r}: {folder} is a file; allowed: another sample.into")
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            names = sorted(settings.keys() | stored.keys())
            differing = [name for name in names if settings.get(name) != stored.get(name)]
        except (ValueError, AttributeError):
            raise ConfigError(f"{path} cannot be read; allowed: another sample.into") from None
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{folder} holds samples of other settings: {name} = {stored.get(name)!r} there, "
                f"{settings.get(name)!r} here; allowed: the same command, or another sample.into"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds no samples; allowed: another sample.into")
    if (folder / "samples.json").exists():
        return True
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=2) + "\n")
    return False


def _finish(problem, config, folder: pathlib.Path, parts, count: int) -> None:
    """Writes what sample.output names, then samples.json, and removes the parts."""
    settings, written = config.sample, []
    if "npz" in settings.output:
        written.append(folder / "samples.npz")
        sample_parts.assemble(written[-1], parts, ARRAYS, count)
    if "png" in settings.output:
        (folder / "png").mkdir(exist_ok=True)
        for part in progress.track(parts, "writing PNG files"):
            arrays = sample_parts.read(part)
            for seed, image in zip(arrays["seeds"], arrays["arr_0"], strict=True):
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
    """Returns network evaluations per sample, by branch: means, since batches may skip different steps."""
    counts, total = {}, 0
    for part in parts:
        arrays = sample_parts.read(part, lambda name: name != "arr_0")
        rows = len(arrays.pop("seeds"))
        total += rows
        for name in arrays.keys() - {"arr_1"}:
            counts[name] = counts.get(name, 0) + int(arrays[name]) * rows
    means = {name.removeprefix("nfe_"): counts[name] / total for name in sorted(counts)}
    return {"total": sum(means.values())} | means


def _draw(problem, parts, path: pathlib.Path) -> None:
    """Draws one picture: the first images row by row, or the first vectors as the problem draws them."""
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
    arrays = _first(parts, 4000)
    groups = [arrays["arr_0"][arrays["arr_1"] == label] for label in range(size(problem.model.conditions))]
    # one array for all classes, filled up with NaN, which no picture shows
    filled = np.full((len(groups), max(map(len, groups)), *problem.model.shape), np.nan, np.float32)
    for row, group in zip(filled, groups, strict=True):
        row[: len(group)] = group
    figure, [axes] = drawing.panels(1, 5, 5)
    problem.instrument.picture(axes, filled)
    drawing.legend(figure, markerscale=3)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def _first(parts, count: int) -> sample_parts.Arrays:
    """Returns the first rows of the parts."""
    read, rows = [], 0
    for part in parts:
        read.append(sample_parts.read(part))
        rows += len(read[-1]["seeds"])
        if rows >= count:
            break
    return {name: np.concatenate([arrays[name] for arrays in read])[:count] for name in ARRAYS}


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
