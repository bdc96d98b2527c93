"""Problems on labelled images from any source: what they are built from, and the chain on a set made here."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import data, problems
from experiments.config import ConfigError
from experiments.jobs import learn, samplers
from experiments.main import load, main
from experiments.problems.images import labelled
from experiments.runtime import results

CONFIG = "configs/fashion_mnist.py:smoke"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes that a classifier can tell: bright on the left, bright on the right; 12 x 12 pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 240)
    images = rng.integers(0, 80, (240, 12, 12, 1))
    images[labels == 0, :, :6] += 150
    images[labels == 1, :, 6:] += 150
    path = tmp_path_factory.mktemp("source") / "halves.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def _overrides(source, **more):
    common = {
        "problem.source": str(source),
        "problem.size": "12",
        "problem.images": "0",
        "base.width": "16",
        "base.patch": "4",
    }
    return common | {"problem.classifier_steps": "60", "base.depth": "1"} | more


@pytest.mark.parametrize("network", sorted(labelled.NETWORKS.keys() - {"adm"}))  # which takes no 12 x 12 pixels
def test_what_it_is_made_of(source, network, tmp_path):
    problem = problems.build(load(CONFIG, _overrides(source, **{"base.network": network})), tmp_path)
    model, drawn, instrument = problem.model, problem.data, problem.instrument
    assert model.shape == (12, 12, 1) and model.null == 2 and problem.name.startswith(f"halves.npz, {network}")
    x0, cond = drawn.draw(jax.random.key(0), drawn.arrays, 16)
    assert x0.shape == (16, 12, 12, 1) and float(x0.min()) >= -1 and float(x0.max()) <= 1 and cond.shape == (16,)
    right = np.asarray(x0)[:, :, 6:].mean((1, 2, 3)) > np.asarray(x0)[:, :, :6].mean((1, 2, 3))
    np.testing.assert_array_equal(right, np.asarray(cond) == 1)
    params = jax.jit(model.network.init)(jax.random.key(0))
    out = jax.jit(lambda params, *at: model.denoise(params)(*at))(params, x0, jnp.full(16, 0.5), cond)
    assert out.shape == x0.shape
    floor = instrument.floor(jax.random.key(1), 30, False)
    assert floor["class_agreement"] > 0.95
    noise = jax.random.normal(jax.random.key(2), (2, 30, 12, 12, 1))
    assert instrument.measure(jax.random.key(1), noise, False)["frechet_distance"] > 5 * floor["frechet_distance"]


@pytest.mark.key_reuse  # the same draws twice
def test_the_classifier_of_the_metrics_is_trained_once_for_a_folder(source, tmp_path):
    """Two commands on a folder measure with one classifier; another folder has its own."""
    config = load(CONFIG, _overrides(source, **{"base.network": "mlp"}))
    x = jax.random.uniform(jax.random.key(0), (5, 12, 12, 1))
    first = problems.build(config, tmp_path).instrument.features(x)
    with (tmp_path / "metrics.jsonl").open() as log:
        assert json.loads(log.readlines()[-1])["phase"] == "classifier of the metrics"
    before = (tmp_path / "metrics.jsonl").read_bytes()
    config.problem.classifier_fraction = 0.1  # would train another one
    np.testing.assert_array_equal(problems.build(config, tmp_path).instrument.features(x), first)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    (tmp_path / "other").mkdir()
    assert not np.allclose(problems.build(config, tmp_path / "other").instrument.features(x), first)


def test_what_does_not_fit_memory_is_fed_and_what_is_set_apart_is_not(tmp_path):
    """Every image has a level of its own, so that it can be told which ones come."""
    path, n = tmp_path / "levels.npz", 200
    np.savez(path, images=np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 12, 12, 1), np.uint8),
             labels=np.arange(n) % 2)  # fmt: skip
    config = load(CONFIG, _overrides(path, **{"problem.images": "80", "base.network": "mlp"}))
    problem = problems.build(config, tmp_path)
    at = problem.data.feed(20, (0, 1), 0)
    level = lambda x: np.rint((np.asarray(x)[:, 0, 0, 0] + 1) * 127.5).astype(int)  # noqa: E731
    seen = [level(at(i)[0]) for i in range(100)]
    np.testing.assert_array_equal(level(at(3)[0]), seen[3])
    x, labels = at(7)
    np.testing.assert_array_equal(labels, level(x) % 2)
    fed = set(np.concatenate(seen))
    apart = round(80 * (1 - config.problem.train_fraction))
    assert len(fed) == n - apart
    drawn = set(level(problem.data.draw(jax.random.key(0), problem.data.arrays, 2000)[0]))
    assert drawn <= fed and len(drawn) == 80 - apart


@pytest.mark.parametrize("network", ["dit", "unet"])
def test_a_bfloat16_network_answers_in_float32(source, network):
    base = load(CONFIG, _overrides(source, **{"base.precision": "bfloat16"})).base
    net, arguments = (
        labelled.NETWORKS[network](base, 2),
        (jnp.ones((2, 12, 12, 1)), jnp.full(2, 0.5), jnp.zeros(2, int)),
    )
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), *arguments)[0].dtype == jnp.float32


def test_only_labelled_sources_and_what_fits_the_network(source, tmp_path):
    unlabelled = tmp_path / "plain.npz"
    np.savez(unlabelled, images=np.zeros((9, 12, 12, 1), np.uint8))
    with pytest.raises(ValueError, match=f"^{unlabelled} has no labels$"):
        problems.build(load(CONFIG, _overrides(unlabelled)))
    for field, value in (("base.patch", "5"), ("base.heads", "3"), ("problem.train_fraction", "0.9")):
        with pytest.raises(ConfigError, match=field if "fraction" not in field else "classifier_fraction"):
            load(CONFIG, _overrides(source, **{field: value}))


def test_classes_keep_their_numbers_in_a_run(tmp_path):
    """And what a class lacks is said with its name, before anything is trained."""
    rng, run = np.random.default_rng(0), tmp_path / "run"
    run.mkdir()

    def put(name: str, count: int) -> None:
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
            picture.save(tmp_path / "set" / name / f"{i}.png")

    def built():
        config = load(CONFIG, _overrides(tmp_path / "set", **{"base.network": "mlp", "problem.split": "train"}))
        config.problem.classifier_steps = 2
        return problems.build(config, run)

    put("train/cat", 20)
    put("train/dog", 20)
    put("test/ant", 1)
    with pytest.raises(ValueError, match=rf"{tmp_path}/set: class 0 \(ant\) has no image to train on"):
        built()
    put("train/ant", 4)
    with pytest.raises(ValueError, match=r"class 0 \(ant\) has .* (held out|for the classifier|to train on)"):
        built()
    assert not (run / "classifier").exists()
    put("train/ant", 20)
    assert built().data.names == ("ant", "cat", "dog")
    assert json.loads((run / "classes.json").read_text()) == ["ant", "cat", "dog"]
    put("test/bee", 1)
    with pytest.raises(ValueError, match="3 classes there, 4 here; another folder is needed"):
        built()


def test_a_class_of_one_held_out_image_is_refused_at_once():
    """An energy distance takes two of each class; it was said after everything was trained."""
    settings = load(CONFIG, {"problem.train_fraction": "0.4", "problem.classifier_fraction": "0.4"}).problem

    def alternating(count: int) -> tuple[data.Labelled, np.ndarray]:
        """In every part labels 0 and 1 in turn, and the rows that are held out."""
        labels = np.zeros(count, np.int32)
        for rows in labelled._parts(count, settings):
            labels[rows] = np.arange(len(rows)) % 2
        return data.Labelled(np.zeros((count, 1)), labels), labelled._parts(count, settings)[2]

    images, held = alternating(40)
    labelled._check_enough(images, 2, settings)
    images.labels[held] = [0] * (len(held) - 1) + [1]
    with pytest.raises(ValueError, match="class 1 has 1 image held out; expected 2 or more"):
        labelled._check_enough(images, 2, settings)
    with pytest.raises(ValueError, match="^4 images are held out; expected more than 5$"):
        labelled._check_enough(alternating(20)[0], 2, settings)


@pytest.mark.slow
@pytest.mark.key_reuse  # every weight meets the same noise
def test_the_whole_chain(source, tmp_path, capsys):
    """On the network that compiles fastest, and without the objective that other chains learn by."""
    fields = _overrides(source, **{"base.network": "mlp", "learn.objectives": "rollout"})
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main([f"--config={CONFIG}", f"--workdir={tmp_path}", *flags]) == 0
    rows = results.read(tmp_path / "results.json")
    methods = {row.method: row for row in rows}
    assert {"unguided", "best constant", "best interval", "rollout@3", "rollout apg(cap=2.5)@3"} <= methods.keys()
    assert "rollout autoguided@3" in methods
    assert {"best autoguided", "best triangle", "best angle_domain", "best apg(cap=2.5)"} <= methods.keys()
    assert methods["unguided"].nfe == 3 and methods["unguided, 2 x steps"].nfe == methods["apg(cap=2.5)"].nfe == 6
    assert methods["autoguided"].nfe == 6
    assert len({(r.method, r.weight, r.steps, r.metric) for r in rows}) == len(rows), "every row once"
    assert (tmp_path / "report.html").exists() and list((tmp_path / "pictures").glob("*.png"))

    weight = tmp_path / "weights" / "rolloutautoguided@3_seed_0.safetensors"
    sampling = {"job": "sample", "sample.weight": weight, "sample.steps": 3, "sample.seeds": "0-9", "sample.weak": 10}
    flags += [f"--config.{name}={value}" for name, value in sampling.items()]
    command = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    assert main([*command, *flags]) == 0
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["nfe"]["total"] == 6
    assert main([*command, *flags[:-1]]) == 2
    assert "was learned inside autoguided; allowed: the updates of its weaker denoiser" in capsys.readouterr().err


@pytest.mark.key_reuse  # the same losses again
def test_rollouts_inside_autoguidance(source, tmp_path):
    """Away from itself is nowhere: with a weak denoiser equal to the strong one no omega changes anything. Away from
    one that does not see the condition is CFG."""
    config = load(CONFIG, _overrides(source, **{"base.network": "mlp", "learn.rules": "cfg,autoguided"}))
    problem = problems.build(config, tmp_path)
    model = problem.model

    def blind(params):
        return lambda x, t, cond: model.denoise(params)(x, t, jnp.full_like(cond, model.null))

    def denoise(base):
        return blind(base["blind"]) if "blind" in base else model.denoise(base)

    seeing = problem._replace(model=model._replace(denoise=denoise))
    cfg, autoguided = learn.tasks(seeing, config)[-2:]
    assert (cfg.rule, autoguided.rule, autoguided.start) == ("cfg", "autoguided", None)
    net = learn.network(problem, config)
    params = net.init(jax.random.key(2), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=model.conditions[:1])
    base = jax.jit(model.network.init)(jax.random.key(0))
    # heads of zeros answer the same to all conditions, and hand no gradient on
    params, base = jax.tree.map(lambda a: a + 0.1, (params, base))

    def slope(task, base):
        loss = functools.partial(task.loss, key=jax.random.key(3), base=base, data=problem.data.arrays)
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return value, sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient))

    alone, flat = slope(autoguided, samplers.Pair(base, base))
    assert flat < 1e-5
    away = slope(autoguided, samplers.Pair(base, {"blind": base}))
    assert abs(away[0] - alone) > 1e-3 and away[1] > 1e-3
    np.testing.assert_allclose(away, slope(cfg, base), rtol=1e-4)
