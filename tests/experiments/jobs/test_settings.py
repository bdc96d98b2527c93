"""The large settings: what lets them learn from imported networks and more data than fit, and their configs."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import problems
from experiments.config import ConfigError, flat
from experiments.data import latents
from experiments.fid import measure as fid
from experiments.fid import networks
from experiments.fid.images import open_images
from experiments.fid.references import read_reference
from experiments.files import tensors, weight_files
from experiments.jobs import learn, samplers, selection
from experiments.main import load, main
from experiments.problems import interface
from experiments.problems.images import inception, judge, labelled
from experiments.runtime import results
from guidance.learning import training
from guidance.nets import vae
from guidance.nets.unet import unet
from tests.conftest import REPOSITORY
from tests.experiments.claims import claim
from tests.experiments.sampled import held, refused

CONFIGS = REPOSITORY / "configs"
LATENTS = str(CONFIGS / "imagenet256_latents.py")
SMOKES = [f"{CONFIGS / name}.py:smoke" for name in ("imagenet64", "celeba64", "imagenet256_latents")]
MIXTURE = f"{CONFIGS / 'mixture.py'}:attenuated"
TINY = {"eval.samples": "40", "eval.steps": "4", "seeds": "1", "learn.width": "8", "learn.depth": "1",
        "learn.batch": "8", "learn.rollout_batch": "2", "learn.rollout_real": "4"}  # fmt: skip
TEXT = {"problem.weights": "random", "problem.vae": "random", "problem.latents": "synthetic"}


# ---- configs


@pytest.mark.parametrize("source", SMOKES)
def test_a_setting_parses_and_its_smoke_keeps_the_shapes(source):
    config = load(source)
    assert config.learn.select_every and config.eval.batch and config.job == "all"
    full = {"problem.instrument": "random", "problem.reference": ""} | (TEXT if "latents" in source else {})
    large = load(source.removesuffix(":smoke"), full)
    assert getattr(large.problem, "size", 0) == getattr(config.problem, "size", 0)
    paper = large.learn
    assert (paper.batch, paper.particles, paper.beta, paper.lambda_, paper.churn) == (256, 4, 1.75, 1.0, 1.0)
    assert (paper.iterations, paper.select_samples, large.eval.sampler) == (100_000, 2048, "ddim")
    assert (large.eval.samples, large.eval.steps) == (50_000, (100,))


def test_the_large_unet_is_adms_with_a_null_class():
    for name in ("imagenet64", "celeba64"):
        config = load(f"{CONFIGS / name}.py", {"problem.instrument": "random", "problem.reference": ""})
        ours = labelled.NETWORKS["adm"](config.base, 1000).net
        how = {"null": True, "learn_sigma": False, "dtype": jnp.bfloat16, "residual": jnp.float32, "remat": True}
        assert ours == unet("imagenet64", **how)


def test_both_networks_have_a_preset():
    dit, sit = (flat(load(f"{LATENTS}:{name}", {"problem.instrument": "random", "problem.reference": ""} | TEXT))
                for name in ("dit_xl", "sit_xl"))  # fmt: skip
    assert {name for name in dit if dit[name] != sit[name]} == {"problem.network"}


@pytest.mark.parametrize("source", SMOKES)
def test_a_missing_file_is_one_line(source, tmp_path, capsys):
    fields = {"problem.instrument": "no.safetensors"} if "latents" not in source else {"problem.latents": "nowhere"}
    arguments = [
        f"--config={source}",
        f"--workdir={tmp_path / 'x'}",
        *(f"--config.{k}={v}" for k, v in fields.items()),
    ]
    assert next(iter(fields)) in refused(arguments, capsys)


def test_a_younger_field_had_its_default_in_an_older_folder(tmp_path):
    os.close(claim(tmp_path, load(MIXTURE)))
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["learn"]["select_every"], stored["eval"]["batch"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="learn.select_every = 5 here"):
        claim(tmp_path, load(MIXTURE, {"learn.select_every": "5"}))
    os.close(claim(tmp_path, load(MIXTURE)))


# ---- samples


@pytest.mark.parametrize("conditions, samples, shown, each", [(4, 40, 4, 10), (10, 47, 10, 4), (1000, 64, 64, 1)])
def test_samples_are_dealt_out_evenly(conditions, samples, shown, each):
    found, n = interface.shares(jnp.arange(conditions), samples)
    assert (len(found), n) == (shown, each)
    gaps = np.diff(np.asarray(found))
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1 and found[0] == 0


@pytest.mark.key_reuse  # the same noise, cut in other batches
def test_a_sample_follows_from_its_number_whatever_the_batch():
    table = jnp.broadcast_to(jnp.asarray([0.7, 0.0, 0.7, 0.0])[:, None], (4, 4))
    found = {}
    for batch in (0, 7, 40):
        config = load(MIXTURE, TINY | {"eval.batch": str(batch), "eval.sampler": "churned_ddim(0.5)"})
        found[batch] = samplers.sampler(problems.build(config), config, 4)((), table, jax.random.key(0))
    for x, nfe in found.values():
        assert x.shape == (4, 10, 2) and nfe == 6
        np.testing.assert_allclose(x, found[0][0], rtol=1e-5, atol=1e-6)
    config = load(MIXTURE, TINY | {"eval.samples": "3"})
    few, _ = samplers.sampler(problems.build(config), config, 4)((), table, jax.random.key(0))
    assert few.shape == (3, 1, 2)


@pytest.mark.key_reuse  # the same noise for all
def test_any_solver_evaluates_and_counts_as_it_does():
    """Two branches: once a step for DDIM, twice but on the last for Heun; each solver ends elsewhere."""
    table, ends = jnp.full((4, 4), 0.7), {}
    for text, nfe in (("ddim", 8), ("churned_ddim(0)", 8), ("heun", 14), ("dpmpp_2m", 8), ("unipc(order=3)", 8)):
        config = load(MIXTURE, TINY | {"eval.sampler": text})
        ends[text], counted = samplers.sampler(problems.build(config), config, 4)((), table, jax.random.key(0))
        assert counted == nfe, text
    np.testing.assert_allclose(ends.pop("churned_ddim(0)"), ends["ddim"], atol=1e-5)
    found = list(map(np.asarray, ends.values()))
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.key_reuse  # the same key for both
def test_rollouts_go_through_the_solver_of_the_evaluation():
    """The loss of a rollout under Heun is that of Heun's own samples: another one than DDIM's."""
    losses = []
    for text in ("ddim", "heun"):
        config = load(MIXTURE, TINY | {"eval.sampler": text, "eval.steps": "2", "learn.objectives": "rollout"})
        problem = problems.build(config)
        [task] = learn.tasks(problem, config)
        net = learn.network(problem, config)
        zero = jnp.zeros(1)
        params = net.init(jax.random.key(1), log_snr_t=zero, log_snr_s=zero, cond=jnp.zeros(1, jnp.int32))
        losses.append(float(jax.jit(lambda p, t=task: t.loss(p, jax.random.key(2), (), ()))(params)))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.key_reuse  # each sample folds its number in
def test_evaluations_of_uneven_batches_are_a_mean_over_samples():
    """Eight samples in batches of six: class 0 .. 2 guided on one step, class 3 never, and alone in its batch."""
    table = jnp.zeros((4, 4)).at[0, :3].set(1.0)
    config = load(MIXTURE, TINY | {"eval.batch": "6", "eval.samples": "8"})
    _, nfe = samplers.sampler(problems.build(config), config, 4)((), table, jax.random.key(0))
    assert nfe == 4 + 6 / 8


# ---- rollouts over some of the conditions


def test_a_subset_is_drawn_uniformly():
    keys = jax.random.split(jax.random.key(0), 4000)
    subsets = np.asarray(jax.vmap(lambda key: training.drawn(key, jnp.arange(7), 3))(keys))
    assert (np.diff(subsets, axis=1) > 0).all(), "distinct, in order"
    shares = np.bincount(subsets.reshape(-1), minlength=7) / 4000
    np.testing.assert_allclose(shares, 3 / 7, atol=5 * np.sqrt(3 / 7 * 4 / 7 / 4000))
    means = subsets.mean(1)
    assert abs(means.mean() - 3) < 5 * means.std() / np.sqrt(4000), "an unbiased mean over the conditions"


def _rollout_loss(count):
    config = load(MIXTURE, TINY | {"learn.rollout_conditions": str(count), "learn.objectives": "rollout"})
    problem = problems.build(config)
    [task] = learn.tasks(problem, config)
    net = learn.network(problem, config)
    params = net.init(
        jax.random.key(1), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=problem.model.conditions[:1]
    )
    params = jax.tree.map(lambda a: a + 0.1, params)  # a head of zeros hands no gradient on
    return jax.jit(jax.value_and_grad(lambda params, key: task.loss(params, key, (), problem.data.arrays))), params


def test_all_conditions_are_all_whether_drawn_or_not():
    (every, params), (four, _), (two, _) = map(_rollout_loss, (0, 4, 2))
    key = jax.random.key(3)
    jax.tree.map(np.testing.assert_array_equal, every(params, key), four(params, jax.random.key(3)))
    loss, gradient = two(params, jax.random.key(3))
    assert np.isfinite(loss) and all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
    table = gradient["params"]["Embed_0"]["embedding"]
    assert int((jnp.abs(table).sum(-1) > 0).sum()) == 2, "the others are not asked"


# ---- selection


def test_checkpoints_that_are_kept():
    assert selection.marks(0, 10) == []
    assert (
        selection.marks(4, 10) == [4, 8, 10] and selection.marks(5, 10) == [5, 10] and selection.marks(20, 10) == [10]
    )


def _learning(workdir, **fields):
    overrides = TINY | {"learn.objectives": "self_consistency", "learn.iterations": "9", "job": "learn"} | fields
    return main([f"--config={MIXTURE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in overrides.items())])


@pytest.mark.key_reuse  # every checkpoint meets the same noise
def test_the_best_checkpoint_is_what_is_left(tmp_path, capsys):
    """Scores follow from the samples; another score in the record makes another weight the best."""
    selecting = {"learn.select_every": "4", "learn.select_samples": "12"}
    assert _learning(tmp_path / "plain") == 0
    assert not (tmp_path / "plain/selection.jsonl").exists()
    assert _learning(tmp_path / "run", **selecting) == 0
    assert "of 9 has the lowest energy_distance" in capsys.readouterr().out
    path, file = tmp_path / "run/selection.jsonl", "weights/self_consistency_seed_0.safetensors"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["update"] for entry in entries] == [4, 8, 9] and {entry["samples"] for entry in entries} == {12}

    def scored(lowest):
        for entry in entries:
            entry["score"] = float(entry["update"] != lowest)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        assert _learning(tmp_path / "run", **selecting) == 0
        return tensors.read_safetensors(tmp_path / "run" / file)

    last, first = scored(9), scored(4)
    alone = tensors.read_safetensors(tmp_path / "plain" / file)
    for name, array in alone.items():
        np.testing.assert_array_equal(last[name], array)
    assert any((first[name] != last[name]).any() for name in first)
    assert weight_files.read(tmp_path / "run" / file)[1].training["learn"]["select_every"] == 4
    assert "has the lowest" not in capsys.readouterr().out, "nothing is scored twice"


def test_selection_and_evaluation_see_other_noise():
    pairs = [jax.random.key_data(jnp.stack(samplers.keys(0, purpose))) for purpose in (3, selection.PURPOSE)]
    assert len(np.unique(np.concatenate(pairs), axis=0)) == 4


# ---- the instrument


def test_it_is_the_fid_of_the_command(tmp_path):
    """The same pixels as files, through `experiments.fid`; against itself every sample scores 0."""
    rng = np.random.default_rng(0)
    real, fake = rng.random((80, 8, 8, 3)).astype(np.float32), rng.random((5, 12, 8, 8, 3)).astype(np.float32) ** 2
    config = load(SMOKES[0]).problem
    to_images = jax.tree_util.Partial(jnp.asarray)
    instrument = inception.load(config, inception.as_images("held", real, to_images))
    values = inception.measure(instrument, to_images, fake, True)
    for name, array in (("real", real), ("fake", fake.reshape(-1, 8, 8, 3))):
        np.savez(tmp_path / f"{name}.npz", arr_0=np.asarray(judge.to_pixels(array)))
    by_command = fid.calculate(
        networks.build("random", None, None), open_images(tmp_path / "fake.npz"),
        read_reference(tmp_path / "real.npz"), ("fid", "kid", "is", "prdc"), 7, 5, False,
    )["metrics"]  # fmt: skip
    assert values["fid"] == pytest.approx(by_command["fid"], rel=1e-5)
    assert values["kid"] == pytest.approx(by_command["kid"], rel=1e-4)
    assert values["inception_score"] == pytest.approx(by_command["is"], rel=1e-6)
    assert values["recall"] == pytest.approx(by_command["recall"]) and values["fid"] > 0.1
    assert abs(inception.measure(instrument, to_images, real[None], False)["fid"]) < 1e-5
    assert inception.measure(instrument, to_images, fake * np.nan, False)["fid"] == float("inf")


def test_a_reference_of_another_network_is_one_line(tmp_path):
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(5), sigma=np.eye(5))
    config = load(LATENTS + ":smoke", {"problem.reference": str(path)})
    with pytest.raises(ConfigError, match="has 5 features a row, the network 16"):
        problems.build(config)
    with pytest.raises(ConfigError, match="problem.instrument"):
        load(LATENTS + ":smoke", {"problem.instrument": "classifier"})
    np.savez(path, mu=np.zeros(16), sigma=np.eye(16))
    problem = problems.build(config)
    assert problem.instrument.tuned == ("fid",) and problem.name.endswith("FID of 20 samples")
    measured = problem.instrument.floor(jax.random.key(0), 4, True)
    assert "fid" in measured and "kid" not in measured, "a reference without images"


# ---- latents


def _written(folder, count=20, label=lambda i: i % 10, spoil=lambda a: a, **about):
    """A folder as job `encode` leaves it for a network of 2 x 2 latents; the mean of image i is i, or -i mirrored."""
    pytest.importorskip("array_record", reason="needs array_record: pip install '.[data]'")
    facts = {"source": "none", "autoencoder": "random", "precision": "float32", "count": count, "shard": count,
             "views": 2, "shape": (2, 2, 4), "classes": 10} | about  # fmt: skip
    facts = latents.About(**facts)
    means = np.arange(count)[:, None, None, None, None, None] * np.array([1, -1])[None, :, None, None, None, None]
    laws = np.concatenate([means, np.full_like(means, 1)], axis=2) * np.ones((1, 1, 1, *facts.shape))
    folder.mkdir()
    latents.describe(folder, facts)
    latents.write_shard(latents.shard_path(folder, facts, 0), spoil(laws), [label(i) for i in range(count)])
    return {"problem.latents": str(folder), "problem.side": "2"}


def test_latents_are_drawn_from_both_views_of_the_right_images(tmp_path):
    problem = problems.build(load(LATENTS + ":smoke", _written(tmp_path / "latents")))
    z, labels = jax.jit(problem.data.draw, static_argnums=2)(jax.random.key(0), problem.data.arrays, 4000)
    z = np.asarray(z).reshape(4000, 16) / vae.SCALE
    image = np.rint(np.abs(z.mean(1))).astype(int)
    near = image % 10 == np.asarray(labels)
    # the mean of 16 normal numbers is off by 1/4: it rounds to a neighbour's with probability 2 Phi(-2) = 0.0455
    assert abs(1 - near.mean() - 0.0455) < 5 * np.sqrt(0.0455 / 4000) + 0.01
    assert abs(z.std(axis=1, ddof=1).mean() - 0.983) < 5 * 0.18 / np.sqrt(4000)  # c4(16) of 16 standard normals
    far = image > 3
    assert abs((z.mean(1) > 0)[far].mean() - 0.5) < 5 * 0.5 / np.sqrt(far.sum())
    each = problem.data.real(jax.random.key(1), problem.data.arrays, 50, jnp.asarray([7, 3]))
    assert each.shape == (2, 50, 2, 2, 4)
    third = np.rint(np.abs(np.asarray(each[1]).reshape(50, 16).mean(1) / vae.SCALE))
    assert np.isin(third, [2, 3, 4, 12, 13, 14]).all()


@pytest.mark.parametrize(
    "change, words",
    {
        "autoencoder": ({"autoencoder": "another"}, "latents of another autoencoder than problem.vae"),
        "shape": ({"shape": (4, 4, 4)}, r"latents of shape \(4, 4, 4\), the network's have \(2, 2, 4\)"),
        "unlabelled": ({"classes": None}, "latents without labels"),
        "NaN": ({"spoil": lambda a: a * np.where(np.arange(20) == 6, np.nan, 1)[:, None, None, None, None, None]},
                "the latents of image 6 are not finite"),
        "too large": ({"spoil": lambda a: a * 1e5}, "the latents of image 0 are not finite"),
        "label": ({"label": lambda i: i}, "image 10 has label 10; the network's are 0 to 9"),
        "empty class": ({"label": lambda i: i % 9}, "class 9 has no image"),
    }.values(),
)  # fmt: skip
def test_latents_of_something_else_are_one_line(tmp_path, change, words):
    config = load(LATENTS + ":smoke", _written(tmp_path / "latents", **change))
    with pytest.raises(ConfigError, match=words) as error:
        problems.build(config)
    assert "\n" not in str(error.value) and "problem.latents" in str(error.value)


def test_a_shard_that_is_gone_is_one_line_and_sampling_needs_none(tmp_path, capsys):
    fields = _written(tmp_path / "latents")
    next((tmp_path / "latents").glob("*.array_record")).unlink()
    arguments = [f"--config={LATENTS}:smoke", *(f"--config.{k}={v}" for k, v in fields.items())]
    assert "1 of 1 files are missing" in refused([*arguments, f"--workdir={tmp_path / 'a'}"], capsys)
    sampling = {"job": "sample", "sample.steps": "2", "sample.seeds": "0-3", "problem.latents": ""}
    flags = [f"--config.{k}={v}" for k, v in sampling.items()]
    assert main([*arguments, *flags, f"--workdir={tmp_path / 'b'}"]) == 0
    assert held(tmp_path / "b")["arr_0"].shape == (4, 16, 16, 3)


# ---- the chains


@functools.cache
def _problem(source):
    return problems.build(load(source))


@pytest.mark.parametrize("source", SMOKES)
def test_a_setting_is_built(source):
    problem = _problem(source)
    x0, cond = problem.data.draw(jax.random.key(0), problem.data.arrays, 3)
    assert x0.shape == (3, *problem.model.shape) and cond.shape == (3,) and len(problem.model.conditions) == 10
    assert problem.model.shape == ((32, 32, 4) if "latents" in source else (64, 64, 3))
    pictures = jax.eval_shape(problem.model.to_images, jax.ShapeDtypeStruct((2, *problem.model.shape), jnp.float32))
    assert pictures.shape == ((2, 256, 256, 3) if "latents" in source else (2, 64, 64, 3))
    if problem.model.network:
        params = jax.eval_shape(problem.model.network.init, jax.random.key(0))
        out = jax.eval_shape(problem.model.network.apply, params, x0, jnp.ones(3), cond)
        assert out.shape == x0.shape


@pytest.mark.slow
@pytest.mark.key_reuse  # every weight meets the same noise
def test_the_whole_chain_on_latents(tmp_path):
    """On small latents; that the setting keeps the published shapes is `test_a_setting_is_built`'s."""
    fewer = ["--config.eval.samples=20", "--config.eval.batch=5", "--config.problem.side=4"]
    assert main([f"--config={SMOKES[2]}", f"--workdir={tmp_path}", *fewer]) == 0
    rows = results.read(tmp_path / "results.json")
    assert {"unguided", "best constant", "best interval", "rollout@3", "self_consistency"} <= {r.method for r in rows}
    assert {row.metric for row in rows} >= {"fid", "inception_score", "kid", "recall"}
    assert all("FID of 20 samples" in row.problem for row in rows)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {f"{name}.png" for name in ("omega", "omega_map", "samples", "sweep", "quality_nfe", "selection")}
    assert "fid of 20 samples" in (tmp_path / "report.html").read_text()
