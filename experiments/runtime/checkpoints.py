"""Checkpoints: the one module that knows orbax.

A checkpoint is a folder step_NNNNNNNNNN with `tree/` (written by orbax), `leaves.json` (path, shape and dtype of each
leaf) and `SHA256SUMS` over all files (`sha256sum -c SHA256SUMS` checks it by hand). It is written and synced beside
the others under a temporary name and renamed last, so a kill or a full disk leaves the older ones as they were. The
newest two are kept. A checkpoint is compared with its sums before it is restored. A damaged one is set aside, with a
warning, and the one before is used; the next good save removes it.

Several processes call these functions together. Process 0 names, checks, renames and removes folders, and each process
writes its own part of the arrays. Any mesh can restore them.

orbax's own CheckpointManager renames last too, but keeps no sums: a flipped bit inside a checkpoint can come back as
wrong weights, or as an error from deep inside.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.runtime import launch

KEEP = 2
SUMS = "SHA256SUMS"
_NAME = re.compile(r"step_(\d{10})")


class CheckpointError(Exception):
    """Says, in one line, that a checkpoint could not be written or belongs to another config."""


class DamagedCheckpoint(UserWarning):
    """Warns that a checkpoint did not match its sums and was passed over."""


def save(folder: pathlib.Path, step: int, tree: Any) -> None:
    """Writes the tree of arrays as the checkpoint of `step`, then removes all but the newest two.

    Every leaf must be a numeric array of at least one entry. Random keys follow from seed and step and are not stored.
    Raises TypeError for other leaves, and CheckpointError if the checkpoint cannot be written (a full disk). The older
    ones then stay as they were.
    """
    folder = pathlib.Path(folder).absolute()
    final = folder / f"step_{step:010d}"
    fresh = folder / f".new_{final.name}"
    leaves = _leaves(tree)
    try:
        launch.first(lambda: _emptied(fresh))
        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(fresh / "tree", tree)
            checkpointer.wait_until_finished()
        launch.first(lambda: _finish(fresh, final, leaves))
    except launch.Elsewhere:
        raise
    except Exception as error:  # orbax reports a full disk as ValueError, the file system as OSError
        shutil.rmtree(fresh, ignore_errors=True)
        last = max(_steps(folder), default=None)
        kept = "there is no older one" if last is None else f"the one of step {last} is intact"
        raise CheckpointError(
            f"checkpoint of step {step} not written to {folder}: {_reason(error)}; {kept}"
        ) from error


def restore_latest(folder: pathlib.Path, like: Any) -> tuple[int, Any] | None:
    """Returns (step, tree) of the newest undamaged checkpoint, or None if there is none.

    like: a tree of arrays or of jax.ShapeDtypeStruct, with the structure, shapes and dtypes of the saved one. Raises
    CheckpointError if the checkpoint has other leaves, which means that another config wrote it.
    """
    folder = pathlib.Path(folder).absolute()
    expected = _leaves(like)
    step = launch.first(lambda: _newest(folder, expected))
    return None if step is None else (step, _read(folder / f"step_{step:010d}" / "tree", like))


def kept(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder for the checkpoint of one step that is kept for good.

    It lies beside the folder of the run's checkpoints, in which `save` keeps only the newest two.
    """
    return folder.with_name(f"{folder.name}_kept_{step}")


def restore_kept(folder: pathlib.Path, step: int, like: Any, remedy: str) -> Any:
    """Returns the tree in `kept(folder, step)`, in the structure of `like`.

    Raises CheckpointError, with the remedy, if there is none.
    """
    found = restore_latest(kept(folder, step), like)
    if found is None:
        raise CheckpointError(f"{kept(folder, step)} is missing; {remedy}")
    return found[1]


def _newest(folder: pathlib.Path, expected: dict[str, list]) -> int | None:
    """Returns the step of the newest undamaged checkpoint, or None. Sets damaged ones aside."""
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step_{step:010d}"
        damage = _damage(path)
        if damage is None:
            _compare(path, expected)
            return step
        _set_aside(path)
        before = [s for s in _steps(folder) if s < step]
        resume = f"trying the one of step {max(before)}" if before else "none is left: starting over"
        warnings.warn(f"checkpoint {path} is damaged ({damage}); {resume}", DamagedCheckpoint, stacklevel=5)
    return None


def _emptied(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(fresh: pathlib.Path, final: pathlib.Path, leaves: dict[str, list]) -> None:
    """Writes the sums of a checkpoint, syncs and renames it, and removes all but the newest two."""
    (fresh / "leaves.json").write_text(json.dumps(leaves, indent=1))
    (fresh / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in _digests(fresh).items()))
    _sync(fresh)
    _set_aside(final)
    fresh.rename(final)
    _sync_one(final.parent)
    _sweep(final.parent)


def _read(path: pathlib.Path, like: Any) -> Any:
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default)

    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, jax.tree.map(target, like))


def _leaves(tree: Any) -> dict[str, list]:
    """Returns {path: [shape, dtype]} of a tree. Raises TypeError for leaves that `save` refuses."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or np.dtype(dtype).kind in "OSU":
            raise TypeError(f"leaf {name} is {type(leaf).__name__} {dtype or ''}: only numeric arrays are stored")
        if 0 in leaf.shape:
            raise TypeError(f"leaf {name} of shape {leaf.shape} is empty: orbax does not store it")
        leaves[name] = [list(leaf.shape), str(dtype)]
    return leaves


def _compare(path: pathlib.Path, expected: dict[str, list]) -> None:
    stored = json.loads((path / "leaves.json").read_text())
    for name in stored.keys() | expected.keys():
        if stored.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} was written by another config: leaf {name} is {stored.get(name, 'absent')} there, "
                f"{expected.get(name, 'absent')} here"
            )


def _damage(path: pathlib.Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if its files and sums are exactly those listed."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        found = _digests(path)
    except (OSError, UnicodeDecodeError) as error:
        return _reason(error)
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    return f"{wrong[0]} is not as it was written" if wrong else None


def _digests(path: pathlib.Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != SUMS)
    digests = {}
    for file in files:
        with file.open("rb") as content:
            digests[str(file.relative_to(path))] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def _steps(folder: pathlib.Path) -> list[int]:
    names = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name[1]) for name in names if name]


def _set_aside(path: pathlib.Path) -> None:
    aside = path.with_name(f"{path.name}.aside")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def _sweep(folder: pathlib.Path) -> None:
    """Removes all but the newest two checkpoints, and those that were set aside or left half-written by a kill."""
    kept = {f"step_{step:010d}" for step in sorted(_steps(folder))[-KEEP:]}
    for path in folder.iterdir():
        if path.name not in kept and path.name.lstrip(".").startswith(("step_", "new_step_")):
            shutil.rmtree(path, ignore_errors=True)


def _sync(folder: pathlib.Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """Returns the system's words for an error, which orbax buries in pages."""
    text = " ".join(str(error).split())
    for words in ("No space left on device", "File too large", "Disk quota exceeded"):
        if words in text:
            return words
    return getattr(error, "strerror", None) or text[:200] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the log of orbax, which reports each failure several times with its trace and raises it as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
