"""What does not fit a machine: one line that names the field, before anything of that size is asked for."""

import tracemalloc

import numpy as np
import pytest

from experiments.config import ConfigError, flat
from experiments.jobs import sample
from experiments.main import load, main
from experiments.runtime import sizes
from tests.conftest import REPOSITORY

MIXTURE = str(REPOSITORY / "configs/mixture.py")
GB = 1e9


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        # clean and noised samples, noise, a prediction: 4 x 2 numbers of 4 bytes; a layer of 64 numbers, three times
        ({"base.batch": "1000000000"}, 32 * GB + 3 * 64 * 4 * GB),
        # weights, gradient, two moments: 16 bytes for each of width^2 depth numbers
        ({"base.width": "65536", "base.depth": "1000"}, 16 * 1000 * 65536**2),
        ({"learn.width": "65536", "learn.depth": "1000"}, 16 * 1000 * 65536**2),
        ({"learn.batch": "1000000000"}, 32 * 4 * GB),
        ({"learn.particles": "1000000000"}, 4 * 256 * 1e18),
        ({"learn.rollout_batch": "1000000000"}, 4e18),
        ({"learn.rollout_real": "1000000000"}, 4e9 * (2 + 128)),
        ({"job": "sample", "sample.seeds": "0-2147483646", "sample.batch": "1000000000"}, 32 * GB),
    ],
    ids=str,
)
def test_the_least_that_a_job_needs(overrides, needed):
    """Worked out by hand for the mixture: two numbers a sample, batches of 256 with 4 particles each."""
    config, field = load(MIXTURE, overrides), next(name for name in overrides if "." in name and "seeds" not in name)
    found = max(need.bytes for need in sizes.needs(config) if field in need.fields)
    assert found == pytest.approx(needed)
    sizes.check(config, max(need.bytes for need in sizes.needs(config)))
    with pytest.raises(ConfigError, match=r"= \d+: needs at least .*B of memory; there are 1 GB"):
        sizes.check(config, GB)


def test_what_every_preset_needs_fits_a_small_machine():
    for preset in ("exact", "under", "record", "reward", "high_dimensional"):
        sizes.check(load(f"{MIXTURE}:{preset}"), GB)


def test_the_device_machine_is_asked_before_anything_is_allocated(tmp_path, capsys):
    assert main([f"--config={MIXTURE}", f"--workdir={tmp_path}", "--config.base.batch=1000000000"]) == 2
    line = capsys.readouterr().err
    assert (
        "base.batch = 1000000000, base.width = 64: needs at least 800 GB of memory" in line and line.count("\n") == 1
    )
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("error", [MemoryError("no 8 TB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")])
def test_memory_that_runs_out_after_all_is_one_line(error):
    with (
        pytest.raises(ConfigError, match=r"^out of memory: .*; allowed: smaller batches") as raised,
        sizes.in_one_line(),
    ):
        raise error
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="another"), sizes.in_one_line():
        raise RuntimeError("another fault")


def test_a_disk_without_room_is_one_line():
    sizes.check_disk("here", "sample.seeds", 10, 10)
    with pytest.raises(ConfigError, match="sample.seeds: needs 2 kB of disk in here; 1 kB are free"):
        sizes.check_disk("here", "sample.seeds", 2000, 1000)


def test_seeds_and_labels_are_ranges_of_which_only_what_is_asked_for_takes_memory():
    tracemalloc.start()
    seeds = sample.Integers("5,1-3,10-2147483646")
    labels = sample.labels_of("2,0-1", 4)
    with pytest.raises(ConfigError, match="the model has no class 4; allowed: 0 to 3"):
        sample.labels_of("0-2147483646", 4)
    assert len(seeds) == 4 + 2147483637
    np.testing.assert_array_equal(seeds[2:6], [2, 3, 10, 11])
    np.testing.assert_array_equal(seeds[len(seeds) - 2 : len(seeds) + 5], [2147483645, 2147483646])
    np.testing.assert_array_equal(labels[np.arange(5) % len(labels)], [2, 0, 1, 2, 0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    with pytest.raises(ConfigError, match=r"sample.seeds = .*: allowed: at most 1000000 batches of sample.batch"):
        load(MIXTURE, {"sample.seeds": "0-2147483646"})


def test_counts_of_a_size_that_no_machine_answers_are_refused_by_their_range():
    config = load(MIXTURE)
    names = [name for name, value in flat(config).items() if isinstance(value, int) and not isinstance(value, bool)]
    refused = []
    for name in names:
        try:
            sizes.check(load(MIXTURE, {name: "2147483647"}), 64 * GB)
        except ConfigError as error:
            assert name in str(error) or name == "base.accumulate", error
            refused.append(name)
    # what costs time alone and shows how much is left, and what is never more than something else
    lasting = {"learn.iterations", "learn.rollout_iterations", "base.steps", "learn.checkpoint_every"}
    lasting |= {"learn.rollout_conditions", "learn.select_every", "eval.sweep_seeds", "eval.batch", "sample.batch"}
    assert set(names) - set(refused) <= lasting | {"problem.images"}


def test_a_batch_of_samples_is_no_larger_than_the_samples(tmp_path):
    fields = {"job": "sample", "sample.seeds": "0-4", "sample.batch": "1000000000", "sample.steps": "1"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main([f"--config={MIXTURE}:attenuated", f"--workdir={tmp_path}", *flags]) == 0
    assert len(np.load(tmp_path / "samples/samples.npz")["seeds"]) == 5
