"""The ledger: evaluations known by their settings, and files of earlier versions."""

import pytest

from experiments.config import ConfigError
from experiments.runtime.ledger import Ledger


def test_a_ledger_knows_evaluations_by_their_settings(tmp_path):
    """To the last bit, in any order of the settings, and again after it was read."""
    path, asked = tmp_path / "evaluations.jsonl", []
    ledger = Ledger(path)
    for omega in (0.12345671, 0.12345674, 0.12345671):
        settings = {"steps": 4, "weight": f"constant(omega={omega})"}
        entry = ledger.get(settings, lambda omega=omega: asked.append(omega) or {"value": omega})
        assert entry == {"value": omega, "key": settings}
    assert asked == [0.12345671, 0.12345674]
    again = Ledger(path)
    swapped = {"weight": "constant(omega=0.12345674)", "steps": 4}
    assert again.get(swapped, pytest.fail)["value"] == 0.12345674 and again.done == ledger.done


def test_a_ledger_of_an_earlier_version_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"nfe": 8, "key": "4 steps, seed 0, constant, omega = 0.5"}\n')
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="earlier version, which named evaluations in words; allowed: a new folder"):
        Ledger(path)
    assert path.read_bytes() == before
