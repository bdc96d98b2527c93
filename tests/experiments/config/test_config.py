"""Every bad command is one line on stderr that names the field and what is allowed, exit code 2, in no time."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import main
from experiments.config import ConfigError, flat, usage
from experiments.main import FORMS, load, parse
from experiments.problems.sample_fields import SAMPLE as SAMPLE_FIELDS
from experiments.runtime import run_folder
from tests.conftest import REPOSITORY
from tests.experiments.claims import claim

MIXTURE = str(REPOSITORY / "configs" / "mixture.py")
DIGITS = str(REPOSITORY / "configs" / "digits.py")
MNIST = str(REPOSITORY / "configs" / "mnist.py")
SAMPLE = str(REPOSITORY / "configs" / "sample.py")
PRESETS = [f"{MIXTURE}:{name}" for name in ("exact", "attenuated", "under", "trained", "reward", "high_dimensional")]


@pytest.mark.parametrize("source", [MIXTURE, DIGITS, *PRESETS])
def test_every_shipped_config_is_sound_and_locked(source):
    config = load(source)
    assert flat(config).keys() == {"problem.name", *FORMS[config.problem.name].fields}
    assert len(str(config).splitlines()) == len(flat(config)) and "python/tuple" not in f"{config}{config.learn}"
    with pytest.raises((AttributeError, KeyError)):
        config.learn.new_field = 1


def test_fields_with_a_default_need_not_be_in_a_config_file():
    assert "config.sample" not in (REPOSITORY / "configs" / "mixture.py").read_text(encoding="utf-8")
    assert flat(load(MIXTURE))["sample.rule"] == SAMPLE_FIELDS.fields["sample.rule"].default == "cfg"
    assert "--config.sample.rule=cfg" in usage([f"--config={MIXTURE}"], FORMS)


def test_samples_may_change_on_a_folder_that_belongs_to_a_run(tmp_path):
    for overrides in ({}, {"sample.steps": "7", "job": "sample"}):
        os.close(claim(tmp_path, load(MIXTURE, overrides)))
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["sample"]  # a run from before there were samples
    (tmp_path / "config.json").write_text(json.dumps(stored))
    os.close(claim(tmp_path, load(MIXTURE)))


def test_presets_differ_and_the_default_is_under():
    configs = [flat(load(source)) for source in PRESETS]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    assert flat(load(MIXTURE)) == flat(load(f"{MIXTURE}:under"))


def test_overrides_take_the_type_of_their_field():
    overrides = {
        "learn.delta": "0.25", "problem.radius": "2", "learn.gammas": "0",
        "eval.steps": "5", "eval.omegas": "(0, 0.5)", "figures": "false",
        "eval.intervals": "((0.1,0.4),[0.2, 1])", "learn.objectives": "l2, rollout", "job": "learn",
        "problem.reward": "linear_quadratic((1,-2))", "eval.clamp": "()",
    }  # fmt: skip
    config = load(MIXTURE, overrides)
    assert config.learn.delta == 0.25
    assert type(config.problem.radius) is float and config.problem.radius == 2
    assert config.learn.gammas == (0.0,)
    assert config.eval.steps == (5,)
    assert config.eval.omegas == (0.0, 0.5)
    assert config.eval.intervals == ((0.1, 0.4), (0.2, 1.0))
    assert config.learn.objectives == ("l2", "rollout")
    assert config.job == "learn" and config.figures is False
    assert config.problem.reward == "linear_quadratic((1,-2))"
    assert config.eval.clamp == ()


def test_both_spellings_of_a_flag_and_the_last_one_wins():
    request = parse(["--config", MIXTURE, "--workdir=a", "--config.seed", "3", "--workdir", "b", "--config.seed=4"])
    assert request.config.seed == 4
    assert request.workdir == pathlib.Path("b")


def test_a_mesh_is_asked_for_in_words_and_is_not_part_of_the_config():
    asked = {"": {}, "data:4,model:2,fsdp": {"data": 4, "model": 2, "fsdp": True}, "model:8": {"model": 8}}
    for text, mesh in asked.items():
        request = parse([f"--config={MIXTURE}", "--workdir=a", f"--mesh={text}"] if text else command())
        assert request.mesh == mesh
        assert request.config == load(MIXTURE)


def command(*overrides, config=MIXTURE):
    return [f"--config={config}", "--workdir=unused", *overrides]


# arguments, words that the one line must hold
BAD = {
    "nothing": ([], ["--config is missing"]),
    "no workdir": ([f"--config={MIXTURE}"], ["--workdir is missing"]),
    "no value": ([f"--config={MIXTURE}", "--workdir"], ["--workdir needs a value"]),
    "unknown flag": ([f"--config={MIXTURE}", "--wrkdir=a"], ["--wrkdir", "did you mean --workdir"]),
    "not a flag": (command("mixture"), ["'mixture' is not a flag"]),
    "pairs without end": (
        command("--config.eval.samples=1000000", "--config.problem.classes=1"),
        ["eval.samples = 1000000", "at most 50000 for each of problem.classes"],
    ),
    "pairs of images without end": (
        command("--config.eval.samples=50001", config=DIGITS),
        ["eval.samples = 50001", "at most 50000 where metrics compare every pair"],
    ),
    "no such file": (command(config=MIXTURE[:-4] + "x.py"), ["no such file", "mixture.py"]),
    "no such folder": (command(config="nowhere/at_all.py"), ["nowhere/at_all.py", "no such file"]),
    "not python": (command(config=str(REPOSITORY / "LICENSE")), ["LICENSE", "a Python file that defines get_config"]),
    "a folder": (command(config=str(REPOSITORY / "configs")), ["configs: no such file"]),
    "unknown preset": (command(config=f"{MIXTURE}:atenuated"), ["atenuated", "attenuated, under", "did you mean"]),
    "preset where none is": (command(config=f"{DIGITS}:small"), ["small", "allowed: none"]),
    "typo": (command("--config.learn.iteration=5"), ["learn.iteration", "did you mean learn.iterations"]),
    "typo in group": (command("--config.lern.delta=.2"), ["lern.delta", "did you mean learn.delta"]),
    "nothing like it": (command("--config.learn.qwerty=5"), ["learn.qwerty", "no such field; --help lists"]),
    "a group": (
        command("--config.learn=5"),
        ["--config.learn: a group of fields, such as learn.objectives; --help lists"],
    ),
    "field of another problem": (command("--config.problem.train_fraction=.5"), ["problem.train_fraction"]),
    "another problem": (command("--config.problem.name=digits"), ["problem.name", "allowed: mixture"]),
    "unknown problem": (command("--config.problem.name=cifar"), ["problem.name", "allowed: mixture"]),
    "negative steps": (command("--config.eval.steps=-5"), ["eval.steps", "an integer from 1 to 100000"]),
    "zero steps": (command("--config.eval.steps=(10,0)"), ["eval.steps", "from 1 to 100000"]),
    "steps twice": (command("--config.eval.steps=(10,10)"), ["eval.steps", "distinct"]),
    "no steps": (command("--config.eval.steps=()"), ["eval.steps", "one or more"]),
    "no omegas": (command("--config.eval.omegas=()"), ["eval.omegas", "one or more"]),
    "omega below unconditional": (command("--config.eval.omegas=(-2,)"), ["eval.omegas", "at least -1"]),
    "interval reversed": (command("--config.eval.intervals=((.8,.2),)"), ["eval.intervals", "lo < hi"]),
    "interval not a pair": (command("--config.eval.intervals=(.2,.8)"), ["eval.intervals", "a pair (lo, hi)"]),
    "float for int": (command("--config.learn.iterations=2.5"), ["learn.iterations", "2.5", "an integer"]),
    "bool for int": (command("--config.seed=true"), ["seed", "True", "an integer"]),
    "text for float": (command("--config.learn.delta=large"), ["learn.delta", "'large'", "a number in (0, 1)"]),
    "delta 1": (command("--config.learn.delta=1"), ["learn.delta", "a number in (0, 1)"]),
    "not finite": (command("--config.problem.radius=1e999"), ["problem.radius", "inf"]),
    "beyond float": (
        command(f"--config.problem.radius=1{'0' * 400}"),
        ["problem.radius", "a number in [0.001, 1000]"],
    ),
    "seed too large": (command("--config.seed=4294967296"), ["seed", "an integer"]),
    "seeds overflow": (command("--config.seed=2147483647"), ["seeds", "at most 2**31"]),
    "int for bool": (command("--config.figures=1"), ["figures", "true or false"]),
    "empty value": (command("--config.seed="), ["seed = ''"]),
    "malformed literal": (command("--config.seed=0x1for"), ["seed = '0x1for'"]),
    "code is not run": (command("--config.seed=__import__('os').getpid()"), ["seed = ", "an integer"]),
    "a sum without end": (command(f"--config.eval.sampler=unipc(1{'+1' * 900})"), ["eval.sampler", "allowed: "]),
    "line break": (command("--config.job=a\nb"), ["job", "allowed: all or train"]),
    "unknown job": (command("--config.job=lern"), ["job = 'lern'", "all or train or learn"]),
    "unknown objective": (command("--config.learn.objectives=l3"), ["learn.objectives", "l2 or rollout"]),
    "unknown schedule": (command("--config.problem.schedule=linear"), ["problem.schedule", "linear_vp"]),
    "one particle": (
        command("--config.learn.particles=1"),
        ["learn.particles = 1", "at least 2 when learn.lambda_ > 0"],
    ),
    "no step starts in the interval": (
        command("--config.learn.intervals=((0.2,0.3),(0.5,0.55))", "--config.eval.steps=10,20"),
        ["learn.intervals = ((0.2, 0.3), (0.5, 0.55))", "in which a step starts"],
    ),
    "no room for gaps": (command("--config.learn.delta=.99"), ["learn.delta", "below 1"]),
    "ring in 3-D": (command("--config.problem.dimension=3"), ["problem.layout", "problem.dimension = 2"]),
    "reward of wrong size": (
        command("--config.problem.reward=linear_quadratic((1,2,3))"),
        ["problem.reward", "problem.dimension"],
    ),
    "reward without a tilt": (
        command("--config.problem.reward=linear_quadratic((1,2), -4)"),
        ["problem.reward", "the tilted law exists"],
    ),
    "reward of words": (
        command("--config.problem.reward=linear_quadratic(up)"),
        ["problem.reward", "linear = up: allowed: a tuple, each a finite number"],
    ),
    "gamma without reward": (command("--config.learn.gammas=.1"), ["learn.gammas", "problem.reward"]),
    "fractions": (
        command("--config.problem.train_fraction=.8", config=DIGITS),
        ["problem.classifier_fraction", "below 1"],
    ),
    "model not there": (
        command("--config.problem.model=no.npz", config=MNIST),
        ["problem.model = 'no.npz'", "existing"],
    ),
    "data not there": (command("--config.problem.data=nowhere", config=MNIST), ["problem.data", "t10k-images-idx3"]),
    "rule mistyped": (command("--config.sample.rule=agp(cap=5)"), ["sample.rule", "'agp'; did you mean apg?"]),
    "weight of code": (
        command("--config.sample.weight=__import__('os').getpid()"),
        ["sample.weight", "allowed: a number"],
    ),
    "weight not there": (command("--config.sample.weight=no.safetensors"), ["sample.weight = 'no.safetensors'"]),
    "sampler mistyped": (command("--config.sample.sampler=dpmpp2m"), ["sample.sampler", "did you mean dpmpp_2m?"]),
    "grid mistyped": (command("--config.sample.grid=karas"), ["sample.grid", "did you mean karras?"]),
    "seeds backwards": (command("--config.sample.seeds=9-0"), ["sample.seeds = '9-0'", "runs backwards"]),
    "output of a kind": (command("--config.sample.output=npz,jpg"), ["sample.output", "npz or png or grid"]),
    "repetition not there": (command("--config.sample.repetition=9"), ["sample.repetition = 9", "less than seeds"]),
    "imported, not there": (command(config=SAMPLE), ["problem.weights", "problem.vae", "existing .safetensors file"]),
    "imported, another job": (command("--config.job=train", config=SAMPLE), ["job = 'train'", "allowed: sample"]),
    "mesh of nothing": (command("--mesh=data:0"), ["--mesh=data:0", "data:N, model:N, fsdp"]),
    "mesh of words": (command("--mesh=fsdp,modal:2"), ["modal:2", "data:N, model:N, fsdp"]),
    "two at once": (command("--config.seeds=0", "--config.learn.beta=3"), ["seeds = 0", "learn.beta = 3"]),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_command_is_one_line_and_exit_code_2(name, capfd, tmp_path, monkeypatch):
    arguments, words = BAD[name]
    monkeypatch.chdir(tmp_path)
    code = main.main(arguments)
    out, err = capfd.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert len(err) < 500 + sum(map(len, arguments)), "a listing in place of the nearest name"
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []  # refused before anything was written


@pytest.mark.parametrize(
    "content, words",
    {
        "syntax": ("def get_config(:\n", ["SyntaxError"]),
        "raises": ("1 / 0\n", ["ZeroDivisionError"]),
        "ends python": ("import sys\nsys.exit(3)\n", ["SystemExit: 3"]),
        "a list for a name": (
            "PRESETS = {}\ndef get_config(preset):\n    return {'problem': {'name': ['mixture']}}\n",
            ["problem.name = ['mixture']", "mixture or digits"],
        ),
        "no get_config": ("x = 1\n", ["get_config(preset)"]),
        "get_config raises": (
            "PRESETS = {}\ndef get_config(preset):\n    return preset.nothing\n",
            ["AttributeError"],
        ),
        "extra field": (
            "{base}\nfield = ('learn.iteration', 3)\n",
            ["learn.iteration", "did you mean learn.iterations"],
        ),
        "unknown problem": (
            "{base}\nfield = ('problem.name', 'cifar')\n",
            ["problem.name", "mixture or digits or labelled or mnist"],
        ),
        "wrong default": ("{base}\nfield = ('seeds', 'five')\n", ["seeds = 'five'", "an integer"]),
        "missing field": ("{base}\nfield = ('seeds', None)\n", ["seeds is missing", "an integer"]),
    }.values(),
)
def test_each_bad_config_file_is_one_line(content, words, tmp_path, capfd):
    base = f"""
import importlib.util
spec = importlib.util.spec_from_file_location('sound', {MIXTURE!r})
sound = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sound)
PRESETS = {{}}
def get_config(preset):
    config = sound.get_config(preset)
    with config.ignore_type():
        *groups, last = field[0].split('.')
        group = config[groups[0]] if groups else config
        if field[1] is None:
            del group[last]
        else:
            group[last] = field[1]
    return config
"""
    path = tmp_path / "mine.py"
    path.write_text(content.replace("{base}", base))
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and str(path) in err or "seeds = 'five'" in err
    assert all(word in err for word in words), err


WILD = (
    "0", "-1", "1", "2147483647", "2147483648", "-99999999999999999999", "9" * 400, "9" * 5000, "0x" + "f" * 5000,
    "1e30", "1e39", "1e-40", "1e308", "1e999", "-1e999", "nan", "inf", "-inf", "-0.0", "1e5", "0.5", "1_000", "",
    "()", "(),", "((),)", "None", "true", "''", "x" * 9000, "é", "日本語", "\x00", "\n", "\x1b[31m", "/" * 5000,
    "../../etc/passwd", "1,2,3", "1,1", "((0.2,0.8),(0.2,0.8))", "((1,0),)", "{1:2}", "lambda: 0", "1+1j", "b'x'",
    "((((((((1,),),),),),),),)", "(" * 3000, "0-99999999999999", "0-2147483647", "5-", "-", "0-1-2", "０",
    "cfg," * 2000 + "cfg", "constant(1e39)", "apg(cap=nan)", "all,", "*", "%s", "$HOME",
)  # fmt: skip
EVERY = {f"{problem} {name}": field for problem, form in FORMS.items() for name, field in form.fields.items()}


def test_any_text_in_any_field_is_a_value_or_one_line():
    """A value is of JSON, and of a size that can be kept; whatever else is raised becomes one line, as for seeds."""
    kinds = {id(field.kind): field for field in EVERY.values()}.values()
    for field in kinds:
        for text in WILD:
            try:
                value = field.kind.read(text)
            except (ValueError, TypeError, OverflowError, ConfigError) as error:
                assert len(str(error)) < 20_000
                continue
            assert len(json.dumps(value, allow_nan=False)) < 20_000


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "x" * 100_000, "\x00", "2147483647", "nan"])
def test_any_field_of_a_config_with_a_wild_value_is_a_config_or_one_line(text):
    for name in flat(load(MIXTURE)):
        try:
            load(MIXTURE, {name: text})
        except ConfigError as error:
            assert "\n" not in str(error) and name.rpartition(".")[2] in str(error) and len(str(error)) < 20_000


def test_a_path_is_shown_in_full(tmp_path):
    path = str(tmp_path / ("a" * 200) / ("b" * 200) / "weight.safetensors")
    with pytest.raises(ConfigError) as error:
        load(MIXTURE, {"sample.weight": path})
    assert path in str(error.value)


def test_what_is_no_text_is_one_line(capsys):
    assert main.main(command("--config.problem.schedule=\udcff")) == 2
    assert "is not text in UTF-8" in capsys.readouterr().err


def test_a_bad_command_imports_nothing_heavy():
    arguments = ["--config=configs/mixture.py", "--workdir=unused", "--config.learn.delta=2"]
    probe = (
        "import sys; from experiments.main import main; code = main(sys.argv[1:]);"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'numpy', 'matplotlib', 'sklearn'};"
        "print(sorted(heavy & sys.modules.keys())); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", probe, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == "[]\n"
    assert run.stderr.count("\n") == 1


def test_help_lists_every_field_with_its_value_and_what_is_allowed(capsys):
    assert main.main([f"--config={MIXTURE}:reward", "--help"]) == 0
    out = capsys.readouterr().out
    for name in flat(load(f"{MIXTURE}:reward")):
        assert f"--config.{name}=" in out
    assert "--config.problem.error=attenuated" in out and "a number in (0, 1)" in out and "high_dimensional" in out
    assert "--config" in usage(["--help"], FORMS)


def test_a_folder_belongs_to_one_config(tmp_path):
    config = load(MIXTURE)
    os.close(claim(tmp_path, config))
    assert json.loads((tmp_path / "config.json").read_text())["eval"]["steps"] == list(config.eval.steps)
    os.close(claim(tmp_path, load(MIXTURE, {"job": "report", "figures": "false"})))
    with pytest.raises(
        ConfigError, match=r"learn.delta = 0.2 here, 0.1 in its config.json; allowed: the same command"
    ):
        claim(tmp_path, load(MIXTURE, {"learn.delta": "0.2"}))


@pytest.mark.parametrize(
    ("name", "before", "now", "allowed"),
    [
        ("seeds", "2", "3", None),
        ("seeds", "3", "2", "a larger number"),
        ("eval.steps", "10,20", "10,20,50", None),
        ("eval.steps", "10,50", "10,20,50", "larger ones besides"),
        ("eval.steps", "10,20", "10", "larger ones besides"),
        ("learn.rules", "cfg", "apg(cap=2.5),cfg", None),
        ("learn.rules", "apg", "cfg,apg", "others besides, but cfg"),
        ("eval.intervals", "((0.0,0.5),)", "((0.2,0.8),(0.0,0.5))", None),
        ("eval.omegas", "0,0.5,1", "0,1,2", "more of them"),
        ("learn.iterations", "10", "20", "the same command, or a new folder"),
    ],
)
def test_a_run_may_grow_where_earlier_results_stay(tmp_path, name, before, now, allowed):
    os.close(claim(tmp_path, load(MIXTURE, {name: before})))
    if allowed is None:
        os.close(claim(tmp_path, load(MIXTURE, {name: now})))
        with pytest.raises(ConfigError, match=name):
            claim(tmp_path, load(MIXTURE, {name: before}))
        return
    with pytest.raises(ConfigError, match=rf"{name} = .* here, .* in its config.json; allowed: .*{allowed}"):
        claim(tmp_path, load(MIXTURE, {name: now}))


@pytest.fixture
def recorded(tmp_path):
    """The folder of a run of another preset, with an override, and a field of samples that its command named."""
    overrides = {"base.steps": "7", "sample.steps": "9"}
    os.close(claim(tmp_path, load(f"{MIXTURE}:record", overrides)))
    return tmp_path


@pytest.mark.parametrize("config", [[], [f"--config={MIXTURE}"], [f"--config={MIXTURE}:record"]], ids=str)
def test_samples_of_a_run_need_only_what_differs(recorded, config):
    """Everything else is as in its config.json, which they leave as it is."""
    before = (recorded / "config.json").read_bytes()
    arguments = [*config, f"--workdir={recorded}", "--config.job=sample", "--config.sample.weight=1.5"]
    run, request = flat(load(f"{MIXTURE}:record", {"base.steps": "7", "sample.steps": "9"})), parse(arguments)
    differing = {name: value for name, value in flat(request.config).items() if value != run[name]}
    assert differing == {"job": "sample", "sample.weight": "1.5"}
    os.close(claim(recorded, request.config))
    assert (recorded / "config.json").read_bytes() == before
    assert "--config.base.steps=7" in usage(["--help", f"--workdir={recorded}"], FORMS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--config={MIXTURE}:reward"], "eval.steps = (20,) there, (10, 20, 100) in "),
        ([f"--config={DIGITS}"], "problem.name = 'digits' there, 'mixture' in "),
        ([f"--config={MIXTURE}", "--config.base.steps=8"], "base.steps = 8 here, 7 in its config.json"),
        (["--config.base.steps=8"], "base.steps = 8 here, 7 in its config.json"),
    ],
)
def test_what_contradicts_the_run_that_is_sampled_is_one_line(recorded, capsys, arguments, words):
    assert main.main([*arguments, f"--workdir={recorded}", "--config.job=sample"]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1 and "allowed: " in line
    assert json.loads((recorded / "config.json").read_text())["base"]["steps"] == 7


def test_a_folder_stands_in_for_the_config_of_any_job(recorded):
    assert parse([f"--workdir={recorded}"]).config == load(
        f"{MIXTURE}:record", {"base.steps": "7", "sample.steps": "9"}
    )
    assert parse([f"--workdir={recorded}", "--config.job=report"]).config.job == "report"
    (recorded / "config.json").write_text(json.dumps({"problem": {"name": "cifar"}}))
    with pytest.raises(ConfigError, match="config.json: problem.name = 'cifar': allowed: mixture or"):
        parse([f"--workdir={recorded}"])


def test_a_folder_with_fields_of_an_earlier_version_says_so(tmp_path):
    os.close(claim(tmp_path, load(MIXTURE)))
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["eval"]["churn"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="its config.json has eval.churn, which this version does not know"):
        claim(tmp_path, load(MIXTURE))


def test_a_folder_serves_one_run_at_a_time(tmp_path):
    lock = claim(tmp_path, load(MIXTURE))
    with pytest.raises(ConfigError, match="another run is using it"):
        claim(tmp_path, load(MIXTURE))
    os.close(lock)
    os.close(claim(tmp_path, load(MIXTURE)))


def test_a_folder_in_which_nothing_was_done_may_have_another_config(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    before = run_folder.before(tmp_path)
    os.close(claim(tmp_path, load(MIXTURE)))
    assert not run_folder.release(tmp_path, before, "refused")
    os.close(claim(tmp_path, load(MIXTURE, {"learn.delta": "0.2"})))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert run_folder.release(tmp_path, before, "diverged")
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "notes.txt", "diverged"}
    with pytest.raises(ConfigError, match="learn.delta = 0.1 here, 0.2 in its config.json"):
        claim(tmp_path / "diverged", load(MIXTURE))


def test_a_run_that_grew_in_vain_has_the_config_that_it_had(tmp_path):
    os.close(claim(tmp_path, load(MIXTURE)))
    before = run_folder.before(tmp_path)
    os.close(claim(tmp_path, load(MIXTURE, {"eval.omegas": "0,0.25,0.5,1,1.5,2,3,4.5,6.5,99"})))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert not run_folder.release(tmp_path, before, "diverged")
    assert (tmp_path / "config.json").read_text() == before.config and (tmp_path / "metrics.jsonl").exists()
    os.close(claim(tmp_path, load(MIXTURE)))


def test_a_folder_that_is_a_file_or_holds_a_broken_config_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: File exists"):
        claim(tmp_path / "file", load(MIXTURE))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        claim(tmp_path, load(MIXTURE))
