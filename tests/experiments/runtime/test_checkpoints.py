"""Checkpoints under kills, damage and a full disk. The loop below is killed for real."""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.runtime import checkpoints
from tests.experiments.runtime.forked import Forked

# A small training loop as the jobs write it: keys from seed and step, metrics before checkpoint, polling for a stop.
LOOP = """
import contextlib, pathlib, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from experiments.runtime import checkpoints, progress
from tests.conftest import REPOSITORY

folder, pause = pathlib.Path(sys.argv[1]), float(sys.argv[2])
listening = contextlib.ExitStack()
listening.enter_context(progress.listening())
optimizer = optax.adam(1e-2)

@jax.jit
def update(params, state, step):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (32, 8))
    loss, gradient = jax.value_and_grad(lambda p: jnp.mean((jnp.tanh(x @ p["w"]) - x[:, :4]) ** 2))(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss

params = {"w": jax.random.normal(jax.random.key(1), (8, 4))}
carry = params, optimizer.init(params)
step, carry = checkpoints.restore_latest(folder / "checkpoints", carry) or (0, carry)
print("from", step, flush=True)
with progress.Metrics(folder / "metrics.jsonl", "train", step) as metrics:
    while step < 60:
        step += 1
        *carry, loss = update(*carry, step)
        metrics.write(step, loss=loss)
        if step % 3 == 0 or progress.stop_requested():
            checkpoints.save(folder / "checkpoints", step, tuple(carry))
        if progress.stop_requested():
            listening.close()
            sys.exit(progress.Stopped().exit_code)
        print(step, flush=True)
        time.sleep(pause)
np.save(folder / "weights.npy", np.asarray(carry[0]["w"]))
listening.close()
"""


def start(folder, pause=0.0):
    folder.mkdir(exist_ok=True)
    return Forked(LOOP, folder, pause)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = start(folder)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    return folder


def assert_same_outcome(folder, reference):
    for name in ("weights.npy", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_ends_bit_identical(uninterrupted, tmp_path):
    chance = random.Random(0)
    resumed_from = []
    for _ in range(6):
        run = start(tmp_path, pause=0.01)
        resumed_from.append(int(run.stdout.readline().split()[1]))
        for _ in range(chance.randrange(0, 9)):
            run.stdout.readline()
        time.sleep(chance.uniform(0, 0.06))  # a save takes about as long: kills land inside and between
        run.kill()
        run.communicate(timeout=60)
        assert run.returncode == -signal.SIGKILL, "it finished before it was killed: the test shows nothing"
    run = start(tmp_path)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0 and err == "", err  # a kill never leaves a checkpoint that counts as damaged
    assert_same_outcome(tmp_path, uninterrupted)
    assert resumed_from == sorted(resumed_from) and len(set(resumed_from)) > 3  # work was kept, never lost
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_0000000057", "step_0000000060"]


def test_sigterm_saves_and_exits_and_the_same_command_resumes(uninterrupted, tmp_path):
    run = start(tmp_path, pause=0.05)
    while run.stdout.readline() != "4\n":
        pass
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 143 and "stopping" in err
    saved = max(checkpoints._steps(tmp_path / "checkpoints"))
    assert saved == int(out.split()[-1] if out else 4) + 1  # the step at which it noticed, saved but not announced
    run = start(tmp_path)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out.startswith(f"from {saved}\n"), err
    assert_same_outcome(tmp_path, uninterrupted)


def state(value):
    """A tree with all that jobs store: dicts, tuples, an optimiser's named tuples and empty states, several dtypes."""
    params = {
        "a": {"kernel": jnp.full((3, 2), float(value)), "bias": jnp.zeros(2, jnp.bfloat16)},
        "step": jnp.int32(value),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return params, optimizer.init(params["a"]), (np.arange(value, value + 5, dtype=np.uint8), jnp.bool_(True))


def filled(folder, steps=(10, 20, 30)):
    for step in steps:
        checkpoints.save(folder, step, state(step))
    return folder


def test_what_is_saved_comes_back_bit_for_bit_and_the_newest_two_stay(tmp_path):
    assert checkpoints.restore_latest(tmp_path / "none", state(0)) is None
    filled(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000000020", "step_0000000030"]
    step, tree = checkpoints.restore_latest(tmp_path, state(0))
    assert step == 30
    chex.assert_trees_all_equal_structs(tree, state(30))
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, state(30))
    chex.assert_trees_all_equal(tree, state(30))


def test_awkward_numbers_and_abstract_targets(tmp_path, x64):
    values = [np.nan, np.inf, -0.0, np.nextafter(0, 1), np.pi]
    tree = {"64": jnp.asarray(values, jnp.float64), "32": jnp.asarray(values, jnp.float32)}
    checkpoints.save(tmp_path, 1, tree)
    _, back = checkpoints.restore_latest(tmp_path, jax.eval_shape(lambda: tree))
    assert {k: np.asarray(v).tobytes() for k, v in back.items()} == {
        k: np.asarray(v).tobytes() for k, v in tree.items()
    }


def test_relative_folders_and_saving_a_step_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(pathlib.Path("run"), 5, state(1))
    checkpoints.save(pathlib.Path("run"), 5, state(2))
    step, tree = checkpoints.restore_latest(pathlib.Path("run"), state(0))
    assert step == 5
    chex.assert_trees_all_equal(tree, state(2))
    assert os.listdir("run") == ["step_0000000005"]


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


FILES = ["leaves.json", "SHA256SUMS", "tree/_METADATA", "tree/manifest.ocdbt", "tree/d/*"]


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, pathlib.Path.unlink], ids=["truncated", "flipped", "missing"]
)
@pytest.mark.parametrize("pattern", FILES)
def test_a_damaged_newest_falls_back_and_says_so(pattern, damage, tmp_path):
    newest = filled(tmp_path) / "step_0000000030"
    file = max(newest.glob(pattern), key=lambda path: path.stat().st_size)
    damage(file)
    with pytest.warns(checkpoints.DamagedCheckpoint, match=r"step_0000000030 is damaged \(.+\); trying .* step 20"):
        step, tree = checkpoints.restore_latest(tmp_path, state(0))
    assert step == 20
    chex.assert_trees_all_equal(tree, state(20))
    checkpoints.save(tmp_path, 25, state(25))  # the run goes on: the damaged one must not count among the newest two
    assert checkpoints.restore_latest(tmp_path, state(0))[0] == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000000020", "step_0000000025"]


def test_all_damaged_starts_over_and_says_so(tmp_path):
    for path in filled(tmp_path).rglob("SHA256SUMS"):
        truncate(path)
    with pytest.warns(checkpoints.DamagedCheckpoint) as told:
        assert checkpoints.restore_latest(tmp_path, state(0)) is None
    assert ["starting over" in str(w.message) for w in told] == [False, True]


def test_half_written_folders_of_a_kill_are_ignored_and_removed(tmp_path):
    filled(tmp_path)
    shutil.copytree(tmp_path / "step_0000000030", tmp_path / ".new_step_0000000040")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.restore_latest(tmp_path, state(0))[0] == 30
    checkpoints.save(tmp_path, 50, state(50))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000000030", "step_0000000050"]


def test_the_sums_are_those_of_sha256sum(tmp_path):
    folder = filled(tmp_path) / "step_0000000030"
    run = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder)
    assert run.returncode == 0


FULL = """
import pathlib, resource, sys
import jax, jax.numpy as jnp
from experiments.runtime import checkpoints
from tests.conftest import REPOSITORY
folder = pathlib.Path(sys.argv[1])
def tree(step):
    return {"w": jax.random.normal(jax.random.key(step), (50_000,))}
checkpoints.save(folder, 1, tree(1))
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    for step in range(2, 20):
        checkpoints.save(folder, step, tree(step))
except checkpoints.CheckpointError as error:
    print(error)
last, back = checkpoints.restore_latest(folder, tree(0))
assert (back["w"] == tree(last)["w"]).all()
print(last, sorted(p.name for p in folder.iterdir()))
"""


def test_a_write_that_the_system_refuses_keeps_the_last_good_one(tmp_path):
    out, err = Forked(FULL, tmp_path, "limit").communicate(timeout=60)
    message, left = out.splitlines()
    assert "checkpoint of step 2 not written" in message and "File too large; the one of step 1 is intact" in message
    assert left == "1 ['step_0000000001']"
    assert "File too large" not in err


def test_a_full_disk_keeps_the_last_good_one(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(tmp_path)]  # room for two checkpoints, not three
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        out, err = Forked(FULL, tmp_path, "full").communicate(timeout=60)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    message, left = out.splitlines()
    assert "No space left on device; the one of step 2 is intact" in message
    assert left == "2 ['step_0000000001', 'step_0000000002']"
    # nothing of the log of orbax; a write that ends after the refused one may say that its event loop is closed
    assert "No space left" not in err


def test_running_out_of_space_at_any_moment_keeps_the_last_good_one(tmp_path, monkeypatch):
    filled(tmp_path, steps=(10, 20))
    for place, name in (
        (pathlib.Path, "mkdir"),
        (pathlib.Path, "write_text"),
        (os, "fsync"),
        (pathlib.Path, "rename"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(
                checkpoints.CheckpointError, match="step 30 not written .* No space left .* step 20 is intact"
            ):
                checkpoints.save(tmp_path, 30, state(30))
        assert checkpoints.restore_latest(tmp_path, state(0))[0] == 20
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000000010", "step_0000000020"]


def test_another_config_is_named_not_taken_for_damage(tmp_path):
    checkpoints.save(tmp_path, 1, {"w": jnp.zeros((3, 2))})
    for like, leaf in (
        ({"w": jnp.zeros((3, 4))}, "w"),
        ({"w": jnp.zeros((3, 2), jnp.int32)}, "w"),
        ({"v": jnp.zeros(1)}, "[vw]"),
    ):
        with pytest.raises(checkpoints.CheckpointError, match=rf"another config: leaf \['{leaf}'\]"):
            checkpoints.restore_latest(tmp_path, like)
    assert checkpoints.restore_latest(tmp_path, {"w": jnp.zeros((3, 2))})[0] == 1


@pytest.mark.parametrize(
    "leaf", [jax.random.key(0), "text", 1.5, np.array(["a"])], ids=["key", "str", "float", "text"]
)
def test_leaves_that_are_not_numeric_arrays_are_refused_by_name(leaf, tmp_path):
    with pytest.raises(TypeError, match=r"leaf \['state'\]\[0\]"):
        checkpoints.save(tmp_path, 1, {"state": [leaf]})
    assert list(tmp_path.iterdir()) == []


def test_leaves_file_tells_a_person_what_is_inside(tmp_path):
    folder = filled(tmp_path) / "step_0000000030"
    leaves = json.loads((folder / "leaves.json").read_text())
    assert leaves["[0]['a']['kernel']"] == [[3, 2], "float32"]
    assert len(leaves) == len(jax.tree.leaves(state(0)))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000  # the limit of the test above stayed in its process
