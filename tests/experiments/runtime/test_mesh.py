"""Devices and arrays on them: two virtual devices in this process; several processes are in test_pods.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from experiments import data, jobs, problems
from experiments.config import ConfigError
from experiments.fid import measure, networks
from experiments.jobs import learn, samplers, train
from experiments.main import load
from experiments.problems.images import inception
from experiments.runtime import checkpoints, loop, mesh
from guidance.learning import update
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "configs/mixture.py")


@pytest.fixture
def layout(monkeypatch):
    """`layout(...)` is `mesh.use(...)` until the end of the test."""
    monkeypatch.setattr(mesh, "_current", None)
    return mesh.use


@pytest.fixture
def two(layout):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    layout(data=2, fsdp=True)
    return mesh.current().mesh


def test_a_cpu_counts_as_one_device_unless_asked(layout):
    if jax.default_backend() == "cpu":
        assert mesh.make().size == 1
    tree = {"a": jnp.arange(4.0)}
    layout(data=1)
    assert mesh.local(tree) is tree and mesh.spread(tree) is tree
    laid = mesh.shard(tree)
    assert laid["a"].committed and not tree["a"].committed
    np.testing.assert_array_equal(laid["a"], tree["a"])


@pytest.mark.parametrize("asked", [{"data": 999}, {"model": 999}, {"data": 3, "model": 999}])
def test_devices_that_are_not_there_are_one_line(layout, asked):
    with pytest.raises(ConfigError, match=r"--mesh=data:\d+,model:\d+ wants \d+ devices: there are \d+"):
        layout(**asked)


def test_what_is_laid_out_comes_back(two):
    tree = {"w": jnp.arange(2.0**16).reshape(256, 256), "b": jnp.arange(3), "n": np.float32(2)}
    laid = mesh.shard(tree)
    assert [shard.data.shape for shard in laid["w"].addressable_shards] == [(128, 256)] * 2
    assert [shard.data.shape for shard in laid["b"].addressable_shards] == [(3,)] * 2
    assert mesh.shard(laid)["w"] is laid["w"]
    back = mesh.local(laid)
    for name, leaf in tree.items():
        np.testing.assert_array_equal(back[name], leaf)
        assert back[name].dtype == leaf.dtype and len(back[name].devices()) == 1


def test_cut_weights_stay_cut_and_learn_the_same(two):
    """After updates of Adam every matrix still lies in halves, and the weights agree with one device's to 1e-4.

    Adam divides by the size of a gradient: where that is near zero, rounding moves an update by more than itself.
    """
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        x = mesh.spread(jax.random.normal(key, (16, 256)))
        return jnp.mean((jnp.tanh(x @ params["w"]) - x) ** 2)

    params = {"w": jax.random.normal(jax.random.key(0), (256, 256)) / 16}

    def learn():
        step = jax.jit(lambda state, i: update(jax.random.fold_in(jax.random.key(1), i), optimizer, loss, *state)[:2])
        state = mesh.shard((params, optimizer.init(params)))
        for i in range(5):
            state = jax.block_until_ready(step(state, i))
        return state

    cut = learn()
    for leaf in jax.tree.leaves(cut):
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 2 if leaf.ndim else 1}
    mesh.use(data=1)
    np.testing.assert_allclose(cut[0]["w"], learn()[0]["w"], atol=1e-4)


@pytest.fixture
def programs():
    """The names of the programs that XLA has compiled since."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **kw: (
            names.append(fun_name) if event.endswith("backend_compile_duration") else None
        )
    )
    yield names
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("devices", [1, 2])
def test_an_update_is_one_program_wherever_its_arguments_lay(two, devices, programs, tmp_path):
    """Fresh params lie nowhere in particular, those of a trained denoiser and the results of an update on devices."""
    mesh.use(data=devices, fsdp=True)
    where = jax.devices()[0] if devices == 1 else jax.NamedSharding(two, P())
    base = jax.device_put({"w": jnp.ones((256, 256))}, where)

    def update(state, i, base):
        return {"w": state["w"] + base["w"]}, {"loss": jnp.sum(mesh.spread(state["w"]))}

    one_update = loop.compiled(update)
    fitted = loop.fit(
        "t", tmp_path / "t", tmp_path / "m", {"w": jnp.zeros((256, 256))}, lambda c, i: one_update(c, i, base), 4, 9
    )
    assert float(fitted["w"][0, 0]) == 4
    assert programs.count("jit(guarded)") == 1


@pytest.mark.key_reuse  # every weight meets the same noise
def test_a_sampler_is_one_program_for_learned_weights_and_others(two, programs):
    mesh.use(data=1)
    config = load(CONFIG, {"eval.samples": "8"})
    problem = problems.build(config)
    sample, table = samplers.sampler(problem, config, 2), jnp.ones((2, 4))
    base = mesh.shard(problem.model.network.init(jax.random.key(0)))
    first, _ = sample(base, table, jax.random.key(1))
    second, _ = sample(base, jax.device_put(table, jax.devices()[0]), jax.random.key(1))
    np.testing.assert_array_equal(first, second)
    assert programs.count("jit(run)") == 1


def test_weights_with_rules_are_cut_over_the_model_axis(two):
    """Their optimiser's state as well; others stay whole."""
    mesh.use(data=1, model=2)
    params = {"block_0": {"up": {"kernel": jnp.ones((4, 6))}, "norm": {"scale": jnp.ones(4)}}}
    laid = mesh.shard((params, optax.adam(1e-2).init(params)))
    cut = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(laid) if leaf.ndim == 2}
    whole = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(laid) if leaf.ndim < 2}
    assert (cut, whole) == ({(4, 3)}, {(4,), ()})


def test_checkpoints_change_meshes(two, tmp_path):
    """Written in halves and read whole, and the other way round: the same bits."""
    tree = {"w": jax.random.normal(jax.random.key(0), (256, 256)), "b": jnp.arange(3)}
    laid = mesh.shard(tree)
    checkpoints.save(tmp_path / "cut", 1, laid)
    checkpoints.save(tmp_path / "whole", 1, tree)
    for folder, like in (("cut", tree), ("whole", laid)):
        step, back = checkpoints.restore_latest(tmp_path / folder, like)
        assert step == 1
        for name, leaf in tree.items():
            np.testing.assert_array_equal(back[name], leaf)
            assert back[name].sharding.is_equivalent_to(like[name].sharding, leaf.ndim)


def test_this_process_feeds_the_whole_batch_and_places_it(two):
    assert mesh.part(two) == (0, 1)
    source = data.from_arrays("noise", np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8))
    batch = data.Loader(source, 6, part=mesh.part(two)).at(2) | {"caption": ["a"] * 6}
    placed = mesh.place(batch, 6)
    assert placed["caption"] == ["a"] * 6
    assert [shard.data.shape for shard in placed["image"].addressable_shards] == [(3, 4, 4, 3)] * 2
    np.testing.assert_array_equal(placed["image"], batch["image"])
    assert mesh.share(6) == mesh.part(two) and mesh.share(5) == (0, 1)
    odd = mesh.place({"image": batch["image"][:5]}, 5)["image"]
    assert [shard.data.shape for shard in odd.addressable_shards] == [(5, 4, 4, 3)] * 2


def test_a_batch_need_not_divide(two):
    out = jax.jit(lambda x: mesh.spread({"a": x * 2, "b": x[:1]}))(jnp.arange(5.0))
    np.testing.assert_array_equal(out["a"], 2 * np.arange(5))
    np.testing.assert_array_equal(out["b"], [0])


def test_networks_see_batches_that_are_cut(two):
    seen = []

    def denoise(x, t, cond):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return x * t[:, None] + cond[:, None]

    x, t, cond = jnp.ones((8, 3)), jnp.arange(8.0), jnp.arange(8)
    out = jax.jit(mesh.spreading(denoise))(x, t, cond)
    np.testing.assert_array_equal(out, denoise(x, t, cond))
    assert seen[0].is_equivalent_to(jax.NamedSharding(two, P("data")), 2)


def test_a_batch_that_devices_do_not_divide_is_filled_up_for_the_network_and_cut_again(two):
    """Each device sees half of the four rows that three become; the value and the gradient are those of one device."""
    seen = []

    def denoise(gain, x, t, cond):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        assert x.shape[0] == 4
        return gain * x * t[:, None] + cond[:, None]

    x, t, cond = jnp.arange(6.0).reshape(3, 2), jnp.arange(3.0), jnp.arange(3)
    spread = mesh.spreading(jax.tree_util.Partial(denoise, jnp.float32(2)))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(spread(x, t, cond) ** 2)))(x)
    by_hand = 2 * np.asarray(x) * np.arange(3)[:, None] + np.arange(3)[:, None]
    np.testing.assert_allclose(value, np.sum(by_hand**2))
    np.testing.assert_allclose(gradient, 2 * by_hand * 2 * np.arange(3)[:, None])
    assert seen[0].is_equivalent_to(jax.NamedSharding(two, P("data")), 2)
    np.testing.assert_allclose(spread(x, t, cond), by_hand)  # not under jit, too


@pytest.mark.parametrize("devices", [1, 2])
def test_a_denoiser_on_the_mesh_is_a_pytree(two, devices):
    """Its leaves are the knobs: one compilation for all of them, and gradients with respect to them."""
    mesh.use(data=devices)
    traces = []

    def denoise(gain, x, t, cond):
        traces.append(x.shape)
        return gain * x

    @jax.jit
    def total(denoise, x):
        return jnp.sum(denoise(x, jnp.ones(4), jnp.zeros(4, int)))

    x = jnp.ones((4, 2))
    for gain in (1.0, 3.0):
        spread = mesh.spreading(jax.tree_util.Partial(denoise, jnp.float32(gain)))
        assert [float(leaf) for leaf in jax.tree.leaves(spread)] == [gain]
        assert total(spread, x) == 8 * gain
    assert len(traces) == 1
    assert jax.tree.leaves(jax.grad(total)(spread, x)) == [8]


@pytest.mark.key_reuse  # the same noise on one device and on two
def test_counts_that_devices_do_not_divide_give_the_samples_of_one_device(two):
    """Fifteen samples of five classes, all at a time and seven at a time."""
    odd = {
        "problem.classes": "5",
        "problem.error": "attenuated",
        "eval.samples": "15",
        "eval.sampler": "churned_ddim(0.5)",
    }
    table = jnp.linspace(0, 2, 10).reshape(2, 5)

    def drawn(batch):
        config = load(CONFIG, odd | {"eval.batch": batch})
        problem = jobs.in_data_parallel(problems.build(config))
        return samplers.sampler(problem, config, 2)((), table, jax.random.key(1))

    on_two = [drawn("0"), drawn("7")]
    mesh.use(data=1)
    for (x, nfe), (alone, alone_nfe) in zip(on_two, [drawn("0"), drawn("7")], strict=True):
        assert x.shape == (5, 3, 2) and nfe == alone_nfe == 4
        np.testing.assert_allclose(x, alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.key_reuse  # the same noise on one device and on two
def test_every_objective_is_the_same_on_batches_that_devices_do_not_divide(two):
    names = "self_consistency,l2,rollout,score_matching,marginal,per_condition"
    odd = {
        "problem.classes": "5", "problem.error": "attenuated", "learn.objectives": names, "learn.batch": "15",
        "learn.particles": "3", "learn.rollout_batch": "3", "learn.rollout_real": "5", "eval.steps": "2",
        "learn.width": "8", "learn.depth": "1", "learn.embedding": "4",
    }  # fmt: skip
    config = load(CONFIG, odd)

    def losses():
        problem = jobs.in_data_parallel(problems.build(config))
        net = learn.network(problem, config)
        params = net.init(
            jax.random.key(3), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=problem.model.conditions[:1]
        )
        tasks = learn.tasks(problem, config)
        return {
            task.name: float(jax.jit(task.loss)(params, jax.random.key(7), (), problem.data.arrays)) for task in tasks
        }

    on_two = losses()
    mesh.use(data=1)
    assert len(on_two) == 6 and on_two == pytest.approx(losses(), rel=1e-5)


@pytest.mark.slow
def test_training_on_two_devices_is_training_on_one(two, tmp_path):
    """The job that trains the base denoiser, on batches that they do not divide: weights equal to 1e-5 after 20
    updates."""
    config = load(CONFIG, {"seeds": "1", "base.steps": "20", "base.width": "16", "base.batch": "31"})

    def run(folder):
        folder.mkdir()
        return train.run(jobs.in_data_parallel(problems.build(config)), config, folder)[0]

    on_two = run(tmp_path / "two")
    assert all(len(leaf.devices()) == 2 for leaf in jax.tree.leaves(on_two))
    mesh.use(data=1)
    for a, b in zip(jax.tree.leaves(on_two), jax.tree.leaves(run(tmp_path / "one")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_decoder_and_feature_network_compute_a_part_on_each_device(layout, monkeypatch):
    """Seven samples at three a device: two blocks of 2 x 3, whose second is filled up; the features of one device."""
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    samples = np.random.default_rng(0).normal(size=(7, 8, 8, 3)).astype(np.float32)
    whole, parts = mesh.whole, []

    def spied(tree):
        parts.extend([shard.data.shape for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(tree))
        return whole(tree)

    def features(places):
        layout(data=places)
        network = networks.build("random", None, None)
        images = inception.as_images("samples", samples, mesh.shard(jax.tree_util.Partial(jax.nn.sigmoid)))
        return measure.survey(network, images, 3, stats=["features"], rows=["features"])

    alone = features(1)
    monkeypatch.setattr(mesh, "whole", spied)
    together = features(2)
    assert parts == 2 * [[(3, 8, 8, 3)] * 2, [(3, 16)] * 2, [(3, 10)] * 2]
    assert together.sha256 == alone.sha256
    np.testing.assert_allclose(together.rows["features"], alone.rows["features"], atol=1e-6)
