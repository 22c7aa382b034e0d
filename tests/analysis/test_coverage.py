"""The command that measures error bars."""

import json
from pathlib import Path

import pytest

from analysis import coverage
from analysis.coverage import CoverageConfig, cases, main, measured


def test_every_bound_with_each_of_its_noises():
    found = cases(CoverageConfig())
    assert {fields["objective"] for fields in found} >= {
        "sedd",
        "masked",
        "bd3",
        "mlm",
        "ar",
        "ilm",
    }
    assert {"objective": "it"} not in found  # has no bound
    noises = [f["noise"] for f in found if f["objective"] == "masked"]
    assert len(noises) == len({*noises}) == len(coverage.NOISES)
    assert {"objective": "sedd", "graph": "uniform", "noise": "log"} not in found  # refused


def test_error_bars_of_half_the_size_are_seen(monkeypatch: pytest.MonkeyPatch):
    """Right ones hold two standard errors about 95 times in 100; half as large ones, 68 times."""
    right = measured({"objective": "ar"}, 0, 60)
    assert right["share"] >= 0.88 and right["spread"] == pytest.approx(right["reported"], rel=0.3)
    usual = coverage.ratio
    monkeypatch.setattr(coverage, "ratio", lambda *x: (usual(*x)[0], usual(*x)[1] / 2))
    assert measured({"objective": "ar"}, 0, 60)["share"] < 0.85


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys, monkeypatch):
    argv = ["--objectives=ar", "--repeats=3", "--steps=2", f"--json={tmp_path / 'c.json'}"]
    main(argv)
    table = capsys.readouterr().out
    assert [one["steps"] for one in json.loads((tmp_path / "c.json").read_text())] == [0, 2]
    monkeypatch.setattr(coverage, "measured", None)  # nothing is left to measure
    main(argv)
    assert capsys.readouterr().out == table and "| ar |" in table
