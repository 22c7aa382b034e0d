"""Answers by the order in which they are written: the table, the boards, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import checkpoint
from analysis import orders
from analysis.orders import Answers, OrdersConfig, answered, boards, filled, orders_of
from configurator import UserError
from diffusion import ORDERS
from tasks import puzzles


@pytest.fixture(scope="module")
def sudoku_ckpt(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """sudoku_ckpt(objective) -> the checkpoint of a run of 4 steps."""
    folder = tmp_path_factory.mktemp("sudoku")
    flags = ["--givens=6", "--train=40", "--val=20", f"--data_dir={folder}"]
    puzzles.main(flags)
    options = {"dataset": "sudoku4", "data_dir": str(folder), "block_size": 34}

    def make(objective: str) -> str:
        return str(trained(**options, objective=objective, time_input=False) / "ckpt.pt")

    return make


def test_refuses_a_model_of_something_else(trained: Any):
    with pytest.raises(UserError, match="was not trained on questions"):
        orders.main([f"--ckpt={trained() / 'ckpt.pt'}"])


def test_refuses_a_figure_nowhere(tmp_path: Path):
    with pytest.raises(UserError, match="figure must be a file in a folder that exists"):
        orders.main([f"--figure={tmp_path / 'absent' / 'orders.png'}"])


def test_every_order_of_every_model(sudoku_ckpt: Any, tmp_path: Path, capsys: Any):
    pytest.importorskip("matplotlib")
    paths = ",".join(map(sudoku_ckpt, ("masked", "ar", "ilm")))
    figure = tmp_path / "orders.png"
    orders.main([f"--ckpt={paths}", "--samples=4", f"--figure={figure}"])
    out = capsys.readouterr().out
    for order in (*ORDERS, "threshold"):
        assert f": {order.replace('_', ' ')}" in out
    assert sum("+-" in line for line in out.splitlines()) == 1 + 5 + 1 + 1
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_board_is_written_once_cell_by_cell(sudoku_ckpt: Any, helpers: Any):
    """Blanks have the steps 1 to their number, in the order that was asked for; givens none."""
    model = helpers.untrained(checkpoint.load(sudoku_ckpt("masked")))
    cfg = OrdersConfig(samples=3)
    for order in orders_of(model):
        answers = answered(cfg, model, order)
        assert answers.texts.speed["nfe"] == 17  # of 16 cells and EOS: a token per call
        board = filled(answers, 1)
        blanks = [k for k, digit in enumerate(board.givens) if not digit]
        assert sorted(board.step[k] for k in blanks) == list(range(1, 11))
        assert len(board.givens) - len(blanks) == 6 == board.step.count(0)
        in_turn = [board.step[k] for k in blanks] == list(range(1, 11))
        assert in_turn == (order == "left_to_right")
        assert len(board.found) == len(board.wanted) == 16
        if order != "random":  # of which another draw is watched
            assert board.found == answers.texts.found[1][:16]


def answers_of(order: str, *found: list[int]) -> Answers:
    """Answers to as many questions, of which [1] is right."""
    texts = SimpleNamespace(found=list(found), wanted=[[1]] * len(found), speed={"nfe": 1.0})
    config = SimpleNamespace(objective="masked", n_layer=2)
    objective = SimpleNamespace(inserts=False)
    model = SimpleNamespace(config=config, objective=objective, meta={"task": "sudoku"})
    return Answers(model, order, texts)


def test_a_line_of_the_table():
    first = answers_of("random", [1], [2], [2], [1])
    better = answers_of("margin", [1], [1], [1], [2])
    # 3 of 4: the root of 3/4 * 1/4 / 4; two only here right, one only there
    assert orders.describe(better, first.right()).split() == [
        *("masked,", "2", "layers:", "margin", "75.0%", "+-", "21.7%", "2", "1", "1.0")
    ]
    assert orders.standard_error([True, True]) == 0


def test_the_board_is_one_that_the_best_order_alone_solves(monkeypatch: pytest.MonkeyPatch):
    """The first on which the other one, watched, kept the givens and was wrong."""
    best, worst = answers_of("margin", [1], [1], [1], [1]), answers_of("random", [1], [2], [2], [2])

    def watched(answers: Answers, question: int) -> SimpleNamespace:
        found = ([1, 2], [4, 1], [1, 3], [2, 3])[question]
        return SimpleNamespace(givens=[0, 3], found=found, wanted=[1, 3], at=(answers, question))

    monkeypatch.setattr(orders, "filled", watched)
    assert [board.at for board in boards([worst, best])] == [(best, 3), (worst, 3)]
    assert boards([best, best]) == []
