"""Files of weights: safetensors in and out, what is refused, and the conversion of PyTorch files."""

import errno
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors

from experiments.fid import networks
from experiments.files import tensors
from experiments.tools import convert
from guidance.nets import lenet, published
from guidance.words import listed

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not as it lies in memory
    "rounded": np.asarray([0.5, -3.0, 1e30], ml_dtypes.bfloat16),
    "half": np.asarray([1.5], np.float16),
    "scalar": np.asarray(7, np.int64),
}


def test_arrays_come_back_in_their_dtypes(tmp_path):
    tensors.write_safetensors(tmp_path / "a.safetensors", ARRAYS, {"origin": "here"})
    back = tensors.read_safetensors(tmp_path / "a.safetensors")
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert tensors.read_metadata(tmp_path / "a.safetensors") == {"origin": "here"}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def named(prefix: str, value: float = 0) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": np.full(2, value, np.float32) for name in ("in.weight", "model.bias", "scale")}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "ema.", "module._orig_mod.", "ema.model."])
def test_names_in_a_wrapper_are_recognised_and_said(tmp_path, capsys, wrapper):
    path = tmp_path / "a.safetensors"
    tensors.write_safetensors(path, named(wrapper), {})
    assert tensors.read_weights(path).keys() == named("").keys()
    assert capsys.readouterr().err == f"{path}: taking the names after {wrapper!r}\n"
    np.savez(tmp_path / "a.npz", **named(wrapper))
    assert tensors.read_weights(tmp_path / "a.npz").keys() == named("").keys()


def test_a_network_whose_weights_are_wrapped_is_that_network(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in lenet.torch_shapes().items()}
    tensors.write_safetensors(tmp_path / "plain.safetensors", arrays, {})
    wrapped = {f"module.{name}": array for name, array in arrays.items()}
    tensors.write_safetensors(tmp_path / "wrapped.safetensors", wrapped, {})
    plain, other = (
        networks.build("lenet", str(tmp_path / f"{name}.safetensors"), None) for name in ("plain", "wrapped")
    )
    assert plain.about() == other.about()
    assert capsys.readouterr().err == f"{tmp_path}/wrapped.safetensors: taking the names after 'module.'\n"


def test_the_kind_of_a_file_of_weights_is_in_its_name_or_its_beginning(tmp_path):
    np.savez(tmp_path / "a.npz", **named(""))
    tensors.write_safetensors(tmp_path / "a.safetensors", named(""), {})
    for name in ("a.npz", "a.safetensors"):
        assert tensors.read_weights((tmp_path / name).rename(tmp_path / "weights")).keys() == named("").keys()
    for suffix in (".pt", ".pth", ".ckpt", ".bin"):
        (tmp_path / f"dit{suffix}").write_bytes(b"PK")
        with pytest.raises(ValueError, match=f"dit{suffix} is PyTorch's; python -m experiments.tools.convert makes"):
            tensors.read_weights(tmp_path / f"dit{suffix}")


def test_names_without_a_wrapper_are_left_alone(tmp_path, capsys):
    for arrays in (named(""), named("blocks."), named("module.") | {"other": np.zeros(1)}, {}):
        assert tensors.unwrapped(arrays) == (arrays, "")
    tensors.write_safetensors(tmp_path / "a.safetensors", named(""), {})
    tensors.read_weights(tmp_path / "a.safetensors")
    assert capsys.readouterr().err == ""


def test_of_two_sets_the_average_is_taken_and_said():
    both = named("model.", 1) | named("ema.module.", 2)
    arrays, note = tensors.unwrapped(both)
    assert arrays.keys() == named("").keys() and all((array == 2).all() for array in arrays.values())
    assert note == "taking the names after 'ema.module.'; 3 arrays beside them are left out"
    undecided = named("model.") | named("module.")
    assert tensors.unwrapped(undecided) == (undecided, "")


def test_the_counter_of_an_average_is_no_array():
    """torch.optim.swa_utils.AveragedModel keeps n_averaged beside module."""
    arrays, note = tensors.unwrapped(named("module.") | {"n_averaged": np.asarray(7)})
    assert arrays.keys() == named("").keys() and note == "taking the names after 'module.'"


def test_lists_of_names_are_short():
    assert listed([]) == "" and listed("abc") == "a, b, c" and listed(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert listed(range(415), 3) == "0, 1, 2 and 412 more"
    shapes = {f"expected.{i}": (1,) for i in range(5000)}
    arrays = {f"found.{i}": np.zeros(1) for i in range(3000)}
    with pytest.raises(ValueError, match=r"and 4992 more; unexpected found.0; .* and 2992 more$") as error:
        published.check_arrays("Net", arrays, shapes)
    assert len(_one_line(error)) < 1000


def test_a_full_disk_is_the_systems_error(tmp_path, monkeypatch):
    """safetensors has an exception of its own, with the text of the system's."""

    def full(arrays, path, metadata):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        tensors.write_safetensors(tmp_path / "a.safetensors", ARRAYS, {})
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_converting_into_no_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"")
    assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "no" / "b.safetensors")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/no/b.safetensors: its folder does not exist\n"
    assert convert.main([str(tmp_path / "a.pt"), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a folder; expected the .safetensors file to write\n"


def _one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("cut", [3, 40, -1], ids=["in the length", "in the header", "in the data"])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    tensors.write_safetensors(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a whole .safetensors file") as error:
        tensors.read_safetensors(path)
    assert str(path) in _one_line(error)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not that", b"\xff" * 100])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole .safetensors file") as error:
        tensors.read_metadata(path)
    _one_line(error)


def test_a_missing_file_is_named(tmp_path):
    for read in (tensors.read_safetensors, tensors.read_metadata, convert.read_torch):
        with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
            read(tmp_path / "nowhere")


def test_sha256_of_the_standard(tmp_path):
    """FIPS 180-2, appendix B.1: the digest of "abc"."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert tensors.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_without_pytorch_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]) == 2
    said = capsys.readouterr().err
    assert said == "error: converting .pt files needs PyTorch: pip install 'learn-to-guide[parity]'\n"


@pytest.fixture
def torch() -> types.ModuleType:
    return pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")


def _converted(tmp_path, *options):
    return convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), *options])


def test_a_torch_file_becomes_safetensors(tmp_path, torch, capsys):
    base = torch.arange(12.0).reshape(3, 4)
    held = {"w": base, "view": base[:, 1], "low": torch.tensor([0.5, -3.0]).bfloat16(), "n": torch.tensor(3)}
    torch.save(held, tmp_path / "a.pt")
    assert _converted(tmp_path) == 0
    back = tensors.read_safetensors(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(back["view"], [1, 5, 9])
    assert back["low"].dtype == ml_dtypes.bfloat16 and back["n"] == 3
    np.testing.assert_array_equal(back["low"].astype(float), [0.5, -3])
    digest = tensors.sha256(tmp_path / "a.pt")
    assert tensors.read_metadata(tmp_path / "b.safetensors") == {"origin": "a.pt", "origin_sha256": digest}
    assert f"origin a.pt, sha256 {digest}" in capsys.readouterr().out


def test_a_file_of_several_sets_needs_a_key(tmp_path, torch, capsys):
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}, "step": 3}, tmp_path / "a.pt")
    assert _converted(tmp_path) == 2
    assert "it keeps the sets model, ema: say --key" in capsys.readouterr().err
    assert _converted(tmp_path, "--key=avg") == 2
    assert "no set of tensors 'avg'" in capsys.readouterr().err
    assert _converted(tmp_path, "--key=ema") == 0
    np.testing.assert_array_equal(tensors.read_safetensors(tmp_path / "b.safetensors")["w"], [1, 1])


class _Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("what", ["code", "cut", "noise"])
def test_what_runs_code_or_is_broken_is_refused(tmp_path, torch, capsys, what):
    path = tmp_path / "a.pt"
    torch.save(_Code() if what == "code" else {"w": torch.arange(1000.0)}, path)
    if what != "code":
        path.write_bytes(path.read_bytes()[:900] if what == "cut" else b"\x00" * 100)
    assert _converted(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} ") and said.count("\n") == 1
    assert "not a whole PyTorch file of tensors alone" in said
    assert not (tmp_path / "b.safetensors").exists()
