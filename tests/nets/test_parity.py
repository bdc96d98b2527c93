"""Our networks against the outputs of PyTorch's implementations, inner blocks included, and both layouts of DiT.

The numbers in golden/ are those of diffusers 0.42.1 and pytorch-fid 0.3.0 with torch 2.13 on a CPU
(python -m experiments.parity --write=..).
"""

import functools
import importlib.util
import pathlib

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments import parity
from experiments.files import tensors
from experiments.parity import __main__ as command
from guidance.nets import published_dit, vae
from guidance.nets.dit import DiT, dit_denoiser, sit_denoiser
from guidance.nets.embeddings import positions

GOLDEN = pathlib.Path(__file__).parent / "golden"


@functools.cache
def _case(name="dit") -> parity.Case:
    return parity.read(GOLDEN / f"{name}.npz")


@pytest.mark.parametrize("name", parity.NAMES)
def test_equals_the_stored_outputs(name):
    reference, case = parity.reference(name), _case(name)
    found = parity.errors(reference.ours(reference.small, case.weights, case.inputs), case.outputs)
    assert found.keys() == case.outputs.keys() and len(found) > 1
    for output, error in found.items():
        assert error < parity.TOLERANCE, output


@pytest.mark.parametrize("name", parity.NAMES)
def test_equals_a_live_run(name):
    """And the stored numbers are those of that run, but for the rounding of another version or machine."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    reference, stored = parity.reference(name), _case(name)
    pytest.importorskip(reference.package, reason=f"needs {reference.package}: pip install '.[parity]'")
    live = reference.theirs(reference.small)
    chex.assert_trees_all_equal(live.weights, stored.weights)
    chex.assert_trees_all_equal(live.inputs, stored.inputs)
    for other in (stored.outputs, reference.ours(reference.small, live.weights, live.inputs)):
        assert max(parity.errors(other, live.outputs).values()) < parity.TOLERANCE


def test_without_its_packages_the_command_is_one_line(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    absent = ("torch", "diffusers", "pytorch_fid")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    needed = "torch, diffusers, pytorch_fid"
    assert said.err == f"error: the references need {needed}: pip install 'learn-to-guide[parity]'\n"
    with pytest.raises(SystemExit):
        command.main([f"--write={tmp_path}/nowhere"])
    assert f"--write {tmp_path}/nowhere: no such folder" in capsys.readouterr().err


def test_outputs_of_other_names_or_shapes_are_no_parity():
    for other in ({"b": np.ones(2)}, {"a": np.ones(3)}):
        with pytest.raises(ValueError, match="name or shape"):
            parity.errors({"a": np.ones(2)}, other)
    assert parity.errors({"a": np.asarray([1.0, 4.0])}, {"a": np.asarray([1.0, 5.0])}) == {"a": 0.2}


# --- DiT's layouts

SMALL = parity.reference("dit").small
FIELDS = {name: SMALL[name] for name in ("width", "heads", "depth", "patch", "classes")}
NET = DiT(**FIELDS)
LIKE_DIFFUSERS = DiT(**FIELDS, freq_shift=1, mlp_norm_eps=1e-5)
CHANNELS, GRID = SMALL["channels"], SMALL["side"] // SMALL["patch"]


def _by_hand() -> dict[str, np.ndarray]:
    """The stored diffusers weights under the names of the authors' files."""
    theirs, ours = _case().weights, {"pos_embed": positions(GRID, GRID, NET.width)[None].astype(np.float32)}
    emb = "transformer_blocks.0.norm1.emb"
    for leaf in ("weight", "bias"):
        ours[f"x_embedder.proj.{leaf}"] = theirs[f"pos_embed.proj.{leaf}"]
        ours[f"t_embedder.mlp.0.{leaf}"] = theirs[f"{emb}.timestep_embedder.linear_1.{leaf}"]
        ours[f"t_embedder.mlp.2.{leaf}"] = theirs[f"{emb}.timestep_embedder.linear_2.{leaf}"]
        ours[f"final_layer.adaLN_modulation.1.{leaf}"] = theirs[f"proj_out_1.{leaf}"]
        ours[f"final_layer.linear.{leaf}"] = theirs[f"proj_out_2.{leaf}"]
        for i in range(NET.depth):
            at, to = f"transformer_blocks.{i}", f"blocks.{i}"
            ours[f"{to}.attn.qkv.{leaf}"] = np.concatenate([theirs[f"{at}.attn1.to_{one}.{leaf}"] for one in "qkv"])
            ours[f"{to}.attn.proj.{leaf}"] = theirs[f"{at}.attn1.to_out.0.{leaf}"]
            ours[f"{to}.mlp.fc1.{leaf}"] = theirs[f"{at}.ff.net.0.proj.{leaf}"]
            ours[f"{to}.mlp.fc2.{leaf}"] = theirs[f"{at}.ff.net.2.{leaf}"]
            ours[f"{to}.adaLN_modulation.1.{leaf}"] = theirs[f"{at}.norm1.linear.{leaf}"]
    ours["y_embedder.embedding_table.weight"] = theirs[f"{emb}.class_embedder.embedding_table.weight"]
    return ours


def _from_original(arrays, net=NET):
    return published_dit.from_original(net, arrays, grid=GRID, channels=CHANNELS)


def test_both_layouts_give_the_same_params_and_come_back():
    params = _from_original(_by_hand())
    chex.assert_trees_all_equal(params, published_dit.from_diffusers(NET, _case().weights, channels=CHANNELS))
    chex.assert_trees_all_equal(published_dit.to_original(NET, params, GRID), _by_hand())
    chex.assert_trees_all_equal(published_dit.to_diffusers(NET, params), _case().weights)


def test_the_original_time_embedding_is_another_network():
    """At the same weights the two conventions of the frequencies, and nothing else, separate the outputs."""
    inputs, expected = _case().inputs, _case().outputs["output"]
    params = {"params": _from_original(_by_hand())}
    outs = [net.apply(params, inputs["x"], inputs["timestep"], inputs["label"]) for net in (LIKE_DIFFUSERS, NET)]
    alike, original = (parity.errors({"output": np.asarray(out)}, {"output": expected})["output"] for out in outs)
    assert alike < parity.TOLERANCE < 1e-2 < original
    # at timestep 0 every wave is at its start, whatever its frequency
    zero = jnp.zeros(3)
    outs = [net.apply(params, inputs["x"], zero, inputs["label"]) for net in (LIKE_DIFFUSERS, NET)]
    # what is left is the floor of one normalisation
    assert parity.errors({"output": outs[0]}, {"output": outs[1]})["output"] < 1e-4


def test_bfloat16_files_keep_their_dtype_and_lose_nothing():
    """The stored weights are bfloat16 numbers; so are those of a bfloat16 file, but for its embedding of places."""
    low = {name: array.astype(ml_dtypes.bfloat16) for name, array in _by_hand().items()}
    params, plain = _from_original(low), _from_original(_by_hand())
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a.astype(jnp.float32), params), plain)


@pytest.mark.parametrize("wrap", [dit_denoiser, sit_denoiser])
def test_from_a_file_to_a_denoiser(tmp_path, wrap):
    tensors.write_safetensors(tmp_path / "net.safetensors", _by_hand(), {})
    denoise = wrap(NET, _from_original(tensors.read_safetensors(tmp_path / "net.safetensors")))
    x, t, label = jnp.asarray(_case().inputs["x"]), jnp.asarray([0.1, 0.5, 0.9]), jnp.asarray([0, 4, NET.classes])
    out = jax.jit(denoise)(x, t, label)
    assert out.shape == x.shape and out.dtype == x.dtype
    chex.assert_tree_all_finite(out)


def test_every_fault_of_a_file_in_one_line():
    arrays = _by_hand()
    del arrays["blocks.1.attn.qkv.bias"]
    arrays["blocks.2.attn.qkv.bias"] = np.zeros(96, np.float32)
    arrays["pos_embed"] = np.zeros((1, 64, 32), np.float32)
    arrays["final_layer.linear.bias"] = np.full(24, np.nan, np.float32)
    arrays["x_embedder.proj.bias"] = np.zeros(32, np.int8)
    arrays["t_embedder.mlp.0.bias"] = np.full(32, np.inf).astype(ml_dtypes.bfloat16)
    with pytest.raises(ValueError) as error:
        _from_original(arrays)
    assert str(error.value) == (
        "DiT weights: missing blocks.1.attn.qkv.bias (96,); unexpected blocks.2.attn.qkv.bias; "
        "final_layer.linear.bias holds NaN or infinity; pos_embed has shape (1, 64, 32), expected (1, 16, 32); "
        "t_embedder.mlp.0.bias holds NaN or infinity; "
        "x_embedder.proj.bias has dtype int8, expected floating point numbers"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": 10}, r"y_embedder.embedding_table.weight has shape \(6, 32\), expected \(11, 32\)"),
        ({"learn_sigma": False}, r"final_layer.linear.bias has shape \(24,\), expected \(12,\)"),
        ({"depth": 3}, r"missing blocks.2.adaLN_modulation.1.bias"),
    ],
)
def test_the_file_of_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        _from_original(_by_hand(), NET.clone(**change))
    assert "\n" not in str(error.value)


def test_a_layout_is_not_taken_for_the_other():
    for load, arrays in (
        (_from_original, _case().weights),
        (functools.partial(published_dit.from_diffusers, NET, channels=CHANNELS), _by_hand()),
        (functools.partial(vae.from_diffusers, vae.AutoencoderKL()), _by_hand()),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]*missing [^\n]*unexpected [^\n]*$"):
            load(arrays)


def test_another_embedding_of_places_is_refused():
    """Rows before columns is another one; the rounding of a file is not."""
    arrays = _by_hand()
    table = arrays["pos_embed"].reshape(GRID, GRID, NET.width)
    rounded = table.astype(ml_dtypes.bfloat16).astype(np.float32)
    chex.assert_trees_all_equal(
        _from_original(arrays | {"pos_embed": rounded.reshape(1, -1, NET.width)}), _from_original(arrays)
    )
    with pytest.raises(ValueError, match=r"pos_embed is not the fixed .* \(off by 2\)"):
        _from_original(arrays | {"pos_embed": table.swapaxes(0, 1).reshape(1, -1, NET.width)})


def test_blocks_with_embeddings_of_their_own_are_another_network():
    arrays = dict(_case().weights)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    arrays[name] = arrays[name] + 1
    with pytest.raises(ValueError, match=f"^DiT weights: {name} should be a copy of the first block's and is not$"):
        published_dit.from_diffusers(NET, arrays, channels=CHANNELS)
