"""The figure of all unmasking schedules: what an area is, what it refuses, and that it is drawn."""

import pytest
import torch

from analysis import schedules
from analysis.schedules import AR, Panel, Point, area, area_and_error, frugal
from configurator import UserError
from diffusion import ADAPTIVE, SCHEDULES


def points(*pairs):
    """(calls, share of 100 answers that are exact)."""
    good = [(torch.arange(100) < 100 * share).double() for _, share in pairs]
    return [
        Point(k, calls, 1.0, each, torch.ones(100), 0.0)
        for k, ((calls, _), each) in enumerate(zip(pairs, good, strict=True))
    ]


def panel_of(curves, higher=True, places=16):
    return Panel("a corpus", higher, places, curves, None)


def test_the_area_is_the_best_within_a_budget_over_log2_of_it():
    """0.5 up to four calls, 0.75 from there to the sixteen places; a worse setting changes
    nothing, in any order; beyond the places, and beyond 32, nothing counts."""
    curve = points((4.0, 0.75), (1.0, 0.5), (8.0, 0.25), (64.0, 1.0))
    assert area(curve, panel_of({})) == pytest.approx(0.5 * 0.5 + 0.5 * 0.75)
    assert area(curve, panel_of({}, places=128)) == pytest.approx(0.4 * 0.5 + 0.6 * 0.75)
    assert area(curve, panel_of({}, higher=False)) == pytest.approx(0.75 * 0.5 + 0.25 * 0.25)
    assert area(points((1.3, 0.5)), panel_of({})) == 0.5  # no setting takes one call
    same, error = area_and_error(points((1.0, 0.5)), panel_of({}))
    assert same == 0.5 and error == pytest.approx(0.05, rel=0.2)  # sqrt(0.5 * 0.5 / 100)


def test_the_fewest_calls_within_an_error_of_the_best():
    curve = points((1.0, 0.5), (2.0, 0.78), (4.0, 0.8), (8.0, 0.7))
    assert frugal(curve, panel_of({})).calls == 2.0
    assert frugal(curve, panel_of({}, higher=False)).calls == 1.0


def test_every_schedule_has_settings():
    made = schedules.settings(5)
    assert {*made} == {*SCHEDULES, *ADAPTIVE} and all(made.values())
    assert [n for n, _ in made["uniform"]] == [1, 2, 4, 5]


def test_refuses_checkpoints_that_do_not_go_together(trained):
    text = trained(objective="masked", time_input=False, max_iters=2)
    with pytest.raises(UserError, match="tiny needs one checkpoint left to right") as caught:
        schedules.main([f"--ckpt={text / 'ckpt.pt'}"])
    assert "\n" not in str(caught.value)


def test_judges_other_text_and_draws(trained, tmp_path, capsys, monkeypatch):
    """Text that is no answer is judged by the model from left to right."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(schedules, "STEPS", (1, 4))
    monkeypatch.setattr(schedules, "VALUES", {name: (0.0, 0.5) for name in ADAPTIVE})
    few = {"time_input": False, "max_iters": 2}
    both = [trained(objective=name, **few) / "ckpt.pt" for name in ("masked", "ar")]
    file = tmp_path / "schedules.png"
    schedules.main([f"--ckpt={both[0]},{both[1]}", "--samples=3", f"--figure={file}"])
    printed = capsys.readouterr().out
    assert file.read_bytes().startswith(b"\x89PNG")
    for name in (*SCHEDULES, *ADAPTIVE, AR, "held-out text"):
        assert f"| {name} |" in printed
