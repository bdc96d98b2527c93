"""Files of learned weights: the same omegas back, what is refused, and the two commands."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import expressions
from experiments.files import tensors, weight_files
from experiments.jobs import learn
from experiments.problems import construct
from guidance import schedules, weights

NET = weights.GuidanceNet(num_classes=3, width=8, depth=3, time_width=4, cond_width=4, initial_omega=0.7)
SAID = {
    "problem": "a test",
    "objective": "rollout@4",
    "rule": "cfg",
    "steps": 4,
    "null": 3,
    "training": {"seed": 1, "omegas": (1, 2)},
}


def weight(net=NET, schedule="cosine", clamps=(0.1, 0.93, 0.2499), interval=None, cond=None):
    """Random params, so that every part of the network matters; the last bias keeps omega off zero."""
    zero = jnp.zeros(1)
    cond = jnp.zeros(1, jnp.int32) if cond is None else cond
    params = jax.eval_shape(net.init, jax.random.key(0), log_snr_t=zero, log_snr_s=zero, cond=cond)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.7 * rng.normal(size=a.shape), jnp.float32), params)
    params["params"][f"Dense_{net.depth + 1}"]["bias"] += 5
    return weights.learned(net, params, schedules.by_name(schedule), *clamps, interval)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights" / "rollout.safetensors"
    weight_files.write(path, weight(), **SAID)
    return path


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize(("condition", "interval"), [("label", (0.25, 1)), ("none", None)])
def test_a_weight_comes_back_with_its_omegas_to_the_bit(tmp_path, schedule, condition, interval):
    net = NET.clone(condition=condition)
    written = weight(net, schedule, interval=interval)
    about = weight_files.write(tmp_path / "w.safetensors", written, **SAID)
    back, said = weight_files.read(tmp_path / "w.safetensors")
    assert said == about
    t = jnp.linspace(0, 1, 30)
    at = {"t": t, "s": 0.6 * t, "cond": jnp.arange(30) % 3}
    expected = written(**at)
    assert float(expected.max()) > 0 and len(np.unique(expected)) > 5, "nothing would be compared"
    np.testing.assert_array_equal(back(**at), expected)
    assert jax.tree.structure(back) == jax.tree.structure(written), "a swap of weights must not compile again"


def test_equal_weights_are_equal_files_that_say_everything(path, tmp_path):
    weight_files.write(tmp_path / "again.safetensors", weight(), **SAID)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    about = weight_files.read_about(path)
    assert about.omega.startswith("omega = 0 is unguided") and about.version == 4
    assert (about.schedule, about.steps, about.conditions, about.null) == ("cosine", 4, 3, 3)
    assert (about.s_min, about.t_max, about.gap_min) == (0.1, 0.93, 0.2499)
    assert about.training == {"seed": 1, "omegas": [1, 2]}
    assert about.net["width"] == 8 and about.net["initial_omega"] == 0.7


def test_the_head_is_kept_and_files_from_before_heads_are_nonnegative(path):
    signed = weight(NET.clone(head="signed"))
    weight_files.write(path.with_name("signed.safetensors"), signed, **SAID)
    back, about = weight_files.read(path.with_name("signed.safetensors"))
    assert about.net["head"] == "signed" and jax.tree.structure(back) == jax.tree.structure(signed)
    old = {name: value for name, value in weight_files.read_about(path).net.items() if name != "head"}
    changed(path, net=old)
    assert jax.tree.structure(weight_files.read(path)[0]) == jax.tree.structure(weight())


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("cfg", "cfg"),
        ("autoguided", "autoguided"),
        ("apg", "apg(eta=0, cap=2.5, beta=-0.5)"),
        ("magnitude_aware", "magnitude_aware(sensitivity=2)"),
        ("gap_normalised", "gap_normalised(gamma=0.5)"),
    ],
)
def test_files_of_earlier_versions_are_read_with_the_knobs_that_they_were_learned_with(path, version, name, rule):
    """Version 2 had no interval, neither had names; a rule was its name."""
    about = weight_files.read(path)[1]
    changed(path, version=version, rule=name, names="gone", **({"interval": "gone"} if version == 2 else {}))
    assert weight_files.read(path)[1] == about._replace(version=version, rule=rule)


def test_rules_of_earlier_versions_are_calls_as_they_are_written_now():
    """A weight of such a file is compared with what a config asks for; where defaults have stayed they are equal."""
    for name, text in weight_files.NAMED.items():
        assert expressions.spelled("rule", text, expressions.RULES) == text and text.startswith(f"{name}(")
    knobless = {name for name, member in expressions.COMBINATIONS.items() if not member.knobs}
    assert knobless | weight_files.NAMED.keys() >= {"cfg", "tcfg", "ep_cfg", "mahiro", "cfg_plus_plus"}


@pytest.mark.parametrize(
    ("version", "learned", "asked", "noted"),
    [
        (3, "apg", "apg", True),  # it was learned at cap 2.5; the library's is 15
        (3, "apg", "apg(cap=2.5)", False),
        (4, "apg(eta=0, cap=2.5, beta=-0.5)", "apg", True),
        (4, "apg(eta=0, cap=2.5, beta=-0.5)", "apg(0.0, 2.50)", False),
        (3, "magnitude_aware", "magnitude_aware", True),
        (3, "gap_normalised", "gap_normalised(1)", True),
        (3, "angle_domain", "angle_domain", False),
        (4, "cfg", "cfg, rescale(0.7)", True),
    ],
)
def test_a_weight_is_told_of_that_was_learned_inside_the_same_rule_with_other_knobs(
    path, capsys, version, learned, asked, noted
):
    changed(path, version=version, rule=learned)
    settings = types.SimpleNamespace(weight=str(path), rule=asked, weak=0, steps=4)
    problem = types.SimpleNamespace(schedule=schedules.cosine(), conditions=jnp.arange(3), null=3)
    construct.weight(settings, problem, None)
    said = capsys.readouterr().out
    assert ("was learned inside" in said) == noted, said
    if noted:
        assert (
            weight_files.read_about(path).rule in said
            and expressions.spelled("rule", asked, expressions.RULES) in said
        )


def test_names_of_classes_and_other_nulls_are_kept(tmp_path):
    path = tmp_path / "w.safetensors"
    null = {"text": np.zeros((2, 3), np.float32), "size": (1, 2.5)}
    weight_files.write(path, weight(), **(SAID | {"null": null, "names": ("cat", "dog", "owl")}))
    about = weight_files.read_about(path)
    assert about.names == ["cat", "dog", "owl"]
    assert about.null == {"text": [[0, 0, 0], [0, 0, 0]], "size": [1, 2.5]}
    weight_files.check_fits(path, about, schedules.cosine(), jnp.arange(3), null)
    with pytest.raises(ValueError, match="the model 3 and 3"):
        weight_files.check_fits(path, about, schedules.cosine(), jnp.arange(3), 3)


def test_a_weight_of_features_keeps_the_numbers_of_its_conditions(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    conditions = {"class": jnp.arange(2), "angle": jnp.asarray([[0.1, 0.2, 0.3], [-1.0, 0.0, 1e-9]])}
    null = {"class": 2, "angle": np.zeros(3, np.float32)}
    one = jax.tree.map(lambda leaf: leaf[:1], conditions)
    written = weight(NET.clone(condition="features", num_classes=0), cond=one)
    weight_files.write(path, written, **(SAID | {"null": null, "conditions": conditions}))
    back, about = weight_files.read(path)
    grid = jnp.asarray([1, 0.75, 0.5, 0.25, 0])
    table = weights.tabulated(written, grid, conditions)
    np.testing.assert_array_equal(weights.tabulated(back, grid, conditions), table)
    np.testing.assert_allclose(weight_files.curves(back, about)[2], table, rtol=1e-5, atol=1e-6)
    weight_files.check_fits(path, about, schedules.cosine(), conditions, null)
    for other in (conditions | {"angle": conditions["angle"] + 1e-3}, jnp.arange(2)):
        with pytest.raises(ValueError, match="conditions, or a null, of other numbers"):
            weight_files.check_fits(path, about, schedules.cosine(), other, null)
    assert weight_files.main(["plot", str(path), str(tmp_path / "omega.png")]) == 0
    assert "2 conditions" in capsys.readouterr().out
    changed(path, conditions=[[1, 2], [3]])
    with pytest.raises(ValueError, match="no rows of equally many numbers"):
        weight_files.read(path)


def test_job_learn_writes_the_names_of_the_classes(tmp_path):
    problem = types.SimpleNamespace(
        name="animals",
        model=types.SimpleNamespace(null=3, conditions=jnp.arange(3)),
        data=types.SimpleNamespace(names=("cat", "dog", "owl")),
    )
    config = types.SimpleNamespace(seed=5, to_dict=dict)
    learned = weight()
    task = learn.Task("l2", learn.Recipe("l2"), loss=None, weight=lambda params: learned, family="l2", line="l2")
    learn._write(problem, config, tmp_path, task, [None])
    assert weight_files.read_about(tmp_path / "weights" / "l2_seed_5.safetensors").names == ["cat", "dog", "owl"]


def test_a_weight_of_other_classes_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    about = weight_files.write(path, weight(), **(SAID | {"names": ("cat", "dog", "owl")}))
    arguments = path, about, schedules.cosine(), jnp.arange(3), 3
    weight_files.check_fits(*arguments, names=("cat", "dog", "owl"))
    weight_files.check_fits(*arguments)  # a model that does not say
    weight_files.check_fits(
        path, about._replace(names=None), *arguments[2:], names=("ant", "bee", "cat")
    )  # nor a file
    with pytest.raises(ValueError, match="it has other classes, class 1 is 'dog' there, 'cow' here$") as error:
        weight_files.check_fits(*arguments, names=("cat", "cow", "owl"))
    assert str(path) in str(error.value)
    everything = weight_files.write(path, weight(NET.clone(condition="none")), **(SAID | {"names": ("a", "b", "c")}))
    weight_files.check_fits(path, everything, *arguments[2:], names=("cat", "dog", "owl"))  # it asks for no class


def changed(path, **said):
    """The file with other words beside the same arrays."""
    words = json.loads(tensors.read_metadata(path)[weight_files.KEY]) | said
    words = {name: value for name, value in words.items() if value != "gone"}
    tensors.write_safetensors(path, tensors.read_safetensors(path), {weight_files.KEY: json.dumps(words)})


def with_array(path, name, change):
    arrays = tensors.read_safetensors(path)
    arrays[name] = change(arrays[name])
    tensors.write_safetensors(path, arrays, tensors.read_metadata(path))


def spoil(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


BIAS = "params/Dense_0/bias"
BAD = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-5]), "not a whole .safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole .safetensors file"),
    "foreign": (lambda p: tensors.write_safetensors(p, {"a": np.zeros(2)}, {}), "is no learned weight"),
    "not JSON": (
        lambda p: tensors.write_safetensors(p, {"a": np.zeros(2)}, {weight_files.KEY: "{"}),
        "not readable",
    ),
    "later version": (lambda p: changed(p, version=5), "has version 5; this program reads versions 2, 3 and 4"),
    "a word missing": (lambda p: changed(p, null="gone"), "null missing"),
    "no list of names": (lambda p: changed(p, names="cat"), "names missing, unknown or of another type"),
    "a word too many": (lambda p: changed(p, colour="red"), "colour missing, unknown"),
    "a number as text": (lambda p: changed(p, s_min="0.1"), "s_min missing, unknown or of another type"),
    "no interval": (lambda p: changed(p, interval=[0.5, 0.2]), "its interval is [0.5, 0.2]; expected [lo, hi]"),
    "a word missing from before": (lambda p: changed(p, version=2, interval="gone", null="gone"), "null missing"),
    "other convention": (lambda p: changed(p, omega="omega = 1 is unguided"), "its convention is 'omega = 1"),
    "deep": (
        lambda p: changed(p, net=weight_files._fields(NET.clone(depth=10**7))),
        "its network has depth 10000000; expected 0 to ",
    ),
    "wide": (lambda p: changed(p, net=weight_files._fields(NET.clone(width=10**12))), "has width 1000000000000"),
    "thin": (lambda p: changed(p, net=weight_files._fields(NET.clone(width=-1))), "has width -1"),
    "a width of text": (lambda p: changed(p, net=weight_files._fields(NET.clone(width="8"))), "cannot be built"),
    "a net of lists": (lambda p: changed(p, net={"condition": []}), "cannot be built"),
    "many conditions": (lambda p: changed(p, conditions=10**9), "its conditions is 1000000000; expected 0 to 100,000"),
    "no steps": (lambda p: changed(p, steps=0), "its steps is 0; expected 1 to 1,000,000"),
    "no number": (lambda p: changed(p, t_max=float("nan")), "its t_max is nan; expected 0 to 1"),
    "names that are numbers": (lambda p: changed(p, names=[1, 2, 3]), "names [1, 2, 3]; expected 3 of text"),
    "names of others": (lambda p: changed(p, names=["cat"]), "names ['cat']; expected 3 of text"),
    "nested": (
        lambda p: tensors.write_safetensors(p, {"a": np.zeros(2)}, {weight_files.KEY: "[" * 10**6}),
        "not readable",
    ),
    "unknown schedule": (lambda p: changed(p, schedule="cos"), "unknown schedule 'cos'"),
    "unknown field": (lambda p: changed(p, net={"widht": 3}), "widht"),
    "other network": (
        lambda p: changed(p, net=weight_files._fields(NET.clone(width=9))),
        "params/Dense_2/kernel has shape (8, 8), its network (8, 9)",
    ),
    "NaN": (lambda p: with_array(p, BIAS, spoil), f"{BIAS} holds NaN or infinity"),
    "integers": (lambda p: with_array(p, BIAS, lambda a: a.astype(np.int32)), f"{BIAS} is int32"),
    "not there": (lambda p: p.unlink(), "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_is_one_line(name, path, capsys):
    harm, words = BAD[name]
    harm(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        weight_files.read(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert weight_files.main(["list", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_params_with_nan_are_not_written(tmp_path):
    broken = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), weight())
    with pytest.raises(ValueError, match="NaN"):
        weight_files.write(tmp_path / "w.safetensors", broken, **SAID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        weights.constant(1.0),
        lambda *, t, s, cond: t,
        weights.learned(NET.clone(condition="features"), {}, schedules.cosine()),
    ],
)
def test_only_learned_weights_have_a_file(tmp_path, other):
    words = "only weights made by guidance.weights.learned|only together with the conditions"
    with pytest.raises(ValueError, match=words):
        weight_files.write(tmp_path / "w.safetensors", other, **SAID)


@pytest.mark.parametrize(
    "schedule, conditions, null, words",
    [
        ("cosine", 3, 3, None),
        ("edm", 3, 3, "schedule cosine, the model edm"),
        ("cosine", 4, 4, "3 conditions and null label 3, the model 4 and 4"),
        ("cosine", 3, 0, "the model 3 and 0"),
    ],
)
def test_a_weight_fits_its_own_model_only(path, schedule, conditions, null, words):
    about = weight_files.read_about(path)
    arguments = path, about, schedules.by_name(schedule), jnp.arange(conditions), null
    if words is None:
        weight_files.check_fits(*arguments)
        return
    with pytest.raises(ValueError, match="was learned for another model") as error:
        weight_files.check_fits(*arguments)
    assert words in str(error.value)


def test_a_weight_without_conditions_fits_any_number_of_them(tmp_path):
    path = tmp_path / "w.safetensors"
    about = weight_files.write(path, weight(NET.clone(condition="none", num_classes=0)), **SAID)
    weight_files.check_fits(path, about, schedules.cosine(), jnp.arange(1000), 1000)


def test_curves_are_the_weight_on_the_steps_that_it_was_learned_through(path):
    found, about = weight_files.read(path)
    t, s, omega = weight_files.curves(found, about)
    np.testing.assert_allclose([t, s], [[1, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0]])
    grid = jnp.asarray([1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(omega, weights.tabulated(found, grid, jnp.arange(3)), rtol=1e-5, atol=1e-6)


def test_a_folder_without_weights_is_said(tmp_path, capsys):
    for name in (tmp_path, tmp_path / ("x" * 300)):
        assert weight_files.main(["list", str(name)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith(f"error: {name} ") and said.err.count("\n") == 1


def test_list_has_a_line_for_each_file_of_a_folder(path, capsys):
    weight_files.write(path.with_name("any.safetensors"), weight(), **(SAID | {"objective": "l2", "steps": None}))
    assert weight_files.main(["list", str(path.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "l2, any steps, cosine, 3 conditions" in lines[0] and "learned on a test" in lines[0]
    assert "rollout@4, 4 steps" in lines[1]


def test_plot_draws_a_picture_of_any_weight(path, capsys):
    target = path.with_name("omega.png")
    assert weight_files.main(["plot", str(path), str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG") and str(target) in capsys.readouterr().out
    lines = target.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "line,t,s,omega" and len(lines) == 1 + 3 * 4 and lines[4].startswith("class 0,0.25,0,")
    assert weight_files.main(["plot", str(path.with_name("no.safetensors")), str(target)]) == 2
