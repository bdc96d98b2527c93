"""The arrows of the architecture, asserted from the imports themselves."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

GUIDANCE = sorted((REPOSITORY / "guidance").rglob("*.py"))
OURS = GUIDANCE + sorted((REPOSITORY / "experiments").rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """Absolute names of all modules that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


def reaches(path: pathlib.Path, *forbidden: str) -> list[str]:
    return sorted(name for name in imports(path) for root in forbidden if name == root or name.startswith(f"{root}."))


def inside(package: str) -> list[pathlib.Path]:
    folder = REPOSITORY.joinpath(*package.split("."))
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files and all(file.is_file() for file in files), f"{package} is not there: the test guards nothing"
    return files


LIGHT = ("bars", "ranges", "tables", "times", "words")  # of guidance, what needs no jax
HEAVY = ("jax", "flax", "optax", "orbax", "numpy") + tuple(
    f"guidance.{path.stem}" for path in sorted((REPOSITORY / "guidance").glob("[!_]*")) if path.stem not in LIGHT
)

# importer, what it must never import
NEVERS = [
    ("guidance.types", ("guidance",)),
    ("guidance.rules", ("guidance.weights", "guidance.guides", "guidance.sampling")),
    ("guidance.weights", ("guidance.rules", "guidance.guides", "guidance.sampling")),
    ("guidance.sampling", ("guidance.rules", "guidance.weights", "guidance.guides")),
    ("guidance.schedules", ("guidance.predictions", "guidance.rules", "guidance.weights", "guidance.sampling")),
    ("guidance.predictions", ("guidance.rules", "guidance.weights", "guidance.guides", "guidance.sampling")),
    ("guidance.guides", ("guidance.sampling",)),
    ("guidance.truth", ("guidance.rules", "guidance.weights", "guidance.guides", "guidance.learning")),
    ("guidance.learning", ("guidance.truth", "guidance.nets", "guidance.metrics")),
    ("guidance.steering", ("guidance.weights", "guidance.learning", "guidance.nets", "guidance.metrics")),
    *((f"guidance.{name}", (*HEAVY, "experiments")) for name in LIGHT),
    # what a refusal reads
    ("experiments.config", HEAVY),
    *(
        (f"experiments.{name}", HEAVY)
        for name in (
            "problems.chain_fields", "problems.sample_fields", "problems.mixtures.fields", "problems.images.fields",
            "problems.latents.fields", "leaderboard.fields", "runtime.ledger", "runtime.progress", "runtime.results",
            "runtime.run_folder", "runtime.writing",
        )
    ),
]  # fmt: skip

# the rooms of experiments/, floor by floor: each imports only those on floors below its own
FLOORS = [
    {"config"},
    {"runtime"},
    {"files"},
    {"data"},
    {"fid", "parity"},
    {"problems"},
    {"jobs", "leaderboard"},
    {"main"},
    {"tools"},
]


@pytest.mark.parametrize("importer, forbidden", NEVERS, ids=lambda value: value if isinstance(value, str) else "")
def test_arrows_run_one_way(importer, forbidden):
    for path in inside(importer):
        assert not reaches(path, *forbidden), f"{path} imports {reaches(path, *forbidden)}"


def test_no_arrow_of_the_house_runs_up():
    """Every room stands on one floor and imports lower ones only, anywhere in its files; so there is no cycle."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    there = {path.stem for path in (REPOSITORY / "experiments").iterdir() if path.stem[0] not in "._"}
    assert there == floor.keys() and len(there) <= 14 and len(FLOORS) <= 9
    for path in inside("experiments"):
        room = module_name(path).split(".")[1:2]
        for name in imports(path) if room else ():
            target = name.split(".")[1:2]
            if name.startswith("experiments.") and target != room:
                assert floor[target[0]] < floor[room[0]], f"{path} imports {name}"


def test_the_door_opens_without_jax():
    """`import guidance`, and what refusals read, import nothing heavy; `fit` and `compare` come when asked for."""
    light = ", ".join(f"guidance.{name}" for name in LIGHT)
    code = f"import sys, guidance, {light}; assert 'fit' in dir(guidance); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "optax", "numpy", "matplotlib"} & set(loaded.stdout.split())


@pytest.mark.parametrize("path", GUIDANCE, ids=module_name)
def test_nothing_below_steering_imports_it(path):
    if not module_name(path).startswith("guidance.steering"):
        assert not reaches(path, "guidance.steering")


# what the door for Python users may import beside that: a file that resumes, a bar, a picture, a table
DOOR = {
    "guidance": {"importlib"},
    "guidance.bars": {"tqdm"},
    "guidance.comparing": {"tqdm"},
    "guidance.fitting": {"time", "tqdm"},
    "guidance.keeping": {"json", "os", "pathlib", "zipfile", "zlib"},
    "guidance.tables": {"csv", "io", "matplotlib", "statistics"},
}


@pytest.mark.parametrize("path", GUIDANCE, ids=module_name)
def test_guidance_imports_mathematics_only(path):
    outside = {name.split(".")[0] for name in imports(path)}
    standard = {
        "abc",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "inspect",
        "itertools",
        "math",
        "numbers",
        "operator",
        "re",
        "typing",
    }
    allowed = {"jax", "flax", "optax", "chex", "numpy", "guidance", "__future__"} | standard
    allowed |= DOOR.get(module_name(path), set())
    assert outside <= allowed, f"{path} imports {sorted(outside - allowed)}"


@pytest.mark.parametrize("path", OURS, ids=module_name)
def test_one_module_knows_orbax_one_tfds_and_one_safetensors(path):
    if module_name(path) != "experiments.runtime.checkpoints":
        assert not reaches(path, "orbax")
    if module_name(path) != "experiments.data.published":
        assert not reaches(path, "tensorflow_datasets")
    if module_name(path) != "experiments.files.tensors":
        assert not reaches(path, "safetensors")
    if module_name(path) != "experiments.data.latents":
        assert not reaches(path, "array_record")
    assert not reaches(path, "pickle", "cloudpickle", "dill", "clu", "tensorflow")


@pytest.mark.parametrize("path", OURS, ids=module_name)
def test_torch_is_for_conversion_and_references_only(path):
    if module_name(path) != "experiments.tools.convert" and not module_name(path).startswith("experiments.parity."):
        assert not reaches(path, "torch", "torchvision", "diffusers", "pytorch_fid")


@pytest.mark.parametrize("path", OURS, ids=module_name)
def test_files_fit_in_a_mind(path):
    limit = 100 if module_name(path) == "experiments.main" else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) < limit


def test_the_reader_of_imports_sees_every_form(tmp_path):
    package = tmp_path / "guidance" / "rules"
    package.mkdir(parents=True)
    file = package / "probe.py"
    file.write_text("import a.b\nfrom c import d\nfrom . import e\nfrom ..weights import f\ndef g():\n    import h\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "REPOSITORY", tmp_path)
        found = imports(file)
    assert {"a.b", "c.d", "guidance.rules.e", "guidance.weights.f", "h"} <= found
