"""Checks the commands of a document without running them: programs, flags, fields, and which file comes from where."""

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import pkgutil
import re
import shlex
from unittest import mock

from experiments import main as experiments_main
from experiments.config import ConfigError, stored
from experiments.data import published
from experiments.fid import BadInput
from experiments.runtime import run_folder
from experiments.tools import fid, generate
from tests.documents import stand_ins
from tests.documents.reading import REPOSITORY, SHELL, Block, blocks, prose
from tests.documents.running import workspace

FIELDS = {name for form in experiments_main.FORMS.values() for name in form.fields} | {"problem.name"}
GROUPS = "|".join(sorted({name.partition(".")[0] for name in FIELDS if "." in name}))


def faults(page: str, runs: dict[str, tuple[str, dict]] | None = None) -> list[str]:
    """What is wrong with the commands, the inline code and the links of a page, each fault with its line.

    runs: the configs of the folders of other pages, with the pages; those of this page are added. A folder that has
    another config there is a fault, since a reader who follows both would be refused.
    """
    found: list[str] = []
    with workspace() as folder, contextlib.chdir(folder):
        stand_ins.touch(folder, page)
        for block in sorted(blocks(page), key=lambda block: block.line):
            found += _unmarked(block)
            for words in commands(block.text) if block.language in SHELL else ():
                found += _fault(block.at, " ".join(words), _command, words, block)
        found += _folders(page, folder, {} if runs is None else runs)
        for line, code in inline(page):
            found += _fault(f"{page}:{line}", code, _inline, code)
        for line, target in links(page):
            found += _fault(f"{page}:{line}", target, _link, page, target)
    return found


def _unmarked(block: Block) -> list[str]:
    """Every fenced block of commands says what becomes of it, and every other one is Python."""
    if block.language not in (*SHELL, "python"):
        return [f"{block.at}: a block of {block.language!r} is neither commands nor Python"]
    says = re.match(r"run by hand|not run: \S", block.comment)
    if block.fenced and block.language in SHELL and not says:
        return [f"{block.at}: say above the block: run by hand [with FLAGS], or not run: REASON"]
    return []


def _fault(at: str, what: str, step, *arguments) -> list[str]:
    """What `step` refuses, with the place; nothing where it is content."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            step(*arguments)
    except (AssertionError, ConfigError, BadInput, OSError, ImportError, AttributeError, SystemExit) as error:
        return [f"{at}: {what}: {said.getvalue().strip() or error}"]
    return []


def _folders(page: str, folder: pathlib.Path, runs: dict[str, tuple[str, dict]]) -> list[str]:
    """Folders of the page that have another config on another page."""
    found = []
    for path in sorted(folder.rglob("config.json")):
        name, mine = str(path.parent.relative_to(folder)), stored(path.parent)
        there, theirs = runs.setdefault(name, (page, mine))
        free = (*run_folder.RESUMABLE, *run_folder.GROWING)
        differing = [k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k) and not k.startswith(free)]
        if differing:
            found.append(f"{page}: {name} is of another config than in {there}: {', '.join(sorted(differing))}")
    return found


# ---- a command line as bash reads it


def commands(text: str) -> list[list[str]]:
    """The words of every command of a block, without comments and without the variables that are set for it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*$", "", line), posix=True, punctuation_chars="&;|")
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;|"):
                found.append(words)
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return [words for words in found if words]


def _command(words: list[str], block: Block) -> None:
    program, rest = pathlib.Path(words[0]).name, words[1:]
    if program == "python":
        assert rest[0] == "-m", "expected python -m MODULE"
        _module(rest[1], rest[2:])
    elif program in PROGRAMS:
        PROGRAMS[program](rest)
    elif program == "srun":
        _command(rest, block)
    else:
        assert block.comment.startswith("not run"), f"unknown program {program}"
        for inner in (word for word in rest if word.startswith("--command=")):
            for words in commands(inner.removeprefix("--command=")):
                _command(words, block)


def _pip(arguments: list[str]) -> None:
    """pip install -e '.[EXTRA]': there is no release, and the extra is one of setup.py's."""
    assert arguments[:2] == ["install", "-e"], "there is no release: expected pip install -e '.[EXTRA]'"
    known = re.findall(r'^    "(\w+)": ', (REPOSITORY / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    for extra in re.findall(r"\w+", arguments[2]):
        assert extra in known, f"no extra {extra}"


def _make(arguments: list[str]) -> None:
    for target in arguments:
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target


def _cp(arguments: list[str]) -> None:
    source, target = arguments
    _reads(source)
    _writes(os.path.join(target, os.path.basename(source)) if target.endswith("/") else target)


def _mkdir(arguments: list[str]) -> None:
    for folder in arguments:
        if folder != "-p":
            os.makedirs(folder, exist_ok="-p" in arguments)


PROGRAMS = {"pip": _pip, "make": _make, "cp": _cp, "mv": _cp, "mkdir": _mkdir} | {
    name: lambda arguments: None for name in ("cd", "export", "wait", "pytest")
}


def _reads(path: str) -> None:
    assert os.path.exists(path), f"nothing above this on the page makes {path}"


def _writes(path: str) -> None:
    """Makes an empty file. Its folder is made by the command that writes a run, by others not."""
    assert pathlib.Path(path).parent.is_dir(), f"nothing above this on the page makes the folder of {path}"
    pathlib.Path(path).touch()


# ---- the programs of the project


def _module(name: str, arguments: list[str]) -> None:
    if name in MODULES:
        MODULES[name](arguments)
        return
    spec = importlib.util.find_spec(name)
    assert spec, f"no module {name}"
    runs = f"{name}.__main__" if spec.submodule_search_locations else name
    if hasattr(importlib.import_module(runs), "main"):
        options(runs, arguments)


def _job(arguments: list[str]) -> None:
    """Checks a command of experiments.main, claims its folder as the run would, and leaves what it would leave."""
    if {"--help", "--list"} & set(arguments):
        return
    request = experiments_main.parse(arguments)
    config, fields = request.config, experiments_main.FORMS[request.config.problem.name].fields
    with run_folder.claimed(request.workdir, config, fields):
        for name in _left(config):
            (request.workdir / name).parent.mkdir(exist_ok=True)
            (request.workdir / name).touch()


def _left(config) -> list[str]:
    """The files of a finished job that commands further down read."""
    if config.job == "encode":
        return ["latents.json"]
    if config.job == "sample":
        return [f"{config.sample.into}/samples.npz"]
    if config.job not in ("all", "learn"):
        return []
    names = [name for name in config.learn.objectives if name != "rollout"]
    if "rollout" in config.learn.objectives:
        names += [f"rollout@{steps}" for steps in config.eval.steps]
    seeds = range(config.seed, config.seed + config.seeds)
    return [f"weights/{name}_seed_{seed}.safetensors" for name in names for seed in seeds]


def _fid(arguments: list[str]) -> None:
    chosen, rest = fid.parser().parse_known_args(arguments)
    if chosen.command == "gen":
        job = generate.command(chosen, rest)
        generate.folder(job)
        _job(job)
    else:
        assert not rest, f"no such option: {' '.join(rest)}"
        _reads(chosen.images)
    if chosen.weights:
        _reads(chosen.weights)
    if chosen.command == "ref":
        _writes(chosen.out)
        return
    _reads(chosen.ref)
    for metric in chosen.metrics.split(","):
        assert metric in fid.METRICS, f"no metric {metric}"


def _convert(arguments: list[str]) -> None:
    """A file goes by the one name that all pages have for it."""
    chosen = options("experiments.tools.convert", arguments)
    _reads(chosen.source)
    _writes(chosen.target)
    known = stand_ins.CONVERTED.get(chosen.source, chosen.target)
    assert chosen.target == known, f"other pages call it {known}"


def _prepare(arguments: list[str]) -> None:
    for name in options("experiments.tools.prepare", arguments).names:
        assert name in published.SETS, f"no set {name}"


def _weight_files(arguments: list[str]) -> None:
    chosen = options("experiments.files.weight_files", arguments)
    for path in getattr(chosen, "paths", None) or [chosen.file]:
        _reads(path)
    if chosen.command == "plot":
        _writes(chosen.target)


MODULES = {
    "experiments.main": _job,
    "experiments.tools.fid": _fid,
    "experiments.tools.convert": _convert,
    "experiments.tools.prepare": _prepare,
    "experiments.files.weight_files": _weight_files,
}


class _Understood(BaseException):
    """Carries the options of a program out of it, before it does anything with them."""


def options(module: str, arguments: list[str]) -> argparse.Namespace:
    """The options that the `main` of a module makes of its arguments. Raises SystemExit for those it refuses."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *given):
        raise _Understood(original(self, *given))

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        try:
            importlib.import_module(module).main(arguments)
        except _Understood as understood:
            return understood.args[0]
    raise AssertionError(f"{module} reads no options")


# ---- what stands inside a sentence


def inline(page: str) -> list[tuple[int, str]]:
    """(line, code) of everything between backquotes, in one line each."""
    text = prose(page)
    found = re.finditer(r"`([^`]+)`", text)
    return [(text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())) for match in found]


_numbers = iter(range(10**9))


def _inline(code: str) -> None:
    """A command is checked like any other; fields, paths and modules that are named must exist."""
    if code.startswith("python -m ") and not re.search(r"[=/]| --", code):
        assert importlib.util.find_spec(code.split()[2]), "no such module"  # it is named, not shown
    elif code.startswith(("python -m ", "pip ", "make ")) and not re.search(r"\.\.\.|NAME", code):
        for words in commands(code):
            _command(words, Block("", 0, "", "", code, fenced=False))
    elif code.startswith("--config=configs/"):
        _job([*shlex.split(code), f"--workdir=inline/{next(_numbers)}"])
    for name in re.findall(rf"(?<![\w./])(?:--config\.)?((?:{GROUPS})\.(?!py\b)[a-z_]+)(?![\w./-])", code):
        assert name in FIELDS, f"no field {name}"
    if re.fullmatch(r"(guidance|experiments|tests|configs|docs|benchmarks)/[\w./-]*", code):
        assert (REPOSITORY / code).exists(), f"no file {code}"
    for name in re.findall(r"^(?:guidance|experiments|benchmarks)(?:\.[a-zA-Z_]\w*)+", code):
        pkgutil.resolve_name(name)


def links(page: str) -> list[tuple[int, str]]:
    """(line, target) of the links of a page to other files of the repository, and to its own headings."""
    text = prose(page)
    found = re.finditer(r"\]\((?!https?:)([^)\s]+)\)", text)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def _link(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    assert file.exists(), "no such file"
    if last := re.fullmatch(r"L\d+-L(\d+)", anchor):
        assert int(last[1]) <= file.read_text(encoding="utf-8").count("\n"), "the file is shorter"
    else:
        assert not anchor or anchor in _anchors(file), f"no heading #{anchor}"


@functools.cache
def _anchors(file: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
