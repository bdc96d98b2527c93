"""The benchmarks run at their small sizes, and their arithmetic is that of the published table and of the compiler."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import dit_sampling, dits, hackable, learning_cost, memory, objectives, peak, throughput, timing


# Gflops of table 4 of arXiv 2212.09748, where a multiplication with its addition counts once
@pytest.mark.parametrize(
    "size, published",
    [("S/8", 0.36), ("S/4", 1.41), ("S/2", 6.06), ("B/2", 23.01), ("L/2", 80.71), ("XL/4", 29.05), ("XL/2", 118.64)],
)
def test_arithmetic_is_that_of_the_published_table(size, published):
    """To the rounding of the table, and the little that counters differ in (biases, the embedding of time)."""
    assert dits.product_flops(dits.network(size)) / 2e9 == pytest.approx(published, rel=2e-3, abs=0.005)


def test_arithmetic_is_what_the_compiler_counts():
    """Beside the products there are a hundred or so elementwise operations a number, of 24 times the width."""
    net = dits.network("S/2")
    inputs = jnp.ones((1, *dits.LATENT)), jnp.ones(1), jnp.ones(1, int)
    apply = jax.jit(lambda params, *rest: net.apply({"params": params}, *rest))
    counted = apply.lower(dits.shapes(net), *inputs).cost_analysis()["flops"]
    assert 1 < counted / dits.product_flops(net) < 1.03


def test_contenders_take_turns():
    order = []
    turns = timing.alternated({name: lambda name=name: order.append(name) or name for name in "ab"}, 2)
    assert order == ["a", "b"] * 3 and turns.first == {"a": "a", "b": "b"}
    assert all(each.shape == (2,) and (each > 0).all() for each in turns.seconds.values())
    assert math.isnan(turns.others) or turns.others >= 0


def test_another_library_is_compared_with_where_it_is_installed(capsys):
    """The same denoiser, grid and noise: samples agree. Where it is missing one line says how to get it."""
    try:
        hackable.main(["--batch", "64", "--steps", "4", "--repeats", "1"])
    except SystemExit as error:
        assert re.match(r"error: no module '\w+'; pip install hackable-diffusion needs Python 3.12", str(error))
        return
    assert float(re.search(r"differ by at most (\S+)", capsys.readouterr().out)[1]) < 1e-4


def test_share_of_the_peak(capsys):
    peak.main(["--small"])
    out = capsys.readouterr().out
    assert float(re.search(r"counted by the compiler: ([\d.]+)", out)[1]) > 1
    assert "% of the product's" in out


@pytest.mark.key_reuse  # every update of a benchmark gets the same key
def test_updates_are_timed_beside_their_forwards(capsys):
    net = dits.network("tiny")
    learning_cost.compare(objectives.dit_model(net, dits.random_params(net)), 2, 2, 4, ("segments",), 1)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith(" ms") and [line.split()[0].strip(",") for line in rest] == ["self-consistency", "rollout"]
    assert all(float(re.search(r"ratio ([\d.]+)", line)[1]) > 0 for line in rest)


def test_recomputing_a_rollout_saves_most_of_its_memory():
    """64 steps keep the activations of all of them, or of one and 16 states. How both grow:
    tests/learning/test_rollout.py."""
    net = dits.network("tiny")
    model = objectives.dit_model(net, dits.shapes(net))
    sizes = {remat: memory.measured(model, memory.Point(remat, 1, 2, 64)) for remat in ("none", "segments")}
    assert 2.5 * sizes["segments"].temporary < sizes["none"].temporary
    assert sizes["none"].arguments >= sum(4 * a.size for a in jax.tree.leaves(dits.shapes(net)))


def test_lines_vary_one_number():
    lines = memory.lines(1, 4, 4, (1, 4, 16))
    assert len(lines) == 2 + 3 * 3
    for line in lines:
        values = {name: {getattr(point, name) for point in line.points} for name in memory.Point._fields}
        assert [name for name, held in values.items() if len(held) > 1] == [line.varied]
        assert all(math.isqrt(point.steps) ** 2 == point.steps for point in line.points)


def test_exponent_of_a_power():
    assert memory.exponent([2, 32], [memory.Bytes(10, 1), memory.Bytes(640, 1)]) == pytest.approx(1.5)


def test_guided_sampling_is_timed(capsys, monkeypatch):
    monkeypatch.setattr(dit_sampling, "theirs", lambda *_: {})
    dit_sampling.main(["--size=tiny", "--batch=1", "--steps=2", "--repeats=1"])
    out = capsys.readouterr().out
    assert "ours, 1/2 of steps guided" in out and "1/4" not in out


def test_images_a_second(capsys, monkeypatch):
    monkeypatch.setattr(throughput, "_torch", lambda package: None)
    throughput.main(["vae", "--small"])
    assert float(re.search(r"ours +([\d.]+) images/s", capsys.readouterr().out)[1]) > 0


@pytest.mark.parametrize("name, package", [("vae", "diffusers"), ("inception", "pytorch_fid")])
def test_both_sides_of_the_throughput_agree(name, package, capsys):
    pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    pytest.importorskip(package, reason=f"needs {package}: pip install '.[parity]'")
    throughput.main([name, "--small"])
    assert float(re.search(r"largest difference (\S+)", capsys.readouterr().out)[1]) < 1e-4


def test_unknown_networks_are_refused(capsys):
    with pytest.raises(SystemExit):
        throughput.main(["lenet"])
    assert "known: vae, inception" in capsys.readouterr().err
