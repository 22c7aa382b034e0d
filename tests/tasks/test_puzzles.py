"""tasks/puzzles.py: zebra puzzles and countdown, and how right answers are."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configurator import UserError
from corpus import Corpus
from tasks import stars
from tasks.puzzles import Pair, alphabet, describe, right_share, row_of, scores, solves, triples

ZEBRA, COUNTDOWN = alphabet("zebra"), alphabet("countdown")
EOS = ZEBRA.specials["eos"]


def prepare(folder: Path, task: str, *rows: dict) -> Corpus:
    """One file for both splits."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    flags = [f"--task={task}", f"--path={file},{file}", f"--data_dir={folder}"]
    stars.main(flags)
    return Corpus(folder / task)


# ---- formats -----------------------------------------------------------------------------------


def test_zebra_rows(tmp_path: Path):
    assert ZEBRA.vocab_size == 18 + 3
    clue = "LHS c 0 1 RHS n 2 3 immediate-left CLUE_END = != nbr left-of inbetween ends"
    corpus = prepare(tmp_path, "zebra", {"input": f" {clue} ", "output": "0 1 2 3 4 5"})
    batch = corpus.batch("val", stars.np.arange(1), 25)
    n = len(clue.split()) + 1
    assert batch.prompt_mask.sum() == n and batch.ids[0, n - 1] == corpus.specials["bos"]
    assert next(corpus.texts("val")) == f"{clue} 0 1 2 3 4 5"
    assert corpus.meta["longest_answer"] == 7 and corpus.meta["task"] == "zebra"


def test_sorted_answers_and_countdown(tmp_path: Path):
    (tmp_path / "a").mkdir()
    corpus = prepare(tmp_path / "a", "zebra", {"input": "c 0", "sorted_output": "1 2 3"})
    assert next(corpus.texts("train")) == "c 0 1 2 3"
    corpus = prepare(tmp_path, "countdown", {"input": "39,66,105", "output": "39+66=105"})
    assert next(corpus.texts("train")) == "39,66,10539+66=105"
    assert corpus.batch("val", stars.np.arange(1), 20).prompt_mask.sum() == 10


@pytest.mark.parametrize("row, words", [
    ({"input": "c 0 6", "output": "1 2 3"}, ("train split, row 2", "'6'")),
    ({"input": "c 0"}, ("row 2", "input and output")),
    ({"input": "c 0", "output": " "}, ("row 2", "input and output")),
    ({"input": "c 0", "output": [1]}, ("row 2", "input and output")),
])  # fmt: skip
def test_bad_rows_are_refused(tmp_path: Path, row: dict, words: tuple):
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, "zebra", {"input": "c 0", "output": "1 2 3"}, row)
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_row_of():
    bos = ZEBRA.specials["bos"]
    assert row_of(ZEBRA, [3, 4], [5]) == ([3, 4, bos, 5, EOS], 3)
    assert row_of(ZEBRA, [], []) == ([bos, EOS], 1)


# ---- scores ------------------------------------------------------------------------------------


def test_exact_match_and_token_accuracy():
    cases = [
        ([1, 2, 3, EOS], [1, 2, 3, EOS], 1, 1),  # found, wanted, exact, share of tokens
        ([1, 2, EOS], [1, 2, 3, EOS], 0, 2 / 3),  # the beginning of an answer is not the answer
        ([1, 2, 3, 4, EOS], [1, 2, 3, EOS], 0, 1),
        ([1, 2, 3], [1, 2, 3, EOS], 0, 1),  # without an end
        ([3, 2, 1, EOS], [1, 2, 3, EOS], 0, 1 / 3),
        ([EOS], [1, EOS], 0, 0),
        ([EOS], [EOS], 1, 1),
    ]
    for got, wanted, exact, share in cases:
        one = scores("star", ZEBRA, [Pair([], got, wanted)])
        assert one == {"exact_match": exact, "token_accuracy": pytest.approx(share)}, got
    both = scores("star", ZEBRA, [Pair([], f, w) for f, w, _, _ in cases])
    # a mean over answers of means over places: long answers weigh no more than short ones
    assert both["token_accuracy"] == pytest.approx(sum(c[3] for c in cases) / len(cases))
    assert both["exact_match"] == 2 / 7
    assert "exact match 28.57% (95%: 8.22% to 64.11%) of 7 answers" in describe(both, "val", 7)


def test_right_share_of_nothing():
    assert right_share([5], []) == 1.0 and right_share([], [5]) == 0.0


def zebra(got: list[int], wanted: list[int]) -> dict[str, float]:
    return scores("zebra", ZEBRA, [Pair([], got, wanted)])


def test_triples_are_a_set():
    wanted = [0, 1, 2, 3, 4, 5, EOS]
    turned = zebra([3, 4, 5, 0, 1, 2, EOS], wanted)
    assert (turned["exact_match"], turned["set_match"], turned["set_iou"]) == (0, 1, 1)
    assert zebra([0, 1, 2, 0, 1, 2, 3, 4, 5, EOS], wanted)["set_match"] == 1  # twice is once
    for got, share in (
        ([0, 1, 2, EOS], 1 / 2),
        ([0, 1, 2, 3, 4, EOS], 1 / 3),  # what is left over is a triple that nobody wants
        ([2, 1, 0, 3, 4, 5, EOS], 1 / 3),
        ([0, 1, 2, 3, 4, 5], 1),  # without an end
        ([0, 1, 2, ZEBRA.specials["pad"], 3, 4, 5, EOS], 1),  # with something else in it
        ([EOS], 0),
    ):
        one = zebra(got, wanted)
        assert one["set_match"] == 0 and one["set_iou"] == pytest.approx(share), got
    assert triples([]) == set()


@pytest.mark.parametrize("answer, right", [
    ("39+66=105,105+33=138", True),
    ("66+33=99,39+99=138", True),
    ("39+66=105,33+105=138", True),
    ("39+66=105", False),  # 33 is not used
    ("39+66=105,105+33=139", False),
    ("39+66=104,104+34=138", False),
    ("39+66=105,105+33=138,", False),
    ("105+33=138", False),  # 105 is not there yet
    ("39+39=78,78+60=138", False),  # one 39 only
    ("39+66=105,66+33=99,39+99=138", False),  # 66 twice
    ("39*66=2574,2574+33=2607", False),  # not the target
    ("", False),
    ("39 + 66=105,105+33=138", False),
    ("138=138", False),
])  # fmt: skip
def test_countdown(answer: str, right: bool):
    assert solves("39,66,33,138", answer) is right


def test_division_is_exact():
    assert solves("6,3,2", "6/3=2") and not solves("7,3,2", "7/3=2")
    assert not solves("6,0,0", "6/0=0") and not solves("0,0,0", "0/0=0")
    assert solves("2,9,7", "9-2=7") and not solves("2,9,7", "2-9=7")
    assert solves("5,5,0", "5-5=0") and not solves("5,5,5", "5-0=5")


@settings(max_examples=200)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.randoms())
def test_made_up_solutions_are_right(numbers: list[int], rng: Any):
    """Whatever a random play comes out at is a solution, and no other target is."""
    have, steps = list(numbers), []
    while len(have) > 1:
        rng.shuffle(have)
        a, b = sorted((have.pop(), have.pop()), reverse=True)
        ways = [("+", a + b), ("-", a - b), ("*", a * b)]
        ways += [("/", a // b)] if b and a % b == 0 else []
        sign, result = rng.choice(ways)
        steps.append(f"{a}{sign}{b}={result}")
        have.append(result)
    prompt = ",".join(map(str, numbers))
    assert solves(f"{prompt},{have[0]}", ",".join(steps))
    assert not solves(f"{prompt},{have[0] + 1}", ",".join(steps))
    assert not solves(f"{prompt},1,{have[0]}", ",".join(steps))


def test_solved_share():
    def ids(text: str) -> list[int]:
        return COUNTDOWN.encode(text)

    eos, prompt = COUNTDOWN.specials["eos"], [*ids("2,3,4,10"), COUNTDOWN.specials["bos"]]
    wanted = [*ids("2*3=6,6+4=10"), eos]
    for text, solved in (("3*2=6,4+6=10", 1), ("2*3=6", 0)):
        one = scores("countdown", COUNTDOWN, [Pair(prompt, [*ids(text), eos], wanted)])
        assert (one["exact_match"], one["solved"]) == (0, solved)
    pad = COUNTDOWN.specials["pad"]
    for broken in ([*wanted[:-1]], [pad, *wanted]):  # no end; something else in it
        assert scores("countdown", COUNTDOWN, [Pair(prompt, broken, wanted)])["solved"] == 0
