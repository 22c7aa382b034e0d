"""The figure of answers against calls: what it refuses, and that it is drawn."""

import pytest

from analysis import curves
from configurator import UserError


def test_refuses_a_model_of_something_else(trained):
    with pytest.raises(UserError, match="was not trained on questions"):
        curves.main([f"--ckpt={trained() / 'ckpt.pt'}"])


def test_refuses_a_figure_nowhere(tmp_path):
    with pytest.raises(UserError, match="figure must be a file in a folder that exists"):
        curves.main([f"--figure={tmp_path / 'absent' / 'calls.png'}"])


def test_draws_both_curves(tmp_path):
    pytest.importorskip("matplotlib")
    points = {"quota": [(1, 1.0, 0.5), (2, 2.0, 0.75)], "threshold": [(0.9, 1.3, 0.9)]}
    curves.draw(points, str(tmp_path / "calls.png"))
    assert (tmp_path / "calls.png").read_bytes().startswith(b"\x89PNG")
