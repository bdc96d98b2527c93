"""results.json: rows that are checked, written whole and read back; their table."""

import json
import os

import numpy as np
import pytest

from experiments.runtime import results
from guidance import tables
from guidance.tables import Row

ROW = Row("mixture", "constant", "omega = 0.5", {"omega": 0.5}, "ddim", 10, 20, 5, "energy", 0.07, 0.001, 0.0)


def test_results_round_trip_and_are_plain_json(tmp_path):
    rows = [
        ROW,
        ROW._replace(value=np.float32(0.25), steps=np.int64(20)),
        ROW._replace(value=float("nan"), floor=None),
    ]
    results.write(tmp_path / "results.json", rows)
    assert results.read(tmp_path / "results.json") == [
        ROW, ROW._replace(value=0.25, steps=20), ROW._replace(value=None, floor=None)
    ]  # fmt: skip
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [list(row) for row in stored] == [list(Row._fields)] * 3
    results.write(tmp_path / "results.json", [])
    assert results.read(tmp_path / "results.json") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps": 10.0}, {"steps": True}, {"seeds": 0}, {"value": "0.1"}, {"standard_error": -0.1},
        {"method": None}, {"settings": (0.5,)}, {"nfe": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_row_is_refused_by_field_and_leaves_the_old_file(wrong, tmp_path):
    path = tmp_path / "results.json"
    results.write(path, [ROW])
    with pytest.raises(ValueError, match=next(iter(wrong))):
        results.write(path, [ROW, ROW._replace(**wrong)])
    assert results.read(path) == [ROW]


def test_unknown_or_missing_fields_of_stored_rows_are_refused(tmp_path):
    path = tmp_path / "results.json"
    for row in ({**ROW._asdict(), "fid": 1.0}, {"problem": "mixture"}):
        path.write_text(json.dumps([row]))
        with pytest.raises(ValueError, match="row 0: fields"):
            results.read(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.write(path, [ROW])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.write(path, [])
    assert results.read(path) == [ROW]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_the_table_is_aligned_and_puts_the_best_first():
    rows = [ROW, ROW._replace(method="rollout", weight="learned", settings={}, value=0.05), ROW._replace(value=None)]
    lines = tables.table(rows).splitlines()
    assert lines[0].split() == ["problem", "metric", "steps", "nfe", "method", "weight", "value", "floor", "seeds"]
    assert "rollout" in lines[2] and "0.0500 ± 0.0010" in lines[2]
    assert "0.0700 ± 0.0010" in lines[3]
    assert lines[4].split()[-4:] == ["not", "finite", "0", "5"]  # floor 0, 5 seeds
    column = lines[0].index("value")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[2:])
    assert tables.table([]) == "no results"
