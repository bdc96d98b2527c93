"""The folder of a run: which config it belongs to, which command uses it, and what becomes of it when that fails."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from experiments.config import RESUMABLE, ConfigError, flat, nested, stored
from experiments.config.values import Field
from experiments.runtime import launch
from experiments.runtime.writing import write_whole

# fields that may grow, and how: earlier results stay, and the folder ends as one command would have made it
GROWING = {
    **dict.fromkeys(("learn.objectives", "learn.gammas", "learn.intervals"), "more of them"),
    **dict.fromkeys(("eval.omegas", "eval.intervals", "eval.clamp", "eval.others"), "more of them"),
    "seeds": "a larger number",
    "eval.steps": "larger ones besides",
    "learn.rules": "others besides, but cfg",
}


class Claim(NamedTuple):
    """A folder that one command has taken, and what was in it before."""

    workdir: pathlib.Path
    config: config_dict.ConfigDict
    before: "Before"

    def given_up(self, error: Exception, aside: str) -> str:
        """Releases the folder by `release`; returns the error's words, with the paths that its files have now."""
        samples = self.config.sample.into if self.config.job == "sample" else ""
        if not (launch.primary() and release(self.workdir, self.before, aside, samples)):
            return str(error)
        words = str(error).replace(f"{self.workdir}{os.sep}", f"{self.workdir / aside}{os.sep}")
        return f"{words}; what was done is in {self.workdir / aside}, and {self.workdir} may have another config"


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: config_dict.ConfigDict, fields: Mapping[str, Field]) -> Iterator[Claim]:
    """Takes the folder by `claim` for as long as the context lasts; process 0 does it for all."""
    found, locks = before(workdir), []
    try:
        launch.first(lambda: locks.append(claim(workdir, config, fields)))
        yield Claim(workdir, config, found)
    finally:
        for lock in locks:
            os.close(lock)


def claim(workdir: pathlib.Path, config: config_dict.ConfigDict, fields: Mapping[str, Field]) -> int:
    """Takes the folder for this run and writes config.json; returns the lock, which lasts until it is closed.

    A folder of an earlier run is taken only by the same config, so that the run resumes: fields of RESUMABLE may
    differ, and those of GROWING may have more entries. A field that is younger than the folder counts as its default
    there. Raises ConfigError naming the field that differs, or what is in the way.
    """
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: {error.strerror}; allowed: a folder that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known = stored(workdir)
        _agree(workdir, known, config, fields)
        write_whole(workdir / "config.json", json.dumps(_kept(known, config), indent=2) + "\n")
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(f"--workdir={workdir}: another run is using it; allowed: a folder of its own") from None
    except Exception:
        os.close(lock)
        raise
    return lock


class Before(NamedTuple):
    """A folder as a command found it: its config.json (None without one), and the names of all that was in it."""

    config: str | None
    names: frozenset[str]


def before(workdir: pathlib.Path) -> Before:
    """Returns the folder as it is now."""
    path = os.path.join(workdir, "config.json")
    try:
        names = frozenset(os.listdir(workdir))
        return Before(pathlib.Path(path).read_text(encoding="utf-8") if os.path.isfile(path) else None, names)
    except (OSError, UnicodeDecodeError):  # `claim` says what is in the way
        return Before(None, frozenset())


def release(workdir: pathlib.Path, before: Before, aside: str, samples: str = "") -> bool:
    """Gives up the claim of a command that failed, so that the next one may have another config.

    config.json becomes what it was. Where there was none, all that the command has made moves into the folder
    `aside`, where the same command can resume it; returns whether there was anything to move. The folder `samples` has
    a settings.json and stays where it is, for the same command to go on.
    """
    workdir = pathlib.Path(workdir)
    if before.config is not None:
        write_whole(workdir / "config.json", before.config)
        return False
    made = {path.name for path in workdir.iterdir()} - before.names - {".lock", aside}
    if made <= {"config.json", samples}:
        (workdir / "config.json").unlink(missing_ok=True)
        return False
    if samples in made:
        return False
    shutil.rmtree(workdir / aside, ignore_errors=True)
    (workdir / aside).mkdir()
    for name in made:
        (workdir / name).rename(workdir / aside / name)
    return True


def _kept(known: dict[str, Any], config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns what config.json holds from now on.

    The job `sample` leaves the fields of RESUMABLE as they are stored: a command without them means tomorrow what it
    means today.
    """
    sampled = known and config.job == "sample"
    kept = {name: value for name, value in known.items() if name.startswith(RESUMABLE)} if sampled else {}
    return nested(_jsonable(flat(config)) | kept).to_dict()


def _agree(
    workdir: pathlib.Path, known: dict[str, Any], config: config_dict.ConfigDict, fields: Mapping[str, Field]
) -> None:
    """Raises ConfigError unless a config may go on with the folder whose config.json holds `known` ({}: none)."""
    present = _jsonable(flat(config))
    usual = {name: field.default for name, field in fields.items()} if known else {}
    for name in sorted(known.keys() | present.keys()) if known else ():
        if name not in present and name not in usual:
            raise ConfigError(
                f"--workdir={workdir}: its config.json has {name}, which this version does not know; "
                "allowed: the version that wrote it, or a new folder"
            )
        before, now = known.get(name, usual.get(name)), present.get(name)
        grows = name in GROWING and "eval.steps" in present  # not a leaderboard, which has seeds as well
        if name.startswith(RESUMABLE) or before == now or (grows and _grown(name, before, now)):
            continue
        more = f"{GROWING[name]}, " if grows else ""
        raise ConfigError(
            f"--workdir={workdir}: {name} = {now!r} here, {before!r} in its config.json; "
            f"allowed: the same command, {more}or a new folder"
        )


def _grown(name: str, before: Any, now: Any) -> bool:
    """Returns whether a field of GROWING has only gained entries that leave earlier results unchanged."""
    if name == "seeds":
        return now > before
    if name == "eval.steps":  # a rollout starts from the weights of the rollout at fewer steps
        return sorted(now)[: len(before)] == sorted(before)
    if name == "learn.rules" and "cfg" not in before and "cfg" in now:  # other rules start from weights of CFG
        return False
    return all(entry in now for entry in before)


def _jsonable(values: Any) -> Any:
    return json.loads(json.dumps(values))
