"""Results of notebook 04, read again."""

import json
import shutil

import numpy as np
import pytest

from irlkit.data import load
from irlkit.data.writers import write
from irlkit.lab.experiments.finished import SHIPPED, _some_found, load_finished


def test_shipped_results_are_whole():
    found = load_finished(n_structures=6)
    assert list(found.schedules) == [
        "learned",
        "rule, for 10 steps",
        "rule, for 5 steps",
        "handcrafted, for 500 steps",
        "handcrafted, for 10 steps",
        "none",
    ]
    assert found.n_steps == 10 and len(found.structures) == 6
    record = json.loads((SHIPPED / "results.json").read_text(encoding="utf-8"))
    assert record["evaluation"][0]["n_structures"] == 480


def test_half_of_some_were_found_as_far_as_there_are():
    found = np.array([True, False, False, True, False, True])
    assert _some_found(found, 4).tolist() == [0, 1, 2, 3]
    assert _some_found(found[:4], 6).tolist() == [0, 1, 2, 3]
    assert _some_found(np.array([True, False, False, False]), 4).tolist() == [0, 1, 2, 3]
    assert _some_found(np.ones(5, bool), 2).tolist() == [0, 1]


def test_what_is_missing_or_foreign_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is missing"):
        load_finished(tmp_path)
    (tmp_path / "results.json").write_text('{"parameters": []}')
    with pytest.raises(ValueError, match="has no results of notebook 04"):
        load_finished(tmp_path)

    shutil.copytree(SHIPPED, tmp_path / "other")
    path = tmp_path / "other" / "results.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["parameters"]["settings"]["test_size"] = 20
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="not the data that they were made with"):
        load_finished(tmp_path / "other")
    # The same data as files of its splits.
    record["parameters"]["settings"]["test_size"] = 480
    record["dataset"]["name"] = str(tmp_path / "splits")
    path.write_text(json.dumps(record))
    (tmp_path / "splits").mkdir()
    for name, size in (("train", 2), ("val", 2), ("test", None)):
        part = load("prototypes", name, progress=False).subset(size)
        write(tmp_path / "splits" / f"{name}.parquet", part.batch, part.table)
    assert len(load_finished(tmp_path / "other", n_structures=4).structures) == 4
    (tmp_path / "other" / "structures.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="structures"):
        load_finished(tmp_path / "other")
